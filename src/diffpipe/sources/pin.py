"""BuildSpec + row -> pinned sources and the pipeline key: the same key always means the same weights.

Hub repositories are pinned to a commit, local files to content digests. Where a file lies is kept beside the pin, never
hashed, so a moved folder or cache keeps its key.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any

from ..catalog.rows import PipelineType
from ..core.build_spec import BuildSpec, Placement
from ..core.canonical import JsonObject, JsonValue
from ..core.components import DENOISER_ONLY, parts_of_checkpoint
from ..core.configuration import Configuration, Quantization
from ..core.errors import DiffpipeError, NotFoundError, UsageError
from ..core.parsing import Fields
from ..core.quantization import PACKAGES, quantized_by_default
from ..core.source import BASE, CHECKPOINTS, CONFIG, EMBEDDED, PICKLES, FileInfo, Role, Source, place_of
from ..storage.disk import DigestCache, safetensors_header
from . import hub, model_files

FORMAT = 1  # of the hashed configuration: raise it when the meaning of a section changes
REPOSITORY = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
ADAPTER = re.compile(r"lora|lokr|loha|hada_|\.diff|\.alpha|dora")  # in the names of an adapter's tensors, in any layout
AUTO_CONFIGS = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")

Report = Callable[[str, int], None]


@dataclass(frozen=True)
class Resolved:
    """A build request whose every source is pinned. `locations` gives role -> folder or file ("" : not fetched yet)."""

    spec: BuildSpec
    pipeline: str
    sources: tuple[Source, ...]
    locations: Mapping[Role, str]
    config: Configuration

    @property
    def key(self) -> str:
        return self.config.key


@dataclass(frozen=True)
class Context:
    """What resolving needs besides the request: the digest cache, recorded pins by role, and whether to go online.

    `commits` by role: of the repositories for which a request names no revision (CONFIG, LoRAs). `check_names`
    gets a pipeline class's name and those of replaced components that neither the model nor the row lists.
    """

    digests: DigestCache
    pins: Mapping[Role, Source]
    offline: bool = False
    report: Report | None = None
    commits: Mapping[Role, str] = field(default_factory=dict)
    check_names: Callable[[str, Collection[str]], None] | None = None


def resolve(spec: BuildSpec, row: PipelineType, context: Context) -> Resolved:
    """Pin every source of a request and hash it. Downloads settings at most, never weights.

    Raises UsageError, NotFoundError or AccessError in the user's terms.
    """
    found: list[tuple[Source, str]] = []
    base, base_at = _pin_base(spec, context)
    found.append((base, base_at))
    if base.single:
        found.append(_pin_config(spec, row, base, base_at, context))
    layout = found[-1][0]
    pipeline = spec.pipeline or row.pipeline or layout.pipeline
    strange = set(spec.components) - set(layout.components) - set(row.components)
    if strange and context.check_names:
        context.check_names(pipeline, sorted(strange))
    asked, spec = spec, replace(spec, components=with_defaults(spec, row, layout))
    for name, source in sorted(spec.components.items()):
        option = "" if name in asked.components else component_option(name)
        with _wanted(source, option):
            found.append(_pin_component(name, source, spec, context, known=name in layout.components))
    for number, text in enumerate(spec.loras):
        found.append(_pin_lora(number, text, spec, context))
    sources = tuple(source for source, _ in found)
    _check_loras_can_be_stored(spec, sources)
    names = {name for source in sources for name in source.components}
    config = configuration(spec, pipeline, sources, quantization(spec, row, names), row.float32)
    locations = {source.role: location for source, location in found}
    return Resolved(spec, pipeline, sources, locations, config)


def _check_loras_can_be_stored(spec: BuildSpec, sources: Iterable[Source]) -> None:
    """Raises UsageError for LoRAs beside GGUF weights, which cannot take them in, where the result would be stored."""
    gguf = next((path for source in sources for path in source.files if path.endswith(".gguf")), None)
    if gguf and spec.loras and spec.placement.quantize != "none":
        raise UsageError(
            f"--quantize stores LoRAs within the weights, and {PurePosixPath(gguf).name} cannot take them in",
            "leave out --quantize, or take weights that are not GGUF",
        )


def with_defaults(spec: BuildSpec, row: PipelineType, layout: Source) -> dict[str, str]:
    """The request's replaced components, and the row's for what the model's own folder does not list."""
    return {n: s for n, s in row.components.items() if n not in layout.components} | dict(spec.components)


