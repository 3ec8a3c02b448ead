"""Paths of results as the user typed them: a worker has another current folder, and knows them from the root on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from ...core.errors import DiffpipeError
from ...core.request import Outcome, Request
from ...storage import urls


def absolute(request: Request) -> Request:
    """A request with its paths as they are from any folder."""
    paths = (path if urls.is_url(path) else os.path.abspath(path) for path in request.paths)
    return replace(request, paths=tuple(paths))


def as_typed(text: str, paths: Iterable[str]) -> str:
    """A text of the worker's with paths as they were typed."""
    for folder, typed in _folders(paths).items():
        if folder != os.sep:
            text = text.replace(os.path.join(folder, ""), os.path.join(typed, ""))
    return text


def outcome_as_typed(outcome: Outcome) -> Outcome:
    """An outcome with relative paths, also in what is said of it, where the request has them."""
    paths = outcome.request.paths
    folders = _folders(paths)

    def typed(path: str) -> str:
        folder, name = os.path.split(path)
        return os.path.join(folders.get(folder, folder), name)

    if outcome.error:
        outcome.error.message = as_typed(outcome.error.message, paths)
    made = tuple(replace(one, path=typed(one.path)) for one in outcome.artifacts)
    return replace(outcome, artifacts=made, warnings=tuple(as_typed(text, paths) for text in outcome.warnings))


@contextmanager
def errors_as_typed(requests: Sequence[Request]) -> Iterator[None]:
    """The same for an error that ends the run."""
    try:
        yield
    except DiffpipeError as error:
        error.message = as_typed(error.message, (path for request in requests for path in request.paths))
        raise


def _folders(paths: Iterable[str]) -> Mapping[str, str]:
    """The folders of relative paths: as the worker knows them -> as they were typed."""
    typed = [path for path in paths if not (os.path.isabs(path) or urls.is_url(path))]
    return {os.path.dirname(os.path.abspath(path)): os.path.dirname(path) for path in typed}
