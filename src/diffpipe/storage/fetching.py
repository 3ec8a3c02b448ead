"""Files at URLs as files here: fetched once while their stores say that they are the same."""

from __future__ import annotations

import atexit
import functools
import os
import posixpath
import re
import shutil
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path

from ..core.errors import NotFoundError
from .disk import CHUNK, check_free
from .opening import is_pipe, open_regular, open_stream, unfit
from .stores import READ_ONLY, Info, explained, reader
from .urls import is_url, on_disk, shown, split
from .web import check_size

KEPT = 32  # fetched files that are kept for who reads them next
MOST_PIPED = 1 << 33  # bytes of pictures, films and sounds that come through pipes: as many as frames may take
STILL = 600.0  # seconds in which the next of them must come: longer than another program takes to begin to write

_fetched: OrderedDict[tuple[int, str, str], Path] = OrderedDict()
_lock = threading.Lock()
_pipes: dict[tuple[int, str, int, int], Path] = {}
_receiving = threading.Lock()


def local(path: str) -> Path:
    """A path; the file that a URL's is fetched to; of a pipe, the file that what came through it is kept in.

    Raises DiffpipeError where it cannot be had.
    """
    if is_url(path):
        return fetched(path)
    return _received(path) if is_pipe(path) else Path(path)


def _received(pipe: str) -> Path:
    """What came through a pipe, which can be read once: by who asks first."""
    with explained(pipe), _receiving:
        status = os.stat(pipe)
        key = os.getpid(), os.path.abspath(pipe), status.st_dev, status.st_ino
        if known := _pipes.get(key):
            return known
        made = Path(tempfile.mkdtemp(dir=_place(os.getpid())), os.path.basename(pipe))
        try:
            _copy_pipe(pipe, made)
        except BaseException:
            shutil.rmtree(made.parent, ignore_errors=True)
            raise
        _pipes[key] = made
        return made


def _copy_pipe(pipe: str, made: Path) -> None:
    left = MOST_PIPED - sum(kept.stat().st_size for kept in _pipes.values() if kept.exists())
    with open_stream(pipe, STILL) as stream, open_regular(made, "wb") as out:
        while chunk := stream.read1(CHUNK):
            left -= len(chunk)
            if left < 0:
                raise unfit(f"a pipe: more than {MOST_PIPED} bytes come through the pipes of this run", pipe)
            out.write(chunk)


def fetched(url: str) -> Path:
    """A local file of a URL's content and name, fetched once while the store says that it is the same.

    It is there for as long as this process runs and reads few others: open it at once. Raises NotFoundError for no
    file, AccessError, DiffpipeError for a store that fails.
    """
    if place := on_disk(url):
        if not os.path.exists(place):
            raise _no_file(url)
        return Path(place)
    store, path = reader(url)
    with explained(url):
        info = store.info(path)
        if info.get("type") == "directory":
            raise _no_file(url)
        key = os.getpid(), url, str(sorted(info.items()))
        if known := _known(key):
            return known
        name = re.sub(r'[<>:"\\|?*\x00-\x1f]', "-", posixpath.basename(split(shown(url))[2]))[-60:]
        made = Path(tempfile.mkdtemp(dir=_place(os.getpid())), name or "file")
        if isinstance(size := info.get("size"), int):
            check_size(url, size)
            check_free(made.parent, size, shown(url))
        store.get_file(path, str(made))
        _check_whole(url, made.stat().st_size, info)
    _keep(key, made)
    return made


def _no_file(url: str) -> NotFoundError:
    return NotFoundError(f"there is no file {shown(url)}", "check the URL")


def _check_whole(url: str, size: int, info: Info) -> None:
    whole = info.get("size")
    if whole is not None and size != whole and split(url)[0] not in READ_ONLY:  # which may have been packed
        raise OSError(f"it ended after {size} of {whole} bytes")


def _known(key: tuple[int, str, str]) -> Path | None:
    with _lock:
        known = _fetched.get(key)
        if known is None or not known.exists():
            return None
        _fetched.move_to_end(key)
        return known


def _keep(key: tuple[int, str, str], made: Path) -> None:
    with _lock:
        _fetched[key] = made
        while len(_fetched) > KEPT:
            shutil.rmtree(_fetched.popitem(last=False)[1].parent, ignore_errors=True)


@functools.cache
def _place(process: int) -> str:
    """The folder of a process's fetched files, which goes when it ends (not when a fork of it does)."""
    folder = tempfile.mkdtemp(prefix="diffpipe-")

    def remove() -> None:
        if os.getpid() == process:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder
