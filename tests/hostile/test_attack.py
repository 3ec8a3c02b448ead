"""So many of each generator's command lines and calls, at a fixed seed: none may end badly.

`python tools/attack.py` goes on for as long as one likes. The last lines of a run of the tests say how many were tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest

from hostile import runner
from hostile.runner import Case, Line, World

GENERATORS = runner.generators()
SEED = 1
LINES, CASES = 60, 200  # where the module says nothing


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("name", [name for name, one in GENERATORS.items() if hasattr(one, "lines")])
def test_command_lines(name: str, world: World, record_property: Callable[[str, object], None]) -> None:
    module = GENERATORS[name]
    items = module.lines(runner.seeded(SEED, name), world.folder(name))
    attack(islice(items, getattr(module, "LINES", LINES)), world.run, record_property)


@pytest.mark.parametrize("name", [name for name, one in GENERATORS.items() if hasattr(one, "cases")])
def test_calls(name: str, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    module = GENERATORS[name]
    items = module.cases(runner.seeded(SEED, name), tmp_path)
    attack(islice(items, getattr(module, "CASES", CASES)), runner.run_case, record_property)


def attack(
    items: Iterator[Line] | Iterator[Case], run: Callable[..., list[str]], record: Callable[[str, object], None]
) -> None:
    """Fails with all that ended badly, after the last. `record` gets how many were tried and how many failed."""
    tried, failed = 0, []
    for item in items:
        tried += 1
        if faults := run(item):
            failed.append(f"{item.what}: {item.shown()[:2000]}\n    " + "\n    ".join(faults))
    record("attack", (tried, len(failed)))
    assert tried
    assert not failed, f"{tried} tried, {len(failed)} failed\n" + "\n".join(failed)