def component_option(name: str) -> str:
    """The option that says where a component comes from."""
    return "--controlnet SOURCE" if name == "controlnet" else f"--component {name}=SOURCE"


@contextmanager
def _wanted(source: str, option: str) -> Iterator[None]:
    """Tell of a source that was not named, where it cannot be had, that it was wanted and which option names another.

    `option`: "" for a source that the user named.
    """
    try:
        yield
    except DiffpipeError as error:
        if not option:
            raise
        message = f"without {option.removesuffix('SOURCE').rstrip(' =')}, {source} is needed: {error.message}"
        hint = f"name what is on this machine with {option}, or {error.hint}"
        raise DiffpipeError(message, hint, error.exit_code) from error


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
    """The named sections that the pipeline key hashes; "quantization", "float32", "speed" only where something is."""
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
    }
    return Configuration.from_json(Fields(value))


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


def refuse_code(source: Source, folder: Path, classes: Mapping[str, tuple[str, str]], trust_remote_code: bool) -> None:
    """What pinning a folder refuses, for one that came by another way: see `_model_index`, `_refuse_own_classes`.

    `classes`: those that the pipeline's components are loaded as. Raises UsageError.
    """

    def read(path: str) -> str:
        return (folder / path).read_text(encoding="utf-8", errors="replace")

    if "model_index.json" in source.files:
        spec = BuildSpec("", "", source.label, trust_remote_code=trust_remote_code)
        _model_index(read("model_index.json"), source.label, source.files, spec)
    if trust_remote_code or source.single:
        return
    index = {name: list(pair) for name, pair in classes.items()}
    _refuse_own_classes(index, source.label, source.files, read)
    name = source.role.name
    if source.role.kind == "component" and name in index:
        inside = {path.removeprefix(f"{source.subfolder}/"): path for path in source.files}
        files = {f"{name}/{path}": whole for path, whole in inside.items()}
        _refuse_own_classes({name: index[name]}, source.label, files, lambda path: read(files[path]))


def source_kind(text: str) -> str:
    """ "embedded", "file", "folder" or "hub": what a SOURCE on the command line is.

    Raises NotFoundError for a path that does not exist, UsageError for what is neither a path nor a repository.
    """
    if text.startswith(EMBEDDED):
        return "embedded"
    path = Path(text).expanduser()
    if path.is_dir():
        return "folder"
    if path.is_file():
        return "file"
    if REPOSITORY.fullmatch(text):
        return "hub"
    if text.startswith((".", "/", "~")) or text.endswith(CHECKPOINTS) or os.sep in text:
        raise NotFoundError(f"there is no file or folder {text}", "check the path")
    raise UsageError(
        f"{text!r} is neither a folder, a file, nor a repository (owner/name)", "for example ./my-model or owner/name"
    )


def _pin_base(spec: BuildSpec, context: Context) -> tuple[Source, str]:
    repository, inner = _repository_and_file(spec.model)
    if inner:
        return _pin_hub_file(BASE, repository, inner, spec.revision, context, allow_pickle=spec.allow_pickle)
    kind = source_kind(spec.model)
    if kind == "file":
        if spec.revision:
            raise UsageError(f"--revision {spec.revision} means nothing for a file", "leave --revision out")
        return _pin_file(BASE, spec.model, context, allow_pickle=spec.allow_pickle)
    if spec.config:
        raise UsageError("--config is for a single-file checkpoint; this model has its own", "leave --config out")
    return _pin_pipeline(BASE, spec.model, spec, context)


