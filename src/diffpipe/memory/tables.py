"""The component tables that a plan works from: read from headers, kept from an earlier look, or recorded.

No weights are downloaded: of a repository's weight files only the headers are read, by ranged requests. What was read
is kept under headers/ in the cache, so that a second plan, or one without the network, costs no request.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..cache.store import Store
from ..catalog.plugins import float32_of_class
from ..catalog.rows import PipelineType
from ..core.build_spec import BuildSpec
from ..core.canonical import JsonObject, JsonValue, digest
from ..core.components import DENOISER_ONLY, kind_of, part_checkpoint, parts_of_checkpoint
from ..core.errors import DiffpipeError, Exit, NotFoundError
from ..core.manifest import Manifest
from ..core.parsing import Fields, Misfit, parse_json
from ..core.source import BASE, CONFIG, Role, Source, file_of
from ..sources import hub, hub_client, model_files
from ..sources.hub_cache import Repository, is_present
from ..sources.pin import Pinned
from ..storage.disk import write_json
from ..storage.opening import LARGEST_TEXT, read_regular
from ..storage.tensor_headers import TensorHeader, TensorInfo, parse, read_safetensors, weigh
from .recorded import as_recorded, default_sizes, of_repository
from .sizes import Settings, Sizes, read_sizes, set_steps

UNREAD = (".bin", ".pt", ".pth", ".ckpt", ".gguf")  # files whose tensors no header lists
LARGEST = 1 << 20  # bytes of a table that is kept
FORMAT = 2  # of what is kept: raise it when sizes are read in another way


@dataclass(frozen=True)
class Table:
    """A pipeline's components with their sizes. `origin` says in words where the numbers come from. `disk`: bytes of
    the files it loads, `download`: of those that are not here; None where unknown. `sizes`: default width, height,
    frames, steps of what it makes, where they are known."""

    pipeline: str
    parts: tuple[Sizes, ...]
    origin: str
    disk: int | None = None
    download: int | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)


def table(spec: BuildSpec, row: PipelineType, store: Store, offline: bool, pinned: Callable[[], Pinned]) -> Table:
    """The table of a build request. `pinned` gives its sources.

    Raises what pinning raises, where nothing kept or recorded can stand in.
    """
    kept = store.root / "headers" / digest(_request(spec))
    offline = hub_client.is_offline(offline)
    try:
        known = pinned()
        found = _read(known, store, offline)
        if known.sources[0].kind == "hub":
            _keep(kept, found, known.sources[0].commit)
    except DiffpipeError as error:
        away = error.exit_code == Exit.FAILED or (offline and isinstance(error, NotFoundError))
        instead = (_kept(kept) or _recorded(spec, row)) if away else None
        if instead is None:
            raise
        found = instead
    return replace(found, parts=in_float32(found.parts, row.float32 or float32_of_class(found.pipeline)))


def in_float32(parts: Sequence[Sizes], names: Collection[str]) -> tuple[Sizes, ...]:
    """The components, those named as they are loaded: in float32."""
    return tuple(replace(part, dtype="float32") if part.name in names else part for part in parts)


def built_table(manifest: Manifest, locations: Mapping[Role, str]) -> Table:
    """The table of a built pipeline, from its manifest and the settings of its components: no header is read.

    `locations`: where its sources lie. What cannot be read counts as unknown.
    """
    configs: dict[str, Settings] = {}
    parts: list[Sizes] = []
    stored = manifest.stored
    for component in manifest.components:
        name, class_name = component.name, component.class_name
        if model_files.WEIGHTLESS.search(class_name):
            continue
        source, prefix = place(manifest.sources, name)
        configs[name] = _local_config(source, locations.get(source.role, ""), f"{prefix}config.json")
        part = read_sizes(name, class_name, {}, configs[name])
        made = stored.how.mode if stored and name in stored.components else part.quantized
        weighed = replace(part, parameters=component.parameters or None, stored=component.bytes, quantized=made)
        parts.append(replace(weighed, dtypes=component.dtypes))
    wide = manifest.config.float32 or float32_of_class(manifest.pipeline)
    whole = in_float32([as_recorded(part) for part in set_steps(parts, configs)], wide)
    sizes = default_sizes(manifest.pipeline, configs)
    return Table(manifest.pipeline, whole, "kept from its build", sizes=sizes)


def _local_config(source: Source, location: str, path: str) -> Settings:
    if path not in source.files:
        return {}
    try:
        return _settings(read_regular(file_of(source, location, path), LARGEST_TEXT).decode())
    except (OSError, ValueError):
        return {}


def _settings(text: str) -> Settings:
    """A component's config.json. Raises Misfit for what is none."""
    return Fields(parse_json(text, LARGEST)).value


def _request(spec: BuildSpec) -> JsonObject:
    """What of a request decides the table."""
    return {
        "format": FORMAT,
        "provider": spec.provider,
        "type": spec.type,
        "model": spec.model,
        "pipeline": spec.pipeline,
        "revision": spec.revision,
        "variant": spec.variant,
        "config": spec.config,
        "components": dict(spec.components),
        "loras": list(spec.loras),
    }


def _keep(path: Path, found: Table, commit: str | None) -> None:
    parts: list[JsonValue] = [part.to_json() for part in found.parts]
    kept: JsonObject = {"pipeline": found.pipeline, "parts": parts, "disk": found.disk}
    _write(path, {**kept, "sizes": dict(found.sizes), "commit": commit})


