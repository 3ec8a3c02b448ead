"""Sweeps: --sweep NAME=VALUES -> the values of each name, and every combination of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import product
from math import prod

from ..core.canonical import JsonValue, canonical_json
from ..core.errors import UsageError
from ..core.flag import Flag
from .argument_values import MOST, NUMBER, OWN, argument_name, from_json, from_text, json_of, unknown_argument

RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})(?:\.\.({NUMBER}))?")
NOT_SWEPT = {"id", "output", "count"}


def sweeps(texts: Sequence[str], flags: Mapping[str, Flag], names: Collection[str]) -> dict[str, list[JsonValue]]:
    """name -> values, from NAME=VALUES: values with commas between, ranges FROM..TO or FROM..TO..STEP, a JSON list.

    Ranges include their end. Raises UsageError.
    """
    found: dict[str, list[JsonValue]] = {}
    for text in texts:
        written, mark, values = text.partition("=")
        name = argument_name(written)
        if not mark or not values.strip():
            raise UsageError(f"--sweep {text} is not NAME=VALUES", "for example --sweep guidance-scale=2,3.5,5")
        if name in NOT_SWEPT or name not in names:
            raise unknown_argument(f"--sweep {text}", written, set(names) - NOT_SWEPT)
        if name in found:
            raise UsageError(f"--sweep {text}: {written} is swept twice", "put all its values into one --sweep")
        try:
            found[name] = _swept(OWN.get(name) or flags.get(name), values.strip())
        except ValueError as error:
            hint = "for example seed=1..8, strength=0..1..0.25, width=256,512"
            raise UsageError(f"--sweep {text}: {error}", hint) from None
    if prod(map(len, found.values())) > MOST:
        raise UsageError(f"the sweeps make more than {MOST} items a prompt", "sweep fewer values")
    return found


def _swept(flag: Flag | None, text: str) -> list[JsonValue]:
    values = _listed(flag, text) if text.startswith("[") else _between_commas(flag, text)
    if len(set(map(canonical_json, values))) < len(values):
        raise ValueError("a value is there twice")
    return values


def _listed(flag: Flag | None, text: str) -> list[JsonValue]:
    values = json_of(text)
    if not isinstance(values, list) or not values:
        raise ValueError("the list is empty")
    return [from_json(flag, value) for value in values]


def _between_commas(flag: Flag | None, text: str) -> list[JsonValue]:
    values: list[JsonValue] = []
    for part in map(str.strip, text.split(",")):
        match = RANGE.fullmatch(part)
        if match and (flag is None or flag.kind in ("integer", "number")):
            values += _range(flag, *match.groups())
        elif part:
            values.append(from_text(flag, part))
        else:
            raise ValueError("a value is empty")
    return values


def _range(flag: Flag | None, first: str, last: str, step: str | None) -> list[JsonValue]:
    """Decimal, so that 0..1..0.1 ends at 1 and holds 0.3, not 0.30000000000000004."""
    low, high = Decimal(first), Decimal(last)
    by = Decimal(step) if step else Decimal(1 if low <= high else -1)
    if not by or (high - low) / by < 0:
        raise ValueError(f"a step of {by} does not lead from {first} to {last}")
    if (high - low) / by >= MOST:
        raise ValueError(f"{first}..{last} are more than {MOST} values")
    numbers = [low + by * at for at in range(int((high - low) / by) + 1)]
    whole = all(number == number.to_integral_value() for number in numbers)
    if flag and flag.kind == "integer" and not whole:
        raise ValueError(f"{first}..{last} are no whole numbers")
    return [int(number) if whole and (flag is None or flag.kind == "integer") else float(number) for number in numbers]


def crossed(swept: Mapping[str, Sequence[JsonValue]]) -> Iterator[dict[str, JsonValue]]:
    """Every combination of swept values, the last name varying fastest; one empty one where nothing is swept."""
    for values in product(*swept.values()):
        yield dict(zip(swept, values, strict=True))