def _pin_config(
    spec: BuildSpec, row: PipelineType, base: Source, location: str, context: Context
) -> tuple[Source, str]:
    """The folder or repository from which a single-file checkpoint takes settings and the parts it does not hold."""
    model = spec.config or (row.repositories[0] if row.repositories else None)
    if model is None:
        raise UsageError(
            "a single-file checkpoint of a custom pipeline does not say what it is",
            "name a folder or repository with the same layout: --config SOURCE",
        )
    with _wanted(model, "" if spec.config else "--config SOURCE"):
        return _pin_pipeline(CONFIG, model, spec, context, tensors=_tensors_of(base, location, context.offline))


def _tensors_of(base: Source, location: str, offline: bool) -> Iterable[str]:
    """The names of a checkpoint's tensors, where its format lists them."""
    path = next(iter(base.files))
    if not path.endswith(".safetensors"):
        return DENOISER_ONLY
    if base.kind == "hub":
        return hub.read_header(hub.Repository(base.label, base.commit or "", base.files), path, offline)
    return safetensors_header(Path(location))


def _pin_pipeline(
    role: Role, model: str, spec: BuildSpec, context: Context, *, tensors: Iterable[str] | None = None
) -> tuple[Source, str]:
    """Pin a diffusers folder, wherever it lies. `tensors`: names of the checkpoint that replaces its denoiser."""
    if role in context.pins:
        return context.pins[role], ""
    kind = source_kind(model)
    if kind == "file":
        raise UsageError(f"{model} is a file where a diffusers folder is needed", "name a folder or a repository")
    commit, names, read = _listing(kind, model, spec.revision if role == BASE else context.commits.get(role), context)
    if "model_index.json" not in names:
        raise UsageError(
            f"{model} is no diffusers folder: it has no model_index.json",
            "convert it with diffusers, or name the checkpoint file itself",
        )
    index = _model_index(read("model_index.json"), model, names, spec)
    if not spec.trust_remote_code:
        _refuse_own_classes(index, model, names, read)
    parts = parts_of_checkpoint(tensors, model_files.components_of(index)) if tensors is not None else set()
    single = {name for name, text in spec.components.items() if _is_single(text)}
    chosen = model_files.pipeline_files(
        names,
        index,
        variant=spec.variant,
        without=set(spec.components) - single,
        weightless=parts | single,  # a single file holds no settings
        allow_pickle=spec.allow_pickle,
    )
    chosen += [name for name in names if spec.trust_remote_code and name.endswith(".py")]
    source, location = _source(role, kind, model, commit, chosen, names, context, variant=spec.variant)
    class_name = index.get("_class_name", "")
    own = class_name[-1] if isinstance(class_name, list) else class_name
    return replace(source, pipeline=own, components=model_files.components_of(index)), location


def _pin_component(name: str, text: str, spec: BuildSpec, context: Context, *, known: bool) -> tuple[Source, str]:
    """Pin a replacement component: NAME/ of a diffusers folder, the root of a folder that holds it alone, or a file.

    On the hub, owner/name/FOLDER says which folder. The component's class is the one that the pipeline's own folder
    names; where that names none (not `known`), the one named here. Of a known one only what is fetched is read.
    """
    role = Role.component(name)
    if role in context.pins:
        return context.pins[role], ""
    source, revision = _split_revision(text)
    repository, inner = _repository_and_file(source)
    if inner.endswith(CHECKPOINTS):
        return _pin_hub_file(role, repository, inner, revision or None, context, allow_pickle=spec.allow_pickle)
    kind, source = ("hub", repository) if inner else (source_kind(source), source)
    if kind == "file":
        return _pin_file(role, source, context, allow_pickle=spec.allow_pickle)
    commit, names, read = _listing(kind, source, revision or None, context)
    folder = inner.rstrip("/") or name
    inside = [path.removeprefix(folder + "/") for path in names if path.startswith(folder + "/")]
    at_root = not inside and not inner and "model_index.json" not in names
    chosen = model_files.model_files(names if at_root else inside, variant=spec.variant, allow_pickle=spec.allow_pickle)
    if not chosen:  # a pipeline without such a part
        raise NotFoundError(f"{text} holds no component {name}", "check the source, or the name of the component")
    subfolder = "" if at_root else folder
    chosen = chosen if at_root else [f"{folder}/{path}" for path in chosen]
    pinned, location = _source(
        role, kind, source, commit, chosen, names, context, variant=spec.variant, subfolder=subfolder
    )
    said = _class_named(name, subfolder, chosen if known else names, read)
    return replace(pinned, components=said), location