def _kept(path: Path) -> Table | None:
    """What `_keep` wrote; None where it is missing or damaged."""
    try:
        data = Fields(parse_json(read_regular(path, LARGEST), LARGEST))
        sizes = data.object("sizes")
        return Table(
            pipeline=data.text("pipeline"),
            parts=tuple(map(Sizes.from_json, data.objects("parts"))),
            origin=f"kept from an earlier look at commit {data.text('commit', '')[:7]}",
            disk=data.maybe_integer("disk"),
            sizes={name: sizes.integer(name) for name in sizes.names()},
        )
    except (OSError, Misfit):
        return None


def _recorded(spec: BuildSpec, row: PipelineType) -> Table | None:
    """The recorded table of a well-known repository. Replaced components are of unknown size."""
    model = of_repository(spec.model)
    if model is None:
        return None
    given = {part.name: part for part in model.components}
    given |= {name: Sizes(name, "", kind_of(name)) for name in spec.components}
    origin = f"recorded for {model.title}, as the hub cannot be asked"
    disk = sum(part.stored or 0 for part in given.values())
    return Table(spec.pipeline or row.pipeline, tuple(given.values()), origin, disk, None, model.sizes)


def _read(pinned: Pinned, store: Store, offline: bool) -> Table:
    """Sizes of every component from the headers and settings of the files that would be loaded."""
    layout = pinned.layout
    configs: dict[str, Settings] = {}
    parts: list[Sizes] = []
    checkpoint = _checkpoint(pinned, layout, store, offline)
    for name, (_, class_name) in layout.items():
        if model_files.WEIGHTLESS.search(class_name):
            continue
        source, prefix = place(pinned.sources, name)
        read = reader(source, pinned.locations[source.role], store, offline)
        configs[name] = read.config(f"{prefix}config.json")
        tensors = checkpoint[name] if name in checkpoint else _tensors(source, prefix, read)
        parts.append(_part(name, class_name, tensors, configs[name]))
    same = map(as_recorded, set_steps(parts, configs))
    hub_files = [(source, path) for source in pinned.sources if source.kind == "hub" for path in source.files]
    missing = sum(s.files[path].size for s, path in hub_files if not is_present(Repository.of(s), path))
    disk = sum(info.size for source in pinned.sources for info in source.files.values())
    origin = "read from the headers of its files"
    return Table(pinned.pipeline, tuple(same), origin, disk, missing, default_sizes(pinned.pipeline, configs))


def place(pinned: Sequence[Source], name: str) -> tuple[Source, str]:
    """The source of a component's files and the folder in it ("" at its root)."""
    sources = {source.role: source for source in pinned}
    replacement = sources.get(Role.component(name))
    if replacement:
        return replacement, f"{replacement.subfolder}/" if replacement.subfolder else ""
    base = sources[BASE]
    held = any(path.startswith(f"{name}/") for path in base.files)
    return (base if held or CONFIG not in sources else sources[CONFIG]), f"{name}/"


@dataclass(frozen=True)
class Reader:
    """How headers and settings of a source are read, here or on the hub."""

    header: Callable[[str], TensorHeader]
    text: Callable[[str], str]

    def config(self, path: str) -> Settings:
        try:
            return _settings(self.text(path))
        except (OSError, KeyError, ValueError, DiffpipeError):
            return {}


def reader(source: Source, location: str, store: Store, offline: bool) -> Reader:
    if source.kind != "hub":
        return Reader(
            lambda path: read_safetensors(file_of(source, location, path)),
            lambda path: read_regular(file_of(source, location, path), LARGEST_TEXT).decode(),
        )
    repository = Repository.of(source)
    return Reader(
        lambda path: _cached_header(repository, path, store, offline),
        lambda path: hub.read_text(repository, path, offline) if path in source.files else "{}",
    )


def _cached_header(repository: Repository, path: str, store: Store, offline: bool) -> TensorHeader:
    """A hub file's header, kept by the digest of the file: the same content is never asked for twice."""
    kept = store.root / "headers" / digest([FORMAT, repository.files[path].digest])
    try:
        found = parse(read_regular(kept, LARGEST_TEXT))
        with suppress(OSError):
            os.utime(kept)  # prune removes what was not read for long
        return found
    except (OSError, Misfit):
        header = hub.read_header(repository, path, offline)
    _write(kept, header.to_json())
    return header


def _write(path: Path, value: JsonObject) -> None:
    """Keep what was read; a cache that may only be read stays as it is."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(path, value)


def _tensors(source: Source, prefix: str, read: Reader) -> dict[str, TensorInfo]:
    """The tensors of a component's files; none where any of its weights are in another format."""
    paths = [path for path in source.files if path.startswith(prefix) and "/" not in path[len(prefix) :]]
    if any(path.endswith(UNREAD) for path in paths):
        return {}
    headers = [read.header(path) for path in paths if path.endswith(".safetensors")]
    return {name: tensor for header in headers for name, tensor in header.tensors.items()}


def _checkpoint(
    pinned: Pinned, layout: Mapping[str, object], store: Store, offline: bool
) -> dict[str, dict[str, TensorInfo]]:
    """What a single-file checkpoint holds: component -> tensors, {} for one whose tensors cannot be listed."""
    base = pinned.sources[0]
    if not base.single:
        return {}
    path = next(iter(base.files))
    if path.endswith(UNREAD):
        return {name: {} for name in parts_of_checkpoint(DENOISER_ONLY, layout)}
    read = reader(base, pinned.locations[base.role], store, offline)
    return part_checkpoint(read.header(path).tensors, layout)


def _part(name: str, class_name: str, tensors: Mapping[str, TensorInfo], config: Settings) -> Sizes:
    """A component's sizes; unknown where no header tells them."""
    if not tensors:
        return Sizes(name, class_name, kind_of(name))
    weight = weigh(tensors.values())
    sizes = read_sizes(name, class_name, {tensor: about.shape for tensor, about in tensors.items()}, config)
    return replace(sizes, stored=weight.bytes, dtypes=weight.dtypes)
