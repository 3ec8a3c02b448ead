"""What a file says of itself -> the pipeline, call arguments and input files that make it again.

The document may come from anywhere, so nothing of it is trusted: its configuration must hash to its key, arguments are
checked as a prompt file's are, input files are sought by name alone, and code or pickles need the user's consent anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..batch.argument_checks import checked
from ..batch.argument_values import from_json, typed_values
from ..cache.entry import SHORT, Entry
from ..cache.store import Store, check_name
from ..cache.verify import locate
from ..catalog.plugins import providers
from ..catalog.rows import PipelineType
from ..core.build_spec import BuildSpec, Speed
from ..core.canonical import digest
from ..core.configuration import Configuration
from ..core.errors import CacheError, NotFoundError, UsageError
from ..core.flag import MEDIA_KINDS, Arguments
from ..core.manifest import Manifest
from ..core.parsing import Fields
from ..core.source import CHECKPOINTS, Role
from ..results.metadata import damaged, media_digest, sections_of
from ..sources.key import Report
from .build import Options, build
from .fetch import Say
from .request import Request

# Decibels from which what was made again counts as the same. At 40 dB the root mean square error is 1 % of full scale
# (2.6 levels of 255), which is taken for invisible in picture coding; the ear hears more: 60 dB is 0.1 %.
EQUAL = {"picture": 40.0, "frames": 40.0, "sound": 60.0}
MOST_TOLD = 5  # differences that one message names

Missing = list[tuple[str, str]]  # what is needed: an option, and what to give there


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

    def lora(self, number: int) -> str | None:
        """Where a local LoRA is, counted from 0."""
        return self.loras[number] if number < len(self.loras) else None

    def place(self, role: str) -> str | None:
        """Where a source that is no LoRA is, and where one from the hub or the package is to be taken from instead."""
        if role.startswith("component:"):
            return self.components.get(role.removeprefix("component:"))
        return self.model if role == "base" else self.config


# The pipeline


def entry_of(document: Mapping[str, Any], given: Given, store: Store, say: Say, report: Report | None = None) -> Entry:
    """The pipeline that made a file: from the cache by its key, else built again.

    Raises DiffpipeError for a document that was edited, NotFoundError that says which local sources are needed,
    UsageError for a pipeline that would be another one, with what differs.
    """
    key = document["pipeline"]["key"]
    if digest(document["config"]) != key:
        raise damaged()
    entry = store.sound(key)
    if entry is not None:
        try:
            locate(entry, entry.manifest())
        except CacheError as error:
            say(f"{error.message}: building {key[:SHORT]} again")
        else:
            return entry
    try:
        spec, row, commits = spec_of(document, given, _places(entry))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged() from error
    request = Request(spec, row, store, given.offline, fresh=True, commits=commits, check_classes=False)
    resolved = request.resolved(spec, report)
    if resolved.key != key:
        _refuse(list(differences(document["config"], resolved.config.json)), given.force, say)
    options = Options(_name(document, resolved.key, store), False, given.offline, given.quiet)
    return build(request, spec, options, say, report).entry


def _refuse(different: Sequence[str], force: bool, say: Say) -> None:
    """Tell how the pipeline is another one. Raises UsageError unless `force`, or where it only lies elsewhere."""
    told = f"this is not the pipeline that made it: {told_briefly(different)}"
    if not force and not all(line.startswith("placement.") for line in different):
        raise UsageError(told, "give the same sources, or pass --force")
    say(told)


def told_briefly(different: Iterable[str]) -> str:
    """A few differences as one line."""
    listed = list(different)
    more = len(listed) - MOST_TOLD
    return "; ".join(listed[:MOST_TOLD]) + (f"; and {more} more" if more > 0 else "")


def _places(entry: Entry | None) -> dict[str, str]:
    """Where a pipeline's sources were at its build, by role, as far as they are still there."""
    recorded = entry.locations() if entry else {}
    return {str(role): place for role, place in recorded.items() if place and Path(place).exists()}


def _name(document: Mapping[str, Any], key: str, store: Store) -> str:
    """A name for a pipeline that is built again: its own, unless that is taken."""
    own = document["pipeline"]["name"]
    try:
        check_name(own)
    except UsageError:
        own = ""
    taken = store.names().get(own) not in (None, key)
    return f"{document['pipeline']['provider']}-{key[:SHORT]}" if taken or not own else str(own)


