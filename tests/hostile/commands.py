"""Command lines: every command and option, with values that nobody means well."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from hostile.runner import Line

LINES = 300

BY_HAND = (("--version", "--version"), ("generate", "\x1b[2J"), ("build", ".."))


def lines(rng: random.Random, folder: Path) -> Iterator[Line]:
    for words in BY_HAND:
        yield Line("by hand", words)
