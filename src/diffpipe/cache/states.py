"""What state an entry of the cache is in: whole, damaged, imported and not confirmed by its hub, of another version.

An entry is of another version where another diffpipe wrote it and this one cannot read it: a newer one beside it works.
It is imported where it came by a bundle and its key does not prove all of its files: the key of a hub's model names the
commit, which the bundle's maker can name over other bytes, and that of quantized weights says how they were made.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..core.manifest import Manifest
from . import weights
from .entry import SHORT, Entry
from .sealed import LARGEST
from .store import Store
from .verify import problems

State = Literal["whole", "damaged", "imported", "other-version"]
UNCONFIRMED = "imported, not confirmed by its hub"
NOT_MADE_HERE = "imported, its quantized weights were not made here"


@dataclass(frozen=True)
class Standing:
    """The state of the entry of a key, and why it is so. `entry`: None where its summary cannot be read."""

    key: str
    state: State
    reasons: tuple[str, ...]
    entry: Entry | None

    @property
    def said(self) -> str:
        """The state for people."""
        return "; ".join(self.reasons) or "ok"

    @property
    def removal(self) -> str:
        """The command that removes the entry."""
        return f"diffpipe pipelines remove {self.key[:SHORT]}"


def glance(store: Store, key: str) -> Standing:
    """The state of an entry as far as its summary and the kinds of its files tell: nothing else is opened."""
    entry = store.get(key)
    if entry is None:
        other = store.of_another_version(key)
        return Standing(key, "other-version" if other else "damaged", (str(other or "its summary is damaged"),), None)
    if wrong := tuple(_not_files(entry.folder)):
        return Standing(key, "damaged", wrong, entry)
    if entry.summary.imported:
        return Standing(key, "imported", (UNCONFIRMED,), entry)
    return Standing(key, "whole", (), entry)


def _not_files(folder: Path) -> Iterator[str]:
    for name, what in (("manifest.json", "its manifest"), ("sources.json", "its record of sources")):
        try:
            found = os.lstat(folder / name)
        except OSError:
            yield f"{what} is missing"
            continue
        if not stat.S_ISREG(found.st_mode):
            yield f"{what} is no file"
        elif found.st_size > LARGEST:
            yield f"{what} is damaged"


def standing(store: Store, key: str) -> Standing:
    """The state of an entry, its own files read."""
    entry, other = store.get(key), store.of_another_version(key)
    if other:
        return Standing(key, "other-version", (str(other),), entry)
    wrong = tuple(entry.faults() if entry else ["its summary is damaged"])
    if entry is None or wrong:
        return Standing(key, "damaged", wrong, entry)
    manifest = entry.manifest()
    if manifest.config.key != key:
        return Standing(key, "damaged", ("its configuration is not the one that its key stands for",), entry)
    doubts = tuple(unconfirmed(entry, manifest))
    return Standing(key, "imported" if doubts else "whole", doubts, entry)


def verified(store: Store, key: str) -> Standing:
    """The state of an entry, every file read whole."""
    found = standing(store, key)
    if found.entry is None or found.state not in ("whole", "imported"):
        return found
    wrong = tuple(problems(found.entry))
    return Standing(key, "damaged", wrong, found.entry) if wrong else found


def unconfirmed(entry: Entry, manifest: Manifest) -> Iterator[str]:
    """What of an entry came by a bundle, and is neither proved by its key nor confirmed since."""
    record = entry.sources()
    if record and record.imported and any(source.kind == "hub" for source in manifest.sources):
        yield UNCONFIRMED
    made = manifest.stored and weights.find(Store(entry.folder.parent.parent), manifest.stored.key)
    if made and made.imported:
        yield NOT_MADE_HERE
