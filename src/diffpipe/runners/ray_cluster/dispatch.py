"""Requests on their way to a cluster's workers: drawn by a thread, a few ahead, and kept until they come back."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...core.manifest import Manifest
from ...core.request import Request
from .. import inputs
from ..job import SIDE_BY_SIDE, Job
from .nodes import ANSWER_TIMEOUT
from .request_queue import Row

if TYPE_CHECKING:
    from ray.actor import ActorHandle

AHEAD = 3  # rows a worker: the one in work, the next one for it, and one to give
ROW_SECONDS = 0.5  # of work in a row, at least: a row costs the driver some 10 ms (tools/measure_ray.py memory)
DRIVER_SECONDS = 0.02  # between two rows at least: with more workers, each gets longer rows
MOST = 32  # requests in a row
POLL = 1.0  # seconds between looks at how the workers are


@dataclass
class Dispatcher:
    """Draws requests in a thread, gives them to the queue in rows, and keeps each row until it comes back."""

    queue: ActorHandle
    requests: Iterator[Request]
    job: Job
    workers: int
    manifest: Manifest
    rows: dict[int, Sequence[Request]] = field(default_factory=dict)
    seconds: float = 0.0  # an item takes, 0 while none was made
    given: int = 0
    ended: bool = False
    stopping: threading.Event = field(default_factory=threading.Event)
    giving: threading.Lock = field(default_factory=threading.Lock)
    error: BaseException | None = None

    def __post_init__(self) -> None:
        self.free = threading.Semaphore(self.workers * AHEAD)
        self.flags = self.manifest.flags_by_name

    @contextmanager
    def started(self, watch: Callable[[int], None]) -> Iterator[None]:
        """Draw requests and look after the queue for as long as the block runs."""
        import ray

        drawing = threading.Thread(target=self._draw, daemon=True)
        looking = threading.Thread(target=self._look_after, args=(watch,), daemon=True)
        for thread in (drawing, looking):
            thread.start()
        try:
            yield
        finally:
            with self.giving:  # the thread that draws may outlive the run, as whoever it asks for requests may wait
                self.stopping.set()
            self.free.release()
            looking.join()
            with suppress(Exception):
                ray.kill(self.queue)

    def size(self) -> int:
        """How many requests the next row gets: those of one call, or so many that rows are worth the driver's time."""
        if not self.job.several:
            return 1
        if self.manifest.config.placement.cpu_offload != "none" and self.job.batch_size == 1:
            return SIDE_BY_SIDE  # they may be made side by side
        wanted = max(ROW_SECONDS, self.workers * DRIVER_SECONDS)
        fast = min(MOST, math.ceil(wanted / self.seconds)) if self.seconds else 1
        return max(self.job.batch_size, fast // self.job.batch_size * self.job.batch_size)

    def _draw(self) -> None:
        try:
            for number in itertools.count():
                self.free.acquire()
                drawn = [] if self.stopping.is_set() else list(itertools.islice(self.requests, self.size()))
                if not drawn or self.stopping.is_set():
                    break
                self.rows[number] = drawn
                self.given = number + 1
                self._give({number: drawn})
        except BaseException as error:
            self.error = error
        self.ended = True
        self._give({})

    def _give(self, rows: Mapping[int, Sequence[Request]], *, all_of: bool = False, again: bool = False) -> None:
        given = {number: self._row(drawn) for number, drawn in rows.items()}
        with self.giving:
            if not self.stopping.is_set():  # after the run Ray is shut down: a call would end this process at once
                self.queue.give.remote(given, self.given, ended=self.ended, all_of=all_of, again=again)

    def _row(self, drawn: Sequence[Request]) -> Row:
        media = (path for request in drawn for path in inputs.paths(inputs.media_of(request.arguments, self.flags)))
        return Row(tuple(drawn), frozenset(media))

    def _look_after(self, watch: Callable[[int], None]) -> None:
        """Report how many workers are busy. A queue that is new, or came back empty from a kill, gets what is in
        work."""
        import ray

        known = None
        while not self.stopping.is_set():
            with suppress(ray.exceptions.RayError):
                life, busy = ray.get(self.queue.state.remote(), timeout=ANSWER_TIMEOUT)
                if life != known:
                    self._give(dict(self.rows), all_of=True, again=known is not None)
                known = life
                watch(busy)
            self.stopping.wait(POLL)

    def back(self, number: int, seconds: float) -> Sequence[Request]:
        """A row's requests, once: none for one that came before. `seconds`: an item of it took."""
        drawn = self.rows.pop(number, None)
        if drawn is None:
            return ()
        self.seconds = (self.seconds or seconds) * 0.8 + seconds * 0.2
        self.queue.drop.remote(number)
        self.free.release()
        return drawn
