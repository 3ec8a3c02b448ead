"""Attack diffpipe for as long as one likes: hostile command lines, bundles, headers, hub answers, documents, media.

    python tools/attack.py --seconds 600 --seed 7
    python tools/attack.py --seed 7 --only bundles --at 412    # that one again, with its files kept

The generators are the modules of tests/hostile; the suite draws a few hundred of each (tests/hostile/test_attack.py).
Ends with how many were tried and how many failed, and exit code 1 where one did.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS.parent / "src")]

import conftest  # noqa: E402
from hostile import runner  # noqa: E402


def streams(
    modules: dict[str, ModuleType], seed: int, world: runner.World
) -> dict[str, Iterator[runner.Line | runner.Case]]:
    """What each generator makes, by "NAME lines" or "NAME cases"."""
    return {
        f"{name} {kind}": getattr(module, kind)(runner.seeded(seed, name), world.folder(f"{name}-{kind}"))
        for name, module in modules.items()
        for kind in ("lines", "cases")
        if hasattr(module, kind)
    }


def tried(item: runner.Line | runner.Case, world: runner.World) -> list[str]:
    return world.run(item) if isinstance(item, runner.Line) else runner.run_case(item)


def attack(seconds: float, seed: int, only: str, at: int | None, world: runner.World) -> tuple[int, int]:
    """One of each generator in turn, until the time is over. Returns how many were tried and how many failed."""
    modules = {name: module for name, module in runner.generators().items() if only in ("", name)}
    given, counts, deadline = streams(modules, seed, world), [0, 0], time.monotonic() + seconds
    numbers = itertools.takewhile(lambda _: given and time.monotonic() < deadline, itertools.count())
    for number, name in ((number, name) for number in numbers for name in list(given)):
        item = next(given[name], None)
        if item is None:
            del given[name]
        elif at in (None, number):
            faults = tried(item, world)
            counts[0] += 1
            counts[1] += bool(faults)
            if faults or at is not None:
                print(f"\n{name} {number} of seed {seed}: {item.what}\n  {item.shown()}")
                print("".join(f"    {fault}\n" for fault in faults), flush=True)
        if number == at and name == list(given)[-1]:
            break
    return counts[0], counts[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="default: the time")
    parser.add_argument("--only", default="", metavar="NAME", help="one module of tests/hostile")
    parser.add_argument("--at", type=int, help="only this item of each stream; its files are kept")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="diffpipe-attack-"))
    conftest.point_elsewhere(folder)
    world = runner.World(folder / "world")
    try:
        count, failed = attack(args.seconds, args.seed, args.only, args.at, world)
    finally:
        conftest.close_servers()
        if args.at is None:
            runner.remove(folder)
        else:
            print(f"the files are in {folder}")
    print(f"seed {args.seed}: {count} tried, {failed} failed")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
