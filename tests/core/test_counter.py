"""Counting texts in little memory."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from diffpipe.core.counter import Tally


@given(texts=st.lists(st.text(max_size=4) | st.sampled_from(["", "\ud800", "x" * 999]), max_size=60))
def test_it_counts_as_a_counter_does(texts: list[str]) -> None:
    tally, counted = Tally(4), Counter[str]()
    for text in texts:
        counted[text] += 1
        assert tally.add(text) == counted[text]
    assert {text: tally[text] for text in texts} == dict(counted)
    assert len(tally) == len(counted)
    assert tally["not there"] == 0


def test_numbers_are_kept_and_replaced_while_it_grows() -> None:
    tally = Tally(4, large=True)
    for number in range(1, 5000):
        tally[f"item {number}"] = number
    tally["item 7"] = 2**40
    assert len(tally) == 4999
    assert [tally[f"item {number}"] for number in (1, 7, 4999, 5000)] == [1, 2**40, 4999, 0]
