"""CONTRIBUTING.md: its example of a family is the catalogue's own text, and the fields it names are there."""

from __future__ import annotations

import re
import textwrap
from dataclasses import fields
from pathlib import Path

from diffpipe import PipelineType

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FAMILY = GUIDE[GUIDE.index("## Adding a family") : GUIDE.index("## Adding a scheduler rule")]


def test_the_example_is_in_the_code() -> None:
    blocks = re.findall(r"^ *```python\n(.*?)^ *```", FAMILY, re.MULTILINE | re.DOTALL)
    row, case = (textwrap.dedent(block).strip() for block in blocks)
    assert row in (ROOT / "src" / "diffpipe" / "catalog" / "families" / "z_image.py").read_text(encoding="utf-8")
    assert case in (ROOT / "tests" / "cases_image.py").read_text(encoding="utf-8")


def section(heading: str) -> str:
    return GUIDE.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def code(text: str) -> list[str]:
    return [textwrap.dedent(block).strip() for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]


def source(name: str) -> str:
    return (ROOT / "src" / "diffpipe" / name).read_text(encoding="utf-8")


def test_the_scheduler_rule_is_in_the_code() -> None:
    (rule,) = code(section("Adding a scheduler rule"))
    assert rule in source("engine/classes/schedulers.py")


def test_the_memory_switch_is_where_the_guide_says() -> None:
    rows = re.findall(r"^\| `([\w/.]+)` \| .* \| `(.+)` \|$", section("Adding a memory switch"), re.MULTILINE)
    assert len(rows) == 7
    for file, text in rows:
        assert text in source(file), f"{file}: {text}"


def test_every_place_that_knows_the_switch_is_in_the_guide() -> None:
    named = set(re.findall(r"^\| `([\w/.]+)` \|", section("Adding a memory switch"), re.MULTILINE))
    found = {
        path.relative_to(ROOT / "src" / "diffpipe").as_posix()
        for path in (ROOT / "src" / "diffpipe").rglob("*.py")
        if "vae_tiling" in path.read_text(encoding="utf-8")
    }
    # What takes the switch back when an item steps down, and what a refusal counts on, know it by its meaning.
    assert found - named == {"engine/placement/step_down.py", "memory/refuse.py"}


def test_the_command_is_in_the_code() -> None:
    row, make = code(section("Adding a command"))
    assert row in source("cli/app.py")
    assert make in source("cli/doctor.py")


def test_the_fields_are_those_of_a_row() -> None:
    named = re.findall(r"^\| `(\w+)` \|", FAMILY, re.MULTILINE)
    assert named
    assert set(named) <= {field.name for field in fields(PipelineType)}
