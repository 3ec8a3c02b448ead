"""Requests made by a warm worker: the same results, files, messages and errors as made in this process."""

from __future__ import annotations

import base64
import itertools
import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import DiffpipeError, UsageError
from ..files import identity, remove_leftovers
from ..specs import Flag, Outcome, Request
from . import channel, local, warm
from .channel import Lost, Message
from .job import CHUNK, Ears, Job, error_of, outcome_of, request_json
from .warm import Link

log = logging.getLogger("diffpipe.run")

AHEAD = 2  # groups of requests that are asked for at a time, so that the worker need not wait
TRIES = 3  # times an item is asked for when workers die of it
Groups = Iterator[list[Request]]


@dataclass
class _Asked:
    """Requests that go together, and how many of their outcomes have come. `tries`: how many workers had them."""

    requests: list[Request]
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
        self.link.channel.send({"job": job.to_json(), "umask": _umask(), "keep": keep, "steps": steps})
        while "ready" not in (message := self._next()):
            self._hear(message, [])
        return bool(message["ready"])

    def ask(self, requests: Sequence[Request]) -> None:
        """Send requests, and before them the input files they name, opened here."""
        wanted: dict[tuple[str, tuple[int, ...]], int] = {}
        places: dict[str, tuple[int, str]] = {}
        for path in {path for request in requests for path in self._files(request)}:
            content = (path, tuple(identity(Path(path))))
            number = wanted[content] = self.sent[content] if content in self.sent else self._send(path)
            places[path] = (number, _name(path))
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
            message = self._next()
            if "outcome" in message:
                log.info("%s", message["log"])
                request = asked.left()[0]
                asked.came += 1
                yield _as_typed(outcome_of(message["outcome"], request))
            else:
                self._hear(message, asked.requests)

    def _next(self) -> Message:
        """The next message, which may be a sign of life. Raises Lost where none comes, the worker's error."""
        message = self.link.channel.receive(warm.SILENCE)
        if message is None:
            warm.kill(self.link.said["pid"])
            raise Lost("the worker did not answer")
        if "failed" in message:
            raise error_of(message["failed"])
        return message

    def _hear(self, message: Message, requests: Sequence[Request]) -> None:
        if "step" in message:
            number, done, steps = message["step"]
            self.ears.on_step(requests[number], done, steps)
        elif "tell" in message:
            self.ears.tell(message["tell"])
        elif "picture" in message and self.ears.show:
            from ..engine.preview import picture_of

            self.ears.show(picture_of(base64.b64decode(message["picture"])))

    def _files(self, request: Request) -> Iterator[str]:
        for value in warm.media_of(request.arguments, self.flags).values():
            yield from value if isinstance(value, list) else [value]

    def _send(self, path: str) -> int:
        """Send a file, or a folder's files, in pieces; the number it is known by."""
        number = next(self.numbers)
        inside = sorted(os.listdir(path)) if os.path.isdir(path) else [""]
        try:
            for name in inside:
                if not os.path.isdir(whole := os.path.join(path, name) if name else path):
                    self._send_file(whole, number, os.path.join(_name(path), name) if name else _name(path))
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}", "check the path and its permissions") from error
        return number

    def _send_file(self, path: str, number: int, name: str) -> None:
        with open(path, "rb") as stream:
            while (piece := stream.read(channel.PIECE)) or not stream.tell():
                data = base64.b64encode(piece).decode()
                self.link.channel.send({"file": number, "name": name, "piece": data})
                if not piece:
                    break


def run(
    link: Link,
    restart: Callable[[], Link],
    manifest: Mapping[str, Any],
    requests: Iterable[Request],
    job: Job,
    ears: Ears,
    keep: float | None = None,
    steps: bool = False,
) -> Iterator[Outcome]:
    """What becomes of each request, in order, made by a worker.

    `restart` gives another one where it dies; items it had begun are made again, to the same paths. `keep`: seconds it
    is to stay loaded from now on, None for as it was told before. `steps`: whether each step is told.
    """
    flags = {flag["name"]: Flag.from_json(flag) for flag in manifest["flags"]}
    waiting: deque[_Asked] = deque()
    groups: Groups | None = None
    while True:
        client = Client(link, flags, ears)
        try:
            side_by_side = client.begin(job, keep, steps)
            groups = groups or _groups(requests, manifest, job, side_by_side)
            for asked in waiting:
                client.ask(asked.left())
            while True:
                while len(waiting) < (AHEAD if job.several else 1) and (group := next(groups, None)):
                    waiting.append(_Asked(group))
                    client.ask(group)
                if not waiting:
                    return
                yield from client.outcomes(waiting[0])
                waiting.popleft()
        except Lost as error:
            log.info("the worker was lost: %s", error)
            client.link.channel.close()
            _again(waiting)
            yield from _given_up(waiting, TRIES if job.several else 1)
            if not waiting and not job.several:
                return
            ears.tell("the worker ended; another goes on")
            link = restart()
        finally:
            client.link.channel.close()


def _again(waiting: deque[_Asked]) -> None:
    """Let what a dead worker had be made again: what it may have left at the same paths is its own."""
    for asked in waiting:
        for request in (left := asked.left()):
            for path in request.paths:
                remove_leftovers(Path(path))
        asked.requests, asked.came = [replace(request, overwrite=True) for request in left], 0
    if waiting:
        waiting[0].tries += 1
        if not waiting[0].requests:
            waiting.popleft()


def _given_up(waiting: deque[_Asked], tries: int) -> Iterator[Outcome]:
    """The outcomes of a group that so many workers have died of."""
    if waiting and waiting[0].tries >= tries:
        times = f"{tries} times" if tries > 1 else ""
        for request in waiting.popleft().requests:
            problem = f"the worker ended {times} while it made this".replace("  ", " ")
            hint = "memory may have run out; --no-worker makes it in this process"
            yield Outcome(request, error=DiffpipeError(problem, hint))


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
    return {**request, "paths": [os.path.abspath(path) for path in request["paths"]]}


def _as_typed(outcome: Outcome) -> Outcome:
    """An outcome with relative paths where the request has them."""
    asked = outcome.request.paths
    if not asked or os.path.isabs(asked[0]):
        return outcome
    folder = os.path.dirname(asked[0])
    made = (replace(one, path=os.path.join(folder, os.path.basename(one.path))) for one in outcome.artifacts)
    return replace(outcome, artifacts=tuple(made))


def _name(path: str) -> str:
    return os.path.basename(os.path.abspath(path)) or "file"


def _umask() -> int:
    """This process's umask, which can only be read by setting it."""
    if sys.platform == "win32":
        return 0
    os.umask(found := os.umask(0o077))
    return found
