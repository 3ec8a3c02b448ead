"""How fast diffpipe starts, against a bare two-command Typer program's --help, run in alternation with it.

    python tools/bench_start.py [--runs 9] [--entries 10000] [--checkpoint FOLDER]

Each run of a command is paired with a run of the bare program right before it; a case's figure is the median of its
pairs' ratios, so a machine that is busy for a while slows both sides. Needs no network: the pipeline is built from a
tiny Flux folder in a temporary cache. --entries fills that cache with copies of the entry under new keys and names, and
times `pipelines list`, and `generate NAME --help` with and without them. Exits with 1 where a limit is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from diffpipe.cache.store import Store
from diffpipe.core.canonical import digest
from diffpipe.storage.disk import write_json

BARE = '''
import typer

app = typer.Typer()


@app.command()
def one(name: str, count: int = 1):
    """Greet someone."""


@app.command()
def two(name: str, loud: bool = False):
    """Part from someone."""


app()
'''
LIST_LIMIT = 1.5  # seconds, for `pipelines list` of ten thousand entries
UNSLOWED = 1.25  # how much slower `generate NAME --help` may look beside them before it is more than noise


class Case(NamedTuple):
    """A command to time, what it must print, its limit as a multiple of the bare program, and its environment."""

    name: str
    arguments: tuple[str, ...]
    shows: str
    limit: float
    environment: Mapping[str, str] = {}


class Run(NamedTuple):
    """Seconds by the clock, and of processor time."""

    wall: float
    processor: float


CASES = (
    Case("diffpipe --help", ("--help",), "Commands", 1.3),
    Case("build --help", ("build", "--help"), "flux", 1.3),
    Case("build flux --help", ("build", "flux", "--help"), "--scheduler-config", 1.3),
    Case("pipelines list", ("pipelines", "list"), "flux", 1.3),
    Case(
        "completion of a pipeline's name",
        (),
        "flux",
        1.3,
        {"_DIFFPIPE_COMPLETE": "complete_bash", "COMP_WORDS": "diffpipe generate fl", "COMP_CWORD": "2"},
    ),
    Case(
        "completion of a pipeline's flag",
        (),
        "--guidance-scale",
        1.3,
        {"_DIFFPIPE_COMPLETE": "complete_bash", "COMP_WORDS": "diffpipe generate flux --gui", "COMP_CWORD": "3"},
    ),
    Case("generate flux --help", ("generate", "flux", "--help"), "--guidance-scale", 2.0),
    Case("build flux, in the cache", ("build", "flux", "--model", "flux"), "flux", 3.0),
)


def timed(command: list[str], environment: Mapping[str, str], folder: Path, shows: str) -> Run:
    """Run a command to its end. Raises SystemExit if it fails or does not print what it must."""
    import resource  # Windows has none

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(command, env={**os.environ, **environment}, cwd=folder, capture_output=True, text=True)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode or shows not in done.stdout:
        raise SystemExit(
            f"{' '.join(command[-3:])} {dict(environment)} did not print {shows!r}:\n{done.stdout}{done.stderr}"
        )
    return Run(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def diffpipe() -> list[str]:
    """The installed command beside this Python, as a user runs it."""
    script = Path(sys.executable).with_name("diffpipe")
    return [str(script)] if script.exists() else [sys.executable, "-m", "diffpipe"]


def paired(case: Case, runs: int, folder: Path) -> list[tuple[Run, Run]]:
    """(bare program, case), `runs` times in alternation, after one of each to warm the file cache."""
    bare = [sys.executable, str(folder / "bare.py"), "--help"]
    pairs = [
        (timed(bare, {}, folder, "Greet"), timed([*diffpipe(), *case.arguments], case.environment, folder, case.shows))
        for _ in range(runs + 1)
    ]
    return pairs[1:]


def compare(cases: Iterable[Case], runs: int, folder: Path) -> bool:
    """Print a line a case; whether every limit holds."""
    print(f"{'':36}{'bare':>9}{'this':>9}{'ratio':>8}{'CPU':>8}{'limit':>8}   (medians of {runs} pairs)")
    good = True
    for case in cases:
        pairs = paired(case, runs, folder)
        bare, this = (statistics.median(pair[side].wall for pair in pairs) for side in (0, 1))
        ratio = statistics.median(this.wall / bare.wall for bare, this in pairs)
        processor = statistics.median(this.processor / bare.processor for bare, this in pairs)
        good = good and ratio <= case.limit
        print(f"{case.name:36}{bare * 1000:6.0f} ms{this * 1000:6.0f} ms", end="")
        print(f"{ratio:8.2f}{processor:8.2f}{case.limit:8.1f}{verdict(ratio, case.limit)}", flush=True)
    return good


def fill(store: Store, count: int) -> None:
    """Copy the cache's first entry `count` times, each under a key and a name of its own, whole and readable."""
    entry = next(store.entries())
    manifest, sources = entry.manifest(), entry.sources()
    for number in range(count):
        key = digest([entry.key, number])
        folder = store.root / "pipelines" / key
        folder.mkdir(mode=0o700)
        files = {"manifest": {**manifest, "key": key}, "sources": sources, "summary": {**entry.summary, "key": key}}
        for name, value in files.items():
            (folder / f"{name}.json").write_text(json.dumps({**value, "digest": digest(value)}))
        (store.root / "names" / f"flux-{number:05}").write_text(key)


