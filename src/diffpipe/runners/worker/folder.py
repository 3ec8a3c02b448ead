"""The private folder that workers' sockets, locks and logs lie in."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ...core.errors import CacheError

LONGEST_PATH = 100  # bytes of a Unix socket's path (sockaddr_un: 108 on Linux, 104 on macOS and BSD)
LONGEST_NAME = 38  # bytes of a socket's name in the folder: see lifecycle.place_of
UNSUPPORTED = "this system has no Unix sockets, which workers need"
SHORT_TEMPORARY = "/tmp"  # where the user's folder for temporary files has too long a path, as on macOS


def supported() -> bool:
    """Whether this system has what workers need: Unix sockets, which tell who is at the other end."""
    return os.name == "posix" and hasattr(socket, "AF_UNIX")


def folder() -> Path:
    """The folder, made where it is missing. Its path is short enough for a socket's in it.

    Raises CacheError where it belongs to another user, or is open to others: what lies there cannot be trusted then.
    """
    if not supported():
        raise CacheError(UNSUPPORTED, "do without --keep-warm: each run loads the pipeline itself")
    found = next(filter(_fits, _candidates()), None)
    if found is None:
        raise CacheError("the paths of all folders for workers are too long", "set XDG_RUNTIME_DIR to a shorter one")
    try:
        found.mkdir(mode=0o700, exist_ok=True)
        status = os.lstat(found)
    except OSError as error:
        hint = "set XDG_RUNTIME_DIR to a folder of yours"
        raise CacheError(f"the folder of workers cannot be made: {error.strerror}", hint) from error
    _check_private(found, status)
    return found


def _candidates() -> Iterator[Path]:
    """Folders that may serve, the preferred one first. Every process of the user comes to the same."""
    runtime = os.environ.get("XDG_RUNTIME_DIR") or ""
    if os.path.isabs(runtime) and os.path.isdir(runtime):
        yield Path(runtime, "diffpipe")
    for temporary in (tempfile.gettempdir(), SHORT_TEMPORARY):
        yield Path(temporary, f"diffpipe-{os.getuid()}").absolute()


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) + 1 + LONGEST_NAME <= LONGEST_PATH


def _check_private(path: Path, status: os.stat_result) -> None:
    """Raises CacheError unless it is a folder of this user's that nobody else may enter."""
    hint = "remove it, or set XDG_RUNTIME_DIR to a folder of yours"
    if not stat.S_ISDIR(status.st_mode):
        raise CacheError(f"the folder of workers, {path}, is a link or a file", hint)
    if status.st_uid != os.getuid():
        raise CacheError(f"the folder of workers, {path}, belongs to another user", hint)
    if status.st_mode & 0o077:
        raise CacheError(f"the folder of workers, {path}, is open to other users", f"chmod 700 {path}")
