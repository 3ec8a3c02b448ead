"""Files at URLs: written here as every file is, then published."""

from __future__ import annotations

import filecmp
import os
import posixpath
import tempfile
from collections.abc import Callable
from pathlib import Path

from ...core.canonical import JsonObject
from ...core.errors import DiffpipeError
from ...storage import fetching, presence, publishing, urls
from ...storage.digests import sha256
from .text import read_text


def write_at(url: str, write: Callable[[Path], object], *, overwrite: bool) -> tuple[str, JsonObject]:
    """Let `write` make a local file of the URL's name, and publish that (see `publish_at`). Raises OSError if it cannot
    be written here."""
    with tempfile.TemporaryDirectory(prefix="diffpipe-") as folder:
        made = Path(folder, posixpath.basename(url))
        write(made)
        return publish_at(made, url, overwrite=overwrite)


def publish_at(made: Path, url: str, *, overwrite: bool) -> tuple[str, JsonObject]:
    """Put a finished file at a URL: where it lies then, as `write_image` returns it, and its size, digest and, where
    the store has one, tag.

    A file that is there and was made with the same settings is kept: work may be done twice, as a worker was lost
    before it could report it, and has one file. Raises DiffpipeError if it cannot be put there.
    """
    free, number = url, 1
    while True:
        try:
            publishing.publish(made, free, overwrite=overwrite)
            return free, _stored(made, free)
        except FileExistsError:
            there = fetching.fetched(free)
            if _same(made, there):
                return free, _stored(there, free)
            number += 1
            free = urls.beside(url, str(number))


def _stored(file: Path, url: str) -> JsonObject:
    """What the journal notes of a file at a URL, of which this is a copy."""
    tag = None if urls.on_disk(url) else (presence.stamp(url) or {}).get("tag")
    noted: JsonObject = {"size": os.path.getsize(file), "digest": sha256(file)}
    return {**noted, "tag": tag} if tag else noted


def _same(made: Path, there: Path) -> bool:
    """Whether two files are of the same item: byte for byte, or they say so. (A GPU need not make the same bytes.)"""
    if filecmp.cmp(made, there, shallow=False):
        return True
    try:
        settings = read_text(made).get("diffpipe")
        return settings is not None and settings == read_text(there).get("diffpipe")
    except (DiffpipeError, OSError):  # somebody else's
        return False
