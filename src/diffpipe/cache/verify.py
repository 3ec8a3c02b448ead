"""Whether a cache entry and the files it stands on are what they were at the build."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from ..core.errors import CacheError
from ..core.manifest import Located, Manifest
from ..core.source import FileInfo, Role, Source, file_of, place_of
from ..storage.digests import content_digest, identity
from . import weights
from .added_files import added
from .entry import SHORT, Entry
from .records import Identity, SourcesRecord
from .store import Store


def locate(entry: Entry, manifest: Manifest) -> Located:
    """Where every source of an entry lies, each file checked to be unchanged since the build.

    Files whose size and times are as recorded are not read again. Raises CacheError with the command to rebuild.
    """
    recorded = entry.sources()
    if recorded is None:
        raise CacheError(f"the cache entry {entry.key[:SHORT]} lost its record of sources", entry.mend())
    moved = {source.role: found for source in manifest.sources if (found := _seen_anew(entry, source, recorded))}
    if moved:
        with suppress(OSError):  # a cache that may only be read serves as well
            entry.set_sources(recorded.with_seen(moved))
    if came := next(_added(manifest, recorded.locations), None):
        raise CacheError(f"{came} since {entry.key[:SHORT]} was built", f"remove it, or {entry.mend()}")
    places = {role: place_of(location) for role, location in recorded.locations.items()}
    return Located(places, _stored(entry, manifest))


def _seen_anew(entry: Entry, source: Source, recorded: SourcesRecord) -> dict[str, Identity]:
    """The files of a source that are not as they were recorded, but of the same content: their identities now."""
    found: dict[str, Identity] = {}
    for path, info in source.files.items():
        place = file_of(source, recorded.locations.get(source.role, ""), path)
        now = _identity(place)
        if now is None or now != recorded.seen(source.role, path):
            if problem := check_file(source, path, place, info):
                raise CacheError(f"{problem} since {entry.key[:SHORT]} was built", _mend(entry, source, now is None))
            found[path] = now or ()
    return found


def _added(manifest: Manifest, locations: Mapping[Role, str]) -> Iterator[str]:
    """What is wrong with folders that hold more than was pinned of them."""
    trust = manifest.config.trust
    for source in manifest.sources:
        found = added(source, locations.get(source.role, ""), pickle=trust.pickle, code=trust.remote_code)
        if found:
            yield f"{found} was added to {source.label}"


def is_gone(place: Path) -> bool:
    """Whether nothing is at a place: of what may not be looked at, nobody knows."""
    try:
        place.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False


def _identity(place: Path) -> Identity | None:
    """The identity of a file; None where it is gone or may not be looked at."""
    try:
        return tuple(identity(place))
    except (OSError, ValueError):
        return None


def _mend(entry: Entry, source: Source, gone: bool) -> str:
    mend = entry.mend()
    if gone and source.kind in ("folder", "file") and mend.startswith("build"):
        return f"put it back, or give its new place to this: {entry.rebuild()}"
    return mend


def _stored(entry: Entry, manifest: Manifest) -> Path | None:
    """Where the quantized weights lie, each file what it was when it was written. Raises CacheError."""
    if manifest.stored is None:
        return None
    store = Store(entry.folder.parent.parent)
    try:
        weights.files(store, manifest.stored.key)
    except CacheError as error:
        raise CacheError(error.message, entry.mend()) from error
    return weights.folder(store, manifest.stored.key)


def check_file(source: Source, path: str, place: Path, info: FileInfo) -> str | None:
    """What is wrong with a source's file, None if it is what it was."""
    label = f"{path} of {source.label}" if source.kind != "file" else path
    try:
        found = place.stat()
    except OSError:
        return f"{label} was moved or removed"
    if not stat.S_ISREG(found.st_mode):
        return f"{label} is no file any more"
    size = found.st_size
    if size != info.size:
        return f"{label} changed its size from {info.size} to {size} bytes"
    try:
        same = content_digest(place, info.digest) == info.digest
    except OSError as error:
        return f"{label} cannot be read ({error.strerror})"
    return None if same else f"{label} was changed"


def problems(entry: Entry) -> list[str]:
    """Everything wrong with an entry, each file read whole."""
    found = entry.faults()
    if found:
        return found
    manifest, locations = entry.manifest(), entry.locations()
    for source in manifest.sources:
        for path, info in source.files.items():
            problem = check_file(source, path, file_of(source, locations.get(source.role, ""), path), info)
            if problem:
                found.append(problem)
    found += _added(manifest, locations)
    if manifest.stored:
        found += weights.problems(Store(entry.folder.parent.parent), manifest.stored.key)
    return found
