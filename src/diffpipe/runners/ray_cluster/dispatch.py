"""Requests on their way to a cluster's workers: drawn by a thread, a few ahead, and kept until they come back."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from ...core.manifest import Manifest
from ...core.request import Request
from ..job import CHUNK, Job
from ..wire import request_json
from . import node
from .cluster import ANSWER

AHEAD = 3  # rows a worker: the one in work, the next at its door, and one to give
ROW_SECONDS = 0.5  # of work in a row, at least: a row costs the driver some 10 ms (tools/measure_ray.py memory)
DRIVER_SECONDS = 0.02  # between two rows at least: with more workers, each gets longer rows
MOST = 32  # requests in a row
LOOK = 1.0  # seconds between looks at how the workers are


@dataclass
class Flow:
    """Requests on their way: drawn by a thread, given to the feed in rows, and kept until their row comes back."""

    feed: Any
    requests: Iterator[Request]
    job: Job
    workers: int
    manifest: Manifest
    rows: dict[int, list[Request]] = field(default_factory=dict)
    seconds: float = 0.0  # an item takes, 0 while none was made
    given: int = 0
    ended: bool = False
    stopping: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None

    def __post_init__(self) -> None:
        self.free = threading.Semaphore(self.workers * AHEAD)
        self.media = node.media_names(self.manifest.flags_by_name)

    @contextmanager
    def started(self, ray: Any, watch: Callable[[int], None]) -> Iterator[None]:
        """Draw requests and look after the feed for as long as the block runs."""
        threads = [
            threading.Thread(target=self._draw, daemon=True),
            threading.Thread(target=self._look_after, args=(ray, watch), daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stopping.set()
            self.free.release()
            threads[1].join()
            with suppress(Exception):
                ray.kill(self.feed)

    def size(self) -> int:
        """How many requests the next row gets: those of one call, or so many that rows are worth the driver's time."""
        if not self.job.several:
            return 1
        if self.manifest.config.placement.cpu_offload != "none" and self.job.batch_size == 1:
            return CHUNK  # they may be made side by side
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

    def _give(self, rows: Mapping[int, list[Request]], *, all_of: bool = False, again: bool = False) -> None:
        given = {number: self._told(drawn) for number, drawn in rows.items()}
        self.feed.give.remote(given, self.given, ended=self.ended, all_of=all_of, again=again)

    def _told(self, drawn: list[Request]) -> tuple[list[dict[str, Any]], list[str]]:
        """A row as the feed takes it, with the input files of its requests."""
        values = [r.arguments[name] for r in drawn for name in self.media & r.arguments.keys()]
        listed = [one for value in values for one in (value if isinstance(value, list) else [value])]
        return [request_json(request) for request in drawn], listed

    def _look_after(self, ray: Any, watch: Callable[[int], None]) -> None:
        """Tell of the workers. A feed that is new, or came back from a kill with nothing, is told what is in work."""
        known = None
        while not self.stopping.is_set():
            with suppress(ray.exceptions.RayError):
                life, busy = ray.get(self.feed.state.remote(), timeout=ANSWER)
                if life != known:
                    self._give(dict(self.rows), all_of=True, again=known is not None)
                known = life
                watch(busy)
            self.stopping.wait(LOOK)

    def back(self, number: int, seconds: float) -> list[Request]:
        """A row's requests, once: [] for one that came before."""
        if (drawn := self.rows.pop(number, None)) is None:
            return []
        self.seconds = (self.seconds or seconds) * 0.8 + seconds * 0.2
        self.feed.drop.remote(number)
        self.free.release()
        return drawn
