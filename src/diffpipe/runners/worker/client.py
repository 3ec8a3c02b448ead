"""Requests made by a warm worker: the same results, files, messages and errors as made in this process."""

from __future__ import annotations

import base64
import itertools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...core.errors import DiffpipeError, UsageError
from ...core.flag import Flag
from ...core.request import Outcome, Request
from ...storage import urls
from ...storage.disk import identity, remove_leftovers, umask
from .. import inputs, local
from ..job import CHUNK, Ears, Job, error_of, outcome_of, request_json
from . import channel, lifecycle
from .channel import Lost, Message
from .lifecycle import Link

log = logging.getLogger("diffpipe.run")

AHEAD = 2  # groups of requests that are asked for at a time, so that the worker need not wait
TRIES = 3  # times an item is asked for when workers die of it
ENDED = "memory may have run out; --no-worker makes it in this process"
Groups = Iterator[list[Request]]


@dataclass
class _Asked:
    """Requests that go together, and how many of their outcomes have come. `free`: whether nothing lay at each one's
    paths. `tries`: how many workers died of them since one came."""

    requests: list[Request]
    free: list[bool]
    came: int = 0
    tries: int = 0

    def left(self) -> list[Request]:
        return self.requests[self.came :]


class Client:
    """One run's connection to a worker."""

    def __init__(self, link: Link, flags: Mapping[str, Flag], ears: Ears) -> None:
        self.link, self.flags, self.ears = link, flags, ears
        self.sent: dict[tuple[str, tuple[int, ...]], int] = {}  # files of the requests that were sent last
        self.numbers = itertools.count()

    def begin(self, job: Job, keep: float | None, steps: bool) -> bool:
        """Tell how; whether the worker makes requests side by side. Waits until its pipeline is loaded."""
        self.link.channel.send({"job": job.to_json(), "umask": umask(), "keep": keep, "steps": steps})
        while "ready" not in (message := self._next()):
            self._hear(message, [])
        return bool(message["ready"])

    def readable(self, requests: Sequence[Request]) -> tuple[list[Request], list[Outcome]]:
        """The requests whose input files can be opened here, and the outcomes of the others."""
        good: list[Request] = []
        bad: list[Outcome] = []
        for request in requests:
            try:
                for path in self.files(request):
                    with _explained(path):
                        _look(str(urls.local(path)))
                good.append(request)
            except DiffpipeError as error:
                bad.append(Outcome(request, error=error))
        return good, bad

    def ask(self, requests: Sequence[Request]) -> None:
        """Send requests, and before them the input files they name, opened here."""
        wanted: dict[tuple[str, tuple[int, ...]], int] = {}
        places: dict[str, tuple[int, str]] = {}
        for path in {path for request in requests for path in self.files(request)}:
            here = str(urls.local(path))
            with _explained(path):
                content = (path, () if inputs.once(here) else tuple(identity(Path(here))))
            number = wanted[content] = self.sent[content] if content in self.sent else self._send(here)
            places[path] = (number, _name(here))
        forget = [number for content, number in self.sent.items() if content not in wanted]
        self.sent = wanted
        made = [_absolute(request_json(request)) for request in requests]
        try:
            self.link.channel.send({"make": made, "files": places, "forget": forget})
        except ValueError as error:
            raise UsageError("the call arguments are too large for the worker", "use --no-worker") from error

    def outcomes(self, asked: _Asked) -> Iterator[Outcome]:
        """What becomes of the requests that were asked for first."""
        while asked.left():
            with _as_typed_too(asked):
                message = self._next()
            if "outcome" in message:
                yield self._came(message, asked)
            else:
                self._hear(message, asked.requests)

    def _came(self, message: Message, asked: _Asked) -> Outcome:
        """The outcome of the first request that is left."""
        request = asked.left()[0]
        log.info("%s", _told(message["log"], _folders(request.paths)))
        asked.came, asked.tries = asked.came + 1, 0
        return _as_typed(outcome_of(message["outcome"], request))

    def _next(self) -> Message:
        """The next message, which may be a sign of life. Raises Lost where none comes, the worker's error."""
        message = self.link.channel.receive(lifecycle.SILENCE)
        if message is None:
            lifecycle.kill(self.link.place)
            raise Lost("the worker did not answer")
        if "failed" in message:
            raise error_of(message["failed"])
        return message

    def last_words(self, waiting: deque[_Asked]) -> Iterator[Outcome]:
        """What a worker that takes nothing any more had said by then. Raises its error, as for a full disk of input
        files."""
        with suppress(Lost):
            while message := self.link.channel.receive(0):
                if "failed" in message:
                    raise error_of(message["failed"])
                if "outcome" in message and waiting:
                    yield self._came(message, waiting[0])
                    if not waiting[0].left():
                        waiting.popleft()

    def _hear(self, message: Message, requests: Sequence[Request]) -> None:
        if "step" in message:
            number, done, steps = message["step"]
            self.ears.on_step(requests[number], done, steps)
        elif "tell" in message:
            self.ears.tell(message["tell"])
        elif "picture" in message and self.ears.show:
            from ...engine.running.preview import picture_of

            self.ears.show(picture_of(base64.b64decode(message["picture"])))

    def files(self, request: Request) -> Iterator[str]:
        """The input files that a request names."""
        for value in lifecycle.media_of(request.arguments, self.flags).values():
            yield from value if isinstance(value, list) else [value]

    def _send(self, path: str) -> int:
        """Send a file, or a folder's files, in pieces; the number it is known by."""
        number = next(self.numbers)
        with _explained(path):
            for name in sorted(os.listdir(path)) if os.path.isdir(path) else [""]:
                if not os.path.isdir(whole := os.path.join(path, name) if name else path):
                    self._send_file(whole, number, os.path.join(_name(path), name) if name else _name(path))
        return number

    def _send_file(self, path: str, number: int, name: str) -> None:
        with open(path, "rb") as stream:
            piece: bytes | None = None
            while piece or piece is None:  # an empty file is one empty piece
                piece = stream.read(channel.PIECE)
                data = base64.b64encode(piece).decode()
                self.link.channel.send({"file": number, "name": name, "piece": data})


