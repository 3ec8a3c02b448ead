"""docs/security.md: each promise names a test that is there, each limit is the constant's value."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
UNITS = {
    "kB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "TB": 1e12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "s": 1,
    "min": 60,
    "h": 3600,
}


def table_rows(text: str, columns: int) -> list[list[str]]:
    cells = [re.split(r"(?<!\\) *\| *", line)[1:-1] for line in text.splitlines() if line.startswith("| ")]
    return [row for row in cells if len(row) == columns and row[-1] not in ("test", "constant")]


PROMISES, LIMITS = PAGE.split("## Limits\n")


@pytest.mark.parametrize(("promise", "tests"), table_rows(PROMISES, 2))
def test_each_promise_has_its_tests(promise: str, tests: str) -> None:
    assert promise.endswith(".")
    for named in tests.split(", "):
        file, _, function = named.partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, named


@pytest.mark.parametrize(("what", "most", "constant"), table_rows(LIMITS, 3))
def test_each_limit_is_the_codes(what: str, most: str, constant: str) -> None:
    number, _, unit = most.partition(" ")
    assert constant_value(constant) == pytest.approx(float(number.replace(",", "")) * UNITS.get(unit, 1)), what


def constant_value(named: str) -> float:
    """The number that a module assigns to a name; it is not imported, as some import torch."""
    module, _, name = named.rpartition(".")
    tree = ast.parse((ROOT / "src" / "diffpipe" / f"{module}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]:
            return float(eval(compile(ast.Expression(node.value), named, "eval"), {}))
    raise AssertionError(f"{named} is not there")


def test_the_page_has_both() -> None:
    assert len(table_rows(PROMISES, 2)) > 15
    assert len(table_rows(LIMITS, 3)) > 10
