"""Other processes in tests: waiting for what they do, and what they find first."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 120.0  # seconds: for a machine that is busy with much else


def until(true: Callable[[], object], within: float = PATIENCE) -> None:
    """Wait for something that is about to be true. Fails where it is not."""
    end = time.monotonic() + within
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def runs(process: int) -> bool:
    """Whether a process runs; one that has ended and was not asked for its exit code does not (Linux)."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def first_on_path(folder: Path | str) -> str:
    """PYTHONPATH with a folder before what it has."""
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
