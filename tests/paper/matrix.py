"""A program: families x placements x quantizers x adapters on the device of paper, through the whole command line.

    python tests/paper/matrix.py                     all rows, by two commands at a time; exits 1 where one is not as
                                                     matrix_rows.py says
    python tests/paper/matrix.py flux: int4          those with all these words in their names

Every row is a `build --device paper` and a `generate`, of several items, in forks of a process that has the libraries.
What it makes is compared with what `build --device cpu` and `generate` make of the same settings; bytes on the device
after each item with those that the loaded pipeline had there; and what came to the device is counted.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import threading
import time
import wave
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from json import loads
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))

import conftest  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from paper import matrix_rows as rows  # noqa: E402
from paper.matrix_rows import Family, Placed, Row, Way  # noqa: E402

Made = list[tuple[str, "np.ndarray[tuple[int, ...], np.dtype[np.generic]]"]]


@dataclass
class Done:
    """What became of a row: `word` is equal, bounded, refused or failed, `why` says more.

    `left`: bytes on the device beyond those of the loaded pipeline after the item that left most. `moved`: bytes that
    came to it for each item. `items`: how many it made.
    """

    row: Row
    word: str
    why: str = ""
    left: int = 0
    moved: float = 0
    items: int = 0

    @property
    def as_said(self) -> bool:
        return self.word == self.row.expected and not self.left


@dataclass
class Machine:
    """Runs commands, in forks of a prepared process, in a folder of their own; from several threads."""

    folder: Path
    checkpoints: Path
    lock: threading.Lock = field(default_factory=threading.Lock)
    seconds: float = 0  # of processors, that commands took

    def run(self, *words: object, first: str = "") -> tuple[int, str]:
        """The exit code of `diffpipe WORDS`, and what it wrote to stderr. `first`: a program to run before."""
        server = conftest.fork_server("paper")
        env = conftest.Cli(self.folder / "home", self.folder, on_paper=True).environment()
        with open(os.devnull, "rb") as nothing, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as said:
            streams = (nothing.fileno(), out.fileno(), said.fileno())
            with self.lock:
                child = server.start(map(str, words), cwd=self.folder, env=env, streams=streams, first=first)
            code = child.wait()
            with self.lock:
                self.seconds += child.seconds
            said.seek(0)
            return code, said.read().decode(errors="replace")

    def build(self, name: str, family: Family, setting: str, device: str, options: Sequence[str] = ()) -> str:
        """Build a pipeline. Returns "", or how that ended, with what was said."""
        lora = ("--lora", self.checkpoints / family.lora) if setting == "lora" else ()
        words = ("--type", family.type, "--model", self.checkpoints / family.checkpoint, "--device", device)
        code, said = self.run(
            "build", family.provider, *words, "--name", name, *rows.SETTINGS[setting], *lora, *options
        )
        return f"{code}: {said}" if code else ""

    def generate(self, name: str, family: Family, way: Way, into: str, first: str = "") -> str:
        """Make files in a folder. Returns "", or how that ended, with what was said."""
        template = f"{into}/{{index}}" + ("" if family.format == "frames" else f".{family.format}")
        options = (*way.options, *family.flags, "--seed", 7, "--format", family.format, "--output", template)
        code, said = self.run("generate", name, *options, first=first)
        ends = way.ends if first else 0
        return f"{code}: {said}" if code != ends else ""

    @cache  # noqa: B019
    def _lock_of(self, *_what: object) -> threading.Lock:
        return threading.Lock()

    def __hash__(self) -> int:
        return id(self)

    def reference(self, family: Family, setting: str, way: Way) -> Made:
        """What the CPU makes, which is made once."""
        name = "-".join((family.name, setting, "cpu"))
        into = f"{name} {way.name}" if way.name and not way.alone else name
        with self.lock:
            lock = self._lock_of(name)
        with lock:
            if not (self.folder / "home/names" / name).exists():
                self._must(self.build(name, family, setting, "cpu"))
            if not (self.folder / into).exists():
                self._must(self.generate(name, family, rows.TWO if way.alone else way, into))
        return made(self.folder / into)

    def _must(self, said: str) -> None:
        assert not said, said


def made(folder: Path) -> Made:
    """The files of a folder by name: pixels, or samples."""
    files = sorted(file for file in folder.rglob("*") if file.suffix in (".png", ".wav"))
    return [(str(file.relative_to(folder)), _values(file)) for file in files]


def number_of(name: str) -> int:
    """The number of the item that a file is of."""
    return int(re.findall(r"\d+", name)[0])


def _values(file: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    if file.suffix == ".wav":
        with wave.open(str(file)) as sound:
            return np.frombuffer(sound.readframes(-1), "<i2")
    with Image.open(file) as image:
        return np.asarray(image)


def difference(one: Made, other: Made) -> float:
    """The largest difference of two values, as a share of all that there can be; infinite for other files or sizes."""
    if [(name, value.shape) for name, value in one] != [(name, value.shape) for name, value in other]:
        return float("inf")
    pairs = [(a.astype(np.int32), b.astype(np.int32)) for (_, a), (_, b) in zip(one, other, strict=True)]
    most = 65535 if one and one[0][1].dtype == np.int16 else 255
    return max((float(np.abs(a - b).max()) / most for a, b in pairs), default=0)


def run_row(machine: Machine, row: Row, built: str) -> Done:
    """Generate with a pipeline that is built, and compare. `built`: what `build` said, "" if it is."""
    if built:
        return Done(row, "refused" if is_refusal(built, row) else "failed", built)
    name, into = name_of(row.family, row.placed), machine.folder / row.name
    notes = machine.folder / f"{row.name}.notes"
    first = f"from paper import notes; notes.take({str(notes)!r}, {row.placed.streams})"
    if said := machine.generate(name, row.family, row.way, row.name, first):
        return Done(row, "refused" if is_refusal(said, row) else "failed", said)
    loaded, *items, end = map(loads, notes.read_text("ascii").splitlines())
    left = max(item["now"] for item in (*items, end)) - loaded["now"]
    done = Done(row, "failed", items=len(items), left=left)
    done.moved = (end["moved"] - loaded["moved"]) / max(len(items), 1)
    if end["operations"] == loaded["operations"]:
        done.why = "nothing was done on the device"
        return done
    mine, reference = made(into), machine.reference(row.family, row.placed.setting, row.way)
    if (numbers := row.way.made) is not None:
        mine, reference = ([one for one in files if number_of(one[0]) in numbers] for files in (mine, reference))
    far = difference(mine, reference)
    done.word = "equal" if not far else "bounded" if far <= row.bound else "failed"
    done.why = f"{far:.4f} of the range from the CPU's" if far else ""
    return done


def is_refusal(said: str, row: Row) -> bool:
    """Whether a command ended with exit code 2 and two lines: what is wrong, in the row's words, and what to do."""
    code, _, words = said.partition(": ")
    return code == "2" and len(words.strip().splitlines()) == 2 and row.placed.refused in words


