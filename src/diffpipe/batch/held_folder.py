"""The folder that a run writes to, which must stay the same one: what was made before would be lost unsaid else."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from ..core.errors import CacheError
from ..core.request import Outcome
from ..storage import urls
from ..storage.opening import open_folder


def checked(outcomes: Iterable[Outcome], place: str) -> Iterator[Outcome]:
    """The outcomes as they come, once their files are seen to be there. `place`: the folder, or URL, of all of them.

    The folder is held open: only so does it keep its number, by which it is known again, on every file system, and no
    other gets that. Raises CacheError where it was removed, renamed or replaced since the run began (or made it), or a
    file is gone before anybody was told of it.
    """
    path = urls.on_disk(place) if urls.is_url(place) else place
    held = _held(path)
    made = False
    try:
        for outcome in outcomes:
            if outcome.error is None:
                held, made = _held(path) if held is None else held, True
                _check_same(path, held)
                _check_there(file.path for file in outcome.artifacts)
            yield outcome
        if made:
            _check_same(path, held)
    finally:
        if held is not None:
            os.close(held)


def _held(path: str | None) -> int | None:
    """A descriptor of a folder; None where it is not there yet, not of this machine, or of a system that opens none."""
    try:
        return open_folder(path) if path else None
    except OSError:
        return None


def _check_same(path: str | None, held: int | None) -> None:
    if path and held is not None and not _is_at(path, held):
        hint = "see where it went, then make again what is missing: --resume does, where the journal is there"
        raise CacheError(f"the folder {path} was removed or replaced while the run wrote to it", hint)


def _is_at(path: str, held: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(held))
    except OSError:
        return False


def _check_there(paths: Iterable[str]) -> None:
    for path in paths:
        if not (urls.is_url(path) or os.path.lexists(path)):
            raise CacheError(f"{path} was removed while the run went on", "run it again, with --resume if it can")
