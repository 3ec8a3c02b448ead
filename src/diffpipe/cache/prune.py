"""Cleaning the cache: first a plan that says what would go and why, then its execution."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.source import file_of
from ..storage.disk import readable
from . import blobs, weights
from .store import SHORT, Entry, Store

DAY = 86400.0


@dataclass(frozen=True)
class Plan:
    """What pruning would remove: entries with the reason, names that stand for nothing, left-overs, unused weights.

    `weights`: the key and bytes of quantized weights that no entry uses. `imported`: the same of files from bundles.
    """

    entries: tuple[tuple[str, str], ...]
    names: tuple[str, ...]
    leftovers: tuple[Path, ...]
    weights: Mapping[str, int] = field(default_factory=dict)
    imported: Mapping[str, int] = field(default_factory=dict)

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

    def total(self) -> str:
        counts = f"{len(self.entries)} entries, {len(self.names)} names, {len(self.leftovers)} left-overs"
        counts += f", {len(self.weights)} sets of quantized weights" if self.weights else ""
        return counts + (f", {len(self.imported)} imported files" if self.imported else "")

    def to_json(self) -> dict[str, Any]:
        return {
            "entries": [{"key": key, "reason": reason} for key, reason in self.entries],
            "names": list(self.names),
            "leftovers": [path.name for path in self.leftovers],
            "weights": [{"key": key, "bytes": size} for key, size in self.weights.items()],
            "imported": [{"digest": name, "bytes": size} for name, size in sorted(self.imported.items())],
        }


def plan(store: Store, unused_for: int | None) -> Plan:
    """Entries that are damaged, whose sources are gone, or not used for `unused_for` days; and what crashes left."""
    keys = store.keys()
    entries = [(key, reason) for key in keys if (reason := _reason(store.get(key), unused_for))]
    going = {key for key, _ in entries}
    kept = set(keys) - going
    names = tuple(name for name, key in store.names().items() if key not in kept and key not in going)
    unused = {key: weights.size(store, key) for key in weights.unused(store, frozenset(going))}
    imported = blobs.unused(store, frozenset(going))
    return Plan(tuple(sorted(entries)), names, tuple(store.leftovers()), unused, imported)


def execute(store: Store, planned: Plan) -> None:
    for key, _ in planned.entries:
        store.drop(key)
    for name in planned.names:
        store.drop_name(name)
    for key in planned.weights:
        weights.drop(store, key)
    blobs.drop(store)
    for path in planned.leftovers:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _reason(entry: Entry | None, unused_for: int | None) -> str | None:
    if entry is None:
        return "is damaged"
    if entry.faults():
        return "is damaged"
    manifest, locations = entry.manifest(), entry.locations()
    for source in manifest.sources:
        for path in source.files:
            if not file_of(source, locations.get(source.role, ""), path).exists():
                return f"needs {source.label}, which is gone"
    stored = manifest.stored
    if stored and weights.find(Store(entry.folder.parent.parent), stored.key) is None:
        return "lost its quantized weights"
    idle = (time.time() - entry.last_used()) / DAY
    return f"was not used for {idle:.0f} days" if unused_for is not None and idle >= unused_for else None
