"""The folder that a run writes to, which must stay the same one: what was made before would be lost unsaid else."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from ..core.errors import CacheError
from ..core.request import Outcome
from ..storage import urls


def checked(outcomes: Iterable[Outcome], place: str) -> Iterator[Outcome]:
    """The outcomes as they come, once their files are seen to be there. `place`: the folder, or URL, of all of them.

    Raises CacheError where the folder was removed, renamed or replaced since the run began (or made it), or a file is
    gone before anybody was told of it.
    """
    path = urls.on_disk(place) if urls.is_url(place) else place
    first = _status(path)
    made = False
    for outcome in outcomes:
        if outcome.error is None:
            first, made = first or _status(path), True
            _check_same(path, first)
            _check_there(file.path for file in outcome.artifacts)
        yield outcome
    if made:
        _check_same(path, first)


def _check_same(path: str | None, first: os.stat_result | None) -> None:
    now = _status(path)
    if first and not (now and os.path.samestat(first, now)):
        hint = "see where it went, then make again what is missing: --resume does, where the journal is there"
        raise CacheError(f"the folder {path} was removed or replaced while the run wrote to it", hint)


def _check_there(paths: Iterable[str]) -> None:
    for path in paths:
        if not (urls.is_url(path) or os.path.lexists(path)):
            raise CacheError(f"{path} was removed while the run went on", "run it again, with --resume if it can")


def _status(path: str | None) -> os.stat_result | None:
    """What tells a folder from another; None where it is not there, or not of this machine."""
    try:
        return os.stat(path) if path else None
    except OSError:
        return None
