"""A pipeline as one file, to take to another machine: exported with all that its generation needs, imported by digest.

A bundle's form, and what is checked before any of it is believed: see contents.py. Places are paths or fsspec URLs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

from ...core.errors import CacheError, UsageError
from ...core.manifest import Manifest, WeightsSummary
from ...core.parsing import parse_json
from ...core.source import FileInfo, Role, file_of
from ...sources.model_files import components_of
from ...sources.trust import reader, refuse_code
from ...storage import stores, streams, urls
from ...storage.disk import CHUNK, check_free, readable, user_path
from ...storage.opening import LARGEST_INDEX, open_regular
from ...storage.tensor_headers import read_header
from .. import blobs, weights
from ..entry import SHORT, Entry
from ..records import record_sources
from ..store import Store, check_name, listdir
from ..verify import check_file, locate
from . import contents
from .contents import END, Contents
from .reader import Advance, Incoming

Progress = Callable[[int, int], None]  # bytes done, bytes in all
Say = Callable[[str], None]


def _silent(*_: Any) -> None:
    pass


@dataclass(frozen=True)
class Options:
    """How to go about an import. `name`: "" for the bundle's own where that is free, else none.

    `expect_key`: the only key to take. `force`: import what is here already, and take a name from another pipeline.
    The other two are the user's consent to what can run code.
    """

    name: str = ""
    expect_key: str = ""
    force: bool = False
    allow_pickle: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Moved:
    """What an export or import did: the entry, the place or name it has now, bytes of its files, whether all of it was
    there already."""

    entry: Entry
    name: str
    bytes: int
    there: bool


def export(
    store: Store,
    entry: Entry,
    target: str,
    progress: Progress = _silent,
    say: Say = _silent,
    *,
    name: str = "",
    force: bool = False,
) -> Moved:
    """Write a pipeline's bundle; in a folder (an existing one, or a URL that ends in /) it is named KEY.tar.

    What is carried is checked against its digests on the way. A bundle of the same pipeline that is there already is
    left alone. Raises UsageError for another file there unless `force`, CacheError for an entry that is damaged, and
    what streams.writing raises; the target is whole or as it was before.
    """
    target = streams.inside(target, f"{entry.key}.tar")
    bundled, places = _gather(store, entry, name)
    head, whole = contents.write(bundled), contents.size_of(bundled)
    if not force and _is_there(target, entry.key):
        return Moved(entry, urls.shown(target), bundled.total(), True)
    if path := streams.path_of(target):
        check_free(path.parent, whole, urls.shown(target))
    say(f"exporting {_told(bundled)}")
    advance = _counter(progress, bundled.total())
    with streams.writing(target) as out:
        _write(out, head, target)
        for member, info in {**bundled.files(), **bundled.stored()}.items():
            _write(out, contents.header(member, info.size), target)
            _export_file(places[member], info, partial(_write, out, target=target), advance, entry)
            _write(out, contents.padding(info.size), target)
        _write(out, END, target)
    return Moved(entry, urls.shown(target), bundled.total(), False)


def load(
    store: Store,
    source: str,
    name: str | None = None,
    expect_key: str | None = None,
    progress: Progress = _silent,
    *,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Entry:
    """The entry of a bundle, imported unless it is here: then, if its key is expected, nothing is read at all.

    In a folder (see `export`) the bundle is EXPECT_KEY.tar. Raises what `bring` raises.
    """
    if expect_key and not name and (entry := _ready(store, expect_key)):
        return entry
    options = Options(name or "", expect_key or "", False, allow_pickle, trust_remote_code)
    return bring(store, source, options, progress).entry


def bring(store: Store, source: str, options: Options, progress: Progress = _silent, say: Say = _silent) -> Moved:
    """Import a bundle: every file is checked by its digest before the entry appears, which is whole or not there.

    What the cache holds is not read from the bundle, and what an import that stopped had brought is kept for the next.
    Raises CacheError for a bundle that is damaged, edited, or of another key than the expected one; UsageError where
    consent to pickles or code is missing, or a name is taken; and what streams.reading raises.
    """
    if options.name:
        check_name(options.name)
    if options.expect_key:
        source = streams.inside(source, f"{options.expect_key}.tar")
    bundled = _listed(source)
    _check_wanted(store, bundled, urls.shown(source), options)
    store.folder("pipelines")
    with store.lock(blobs.LOCK, lambda: say("another process is importing a pipeline; waiting for it")):
        entry = None if options.force else _ready(store, bundled.key)
        there = entry is not None
        if entry is not None:
            _check_same(entry, bundled, urls.shown(source))
        else:
            say(f"importing {_told(bundled)}")
            entry = _receive(store, bundled, source, options, _counter(progress, bundled.total()), say)
    name = _set_name(store, bundled, options)
    return Moved(entry, name, bundled.total(), there)


def _gather(store: Store, entry: Entry, name: str) -> tuple[Contents, dict[str, Path]]:
    """What a bundle of an entry holds, and where each member lies; all of it as it was at the build."""
    manifest = entry.manifest()
    located = locate(entry, manifest)
    recorded, sources = entry.locations(), manifest.sources
    name = name or next((known for known, key in store.names().items() if key == entry.key), "")
    embedded = {source.role: recorded[source.role] for source in sources if source.kind == "embedded"}
    stored = _stored(store, manifest)
    bundled = Contents(entry.key, name, manifest, replace(entry.summary, imported=False), embedded, stored)
    contents.read(contents.listing(bundled), f"the entry {entry.key[:SHORT]}")  # what no import takes must not leave
    places = {
        f"files/{info.digest.partition(':')[2]}": file_of(source, recorded[source.role], path)
        for source in sources
        for path, info in source.files.items()
    }
    if located.weights:
        places |= {member: located.weights / Path(member).name for member in bundled.stored()}
    return bundled, places


def _stored(store: Store, manifest: Manifest) -> WeightsSummary:
    """The summary of a pipeline's quantized weights, but for what is true on this disk alone."""
    found = weights.find(store, manifest.stored.key) if manifest.stored else None
    return found.portable() if found else WeightsSummary({})


