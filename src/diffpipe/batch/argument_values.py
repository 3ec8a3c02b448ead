"""Text and JSON -> the values of call arguments, typed by the pipeline's flags."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import TypeVar

from ..core.canonical import JsonValue
from ..core.errors import UsageError
from ..core.flag import MAX_SEED, MEDIA_KINDS, Flag, FlagKind
from ..core.parsing import DEEPEST, Misfit, deeper, once

V = TypeVar("V")

MOST = 1_000_000  # items of one line, and values of one sweep
# What an item may have besides call arguments. These names win over call arguments of the same name.
OWN = {
    "id": Flag("id", "text"),
    "output": Flag("output", "text"),
    "seed": Flag("seed", "integer", minimum=0, maximum=MAX_SEED),
    "count": Flag("count", "integer", minimum=1, maximum=MOST),
}
NUMBER = r"[+-]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d{1,3})?"
INTEGER = r"[+-]?\d{1,400}"
TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
TYPES: Mapping[FlagKind, tuple[type, ...]] = {"integer": (int,), "number": (int, float), "boolean": (bool,)}
NOUNS: Mapping[FlagKind, str] = {
    "integer": "whole number", "number": "number", "boolean": "true or false", "choice": "text", "text": "text"
}  # fmt: skip
WORDS = MEDIA_KINDS | {"text", "choice"}  # kinds whose values are text


class NoJson(ValueError):
    """Text that is no JSON: the column of the fault, from 1, and the reason."""

    def __init__(self, column: int, reason: str) -> None:
        super().__init__(f"column {column}: {reason}")
        self.column = column


def argument_name(written: str) -> str:
    return written.strip().replace("-", "_")


def typed_values(
    written: Mapping[str, V],
    read: Callable[[Flag | None, V], JsonValue],
    where: str,
    flags: Mapping[str, Flag],
    names: Collection[str],
) -> dict[str, JsonValue]:
    """Values by argument name, each as `read` (which raises ValueError) makes it of its flag and what was written.

    None is left out. `names` are the arguments there may be, with flags or without. Raises UsageError that says
    `where` the values are from, and names the argument.
    """
    values: dict[str, JsonValue] = {}
    for title, given in written.items():
        name, place = argument_name(title), f"{where}, column {title}"
        if name not in names:
            raise unknown_argument(place, title, names)
        if name in values:
            raise UsageError(f"{place}: it is there twice", "keep one of them")
        if given is None:
            continue
        try:
            values[name] = read(OWN.get(name) or flags.get(name), given)
        except ValueError as error:
            raise UsageError(f"{place}: {error}", "the pipeline's --help shows what it takes") from None
    return values


def unknown_argument(place: str, written: str, names: Collection[str]) -> UsageError:
    """The error for an argument that a pipeline does not take: with the nearest name, or all there are."""
    return UsageError(f"{place}: the pipeline takes no {shown(written)}", _near(written, names))


def _near(written: str, names: Collection[str]) -> str:
    near = get_close_matches(argument_name(written), sorted(names), n=1)
    return f"did you mean {near[0]}?" if near else f"it takes: {', '.join(sorted(names))}"


def from_text(flag: Flag | None, text: str) -> JsonValue:
    """The value that text stands for where an argument is wanted; JSON, else the text itself, where it has no flag.

    Lists are JSON. Raises ValueError with what is wrong with it.
    """
    plain = text.strip()
    if flag is None or (flag.many and plain.startswith("[")):
        return _list_or_text(flag, plain)
    if flag.kind == "json":
        return json_of(plain)
    if flag.kind == "boolean":
        if plain.lower() not in TRUTH:
            raise ValueError(f"{shown(text)} is neither true nor false")
        return TRUTH[plain.lower()]
    if flag.kind in ("integer", "number"):
        if not re.fullmatch(INTEGER if flag.kind == "integer" else NUMBER, plain):
            raise ValueError(f"{shown(text)} is no {NOUNS[flag.kind]}")
        return int(plain) if flag.kind == "integer" else float(plain)
    return from_json(flag, plain)


def _list_or_text(flag: Flag | None, plain: str) -> JsonValue:
    try:
        return from_json(flag, json_of(plain))
    except ValueError:
        if flag and flag.kind not in ("text", *MEDIA_KINDS):
            raise
        return plain


def from_word(flag: Flag | None, text: str) -> JsonValue:
    """The value of JSON; where the argument is text or a file, of a bare word, too.

    Raises ValueError with what is wrong with it.
    """
    bare = flag is not None and flag.kind in WORDS and not text.startswith(('"', "["))
    return from_json(flag, text if bare else json_of(text))


def from_json(flag: Flag | None, value: JsonValue) -> JsonValue:
    """A JSON value where an argument is wanted; single values of lists bare where they may be.

    Raises ValueError with what is wrong with it.
    """
    if flag is None or flag.kind == "json":
        return value
    if isinstance(value, list):
        if not flag.many:
            raise ValueError("it takes one value, not a list")
        values = [from_json(replace(flag, many=False), one) for one in value]
        return values[0] if flag.scalar and len(values) == 1 else values
    if not isinstance(value, TYPES.get(flag.kind, (str,))) or (isinstance(value, bool) and flag.kind != "boolean"):
        raise ValueError(f"{shown(value)} is no {NOUNS.get(flag.kind, 'file name')}")
    if flag.kind == "choice" and value not in flag.choices:
        raise ValueError(f"{shown(value)} is none of {', '.join(flag.choices)}")
    if flag.kind == "number" and isinstance(value, int):
        return _as_number(value)  # 4 and 4.0 are the same item
    return value


def _as_number(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{shown(value)} is too large") from None


def json_of(text: str) -> JsonValue:
    """A JSON value; no NaN, Infinity or name that is there twice, which Python's parser takes. Raises NoJson."""
    try:
        value: JsonValue = json.loads(
            text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=once
        )
    except json.JSONDecodeError as error:
        raise NoJson(error.colno, f"it is no JSON: {error.msg}") from None
    except Misfit as error:
        raise NoJson(1, str(error)) from None
    except RecursionError:
        raise NoJson(1, "it is nested too deeply") from None
    except ValueError as error:
        raise NoJson(1, f"it is no JSON: {error}") from None
    if text.count("[") + text.count("{") > DEEPEST and deeper(value, DEEPEST):
        raise NoJson(1, "it is nested too deeply")
    return value


def _finite(text: str) -> float:
    """1e999 is JSON, and infinite in Python."""
    if abs(float(text)) == float("inf"):
        raise ValueError(f"{text} is too large")
    return float(text)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def shown(value: object) -> str:
    """A value for a message, cut."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