def name_of(family: Family, placed: Placed) -> str:
    """A pipeline's name."""
    return "-".join((family.name, *re.findall(r"\w+", placed.name)))


def run_placed(machine: Machine, family: Family, placed: Placed, wanted: Sequence[Row]) -> Iterator[Done]:
    """Build once, and make all rows of it."""
    name = name_of(family, placed)
    try:
        built = machine.build(name, family, placed.setting, "paper", placed.options)
        for row in wanted:
            yield run_row(machine, row, built)
    except AssertionError as error:
        yield Done(wanted[0], "failed", f"on the CPU: {error}")


def run_all(machine: Machine, wanted: Sequence[Row], at_once: int = 2) -> Iterator[Done]:
    """Run rows; those of one pipeline after one another, as many pipelines at a time. In the order of `wanted`."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in wanted:
        groups.setdefault((row.family.name, row.placed.name), []).append(row)
    for name, prompts in rows.FILES.items():
        machine.folder.joinpath(name).write_text("".join(f"{prompt}\n" for prompt in prompts), "ascii")
    with ThreadPoolExecutor(at_once) as pool:

        def work(group: list[Row]) -> list[Done]:
            return list(run_placed(machine, group[0].family, group[0].placed, group))

        for done in pool.map(work, groups.values()):
            yield from done


def show(done: Done) -> str:
    mark = "" if done.as_said else f"  <-- expected {done.row.expected}"
    facts = "" if done.word == "refused" else f"{done.items} items, left {done.left}, moved {done.moved:.0f}"
    why = " | ".join(done.why.strip().splitlines()[-2:])
    return f"{done.row.name:48} {done.word:8} {facts:40} {why[:300]}{mark}".rstrip()


def main() -> int:
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="diffpipe-matrix-"))
    conftest.point_elsewhere(folder)
    try:
        machine = Machine(folder, folder / "checkpoints")
        conftest._run_file(TESTS / "checkpoints.py", machine.checkpoints)
        wanted = [row for row in rows.every_row() if all(word in row.name for word in sys.argv[1:])]
        found = []
        for done in run_all(machine, wanted):
            print(show(done), flush=True)
            found.append(done)
    finally:
        conftest.close_servers()
        shutil.rmtree(folder, ignore_errors=True)
    counts = Counter(done.word for done in found)
    families = len({done.row.family for done in found})
    print(f"{len(found)} rows, {families} families x {len({d.row.placed.name for d in found})} placements:", end=" ")
    print(", ".join(f"{counts[word]} {word}" for word in ("equal", "bounded", "refused", "failed")), end="; ")
    print(f"{sum(done.items for done in found)} items; bytes left on the device: {sum(done.left for done in found)}")
    print(f"{time.monotonic() - began:.0f} s, {machine.seconds:.0f} s of processors for commands")
    return int(not all(done.as_said for done in found))


if __name__ == "__main__":
    sys.exit(main())
