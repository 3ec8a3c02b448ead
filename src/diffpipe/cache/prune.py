"""Cleaning the cache: first a plan that says what would go and why, then its execution."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..core.canonical import JsonObject
from ..core.source import file_of
from ..storage.disk import readable
from . import blobs, weights
from .entry import KEY, SHORT, Entry
from .store import Store, listdir
from .verify import is_gone

DAY = 86400.0
HEADERS_KEPT = 30 * DAY  # since they were last read: a plan reads them again where they are gone
# Folders of small records, each with what is in it, that nothing uses any more.
RECORDS = {
    "pins": "commits of builds that are gone",
    "digests": "digests of files that changed or are gone",
    "headers": "headers of weights that no plan read for a month",
    "locks": "locks of what is gone",
}


@dataclass(frozen=True)
class Plan:
    """What pruning would remove: entries with the reason, names that stand for nothing, left-overs, unused weights.

    `weights`: the key and bytes of quantized weights that no entry uses. `imported`: the same of files from bundles.
    `records`: names in each folder of RECORDS.
    """

    entries: tuple[tuple[str, str], ...]
    names: tuple[str, ...]
    leftovers: tuple[Path, ...]
    weights: Mapping[str, int] = field(default_factory=dict)
    imported: Mapping[str, int] = field(default_factory=dict)
    records: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unused_for: int | None = field(default=None, compare=False)

    def lines(self) -> Iterator[str]:
        yield from (f"{key[:SHORT]} {reason}" for key, reason in self.entries)
        yield from (f"{name} stands for no entry" for name in self.names)
        yield from (f"{path.name} was left by a build that did not finish" for path in self.leftovers)
        yield from (
            f"{key[:SHORT]} holds quantized weights ({readable(size)}) of no entry"
            for key, size in self.weights.items()
        )
        if self.imported:
            yield f"{len(self.imported)} imported files ({readable(sum(self.imported.values()))}) belong to no entry"
        yield from (f"{len(names)} {RECORDS[folder]}" for folder, names in self.records.items() if names)

    def total(self) -> str:
        counts = f"{len(self.entries)} entries, {len(self.names)} names, {len(self.leftovers)} left-overs"
        counts += f", {len(self.weights)} sets of quantized weights" if self.weights else ""
        counts += f", {len(self.imported)} imported files" if self.imported else ""
        small = sum(map(len, self.records.values()))
        return counts + (f", {small} small records" if small else "")

    def to_json(self) -> JsonObject:
        return {
            "entries": [{"key": key, "reason": reason} for key, reason in self.entries],
            "names": list(self.names),
            "leftovers": [path.name for path in self.leftovers],
            "weights": [{"key": key, "bytes": size} for key, size in self.weights.items()],
            "imported": [{"digest": name, "bytes": size} for name, size in sorted(self.imported.items())],
            "records": {folder: len(names) for folder, names in self.records.items()},
        }


def plan(store: Store, unused_for: int | None) -> Plan:
    """Entries that are damaged, whose sources are gone, or not used for `unused_for` days; and what crashes left.

    Those of another version are for that one to judge: they go by their last use alone.
    """
    keys = store.keys()
    entries = [(key, reason) for key in keys if (reason := _reason(store, key, unused_for))]
    going = frozenset(key for key, _ in entries)
    kept = set(keys) - going
    names = tuple(name for name, key in store.names().items() if key not in kept and key not in going)
    unused = {key: weights.size(store, key) for key in weights.unused(store, going)}
    records = {
        "pins": tuple(store.unused_pins(kept)),
        "digests": tuple(store.digests.unused()),
        "headers": tuple(_old(store.root / "headers", HEADERS_KEPT)),
        "locks": tuple(_unused_locks(store, kept, unused)),
    }
    imported = blobs.unused(store, going)
    found = {folder: named for folder, named in records.items() if named}
    return Plan(tuple(sorted(entries)), names, tuple(store.leftovers()), unused, imported, found, unused_for)


def execute(store: Store, planned: Plan) -> None:
    """Remove what was planned, but for what a build or import has put right since, or is about to."""
    for key, _ in planned.entries:
        with store.lock_if_free(key) as free:
            if free and _reason(store, key, planned.unused_for):
                store.drop(key)
        store.drop_lock(key)
    known = set(store.keys())
    for name, key in store.names().items():
        if name in planned.names and key not in known:
            store.drop_name(name)
    for key in planned.weights:
        weights.drop_unused(store, key)
    blobs.drop(store)
    for path in set(planned.leftovers) & set(store.leftovers()):
        store.discard(path)
    for folder, names in planned.records.items():
        for name in names:
            if folder == "locks":
                store.drop_lock(name)
            else:
                store.discard(store.root / folder / name)


def stays(store: Store, entry: Entry) -> str:
    """What a removed entry leaves behind that nothing else uses, in words; "" where that is nothing."""
    held = weights.size(store, entry.summary.weights) if entry.summary.weights in weights.unused(store) else 0
    imported = sum(blobs.unused(store).values())
    parts = [f"{readable(held)} of quantized weights"] * bool(held)
    parts += [f"{readable(imported)} of imported files"] * bool(imported)
    return " and ".join(parts)


def _old(folder: Path, seconds: float) -> Iterator[str]:
    """The files of a folder that were not touched for so long."""
    now = time.time()
    for name in listdir(folder):
        path = folder / name
        if path.is_file() and not name.endswith(".tmp") and now - path.stat().st_mtime > seconds:
            yield name


def _unused_locks(store: Store, kept: Collection[str], going: Collection[str]) -> Iterator[str]:
    """The locks of entries and weights that are not there, or about to go."""
    stored = set(weights.keys(store)) - set(going)
    for file in listdir(store.root / "locks"):
        name = file.removesuffix(".lock")
        key = name.removeprefix("weights-")
        if KEY.fullmatch(key) and key not in (stored if name != key else kept):
            yield name


def _reason(store: Store, key: str, unused_for: int | None) -> str | None:
    entry, folder = store.get(key), store.root / "pipelines" / key
    if not store.of_another_version(key):
        if entry is None or entry.faults():
            return "is damaged"
        if reason := _lost(store, entry):
            return reason
    idle = (time.time() - (entry.last_used() if entry else os.lstat(folder).st_mtime)) / DAY
    return f"was not used for {idle:.0f} days" if unused_for is not None and idle >= unused_for else None


def _lost(store: Store, entry: Entry) -> str | None:
    """What an entry stands on that is gone, as a reason to remove it."""
    manifest, locations = entry.manifest(), entry.locations()
    for source in manifest.sources:
        for path in source.files:
            if is_gone(file_of(source, locations.get(source.role, ""), path)):
                return f"needs {source.label}, which is gone"
    stored = manifest.stored
    lost = stored is not None and weights.find(store, stored.key) is None
    return "lost its quantized weights" if lost else None
