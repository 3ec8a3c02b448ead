"""The words a small model knows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from diffpipe.vocabulary import unknown_words

WORDS = {"subjects": ["panda", "rocket", "cat face", "ice cream"], "colours": ["pink", "blue"], "sizes": ["small"]}


def test_a_prompt_of_known_words_has_no_unknown_ones() -> None:
    assert unknown_words("A small PANDA, on a pink background's", {**WORDS, "other": ["background's"]}) == {}


def test_an_unknown_word_comes_with_near_ones() -> None:
    assert unknown_words("a pandda on a pinc rocket", WORDS) == {"pandda": ["panda"], "pinc": ["pink"]}


def test_words_of_phrases_and_plurals_are_known() -> None:
    assert unknown_words("two cat faces and pandas", WORDS) == {"two": []}


@given(st.text(max_size=200))
def test_any_prompt_can_be_asked_about(prompt: str) -> None:
    assert all(word == word.lower() for word in unknown_words(prompt, WORDS))
