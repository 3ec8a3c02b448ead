"""Text and JSON where call arguments are wanted: what they are read as, and what is refused."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from every_flag import FLAGS
from hypothesis import given
from hypothesis import strategies as st

from diffpipe.batch.argument_values import NoJson, from_json, from_text, from_word, json_of
from diffpipe.core.parsing import DEEPEST


@given(
    value=st.recursive(
        # Larger integers are not all the same as floats, which a number is read as.
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
        lambda x: st.lists(x, max_size=3),
    )
)
def test_any_json_value_is_taken_or_refused_for_any_flag(value: Any) -> None:
    for flag in FLAGS.values():
        with suppress(ValueError):
            assert from_json(flag, value) in (value, *(value if isinstance(value, list) else []))


@pytest.mark.parametrize("value", [10**400, -(10**400), [1, 10**309]])
def test_a_number_that_no_float_holds_is_refused(value: Any) -> None:
    flag = FLAGS["sigmas" if isinstance(value, list) else "guidance_scale"]
    with pytest.raises(ValueError, match="is too large"):
        from_json(flag, value)


@given(text=st.text(max_size=30))
def test_text_of_any_kind_is_read_or_refused(text: str) -> None:
    for flag in (*FLAGS.values(), None):
        with suppress(ValueError):
            assert from_text(flag, text) is not None or flag is None or flag.kind == "json"


@pytest.mark.parametrize("text", ["[1, 2]", '{"a": {"b": null}}', "3", '"x"', "true"])
def test_json(text: str) -> None:
    assert json_of(text) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "column", "reason"),
    [
        ('{"a": 1', 8, "it is no JSON: Expecting ',' delimiter"),
        ("NaN", 1, "it is no JSON: NaN is no number"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), 1, "it is nested too deeply"),
        ('[{"a": 1, "b": 2, "a": 1}]', 1, "'a' is there twice"),
        ("[" * 100_000, 1, "it is nested too deeply"),
    ],
)
def test_what_is_no_json_is_refused_with_its_column(text: str, column: int, reason: str) -> None:
    with pytest.raises(NoJson) as refused:
        json_of(text)
    assert (refused.value.column, str(refused.value)) == (column, f"column {column}: {reason}")


def test_json_may_be_nested_and_have_braces_in_its_text() -> None:
    deep = "[" * DEEPEST + "]" * DEEPEST
    assert json.dumps(json_of(deep)).replace(" ", "") == deep
    assert json_of(f'["{"[" * 500}"]') == ["[" * 500]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("prompt", "a fox", "a fox"),
        ("prompt", '"a fox"', "a fox"),
        ("prompt", '{"a": 1}', '{"a": 1}'),
        ("negative_prompt", '["rain", "fog"]', ["rain", "fog"]),
        ("mode", "fine", "fine"),
        ("image", "in.png", "in.png"),
        ("width", "64", 64),
        ("guidance_scale", "4", 4.0),
        ("sigmas", "[1, 0.5]", [1.0, 0.5]),
        ("use_mask", "true", True),
        ("extra", '{"a": [1]}', {"a": [1]}),
        (None, "[1, 2]", [1, 2]),
    ],
)
def test_a_bare_word_is_text_where_text_is_wanted_and_json_elsewhere(name: str | None, text: str, value: Any) -> None:
    found = from_word(FLAGS[name] if name else None, text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("width", "true", "True is no whole number"),
        ("width", "wide", "column 1: it is no JSON: Expecting value"),
        ("width", "[64, 64]", "it takes one value, not a list"),
        ("guidance_scale", "1" + "0" * 400, f"{'1' + '0' * 56}... is too large"),
        ("mode", "slow", "'slow' is none of fast, fine"),
        ("negative_prompt", "[1]", "1 is no text"),
        (None, "a fox", "column 1: it is no JSON: Expecting value"),
    ],
)
def test_words_that_are_refused(name: str | None, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_word(FLAGS[name] if name else None, text)