def _is_there(target: str, key: str) -> bool:
    """Whether a place has a bundle of that key, by its list and size. Raises UsageError for any other file there."""
    size = streams.size(target)
    if size is None:
        return False
    with suppress(CacheError):
        found = _listed(target)
        if found.key == key and contents.size_of(found) == size:
            return True
    other = f"{urls.shown(target)} is there already, and is no whole bundle of this pipeline"
    raise UsageError(other, "name another file, or --force")


def _export_file(path: Path, info: FileInfo, write: Callable[[bytes], None], advance: Advance, entry: Entry) -> None:
    """Write a file's content. Raises CacheError if it is not what it was at the build any more."""
    hasher, left = blobs.hasher(info.digest, info.size), info.size
    with stores.explained(path.name), open_regular(path) as stream:
        while left and (chunk := stream.read(min(left, CHUNK))):
            hasher.update(chunk)
            write(chunk)
            left -= len(chunk)
            advance(len(chunk))
    if left or hasher.hexdigest() != info.digest.partition(":")[2]:
        raise CacheError(f"{path.name} was changed since {entry.key[:SHORT]} was built", entry.mend())


def _write(out: IO[bytes], data: bytes, target: str) -> None:
    with stores.explained(target, "write"):
        out.write(data)


def _listed(source: str) -> Contents:
    """The list of a bundle."""
    with streams.reading(source, streams.HEAD) as stream:
        return Incoming(stream, source).contents()


