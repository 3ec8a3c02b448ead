"""What becomes of requests, whatever is raised while they are made; and which of them go into one call."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

from ..core.errors import DeviceLost, DiffpipeError, Exit, let_go
from ..core.flag import MEDIA_KINDS
from ..core.item_warnings import ItemWarnings
from ..core.manifest import Manifest
from ..core.request import Artifact, Outcome, Request
from ..storage.disk import of_the_system

log = logging.getLogger("diffpipe.run")

Make: TypeAlias = Callable[[list[Request]], Sequence[Sequence[Artifact]]]  # the files of requests that go together


def groups(requests: Iterable[Request], manifest: Manifest, size: int) -> Iterator[list[Request]]:
    """Requests in order, up to `size` of them together where they differ in seed and prompts alone."""
    texts = {flag.name for flag in manifest.flags if flag.kind == "text" and "prompt" in flag.name}
    media = {flag.name for flag in manifest.flags if flag.kind in MEDIA_KINDS}

    def shared(request: Request) -> object:
        """What must be equal within a group; the request itself where it must be alone."""
        plain = all(isinstance(request.arguments[name], str) for name in texts & request.arguments.keys())
        if size == 1 or not plain or len(request.paths) > 1 or media & request.arguments.keys():
            return request
        same = {name: None if name in texts else value for name, value in request.arguments.items()}
        return same, request.fps

    for _, alike in itertools.groupby(requests, key=shared):
        while group := list(itertools.islice(alike, size)):
            yield group


def outcomes_of(group: list[Request], make: Make, before: ItemWarnings | None = None) -> list[Outcome]:
    """The outcomes of requests that are made together; where that fails, each is made by itself.

    `before`: what was warned of as the pipeline was loaded, which is true of all that it makes.

    Raises DiffpipeError for what would fail the others too: a full disk, a store that refuses results, a device that
    failed.
    """
    warnings = ItemWarnings(before, group)
    try:
        with warnings:
            made = make(group)
    except Exception as error:  # whatever happens to one item must not cost the others
        error = of_the_system(error) or error
        if isinstance(error, DeviceLost) or getattr(error, "exit_code", None) in (Exit.CACHE, Exit.ACCESS):
            raise error
        let_go(error)  # an outcome may be kept while the next item is made
        if len(group) > 1:
            log.info("a call of %d failed (%s): one by one", len(group), error)
            return [one for request in group for one in outcomes_of([request], make, before)]
        return [Outcome(group[0], warnings=warnings.of(group[0]), error=as_diffpipe_error(error))]
    return [Outcome(request, tuple(files), warnings.of(request)) for request, files in zip(group, made, strict=True)]


def as_diffpipe_error(error: Exception) -> DiffpipeError:
    """An error as it is shown to the user."""
    if isinstance(error, DiffpipeError):
        return error
    if limit := of_the_system(error):
        return limit
    ours = DiffpipeError(f"{type(error).__name__}: {error}", "this is a bug: run again with --traceback and report it")
    ours.__cause__ = error
    return ours


def log_line(outcome: Outcome) -> str:
    """An outcome as a line of the log."""
    if outcome.error:
        return f"seed {outcome.request.seed}: {outcome.error.message}"
    first = outcome.artifacts[0]
    return f"seed {outcome.request.seed}: {first.seconds:.2f} s -> {first.path}"
