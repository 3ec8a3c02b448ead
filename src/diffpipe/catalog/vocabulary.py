"""What a small model understands: its words, named before the picture is made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.resources import files as package_files

from ..core.canonical import JsonObject
from ..core.parsing import Fields, parse_json

WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
LONGEST = 30  # letters of an unknown word that are repeated to the user
LARGEST_FILE = 1_000_000  # bytes


@dataclass(frozen=True)
class Vocabulary:
    """The words of a model, by kind. Those that stand for something else are mappings: colours' values (#rrggbb), what
    a placement is called in a prompt, what a LoRA draws, the word that a synonym stands for.

    `document` is all of it as it was written, with what is for programs.
    """

    subjects: tuple[str, ...] = ()
    colours: Mapping[str, str] = field(default_factory=dict)
    sizes: tuple[str, ...] = ()
    placements: Mapping[str, str] = field(default_factory=dict)
    loras: Mapping[str, str] = field(default_factory=dict)
    examples: tuple[str, ...] = ()
    synonyms: Mapping[str, str] = field(default_factory=dict)
    other_words: tuple[str, ...] = ()
    document: JsonObject = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: object) -> Vocabulary:
        """Raises Misfit for what is no vocabulary."""
        fields = Fields(value)
        return cls(
            subjects=fields.texts("subjects", ()),
            colours=_pairs(fields, "colours"),
            sizes=fields.texts("sizes", ()),
            placements=_pairs(fields, "placements"),
            loras=_pairs(fields, "loras"),
            examples=fields.texts("examples", ()),
            synonyms=_pairs(fields, "synonyms"),
            other_words=fields.texts("other_words", ()),
            document=fields.value,
        )

    def shown(self) -> dict[str, str]:
        """A line of text for each kind of words that there are."""
        lines = {
            "subjects": ", ".join(self.subjects),
            "colours": ", ".join(self.colours),
            "sizes": ", ".join(self.sizes),
            "placements": ", ".join(self.placements.values()),  # a bare "left" means little to the model
            "loras": ", ".join(f"demo:{name} ({what})" for name, what in self.loras.items()),
            "examples": "; ".join(self.examples),
        }
        return {kind: line for kind, line in lines.items() if line}

    def unknown_words(self, prompt: str) -> dict[str, list[str]]:
        """The words of a prompt that are not in it, each with the known words nearest to it."""
        known = self._known()
        return {
            word[:LONGEST]: get_close_matches(word, sorted(known), n=3, cutoff=0.7) if len(word) <= LONGEST else []
            for word in dict.fromkeys(WORD.findall(prompt.lower()))
            if word not in known
        }

    def _known(self) -> set[str]:
        """Every single word in lower case; of placements and synonyms both sides."""
        phrases = (*self.subjects, *self.colours, *self.sizes, *self.other_words)
        both = (text for pairs in (self.placements, self.synonyms) for pair in pairs.items() for text in pair)
        return {word for text in (*phrases, *both) for word in WORD.findall(text.lower())}


def _pairs(fields: Fields, name: str) -> dict[str, str]:
    inside = fields.object(name)
    return {key: inside.text(key) for key in inside.names()}


def read(path: str) -> Vocabulary:
    """A vocabulary of the package."""
    return Vocabulary.from_json(parse_json((package_files("diffpipe") / path).read_bytes(), LARGEST_FILE, path))
