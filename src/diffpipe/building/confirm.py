"""Whether the files of a pipeline that came by a bundle are those of its hub: by their digests, without a download."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..cache.entry import SHORT, Entry
from ..cache.states import NOT_MADE_HERE, UNCONFIRMED, unconfirmed
from ..cache.store import Store
from ..core.errors import CacheError
from ..core.source import FileInfo, Source, file_of
from ..sources import hub
from ..storage.digests import content_digest
from .fetch import Say


def confirm(entry: Entry, store: Store, command: tuple[str, ...], offline: bool, say: Say) -> Entry:
    """The entry, without its mark once the hub has confirmed its files; `command` builds it again.

    Raises CacheError where the hub has another file under that commit, and what `hub.describe` raises.
    """
    doubts = set(unconfirmed(entry, entry.manifest()))
    if NOT_MADE_HERE in doubts:
        say(f"{entry.key[:SHORT]} is {NOT_MADE_HERE}: build it with --force to make them from the model")
    if UNCONFIRMED not in doubts:
        return entry
    if offline:
        say(f"{entry.key[:SHORT]} is {UNCONFIRMED}: build it without --offline to compare them")
        return entry
    locations = entry.locations()
    for source in entry.manifest().sources:
        if source.kind == "hub":
            _compare(source, locations[source.role], entry.key)
    say("its hub confirms the files that came by a bundle")
    record = entry.sources()
    if record:
        entry.set_sources(replace(record, command=command))
    entry.set_summary(replace(entry.summary, imported=NOT_MADE_HERE in doubts))
    return store.get(entry.key) or entry


def _compare(source: Source, location: str, key: str) -> None:
    """Raises CacheError unless every file of a source is what the hub lists at its commit."""
    there = hub.describe(source.label, source.commit)
    for path, info in source.files.items():
        listed = there.files.get(path)
        same = there.commit == source.commit and listed and _is_same(file_of(source, location, path), info, listed)
        if not same:
            problem = f"{path} is not the file that {source.label} has at {(source.commit or '')[:7]}"
            hint = f"diffpipe pipelines remove {key[:SHORT]}, or build it with --force, which fetches it from the hub"
            raise CacheError(f"{problem}: {key[:SHORT]} came by a bundle with other bytes", hint)


def _is_same(place: Path, info: FileInfo, listed: FileInfo) -> bool:
    """Whether a file, which was what `info` says when it came, is the listed one: its digest may be of another kind."""
    alike = info.digest.partition(":")[0] == listed.digest.partition(":")[0]
    digest = info.digest if alike else content_digest(place, listed.digest)
    return (info.size, digest) == (listed.size, listed.digest)
