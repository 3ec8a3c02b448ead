"""Results that go to URLs, made by another process of this machine, which need not have this one's credentials."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from ...core.request import Artifact, Outcome, Request
from ...storage import urls

Make = Callable[[Iterator[Request]], Iterator[Outcome]]


def run(make: Make, requests: Iterable[Request]) -> Iterator[Outcome]:
    """What `make`, a runner in another process, makes of requests; what goes to URLs is published by this process.

    Raises CacheError and AccessError where it cannot be.
    """
    asked: dict[int, tuple[Request, Path]] = {}  # by index: a request as it came, and the folder where it is made

    def here() -> Iterator[Request]:
        for request in requests:
            if any(map(urls.is_url, request.paths)):
                folder = Path(tempfile.mkdtemp(prefix="diffpipe-"))
                asked[request.index] = request, folder
                yield _within(folder, request)
            else:
                yield request

    try:
        for outcome in make(here()):
            if outcome.request.index not in asked:
                yield outcome
                continue
            request, folder = asked[outcome.request.index]
            yield _published(outcome, request)
            del asked[request.index]
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        for _, folder in asked.values():
            shutil.rmtree(folder, ignore_errors=True)


def _within(folder: Path, request: Request) -> Request:
    """A request that is made in a folder: each path in one of its own, as more results may come to lie beside it."""
    paths = [folder / str(place) / url.rpartition("/")[2] for place, url in enumerate(request.paths)]
    for path in paths:
        path.parent.mkdir()
    return replace(request, paths=tuple(map(str, paths)))


def _published(outcome: Outcome, request: Request) -> Outcome:
    """The outcome of a request as it came, its files put where it wants them."""
    published = [_put(made, request) for made in outcome.artifacts]
    moved = [f"{asked} was made by another process meanwhile; wrote {made.path}"
        for made, asked in published if made.path != asked]  # fmt: skip
    artifacts = tuple(made for made, _ in published)
    return replace(outcome, request=request, artifacts=artifacts, warnings=(*outcome.warnings, *moved))


def _put(made: Artifact, request: Request) -> tuple[Artifact, str]:
    """A file at its URL, or beside it as it lies beside its own path here; and the URL that was asked for."""
    from ...engine import media

    path = Path(made.path)
    url = f"{request.paths[int(path.parent.name)].rpartition('/')[0]}/{path.name}"
    written, stored = media.publish_at(path, url, overwrite=request.overwrite)
    return replace(made, path=urls.shown(written), stored=stored), urls.shown(url)
