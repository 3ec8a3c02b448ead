"""What a file says of itself -> the pipeline, call arguments and input files that make it again.

The document may come from anywhere, so nothing of it is trusted: its configuration must hash to its key, arguments are
checked as a prompt file's are, input files are sought by name alone, and code or pickles need the user's consent anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..batch.argument_checks import checked
from ..batch.argument_values import from_json, typed_values
from ..cache.entry import SHORT, Entry
from ..cache.states import unconfirmed
from ..cache.store import Store, check_name
from ..cache.verify import locate
from ..catalog.plugins import providers
from ..catalog.rows import PipelineType
from ..core.build_spec import SAFETY_CHECKER, BuildSpec
from ..core.configuration import Configuration, Section, Trust
from ..core.errors import CacheError, NotFoundError, UsageError
from ..core.flag import MEDIA_KINDS, Arguments
from ..core.manifest import Manifest
from ..core.source import BASE, CHECKPOINTS, CONFIG, Role
from ..results.comparison import differences, in_short
from ..results.document import Document, InputFile, Recipe, SourceFacts, damaged
from ..results.metadata import media_digest
from ..sources.key import Report
from .build import Options, build
from .fetch import Say
from .request import Request

Find = Callable[[str, InputFile, int], str]  # where the file is of (argument, recorded file, its place in a list)


@dataclass(frozen=True)
class Given:
    """Where the user says that local sources are now, `loras` in order; what they consent to; and how to build.

    `force`: go on where a pipeline or input file is another than the recorded one.
    """

    model: str | None = None
    config: str | None = None
    components: Mapping[str, str] = field(default_factory=dict)
    loras: Sequence[str] = ()
    allow_pickle: bool = False
    trust_remote_code: bool = False
    force: bool = False
    offline: bool = False
    quiet: bool = False

    def place(self, role: Role) -> str | None:
        """Where a source that is no LoRA is, and where one from the hub or the package is to be taken from instead."""
        if role.kind == "component":
            return self.components.get(role.name)
        return self.model if role == BASE else self.config


# The pipeline


def entry_of(recipe: Recipe, given: Given, store: Store, say: Say, report: Report | None = None) -> Entry:
    """The pipeline of a recipe: from the cache by its key, else built again.

    Raises DiffpipeError for a recipe that was edited, NotFoundError that says which local sources are needed,
    UsageError for a pipeline that would be another one, with what differs.
    """
    key = recipe.key
    if recipe.config.key != key:
        raise damaged()
    entry = store.sound(key)
    if entry is not None:
        try:
            locate(entry, entry.manifest())
        except CacheError as error:
            say(f"{error.message}: building {key[:SHORT]} again")
        else:
            for doubt in unconfirmed(entry, entry.manifest()):
                say(f"{key[:SHORT]} is {doubt}")
            return entry
    spec, row, commits = spec_of(recipe, given, _places(entry))
    request = Request(spec, row, store, given.offline, fresh=True, commits=commits, check_classes=False)
    resolved = request.resolved(spec, report)
    if resolved.key != key:
        _refuse(list(differences(recipe.config.json, resolved.config.json)), given.force, say)
    options = Options(_name(recipe, resolved.key, store), False, given.offline, given.quiet)
    return build(request, spec, options, say, report).entry


def _refuse(different: Sequence[str], force: bool, say: Say) -> None:
    """Say how the pipeline is another one. Raises UsageError unless `force`, or where it only lies elsewhere."""
    problem = f"this is not the pipeline that made it: {in_short(different)}"
    if not force and not all(line.startswith("placement.") for line in different):
        raise UsageError(problem, "give the same sources, or pass --force")
    say(problem)


def _places(entry: Entry | None) -> dict[Role, str]:
    """Where a pipeline's sources were at its build, as far as they are still there."""
    recorded = entry.locations() if entry else {}
    return {role: place for role, place in recorded.items() if place and Path(place).exists()}


def _name(recipe: Recipe, key: str, store: Store) -> str:
    """A name for a pipeline that is built again: its own, unless that is taken."""
    own, other = recipe.name, f"{recipe.config.provider}-{key[:SHORT]}"
    try:
        check_name(own)
    except UsageError:
        return other
    return own if store.names().get(own) in (None, key) else other