def crowded(store: Store, entries: int, runs: int, folder: Path) -> bool:
    """Print what ten thousand entries cost; whether both limits hold."""
    help_ = [*diffpipe(), "generate", "flux", "--help"]
    fill(store, entries)
    full = store.root
    lone = full.with_name("lone")
    write_folder(store, lone)
    pairs = [
        tuple(timed(help_, {"DIFFPIPE_HOME": str(home)}, folder, "--guidance-scale").wall for home in (lone, full))
        for _ in range(runs + 1)
    ][1:]
    ratio = statistics.median(many / one for one, many in pairs)
    listing = [
        timed([*diffpipe(), "pipelines", "list"], {}, folder, "flux-00000").wall for _ in range(max(3, runs // 3))
    ]
    seconds = statistics.median(listing)
    print(f"\nwith {entries:,} entries")
    print(
        f"{'generate flux --help, beside without':36}{'':18}{ratio:8.2f}{'':8}{UNSLOWED:8.2f}{verdict(ratio, UNSLOWED)}"
    )
    print(
        f"{'pipelines list':36}{'':9}{seconds * 1000:6.0f} ms{'':16}{LIST_LIMIT:6.1f} s{verdict(seconds, LIST_LIMIT)}"
    )
    return ratio <= UNSLOWED and seconds <= LIST_LIMIT


def verdict(value: float, limit: float) -> str:
    return "" if value <= limit else "  MISSED"


def write_folder(store: Store, lone: Path) -> None:
    """A second cache that holds only the entry named flux."""
    entry = store.find("flux")
    target = lone / "pipelines" / entry.key
    target.mkdir(parents=True)
    (lone / "names").mkdir()
    for path in entry.folder.iterdir():
        write_json(target / path.name, json.loads(path.read_bytes()))
    (lone / "names" / "flux").write_text(entry.key)


def checkpoint(given: Path | None, folder: Path) -> None:
    """Have a tiny Flux folder at FOLDER/flux."""
    if given:
        (folder / "flux").symlink_to(given.absolute())
        return
    maker = Path(__file__).resolve().parent.parent / "tests" / "checkpoints.py"
    subprocess.run([sys.executable, str(maker), str(folder / "made")], check=True, capture_output=True)
    (folder / "flux").symlink_to(folder / "made" / "flux")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time diffpipe's start against a bare Typer program.")
    parser.add_argument("--runs", type=int, default=9, help="pairs per case (default 9)")
    parser.add_argument("--entries", type=int, default=0, help="fill the cache with so many entries and time it again")
    parser.add_argument("--checkpoint", type=Path, help="a Flux folder; default: a tiny one made for this run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="diffpipe-bench-") as name:
        folder = Path(name)
        os.environ |= {"DIFFPIPE_HOME": str(folder / "home"), "HF_HOME": str(folder / "huggingface"), "COLUMNS": "120"}
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # pip compiles what it installs
        (folder / "bare.py").write_text(BARE)
        checkpoint(options.checkpoint, folder)
        build = [*diffpipe(), "build", "flux", "--model", "flux", "--quiet"]
        timed(build, {}, folder, "flux")
        time.sleep(2.5)  # digests of files as new as these are not recorded (files.SETTLED) ...
        timed(build, {}, folder, "flux")  # ... so the second build records them, as it would a while later
        good = compare(CASES, options.runs, folder)
        if options.entries:
            good = crowded(Store(), options.entries, options.runs, folder) and good
    sys.exit(not good)


if __name__ == "__main__":
    main()
