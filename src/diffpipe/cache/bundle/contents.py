"""What a bundle holds: the list at its head, written and read. Nothing of it is believed before it was checked here.

A bundle is a plain tar file (safetensors do not compress) of one pipeline, with these members in this order:

bundle.json               key, name, manifest, summary, what is told of the quantized weights, and every file below
files/HEX                 a source's file, each content once, by its digest
weights/NAME.safetensors  the quantized weights of a component

One file, since that is whole or not there on object stores too, and easy to copy, delete and share. The list comes
first and tells every size, so each file's place is known: those that the reader has are passed over, not read.
"""

from __future__ import annotations

import re
import tarfile
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from ...core.canonical import JsonObject, JsonValue, canonical_json, digest
from ...core.configuration import Trust
from ...core.errors import CacheError
from ...core.manifest import Manifest, WeightsSummary
from ...core.names import RESERVED, stays_inside
from ...core.parsing import Fields, Misfit, OtherVersion, parse_json
from ...core.source import BASE, CHECKPOINTS, EMBEDDED, PICKLES, FileInfo, Role, Source, layout_of
from ...sources.key import sources_fit
from ...sources.model_files import SETTINGS
from ...sources.trust import loadable_libraries
from ..entry import KEY
from ..records import Summary
from ..sealed import sealed
from ..store import NAME, PREFIX
from ..weights import weights_key

FORMAT = 1  # raise it when readers of older ones would misread newer ones
LIST = "bundle.json"
LARGEST_LIST = 8_000_000  # bytes; a sharded model of 1,000 files has 0.3 MB. As JSON it takes 25 times as many
BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
COMPONENT = re.compile(r"[A-Za-z_]\w{0,63}")
EXPORT_AGAIN = "copy it again, or export the pipeline again"


@dataclass(frozen=True)
class Contents:
    """A pipeline as it travels. `name`: what it was known by ("" for none). `embedded`: role -> place of the sources
    that come with diffpipe. `weights`: the summary of the quantized weights, of no components without any.
    """

    key: str
    name: str
    manifest: Manifest
    summary: Summary
    embedded: Mapping[Role, str]
    weights: WeightsSummary

    @property
    def sources(self) -> tuple[Source, ...]:
        return self.manifest.sources

    def files(self) -> dict[str, FileInfo]:
        """Member -> size and digest of the sources' files, each content once, in order."""
        carried = (source for source in self.sources if source.kind != "embedded")
        infos = (source.files[path] for source in carried for path in sorted(source.files))
        return {f"files/{info.digest.partition(':')[2]}": info for info in infos}

    def stored(self) -> dict[str, FileInfo]:
        """Member -> size and digest of the quantized weights."""
        parts = sorted(self.weights.components.items())
        return {f"weights/{name}.safetensors": part.info for name, part in parts}

    def total(self) -> int:
        """Bytes of all files."""
        return sum(info.size for info in (*self.files().values(), *self.stored().values()))

    def pickled(self) -> list[str]:
        """The files that can run code when they are loaded."""
        return sorted(path for source in self.sources for path in source.files if path.endswith(PICKLES))


def write(contents: Contents) -> bytes:
    """The head of a bundle: its first member, padded."""
    data = listing(contents)
    return header(LIST, len(data)) + data + padding(len(data))


def listing(contents: Contents) -> bytes:
    """The list, as `read` takes it."""
    value: JsonObject = {
        "format": FORMAT,
        "key": contents.key,
        "name": contents.name,
        "manifest": contents.manifest.to_json(),
        "summary": {**contents.summary.to_json(), "key": contents.key},
        "embedded": {str(role): place for role, place in contents.embedded.items()},
        "weights": contents.weights.to_json() if contents.weights.components else {},
        "files": _rows(contents),
    }
    return canonical_json(sealed(value)).encode(errors="surrogatepass")


def size_of(contents: Contents) -> int:
    """Bytes of the whole bundle."""
    members = _members(contents).values()
    return len(write(contents)) + sum(BLOCK + info.size + len(padding(info.size)) for info in members) + len(END)


def header(name: str, size: int) -> bytes:
    """A member's header: a plain file, without owner and time. The only one that a bundle may have at that place."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


def padding(size: int) -> bytes:
    return bytes(-size % BLOCK)


def length(first: bytes) -> int | None:
    """Bytes of the list, from a bundle's first block; None if that is not how a bundle begins."""
    try:
        found = tarfile.TarInfo.frombuf(first, "utf-8", "strict").size
    except (tarfile.TarError, ValueError):  # a name that is no UTF-8
        return None
    return found if 0 < found <= LARGEST_LIST and first == header(LIST, found) else None


def read(data: bytes, told: str) -> Contents:
    """The contents of a list. `told`: what the bundle is called in messages.

    Raises CacheError if it was edited, is newer than this reader, or says what no export writes.
    """
    try:
        value = parse_json(data, LARGEST_LIST)
        head = Fields(value)
        seal = head.value.pop("digest", None)
        if digest(head.value) != seal:
            raise Misfit("its list was edited")
        if head.integer("format") != FORMAT:
            raise OtherVersion(f"it is of format {head.integer('format')}, this diffpipe reads {FORMAT}")
        found = _parsed(head)
        if problem := next(_problems(found, head), None):
            raise Misfit(problem)
    except OtherVersion as error:
        hint = "install the diffpipe that wrote it"
        raise CacheError(f"{told} is a bundle of another version: {error}", hint) from error
    except Misfit as error:
        raise CacheError(f"{told} is no sound bundle: {error}", EXPORT_AGAIN) from error
    return found


