"""One run's connection to a worker: it sends requests and their input files, and hears what becomes of them."""

from __future__ import annotations

import itertools
import logging
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ...core.errors import DiffpipeError, UsageError
from ...core.flag import Flag
from ...core.parsing import Misfit
from ...core.request import Outcome, Request
from ...storage import fetching, urls
from ...storage.digests import identity
from ...storage.disk import umask, unreadable
from ...storage.opening import open_regular
from .. import inputs
from ..job import Callbacks, Job
from . import channel, lifecycle, protocol
from .channel import Lost
from .lifecycle import Link
from .protocol import Answered, Begin, Failed, FilePiece, FromWorker, Make, Notice, Picture, Ready, Step
from .typed_paths import absolute, as_typed, errors_as_typed, outcome_as_typed

log = logging.getLogger("diffpipe.run")

Content: TypeAlias = tuple[str, tuple[int, ...]]  # an input file: its path, and what tells its content from another


@dataclass
class PendingGroup:
    """Requests that go together, and how many were answered. `free`: whether nothing lay at each one's paths. `deaths`:
    how many workers died of them since an answer came."""

    requests: Sequence[Request]
    free: Sequence[bool]
    answered: int = 0
    deaths: int = 0

    def left(self) -> Sequence[Request]:
        return self.requests[self.answered :]


class Client:
    """One run's connection to a worker. Its methods raise Lost where the worker is gone."""

    def __init__(self, link: Link, flags: Mapping[str, Flag], callbacks: Callbacks) -> None:
        self.link, self.flags, self.callbacks = link, flags, callbacks
        self.sent: dict[Content, int] = {}  # files of the requests that were sent last, and their numbers
        self.numbers = itertools.count()

    def begin(self, job: Job, keep: float | None, steps: bool) -> bool:
        """Say how; whether the worker makes requests side by side. Waits until its pipeline is loaded."""
        self.link.channel.send(Begin(job, umask(), keep, steps).to_json())
        while not isinstance(message := self._next(), Ready):
            self._hear(message, [])
        return message.side_by_side

    def readable(self, requests: Sequence[Request]) -> tuple[list[Request], list[Outcome]]:
        """The requests whose input files can be opened here, and the outcomes of the others."""
        good: list[Request] = []
        bad: list[Outcome] = []
        for request in requests:
            try:
                for path in self.files(request):
                    with _explained(path):
                        _check_readable(str(fetching.local(path)))
                good.append(request)
            except DiffpipeError as error:
                bad.append(Outcome(request, error=error))
        return good, bad

    def ask(self, requests: Sequence[Request]) -> None:
        """Send requests, and before them the input files they name, opened here."""
        needed: dict[Content, int] = {}
        files: dict[str, tuple[int, str]] = {}
        for path in {path for request in requests for path in self.files(request)}:
            here = str(fetching.local(path))
            with _explained(path):
                content = (path, tuple(identity(Path(here))))
            number = needed[content] = self.sent[content] if content in self.sent else self._send(here)
            files[path] = (number, _name(here))
        forget = tuple(number for content, number in self.sent.items() if content not in needed)
        self.sent = needed
        try:
            self.link.channel.send(Make(tuple(map(absolute, requests)), files, forget).to_json())
        except ValueError as error:
            raise UsageError("the call arguments are too large for the worker", "use --no-worker") from error

    def outcomes(self, group: PendingGroup) -> Iterator[Outcome]:
        """What becomes of the requests that were asked for first."""
        while group.left():
            with errors_as_typed(group.left()):
                message = self._next()
            if isinstance(message, Answered):
                yield self._answered(message, group)
            else:
                self._hear(message, group.requests)

    def _answered(self, message: Answered, group: PendingGroup) -> Outcome:
        """The outcome of the first request that is left."""
        request = group.left()[0]
        log.info("%s", as_typed(message.log, request.paths))
        group.answered, group.deaths = group.answered + 1, 0
        return outcome_as_typed(message.answer.outcome(request))

    def _next(self) -> FromWorker:
        """The next message, which may be a sign of life. Raises the worker's error."""
        found = self._received(lifecycle.HEARTBEAT_TIMEOUT)
        if found is None:
            lifecycle.kill(self.link.place)
            raise Lost("the worker did not answer")
        return found

    def _received(self, timeout: float) -> FromWorker | None:
        """The next message; None where none begins in time. Raises the worker's error."""
        message = self.link.channel.receive(timeout)
        if message is None:
            return None
        try:
            found = protocol.from_worker(message)
        except Misfit as error:
            raise Lost(str(error)) from error
        if isinstance(found, Failed):
            raise found.error
        return found

    def last_words(self, pending: deque[PendingGroup]) -> Iterator[Outcome]:
        """What a worker that takes nothing any more had said by then. Raises its error, as for a full disk of input
        files."""
        with suppress(Lost):
            while message := self._received(0):
                if isinstance(message, Answered) and pending:
                    yield self._answered(message, pending[0])
                    if not pending[0].left():
                        pending.popleft()

    def _hear(self, message: FromWorker, requests: Sequence[Request]) -> None:
        if isinstance(message, Step) and message.place < len(requests):
            self.callbacks.on_step(requests[message.place], message.done, message.steps)
        elif isinstance(message, Notice):
            self.callbacks.on_warning(message.line)
        elif isinstance(message, Picture) and self.callbacks.on_preview:
            from ...engine.running.preview import picture_of

            self.callbacks.on_preview(picture_of(message.data))

    def files(self, request: Request) -> Iterator[str]:
        """The input files that a request names."""
        return inputs.paths(inputs.media_of(request.arguments, self.flags))

    def _send(self, path: str) -> int:
        """Send a file, or a folder's files, in pieces; the number it is known by."""
        number = next(self.numbers)
        with _explained(path):
            for name in sorted(os.listdir(path)) if os.path.isdir(path) else [""]:
                if not os.path.isdir(whole := os.path.join(path, name) if name else path):
                    self._send_file(whole, number, os.path.join(_name(path), name) if name else _name(path))
        return number

    def _send_file(self, path: str, number: int, name: str) -> None:
        with open_regular(path) as stream:
            piece: bytes | None = None
            while piece or piece is None:  # an empty file is one empty piece
                piece = stream.read(channel.PIECE)
                self.link.channel.send(FilePiece(number, name, piece).to_json())


def _check_readable(path: str) -> None:
    """Raises OSError for a file or folder that cannot be read."""
    inside = [os.path.join(path, name) for name in os.listdir(path)] if os.path.isdir(path) else [path]
    for one in inside:
        if not os.path.isdir(one):
            open_regular(one).close()


@contextmanager
def _explained(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = urls.shown(path)
        raise unreadable(f"cannot read {where}", error) from error


def _name(path: str) -> str:
    return os.path.basename(os.path.abspath(path)) or "file"
