"""Where the workers of a cluster get their requests: an actor beside the driver, a few rows of requests in it.

The driver cannot be asked by workers, and Ray Data takes no iterator that goes on living, so the dataset that Ray Data
moves holds numbers of rows alone; what a number stands for is fetched here when a worker begins with it. So a request
is drawn no earlier than it is needed, a worker that takes a row after another one died with it knows that, and what is
in memory is what is in work. All of it can be told again by the driver, should this process be killed.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Given = tuple[Sequence[Mapping[str, Any]], Sequence[str]]  # requests, and the paths of files that they read
Files = dict[str, bytes]  # the content of a file by "", or of a folder's files by their names


@dataclass
class Row:
    """Requests that a worker makes one after the other. `current`: the place of the one in work; `deaths`: how many
    workers died with each; `worker`: who has the row; `again`: whether somebody had it before."""

    requests: Sequence[Mapping[str, Any]]
    media: frozenset[str]
    again: bool = False
    worker: str = ""
    current: int | None = None
    deaths: Counter[int] = field(default_factory=Counter)


class Feed:
    """Rows by number, while they are in work. An actor: what the driver and the workers call goes in turns."""

    def __init__(self, folder: str) -> None:
        os.chdir(folder)
        self.life = secrets.token_hex(8)
        self.rows: dict[int, Row] = {}
        self.given = 0  # rows so far: the numbers below are known, here or done
        self.ended = False
        self.whole = False  # whether all that was given is here: not after this process was killed
        self.changed = asyncio.Condition()

    # The driver

    async def give(self, rows: Mapping[int, Given], given: int, *, ended: bool, all_of: bool, again: bool) -> None:
        """Rows, how many there are so far, and whether there are no more.

        `all_of`: they are all that are in work; nothing is told to workers before. `again`: an earlier life had them.
        """
        async with self.changed:
            for number, (requests, media) in rows.items():
                self.rows.setdefault(number, Row(requests, frozenset(media), again))
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

    async def take(self, number: int, worker: str) -> tuple[Sequence[Mapping[str, Any]], bool, dict[int, int]] | None:
        """A row's requests, whether another worker had begun with them, and how many died with each; None for a row
        that is done."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.whole and self.given > number)
        row = self.rows.get(number)
        if row is None:
            return None
        if row.worker and row.current is not None:
            row.deaths[row.current] += 1
        again, row.again = row.again or bool(row.worker), True
        row.worker = worker
        row.current = 0 if again or len(row.requests) == 1 else None  # which of several killed the first worker, if so
        return row.requests, again, dict(row.deaths)

    async def begun(self, number: int, place: int | None) -> None:
        """Which request of a row that is made again is in work now, None for none."""
        if row := self.rows.get(number):
            row.current = place

    async def read(self, number: int, path: str, known: Sequence[Any] | None) -> tuple[Sequence[Any], Files | None]:
        """An input file of a row: what tells its content from another, and the content unless that is `known`.

        Raises PermissionError for a file that the row does not read.
        """
        row = self.rows.get(number)
        if row is None or path not in row.media:
            raise PermissionError(f"row {number} does not read {Path(path).name}")
        place = Path(path)
        files = sorted(place.iterdir()) if place.is_dir() else [place]
        now = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]
        return now, None if now == known else await asyncio.to_thread(content, place)


def content(path: Path) -> Files:
    """A file, or the files of a folder."""
    if not path.is_dir():
        return {"": path.read_bytes()}
    return {file.name: file.read_bytes() for file in sorted(path.iterdir()) if file.is_file()}


def lay_out(files: Files, path: Path) -> None:
    """Write what `content` read."""
    if "" in files:
        path.write_bytes(files[""])
        return
    path.mkdir()
    for name, data in files.items():
        (path / Path(name).name).write_bytes(data)
