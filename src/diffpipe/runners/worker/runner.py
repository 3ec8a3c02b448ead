"""Requests made by a worker: the same results, files, messages and errors as made in this process, though it dies."""

from __future__ import annotations

import itertools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from ...core.errors import DiffpipeError
from ...core.manifest import Manifest
from ...core.request import Outcome, Request
from ...storage import urls
from ...storage.disk import remove_leftovers
from ..job import SIDE_BY_SIDE, Callbacks, Job
from ..outcomes import groups
from .channel import Lost
from .client import Client, PendingGroup
from .lifecycle import Link

log = logging.getLogger("diffpipe.run")

AHEAD = 2  # groups of requests that are asked for at a time, so that the worker need not wait
TRIES = 3  # times an item is asked for when workers die of it
ENDED = "memory may have run out; --no-worker makes it in this process"


def run_on_worker(
    link: Link,
    restart: Callable[[], Link],
    manifest: Manifest,
    requests: Iterable[Request],
    job: Job,
    callbacks: Callbacks,
    keep: float | None = None,
    steps: bool = False,
    tries: int = TRIES,
) -> Iterator[Outcome]:
    """What becomes of each request, in order, made by a worker.

    `restart` gives another one where it dies; items it had begun are made again, to the same paths, until so many have
    died of one (`tries`), which has failed then. `keep`: seconds it is to stay loaded from now on, None for as before.
    `steps`: whether each step is reported. Raises DiffpipeError where workers die before they make anything.
    """
    run = _Run(manifest, requests, job, tries)
    flags = manifest.flags_by_name
    while True:
        client = Client(link, flags, callbacks)
        try:
            side_by_side = client.begin(job, keep, steps)
            yield from run.made_by(client, side_by_side)
            return
        except Lost as error:
            log.info("the worker was lost: %s", error)
            yield from client.last_words(run.pending)
            client.link.channel.close()
            yield from run.lost(client, error)
            if run.finished():
                return
            callbacks.on_warning("the worker ended; another one goes on")
            link = restart()
        finally:
            client.link.channel.close()


class _Run:
    """What is left of a run, whatever becomes of the workers that make it."""

    def __init__(self, manifest: Manifest, requests: Iterable[Request], job: Job, tries: int) -> None:
        self.manifest, self.requests, self.job, self.tries = manifest, requests, job, tries
        self.pending: deque[PendingGroup] = deque()  # those that were asked for, in order
        self.groups: Iterator[list[Request]] | None = None  # None until a worker has said how it makes them
        self.early = 0  # workers that were lost while nothing was asked of them

    def made_by(self, client: Client, side_by_side: bool) -> Iterator[Outcome]:
        """Ask a worker for all that is left. Raises Lost."""
        self.groups = self.groups or _groups(self.requests, self.manifest, self.job, side_by_side)
        for group in list(self.pending):
            yield from self._ask(client, group)
        while True:
            yield from self._ask_ahead(client, self.groups)
            if not self.pending:
                return
            yield from client.outcomes(self.pending[0])
            self.pending.popleft()

    def _ask_ahead(self, client: Client, groups: Iterator[list[Request]]) -> Iterator[Outcome]:
        """Ask for as many groups as may be pending; the outcomes of requests that cannot be asked for."""
        most = AHEAD if self.job.several else 1
        while len(self.pending) < most and (group := next(groups, None)):
            readable, refused = client.readable(group)
            yield from refused
            if readable:
                self.pending.append(PendingGroup(readable, [_free(request) for request in readable]))
                yield from self._ask(client, self.pending[-1])

    def _ask(self, client: Client, group: PendingGroup) -> Iterator[Outcome]:
        """Ask for a pending group; its outcomes, where its files cannot be sent."""
        try:
            client.ask(group.requests)
        except DiffpipeError as error:
            self.pending.remove(group)
            yield from (Outcome(request, error=error) for request in group.requests)

    def lost(self, client: Client, error: Lost) -> Iterator[Outcome]:
        """Prepare what a dead worker had for the next one; the outcomes of what cannot be made again.

        Raises DiffpipeError where so many have died before they made anything.
        """
        self.early += not self.pending
        if self.early >= self.tries:
            raise DiffpipeError("the worker ended while it loaded the pipeline", ENDED) from error
        if self.pending:
            begun = self.pending.popleft()
            self.pending.extendleft(reversed(list(_begun_again(begun, self.job.batch_size, self.tries))))
            yield from self._given_up(client)

    def finished(self) -> bool:
        """Whether nothing is left, once a worker is lost."""
        if self.pending or not self.groups:
            return False
        following = next(self.groups, None)
        if following is not None:
            self.groups = itertools.chain([following], self.groups)
        return following is None

    def _given_up(self, client: Client) -> Iterator[Outcome]:
        """The outcomes of items that cannot be made again: so many workers died of them, or their input is gone."""
        for group in list(self.pending):
            times = f" {self.tries} times" if self.tries > 1 else ""
            dead = group.deaths >= self.tries
            error = DiffpipeError(f"the worker ended{times} while it made this", ENDED) if dead else None
            if error:
                self.pending.remove(group)
                yield from (Outcome(request, error=error) for request in group.requests)


def _begun_again(dead: PendingGroup, batch_size: int, tries: int) -> Iterator[PendingGroup]:
    """What is left of the group that a dead worker had, as it is made again: to the same paths.

    The worker may have died between an item's file and its word of it, so where nothing was before, what is there now
    may be replaced. Items that went together are made by themselves, to find the one that workers die of; those of one
    call not before they have had all their tries, as their last bits may differ then.
    """
    left, free = dead.left(), dead.free[dead.answered :]
    for path in (path for request in left for path in request.paths if not urls.is_url(path)):
        remove_leftovers(Path(path))
    left = [replace(one, overwrite=one.overwrite or own) for one, own in zip(left, free, strict=True)]
    if len(left) > 1 and (batch_size == 1 or dead.deaths + 1 >= tries):
        yield from (PendingGroup([request], [own]) for request, own in zip(left, free, strict=True))
    elif left:
        yield PendingGroup(left, free, deaths=dead.deaths + 1)


def _free(request: Request) -> bool:
    """Whether nothing lies where a request's results go."""
    return not any(os.path.lexists(path) for path in request.paths if not urls.is_url(path))


def _groups(requests: Iterable[Request], manifest: Manifest, job: Job, side_by_side: bool) -> Iterator[list[Request]]:
    """Requests in order, those together that one answer is about."""
    if not (side_by_side and job.several and job.batch_size == 1):
        yield from groups(requests, manifest, job.batch_size)
        return
    waiting = iter(requests)
    while several := list(itertools.islice(waiting, SIDE_BY_SIDE)):
        yield several
