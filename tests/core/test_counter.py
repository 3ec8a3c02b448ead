"""Counting texts in little memory."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from diffpipe.core.counter import CompactCounter


@given(texts=st.lists(st.text(max_size=4) | st.sampled_from(["", "\ud800", "x" * 999]), max_size=60))
def test_it_counts_as_a_counter_does(texts: list[str]) -> None:
    counter, counted = CompactCounter(4), Counter[str]()
    for text in texts:
        counted[text] += 1
        assert counter.add(text) == counted[text]
    assert {text: counter[text] for text in texts} == dict(counted)
    assert len(counter) == len(counted)
    assert counter["not there"] == 0


def test_numbers_are_kept_and_replaced_while_it_grows() -> None:
    counter = CompactCounter(4, large=True)
    for number in range(1, 5000):
        counter[f"item {number}"] = number
    counter["item 7"] = 2**40
    assert len(counter) == 4999
    assert [counter[f"item {number}"] for number in (1, 7, 4999, 5000)] == [1, 2**40, 4999, 0]
