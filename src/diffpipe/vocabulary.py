"""What a small model understands: its words, told before the picture is made."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.resources import files as package_files
from typing import Any

WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
FILLERS = frozenset(["a", "an", "the", "and", "of", "with", "in", "on", "at", "to", "is"])


def read(path: str) -> dict[str, list[str]]:
    """A vocabulary of the package: kind ("subjects", "colours", …) -> words or short phrases."""
    return dict(json.loads((package_files("diffpipe") / path).read_text(encoding="utf-8")))


def unknown_words(prompt: str, vocabulary: Mapping[str, Any]) -> dict[str, list[str]]:
    """The words of a prompt that the vocabulary lacks, each with the subjects, colours or other words nearest to it."""
    phrases = [phrase.lower() for words in vocabulary.values() if isinstance(words, list) for phrase in words]
    known = {word for phrase in phrases for word in WORD.findall(phrase)} | FILLERS
    return {
        word: get_close_matches(word, phrases, n=3, cutoff=0.6)
        for word in dict.fromkeys(WORD.findall(prompt.lower()))
        if word not in known and not (word.endswith("s") and word[:-1] in known)
    }