def _parsed(data: Fields) -> Contents:
    embedded = data.object("embedded")
    return Contents(
        key=data.text("key", most=64),
        name=data.text("name", most=100),
        manifest=Manifest.from_json(data.value.get("manifest")),
        summary=replace(Summary.from_json(data.object("summary")), imported=False),
        embedded={_role(role): embedded.text(role) for role in embedded.names()},
        weights=WeightsSummary.from_json(data.object("weights")).portable(),
    )


def _role(text: str) -> Role:
    try:
        return Role.parse(text)
    except ValueError as error:
        raise Misfit("its embedded sources are not named") from error


def _members(contents: Contents) -> dict[str, FileInfo]:
    return contents.files() | contents.stored()


def _rows(contents: Contents) -> list[JsonValue]:
    return [{"name": name, "size": info.size, "digest": info.digest} for name, info in _members(contents).items()]


def _problems(found: Contents, listed: Fields) -> Iterator[str]:
    """What is wrong with the contents of a list, each a reason to refuse it."""
    manifest, config = found.manifest, found.manifest.config
    same = found.key == manifest.key == config.key == listed.object("summary").text("key")
    if not (KEY.fullmatch(found.key) and same):
        yield "its configuration is not the one that its key stands for"
    if found.name and (not NAME.fullmatch(found.name) or PREFIX.fullmatch(found.name)):
        yield "its name is none"
    if not any(source.role == BASE for source in found.sources):
        yield "its files are not those that its key stands for"
        return
    for source in found.sources:
        yield from _source_problems(source, config.trust)
    if found.summary != Summary.of(manifest, found.summary.built):
        yield "its summary is not that of its pipeline"
    if "diffpipe" not in manifest.versions:
        yield "it does not say what built it"
    yield from _component_problems(manifest)
    if not sources_fit(config, found.sources, manifest.stored.components if manifest.stored else ()):
        yield "its files are not those that its key stands for"
    yield from _embedded_problems(found)
    yield from _weights_problems(found)
    sizes = {(info.digest, info.size) for source in found.sources for info in source.files.values()}
    if len({digest for digest, _ in sizes}) < len(sizes):
        yield "a file has two sizes"
    if listed.value.get("files") != _rows(found):
        yield "its list of files is not that of its pipeline"
    if any(CONTROL.search(text) for text in _texts([manifest.to_json(), found.summary.to_json()])):
        yield "it has control characters, which no terminal should print"


def _embedded_problems(found: Contents) -> Iterator[str]:
    if set(found.embedded) != {source.role for source in found.sources if source.kind == "embedded"}:
        yield "its embedded sources are not named"
    for place in found.embedded.values():
        if not place.startswith(EMBEDDED) or not is_safe(place.removeprefix(EMBEDDED)):
            yield "an embedded source lies elsewhere"


def _weights_problems(found: Contents) -> Iterator[str]:
    """What is wrong with what a bundle says of quantized weights."""
    named, carried = found.manifest.stored, found.weights.components
    if set(carried) != set(named.components if named else ()):
        yield "its quantized weights are not named"
    if named and not named.key == weights_key(found.manifest.config) == found.summary.weights:
        yield "its quantized weights are not those that its key stands for"
    if not all(COMPONENT.fullmatch(name) for name in carried):
        yield "a component's name is none"


def _component_problems(manifest: Manifest) -> Iterator[str]:
    """What is wrong with the classes that a pipeline's components are said to be loaded as."""
    classes, listed = manifest.classes, layout_of(manifest.sources)
    replaced = {source.role.name: source.components for source in manifest.sources if source.role.kind == "component"}
    stored = set(manifest.stored.components) if manifest.stored else set()
    if not set(listed) <= set(classes) <= set(listed) | stored:
        yield "its components are not those of its sources"
        return
    for name, pair in classes.items():
        library, class_name = pair
        known = {listed.get(name, pair), replaced.get(name, {}).get(name, pair)}
        if pair not in known and not (name == "scheduler" and class_name == manifest.config.scheduler.name):
            yield f"the class of {name} is not that of its source"
        if library not in loadable_libraries():
            yield f"it names the library {library!r}, which diffusers does not load from"


def _texts(value: JsonValue) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for pair in value.items() for part in pair for text in _texts(part))
    elif isinstance(value, list):
        yield from (text for part in value for text in _texts(part))


def _source_problems(source: Source, trust: Trust) -> Iterator[str]:
    if not source.files or not source.label.isprintable():
        yield "a source is empty or has no name"
    allowed = {*SETTINGS, *CHECKPOINTS} | ({".py"} if trust.remote_code else set())
    allowed -= set() if trust.pickle else set(PICKLES)
    if len(_as_any_disk_has_them(source.files)) < len(_with_folders(source.files)):
        yield "names of its files differ in case or Unicode form alone"
    for path in source.files:
        if not is_safe(path) or any(str(part) in source.files for part in PurePosixPath(path).parents):
            yield "a file would lie outside its folder"
        if PurePosixPath(path).suffix not in allowed:
            yield f"it holds a file that no pipeline loads ({PurePosixPath(path).name!r})"


def _with_folders(paths: Iterable[str]) -> set[str]:
    """Files with the folders that they lie in."""
    return {str(part) for path in paths for part in (PurePosixPath(path), *PurePosixPath(path).parents)}


def _as_any_disk_has_them(paths: Iterable[str]) -> set[str]:
    """The same as disks have them that know no case, or one form of composed letters."""
    return {unicodedata.normalize("NFC", part).casefold() for part in _with_folders(paths)}


def is_safe(path: str) -> bool:
    """Whether a path from outside stays inside the folder it is put in, on any system."""
    plain = path.isprintable() and not any(letter in path for letter in '\\:*?"<>|')
    return plain and stays_inside(path) and not any(map(_is_reserved, path.split("/")))


def _is_reserved(part: str) -> bool:
    return part[-1] in ". " or bool(RESERVED.fullmatch(part))
