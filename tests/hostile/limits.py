"""Command lines under limits of the system: sizes of files, open files, memory; and streams that fail or are closed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from hostile.runner import Line

LINES = 30

ONE = ("generate", "demo", "--prompt", "a fox", "--num-inference-steps", "1")
# Those that make something, and those that only say something.
MAKERS = (
    (*ONE, "-o", "x.png"), (*ONE, "-o", "x.webp", "--no-metadata"), (*ONE, "--count", "3", "-o", "out/"),
    (*ONE, "-o", "x.png", "--preview", "p.png", "--preview-every", "1"), ("build", "demo", "--dtype", "float32"),
    ("build", "demo", "--quantize", "int8"), ("pipelines", "export", "demo", "x.tar"),
    ("pipelines", "rename", "demo", "other"),
)  # fmt: skip
SAYERS = (
    ("--version",), ("--help",), ("pipelines", "list"), ("pipelines", "show", "demo", "--json"), ("providers", "list"),
    ("generate", "demo", "--help"), ("plan", "demo"), ("doctor", "--json"), ("pipelines", "verify", "demo"),
    (*ONE, "--dry-run", "--count", "50"), (*ONE, "--dry-run", "--json"),
)  # fmt: skip
FEW = """
import os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
held = []
try:
    while True:
        held.append(os.dup(0))
except OSError:
    pass
for number in held[-{free}:]:
    os.close(number)
"""
LITTLE = """
import resource
pages = int(open("/proc/self/statm").read().split()[0])
most = pages * resource.getpagesize() + ({more} << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
"""


def lines(rng: random.Random, folder: Path) -> Iterator[Line]:
    """Endless; each kind in turn."""
    kinds: tuple[Callable[[random.Random], Line], ...] = (_small_files, _few_files, _little_memory, _full, _closed)
    while True:
        for kind in kinds:
            yield kind(rng)


def _small_files(rng: random.Random) -> Line:
    most = rng.choice((1 << 13, 1 << 14, rng.randrange(1 << 13, 1 << 20)))  # what it says goes into a file, too
    first = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most}))\n"
    return Line(f"files of {most} bytes at most", rng.choice(MAKERS + SAYERS), first=first)


def _few_files(rng: random.Random) -> Line:
    free = rng.randrange(2, 16)
    return Line(f"{free} more files may be opened", rng.choice(MAKERS + SAYERS), first=FEW.format(free=free))


def _little_memory(rng: random.Random) -> Line:
    more = rng.randrange(8, 512)
    return Line(f"{more} MiB of memory left", rng.choice(SAYERS), first=LITTLE.format(more=more))


def _full(rng: random.Random) -> Line:
    first = "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), {})\n"
    if rng.random() < 0.5:
        return Line("standard output is full", rng.choice(SAYERS), first=first.format(1))
    return Line("standard error is full", rng.choice(MAKERS + SAYERS), first=first.format(2))


def _closed(rng: random.Random) -> Line:
    numbers = rng.choice(((0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)))
    names = ("stdin", "stdout", "stderr")
    closed = "".join(f"os.close({number}); sys.{names[number]} = None\n" for number in numbers)
    return Line(f"streams {numbers} are closed", rng.choice(MAKERS), first="import os, sys\n" + closed)
