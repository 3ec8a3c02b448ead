"""Texts that go into files, where they must be the same on every machine, and name no place on any."""

from __future__ import annotations

import re

# An absolute path up to its last part, on POSIX systems and Windows, or from somebody's home on.
PLACE = re.compile(r"""(?<![\w.:/\\])(?:~|[A-Za-z]:)?[\\/](?:[^\s'":*?<>|\\/]+[\\/])+([^\s'":*?<>|\\/]*)""")


def placeless(text: str) -> str:
    """A text with the name alone of each file and folder that it names by its absolute path. Addresses stay."""
    return PLACE.sub(r"\1", text)
