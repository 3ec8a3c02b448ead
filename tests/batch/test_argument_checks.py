"""Call arguments that cannot be used are refused before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffpipe.batch.argument_checks import LONGEST_TEXT, MOST_BYTES, checked
from diffpipe.core.errors import UsageError
from diffpipe.core.flag import Flag

FIT = "--fit takes it by itself"


def flag(kind: Any = "number", **fields: Any) -> Flag:
    return Flag(name="value", kind=kind, **fields)


@pytest.mark.parametrize(
    ("known", "value", "message", "hint"),
    [
        (flag(minimum=0, maximum=1), 1.5, "--value 1.5 is out of range", "give from 0 to 1"),
        (flag(minimum=0, maximum=1), -0.1, "--value -0.1 is out of range", "give from 0 to 1"),
        (flag(minimum=1), 0, "--value 0 is out of range", "give at least 1"),
        (flag(maximum=512), 513, "--value 513 is out of range", "give at most 512"),
        (flag(), float("nan"), "--value nan is not a finite number", "give a finite number"),
        (flag(), float("inf"), "--value inf is not a finite number", "give a finite number"),
        (flag(many=True), [1.0, float("-inf")], "--value -inf is not a finite number", "give a finite number"),
        (flag("integer"), 10**400, f"--value 1{'0' * 19}… is out of range", "give a finite number"),
        (flag("integer", multiple_of=16), 33, "--value 33 is no multiple of 16", f"the nearest: 32 or 48; {FIT}"),
        (flag("integer", multiple_of=16), 1, "--value 1 is no multiple of 16", f"the nearest: 16; {FIT}"),
        (flag("integer", minimum=8, multiple_of=16), -5, "--value -5 is out of range", "give at least 16"),
        (flag("integer", minimum=8, maximum=100, multiple_of=16), 0, "--value 0 is out of range", "give from 16 to 96"),
        (flag("image", required=True), "", "--value is missing", "give it"),
        (flag("text", required=True, help="A."), None, "--value is missing", "this pipeline needs it: A."),
        (flag("image", required=True, many=True), [], "--value is missing", "give it"),
    ],
)  # fmt: skip
def test_values_that_are_refused(known: Flag, value: Any, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        checked({"value": known}, {"value": value})
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_what_is_empty_is_left_out() -> None:
    flags = {"a": Flag("a", "text"), "b": Flag("b", "image", many=True), "c": Flag("c", "boolean")}
    assert checked(flags, {"a": None, "b": [], "c": False, "d": 0}) == {"c": False, "d": 0}


def test_an_empty_text_that_is_given_is_one() -> None:
    flags = {"prompt": Flag("prompt", "text", required=True)}
    assert checked(flags, {"prompt": ""}) == {"prompt": ""}
    with pytest.raises(UsageError, match="--prompt is missing"):
        checked(flags, {})


@pytest.mark.parametrize("value", [0, -5])
def test_what_is_no_size_is_not_fitted(value: int) -> None:
    flags = {"width": Flag("width", "integer", minimum=8, multiple_of=16)}
    assert checked(flags, {"width": 5}, fit=True) == {"width": 16}
    with pytest.raises(UsageError, match=f"--width {value} is out of range"):
        checked(flags, {"width": value}, fit=True)


def test_a_default_out_of_range_is_not_the_users_fault_but_is_found() -> None:
    with pytest.raises(UsageError, match="--value 0 is out of range"):
        checked({"value": flag(default=0, minimum=1)}, {})


def test_settings_of_a_processor_must_be_an_object() -> None:
    flags = {"attention_kwargs": Flag("attention_kwargs", "json"), "boxes": Flag("boxes", "json")}
    assert checked(flags, {"attention_kwargs": {"scale": 1}, "boxes": [[0, 1]]})
    with pytest.raises(UsageError, match="--attention-kwargs must be a JSON object"):
        checked(flags, {"attention_kwargs": [1]})


@given(
    value=st.integers() | st.floats(),
    low=st.integers(-9, 9),
    span=st.integers(0, 9),
    step=st.sampled_from([None, 8, 16]),
)
def test_a_checked_value_is_in_its_range(value: float, low: int, span: int, step: int | None) -> None:
    known = flag("integer" if step else "number", minimum=low, maximum=low + span, multiple_of=step)
    try:
        checked({"value": known}, {"value": value})
    except UsageError:
        assert not (low <= value <= low + span and (not step or value % step == 0))
    else:
        assert low <= value <= low + span
        assert not step or value % step == 0


def test_text_that_is_no_utf8_is_refused() -> None:
    with pytest.raises(UsageError, match="--prompt is not valid UTF-8"):
        checked({"prompt": Flag("prompt", "text")}, {"prompt": b"\xff bad".decode(errors="surrogateescape")})


@pytest.mark.parametrize(
    ("steps", "strength", "runs"), [(8, 0.0, False), (8, 0.1, True), (8, 0.125, True), (3, 1.0, True)]
)
def test_a_strength_that_leaves_no_step_is_refused(steps: int, strength: float, runs: bool) -> None:
    arguments = {"num_inference_steps": steps, "strength": strength}
    if runs:
        assert checked({}, arguments) == arguments
    else:
        with pytest.raises(UsageError, match="leaves none of 8 steps") as refused:
            checked({}, arguments)
        assert refused.value.hint == "give more: 0.125 runs one step"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "a Cat and a dog", "words": ["cat", "frog"]}, "--words frog: the prompt does not have it"),
        ({"tile_size": 64, "tile_overlap": 64}, "--tile-overlap 64 is not below --tile-size 64"),
    ],
)
def test_arguments_that_do_not_go_together(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        checked({}, arguments)
    assert refused.value.message == message


@pytest.mark.parametrize("given", ["a.png", ["a.png"]])
def test_one_value_is_a_list_of_one_where_the_argument_takes_lists_alone(given: Any) -> None:
    flags = {"images": Flag("images", "image", many=True, scalar=False)}
    assert checked(flags, {"images": given}) == {"images": ["a.png"]}
    assert checked({"images": Flag("images", "image", many=True)}, {"images": given}) == {"images": given}


def test_texts_and_arguments_that_no_model_reads_are_refused() -> None:
    flags = {"prompt": Flag("prompt", "text"), "more": Flag("more", "json")}
    assert checked(flags, {"prompt": "x" * LONGEST_TEXT})
    with pytest.raises(UsageError, match=f"--prompt has {LONGEST_TEXT + 1} characters"):
        checked(flags, {"prompt": "x" * (LONGEST_TEXT + 1)})
    with pytest.raises(UsageError, match=f"the call arguments are larger than {MOST_BYTES} bytes"):
        checked(flags, {"prompt": "x", "more": [0] * (MOST_BYTES // 3)})
