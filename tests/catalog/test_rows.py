"""Rows of the catalogue."""

from __future__ import annotations

from dataclasses import fields

from diffpipe.catalog.rows import FlagFields
from diffpipe.core.flag import Flag


def test_a_row_may_say_whatever_a_flag_has_but_its_name() -> None:
    assert FlagFields.__annotations__.keys() == {field.name for field in fields(Flag)} - {"name"}