def _class_named(
    name: str, subfolder: str, names: Collection[str], read: Callable[[str], str]
) -> dict[str, tuple[str, str]]:
    """{name: (library, class)} as a component's own files say it; {} where they do not."""

    def settings(path: str) -> dict[str, Any]:
        try:
            value = json.loads(read(path)) if path in names else {}
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    prefix = f"{subfolder}/" if subfolder else ""
    listed = model_files.components_of(settings("model_index.json")).get(subfolder or name)
    config, tokenizer = settings(prefix + "config.json"), settings(prefix + "tokenizer_config.json")
    told = (
        ["diffusers", config.get("_class_name")],
        ["diffusers", settings(prefix + "scheduler_config.json").get("_class_name")],
        ["transformers", next(iter(config.get("architectures") or []), None)],
        ["transformers", tokenizer.get("tokenizer_class")],
    )
    found = listed or next(((pair[0], pair[1]) for pair in told if model_files.is_class(pair)), None)
    return {name: found} if found else {}


def split_scale(text: str) -> tuple[str, float]:
    """SOURCE[@SCALE] -> source and scale (1.0 when none is given).

    Raises UsageError for a scale that is no number.
    """
    source, mark, scale = text.rpartition("@")
    if not mark or Path(text).expanduser().exists():
        return text, 1.0
    try:
        value = float(scale)
    except ValueError:
        value = float("nan")
    if not -10 <= value <= 10:
        raise UsageError(f"--lora {text}: {scale!r} is no scale", "write SOURCE@SCALE with a number, for example @0.8")
    return source, value


def _repository_and_file(text: str) -> tuple[str, str]:
    """owner/name/FILE -> repository and file; ("", "") unless it has that form and no such local path exists."""
    owner, _, rest = text.partition("/")
    name, _, inner = rest.partition("/")
    if not inner or not REPOSITORY.fullmatch(f"{owner}/{name}") or Path(text).expanduser().exists():
        return "", ""
    return f"{owner}/{name}", inner


def _split_revision(text: str) -> tuple[str, str]:
    """SOURCE[@REVISION] of a component; an @ in the name of a local one is part of it."""
    source, mark, revision = text.rpartition("@")
    return (source, revision) if mark and not Path(text).expanduser().exists() else (text, "")


def _is_single(text: str) -> bool:
    """Whether a component's source is one file, here or on the hub."""
    inner = _repository_and_file(_split_revision(text)[0])[1]
    return Path(text).expanduser().is_file() or inner.endswith(CHECKPOINTS)


