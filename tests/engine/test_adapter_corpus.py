"""Every format of adapter files, for every family: what is applied is what the format's formula says.

The files, the layers' names and the expected weights are of tests/adapter_corpus, which asks no library how a file is
read. `docs/adapters.md` has the table; tools/adapter_table.py writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

from adapter_corpus.rows import ROWS
from adapter_corpus.trial import Row, Tiny, trial

from diffpipe.engine.loading import library_logs

# Rows that are not right yet -> why. A row that is right fails here until its line goes.
NOT_YET: dict[str, str] = {}

Pipelines = Callable[[str], Tiny]


@pytest.fixture(scope="module")
def pipelines() -> Iterator[Pipelines]:
    """Each family's tiny pipeline, made once."""
    made: dict[str, Tiny] = {}
    library_logs.listen()

    def of(family: str) -> Tiny:
        if family not in made:
            made[family] = Tiny(family)
        return made[family]

    yield of
    made.clear()


def rows() -> Iterator[object]:
    for row in ROWS:
        marks = [pytest.mark.xfail(strict=True, reason=NOT_YET[row.name])] if row.name in NOT_YET else []
        yield pytest.param(row, id=row.name, marks=marks)


def test_names_are_one_each() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    assert set(NOT_YET) <= set(names)


@pytest.mark.parametrize("row", rows())
def test_every_weight_is_what_the_formula_says(row: Row, pipelines: Pipelines, tmp_path: Path) -> None:
    result = trial(row, pipelines(row.family), tmp_path)
    assert not result.wrong, f"{result.applied} of {result.layers} layers applied; wrong: {', '.join(result.wrong)}"
    assert result.layers > 0
