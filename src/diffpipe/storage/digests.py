"""Content digests of files, each computed once while its file stays as it is."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import UsageError
from ..core.parsing import Fields, Misfit, parse_json
from ..core.source import FileInfo
from .disk import CHUNK, unreadable, write_json
from .opening import open_regular, read_regular

SETTLED = 2.0  # seconds: a file changed later than this before hashing may change again within one tick of its times
LONGEST_RECORD = 100_000  # bytes; a path is 4,096 at most

Progress = Callable[[int], None]


def identity(path: Path) -> list[int]:
    """What changes when a file's content changes: size, times of change (ns), inode. Follows links."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def sha256(path: Path, progress: Progress | None = None) -> str:
    """ "sha256:" and the hex digest of a file's content; `progress` gets the bytes read, chunk by chunk."""
    hasher = hashlib.sha256()
    with open_regular(path) as stream:
        while chunk := stream.read(CHUNK):
            hasher.update(chunk)
            if progress:
                progress(len(chunk))
    return "sha256:" + hasher.hexdigest()


def git_blob(path: Path) -> str:
    """ "git:" and git's object id of a file (SHA-1 over "blob SIZE" NUL content): how a hub names its small files."""
    with open_regular(path) as stream:
        hasher = hashlib.sha1(b"blob %d\0" % os.fstat(stream.fileno()).st_size, usedforsecurity=False)
        while chunk := stream.read(CHUNK):
            hasher.update(chunk)
    return "git:" + hasher.hexdigest()


def content_digest(path: Path, kind: str) -> str:
    """The digest of a file in the notation of a recorded one ("sha256:…" or "git:…")."""
    return git_blob(path) if kind.startswith("git:") else sha256(path)


@dataclass(frozen=True)
class _Record:
    """What a digest was computed of: a file by its path, as it was then."""

    path: str
    identity: list[int]
    digest: str


class DigestCache:
    """SHA-256 digests by path, trusted while the file's identity is the same: gigabytes are read once.

    A file's times move in ticks (two seconds on FAT, a timer's interrupt on Linux), so that a file that was changed
    just before it was read may change again and look the same: its digest is not kept.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self.clock = clock

    def known(self, path: Path) -> FileInfo | None:
        """Size and digest of a file that was read before and is the same still; None for any other."""
        try:
            path = path.resolve(strict=True)
            return self._known(path, identity(path))
        except (OSError, RuntimeError):  # Python 3.11 and 3.12 raise this for links in a circle
            return None

    def get(self, path: Path, progress: Progress | None = None) -> FileInfo:
        """Size and digest of a file.

        Raises UsageError if the file cannot be read.
        """
        try:
            path = path.resolve(strict=True)
            before = identity(path)
            if known := self._known(path, before):
                return known
            started = self.clock()
            digest = sha256(path, progress)
            settled = identity(path) == before and started - max(before[1], before[2]) / 1e9 > SETTLED
        except RuntimeError as error:  # as above
            raise UsageError(f"cannot read {path}: it is a link that leads back to itself", "name a file") from error
        except OSError as error:
            raise unreadable(f"cannot read {path}", error) from error
        if settled:
            self.folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.folder.mkdir(exist_ok=True, mode=0o700)
            write_json(self._place(path), {"path": _name(path), "identity": before, "digest": digest})
        return FileInfo(before[0], digest)

    def unused(self) -> Iterator[str]:
        """The names of records of files that are gone, or are not what was read any more."""
        for name in os.listdir(self.folder) if self.folder.is_dir() else ():
            record = None if name.endswith(".tmp") else _read_record(self.folder / name)
            if record and not self._is_current(record):
                yield name

    def _is_current(self, record: _Record) -> bool:
        try:
            return identity(Path(record.path)) == record.identity
        except (OSError, ValueError):
            return False

    def _known(self, path: Path, now: list[int]) -> FileInfo | None:
        known = _read_record(self._place(path))
        same = known and (known.path, known.identity) == (_name(path), now)
        return FileInfo(now[0], known.digest) if known and same else None

    def _place(self, path: Path) -> Path:
        """Where the record of a file is."""
        return self.folder / hashlib.sha256(os.fsencode(path)).hexdigest()[:32]


def _name(path: Path) -> str:
    return os.fsencode(path).decode(errors="backslashreplace")  # names of files need not be UTF-8


def _read_record(place: Path) -> _Record | None:
    """A record, None where there is none or it is damaged."""
    try:
        fields = Fields(parse_json(read_regular(place, LONGEST_RECORD), LONGEST_RECORD))
        times = [value for value in fields.values("identity") if isinstance(value, int)]
        return _Record(fields.text("path"), times, fields.text("digest"))
    except (OSError, Misfit):
        return None
