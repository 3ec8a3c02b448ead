"""The first journey: a build request -> pinned sources -> a named cache entry. Work is done once per key."""

from __future__ import annotations

import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..cache import weights
from ..cache.store import SHORT, Entry, Store, check_name, record_sources
from ..catalog import plugins
from ..catalog.rows import PipelineType
from ..core.build_spec import BuildSpec, Placement
from ..core.canonical import digest
from ..core.components import DENOISER_ONLY, part_checkpoint, parts_of_checkpoint
from ..core.errors import UsageError
from ..core.source import EMBEDDED, Component, Source, file_of, place_of
from ..sources import hub, model_files
from ..sources.pin import Context, Resolved, resolve
from ..storage.disk import identity, readable, safetensors_header, weigh

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
    "av",
)

HEADED = (".safetensors", ".gguf")  # weights that list their tensors before them

Say = Callable[[str], None]
NOTHING: Mapping[str, str] = {}


@dataclass(frozen=True)
class Built:
    """The outcome of a build: the entry, its name, whether it was there already, and what the name stood for before."""

    entry: Entry
    name: str
    cached: bool
    replaced: str | None


@dataclass(frozen=True)
class Options:
    """How to go about a build, none of which changes what is built. `reason`: why its placement was chosen."""

    name: str
    force: bool = False
    offline: bool = False
    quiet: bool = False
    reason: str = ""


def build(
    spec: BuildSpec,
    row: PipelineType,
    store: Store,
    options: Options,
    say: Say,
    report: Any = None,
    commits: Mapping[str, str] = NOTHING,
) -> Built:
    """Resolve, fetch and describe a pipeline, or find it in the cache. `say` gets a line of text per stage.

    `commits`: of a pipeline that is built again, see `Context`; nothing is pinned by it for other builds.
    Raises DiffpipeError in the user's terms; whatever happens, the cache holds a whole entry or none.
    """
    check_name(options.name)
    store.folder("pipelines")  # a cache that cannot be written should say so before anything is read
    offline = hub.is_offline(options.offline)
    request = digest(_request(spec, store, report))
    known = {} if options.force or commits else (store.pins(request) or {})
    pins = {role: Source.from_json(source) for role, source in known.items()}
    check_names = None if spec.trust_remote_code else _check_names  # a class of the model's own is not known yet
    resolved = resolve(spec, row, Context(store.digests, pins, offline, report, commits, check_names))
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
            entry = entry or _make(resolved, row, store, replace(options, offline=offline), say)
    else:
        _follow(entry, resolved, options.name)
    if not commits:
        store.set_pins(request, {s.role: asdict(s) for s in resolved.sources if s.kind == "hub"})
    return Built(entry, options.name, cached, store.set_name(options.name, entry.key))


def _check_names(pipeline: str, names: Collection[str]) -> None:
    from ..engine.classes import lookup
    from ..engine.placement import devices as place

    place.quiet_libraries()
    lookup.check_names(lookup.pipeline_class(pipeline), names)


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
    sources = [source for source in map(Source.from_json, entry.manifest()["sources"]) if source.kind == "hub"]
    fetched = (file_of(source, locations[source.role], path) for source in sources for path in source.files)
    stored = weights.weights_key(resolved.config)
    whole = stored is None or weights.sound(store, stored) is not None
    return entry if whole and all(path.exists() for path in fetched) else None


def _follow(entry: Entry, resolved: Resolved, name: str) -> None:
    """A cache hit from another folder with the same content: where the recorded one is gone, use the new one."""
    recorded = entry.sources()
    sources = tuple(map(Source.from_json, entry.manifest()["sources"]))
    moved = {s.role for s in sources if s.kind in ("folder", "file") and _changed(s, recorded)}
    if moved:
        locations = recorded["locations"] | {role: resolved.locations[role] for role in moved}
        entry.set_sources(record_sources(sources, locations, command_of(resolved.spec, name)))


def _changed(source: Source, recorded: Mapping[str, Any]) -> bool:
    """Whether any file of a source is not, where it was recorded, what it was then."""
    location, seen = recorded["locations"].get(source.role, ""), recorded["identities"].get(source.role, {})
    places = {path: file_of(source, location, path) for path in source.files}
    return any(not place.exists() or identity(place) != seen.get(path) for path, place in places.items())