def _pin_lora(number: int, text: str, spec: BuildSpec, context: Context) -> tuple[Source, str]:
    """Pin an adapter: a local file, owner/name[/file], or demo:NAME for one that comes with the demo model."""
    role = Role.lora(number)
    if role in context.pins:
        return context.pins[role], ""
    text, scale = split_scale(text)
    if text.startswith("demo:"):
        embedded = f"demo/lora/{text.removeprefix('demo:')}.safetensors"
        if not place_of(EMBEDDED + embedded).is_file():
            raise NotFoundError(f"the demo model has no LoRA {text[5:]!r}", "diffpipe providers show demo lists them")
        source, location = _pin_file(role, str(place_of(EMBEDDED + embedded)), context)
        return replace(source, kind="embedded", label=text, scale=scale), EMBEDDED + embedded
    repository, inner = _repository_and_file(text)
    if inner:
        _check_suffix(inner, spec.allow_pickle)
    kind = "hub" if inner else source_kind(text)
    text = repository if inner else text
    if kind == "file":
        source, location = _pin_file(role, text, context, allow_pickle=spec.allow_pickle)
        if location.endswith(".safetensors") and not any(
            ADAPTER.search(name) for name in safetensors_header(Path(location))
        ):
            raise UsageError(
                f"{source.label} holds no LoRA", "a LoRA's tensors are named lora_A, lora_down and the like"
            )
        return replace(source, scale=scale), location
    commit, names, _read = _listing(kind, text, context.commits.get(role), context)
    candidates = [inner] if inner else [name for name in names if name.endswith(".safetensors")]
    if len(candidates) != 1 or candidates[0] not in names:
        listed = ", ".join(sorted(name for name in names if name.endswith(".safetensors"))[:5]) or "none"
        raise UsageError(f"--lora {text}: which file?", f"name it as {text}/FILE; there are: {listed}")
    source, location = _source(role, kind, text, commit, candidates, names, context)
    return replace(source, scale=scale), location


def _pin_file(role: Role, text: str, context: Context, *, allow_pickle: bool = False) -> tuple[Source, str]:
    path = Path(text).expanduser().absolute()
    _check_suffix(path.name, allow_pickle)
    if path.suffix == ".safetensors":
        safetensors_header(path)
    return _source(role, "file", text, None, [path.name], {path.name: None}, context, parent=path.parent)


def _pin_hub_file(
    role: Role, repository: str, path: str, revision: str | None, context: Context, *, allow_pickle: bool
) -> tuple[Source, str]:
    """Pin one file of a repository: owner/name/FILE."""
    if role in context.pins:
        return context.pins[role], ""
    _check_suffix(path, allow_pickle)
    commit, names, _read = _listing("hub", repository, revision, context)
    if path not in names:
        near = get_close_matches(path, [name for name in names if name.endswith(CHECKPOINTS)], n=3, cutoff=0.3)
        raise NotFoundError(
            f"{repository} has no file {path}", f"did you mean {' or '.join(near)}?" if near else "check the name"
        )
    return _source(role, "hub", repository, commit, [path], names, context)


def _check_suffix(name: str, allow_pickle: bool) -> None:
    """Raises UsageError for a pickled file that is not allowed, for no checkpoint, or one that cannot be read."""
    path = PurePosixPath(name)
    if path.suffix in PICKLES and not allow_pickle:
        raise UsageError(
            f"{path.name} is a pickled checkpoint, which can run code when loaded",
            "use a .safetensors file, or pass --allow-pickle if you trust its source",
        )
    if path.suffix not in CHECKPOINTS:
        raise UsageError(f"{path.name} is no checkpoint", f"known endings: {' '.join(CHECKPOINTS)}")
    if path.suffix == ".gguf" and not importlib.util.find_spec("gguf"):
        raise UsageError(f"{path.name} needs the package gguf", "pip install 'diffpipe[gguf]'")


def _listing(
    kind: str, text: str, revision: str | None, context: Context
) -> tuple[str | None, dict[str, FileInfo | None], Callable[[str], str]]:
    """Commit (hub only), files with what is known of them, and a reader of small ones."""
    if kind == "hub":
        repository = hub.describe(text, revision, context.offline)
        return repository.commit, dict(repository.files), lambda path: hub.read_text(repository, path, context.offline)
    if revision:
        raise UsageError(f"--revision {revision} means nothing for the local folder {text}", "leave --revision out")
    root = place_of(text) if kind == "embedded" else Path(text).expanduser()
    names: dict[str, FileInfo | None] = {
        path.relative_to(root).as_posix(): None
        for path in sorted(root.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)
    }
    return None, names, lambda path: (root / path).read_text(encoding="utf-8", errors="replace")


