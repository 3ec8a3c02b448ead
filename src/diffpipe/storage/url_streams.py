"""Large files by path or fsspec URL as streams: read in order, or written whole or not at all; never held in memory."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..core.errors import AccessError, CacheError, DiffpipeError, NotFoundError, UsageError
from . import urls
from .disk import mark, readable, umask

BLOCK = 64 << 20  # bytes of a request or part: S3 takes 10,000 parts, so 670 GB in one file
HEAD = 1 << 20  # the same where only the beginning is wanted
ABANDONED = 3600.0  # seconds without a write after which a temporary file is what a crash left


def inside(place: str, name: str) -> str:
    """The file of that name where a place is a folder (an existing one, or a URL that ends in /), else the place."""
    here = path_of(place)
    if place.endswith("/") or (here and here.is_dir()):
        return f"{place.rstrip('/')}/{name}"
    return place


def path_of(place: str) -> Path | None:
    """The path of a file on this machine's disks; None for one elsewhere."""
    if not urls.is_url(place):
        return Path(place).expanduser()
    here = urls.on_disk(place)
    return Path(here) if here else None


def size(place: str) -> int | None:
    """Bytes of a file, None where there is none. Raises what `reading` raises."""
    path = path_of(place)
    if path is None:
        found = urls.stamp(place)
        return int(found["size"] or 0) if found else None  # some stores cannot tell
    with explained(place):
        return path.stat().st_size if path.exists() else None


@contextmanager
def reading(place: str, block: int = BLOCK) -> Iterator[IO[bytes]]:
    """A stream of a file, read `block` bytes a request where it lies elsewhere.

    Raises NotFoundError, AccessError, UsageError for a URL that nothing here can read, DiffpipeError.
    """
    path = path_of(place)
    if path is None:
        store, name = _store(place)
        with explained(place):
            stream = store.open(name, "rb", block_size=block)
    else:
        with explained(place):
            stream = path.open("rb")
    with stream:
        yield stream


@contextmanager
def writing(place: str) -> Iterator[IO[bytes]]:
    """A stream into a file that appears, or replaces an older one, when the block ends, and never if it raises."""
    path = path_of(place)
    if path is not None:
        with _writing_here(path) as stream:
            yield stream
        return
    store, name = _store(place)
    written = False
    try:
        with store.transaction:  # commits at its end, or discards
            with explained(place):
                stream = store.open(name, "wb", block_size=BLOCK)
            with stream:
                yield stream
                written = True
    except Exception as error:
        raise _in_the_users_terms(place, error) if written else error from error


@contextmanager
def explained(place: str) -> Iterator[None]:
    """Turn what goes wrong with a file into errors in the user's terms."""
    try:
        yield
    except Exception as error:  # each kind of storage has its own
        raise _in_the_users_terms(place, error) from error


def check_free(folder: Path, needed: int, what: str) -> None:
    """Raises CacheError where a disk has not as many bytes free."""
    there = next(part for part in (folder.absolute(), *folder.absolute().parents) if part.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise CacheError(f"{what} needs {readable(needed)}, and {readable(free)} are free", "free some space")


def _store(url: str) -> tuple[Any, str]:
    """A file system of one's own, as a transaction takes in whatever else is written with its file system meanwhile;
    and the path in it."""
    urls.check_scheme(url)
    from fsspec.core import url_to_fs

    with explained(url):
        shared, path = url_to_fs(url)
        return type(shared)(*shared.storage_args, **shared.storage_options, skip_instance_cache=True), str(path)


def _in_the_users_terms(place: str, error: Exception) -> DiffpipeError:
    if isinstance(error, DiffpipeError):
        return error
    where = urls.shown(place)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return NotFoundError(f"there is no file {where}", "check the path or address")
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return CacheError(f"there is no room for {where}", "free some space")
    if isinstance(error, IsADirectoryError):
        return UsageError(f"{where} is a folder", "name a file in it")
    if isinstance(error, PermissionError) or re.search("Credential|Authenti", type(error).__name__):
        hint = urls.CREDENTIALS.get(where.partition("://")[0], "check its permissions, or your login there")
        return AccessError(f"access to {where} is denied", hint)
    said = urls.hidden((str(error).strip().splitlines() or [type(error).__name__])[0])[:200]
    return DiffpipeError(f"{where} cannot be reached: {said}", "check the address, and try again")


@contextmanager
def _writing_here(path: Path) -> Iterator[IO[bytes]]:
    with explained(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=mark(path), suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o666 & ~umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _remove_abandoned(path: Path) -> None:
    for left in path.parent.glob(f"{mark(path)}*.tmp"):
        if time.time() - left.stat().st_mtime > ABANDONED:
            left.unlink(missing_ok=True)
