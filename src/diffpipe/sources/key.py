"""Pinned sources + placement -> the configuration that the pipeline key hashes: the same key means the same weights."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from ..catalog.rows import PipelineType
from ..core.build_spec import BuildSpec, Placement
from ..core.canonical import JsonObject, JsonValue
from ..core.configuration import FORMAT, Configuration, Quantization
from ..core.errors import UsageError
from ..core.parsing import Fields, Misfit
from ..core.quantization import PACKAGES, quantized_by_default
from ..core.source import BASE, CONFIG, PICKLES, Role, Source, file_of, layout_of
from ..storage.digests import DigestCache
from .pin import Pinned

Report = Callable[[str, int], None]  # a file's name, and how many bytes more of it were read


@dataclass(frozen=True)
class Resolved:
    """A build request whose every source is pinned. `locations` gives role -> folder or file ("" : not fetched yet).

    `marks`: settings of the scheduler, among those of `spec`, that a file of weights asks for.
    """

    spec: BuildSpec
    pipeline: str
    sources: tuple[Source, ...]
    locations: Mapping[Role, str]
    config: Configuration
    marks: JsonObject = field(default_factory=dict)

    @property
    def key(self) -> str:
        return self.config.key

    @property
    def layout(self) -> dict[str, tuple[str, str]]:
        """Component -> library, class."""
        return layout_of(self.sources)


def resolve(pinned: Pinned, spec: BuildSpec, digests: DigestCache, report: Report | None = None) -> Resolved:
    """Digest the local files of a pinned request, and hash what it comes to. Nothing is looked up again.

    `spec`: the request with its placement, where that was chosen after pinning. `report` gets a file's name and how
    many bytes more of it were read. Raises UsageError for what cannot be built so.
    """
    _check_loras_can_be_stored(spec, pinned.sources)
    placed = replace(pinned.spec, placement=spec.placement)
    sources = tuple(_digested(source, pinned.locations[source.role], digests, report) for source in pinned.sources)
    names = {name for source in sources for name in source.components}
    asked = quantization(placed, pinned.row, names)
    config = configuration(placed, pinned.pipeline, sources, asked, pinned.row.float32)
    return Resolved(placed, pinned.pipeline, sources, pinned.locations, config, pinned.marks)


def _digested(source: Source, location: str, digests: DigestCache, report: Report | None) -> Source:
    """A source with the digests of its files; those of the hub have them from its listing."""
    if source.kind == "hub":
        return source
    found = {}
    for path in source.files:
        advance = (lambda count, name=path: report(name, count)) if report else None  # type: ignore[misc]
        found[path] = digests.get(file_of(source, location, path), advance)
    return replace(source, files=found)


def _check_loras_can_be_stored(spec: BuildSpec, sources: Iterable[Source]) -> None:
    """Raises UsageError for LoRAs beside GGUF weights, which cannot take them in, where the result would be stored."""
    gguf = next((path for source in sources for path in source.files if path.endswith(".gguf")), None)
    if gguf and spec.loras and spec.placement.quantize != "none":
        raise UsageError(
            f"--quantize stores LoRAs within the weights, and {PurePosixPath(gguf).name} cannot take them in",
            "leave out --quantize, or take weights that are not GGUF",
        )


def quantization(spec: BuildSpec, row: PipelineType, names: Iterable[str]) -> Quantization | None:
    """What is quantized, and how: all that changes the weights it makes. None where nothing is.

    `names`: the pipeline's components, of which denoisers and text encoders are taken unless the request names others.
    """
    asked = spec.placement
    if asked.quantize == "none":
        return None
    return Quantization(
        mode=asked.quantize,
        backend=asked.quantize_backend,
        version=installed_version(PACKAGES[asked.quantize_backend]),
        components=tuple(sorted(asked.quantize_components) or quantized_by_default(names)),
        exclude=tuple(sorted(row.unquantized)),
    )


def installed_version(package: str) -> str | None:
    """The version of an installed package, without importing it; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def configuration(
    spec: BuildSpec,
    pipeline: str,
    sources: Iterable[Source],
    quantized: Quantization | None = None,
    float32: Sequence[str] = (),
) -> Configuration:
    """The named sections that the pipeline key hashes; what may be missing only where something is so."""
    by_role = {source.role: _section(source) for source in sources}
    loras: list[JsonValue] = [by_role[Role.lora(number)] for number in range(len(spec.loras))]
    components: JsonObject = {role.name: value for role, value in by_role.items() if role.kind == "component"}
    value: JsonObject = {
        "format": FORMAT,
        "provider": spec.provider,
        "type": spec.type,
        "pipeline": pipeline,
        "base": by_role[BASE],
        "config": by_role.get(CONFIG),
        "components": components,
        "loras": loras,
        "scheduler": {"class": spec.scheduler, "config": dict(spec.scheduler_config)},
        "dtype": spec.dtype,
        "placement": {"device": spec.device, **_switches(spec.placement)},
        "trust": {"pickle": spec.allow_pickle, "remote_code": spec.trust_remote_code},
        **({"quantization": quantized.to_json()} if quantized else {}),
        **({"float32": list[JsonValue](sorted(float32))} if float32 else {}),
        **({"speed": spec.speed.to_json()} if spec.speed.to_json() else {}),
        **({"without": list[JsonValue](spec.without)} if spec.without else {}),
        **({"lora_partial": True} if spec.lora_partial and loras else {}),
    }
    try:
        return Configuration.from_json(Fields(value))
    except Misfit as error:  # names of classes and components that are no names
        raise UsageError(f"no pipeline can be built so: {error}", "give plain names, without dots or spaces") from error


