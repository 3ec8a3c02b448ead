"""An entry of the cache: its summary, and what is read of it when it is asked for."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..core.canonical import digest
from ..core.errors import CacheError
from ..core.manifest import FORMAT, Manifest
from ..core.names import KEY as KEY
from ..core.parsing import Fields, Misfit, OtherVersion
from ..core.source import Role
from .records import SourcesRecord, Summary
from .sealed import intact, read_json, write_sealed

SHORT = 12  # hex digits of a key that are shown


IMPORTED = "imported:"  # how the place of a source within the cache begins (see blobs.py)


@dataclass(frozen=True)
class Entry:
    """A cached pipeline: its key, folder and summary. The rest is read when it is asked for."""

    key: str
    folder: Path
    summary: Summary

    def manifest(self) -> Manifest:
        """The manifest. Raises CacheError if it was cut short or edited, or another diffpipe wrote it."""
        try:
            return manifest_in(self.folder)
        except Misfit as error:
            raise unreadable(self.key, error, self.mend()) from error

    def sources(self) -> SourcesRecord | None:
        """Where the sources lie on this machine and each file's identity at build time; None if that is damaged."""
        return sources_in(self.folder)

    def locations(self) -> Mapping[Role, str]:
        """Role -> folder or file of each source as it was recorded; {} if that is damaged."""
        record = self.sources()
        return record.locations if record else {}

    def set_sources(self, record: SourcesRecord) -> None:
        write_sealed(self.folder / "sources.json", movable(record, self.folder.parent.parent).to_json())

    def set_summary(self, summary: Summary) -> None:
        write_sealed(self.folder / "summary.json", {**summary.to_json(), "key": self.key})

    def faults(self) -> list[str]:
        """Which of the entry's own files were cut short or edited."""
        found, record = [], self.sources()
        roles = set(record.locations) if record else set()
        try:
            missing = {source.role for source in manifest_in(self.folder).sources} - roles
        except Misfit as error:
            found.append(str(error))
            missing = set()
        if intact(self.folder / "summary.json").get("key") != self.key:
            found.append("its summary is damaged")
        if record is None or missing:
            found.append("its record of sources is damaged")
        return found

    def rebuild(self) -> str:
        """The command line that builds this entry again, as near as what is left of it says."""
        record = self.sources()
        if record and record.command:
            return shlex.join([*record.command, "--force"])
        model = self.summary.model.partition("@")[0]
        return shlex.join(["diffpipe", "build", self.summary.provider, "--type", self.summary.type, "--model", model])

    def mend(self) -> str:
        """What to do about damage: the command that makes this entry, with what it does."""
        return mend_by(self.sources(), self.rebuild())

    def last_used(self) -> float:
        """Seconds since the epoch; 0 when the entry is damaged."""
        try:
            return os.stat(os.path.join(self.folder, "summary.json")).st_mtime
        except OSError:
            return 0.0

    def touch(self) -> None:
        os.utime(self.folder / "summary.json")


def manifest_in(folder: Path) -> Manifest:
    """The manifest in an entry's folder.

    Raises Misfit where it is damaged, OtherVersion where another diffpipe wrote it and this one cannot read it.
    """
    value = read_json(folder / "manifest.json") or {}
    seal = value.pop("digest", None)
    whole = seal == digest(value) and value.get("key") == folder.name
    try:
        if not whole and value.get("format") == FORMAT:
            raise Misfit("it was cut short or edited")
        return Manifest.from_json(value)
    except OtherVersion as error:
        raise OtherVersion(f"it is of another version: {error}") from error
    except Misfit as error:
        raise Misfit("its manifest is damaged" + (f": {error}" if whole else "")) from error


def unreadable(key: str, error: Misfit, hint: str) -> CacheError:
    """What it means that an entry's manifest cannot be read."""
    state = "" if isinstance(error, OtherVersion) else "is damaged: "
    return CacheError(f"the cache entry {key[:SHORT]} {state}{error}".replace(" it is of", " is of"), hint)


def sources_in(folder: Path) -> SourcesRecord | None:
    """The record of sources in an entry's folder; None where it is damaged."""
    value = intact(folder / "sources.json")
    try:
        record = SourcesRecord.from_json(Fields(value)) if value else None
    except Misfit:
        return None
    root = folder.parent.parent / "sources"
    return record and record.moved(lambda at: str(root / at.removeprefix(IMPORTED)) if at.startswith(IMPORTED) else at)


def mend_by(record: SourcesRecord | None, command: str) -> str:
    return f"{'import' if record and record.imported else 'build'} it again: {command}"


def movable(record: SourcesRecord, root: Path) -> SourcesRecord:
    """A record of sources in which those within the cache are named by their place in it: a cache can be moved."""
    within = str(root / "sources") + os.sep
    return record.moved(lambda at: IMPORTED + at.removeprefix(within) if at.startswith(within) else at)
