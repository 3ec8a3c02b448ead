"""Text from anywhere as a line that a terminal shows, and does nothing else with."""

from __future__ import annotations

import re

# What moves a terminal's cursor, changes its colours, ends a line, or turns the direction of writing (Unicode Standard
# Annex 9). Tabs part columns. Some surrogates stand for bytes of file names that are no UTF-8 (PEP 383), printed
# as those; no others can be.
CONTROLS = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udc7f\udd00-\udfff]"
)


def printable(text: str) -> str:
    r"""One line, with escapes (\n, \x1b, \u202e) in the place of what a terminal would obey."""
    return CONTROLS.sub(_escaped, text)


def printable_lines(text: str) -> str:
    """The same of several lines, which stay apart."""
    return "\n".join(map(printable, text.split("\n")))


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
