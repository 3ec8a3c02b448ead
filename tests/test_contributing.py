"""CONTRIBUTING.md: its example of a family is the catalogue's own text, and the fields it names are there."""

from __future__ import annotations

import re
import textwrap
from dataclasses import fields
from pathlib import Path

from diffpipe import PipelineType

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FAMILY = GUIDE[GUIDE.index("## Adding a family") : GUIDE.index("## Writing a provider plug-in")]


def test_the_example_is_in_the_code() -> None:
    blocks = re.findall(r"^ *```python\n(.*?)^ *```", FAMILY, re.MULTILINE | re.DOTALL)
    row, case = (textwrap.dedent(block).strip() for block in blocks)
    assert row in (ROOT / "src" / "diffpipe" / "catalog" / "families" / "z_image.py").read_text(encoding="utf-8")
    assert case in (ROOT / "tests" / "cases_image.py").read_text(encoding="utf-8")


def test_the_fields_are_those_of_a_row() -> None:
    named = re.findall(r"^\| `(\w+)` \|", FAMILY, re.MULTILINE)
    assert named
    assert set(named) <= {field.name for field in fields(PipelineType)}
