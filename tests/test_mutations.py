"""The seeded faults of tools/mutations.py still have a place: it is run by hand, as each takes its tests' time."""

from __future__ import annotations

import ast

import mutations
import pytest


@pytest.mark.parametrize("fault", mutations.FAULTS, ids=lambda fault: fault.what)
def test_a_fault_is_one_text_of_a_file_and_the_file_with_it_is_python(fault: mutations.Fault) -> None:
    ast.parse(mutations.seeded(fault))
    assert all((mutations.ROOT / name).exists() for name in fault.tests.split())
