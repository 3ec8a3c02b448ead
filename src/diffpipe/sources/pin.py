"""BuildSpec + row -> pinned sources: the exact files that would be loaded.

Hub repositories are pinned to a commit, folders to the files in them. Where a file lies is kept beside the pin, never
hashed, so a moved folder or cache keeps its key (see key.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..catalog.rows import PipelineType
from ..core.build_spec import BuildSpec
from ..core.canonical import JsonObject
from ..core.components import DENOISER_ONLY, parts_of_checkpoint
from ..core.errors import DiffpipeError, NotFoundError, UsageError
from ..core.parsing import Fields, Misfit, parse_json
from ..core.source import BASE, CHECKPOINTS, CONFIG, EMBEDDED, FileInfo, Role, Source, SourceKind, layout_of, place_of
from ..storage.disk import shortened, unreadable, user_path
from ..storage.opening import LARGEST_TEXT, read_regular
from ..storage.tensor_headers import read_safetensors
from . import adapter_files, hub, model_files, settings_files
from .folders import files_in
from .hub_cache import Repository
from .left_out import without_parts
from .named import is_single, repository_and_file, source_kind, split_denoiser, split_revision, split_scale
from .pointers import refuse_pointer
from .trust import check_local, check_suffix, model_index

Report = Callable[[str, int], None]


@dataclass(frozen=True)
class Context:
    """What pinning needs besides the request: recorded pins by role, and whether to go online.

    `commits` by role: of the repositories for which a request names no revision (CONFIG, LoRAs). `check_names`
    gets a pipeline class's name and those of replaced components that neither the model nor the row lists.
    """

    pins: Mapping[Role, Source] = field(default_factory=dict)
    offline: bool = False
    commits: Mapping[Role, str] = field(default_factory=dict)
    check_names: Callable[[str, Collection[str]], None] | None = None


@dataclass(frozen=True)
class Pinned:
    """A build request whose every source is known to the file; its placement may still be chosen (see key.resolve).

    `spec`: with the components that the row adds. `locations`: role -> folder or file ("" : not fetched yet). Files on
    this machine are sized and not read: their digests are "" still. `marks`: settings of the scheduler, among those of
    `spec`, that a file of weights asks for.
    """

    spec: BuildSpec
    row: PipelineType
    pipeline: str
    sources: tuple[Source, ...]
    locations: Mapping[Role, str]
    marks: JsonObject = field(default_factory=dict)

    @property
    def layout(self) -> dict[str, tuple[str, str]]:
        """Component -> library, class."""
        return layout_of(self.sources)


def pin(spec: BuildSpec, row: PipelineType, context: Context) -> Pinned:
    """Pin every source of a request. Downloads settings at most, never weights; reads no weights.

    Raises UsageError, NotFoundError or AccessError in the user's terms.
    """
    base, base_at = _pin_base(spec, context)
    found = [(base, base_at)]
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
    locations = {source.role: location for source, location in found}
    sources = tuple(source for source, _ in found)
    check_local(sources, locations, trusted=spec.trust_remote_code)
    return Pinned(spec, row, pipeline, sources, locations)


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


def _pin_base(spec: BuildSpec, context: Context) -> tuple[Source, str]:
    repository, inner = repository_and_file(spec.model)
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
        return hub.read_header(Repository.of(base), path, offline).tensors
    return read_safetensors(Path(location)).tensors


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
    index = without_parts(model_index(read("model_index.json"), model, names, spec), spec)
    parts = parts_of_checkpoint(tensors, model_files.components_of(index)) if tensors is not None else set()
    single = {name for name, text in spec.components.items() if is_single(text)}
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
    source, revision = split_revision(text)
    repository, inner = repository_and_file(source)
    if inner.endswith(CHECKPOINTS):
        return _pin_hub_file(role, repository, inner, revision or None, context, allow_pickle=spec.allow_pickle)
    kind: SourceKind = "hub" if inner else source_kind(source)
    source = repository if inner else source
    if kind == "file":
        return _pin_file(role, source, context, allow_pickle=spec.allow_pickle)
    commit, names, read = _listing(kind, source, revision or None, context)
    folder = inner.rstrip("/") or name
    inside = [path.removeprefix(folder + "/") for path in names if path.startswith(folder + "/")]
    at_root = not inside and not inner and "model_index.json" not in names
    subfolder = "" if at_root else folder
    settings = {f"{subfolder}/config.json".lstrip("/")} & names.keys()
    library = _class_named(name, subfolder, settings, read).get(name, ("", ""))[0]
    chosen = model_files.model_files(
        names if at_root else inside, variant=spec.variant, allow_pickle=spec.allow_pickle, library=library
    )
    if not chosen:  # a pipeline without such a part
        raise NotFoundError(f"{text} holds no component {name}", "check the source, or the name of the component")
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

    def settings(path: str) -> JsonObject:
        try:
            return Fields(parse_json(read(path), settings_files.LARGEST, finite=False)).value if path in names else {}
        except Misfit:
            return {}

    prefix = f"{subfolder}/" if subfolder else ""
    listed = model_files.components_of(settings("model_index.json")).get(subfolder or name)
    config, tokenizer = settings(prefix + "config.json"), settings(prefix + "tokenizer_config.json")
    told = (
        ["diffusers", config.get("_class_name")],
        ["diffusers", settings(prefix + "scheduler_config.json").get("_class_name")],
        ["transformers", *(named[:1] if isinstance(named := config.get("architectures"), list) else [])],
        ["transformers", tokenizer.get("tokenizer_class")],
    )
    found = listed or next(((pair[0], pair[1]) for pair in told if model_files.is_class(pair)), None)
    return {name: found} if found else {}


def _pin_lora(number: int, text: str, spec: BuildSpec, context: Context) -> tuple[Source, str]:
    """Pin an adapter as `--lora` names it, with its scale and the denoiser that it is for."""
    role = Role.lora(number)
    if role in context.pins:
        return context.pins[role], ""
    denoiser, text = split_denoiser(text)
    text, scale = split_scale(text)
    source, location = _pin_adapter(role, text, spec, context)
    return replace(source, scale=scale, into=denoiser), location


def _pin_adapter(role: Role, text: str, spec: BuildSpec, context: Context) -> tuple[Source, str]:
    """Pin an adapter: a local file, owner/name[/file], or demo:NAME for one that comes with the demo model."""
    if text.startswith("demo:"):
        embedded = f"demo/lora/{text.removeprefix('demo:')}.safetensors"
        if not place_of(EMBEDDED + embedded).is_file():
            raise NotFoundError(f"the demo model has no LoRA {text[5:]!r}", "diffpipe providers show demo lists them")
        source, location = _pin_file(role, str(place_of(EMBEDDED + embedded)), context)
        return replace(source, kind="embedded", label=text), EMBEDDED + embedded
    repository, inner = repository_and_file(text)
    if inner:
        check_suffix(inner, spec.allow_pickle)
    kind: SourceKind = "hub" if inner else source_kind(text)
    text = repository if inner else text
    if kind == "file":
        source, location = _pin_file(role, text, context, allow_pickle=spec.allow_pickle)
        if location.endswith(".safetensors"):
            adapter_files.check_names(read_safetensors(Path(location)).tensors, source.label)
        return replace(source, peft=adapter_files.beside(Path(location))), location
    commit, names, read = _listing(kind, text, context.commits.get(role), context)
    candidates = [inner] if inner else [name for name in names if name.endswith(".safetensors")]
    if len(candidates) != 1 or candidates[0] not in names:
        files = sorted(name for name in names if name.endswith(".safetensors"))
        listed = ", ".join(map(shortened, files[:5])) or "none"
        raise UsageError(f"--lora {text}: which file?", f"name it as {text}/FILE; there are: {listed}")
    source, location = _source(role, kind, text, commit, candidates, names, context)
    partly = kind == "hub" and context.offline  # the cache may have a part of what the commit has
    return replace(source, peft=adapter_files.listed(candidates[0], names, read, partly=partly)), location


def _pin_file(role: Role, text: str, context: Context, *, allow_pickle: bool = False) -> tuple[Source, str]:
    path = user_path(text).absolute()
    check_suffix(path.name, allow_pickle)
    refuse_pointer(path)
    if path.suffix == ".safetensors":
        read_safetensors(path)
    return _source(role, "file", text, None, [path.name], {path.name: None}, context, parent=path.parent)


def _pin_hub_file(
    role: Role, repository: str, path: str, revision: str | None, context: Context, *, allow_pickle: bool
) -> tuple[Source, str]:
    """Pin one file of a repository: owner/name/FILE."""
    if role in context.pins:
        return context.pins[role], ""
    check_suffix(path, allow_pickle)
    commit, names, _read = _listing("hub", repository, revision, context)
    if path not in names:
        near = model_files.nearest(path, names)
        raise NotFoundError(
            f"{repository} has no file {path}", f"did you mean {' or '.join(near)}?" if near else "check the name"
        )
    return _source(role, "hub", repository, commit, [path], names, context)


def _listing(
    kind: str, text: str, revision: str | None, context: Context
) -> tuple[str | None, dict[str, FileInfo | None], Callable[[str], str]]:
    """Commit (hub only), files with what is known of them, and a reader of small ones."""
    if kind == "hub":
        repository = hub.describe(text, revision, context.offline)
        return repository.commit, dict(repository.files), lambda path: hub.read_text(repository, path, context.offline)
    if revision:
        raise UsageError(f"--revision {revision} means nothing for the local folder {text}", "leave --revision out")
    root = place_of(text) if kind == "embedded" else user_path(text)
    names: dict[str, FileInfo | None] = dict.fromkeys(sorted(files_in(root)))

    def read(path: str) -> str:
        refuse_pointer(root / path)
        return read_regular(root / path, LARGEST_TEXT).decode(errors="replace")

    return None, names, read


def _source(
    role: Role,
    kind: SourceKind,
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
    """The pinned source of the chosen files and where it lies."""
    if kind == "hub":
        known = {path: info for path in chosen if (info := names[path])}
        return Source(role, "hub", text, known, commit, variant, subfolder), ""
    root = parent or (place_of(text) if kind == "embedded" else user_path(text).absolute())
    infos = {path: _sized(root / path) for path in sorted(chosen)}
    label = text if kind == "embedded" else user_path(text).resolve().name
    location = text if kind == "embedded" else str(root / next(iter(infos)) if kind == "file" else root)
    return Source(role, kind, label, infos, None, variant, subfolder), location


def _sized(path: Path) -> FileInfo:
    """A local file that is not read yet. Raises UsageError if it cannot be, or is a pointer of Git LFS."""
    refuse_pointer(path)
    try:
        return FileInfo(path.stat().st_size, "")
    except OSError as error:
        raise unreadable(f"cannot read {path}", error) from error
