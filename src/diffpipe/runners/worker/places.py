"""Where workers are: for each pipeline of a cache a path without ending, beside which its socket, lock, process id and
log lie."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...cache.store import Store
from ...core.errors import CacheError, DiffpipeError
from ...storage.disk import reason, refused
from . import channel
from .fingerprint import short_digest
from .folder import folder, supported

if TYPE_CHECKING:
    from filelock import BaseFileLock

KEY_DIGITS = 24  # hex digits of the key in a place's name
LOCK_TIMEOUT = 5.0  # seconds
MISPLACED = (errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.ENXIO)  # a link, a folder, a socket


def place_of(store: Store, key: str) -> Path:
    """Where the worker of a pipeline of this cache listens. Raises CacheError (see folder)."""
    return folder() / f"{_prefix(store)}{key[:KEY_DIGITS]}"


def places(store: Store) -> Iterator[Path]:
    """The places of this cache at which a worker listens, or did. Raises CacheError (see folder)."""
    for path in sorted(folder().iterdir()) if supported() else ():
        if path.name.startswith(_prefix(store)) and path.suffix == channel.ENDING:
            yield path.with_suffix("")


def _prefix(store: Store) -> str:
    return f"{short_digest(str(store.root.resolve()))[:8]}-"


# The lock of a place, which its worker holds while it lives


@dataclass(frozen=True)
class Lock:
    """A lock that is held. `inode`: its file's."""

    held: BaseFileLock
    inode: int

    def release(self) -> None:
        self.held.release()

    def counts(self) -> bool:
        """Whether it keeps others out: its file still is where they look for it."""
        with suppress(OSError):
            return os.stat(self.held.lock_file).st_ino == self.inode
        return False


def lock(place: Path, timeout: float = LOCK_TIMEOUT) -> Lock | None:
    """The lock of a place; None where another process holds it longer than so many seconds.

    Raises CacheError where something else is in its place.
    """
    from filelock import FileLock, Timeout

    held = FileLock(path := place.with_suffix(".lock"), mode=0o600)
    try:
        held.acquire(timeout=timeout)
        return Lock(held, os.stat(held.lock_file).st_ino)
    except Timeout:
        return None
    except OSError as error:
        raise _misplaced(error, path, "lock") from error


def _misplaced(error: OSError, path: Path, what: str) -> DiffpipeError | OSError:
    """What it means that a file of a worker cannot be used: what is no such file may go, and nothing else may."""
    if error.errno in MISPLACED:
        return CacheError(f"{path} is no {what} of a worker: {reason(error)}", f"remove {path}")
    return refused(error) or error


def gone(place: Path, timeout: float) -> bool:
    """Whether a worker has ended within so many seconds."""
    held = lock(place, timeout)
    if held:
        held.release()
    return bool(held)


# What a worker has of files


def pid_file(place: Path) -> Path:
    """Where a worker that lives (holds its lock) has its process id."""
    return place.with_suffix(".pid")


def log_of(place: Path) -> Path:
    """What the worker's libraries print; it goes with the worker, unless that crashes."""
    return place.with_suffix(".log")


def spool_prefix(place: Path) -> str:
    """How the temporary folders begin that hold its clients' input files."""
    return f"diffpipe-worker-{short_digest(str(place))}-"


def clean(place: Path) -> bool:
    """Remove what a worker that died left behind; whether there is no worker."""
    if not os.path.lexists(channel.path_of(place)) and not pid_file(place).exists():
        return True
    held = lock(place, 0)
    if held is None:
        return False
    sweep(place)
    held.release()
    return True


def sweep(place: Path) -> None:
    """Remove what a worker that has ended, or ends now, has of files."""
    for path in (channel.path_of(place), pid_file(place)):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise _misplaced(error, path, "file") from error
    with suppress(OSError):
        if not log_of(place).stat().st_size:
            log_of(place).unlink()
    clear_spools(place)


def clear_spools(place: Path) -> None:
    for left in glob.glob(os.path.join(tempfile.gettempdir(), glob.escape(spool_prefix(place)) + "*")):
        shutil.rmtree(left, ignore_errors=True)
