"""A library's warning in its own words, which stands in results and journals, and is shown once a run."""

from __future__ import annotations

SAYS = " says: "


def quoted(library: str, text: str) -> str:
    """The words of a library as a warning of ours."""
    return f"{library}{SAYS}{text}"


def is_quoted(text: str) -> bool:
    """Whether a warning is a library's, in its own words."""
    library, says, _ = text.partition(SAYS)
    return bool(says) and " " not in library