def spec_of(
    recipe: Recipe, given: Given, places: Mapping[Role, str]
) -> tuple[BuildSpec, PipelineType, dict[Role, str]]:
    """The build request of a recipe, its row, and commits by role for what no request can pin.

    `places`: where local sources lie. Raises NotFoundError for a provider that is not here, and for local sources that
    are not; UsageError for code or pickles without the user's consent.
    """
    config, base = recipe.config, recipe.sections[BASE]
    row = _row(config)
    _check_consent(config.trust, given)
    sources = _sources(recipe, given, places)
    spec = BuildSpec(
        provider=config.provider,
        type=config.type,
        model=sources[BASE],
        pipeline="" if config.pipeline == _usual_class(recipe, row) else config.pipeline,
        revision=None if given.model else base.commit or None,
        variant=base.variant or _recorded(recipe, BASE).variant,
        config=sources.get(CONFIG),
        components={role.name: text for role, text in sorted(sources.items()) if role.kind == "component"},
        loras=tuple(sources[Role.lora(number)] for number in range(config.loras)),
        lora_partial=config.lora_partial,
        scheduler=config.scheduler.name,
        scheduler_config=config.scheduler.settings,
        dtype=config.dtype,
        device=config.device,
        placement=config.placement,
        speed=config.speed,
        no_safety_checker=SAFETY_CHECKER in config.without,
        allow_pickle=config.trust.pickle,
        trust_remote_code=config.trust.remote_code,
    )
    return spec, row, _commits(recipe, given)


def _row(config: Configuration) -> PipelineType:
    known = providers().get(config.provider)
    row = known.type(config.type) if known else None
    if row is None:
        problem = f"there is no provider {config.provider!r} with a type {config.type!r} here"
        raise NotFoundError(problem, "install the plug-in that it comes from")
    return row


def _check_consent(trust: Trust, given: Given) -> None:
    """A file from somebody else must not decide that their code runs here."""
    if trust.remote_code and not given.trust_remote_code:
        hint = "read it, then pass --trust-remote-code if you trust it"
        raise UsageError("its pipeline runs code that comes with the model", hint)
    if trust.pickle and not given.allow_pickle:
        problem = "its pipeline was built with --allow-pickle: pickled weights can run code"
        raise UsageError(problem, "pass --allow-pickle if you trust the source")


def _usual_class(recipe: Recipe, row: PipelineType) -> str:
    """The pipeline class that a request gets which names none."""
    base = _recorded(recipe, BASE)
    return row.pipeline or recipe.sources.get(CONFIG, base).pipeline


def _recorded(recipe: Recipe, role: Role) -> SourceFacts:
    if role not in recipe.sources:
        raise damaged()
    return recipe.sources[role]


def _commits(recipe: Recipe, given: Given) -> dict[Role, str]:
    """The commits of settings and LoRAs from the hub, which no request can name."""
    return {
        role: section.commit
        for role, section in recipe.sections.items()
        if section.kind == "hub" and (role.kind == "lora" or (role == CONFIG and not given.config))
    }


# Its sources


@dataclass(frozen=True)
class _Part:
    """A source that the pipeline needs: its section, and what the recipe says of it, which may leave it out."""

    role: Role
    section: Section
    source: SourceFacts | None

    @property
    def local(self) -> bool:
        """Whether only its owner has it: it is neither on the hub nor in the package."""
        return self.section.kind == "local" and not (self.source and self.source.kind == "embedded")

    @property
    def public(self) -> str | None:
        """As --model, --component or --lora takes it, where it is not local: owner/name[/FILE or /FOLDER][@COMMIT]."""
        if self.local:
            return None
        if self.section.kind == "local":
            return self.source.label if self.source else None
        files = self.section.files or tuple(self.source.files if self.source else ())
        single = len(files) == 1 and files[0].endswith(CHECKPOINTS)
        folder = self.section.subfolder if self.section.subfolder != self.role.name else ""
        commit = f"@{self.section.commit}" if self.role.kind == "component" else ""
        return "/".join(filter(None, [self.section.repository, files[0] if single else folder])) + commit

    @property
    def label(self) -> str:
        """The name that it had."""
        return (self.source.label if self.source else "") or next(iter(self.section.files), "SOURCE")

    @property
    def needed(self) -> tuple[str, str]:
        """The option that says where it is, and what to give there."""
        if self.role.kind == "component":
            return "--component", f"{self.role.name}={self.label}"
        return {"base": "--model", "config": "--config"}.get(self.role.kind, "--lora"), self.label


def _sources(recipe: Recipe, given: Given, places: Mapping[Role, str]) -> dict[Role, str]:
    """Each source as --model, --component or --lora would take it. Raises NotFoundError for local ones."""
    parts = [_Part(role, section, recipe.sources.get(role)) for role, section in recipe.sections.items()]
    _check_used(given, parts)
    loras = iter(given.loras)  # of the local ones, in order
    found: dict[Role, str] = {}
    missing: list[tuple[str, str]] = []
    for part in parts:
        if part.role.kind == "lora":
            text = part.public or next(loras, None) or places.get(part.role)
        else:
            text = given.place(part.role) or part.public or places.get(part.role)
        if text is None:
            missing.append(part.needed)
        else:
            found[part.role] = _as_lora(text, part.section) if part.role.kind == "lora" else text
    if missing:
        problem = f"it was made with local files that are not known here: {', '.join(what for _, what in missing)}"
        raise NotFoundError(problem, f"say where: {' '.join(f'{option} {what}' for option, what in missing)}")
    return found


def _as_lora(text: str, section: Section) -> str:
    """As --lora takes it, with its scale and the denoiser that was named for it."""
    return f"{section.into}={text}@{section.scale!r}" if section.into else f"{text}@{section.scale!r}"


def _check_used(given: Given, parts: Sequence[_Part]) -> None:
    """Raises UsageError for a place of something that the pipeline does not have."""
    roles = {part.role for part in parts}
    local = sum(part.local for part in parts if part.role.kind == "lora")
    unknown = [f"--component {name}" for name in given.components if Role.component(name) not in roles]
    unknown += ["--config"] if given.config and CONFIG not in roles else []
    unknown += [f"--lora {lora}" for lora in given.loras[local:]]
    if unknown:
        raise UsageError(f"the pipeline had nothing for {unknown[0]}", "diffpipe inspect shows what it was made of")


# The call


def call_of(document: Document, manifest: Manifest, find: Find) -> Arguments:
    """The call arguments of a document, media as paths that `find` gives.

    Raises UsageError for what the pipeline does not take.
    """
    flags = manifest.flags_by_name
    media = {name for name, flag in flags.items() if flag.kind in MEDIA_KINDS}
    plain = {name: value for name, value in document.arguments.items() if value is not None}
    if plain.keys() & media or document.media.keys() - media:
        raise damaged()
    typed_values(plain, from_json, "its settings", flags, {*manifest.arguments, *flags})
    found = {
        name: [find(name, one, place) for place, one in enumerate(recorded)]
        if isinstance(recorded, list)
        else find(name, recorded, 0)
        for name, recorded in document.media.items()
    }
    return checked(flags, {**plain, **found})


def find_media(
    name: str, recorded: InputFile, given: str | None, folders: Iterable[Path], *, force: bool = False
) -> str:
    """Where an input file is: as `given`, else by its name in one of the folders, with the digest it had.

    `force`: take one with another digest, too. Raises NotFoundError where there is none, UsageError for another file.
    """
    label = Path(recorded.file).name  # no more than a name: the document may come from anywhere
    named = label not in ("", ".", "..")
    places = [Path(given)] if given else [folder / label for folder in folders if named]
    there = [place for place in places if place.is_file() or place.is_dir()]
    same = [place for place in there if media_digest(place) == recorded.digest]
    if same or (there and force):
        return str((same or there)[0])
    if there:
        problem = f"{there[0]} is not the {label} that it was made from: the content differs"
        raise UsageError(problem, f"give that with --set {name}=PATH, or pass --force to take this one")
    hint = f"put {label} beside the file, or say where it is: --set {name}=PATH"
    raise NotFoundError(f"the input {given or label} is not here", hint)
