"""An entry of the cache: its summary, and what is read of it when it is asked for."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import CacheError
from ..core.manifest import Manifest
from ..core.parsing import Fields, Misfit
from ..core.source import Role
from .records import SourcesRecord, Summary
from .sealed import intact, write_sealed

KEY = re.compile(r"[0-9a-f]{64}")


SHORT = 12  # hex digits of a key that are shown


IMPORTED = "imported:"  # how the place of a source within the cache begins (see blobs.py)


@dataclass(frozen=True)
class Entry:
    """A cached pipeline: its key, folder and summary. The rest is read when it is asked for."""

    key: str
    folder: Path
    summary: Summary

    def manifest(self) -> Manifest:
        """The manifest. Raises CacheError if it was cut short or edited, or is of a newer diffpipe."""
        try:
            value = intact(self.folder / "manifest.json")
            if value.get("key") != self.key:
                raise CacheError(f"the cache entry {self.key[:SHORT]} is damaged", self.mend())
            return Manifest.from_json(value)
        except Misfit as error:
            raise CacheError(f"the cache entry {self.key[:SHORT]} cannot be read: {error}", self.mend()) from error

    def sources(self) -> SourcesRecord | None:
        """Where the sources lie on this machine and each file's identity at build time; None if that is damaged."""
        return sources_in(self.folder)

    def locations(self) -> Mapping[Role, str]:
        """Role -> folder or file of each source as it was recorded; {} if that is damaged."""
        record = self.sources()
        return record.locations if record else {}

    def set_sources(self, record: SourcesRecord) -> None:
        write_sealed(self.folder / "sources.json", movable(record, self.folder.parent.parent).to_json())

    def faults(self) -> list[str]:
        """Which of the entry's own files were cut short or edited."""
        sound = {
            "manifest": intact(self.folder / "manifest.json").get("key") == self.key,
            "summary": intact(self.folder / "summary.json").get("key") == self.key,
            "record of sources": self.sources() is not None,
        }
        return [f"its {name} is damaged" for name, good in sound.items() if not good]

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
    imported = record is not None and record.command[1:3] == ("pipelines", "import")
    return f"{'import' if imported else 'build'} it again: {command}"


def movable(record: SourcesRecord, root: Path) -> SourcesRecord:
    """A record of sources in which those within the cache are named by their place in it: a cache can be moved."""
    within = str(root / "sources") + os.sep
    return record.moved(lambda at: IMPORTED + at.removeprefix(within) if at.startswith(within) else at)
