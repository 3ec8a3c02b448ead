"""What lies in a model's folder on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..core.errors import UsageError

MOST_FILES = 100_000  # of a local folder; a sharded model has some hundreds


def files_in(root: Path, folder: str = "") -> Iterator[str]:
    """The files of a model below one of its folders, as paths in the model, without hidden ones.

    Raises UsageError as `_files_below` does.
    """
    for path in _files_below(root / folder):
        inside = path.relative_to(root)
        if path.is_file() and not any(part.startswith(".") for part in inside.parts):
            yield inside.as_posix()


def _files_below(root: Path) -> Iterator[Path]:
    """The files of a folder and those below it. Links are followed, as diffusers does: models share components so.

    Raises UsageError for a link that leads back to a folder it is in, and for a folder that no model can be.
    """
    count = 0
    for folder, folders, names in os.walk(root, followlinks=True):
        here = Path(folder).resolve()
        for name in folders:
            place = Path(folder, name)
            if place.is_symlink() and here.is_relative_to(place.resolve()):
                raise UsageError(f"{place.name} in {root.name} is a link to a folder that it is in", "remove the link")
        folders[:] = [name for name in folders if not name.startswith(".")]
        count += len(names)
        if count > MOST_FILES:
            problem = f"{root.name} holds more than {MOST_FILES} files: it is no model"
            raise UsageError(problem, "name the model's folder")
        yield from (Path(folder, name) for name in names)
