"""Text from anywhere as a line that a terminal shows, and does nothing else with."""

from __future__ import annotations

import re

# What moves a terminal's cursor, changes its colours, ends a line, or turns the direction of writing (Unicode Standard
# Annex 9); and surrogates, which no stream can encode. Tabs part columns.
CONTROLS = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udc7f\udd00-\udfff]"
)
# These surrogates stand for bytes of file names that are no UTF-8 (PEP 383), and are printed as those.
BYTES = re.compile("[\udc80-\udcff]+")


def printable(text: str) -> str:
    r"""One line, with escapes (\n, \x1b, \u202e) in the place of what a terminal would obey."""
    return CONTROLS.sub(_escaped, BYTES.sub(_undisguised, text))


def printable_json(text: str) -> str:
    """JSON text that says the same, with escapes of JSON in the place of what a terminal would obey."""
    plain = BYTES.sub(lambda run: run[0] if _undisguised(run) == run[0] else _json_escaped(run), text)
    return CONTROLS.sub(_json_escaped, plain)


def printable_lines(text: str) -> str:
    """The same of several lines, which stay apart."""
    return "\n".join(map(printable, text.split("\n")))


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def _json_escaped(found: re.Match[str]) -> str:
    return "".join(f"\\u{ord(letter):04x}" for letter in found[0])


def _undisguised(run: re.Match[str]) -> str:
    """Bytes as text, where they are UTF-8 after all: no file's name is read so, and a terminal would obey it."""
    return run[0].encode(errors="surrogateescape").decode(errors="surrogateescape")
