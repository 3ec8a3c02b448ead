"""A diagonal of the matrix: families, each in another placement. `.ci/run` makes all rows (see matrix.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from paper import matrix, matrix_rows
from paper.matrix_rows import Row

DIAGONAL = (
    "flux: sequential", "flux: int8 + casting", "sdxl: group", "sd3: torchao int8 + group", "qwen: model, 3 prompts",
    "wan: int8 + group", "amused: resident, batch of 2", "sd: resident, faults", "flux: model, stopped",
)  # fmt: skip


@pytest.fixture(scope="module")
def machine(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> matrix.Machine:
    return matrix.Machine(tmp_path_factory.mktemp("matrix"), checkpoints)


def test_the_matrix_is_as_large_as_it_was_meant_to_be() -> None:
    every = [row for row in matrix_rows.every_row() if not row.placed.refused]
    assert len(every) >= 300
    families = {row.family.name for row in every}
    everywhere = {
        row.placed.name
        for row in every
        if {other.family.name for other in every if other.placed.name == row.placed.name} == families
    }
    assert len(families) >= 9
    assert len(everywhere) >= 12


def test_rows_come_to_what_is_expected_of_them(machine: matrix.Machine) -> None:
    rows: dict[str, Row] = {row.name: row for row in matrix_rows.every_row()}
    found = list(matrix.run_all(machine, [rows[name] for name in DIAGONAL], at_once=1))
    assert [matrix.show(done) for done in found if not done.as_said] == []
    assert {done.row.name for done in found} == set(DIAGONAL)


def test_a_row_that_is_not_as_expected_is_told(machine: matrix.Machine) -> None:
    row = next(matrix_rows.every_row())
    assert not matrix.Done(row, "refused").as_said
    assert not matrix.Done(row, "equal", left=1).as_said
    assert matrix.Done(row, "equal").as_said
    assert not matrix.is_refusal("2: error: something else\n  try: that\n", Row(row.family, REFUSED, row.way))
    assert not matrix.is_refusal("7: error: torchao int4\n  try: that\n", Row(row.family, REFUSED, row.way))


REFUSED = next(placed for placed in matrix_rows.PLACEMENTS if placed.refused == "torchao int4")
