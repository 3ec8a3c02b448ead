"""What is there at URLs: which files, how large, and whether they are what was noted of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from ..core.counter import CompactCounter
from .disk import CHUNK
from .stores import READ_ONLY, FileSystem, Info, explained, open_store, reader
from .urls import on_disk, shown, split
from .web import check_size

TAGS = ("md5Hash", "ETag", "etag")  # how stores call what changes with an object's content
ASKED = 50  # files of a folder that are asked for one by one; then it is listed, a thousand or so names a request

# What is noted of a file at a URL: "size" (bytes, None where its store cannot tell), and "tag" or "digest".
Noted: TypeAlias = dict[str, "int | str | None"]


@dataclass
class _Folder:
    """A folder of a store as it was: the stamps of files that were asked for; once it is listed, the names in it, and
    name, size and tag of each in one text. `tried`: whether it was to be listed."""

    asked: dict[str, Noted | None] = field(default_factory=dict)
    names: CompactCounter | None = None
    tried: bool = False


_folders: dict[str, _Folder] = {}


def forget() -> None:
    """Ask the stores again what is there: what folders hold is remembered, for batches ask of each of their files."""
    _folders.clear()


def exists(url: str) -> bool:
    """Whether a file is there. Raises DiffpipeError where the store cannot be asked."""
    place = on_disk(url)
    return _remembered(url) if place is None else os.path.lexists(place)


def unchanged(url: str, noted: Mapping[str, object]) -> bool:
    """Whether a store says of a file, without its being read, what it said when it was `noted` (see `stamp`)."""
    return "tag" in noted and on_disk(url) is None and _remembered(url, noted)


def _remembered(url: str, noted: Mapping[str, object] | None = None) -> bool:
    """Whether a file is, or was when this run asked first, in its folder; and is what was `noted` of it."""
    _, path = reader(url)
    folder = _folders.setdefault(shown(url).rpartition("/")[0], _Folder())
    if len(folder.asked) == ASKED and path not in folder.asked and not folder.tried:
        folder.names, folder.tried = _listed(url), True
    if folder.names is not None:
        return bool(folder.names[_summed(path, noted) if noted else path])
    found = folder.asked[path] if path in folder.asked else stamp(url)
    if len(folder.asked) < ASKED:
        folder.asked[path] = found
    return found is not None and (noted is None or found == {name: noted[name] for name in ("size", "tag")})


def _listed(url: str) -> CompactCounter | None:
    """What is in the folder of a file; None if that cannot be told."""
    if split(url)[0] in READ_ONLY:
        return None
    store, path = open_store(url)
    folder = path.rpartition("/")[0]
    return _names(store, folder) if folder else None


def _names(store: FileSystem, folder: str) -> CompactCounter | None:
    names = CompactCounter()
    try:
        for entry in store.ls(folder, detail=True):
            if (found := _stamp(entry)) is not None:
                name = str(entry["name"])
                names[name] = names[_summed(name, found)] = 1
    except FileNotFoundError:
        return names
    except Exception:  # who may not list may still ask for each
        return None
    return names


def stamp(url: str) -> Noted | None:
    """Size of a file in bytes, and the store's own tag of its content where it has one; None if there is no file."""
    store, path = reader(url)
    with explained(url):
        try:
            return _stamp(store.info(path))
        except (FileNotFoundError, NotADirectoryError):
            return None


def _stamp(info: Info) -> Noted | None:
    if info.get("type") == "directory":
        return None
    tag = next((str(info[name]) for name in TAGS if info.get(name)), None)
    size = info.get("size")
    return {"size": size if isinstance(size, int) else None} | ({"tag": tag} if tag else {})


def _summed(path: str, stamp: Mapping[str, object]) -> str:
    return f"{path}\n{stamp.get('size')}\n{stamp.get('tag')}"


def state(url: str) -> Noted:
    """Size and content digest of a file, which is read for it. Raises DiffpipeError if it cannot be."""
    store, path = reader(url)
    hasher, size = hashlib.sha256(), 0
    with explained(url), store.open(path, "rb", block_size=CHUNK) as stream:
        while chunk := stream.read(CHUNK):
            hasher.update(chunk)
            size += len(chunk)
            check_size(url, size)
    return {"size": size, "digest": f"sha256:{hasher.hexdigest()}"}
