"""What is wrong with the rows that a plug-in brings: their fields have the types that `rows` says, and no others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields

from ..core.choices import DTYPES
from .rows import FlagFields, PipelineType, Provider

NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
HOOK = re.compile(r"[\w.]+:\w+")  # module:function
HOOKS = frozenset({"load", "call"})


def problem_of(provider: object) -> str:
    """The first thing that keeps a plug-in's value from being a provider, "" for nothing."""
    if not isinstance(provider, Provider):
        return f"{type(provider).__name__} is no diffpipe.Provider"
    if not isinstance(provider.types, tuple | list) or not provider.types:
        return "it has no list with at least one type"
    if not isinstance(provider.name, str) or not NAME.fullmatch(provider.name):
        return f"{provider.name!r} is no name: use lower-case letters, digits, dots and dashes"
    rows = [row for row in provider.types if isinstance(row, PipelineType)]
    if len(rows) < len(provider.types):
        return "one of its types is no diffpipe.PipelineType"
    return next(_problems(provider, rows), "")


def _problems(provider: Provider, rows: list[PipelineType]) -> Iterator[str]:
    texts = (provider.title, provider.homepage, provider.vocabulary)
    if not all(isinstance(text, str) for text in texts) or not isinstance(provider.legacy, bool):
        yield "its title, homepage and vocabulary are texts, and legacy is true or false"
    for row in rows:
        yield from (
            f"{field.name} of its type {row.name!r} cannot be {getattr(row, field.name)!r:.60}"
            for field in fields(row)
            if not FITS[field.name](getattr(row, field.name))
        )
    if len({row.name for row in rows}) < len(rows):
        yield "two of its types have one name"


def _text(value: object) -> bool:
    return isinstance(value, str)


def _texts(value: object) -> bool:
    return isinstance(value, tuple | list) and all(map(_text, value))


def _named(value: object, fits: Callable[[object], bool]) -> bool:
    return isinstance(value, Mapping) and all(_text(name) and fits(one) for name, one in value.items())


def _flag(value: object) -> bool:
    return value is None or (isinstance(value, Mapping) and set(value) <= set(FlagFields.__annotations__))


def _rate(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and value > 0)


FITS: Mapping[str, Callable[[object], bool]] = {
    "name": lambda value: isinstance(value, str) and bool(NAME.fullmatch(value)),
    "pipeline": lambda value: value == "" or (isinstance(value, str) and value.isidentifier()),
    "repositories": _texts,
    "dtype": lambda value: value in DTYPES,
    "defaults": lambda value: _named(value, lambda _: True),
    "flags": lambda value: _named(value, _flag),
    "components": lambda value: _named(value, _text),
    "fps": _rate,
    "float32": _texts,
    "quirks": lambda value: (
        _named(value, lambda one: isinstance(one, str) and bool(HOOK.fullmatch(one)))
        and isinstance(value, Mapping)
        and set(value) <= HOOKS
    ),
    "unquantized": _texts,
    "legacy": lambda value: isinstance(value, bool),
    "notes": _text,
}