def _make(resolved: Resolved, row: PipelineType, store: Store, options: Options, say: Say) -> Entry:
    """Check what only diffusers can check, fetch, weigh, read the signature, publish."""
    from ..engine.classes import lookup, outputs, signature
    from ..engine.loading import load
    from ..engine.placement import apply as placement
    from ..engine.placement import devices as place
    from ..engine.running import run

    place.quiet_libraries()
    spec, offline, quiet = resolved.spec, options.offline, options.quiet
    # The first to list any is the pipeline's own folder; a component adds itself where that does not list it.
    layout = {name: pair for s in reversed(resolved.sources) for name, pair in s.components.items()}
    hint = _what_fits(resolved)
    own, fetched = None, None
    if spec.trust_remote_code and not (spec.pipeline or row.pipeline) and not resolved.sources[0].single:
        fetched = _fetch(resolved, offline, quiet, say)
        own = lookup.own_pipeline_class(place_of(fetched["base"]))
    cls = own or lookup.pipeline_class(resolved.pipeline)
    shipped = _settings(resolved, "scheduler", "scheduler_config.json", offline) if _schedules(spec) else {}
    load.check(asdict(spec), cls, layout, shipped, hint)
    layout = _matched(cls, resolved, layout, hint, offline)
    placement.check(cls, spec.placement)
    _check_speed(cls, resolved, layout, offline)
    if "quantization" in resolved.config:
        from ..engine.loading import prepare

        prepare.check(resolved.config["quantization"], layout)
    fields = outputs.output_fields(cls)
    kind = outputs.kind_of(fields)
    if kind is None:
        made = ", ".join(fields) or "nothing diffpipe knows"
        raise UsageError(f"{resolved.pipeline} makes no picture, video or sound", f"it returns {made}")
    if "call" not in row.quirks and (reason := signature.why_uncallable(cls)):
        raise UsageError(f"no command line can call {resolved.pipeline}: it {reason}", "name another with --class")
    small = fetched or _fetch(resolved, offline, quiet, say, only="lora:")
    _check_loras(cls, resolved, layout, small, offline, say)
    stored = weights.weights_key(resolved.config)
    if stored and options.force and weights.problems(store, stored):  # read whole: a disk can lose bits in silence
        weights.drop(store, stored)
    shared = weights.sound(store, stored) if stored else None
    if shared:  # another entry with the same weights made them
        resolved = replace(resolved, sources=tuple(_still_needed(resolved.sources, shared["components"])))
    locations = fetched or _fetch(resolved, offline, quiet, say, have=small)
    components = _components(resolved, row, layout, locations)
    manifest: dict[str, Any] = {
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
        **({"placement_reason": options.reason} if options.reason else {}),
    }
    if stored:
        manifest |= _quantize(manifest, stored, locations, row, store, say)
        resolved = replace(resolved, sources=tuple(map(Source.from_json, manifest["sources"])))
    base = resolved.sources[0]
    summary = {
        "provider": spec.provider,
        "type": spec.type,
        "pipeline": resolved.pipeline,
        "model": base.label + (f"@{base.commit[:7]}" if base.commit else ""),
        "dtype": spec.dtype,
        "bytes": sum(component["bytes"] for component in manifest["components"]),
        "built": int(time.time()),
        **({"weights": stored, "quantize": resolved.config["quantization"]["mode"]} if stored else {}),
    }
    return store.publish(
        resolved.key, summary, manifest, record_sources(resolved.sources, locations, command_of(spec, options.name))
    )


def _schedules(spec: BuildSpec) -> bool:
    """Whether a request changes the scheduler."""
    return bool(spec.scheduler or spec.scheduler_config)


def _settings(resolved: Resolved, component: str, name: str, offline: bool) -> dict[str, Any]:
    """A component's own settings file, small and so read before anything is fetched; {} where there is none."""
    sources = {source.role: source for source in resolved.sources}
    base = sources.get("config") or sources["base"]
    source = sources.get(f"component:{component}")
    inside = source.subfolder if source and not source.single else component
    source = base if source is None or source.single else source
    path = f"{inside}/{name}" if inside else name
    if path not in source.files:
        return {}
    if source.kind == "hub" and source.commit:
        text = hub.read_text(hub.Repository(source.label, source.commit, source.files), path, offline)
    else:
        text = file_of(source, resolved.locations[source.role], path).read_text(encoding="utf-8")
    return dict(json.loads(text))