def run(
    link: Link,
    restart: Callable[[], Link],
    manifest: Mapping[str, Any],
    requests: Iterable[Request],
    job: Job,
    ears: Ears,
    keep: float | None = None,
    steps: bool = False,
    tries: int = TRIES,
) -> Iterator[Outcome]:
    """What becomes of each request, in order, made by a worker.

    `restart` gives another one where it dies; items it had begun are made again, to the same paths, until so many have
    died of one (`tries`), which has failed then. `keep`: seconds it is to stay loaded from now on, None for as it was
    told before. `steps`: whether each step is told. Raises DiffpipeError where workers die before they make anything.
    """
    flags = {flag["name"]: Flag.from_json(flag) for flag in manifest["flags"]}
    waiting: deque[_Asked] = deque()
    groups: Groups | None = None
    early = 0  # workers that were lost while nothing was asked of them
    while True:
        client = Client(link, flags, ears)
        try:
            side_by_side = client.begin(job, keep, steps)
            groups = groups or _groups(requests, manifest, job, side_by_side)
            for asked in list(waiting):
                yield from _ask(client, asked, waiting)
            while True:
                while len(waiting) < (AHEAD if job.several else 1) and (group := next(groups, None)):
                    readable, refused = client.readable(group)
                    yield from refused
                    if readable:
                        waiting.append(_Asked(readable, [_free(request) for request in readable]))
                        yield from _ask(client, waiting[-1], waiting)
                if not waiting:
                    return
                yield from client.outcomes(waiting[0])
                waiting.popleft()
        except Lost as error:
            log.info("the worker was lost: %s", error)
            yield from client.last_words(waiting)
            client.link.channel.close()
            early += not waiting
            if early >= tries:
                raise DiffpipeError("the worker ended while it loaded the pipeline", ENDED) from error
            if waiting:
                waiting.extendleft(reversed(list(_begun_again(waiting.popleft(), job.batch_size, tries))))
                yield from _given_up(client, waiting, tries)
            if not waiting and groups:
                if (next_one := next(groups, None)) is None:
                    return
                groups = itertools.chain([next_one], groups)
            ears.tell("the worker ended; another one goes on")
            link = restart()
        finally:
            client.link.channel.close()


def _ask(client: Client, asked: _Asked, waiting: deque[_Asked]) -> Iterator[Outcome]:
    """Ask for a group that waits; its outcomes, where its files cannot be sent. Raises Lost."""
    try:
        client.ask(asked.requests)
    except DiffpipeError as error:
        waiting.remove(asked)
        yield from (Outcome(request, error=error) for request in asked.requests)