def _check_wanted(store: Store, bundled: Contents, told: str, options: Options) -> None:
    """Raises CacheError for another pipeline than the expected one, UsageError without the user's consent."""
    if options.expect_key and bundled.key != options.expect_key:
        other = f"{told} is a bundle of {bundled.key[:SHORT]}, not of {options.expect_key[:SHORT]}"
        raise CacheError(other, f"export {options.expect_key[:SHORT]} where it is built")
    if bundled.pickled() and not options.allow_pickle:
        raise UsageError(
            f"{told} holds {bundled.pickled()[0]}, a pickled checkpoint, which can run code when loaded",
            "pass --allow-pickle if you trust its source",
        )
    if bundled.manifest.config.trust.remote_code and not options.trust_remote_code:
        raise UsageError(
            f"{told} holds a pipeline that may run code of its own", "pass --trust-remote-code if you trust its source"
        )
    if options.name and not options.force and store.names().get(options.name) not in (None, bundled.key):
        raise UsageError(f"the name {options.name} is taken", "choose another, or pass --force")


def _ready(store: Store, key: str) -> Entry | None:
    """The entry of a key, if it and the files it stands on are what they were."""
    entry = store.sound(key)
    try:
        if entry is not None:
            locate(entry, entry.manifest())
    except CacheError:
        return None
    return entry


def _check_same(entry: Entry, bundled: Contents, told: str) -> None:
    """Raises CacheError where a bundle has another file than the entry of its key: one of them is not the hub's."""
    here = {source.role: source.files for source in entry.manifest().sources}
    for source in bundled.sources:
        for path, info in source.files.items():
            known = here.get(source.role, {}).get(path, info)
            if known != info and known.digest[:4] == info.digest[:4]:  # of the same kind
                problem = f"{path} in {told} is not the one of {entry.key[:SHORT]}, which is here under the same key"
                hint = "diffpipe build the model online: the hub tells which is its own; --force takes the bundle's"
                raise CacheError(problem, hint)


def _receive(store: Store, bundled: Contents, source: str, options: Options, advance: Advance, say: Say) -> Entry:
    """Bring what is missing, check it, publish the entry."""
    held = {member for member, info in bundled.files().items() if blobs.holds(store, info, whole=options.force)}
    key = bundled.summary.weights
    if key and options.force and weights.problems(store, key):
        weights.drop(store, key)
    stored = {} if key and weights.sound(store, key) else bundled.stored()
    _check_embedded(bundled)
    missing = [info for member, info in {**bundled.files(), **stored}.items() if member not in held]
    check_free(store.root, sum(info.size for info in missing), urls.shown(source))
    _check_whole(source, bundled)
    with streams.reading(source) as stream:
        incoming = Incoming(stream, source)
        if incoming.contents() != bundled:
            raise CacheError(f"{urls.shown(source)} was replaced meanwhile", "import it again")
        for member, info in bundled.files().items():
            if member in held:
                incoming.skip(info, advance)
            else:
                blobs.put(store, info, partial(incoming.copy, member, info, advance=advance))
        with _laid_out(store, bundled) as locations:
            _check_content(bundled, locations)
            with _received_weights(store, bundled, incoming, advance, say):
                return _publish(store, bundled, locations, _command(bundled, source, options))


def _check_whole(source: str, bundled: Contents) -> None:
    """Raises CacheError for a file that is not as long as its list says, where that can be told."""
    size, whole = streams.size(source), contents.size_of(bundled)
    if size and size != whole:
        what = "it is cut short" if size < whole else "it goes on after its end"
        raise CacheError(f"{urls.shown(source)} is no sound bundle: {what}", contents.EXPORT_AGAIN)


def _check_embedded(bundled: Contents) -> None:
    """Raises CacheError where diffpipe's own model is another than the one that a pipeline was built with."""
    for source in bundled.sources:
        for path, info in source.files.items() if source.kind == "embedded" else ():
            if check_file(source, path, file_of(source, bundled.embedded[source.role], path), info):
                version = bundled.manifest.versions["diffpipe"]
                raise CacheError("it stands on the demo model of another diffpipe", f"install diffpipe {version}")


@contextmanager
def _laid_out(store: Store, bundled: Contents) -> Iterator[dict[Role, str]]:
    """Where each source lies, under its own names. What was laid out for it goes again if the block raises."""
    before = set(listdir(store.root / "sources"))
    try:
        carried = [one for one in bundled.sources if one.kind != "embedded"]
        yield {**bundled.embedded, **{one.role: str(blobs.lay_out(store, one)) for one in carried}}
    except BaseException:
        for name in set(listdir(store.root / "sources")) - before:
            store.bury(store.root / "sources" / name)
        raise