def _matched(
    cls: type, resolved: Resolved, layout: Mapping[str, tuple[str, str]], hint: str, offline: bool
) -> dict[str, tuple[str, str]]:
    """The class of each component. Raises UsageError for a model or component of another family than the class."""
    from ..engine.classes import match

    folder = _folder(resolved)
    replaced = {
        name: match.Replaced(source.label, source.components.get(name))
        for source in resolved.sources
        if source.role.startswith("component:") and (name := source.role.removeprefix("component:"))
    }
    classes = match.check(cls, match.Model(folder.label, folder.pipeline, folder.components), replaced, hint)
    # A single file says nothing of its own widths: its settings are those of the folder.
    told = {s.role for s in resolved.sources if not s.single}
    read = {name: part for name, part in replaced.items() if f"component:{name}" in told}
    match.check_widths(classes, read, lambda name: _settings(resolved, name, "config.json", offline))
    return {name: classes[name] for name in layout}


def _folder(resolved: Resolved) -> Source:
    """The source that is a diffusers folder: the model's own, or where a single file takes its settings from."""
    return next((s for s in resolved.sources if s.role == "config"), resolved.sources[0])


def _what_fits(resolved: Resolved) -> str:
    """Which provider and type a model is for, by the pipeline class that its folder names."""
    own = _folder(resolved).pipeline
    if own == resolved.pipeline:
        return "choose the provider and --type that fit the model, or add the part with --component NAME=SOURCE"
    for provider in plugins.providers().values():
        for row in provider.types:
            if row.pipeline == own and not any(r.startswith(EMBEDDED) for r in row.repositories):
                kind = "" if row is provider.types[0] else f" --type {row.name}"
                return f"this model is a {own}: diffpipe build {provider.name}{kind}"
    return f"this model is a {own}: diffpipe build custom, or name another model with --model"


def _check_speed(cls: type, resolved: Resolved, layout: Mapping[str, tuple[str, str]], offline: bool) -> None:
    """Refuse --compile, --attention-backend and --step-cache for denoisers that cannot take them."""
    from ..core.components import kind_of
    from ..engine.classes import lookup
    from ..engine.placement import devices as place
    from ..engine.placement import speed

    section = resolved.config.get("speed")
    if not section:
        return
    denoisers = {
        name: (lookup.component_class(*pair), _settings(resolved, name, "config.json", offline))
        for name, pair in layout.items()
        if kind_of(name) == "denoiser"
    }
    speed.check(cls, section, denoisers, place.choose_device(resolved.spec.device))


def _check_loras(
    cls: type,
    resolved: Resolved,
    layout: Mapping[str, tuple[str, str]],
    locations: Mapping[str, str],
    offline: bool,
    say: Say,
) -> None:
    """Refuse the LoRAs that are for another model, and tell of those that fit in part."""
    from ..engine.classes import lookup
    from ..engine.loading import adapter_fit

    def settings(name: str) -> tuple[Any, dict[str, Any]] | None:
        if name not in layout:
            return None
        return lookup.component_class(*layout[name]), _settings(resolved, name, "config.json", offline)

    for source in resolved.sources:
        if not source.role.startswith("lora:"):
            continue
        path = file_of(source, locations[source.role], next(iter(source.files)))
        fit = adapter_fit.check(cls, path, source.label, settings, pickle=resolved.spec.allow_pickle)
        if fit and fit.fitting < fit.layers:
            say(f"the LoRA {source.label} fits in part: {fit.fitting} of its {fit.layers} layers are in this model")


def _quantize(
    manifest: Mapping[str, Any], key: str, locations: Mapping[str, str], row: PipelineType, store: Store, say: Say
) -> dict[str, Any]:
    """What quantization changes of a manifest. The weights are made, unless an entry with the same ones made them.

    "quantization" tells how; "components" give the stored sizes; "sources" drop what is not needed any more.
    """
    from ..engine.loading import prepare

    places = {role: place_of(location) for role, location in locations.items()}
    made = weights.make(
        store,
        key,
        lambda folder: prepare.store_components(manifest, places, row.quirks, folder, say),
        lambda: say(f"another process is making the quantized weights {key[:SHORT]}; waiting for it"),
    )
    stored = made["components"]
    sizes = {name: {size: part[size] for size in ("bytes", "parameters", "dtypes")} for name, part in stored.items()}
    told = ("layers", "left", "comparison")
    return {
        "quantization": {
            **manifest["config"]["quantization"],
            "key": key,
            "components": {name: {k: part[k] for k in told if k in part} for name, part in stored.items()},
        },
        "components": [part | sizes.get(part["name"], {}) for part in manifest["components"]],
        "sources": [asdict(s) for s in _still_needed(map(Source.from_json, manifest["sources"]), stored)],
    }


