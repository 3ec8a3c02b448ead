"""Source files that came in bundles: one copy of each content, however many pipelines use it.

blobs/HEX              a file, named by its digest
sources/DIGEST/PATH    a source's files under their own names, as links to blobs: what the libraries load

A blob is published when its content was checked, so an import that stopped goes on where it was. They stay while an
entry needs them; `prune` removes the others.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ..core.canonical import digest
from ..core.source import FileInfo, Source
from ..storage.digests import content_digest
from ..storage.disk import replacing, temporary_folder
from .entry import sources_in
from .store import Store, listdir

LOCK = "import"  # held by each import: what it brought belongs to no entry until its end


def hasher(kind: str, size: int) -> Any:
    """What makes the digest of a file of `size` bytes in the notation of a recorded one (see files.content_digest)."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False) if kind.startswith("git:") else hashlib.sha256()


def path_of(store: Store, known: str) -> Path:
    """The place of a content, by its digest ("sha256:HEX", or "git:HEX")."""
    return store.root / "blobs" / known.partition(":")[2]


def holds(store: Store, info: FileInfo, *, whole: bool = False) -> bool:
    """Whether a content is here. `whole`: read it again though nothing says that it changed."""
    path = path_of(store, info.digest)
    if not path.is_file() or path.stat().st_size != info.size:
        return False
    quick = info.digest.startswith("sha256:") and not whole
    return (store.digests.get(path).digest if quick else content_digest(path, info.digest)) == info.digest


def put(store: Store, info: FileInfo, fill: Callable[[IO[bytes]], None]) -> None:
    """Write a content, which `fill` has checked when it returns; whatever it raises leaves nothing behind."""
    store.folder("blobs")
    with replacing(path_of(store, info.digest), within=store.folder("temporary")) as stream:
        fill(stream)


def lay_out(store: Store, source: Source) -> Path:
    """The folder with a source's files under their own names, or the file itself where it is a single one."""
    target = store.folder("sources") / _folder_name(source)
    if not all(_is_same(target / path, path_of(store, info.digest)) for path, info in source.files.items()):
        with temporary_folder(target, within=store.folder("temporary")) as temporary:
            for path, info in source.files.items():
                (temporary / path).parent.mkdir(parents=True, exist_ok=True)
                _link(path_of(store, info.digest), temporary / path, (target / path).parent)
            store.bury(target)
            os.replace(temporary, target)
    return target / next(iter(source.files)) if source.single else target


def _is_same(path: Path, blob: Path) -> bool:
    """Whether a path leads to a blob."""
    try:
        return path.samefile(blob)
    except OSError:
        return False


def unused(store: Store, without: frozenset[str] = frozenset()) -> dict[str, int]:
    """HEX -> bytes of what no entry needs, apart from the entries `without`; nothing while an import runs."""
    if not listdir(store.root / "blobs"):
        return {}
    with store.lock_if_free(LOCK) as alone:
        return _unused(store, without) if alone else {}


def drop(store: Store) -> None:
    """Remove what no entry needs, unless an import runs."""
    if not listdir(store.root / "blobs") and not listdir(store.root / "sources"):
        return
    with store.lock_if_free(LOCK) as alone:
        if not alone:
            return
        for name in _unused(store, frozenset()):
            store.discard(store.root / "blobs" / name)
        folders = {folder for folder, _ in _needed(store, frozenset())}
        for name in set(listdir(store.root / "sources")) - folders:
            store.bury(store.root / "sources" / name)


def _unused(store: Store, without: frozenset[str]) -> dict[str, int]:
    needed = {name for _, names in _needed(store, without) for name in names}
    found = (store.root / "blobs" / name for name in listdir(store.root / "blobs") if name not in needed)
    return {path.name: os.lstat(path).st_size for path in found}


def _needed(store: Store, without: frozenset[str]) -> Iterator[tuple[str, set[str]]]:
    """The folders under sources/ that entries load from, each with the names of its blobs."""
    for key in sorted(store.keys()):
        if key in without:
            continue
        if store.of_another_version(key):
            yield from _needed_elsewhere(store, key)
            continue
        entry = store.sound(key)
        if entry is None:
            continue
        locations = entry.locations()
        for source in entry.manifest().sources:
            folder = _folder_name(source)
            # Not by where it lies: a cache can have several names.
            if folder in Path(locations.get(source.role, "")).parts:
                yield folder, {info.digest.partition(":")[2] for info in source.files.values()}


def _needed_elsewhere(store: Store, key: str) -> Iterator[tuple[str, set[str]]]:
    """The same of an entry of another version, whose manifest cannot be read: by the places that its record names, all
    there are where that cannot be read either."""
    record = sources_in(store.root / "pipelines" / key)
    for folder in listdir(store.root / "sources"):
        if record is None or any(folder in Path(place).parts for place in record.locations.values()):
            files = (
                os.path.join(at, name) for at, _, names in os.walk(store.root / "sources" / folder) for name in names
            )
            yield folder, {os.path.basename(os.readlink(path)) for path in files if os.path.islink(path)}


def _folder_name(source: Source) -> str:
    return digest({path: info.digest for path, info in source.files.items()})


def _link(blob: Path, path: Path, final: Path) -> None:
    """A link to a blob, relative to the folder `final` in which it will lie."""
    try:
        path.symlink_to(os.path.relpath(blob, final))
    except OSError:  # Windows without the right to make them
        os.link(blob, path)
