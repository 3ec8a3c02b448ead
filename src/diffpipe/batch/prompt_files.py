"""Prompt files, sweeps and presets -> call arguments by name, typed by the pipeline's flags."""

from __future__ import annotations

import csv
import json
import re
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from difflib import get_close_matches
from itertools import chain, product
from math import prod
from pathlib import Path
from typing import Any

from ..core.canonical import canonical_json
from ..core.errors import NotFoundError, UsageError
from ..core.flag import MAX_SEED, MEDIA_KINDS, Flag

MOST = 1_000_000  # items of one line, and values of one sweep
ENDINGS = {".txt": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv"}
# What an item may have besides call arguments. These names win over call arguments of the same name.
OWN = {
    "id": Flag("id", "text"),
    "output": Flag("output", "text"),
    "seed": Flag("seed", "integer", minimum=0, maximum=MAX_SEED),
    "count": Flag("count", "integer", minimum=1, maximum=MOST),
}
NUMBER = r"[+-]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d{1,3})?"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})(?:\.\.({NUMBER}))?")
TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
TYPES: dict[str, Any] = {"integer": int, "number": (int, float), "boolean": bool}
NOUNS = {"integer": "whole number", "number": "number", "boolean": "true or false", "choice": "text", "text": "text"}
LONGEST_CELL = 1 << 24  # characters; a quote that is never closed must not read a file of any size into memory


@dataclass(frozen=True)
class Row:
    """A line of a prompt file: values by name as they were written, or why it cannot be read.

    `where` is how messages call it, `number` its line. `text`: the values are text yet to be read (CSV).
    """

    where: str = ""
    number: int = 0
    values: Mapping[str, Any] = field(default_factory=dict)
    text: bool = False
    error: UsageError | None = None


# Reading lines


def rows(lines: Iterable[str], label: str, form: str | None, names: Collection[str]) -> Iterator[Row]:
    """The rows of a prompt file, one at a time, as its lines (ends untranslated) come in.

    `form` is text, jsonl or csv; None for JSON lines where the first line that is not blank starts with {, else text.
    `names` are the columns there may be. A row that cannot be read carries its error. Raises UsageError for a CSV
    header that cannot be used.
    """
    lines = iter(lines)
    if form is None:
        form, lines = _sniffed(lines)
    read = {"text": _text_rows, "jsonl": _json_rows, "csv": _csv_rows}[form]
    for row in read(lines, label, names):
        yield _checked_encoding(row)


def _sniffed(lines: Iterator[str]) -> tuple[str, Iterator[str]]:
    seen = []
    for line in lines:
        seen.append(line)
        if line.strip("\ufeff \t\r\n"):
            break
    return "jsonl" if seen and seen[-1].lstrip("\ufeff \t").startswith("{") else "text", chain(seen, lines)


