"""The first journey: a build request -> pinned sources -> a named cache entry. Work is done once per key."""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import hub, select
from .errors import UsageError
from .files import identity, readable, safetensors_header, weigh
from .resolve import Context, Resolved, place_of, resolve
from .specs import CHECKPOINTS, BuildSpec, Component, PipelineType, Source, digest
from .store import SHORT, Entry, Store, check_name

FORMAT = 1  # of the manifest: raise it when readers of older ones would misread newer ones
PACKAGES = (
    "diffpipe",
    "diffusers",
    "transformers",
    "torch",
    "accelerate",
    "peft",
    "optimum-quanto",
    "safetensors",
    "pillow",
)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Built:
    """The outcome of a build: the entry, its name, whether it was there already, and what the name stood for before."""

    entry: Entry
    name: str
    cached: bool
    replaced: str | None


@dataclass(frozen=True)
class Options:
    """How to go about a build, none of which changes what is built."""

    name: str
    force: bool = False
    offline: bool = False
    quiet: bool = False


def build(spec: BuildSpec, row: PipelineType, store: Store, options: Options, say: Say, report: Any = None) -> Built:
    """Resolve, fetch and describe a pipeline, or find it in the cache. `say` gets a line of text per stage.

    Raises DiffpipeError in the user's terms; whatever happens, the cache holds a whole entry or none.
    """
    check_name(options.name)
    store.folder("pipelines")  # a cache that cannot be written should say so before anything is read
    offline = hub.is_offline(options.offline)
    request = digest(_request(spec, store, report))
    known = {} if options.force else (store.pins(request) or {})
    pins = {role: Source.from_json(source) for role, source in known.items()}
    resolved = resolve(spec, row, Context(store.digests, pins, offline, report))
    if pins and store.sound(resolved.key) is None:  # what they pinned was removed: look branches and tags up again
        resolved = resolve(spec, row, Context(store.digests, {}, offline, report))
    entry = None if options.force else _ready(store, resolved)
    cached = entry is not None
    if entry is None:
        short = resolved.key[:SHORT]
        with store.lock(resolved.key, lambda: say(f"another process is building {short}; waiting for it")):
            # Another process may have published it while this one waited.
            entry = None if options.force else _ready(store, resolved)
            cached = entry is not None
            entry = entry or _make(resolved, row, store, options.name, offline, options.quiet, say)
    else:
        _follow(entry, resolved, options.name)
    store.set_pins(request, {s.role: asdict(s) for s in resolved.sources if s.kind == "hub"})
    return Built(entry, options.name, cached, store.set_name(options.name, entry.key))


def _request(spec: BuildSpec, store: Store, report: Any) -> dict[str, Any]:
    """A request with local sources told by content or place: what comes from the hub can depend on what they hold."""

    def told(source: str) -> str:
        path = Path(source).expanduser()
        advance = (lambda count: report(path.name, count)) if report else None
        return store.digests.get(path, advance).digest if path.is_file() else absolute(source)

    words = asdict(spec) | {"model": told(spec.model), "loras": [told(lora) for lora in spec.loras]}
    return words | {"components": {name: told(source) for name, source in spec.components.items()}}


def _ready(store: Store, resolved: Resolved) -> Entry | None:
    """The entry, if it is sound and the hub's cache still holds its files (other tools clean that cache too)."""
    entry = store.sound(resolved.key)
    if entry is None:
        return None
    locations = entry.sources()["locations"]
    fetched = (file_of(s, locations[s.role], path) for s in resolved.sources if s.kind == "hub" for path in s.files)
    return entry if all(path.exists() for path in fetched) else None


def _follow(entry: Entry, resolved: Resolved, name: str) -> None:
    """A cache hit from another folder with the same content: where the recorded one is gone, use the new one."""
    recorded = entry.sources()
    moved = {s.role for s in resolved.sources if s.kind in ("folder", "file") and _changed(s, recorded)}
    if moved:
        locations = recorded["locations"] | {role: resolved.locations[role] for role in moved}
        entry.set_sources(record_sources(resolved.sources, locations, command_of(resolved.spec, name)))


def _changed(source: Source, recorded: Mapping[str, Any]) -> bool:
    """Whether any file of a source is not, where it was recorded, what it was then."""
    location, seen = recorded["locations"].get(source.role, ""), recorded["identities"].get(source.role, {})
    places = {path: file_of(source, location, path) for path in source.files}
    return any(not place.exists() or identity(place) != seen.get(path) for path, place in places.items())


def _make(
    resolved: Resolved, row: PipelineType, store: Store, name: str, offline: bool, quiet: bool, say: Say
) -> Entry:
    """Check what only diffusers can check, fetch, weigh, read the signature, publish."""
    from .engine import load, outputs, place, run, signature

    place.quiet_libraries()
    spec = resolved.spec
    # The first to list any is the pipeline's own folder; a component adds itself where that does not list it.
    layout = {name: pair for s in reversed(resolved.sources) for name, pair in s.components.items()}
    own, fetched = None, None
    if spec.trust_remote_code and not (spec.pipeline or row.pipeline) and not resolved.sources[0].single:
        fetched = _fetch(resolved, offline, quiet, say)
        own = load.own_pipeline_class(place_of(fetched["base"]))
    cls = own or load.pipeline_class(resolved.pipeline)
    load.check(asdict(spec), cls, layout)
    fields = outputs.output_fields(cls)
    kind = outputs.kind_of(fields)
    if kind is None:
        made = ", ".join(fields) or "nothing diffpipe knows"
        raise UsageError(f"{resolved.pipeline} makes no picture, video or sound", f"it returns {made}")
    locations = fetched or _fetch(resolved, offline, quiet, say)
    components = _components(resolved, row, layout, locations)
    manifest = {
        "format": FORMAT,
        "key": resolved.key,
        "provider": spec.provider,
        "type": spec.type,
        "pipeline": resolved.pipeline,
        "config": dict(resolved.config),
        "sources": [asdict(source) for source in resolved.sources],
        "components": [asdict(component) for component in components],
        "own_class": own is not None,
        "flags": [flag.to_json() for flag in signature.read_flags(cls, row)],
        "arguments": run.settable(cls),
        "kind": kind,
        "fps": row.fps or outputs.example_fps(cls),
        "quirks": sorted(row.quirks),
        "versions": versions(),
    }
    base = resolved.sources[0]
    summary = {
        "provider": spec.provider,
        "type": spec.type,
        "pipeline": resolved.pipeline,
        "model": base.label + (f"@{base.commit[:7]}" if base.commit else ""),
        "dtype": spec.dtype,
        "bytes": sum(component.bytes for component in components),
        "built": int(time.time()),
    }
    return store.publish(
        resolved.key, summary, manifest, record_sources(resolved.sources, locations, command_of(spec, name))
    )


