"""Quantized weights on disk: weights/KEY/, shared by every entry whose weights are the same.

weights/KEY/summary.json          the components, each with its file's digest and identity, and what was measured
weights/KEY/NAME.safetensors      a component, as engine/loading/stored.py writes and maps it

A folder is published by one rename: it is whole or not there. Its key hashes what changes weights and nothing else, so
entries that differ in scheduler, device or placement share it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..core.canonical import digest
from ..core.configuration import Configuration
from ..core.errors import CacheError
from ..core.manifest import WeightsSummary
from ..core.parsing import Fields, Misfit
from ..storage.digests import identity, sha256
from ..storage.disk import temporary_folder
from .entry import KEY, SHORT
from .sealed import intact, write_sealed
from .store import Store, listdir

FORMAT = 1  # raise it when the same configuration comes to mean other weights
SECTIONS = ("base", "config", "components", "loras", "dtype", "quantization")  # of a pipeline's configuration
RARE = ("float32",)  # those that a configuration has only where they say something
SUMMARY = "summary.json"


def weights_key(config: Configuration) -> str | None:
    """The key of a configuration's stored weights; None where nothing is quantized."""
    if not config.quantization:
        return None
    rare = {name: config.json[name] for name in RARE if name in config.json}
    return digest({"format": FORMAT, **{name: config.json.get(name) for name in SECTIONS}, **rare})


def folder(store: Store, key: str) -> Path:
    return store.root / "weights" / key


def find(store: Store, key: str) -> WeightsSummary | None:
    """The summary of a weights folder, None if it is not whole."""
    try:
        summary = WeightsSummary.from_json(Fields(intact(folder(store, key) / SUMMARY)))
    except Misfit:
        return None
    names = summary.components
    return summary if names and all(_file(store, key, name).is_file() for name in names) else None


@contextmanager
def made(
    store: Store, key: str, write: Callable[[Path], WeightsSummary], waiting: Callable[[], None], *, own: bool = False
) -> Iterator[WeightsSummary]:
    """The summary of a weights folder, made by `write` unless it is there; nobody removes it within the block.

    `write` fills a new folder with NAME.safetensors files and returns their summary; whatever it raises leaves nothing
    behind. `waiting` is called once if another process is making the same one. `own`: not those that came by a
    bundle, for nobody knows how they were made. Publish the entry within the block: its weights belong to none before.
    """
    with store.lock(lock_of(key), waiting):
        # Another process may have made it while this one waited.
        found = find(store, key)
        yield found if found and not (own and found.imported) else _make(store, key, write)


def lock_of(key: str) -> str:
    """The name of the lock that who makes weights holds until an entry uses them."""
    return f"weights-{key}"


def _make(store: Store, key: str, write: Callable[[Path], WeightsSummary]) -> WeightsSummary:
    """Fill a folder of weights and publish it by one rename."""
    with temporary_folder(folder(store, key), within=store.folder("temporary")) as temporary:
        summary = write(temporary)
        for name in summary.components:
            summary = summary.with_identity(name, identity(temporary / f"{name}.safetensors"))
        write_sealed(temporary / SUMMARY, summary.to_json())
        store.folder("weights")
        store.bury(folder(store, key))  # what is left of a damaged one
        os.replace(temporary, folder(store, key))
    stored = find(store, key)
    assert stored is not None
    return stored


def files(store: Store, key: str) -> dict[str, Path]:
    """component -> file, each as it was when it was written: one that was cut short must never be mapped.

    A file is read whole only when its size, times or inode are not the recorded ones. Raises CacheError.
    """
    summary = find(store, key)
    if summary is None:
        raise CacheError(f"the quantized weights {key[:SHORT]} are missing or damaged", "build the pipeline again")
    moved = False
    for name, part in summary.components.items():
        path = _file(store, key, name)
        if tuple(identity(path)) != part.identity:
            if path.stat().st_size != part.bytes or sha256(path) != part.digest:
                store.bury(folder(store, key))
                raise CacheError(f"the quantized weights of {name} were changed", "build the pipeline again")
            summary, moved = summary.with_identity(name, identity(path)), True
    if moved and os.access(folder(store, key), os.W_OK):
        write_sealed(folder(store, key) / SUMMARY, summary.to_json())
    return {name: _file(store, key, name) for name in summary.components}


def sound(store: Store, key: str) -> WeightsSummary | None:
    """The summary of a weights folder whose files are as they were written (see `files`), else None."""
    try:
        files(store, key)
    except CacheError:
        return None
    return find(store, key)


def problems(store: Store, key: str) -> list[str]:
    """Everything wrong with a weights folder, each file read whole."""
    summary = find(store, key)
    if summary is None:
        return [f"its quantized weights {key[:SHORT]} are missing or damaged"]
    return [
        f"the quantized weights of {name} were changed"
        for name, part in summary.components.items()
        if sha256(_file(store, key, name)) != part.digest
    ]


def size(store: Store, key: str) -> int:
    """Bytes that a weights folder takes."""
    return sum(os.lstat(path).st_size for path in folder(store, key).glob("*") if path.is_file())


def keys(store: Store) -> list[str]:
    """The keys of all weights folders, whole or damaged."""
    return sorted(name for name in listdir(store.root / "weights") if KEY.fullmatch(name))


def unused(store: Store, without: frozenset[str] = frozenset()) -> list[str]:
    """Weights folders that no entry refers to, apart from the entries `without` (keys of pipelines that will go).

    Those that a build holds (see `made`) are not listed: its entry is not published yet.
    """
    if any(store.get(key) is None and store.of_another_version(key) for key in sorted(store.keys())):
        return []  # what it uses, only its own version knows
    used = _used(store, without)
    return [key for key in keys(store) if key not in used and not _held(store, key)]


def _used(store: Store, without: frozenset[str]) -> set[str]:
    return {entry.summary.weights for entry in store.entries() if entry.key not in without}


def _held(store: Store, key: str) -> bool:
    with store.lock_if_free(lock_of(key)) as free:
        return not free


def drop_unused(store: Store, key: str) -> None:
    """Remove a weights folder, unless a build holds it or an entry came to use it."""
    with store.lock_if_free(lock_of(key)) as free:
        if free and key not in _used(store, frozenset()):
            drop(store, key)


def drop(store: Store, key: str) -> None:
    """Remove a weights folder."""
    if KEY.fullmatch(key):
        store.bury(folder(store, key))


def _file(store: Store, key: str, name: str) -> Path:
    return folder(store, key) / f"{name}.safetensors"