def _check_content(bundled: Contents, locations: Mapping[Role, str]) -> None:
    """Raises what pinning these files would: UsageError for a model that would run code of its own unasked, CacheError
    for weights that are none, or settings that are not those that the bundle's list tells of."""
    for source in bundled.sources:
        location = locations[source.role]
        refuse_code(source, location, bundled.manifest.classes, bundled.manifest.config.trust.remote_code)
        for path in source.files:
            if path.endswith(".safetensors"):
                read_header(file_of(source, location, path))
        if "model_index.json" in source.files and source.role.kind in ("base", "config"):
            index = parse_json(reader(source, location)("model_index.json"), LARGEST_INDEX, finite=False)
            parts = components_of(index) if isinstance(index, dict) else {}
            absent = bundled.manifest.config.without  # which the source does not name
            if {name: pair for name, pair in parts.items() if name not in absent} != source.components:
                problem = f"the model_index.json of {source.label} is not the one that its list tells of"
                raise CacheError(problem, contents.EXPORT_AGAIN)


@contextmanager
def _received_weights(
    store: Store, bundled: Contents, incoming: Incoming, advance: Advance, say: Say
) -> Iterator[None]:
    """Bring the quantized weights, unless those of the same key are here (they may differ in their last bits), and read
    the bundle to its end before they get their place. Nobody removes them within the block.
    """
    waiting = dict(bundled.stored())

    def write(folder: Path) -> WeightsSummary:
        while waiting:
            member = next(iter(waiting))
            with (folder / Path(member).name).open("xb") as out:
                incoming.copy(member, waiting.pop(member), out, advance)
            read_header(folder / Path(member).name)
        incoming.end()
        return replace(bundled.weights, imported=True)

    if not waiting:
        incoming.end()
        yield
        return
    with weights.made(store, bundled.summary.weights, write, _silent) as made:
        if waiting:
            for info in waiting.values():
                incoming.skip(info, advance)
            incoming.end()
        brought = bundled.weights.components
        if any(part.digest != brought[name].digest for name, part in made.components.items()):
            say("quantized weights of the same key are here; those of the bundle differ in their last bits")
        yield


def _publish(store: Store, bundled: Contents, locations: Mapping[Role, str], command: list[str]) -> Entry:
    """Publish the entry of files that are here, marked as imported where its key does not prove them."""
    with store.lock(bundled.key, _silent):
        record = record_sources(bundled.sources, locations, tuple(command))
        made = weights.find(store, bundled.summary.weights) if bundled.summary.weights else None
        marked = any(source.kind == "hub" for source in bundled.sources) or bool(made and made.imported)
        return store.publish(replace(bundled.summary, imported=marked), bundled.manifest, record)


def _command(bundled: Contents, source: str, options: Options) -> list[str]:
    """The command that imports it again, from any folder."""
    place = urls.shown(source) if urls.is_url(source) else str(user_path(source).absolute())
    words = ["diffpipe", "pipelines", "import", place]
    words += ["--name", options.name or bundled.name] if options.name or bundled.name else []
    return words + ["--allow-pickle"] * options.allow_pickle + ["--trust-remote-code"] * options.trust_remote_code


def _set_name(store: Store, bundled: Contents, options: Options) -> str:
    """Name an imported pipeline: as asked, or as it was called where that name is free. Returns one of its names."""
    known = store.names()
    free = bundled.name if known.get(bundled.name) in (None, bundled.key) or options.force else ""
    name = options.name or free
    if name:
        store.set_name(name, bundled.key)
    return name or next((old for old, key in known.items() if key == bundled.key), "")


def _told(bundled: Contents) -> str:
    count = len(bundled.files()) + len(bundled.stored())
    return f"{bundled.name or bundled.key[:SHORT]}: {count} files, {readable(bundled.total())}"


def _counter(progress: Progress, total: int) -> Advance:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    return advance