def _begun_again(dead: _Asked, batch_size: int, tries: int) -> Iterator[_Asked]:
    """What is left of the group that a dead worker had, as it is made again: to the same paths.

    The worker may have died between an item's file and its word of it, so where nothing was before, what is there now
    may be replaced. Items that went together are made by themselves, to find the one that workers die of; those of one
    call not before they have had all their tries, as their last bits may differ then.
    """
    left, free = dead.left(), dead.free[dead.came :]
    for path in (path for request in left for path in request.paths if not urls.is_url(path)):
        remove_leftovers(Path(path))
    left = [replace(one, overwrite=one.overwrite or own) for one, own in zip(left, free, strict=True)]
    if len(left) > 1 and (batch_size == 1 or dead.tries + 1 >= tries):
        yield from (_Asked([request], [own]) for request, own in zip(left, free, strict=True))
    elif left:
        yield _Asked(left, free, tries=dead.tries + 1)


def _given_up(client: Client, waiting: deque[_Asked], tries: int) -> Iterator[Outcome]:
    """The outcomes of items that cannot be made again: so many workers died of them, or their input is gone."""
    for asked in list(waiting):
        times = f" {tries} times" if tries > 1 else ""
        error = DiffpipeError(f"the worker ended{times} while it made this", ENDED) if asked.tries >= tries else None
        if any(inputs.once(path) for request in asked.requests for path in client.files(request)):
            hint = "give a file, or use --no-worker"
            error = error or DiffpipeError("the worker ended, and its input was a pipe that cannot be read again", hint)
        if error:
            waiting.remove(asked)
            yield from (Outcome(request, error=error) for request in asked.requests)


def _free(request: Request) -> bool:
    """Whether nothing lies where a request's results go."""
    return not any(os.path.lexists(path) for path in request.paths if not urls.is_url(path))


def _groups(requests: Iterable[Request], manifest: Mapping[str, Any], job: Job, side_by_side: bool) -> Groups:
    """Requests in order, those together that one answer is about."""
    if not (side_by_side and job.several and job.batch_size == 1):
        yield from local.groups(requests, manifest, job.batch_size)
        return
    waiting = iter(requests)
    while several := list(itertools.islice(waiting, CHUNK)):
        yield several


def _absolute(request: dict[str, Any]) -> dict[str, Any]:
    """A request with its paths as they are from any folder: the worker has another current one."""
    paths = [path if urls.is_url(path) else os.path.abspath(path) for path in request["paths"]]
    return {**request, "paths": paths}


def _folders(paths: Iterable[str]) -> dict[str, str]:
    """The folders of relative paths: as the worker knows them -> as they were typed."""
    typed = [path for path in paths if not (os.path.isabs(path) or urls.is_url(path))]
    return {os.path.dirname(os.path.abspath(path)): os.path.dirname(path) for path in typed}


def _told(text: str, folders: Mapping[str, str]) -> str:
    """A text of the worker's with paths as they were typed."""
    for folder, typed in folders.items():
        if folder != os.sep:
            text = text.replace(os.path.join(folder, ""), os.path.join(typed, ""))
    return text


def _as_typed(outcome: Outcome) -> Outcome:
    """An outcome with relative paths, also in what is told of it, where the request has them."""
    folders = _folders(outcome.request.paths)

    def typed(path: str) -> str:
        folder, name = os.path.split(path)
        return os.path.join(folders.get(folder, folder), name)

    if outcome.error:
        outcome.error.message = _told(outcome.error.message, folders)
    made = tuple(replace(one, path=typed(one.path)) for one in outcome.artifacts)
    return replace(outcome, artifacts=made, warnings=tuple(_told(text, folders) for text in outcome.warnings))


@contextmanager
def _as_typed_too(asked: _Asked) -> Iterator[None]:
    """The same for an error that ends the run."""
    try:
        yield
    except DiffpipeError as error:
        error.message = _told(error.message, _folders(path for request in asked.left() for path in request.paths))
        raise


def _look(path: str) -> None:
    """Raises OSError for a file or folder that cannot be read. A pipe is opened only once."""
    inside = [os.path.join(path, name) for name in os.listdir(path)] if os.path.isdir(path) else [path]
    for one in inside:
        if not (inputs.once(one) or os.path.isdir(one)):
            with open(one, "rb"):
                pass


@contextmanager
def _explained(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = urls.shown(path)
        raise UsageError(f"cannot read {where}: {error.strerror}", "check the path and its permissions") from error


def _name(path: str) -> str:
    return os.path.basename(os.path.abspath(path)) or "file"
