"""What a small model understands: its words, told before the picture is made."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib.resources import files as package_files
from typing import Any

WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
LONGEST = 30  # letters of an unknown word that are repeated to the user
# The kinds of words a vocabulary may hold, as people are shown them; other keys are for programs.
SHOWN = ("subjects", "colours", "sizes", "placements", "loras", "examples")
UNDERSTOOD = ("subjects", "colours", "sizes", "placements", "synonyms", "other_words")


def read(path: str) -> dict[str, Any]:
    """A vocabulary of the package: kind ("subjects", "colours", …) -> words, or words with what they stand for."""
    return dict(json.loads((package_files("diffpipe") / path).read_text(encoding="utf-8")))


def shown(vocabulary: Mapping[str, Any]) -> dict[str, str]:
    """A line of text for each kind of words."""
    return {kind: _line(kind, vocabulary[kind]) for kind in SHOWN if kind in vocabulary}


def _line(kind: str, words: Any) -> str:
    if kind == "placements":  # a bare "left" means little to the model: the phrases do
        words = words.values()
    elif kind == "loras":
        words = [f"demo:{name} ({what})" for name, what in words.items()]
    return ("; " if kind == "examples" else ", ").join(words)


def unknown_words(prompt: str, vocabulary: Mapping[str, Any]) -> dict[str, list[str]]:
    """The words of a prompt that the vocabulary lacks, each with the known words nearest to it."""
    phrases = [phrase for kind in UNDERSTOOD for phrase in _phrases(vocabulary.get(kind, ()))]
    known = {word for phrase in phrases for word in WORD.findall(phrase)}
    return {
        word[:LONGEST]: get_close_matches(word, sorted(known), n=3, cutoff=0.7) if len(word) <= LONGEST else []
        for word in dict.fromkeys(WORD.findall(prompt.lower()))
        if word not in known
    }


def _phrases(words: Iterable[str] | Mapping[str, str]) -> list[str]:
    """Words in lower case; of a mapping both sides, but for colours' values (#rrggbb), which are no words."""
    both = [*words, *(words.values() if isinstance(words, Mapping) else ())]
    return [word.lower() for word in both if not word.startswith("#")]
