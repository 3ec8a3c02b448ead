"""Standard input is diffpipe's alone: what a library asks there finds an empty stream, so nobody's text answers it."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_ours: TextIO | None = None


def keep() -> None:
    """Take standard input away from everything else in this process: `yes | diffpipe ...` consents to nothing."""
    global _ours
    if sys.stdin is not None and getattr(sys.stdin, "name", "") != os.devnull:
        _ours, sys.stdin = sys.stdin, (nothing := open(os.devnull, encoding="utf-8"))  # noqa: SIM115
        atexit.register(nothing.close)  # else `python -W error` says at the end that it was left open


def stream() -> TextIO | None:
    """What the user gives at standard input; None where the process has none."""
    return _ours or sys.stdin


@contextmanager
def lent() -> Iterator[None]:
    """Standard input where everybody finds it, for a library that asks the terminal itself, not the user."""
    before = sys.stdin
    sys.stdin = stream()  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdin = before
