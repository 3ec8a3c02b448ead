"""The most host memory that this process held, and which of it was mapped files, which the system may drop.

Linux keeps the high-water mark of the sum alone (proc(5), VmHWM). What the sum was made of is read beside the work,
every PERIOD seconds: that of the largest sum seen is told. What a shorter peak adds to it counts as the process's own.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

STATUS = Path("/proc/self/status")
PERIOD = 0.05  # seconds: a thousandth of a core


class Held(NamedTuple):
    """Bytes that a process holds: its own (RssAnon), of mapped files (RssFile and RssShmem), and the most so far."""

    own: int
    mapped: int
    most: int


def held() -> Held | None:
    """What this process holds; None where the system does not say (all but Linux)."""
    try:
        lines = (line.split() for line in STATUS.read_text(encoding="ascii").splitlines())
        found = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1:] == ["kB"]}
        return Held(found["RssAnon"], found["RssFile"] + found["RssShmem"], found["VmHWM"])
    except (OSError, KeyError, ValueError):
        return None


def peak() -> int | None:
    """The most bytes that this process held; None where the system does not say (Windows)."""
    if now := held():
        return now.most
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Watch:
    """Reads what the process holds while it is entered, and keeps the largest."""

    def __init__(self) -> None:
        self.largest = Held(0, 0, 0)
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watch:
        if self._look():
            self._ended.clear()
            self._thread = threading.Thread(target=self._watch, name="host memory", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        if self._thread:
            self._thread.join()
            self._thread = None
        self._look()

    def _watch(self) -> None:
        while not self._ended.wait(PERIOD):
            self._look()

    def _look(self) -> bool:
        now = held()
        if now and now.own + now.mapped > self.largest.own + self.largest.mapped:
            self.largest = now
        return now is not None

    def words(self) -> str:
        """The peak so far, for the log; "" where the system does not say."""
        most = peak()
        if most is None:
            return ""
        seen = self.largest.mapped
        return f"peak host memory {most / 1e6:.0f} MB" + (f", of it mapped files {seen / 1e6:.0f} MB" if seen else "")