def _source(
    role: Role,
    kind: Any,
    text: str,
    commit: str | None,
    chosen: Iterable[str],
    names: Mapping[str, FileInfo | None],
    context: Context,
    *,
    parent: Path | None = None,
    variant: str | None = None,
    subfolder: str = "",
) -> tuple[Source, str]:
    """The pinned source of the chosen files and where it lies; local files are digested here."""
    if kind == "hub":
        known = {path: info for path in chosen if (info := names[path])}
        return Source(role, "hub", text, known, commit, variant, subfolder), ""
    root = parent or (place_of(text) if kind == "embedded" else Path(text).expanduser().absolute())
    infos: dict[str, FileInfo] = {}
    for path in sorted(chosen):
        advance = (lambda count, name=path: context.report(name, count)) if context.report else None  # type: ignore[misc]
        infos[path] = context.digests.get(root / path, advance)
    label = text if kind == "embedded" else Path(text).expanduser().resolve().name
    location = text if kind == "embedded" else str(root / next(iter(infos)) if kind == "file" else root)
    return Source(role, kind, label, infos, None, variant, subfolder), location


def _model_index(text: str, model: str, names: Iterable[str], spec: BuildSpec) -> dict[str, Any]:
    """A folder's model_index.json, refused where loading it would run code from the folder.

    diffusers runs NAME/*.py when a component is listed with a module of the folder, and a pipeline.py when the class is
    listed as [module, class].
    """
    try:
        index = json.loads(text)
        if not isinstance(index, dict):
            raise ValueError
    except ValueError:
        raise UsageError(f"the model_index.json of {model} is no JSON object", "fetch the model again") from None
    named = index.get("_class_name")
    if not isinstance(named, str) and not (model_files.is_class(named) and all(part.isidentifier() for part in named)):
        raise UsageError(f"the model_index.json of {model} names no pipeline class", "fetch the model again")
    if isinstance(named, list) and not spec.trust_remote_code:
        raise UsageError(
            f"{model} wants to run pipeline code of its own", "read it, then pass --trust-remote-code if you trust it"
        )
    strange = {library for library, _ in model_files.components_of(index).values()} - loadable_libraries()
    if strange:
        raise UsageError(
            f"{model} names the library {sorted(strange)[0]!r}, which diffusers does not load from",
            "diffpipe loads folders made of diffusers and transformers parts only",
        )
    return index


def _refuse_own_classes(
    index: Mapping[str, Any], model: str, names: Collection[str], read: Callable[[str], str]
) -> None:
    """Raises UsageError where a class would be looked up in code of the model's own.

    transformers' Auto classes do that where a configuration has an auto_map; they would ask at the terminal first.
    """
    parts = model_files.components_of(index).items()
    for name in (name for name, (library, kind) in parts if library == "transformers" and kind.startswith("Auto")):
        for path in (f"{name}/{file}" for file in AUTO_CONFIGS):
            if path in names and '"auto_map"' in read(path):
                raise UsageError(
                    f"{model} wants to run code of its own for {name}",
                    "read it, then pass --trust-remote-code if you trust it",
                )


@functools.cache
def loadable_libraries() -> frozenset[str]:
    """What a model_index.json may name: diffusers, transformers, and the modules of diffusers' own pipelines."""
    spec = importlib.util.find_spec("diffusers")
    root = Path(spec.origin).parent / "pipelines" if spec and spec.origin else Path()
    own = {path.name for folder in (root, root / "deprecated") for path in folder.iterdir() if path.is_dir()}
    return frozenset({"diffusers", "transformers"} | own)
