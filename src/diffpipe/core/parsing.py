"""The wall for data from outside: JSON text to values, values to fields of a known type, range and count."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import TypeVar, get_args

from .canonical import JsonObject, JsonValue

T = TypeVar("T")

DEEPEST = 100  # lists and objects within each other; no writer of ours comes near
WRAPPED = DEEPEST + 10  # the same of a message or document that holds such a value within objects of its own
LONGEST_TEXT = 1_000_000  # characters of one text field
MOST_ENTRIES = 1_000_000  # of one list or object
LARGEST = 2**63 - 1  # of an integer field: bytes of files, counts, seconds


class Misfit(ValueError):
    """What a value from outside is not, and where it stands in its document ("sources.0.files: ...")."""


def parse_json(
    data: str | bytes, most: int, what: str = "it", *, finite: bool = True, twice: bool = True, deepest: int = DEEPEST
) -> JsonValue:
    """The value of a JSON text of at most `most` bytes (or characters, for text).

    Raises Misfit for one that is larger, is no JSON, is nested deeper than `deepest`, or has NaN or infinity in it; not
    `finite`, it may have these, as Python writes them. Of a name that an object has twice the last value counts; not
    `twice`, that is a misfit, too.
    """
    if len(data) > most:
        raise Misfit(f"{what} is larger than {most} bytes")
    try:
        constant, pairs = _refuse if finite else float, None if twice else once
        value: JsonValue = json.loads(data, parse_constant=constant, object_pairs_hook=pairs)
    except RecursionError as error:
        raise Misfit(f"{what} is nested too deeply") from error
    except ValueError as error:
        raise error if isinstance(error, Misfit) else Misfit(f"{what} is no JSON") from error
    if deeper(value, deepest):
        raise Misfit(f"{what} is nested too deeply")
    return value


def once(pairs: list[tuple[str, JsonValue]]) -> JsonObject:
    """An object of these names and values. Raises Misfit for a name that is there twice."""
    found: JsonObject = {}
    for name, value in pairs:
        if name in found:
            raise Misfit(f"{name!r:.60} is there twice")
        found[name] = value
    return found


def _refuse(name: str) -> float:
    raise Misfit(f"{name} is no JSON")


def deeper(value: JsonValue, most: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inside = value.values() if isinstance(value, dict) else value
    return most == 0 or any(deeper(one, most - 1) for one in inside)


class OtherVersion(Misfit):
    """A value that another version of diffpipe wrote, and this one cannot read."""


class Fields:
    """A JSON object from outside, read field by field.

    Each method returns a field as its type or raises Misfit, naming the place. A field that is missing or null gives
    `default` where one is passed; without one it is a misfit.
    """

    def __init__(self, value: object, where: str = "") -> None:
        if not isinstance(value, dict):
            raise Misfit(f"{where or 'it'} is no object")
        if len(value) > MOST_ENTRIES:
            raise Misfit(f"{where or 'it'} has more than {MOST_ENTRIES} entries")
        self.value: JsonObject = value
        self.where = where

    def __contains__(self, name: str) -> bool:
        return self.value.get(name) is not None

    def names(self) -> list[str]:
        return list(self.value)

    def text(self, name: str, default: str | None = None, most: int = LONGEST_TEXT) -> str:
        found = self._get(name, str, default)
        if len(found) > most:
            raise self._misfit(name, f"is longer than {most} characters")
        return found

    def maybe_text(self, name: str) -> str | None:
        return self.text(name) if name in self else None

    def matching(self, name: str, pattern: re.Pattern[str], default: str | None = None) -> str:
        """A text that a pattern fits, or the default."""
        found = self.text(name, default)
        if found != default and not pattern.fullmatch(found):
            raise self._misfit(name, "has a form that it cannot have")
        return found

    def choice(self, name: str, kind: object, default: T | None = None) -> T:
        """One of the values of a Literal; typed by where it goes."""
        found = self.text(name, None if default is None else str(default))
        if found not in get_args(kind):
            raise self._misfit(name, f"is none of {', '.join(map(str, get_args(kind)))}")
        return found  # type: ignore[return-value]

    def integer(self, name: str, default: int | None = None, least: int = 0, most: int = LARGEST) -> int:
        found = self._get(name, int, default)
        if isinstance(found, bool) or not least <= found <= most:
            raise self._misfit(name, f"is no whole number from {least} to {most}")
        return found

    def maybe_integer(self, name: str, least: int = 0, most: int = LARGEST) -> int | None:
        return self.integer(name, None, least, most) if name in self else None

    def number(self, name: str, default: float | None = None, least: float = -LARGEST, most: float = LARGEST) -> float:
        found = self._get(name, (int, float), default)
        if isinstance(found, bool) or not math.isfinite(most if isinstance(found, int) else found):
            raise self._misfit(name, "is no number")
        if not least <= found <= most:
            raise self._misfit(name, f"is no number from {least:g} to {most:g}")
        return found

    def maybe_number(self, name: str) -> float | None:
        return self.number(name) if name in self else None

    def truth(self, name: str, default: bool | None = None) -> bool:
        return self._get(name, bool, default)

    def texts(self, name: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        found = self._get(name, list, None if default is None else list(default))
        if len(found) > MOST_ENTRIES or not all(isinstance(one, str) and len(one) <= LONGEST_TEXT for one in found):
            raise self._misfit(name, "is no list of texts")
        return tuple(found)

    def all_matching(
        self, name: str, pattern: re.Pattern[str], default: tuple[str, ...] | None = None
    ) -> tuple[str, ...]:
        """A list of texts that a pattern fits, none of them twice."""
        found = self.texts(name, default)
        if len(set(found)) < len(found) or not all(map(pattern.fullmatch, found)):
            raise self._misfit(name, "has an entry that it cannot have")
        return found

    def integers(self, name: str, most: int = MOST_ENTRIES) -> tuple[int, ...]:
        """A list of at most `most` whole numbers."""
        found = self.values(name)
        if len(found) > most or not all(type(one) is int and abs(one) < 2**64 for one in found):
            raise self._misfit(name, "is no list of whole numbers")
        return tuple(one for one in found if isinstance(one, int))

    def values(self, name: str, default: list[JsonValue] | None = None) -> list[JsonValue]:
        """A list of anything, each to be parsed by the caller."""
        found: list[JsonValue] = self._get(name, list, default)
        if len(found) > MOST_ENTRIES:
            raise self._misfit(name, f"has more than {MOST_ENTRIES} entries")
        return found

    def object(self, name: str) -> Fields:
        """An object; where it is missing or null, an empty one."""
        return Fields({} if name not in self else self.value[name], self._place(name))

    def objects(self, name: str) -> list[Fields]:
        """A list of objects; where it is missing or null, an empty one."""
        found = self.values(name, [])
        return [Fields(one, f"{self._place(name)}.{number}") for number, one in enumerate(found)]

    def entries(self, name: str) -> Iterator[tuple[str, Fields]]:
        """The entries of an object whose values are objects; where it is missing or null, none."""
        inside = self.object(name)
        for key in inside.names():
            yield key, Fields(inside.value[key], inside._place(key))

    def parsed(self, name: str, parse: Callable[[str], T]) -> T:
        """A text field as `parse` reads it; what that raises as ValueError is a misfit."""
        try:
            return parse(self.text(name))
        except ValueError as error:
            raise error if isinstance(error, Misfit) else self._misfit(name, str(error)) from error

    def _get(self, name: str, kind: type[T] | tuple[type, ...], default: T | None) -> T:
        found = self.value.get(name)
        if found is None:
            if default is None:
                raise self._misfit(name, "is missing")
            return default
        if not isinstance(found, kind):
            wanted = kind if isinstance(kind, type) else kind[0]
            raise self._misfit(name, f"is no {NAMES[wanted]}")
        return found  # type: ignore[return-value]

    def _place(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name

    def _misfit(self, name: str, what: str) -> Misfit:
        shown = name if name.isprintable() and len(name) < 100 else "a field"
        return Misfit(f"{self._place(shown)} {what}")


NAMES = {str: "text", int: "number", float: "number", bool: "truth value", list: "list"}
