"""Finished files put at URLs: whole, or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from .disk import folder_made, give_name, share, temporary_file
from .presence import stamp
from .stores import OBJECT_STORES, FileSystem, check_writable, explained, open_store
from .urls import on_disk, shown, split

THEN = "go on with --resume"  # what to do once what was wrong is mended


def publish(made: Path, url: str, *, overwrite: bool) -> None:
    """Put a finished local file at a URL: who reads there sees what was there before, or all of it.

    Raises FileExistsError where a file is and `overwrite` is not given, UsageError for a URL that can only be read,
    AccessError, CacheError if it cannot be made.
    """
    if place := on_disk(url):
        with explained(url, "write", THEN):
            _publish_on_disk(made, Path(place), overwrite)
        return
    check_writable(url)
    store, path = open_store(url, "write", THEN)
    if not overwrite and stamp(url) is not None:  # not every store refuses, when asked to, to replace an object
        raise FileExistsError(shown(url))
    put = _put if split(url)[0] in OBJECT_STORES else _put_and_rename
    with explained(url, "write", THEN):
        put(store, made, path, overwrite, lambda: stamp(url) is not None)


def _put(store: FileSystem, made: Path, path: str, overwrite: bool, taken: Callable[[], bool]) -> None:
    """One request that makes the object; without `overwrite`, one that makes it only if there is none."""

    def request(mode: str) -> None:
        if store.protocol == "memory":  # opens the file under its name, and fills it then
            store.pipe_file(path, made.read_bytes(), mode=mode)
        else:
            store.put_file(str(made), path, mode=mode)

    if overwrite:
        return request("overwrite")
    try:
        request("create")
    except Exception as error:
        if taken():
            raise FileExistsError(path) from None
        if not isinstance(error, NotImplementedError) and getattr(error, "errno", None) != errno.ENOSYS:
            raise
        request("overwrite")  # a store that has no such request


def _put_and_rename(store: FileSystem, made: Path, path: str, overwrite: bool, taken: Callable[[], bool]) -> None:
    folder, _, name = path.rpartition("/")
    temporary = f"{folder}/.{name[:60]}.{os.urandom(8).hex()}.tmp"
    if folder:
        store.makedirs(folder, exist_ok=True)
    try:
        store.put_file(str(made), temporary)
        if not overwrite and taken():
            raise FileExistsError(path)
        store.mv(temporary, path)
    except BaseException:
        if store.exists(temporary):
            store.rm_file(temporary)
        raise


def _publish_on_disk(made: Path, place: Path, overwrite: bool) -> None:
    with folder_made(place), temporary_file(place) as temporary:
        with made.open("rb") as source, temporary.open("wb") as target:
            shutil.copyfileobj(source, target)
            target.flush()
            os.fsync(target.fileno())
        share(temporary)
        give_name(temporary, place, overwrite=overwrite)