def spec_of(
    document: Mapping[str, Any], given: Given, places: Mapping[str, str]
) -> tuple[BuildSpec, PipelineType, dict[Role, str]]:
    """The build request of a document, its row, and commits by role for what no request can pin.

    `places`: where local sources lie, by role. Raises NotFoundError for a provider that is not here, and for local
    sources that are not; UsageError for code or pickles without the user's consent.
    """
    config = document["config"]
    row = _row(config["provider"], config["type"])
    _check_consent(config["trust"], given)
    sources = {source["role"]: source for source in document["sources"]}
    sections = dict(sections_of(config))
    found = _sources(sections, sources, given, places)
    default = row.pipeline or sources.get("config", sources["base"]).get("pipeline", "")
    commits = {
        Role.parse(role): section["commit"]
        for role, section in sections.items()
        if section["kind"] == "hub" and role.startswith(("config", "lora:")) and not (role == "config" and given.config)
    }
    spec = BuildSpec(
        provider=config["provider"],
        type=config["type"],
        model=found["base"],
        pipeline="" if config["pipeline"] == default else config["pipeline"],
        revision=None if given.model else sections["base"].get("commit"),
        variant=sections["base"].get("variant") or sources["base"].get("variant"),
        config=found.get("config"),
        components={role[10:]: text for role, text in sorted(found.items()) if role.startswith("component:")},
        loras=tuple(found[f"lora:{number}"] for number in range(len(config["loras"]))),
        scheduler=config["scheduler"]["class"],
        scheduler_config=config["scheduler"]["config"],
        dtype=config["dtype"],
        device=config["placement"]["device"],
        placement=Configuration.from_json(Fields(config)).placement,
        speed=Speed.from_json(Fields(config.get("speed", {}))),
        allow_pickle=config["trust"]["pickle"],
        trust_remote_code=config["trust"]["remote_code"],
    )
    return spec, row, commits


def _row(provider: str, kind: str) -> PipelineType:
    known = providers().get(provider)
    row = known.type(kind) if known else None
    if row is None:
        raise NotFoundError(
            f"there is no provider {provider!r} with a type {kind!r} here", "install the plug-in that it comes from"
        )
    return row


def _check_consent(trust: Mapping[str, Any], given: Given) -> None:
    """A file from somebody else must not decide that their code runs here."""
    if trust["remote_code"] and not given.trust_remote_code:
        raise UsageError(
            "its pipeline runs code that comes with the model", "read it, then pass --trust-remote-code if you trust it"
        )
    if trust["pickle"] and not given.allow_pickle:
        raise UsageError(
            "its pipeline was built with --allow-pickle: pickled weights can run code",
            "pass --allow-pickle if you trust the source",
        )


def _sources(
    sections: Mapping[str, Mapping[str, Any]],
    sources: Mapping[str, Mapping[str, Any]],
    given: Given,
    places: Mapping[str, str],
) -> dict[str, str]:
    """Each source as --model, --component or --lora would take it, by role. Raises NotFoundError for local ones."""
    found: dict[str, str] = {}
    missing: Missing = []
    loras = 0
    for role, section in sections.items():
        source = sources.get(role, {"kind": section["kind"], "label": "", "files": section.get("files", {})})
        local = section["kind"] != "hub" and source["kind"] != "embedded"
        own = None if local else _on_hub(role, section, source) if section["kind"] == "hub" else source["label"]
        if role.startswith("lora:"):
            text = own or given.lora(loras) or places.get(role)
            loras += local
        else:
            text = given.place(role) or own or places.get(role)
        if text is None:
            missing.append(_needed(role, section, source))
            continue
        found[role] = f"{text}@{section['scale']!r}" if role.startswith("lora:") else text
    _check_used(given, sections, loras)
    if missing:
        listed = " ".join(f"{option} {what}" for option, what in missing)
        names = ", ".join(what for _, what in missing)
        raise NotFoundError(f"it was made with local files that are not known here: {names}", f"say where: {listed}")
    return found


def _check_used(given: Given, sections: Mapping[str, Any], loras: int) -> None:
    """Raises UsageError for a place of something that the pipeline does not have."""
    unknown = [f"--component {name}" for name in given.components if f"component:{name}" not in sections]
    unknown += ["--config"] if given.config and "config" not in sections else []
    unknown += [f"--lora {lora}" for lora in given.loras[loras:]]
    if unknown:
        raise UsageError(f"the pipeline had nothing for {unknown[0]}", "diffpipe inspect shows what it was made of")


def _on_hub(role: str, section: Mapping[str, Any], source: Mapping[str, Any]) -> str:
    """owner/name[/FILE or /FOLDER][@COMMIT] of a repository."""
    files, name = list(section.get("files") or source["files"]), role.partition(":")[2]
    single = len(files) == 1 and files[0].endswith(CHECKPOINTS)
    folder = section["subfolder"] if section["subfolder"] != name else ""
    inner = files[0] if single else folder
    commit = f"@{section['commit']}" if role.startswith("component:") else ""
    return "/".join(filter(None, [section["repository"], inner])) + commit