def _switches(placement: Placement) -> JsonObject:
    """What of a placement decides where the weights lie; {} for the defaults. Quantization has a section of its own."""
    return {name: value for name, value in placement.to_json().items() if not name.startswith("quantize")}


def _section(source: Source) -> JsonObject:
    """What of a source decides its weights: repository, commit and variant on the hub, content digests elsewhere."""
    section: JsonObject = {"kind": "hub" if source.kind == "hub" else "local", "subfolder": source.subfolder}
    if source.kind == "hub":
        section |= {"repository": source.label, "commit": source.commit, "variant": source.variant}
        # A cache without the network may hold a part of what the commit has: other files of it would then be taken.
        chosen = source.variant or any(path.endswith(PICKLES) for path in source.files)
        if source.role.kind == "lora" or source.single or chosen:
            section["files"] = list[JsonValue](sorted(source.files))
    else:
        section["files"] = {path: info.digest for path, info in source.files.items()}
    if source.role.kind == "lora":
        section["scale"] = source.scale
        section |= {"into": source.into} if source.into else {}
        section |= {"peft": source.peft} if source.peft else {}
    return section


def sources_fit(config: Configuration, sources: Iterable[Source], stored: Collection[str]) -> bool:
    """Whether pinned sources are those that a configuration names, none missing: what comes from elsewhere may not be.

    `stored`: the components whose quantized weights lie elsewhere, so that their files, and LoRAs, may be missing.
    Of a repository only its commit can be compared: the configuration has no digests of its files.
    """
    named = config.sections
    found = {source.role: source for source in sources}
    gone = {role for role in named if stored and role.kind == "lora"} | {Role.component(name) for name in stored}
    if not set(named) - gone <= set(found) <= set(named):
        return False
    return all(_fits(named[role], source, bool(stored)) for role, source in found.items())


def _fits(section: JsonObject, source: Source, partly: bool) -> bool:
    """Whether a source is the one of its section; `partly`: or has some of its files."""
    own = _section(source)
    if any(section.get(name) != value for name, value in own.items() if name != "files"):
        return False
    named = section.get("files")
    if source.kind == "hub":
        return named is None or (isinstance(named, list) and set(source.files) <= set(named))
    digests = {path: info.digest for path, info in source.files.items()}
    return named == digests or (partly and isinstance(named, dict) and digests.items() <= named.items())
