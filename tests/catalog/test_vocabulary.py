"""The words a small model knows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from diffpipe.catalog.vocabulary import Vocabulary, read

WORDS = Vocabulary.from_json(
    {
        "subjects": ["panda", "rocket", "ice cream"],
        "colours": {"pink": "#faa6c8", "blue": "#4280e2"},
        "sizes": ["small"],
        "placements": {"left": "on the left"},
        "synonyms": {"grey": "gray", "pandas": "panda"},
        "other_words": ["a", "background", "on"],
        "loras": {"pencil": "grey drawing"},
        "defaults": {"width": 128},
    }
)


def test_a_prompt_of_known_words_has_no_unknown_ones() -> None:
    assert WORDS.unknown_words("A small PANDA, on a pink background on the left! Pandas, grey ice cream.") == {}


def test_an_unknown_word_comes_with_near_ones() -> None:
    assert WORDS.unknown_words("a pandda on a pinc rocket") == {"pandda": ["panda", "pandas"], "pinc": ["pink"]}


def test_words_of_other_scripts_and_endless_ones_are_named_too() -> None:
    assert WORDS.unknown_words("émoji " + "x" * 10_000) == {"émoji": [], "x" * 30: []}


def test_what_people_are_shown() -> None:
    assert WORDS.shown() == {
        "subjects": "panda, rocket, ice cream",
        "colours": "pink, blue",
        "sizes": "small",
        "placements": "on the left",
        "loras": "demo:pencil (grey drawing)",
    }


def test_the_demo_models_own_examples_are_known() -> None:
    words = read("demo/vocabulary.json")
    assert len(words.examples) >= 5
    assert [words.unknown_words(prompt) for prompt in words.examples] == [{} for _ in words.examples]


@given(st.text(max_size=200))
def test_any_prompt_can_be_asked_about(prompt: str) -> None:
    assert all(len(word) <= 30 for word in WORDS.unknown_words(prompt))