def _text_rows(lines: Iterator[str], label: str, names: Collection[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        prompt = line.strip("\ufeff \t\r\n")
        if prompt and not prompt.startswith("#"):
            yield Row(f"{label} line {number}", number, {"prompt": prompt})


def _json_rows(lines: Iterator[str], label: str, names: Collection[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        text = line.strip("\ufeff \t\r\n")
        if not text:
            continue
        where = f"{label} line {number}"
        try:
            values = parse_json(text)
            error = None if isinstance(values, dict) else "column 1: a line must be a JSON object"
        except ValueError as problem:
            error = str(problem)
        if error:
            hint = 'for example {"prompt": "a fox", "seed": 7}'
            yield Row(where, number, error=UsageError(f"{where}, {error}", hint))
        else:
            yield Row(where, number, values)


def _csv_rows(lines: Iterator[str], label: str, names: Collection[str]) -> Iterator[Row]:
    """Comma, semicolon or tab, whichever makes the most known columns of the header; quotes may hold line ends."""
    csv.field_size_limit(LONGEST_CELL)
    lines = iter(lines)
    blank, first = 0, ""
    for first in lines:
        first = first.lstrip("\ufeff")
        if first.strip():
            break
        blank += 1
    reader = csv.reader(chain([first], lines), delimiter=_delimiter(first, names), strict=True, skipinitialspace=True)
    header: list[str] | None = None
    while True:
        number = blank + reader.line_num + 1
        where = f"{label} line {number}"
        try:
            cells = next(reader, None)
        except csv.Error as problem:
            error = UsageError(f"{where}: {problem}", 'quote cells as "say ""hi"" to me"')
            if header is None:
                raise error from None
            yield Row(where, number, error=error)
            continue
        if cells is None:
            return
        if header is None:
            header = _header(cells, where, names)
        elif any(cell.strip() for cell in cells):
            yield _csv_row(where, number, header, cells)


def _csv_row(where: str, number: int, header: Sequence[str], cells: Sequence[str]) -> Row:
    """A record as a row; cells that are missing at its end are empty ones."""
    for at, cell in enumerate(cells):
        if cell.strip() and (at >= len(header) or not header[at]):
            problem = f"{where}, column {at + 1}: {shown(cell)} stands under no name"
            return Row(where, number, error=UsageError(problem, "put quotes around cells with separators in them"))
    return Row(where, number, {name: cell for name, cell in zip(header, cells, strict=False) if name}, text=True)


def _delimiter(line: str, names: Collection[str]) -> str:
    def fitness(delimiter: str) -> tuple[int, int]:
        cells = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
        return sum(argument_name(cell) in names for cell in cells), len(cells)

    return max(",;\t", key=fitness)


def _header(cells: Sequence[str], where: str, names: Collection[str]) -> list[str]:
    header = [cell.strip() for cell in cells]
    for at, name in enumerate(header, 1):
        if name and argument_name(name) not in names:
            raise UsageError(f"{where}, column {at}: {_unknown(name)}", _near(name, names))
        if name and argument_name(name) in map(argument_name, header[: at - 1]):
            raise UsageError(f"{where}, column {at}: {name!r} is there twice", "keep one of them")
    return header


def _checked_encoding(row: Row) -> Row:
    """A row, refused if it holds bytes that are no UTF-8 (read as lone surrogates)."""
    for name, value in row.values.items():
        for text in (name, value):
            try:
                (text if isinstance(text, str) else "").encode()
            except UnicodeEncodeError:
                problem = f"{row.where}, column {shown(name)}: it is not valid UTF-8"
                return replace(row, values={}, error=UsageError(problem, "save the file as UTF-8"))
    return row


# Values


def argument_name(written: str) -> str:
    return written.strip().replace("-", "_")


def typed(row: Row, flags: Mapping[str, Flag], names: Collection[str]) -> dict[str, Any]:
    """A row's values by argument name, each of its flag's type; what is empty (null in JSON) is left out.

    `names` are the arguments there may be, with flags or without. Raises UsageError that names line and column.
    """
    if row.error:
        raise row.error
    values: dict[str, Any] = {}
    for written, given in row.values.items():
        name, where = argument_name(written), f"{row.where}, column {written}"
        if name not in names:
            raise UsageError(f"{where}: {_unknown(written)}", _near(written, names))
        if name in values:
            raise UsageError(f"{where}: it is there twice", "keep one of them")
        if given is None or (row.text and not given.strip()):
            continue
        flag = OWN.get(name) or flags.get(name)
        try:
            values[name] = from_text(flag, given) if row.text else of_kind(flag, given)
        except ValueError as error:
            raise UsageError(f"{where}: {error}", "the pipeline's --help shows what it takes") from None
    return values


def from_text(flag: Flag | None, text: str) -> Any:
    """The value that text stands for where an argument is wanted; JSON, else the text itself, where it has no flag.

    Lists are JSON. Raises ValueError with what is wrong with it.
    """
    plain = text.strip()
    if flag is None or (flag.many and plain.startswith("[")):
        try:
            return of_kind(flag, parse_json(plain))
        except ValueError:
            if flag and flag.kind not in ("text", *MEDIA_KINDS):
                raise
            return plain
    if flag.kind == "json":
        return parse_json(plain)
    if flag.kind == "boolean":
        if plain.lower() not in TRUTH:
            raise ValueError(f"{shown(text)} is neither true nor false")
        return TRUTH[plain.lower()]
    if flag.kind in ("integer", "number"):
        if not re.fullmatch(r"[+-]?\d{1,400}" if flag.kind == "integer" else NUMBER, plain):
            raise ValueError(f"{shown(text)} is no {NOUNS[flag.kind]}")
        return int(plain) if flag.kind == "integer" else float(plain)
    return of_kind(flag, plain)


def of_kind(flag: Flag | None, value: Any) -> Any:
    """A JSON value where an argument is wanted; single values of lists bare where they may be.

    Raises ValueError with what is wrong with it.
    """
    if flag is None or flag.kind == "json":
        return value
    if isinstance(value, list):
        if not flag.many:
            raise ValueError("it takes one value, not a list")
        values = [of_kind(replace(flag, many=False), one) for one in value]
        return values[0] if flag.scalar and len(values) == 1 else values
    wanted = TYPES.get(flag.kind, str)
    if not isinstance(value, wanted) or (isinstance(value, bool) and flag.kind != "boolean"):
        raise ValueError(f"{shown(value)} is no {NOUNS.get(flag.kind, 'file name')}")
    if flag.kind == "choice" and value not in flag.choices:
        raise ValueError(f"{shown(value)} is none of {', '.join(flag.choices)}")
    return float(value) if flag.kind == "number" else value  # 4 and 4.0 are the same item


def parse_json(text: str) -> Any:
    """A JSON value. Raises ValueError with the column and the reason."""
    try:
        return strict_json(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"column {error.colno}: it is no JSON: {error.msg}") from None
    except RecursionError:
        raise ValueError("column 1: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"column 1: it is no JSON: {error}") from None


def strict_json(text: str) -> Any:
    """A JSON value; no NaN or Infinity, which Python's parser takes. Raises ValueError and RecursionError."""
    return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)


def _finite(text: str) -> float:
    """1e999 is JSON, and infinite in Python."""
    if abs(float(text)) == float("inf"):
        raise ValueError(f"{text} is too large")
    return float(text)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def shown(value: Any) -> str:
    """A value for a message, cut."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _unknown(name: str) -> str:
    return f"the pipeline takes no {shown(name)}"


def _near(name: str, names: Collection[str]) -> str:
    near = get_close_matches(argument_name(name), sorted(names), n=1)
    return f"did you mean {near[0]}?" if near else f"it takes: {', '.join(sorted(names))}"


# Sweeps


def sweeps(texts: Sequence[str], flags: Mapping[str, Flag], names: Collection[str]) -> dict[str, list[Any]]:
    """name -> values, from NAME=VALUES: values with commas between, ranges FROM..TO or FROM..TO..STEP, a JSON list.

    Ranges include their end. Raises UsageError.
    """
    found: dict[str, list[Any]] = {}
    for text in texts:
        written, mark, values = text.partition("=")
        name = argument_name(written)
        if not mark or not values.strip():
            raise UsageError(f"--sweep {text} is not NAME=VALUES", "for example --sweep guidance-scale=2,3.5,5")
        if name in ("id", "output", "count") or name not in names:
            raise UsageError(f"--sweep {text}: {_unknown(written)}", _near(written, set(names) - {"id", "output"}))
        if name in found:
            raise UsageError(f"--sweep {text}: {written} is swept twice", "put all its values into one --sweep")
        try:
            found[name] = _swept(OWN.get(name) or flags.get(name), values)
            if len(set(map(canonical_json, found[name]))) < len(found[name]):
                raise ValueError("a value is there twice")
        except ValueError as error:
            raise UsageError(
                f"--sweep {text}: {error}", "for example seed=1..8, strength=0..1..0.25, width=256,512"
            ) from None
    if prod(map(len, found.values())) > MOST:
        raise UsageError(f"the sweeps make more than {MOST} items a prompt", "sweep fewer values")
    return found


def _swept(flag: Flag | None, text: str) -> list[Any]:
    if text.strip().startswith("["):
        listed = parse_json(text.strip())
        if not listed:
            raise ValueError("the list is empty")
        return [of_kind(flag, value) for value in listed]
    values: list[Any] = []
    for part in text.split(","):
        match = RANGE.fullmatch(part.strip())
        if match and (flag is None or flag.kind in ("integer", "number")):
            values += _range(flag, *match.groups())
        elif part.strip():
            values.append(from_text(flag, part))
        else:
            raise ValueError("a value is empty")
    return values


def _range(flag: Flag | None, first: str, last: str, step: str | None) -> list[Any]:
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


def crossed(swept: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of swept values, the last name varying fastest; one empty one where nothing is swept."""
    for values in product(*swept.values()):
        yield dict(zip(swept, values, strict=True))


# Presets


def preset(reference: str, folder: Path) -> dict[str, Any]:
    """The call arguments of a preset: a TOML or JSON file, or the name of one in the folder of presets.

    Raises NotFoundError with the names there are, UsageError for what is no table of arguments.
    """
    path = _preset_path(reference, folder)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise NotFoundError(f"--args: there is no file {reference}", _presets_hint(folder)) from None
    except OSError as error:
        raise UsageError(f"--args {reference}: {error.strerror}", _presets_hint(folder)) from None
    except UnicodeDecodeError:
        raise UsageError(f"--args {reference} is not valid UTF-8", "save it as UTF-8") from None
    try:
        values = parse_json(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
        canonical_json(values)  # TOML has dates, too, and numbers that are none
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"--args {reference}: {error}", "for example guidance_scale = 4.5, one a line") from None
    if not isinstance(values, dict):
        raise UsageError(f"--args {reference} is no JSON object", 'for example {"guidance_scale": 4.5}')
    return values


def _preset_path(reference: str, folder: Path) -> Path:
    path = Path(reference).expanduser()
    if path.suffix.lower() in (".toml", ".json") or len(path.parts) != 1:
        return path
    return next((found for ending in (".toml", ".json") if (found := folder / f"{reference}{ending}").exists()), path)


def preset_names(folder: Path) -> list[str]:
    """The names of the presets in a folder."""
    return sorted({path.stem for path in folder.glob("*") if path.suffix.lower() in (".toml", ".json")})


def _presets_hint(folder: Path) -> str:
    names = preset_names(folder)
    here = Path("~") / folder.relative_to(Path.home()) if folder.is_relative_to(Path.home()) else folder
    return f"the presets are: {', '.join(names)}" if names else f"there are no presets in {here} yet: check the path"


def fitting(
    values: Mapping[str, Any], label: str, flags: Mapping[str, Flag], names: Collection[str]
) -> tuple[dict[str, Any], list[str]]:
    """What of a preset a pipeline takes, typed, and the names of what it does not take (item ids and outputs too).

    Raises UsageError for a value of another type than the pipeline's.
    """
    taken = set(names) - {"id", "output"}
    used = {name: value for name, value in values.items() if argument_name(name) in taken}
    return typed(Row(f"--args {label}", 0, used), flags, names), [name for name in values if name not in used]
