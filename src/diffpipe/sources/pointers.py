"""Pointers of Git LFS: what lies in a clone in the place of large files that were not fetched."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import UsageError
from ..storage.opening import open_regular

# git-lfs, docs/spec.md: a pointer begins with its version, and is smaller than 1024 bytes.
BEGINNING = b"version https://git-lfs.github.com/spec/"
LARGEST = 1024


def refuse_pointer(path: Path) -> None:
    """Raises UsageError for a file that is such a pointer; one that cannot be read is left to who reads it."""
    try:
        if path.stat().st_size >= LARGEST:
            return
        with open_regular(path) as file:
            head = file.read(len(BEGINNING))
    except OSError:
        return
    if head == BEGINNING:
        place = f"{path.parent.name}/{path.name}" if path.parent.name else path.name
        raise UsageError(
            f"{place} is a pointer of Git LFS in the place of the file itself",
            "run git lfs pull in the clone, or name the repository on the hub",
        )