def _fetch(resolved: Resolved, offline: bool, quiet: bool, say: Say) -> dict[str, str]:
    """Have every source on this machine; role -> folder or file."""
    locations = dict(resolved.locations)
    for source in resolved.sources:
        if source.kind == "hub" and source.commit:
            total = sum(info.size for info in source.files.values())
            say(f"{source.label} at {source.commit[:7]}: {len(source.files)} files, {readable(total)}")
            repository = hub.Repository(source.label, source.commit, source.files)
            folder = hub.fetch(repository, list(source.files), offline=offline, quiet=quiet)
            locations[source.role] = str(folder / next(iter(source.files)) if source.single else folder)
    return locations


def file_of(source: Source, location: str, path: str) -> Path:
    """The place of one of a source's files: the location itself where the source is a single file."""
    place = place_of(location)
    return place if place.is_file() or place.suffix in CHECKPOINTS else place / path


def record_sources(sources: tuple[Source, ...], locations: Mapping[str, str], command: list[str]) -> dict[str, Any]:
    """What sources.json holds: where each source lies, each file's identity now, and how to build it again."""
    identities = {
        source.role: {path: identity(file_of(source, locations[source.role], path)) for path in source.files}
        for source in sources
    }
    return {"locations": dict(locations), "identities": identities, "command": command}


def _components(
    resolved: Resolved, row: PipelineType, layout: Mapping[str, tuple[str, str]], locations: Mapping[str, str]
) -> list[Component]:
    """Every component with its class and the size of its weights, read from safetensors headers."""
    sources = {source.role: source for source in resolved.sources}
    base, settings = sources["base"], sources.get("config")
    held: dict[str, list[dict[str, Any]]] = {}
    if base.single:
        held = _checkpoint_headers(base, locations["base"], layout)
    table = []
    for name, (library, class_name) in layout.items():
        replacement = sources.get(f"component:{name}")
        source = replacement or (base if name in held else settings or base)
        folder = replacement.subfolder if replacement else name
        prefix = f"{folder}/" if folder else ""
        headers = (None if replacement else held.get(name)) or [
            safetensors_header(file_of(source, locations[source.role], path))
            for path in source.files
            if path.startswith(prefix) and path.endswith(".safetensors") and (replacement or not source.single)
        ]
        chosen = resolved.spec.scheduler if name == "scheduler" else None
        table.append(Component(name, library, chosen or class_name, source.label, **weigh(headers)))
    return table


def _checkpoint_headers(
    base: Source, location: str, layout: Mapping[str, tuple[str, str]]
) -> dict[str, list[dict[str, Any]]]:
    """A single-file checkpoint's tensors, parted by the component each belongs to."""
    path = Path(location)
    if path.suffix != ".safetensors":
        return {name: [] for name in select.parts_of_checkpoint(select.DENOISER_ONLY, layout)}
    header = {name: tensor for name, tensor in safetensors_header(path).items() if name != "__metadata__"}
    parted: dict[str, list[dict[str, Any]]] = {}
    for name, tensor in header.items():
        for part in sorted(select.parts_of_checkpoint([name], layout))[:1]:
            parted.setdefault(part, [{}])[0][name] = tensor
    return parted


def versions() -> dict[str, str]:
    """The installed version of each package that decides what a pipeline makes, without importing any."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def command_of(spec: BuildSpec, name: str) -> list[str]:
    """The command that makes the same request again, from any folder."""
    words = ["diffpipe", "build", spec.provider, "--type", spec.type, "--model", absolute(spec.model)]
    options = {
        "--class": spec.pipeline,
        "--revision": spec.revision,
        "--variant": spec.variant,
        "--config": absolute(spec.config) if spec.config else None,
        "--dtype": spec.dtype,
        "--device": None if spec.device == "auto" else spec.device,
        "--scheduler": spec.scheduler,
        "--scheduler-config": _json(spec.scheduler_config),
        "--name": name,
    }
    words += [word for option, value in options.items() if value for word in (option, value)]
    for component, source in spec.components.items():
        words += ["--component", f"{component}={absolute(source)}"]
    for lora in spec.loras:
        words += ["--lora", absolute(lora)]
    words += ["--allow-pickle"] * spec.allow_pickle + ["--trust-remote-code"] * spec.trust_remote_code
    return words


def absolute(source: str) -> str:
    """A local source as an absolute path; anything else as it is."""
    path, mark, scale = source.rpartition("@")
    for text, rest in ((source, ""), (path, mark + scale)):
        if text and os.path.exists(os.path.expanduser(text)):
            return str(Path(text).expanduser().absolute()) + rest
    return source


def _json(value: Mapping[str, Any]) -> str:
    import json

    return json.dumps(dict(value)) if value else ""
