"""Results as files: which path each has, what its text says, and how it comes to lie there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

from ...core import item_warnings
from ...core.canonical import JsonObject
from ...core.request import Artifact, Request
from ...storage import urls
from ...storage.disk import unwritable
from .. import media
from .remarks import remarks
from .results import Result

log = logging.getLogger("diffpipe.engine")

Text = Callable[[JsonObject], Mapping[str, str]]  # facts of a result -> what its file says of itself


def no_text(_facts: JsonObject) -> Mapping[str, str]:
    """For files that say nothing."""
    return {}


def write_all(request: Request, results: Sequence[Result], seconds: float, text: Text = no_text) -> list[Artifact]:
    """Write a request's results to its paths, in order. Raises DiffpipeError where one cannot be written."""
    paths = numbered(request.paths, results)
    with item_warnings.about(request):
        for remark in remarks(results):
            log.warning("%s", remark)
        return [
            write(result, path, request, seconds, _Late(partial(text, _facts(result, path, place, len(results)))))
            for place, (result, path) in enumerate(zip(results, paths, strict=True))
        ]


class _Late(Mapping[str, str]):
    """What a file says, asked for as it is written: what the writers of media warn of before that is part of it."""

    def __init__(self, said: Callable[[], Mapping[str, str]]) -> None:
        self._said = cache(said)

    def __getitem__(self, key: str) -> str:
        return self._said()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._said())

    def __len__(self) -> int:
        return len(self._said())


def numbered(paths: Sequence[str], results: Sequence[Result]) -> list[str]:
    """A path for each result: where there are more than planned, -2, -3, … after the last; extras by their role."""
    main = [result for result in results if not result.role]
    suffixes = range(2, len(main) - len(paths) + 2)
    more = [urls.beside(paths[-1], str(suffix)) for suffix in suffixes]
    extras = [result.role for result in results if result.role]
    numbers = [extras[:place].count(role) for place, role in enumerate(extras, 1)]
    marks = [role if number == 1 else f"{role}-{number}" for role, number in zip(extras, numbers, strict=True)]
    return [*paths, *more][: len(main)] + [urls.beside(paths[0], mark) for mark in marks]


def _facts(result: Result, path: str, place: int, count: int) -> JsonObject:
    """What a file's text may say of a result, which is at this place, from 0, among the `count` of its request."""
    form = Path(path).suffix[1:].lower() or "frames"
    return {"kind": result.kind, "format": form, "index": place, "of": count, **result.details()}


def write(result: Result, path: str, request: Request, seconds: float, text: Mapping[str, str]) -> Artifact:
    """Write one result to a path or URL; without the request's `overwrite`, beside a file that came there meanwhile."""
    try:
        written, stored = _placed(partial(result.write, overwrite=request.overwrite, text=text), path, request)
    except OSError as error:
        raise unwritable(urls.shown(path), error, "choose another --output") from error
    shown = urls.shown(written)
    if written != path:
        log.warning("%s was made by another process meanwhile; wrote %s", urls.shown(path), shown)
    return Artifact(shown, request.seed, request.index, result.kind, seconds, result.details(), stored)


def _placed(fill: Callable[[Path], Path], path: str, request: Request) -> tuple[str, JsonObject]:
    """Where it lies then, and at a URL what a journal notes of it."""
    if urls.is_url(path):
        return media.write_at(path, fill, overwrite=request.overwrite)
    return str(fill(Path(path))), {}