def _needed(role: str, section: Mapping[str, Any], source: Mapping[str, Any]) -> tuple[str, str]:
    """The option that says where a local source is, and what to give there: the name it had."""
    what = source["label"] or next(iter(section["files"]), "SOURCE")
    if role.startswith("component:"):
        return "--component", f"{role.removeprefix('component:')}={what}"
    return {"base": "--model", "config": "--config"}.get(role, "--lora"), what


def differences(recorded: Any, found: Any, path: str = "") -> Iterator[str]:
    """What differs between two JSON values, a line a leaf, by its path."""
    if isinstance(recorded, Mapping) and isinstance(found, Mapping):
        for name in sorted({*recorded, *found}):
            yield from differences(recorded.get(name), found.get(name), f"{path}.{name}" if path else str(name))
    elif isinstance(recorded, list) and isinstance(found, list) and len(recorded) == len(found):
        for place, (one, other) in enumerate(zip(recorded, found, strict=True)):
            yield from differences(one, other, f"{path}.{place}")
    elif recorded != found:
        both = [_shown(value) for value in (recorded, found)]
        hashed = all(str(value).startswith(("sha256:", "git:")) for value in (recorded, found))
        yield f"{path} is another file" if hashed else f"{path}: {both[0]} then, {both[1]} now"


def _shown(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


# The call


def call_of(
    document: Mapping[str, Any], manifest: Manifest, find: Callable[[str, Mapping[str, Any], int], str]
) -> Arguments:
    """The call arguments of a document, media as paths that `find` gives for (argument, recorded file, its place).

    Raises UsageError for what the pipeline does not take.
    """
    flags = manifest.flags_by_name
    media = {name for name, flag in flags.items() if flag.kind in MEDIA_KINDS}
    plain = {name: value for name, value in document["arguments"].items() if value is not None}
    if plain.keys() & media or document["media"].keys() - media:
        raise damaged()
    typed_values(plain, from_json, "its settings", flags, {*manifest.arguments, *flags})
    return checked(flags, {**plain, **{name: _found(name, value, find) for name, value in document["media"].items()}})


def _found(name: str, value: Any, find: Callable[[str, Mapping[str, Any], int], str]) -> Any:
    listed = value if isinstance(value, list) else [value]
    if not all(isinstance(one, dict) and isinstance(one.get("file"), str) and "digest" in one for one in listed):
        raise damaged()
    paths = [find(name, one, place) for place, one in enumerate(listed)]
    return paths if isinstance(value, list) else paths[0]


def find_media(
    name: str, recorded: Mapping[str, Any], given: str | None, folders: Iterable[Path], *, force: bool = False
) -> str:
    """Where an input file is: as `given`, else by its name in one of the folders, with the digest it had.

    `force`: take one with another digest, too. Raises NotFoundError where there is none, UsageError for another file.
    """
    label = Path(recorded["file"]).name  # no more than a name: the document may come from anywhere
    places = [Path(given)] if given else [folder / label for folder in folders]
    there = [place for place in places if label and place.exists()]
    same = [place for place in there if media_digest(place) == recorded["digest"]]
    if same or (there and force):
        return str((same or there)[0])
    if there:
        raise UsageError(
            f"{there[0]} is not the {label} that it was made from: the content differs",
            f"give that with --set {name}=PATH, or pass --force to take this one",
        )
    raise NotFoundError(
        f"the input {given or label} is not here", f"put {label} beside the file, or say where it is: --set {name}=PATH"
    )


# The comparison


def verdict(identical: bool, measured: Mapping[str, float | None]) -> tuple[bool, str]:
    """Whether what was made again is the same, and in which words.

    `measured`: PSNR in dB of "picture", "frames" or "sound", infinite where all is equal, None where sizes differ.
    """
    if identical:
        return True, "identical, byte for byte"
    if any(value is None for value in measured.values()):
        return False, "differs in size or length"
    known = {name: value for name, value in measured.items() if value is not None}
    if all(value == float("inf") for value in known.values()):
        return True, f"the same {' and '.join(known)} once decoded; other bytes of the file differ"
    told = ", ".join(f"{name} PSNR {value:.1f} dB" for name, value in known.items())
    same = all(value >= EQUAL[name] for name, value in known.items())
    audible = "audibly" if set(known) == {"sound"} else "visually"
    return (True, f"{audible} equal, {told}") if same else (False, f"differs, {told}")


def changes(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between the documents of a file and of the one made again that can explain a difference."""
    told = ("pipeline", "config", "sources", "arguments", "media", "seed", "versions", "device", "stepped_down")
    found = [line for name in told for line in differences(recorded.get(name), now.get(name), name)]
    size = recorded.get("batch_size") or 1
    return found + ([f"it was made up to {size} in a call, and now alone"] if size > 1 else [])
