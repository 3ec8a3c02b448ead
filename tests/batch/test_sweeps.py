"""Sweeps: which values they have, what is refused, and the order of their combinations."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from every_flag import FLAGS, NAMES
from hypothesis import example, given
from hypothesis import strategies as st

from diffpipe.batch.argument_values import MOST
from diffpipe.batch.sweeps import crossed, sweeps
from diffpipe.core.errors import UsageError


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("guidance_scale=2,3.5,5", [2.0, 3.5, 5.0]),
        ("guidance-scale=0..1..0.25", [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("guidance_scale=0..1..0.1", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        ("guidance_scale=1..2", [1.0, 2.0]),
        ("guidance_scale=.5..1", [0.5]),
        ("width=64", [64]),
        ("width=64..128..32,512", [64, 96, 128, 512]),
        ("width=3..1", [3, 2, 1]),
        ("seed=1..8", [1, 2, 3, 4, 5, 6, 7, 8]),
        ("width=-2..2..2", [-2, 0, 2]),
        ("prompt=a fox,a cat", ["a fox", "a cat"]),
        ('prompt=["a, b", "c"]', ["a, b", "c"]),
        ("prompt=1..3", ["1..3"]),
        ("mode=fast,fine", ["fast", "fine"]),
        ("use_mask=true,false", [True, False]),
        ('extra=[{"a": 1}, null]', [{"a": 1}, None]),
        ("unflagged=1..2,x", [1, 2, "x"]),
    ],
)
def test_values_of_a_sweep(text: str, values: list[Any]) -> None:
    swept = sweeps([text], FLAGS, NAMES | {"seed"})
    assert list(swept.values()) == [values]
    assert [type(value) for value in next(iter(swept.values()))] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["guidance_scale"], "--sweep guidance_scale is not NAME=VALUES"),
        (["guidance_scale="], "--sweep guidance_scale= is not NAME=VALUES"),
        (["guidanse=1"], "--sweep guidanse=1: the pipeline takes no 'guidanse'"),
        (["id=a,b"], "--sweep id=a,b: the pipeline takes no 'id'"),
        (["width=1..4,2"], "--sweep width=1..4,2: a value is there twice"),
        (["width=1,,2"], "--sweep width=1,,2: a value is empty"),
        (["width=1.5"], "--sweep width=1.5: '1.5' is no whole number"),
        (["width=1..2..0.5"], "--sweep width=1..2..0.5: 1..2 are no whole numbers"),
        (["width=1..5..0"], "--sweep width=1..5..0: a step of 0 does not lead from 1 to 5"),
        (["width=1..5..-1"], "--sweep width=1..5..-1: a step of -1 does not lead from 1 to 5"),
        (["width=0..9999999999"], f"--sweep width=0..9999999999: 0..9999999999 are more than {MOST} values"),
        (["width=0..1e400..1e-400"], f"--sweep width=0..1e400..1e-400: 0..1e400 are more than {MOST} values"),
        (["mode=slow"], "--sweep mode=slow: 'slow' is none of fast, fine"),
        (["prompt=[]"], "--sweep prompt=[]: the list is empty"),
        (["width=1", "width=2"], "--sweep width=2: width is swept twice"),
        (["width=1..2000", "guidance_scale=1..2000"], f"the sweeps make more than {MOST} items a prompt"),
    ],
)
def test_sweeps_that_are_refused(texts: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        sweeps(texts, FLAGS, NAMES | {"seed"})
    assert caught.value.message == message


@given(text=st.text(max_size=20) | st.text('0123456789.e-+,[]"', max_size=20))
@example(text="1..1e999..1")
def test_any_sweep_is_read_or_refused(text: str) -> None:
    for name in ("width", "guidance_scale", "prompt", "unflagged"):
        with suppress(UsageError):
            assert sweeps([f"{name}={text}"], FLAGS, NAMES)[name]


def test_every_combination_the_last_fastest() -> None:
    assert list(crossed({"a": [1, 2], "b": "xy"})) == [
        {"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}
    ]  # fmt: skip
    assert list(crossed({})) == [{}]
