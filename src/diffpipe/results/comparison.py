"""What differs between a file and the one made again: in what made them, and in what they show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ..core.canonical import JsonValue
from .document import Document

# Decibels from which what was made again counts as the same. At 40 dB the root mean square error is 1 % of full scale
# (2.6 levels of 255), which is taken for invisible in picture coding; the ear hears more: 60 dB is 0.1 %.
EQUAL = {"picture": 40.0, "frames": 40.0, "sound": 60.0}
MOST_NAMED = 5  # differences that one message names
# The parts of a document that can explain a difference.
EXPLAIN = ("pipeline", "config", "sources", "arguments", "media", "seed", "versions", "device", "stepped_down")


def verdict(identical: bool, measured: Mapping[str, float | None]) -> tuple[bool, str]:
    """Whether what was made again is the same, and in which words.

    `measured`: PSNR in dB of "picture", "frames" or "sound", infinite where all is equal, None where sizes differ.
    """
    if identical:
        return True, "identical, byte for byte"
    known = {name: value for name, value in measured.items() if value is not None}
    if len(known) < len(measured):
        return False, "differs in size or length"
    if all(value == float("inf") for value in known.values()):
        return True, f"the same {' and '.join(known)} once decoded; other bytes of the file differ"
    found = ", ".join(f"{name} PSNR {value:.1f} dB" for name, value in known.items())
    if not all(value >= EQUAL[name] for name, value in known.items()):
        return False, f"differs, {found}"
    return True, f"{'audibly' if set(known) == {'sound'} else 'visually'} equal, {found}"


def changes(recorded: Document, now: Document) -> list[str]:
    """What differs between the documents of a file and of the one made again that can explain a difference."""
    found = [line for name in EXPLAIN for line in differences(recorded.json.get(name), now.json.get(name), name)]
    size = recorded.batch_size
    return found + ([f"it was made up to {size} in a call, and now alone"] if size > 1 else [])


def differences(recorded: JsonValue, found: JsonValue, path: str = "") -> Iterator[str]:
    """What differs between two JSON values, a line a leaf, by its path."""
    if isinstance(recorded, dict) and isinstance(found, dict):
        for name in sorted({*recorded, *found}):
            yield from differences(recorded.get(name), found.get(name), f"{path}.{name}" if path else name)
    elif isinstance(recorded, list) and isinstance(found, list) and len(recorded) == len(found):
        for place, (one, other) in enumerate(zip(recorded, found, strict=True)):
            yield from differences(one, other, f"{path}.{place}")
    elif recorded != found:
        hashed = all(str(value).startswith(("sha256:", "git:")) for value in (recorded, found))
        yield f"{path} is another file" if hashed else f"{path}: {_shown(recorded)} then, {_shown(found)} now"


def _shown(value: JsonValue) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def in_short(different: Iterable[str]) -> str:
    """A few differences as one line."""
    listed = list(different)
    more = len(listed) - MOST_NAMED
    return "; ".join(listed[:MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")