def _still_needed(sources: Iterable[Source], stored: Collection[str]) -> Iterator[Source]:
    """The sources of a pipeline some of whose components are stored, with LoRAs fused: their own weights may go."""
    for source in sources:
        if source.role.startswith("lora:") or source.role.removeprefix("component:") in stored:
            continue
        whole = source.single or source.role.startswith("component:")
        yield source if whole else replace(source, files=model_files.without_weights(source.files, stored))


def _fetch(
    resolved: Resolved, offline: bool, quiet: bool, say: Say, *, only: str = "", have: Mapping[str, str] = NOTHING
) -> dict[str, str]:
    """Have the sources here whose role begins with `only`; role -> folder or file. `have`: those that are."""
    locations = {**resolved.locations, **have}
    for source in resolved.sources:
        if source.role.startswith(only) and source.kind == "hub" and not locations[source.role]:
            assert source.commit
            total = sum(info.size for info in source.files.values())
            say(f"{source.label} at {source.commit[:7]}: {len(source.files)} files, {readable(total)}")
            repository = hub.Repository(source.label, source.commit, source.files)
            folder = hub.fetch(repository, list(source.files), offline=offline, quiet=quiet)
            locations[source.role] = str(folder / next(iter(source.files)) if source.single else folder)
    return locations


def _components(
    resolved: Resolved, row: PipelineType, layout: Mapping[str, tuple[str, str]], locations: Mapping[str, str]
) -> list[Component]:
    """Every component with its class and the size of its weights, read from the headers of their files."""
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
            _header(file_of(source, locations[source.role], path))
            for path in source.files
            if path.startswith(prefix) and path.endswith(HEADED) and (replacement or not source.single)
        ]
        chosen = resolved.spec.scheduler if name == "scheduler" else None
        table.append(Component(name, library, chosen or class_name, source.label, **weigh(headers)))
    return table


def _checkpoint_headers(
    base: Source, location: str, layout: Mapping[str, tuple[str, str]]
) -> dict[str, list[dict[str, Any]]]:
    """A single-file checkpoint's tensors, parted by the component each belongs to."""
    path = Path(location)
    if path.suffix not in HEADED:
        return {name: [] for name in parts_of_checkpoint(DENOISER_ONLY, layout)}
    return {name: [tensors] for name, tensors in part_checkpoint(_header(path), layout).items()}


def _header(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors or GGUF file."""
    if path.suffix == ".safetensors":
        return safetensors_header(path)
    from ..engine.loading import load

    return load.gguf_header(path)


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
        **_placement_options(spec.placement),
        "--attention-backend": spec.speed.attention_backend,
        "--step-cache": spec.speed.step_cache,
        "--name": name,
    }
    words += [word for option, value in options.items() if value for word in (option, value)]
    for component, source in spec.components.items():
        words += ["--component", f"{component}={absolute(source)}"]
    for lora in spec.loras:
        words += ["--lora", absolute(lora)]
    words += [switch for switch, on in _switches(spec.placement).items() if on]
    words += ["--compile"] * spec.speed.compile
    words += ["--allow-pickle"] * spec.allow_pickle + ["--trust-remote-code"] * spec.trust_remote_code
    return words


def _placement_options(placement: Placement) -> dict[str, str]:
    given = placement.to_json()
    options = {"--memory": given.get("memory", ""), "--cpu-offload": given.get("cpu_offload", "")}
    # In bytes, since it is part of the key: 12 GB are no short number of GiB.
    options["--device-memory"] = f"{placement.device_memory}B" if placement.device_memory else ""
    if placement.quantize == "none":
        return options
    options |= {"--quantize": placement.quantize, "--quantize-backend": placement.quantize_backend}
    return options | {"--quantize-components": ",".join(placement.quantize_components)}


def _switches(placement: Placement) -> dict[str, bool]:
    given = placement.to_json().items()
    return {"--" + name.replace("_", "-"): value for name, value in given if isinstance(value, bool)}


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
