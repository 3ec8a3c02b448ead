"""Where the workers of a cluster get their requests: an actor beside the driver, a few rows of requests in it.

The driver cannot be asked by workers, and Ray Data takes no iterator that goes on living, so the dataset that Ray Data
moves holds numbers of rows alone; what a number stands for is fetched here when a worker begins with it. So a request
is drawn no earlier than it is needed, a worker that takes a row after another one died with it knows that, and what is
in memory is what is in work. The driver can give all of it again, should this process be killed.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...core.request import Request
from .input_files import Files, State, content, state


@dataclass(frozen=True)
class Row:
    """Requests that a worker makes one after the other, and the input files that it may ask for."""

    requests: tuple[Request, ...]
    media: frozenset[str]


@dataclass(frozen=True)
class TakenRow:
    """What a worker gets of a row. `again`: whether another worker had begun with it. `deaths`: how many workers died
    with the request at each place."""

    requests: tuple[Request, ...]
    again: bool
    deaths: Mapping[int, int]


@dataclass
class _RowInWork:
    """A row, `worker`: who has it, `current`: the place of the request in work, `deaths`: how many workers died with
    each, `again`: whether somebody had it before."""

    row: Row
    again: bool = False
    worker: str = ""
    current: int | None = None
    deaths: Counter[int] = field(default_factory=Counter)


class RequestQueue:
    """Rows by number, while they are in work. An actor: what the driver and the workers call goes in turns."""

    def __init__(self, folder: str) -> None:
        os.chdir(folder)
        self.life = secrets.token_hex(8)
        self.rows: dict[int, _RowInWork] = {}
        self.given = 0  # rows so far: the numbers below are known, here or done
        self.ended = False
        self.whole = False  # whether all that was given is here: not after this process was killed
        self.changed = asyncio.Condition()

    # The driver

    async def give(self, rows: Mapping[int, Row], given: int, *, ended: bool, all_of: bool, again: bool) -> None:
        """Rows, how many there are so far, and whether there are no more.

        `all_of`: they are all that are in work; workers get nothing before. `again`: an earlier life had them.
        """
        async with self.changed:
            for number, row in rows.items():
                self.rows.setdefault(number, _RowInWork(row, again))
            self.given, self.ended = max(self.given, given), self.ended or ended
            self.whole = self.whole or all_of
            self.changed.notify_all()

    async def drop(self, number: int) -> None:
        """Forget a row that is done."""
        self.rows.pop(number, None)

    async def state(self) -> tuple[str, int]:
        """Which life this is, and how many workers have a row."""
        return self.life, len({row.worker for row in self.rows.values() if row.worker})

    # The source of row numbers, and the workers

    async def more(self, number: int) -> bool:
        """Whether there is a row of that number; comes when that is known."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.whole and (self.given > number or self.ended))
        return self.given > number

    async def take(self, number: int, worker: str) -> TakenRow | None:
        """A row for a worker; None for one that is done."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.whole and self.given > number)
        found = self.rows.get(number)
        if found is None:
            return None
        if found.worker and found.current is not None:
            found.deaths[found.current] += 1
        again, found.again = found.again or bool(found.worker), True
        found.worker = worker
        requests = found.row.requests
        found.current = 0 if again or len(requests) == 1 else None  # which of several killed the first worker, if so
        return TakenRow(requests, again, dict(found.deaths))

    async def begun(self, number: int, place: int | None) -> None:
        """Which request of a row that is made again is in work now, None for none."""
        if found := self.rows.get(number):
            found.current = place

    async def read(self, number: int, path: str, known: State | None) -> tuple[State, Files | None]:
        """An input file of a row: what tells its content from another, and the content unless that is `known`.

        Raises PermissionError for a file that the row does not read.
        """
        found = self.rows.get(number)
        if found is None or path not in found.row.media:
            raise PermissionError(f"row {number} does not read {Path(path).name}")
        now = state(Path(path))
        return now, None if now == known else await asyncio.to_thread(content, Path(path))
