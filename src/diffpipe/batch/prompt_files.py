"""Prompt files: rows of call arguments in text, JSON lines and CSV, one at a time."""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from ..core.canonical import JsonValue
from ..core.errors import UsageError
from ..core.flag import Flag
from .argument_values import argument_name, from_json, from_text, json_of, shown, typed_values, unknown_argument

ENDINGS = {".txt": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv"}
LONGEST_LINE = 1 << 24  # characters; a quote that is never closed must not read a file of any size into memory
LONGEST_CELL = LONGEST_LINE
UTF16 = ("\udcff\udcfe", "\udcfe\udcff")  # its byte order marks, read as UTF-8 with surrogates
SAVE = "save the file as UTF-8 (PowerShell: ... | Out-File -Encoding utf8 FILE)"
SPACE = "\ufeff \t\r\n"  # around a line; a byte order mark is no more than that


@dataclass(frozen=True)
class Row:
    """A line of a prompt file: values by name as they were written, or why it cannot be read.

    `where` is how messages call it, `number` its line. `text`: the values are text yet to be read (CSV).
    """

    where: str = ""
    number: int = 0
    values: Mapping[str, JsonValue] = field(default_factory=dict)
    text: bool = False
    error: UsageError | None = None


def typed(row: Row, flags: Mapping[str, Flag], names: Collection[str]) -> dict[str, JsonValue]:
    """A row's values by argument name, each of its flag's type; what is empty (null in JSON) is left out.

    `names` are the arguments there may be, with flags or without. Raises UsageError that names line and column.
    """
    if row.error:
        raise row.error
    if not row.text:
        return typed_values(row.values, from_json, row.where, flags, names)
    cells = {name: cell for name, cell in row.values.items() if isinstance(cell, str) and cell.strip()}
    return typed_values(cells, from_text, row.where, flags, names)


def rows(lines: Iterable[str], label: str, form: str | None, names: Collection[str]) -> Iterator[Row]:
    """The rows of a prompt file, one at a time, as its lines (ends untranslated) come in.

    `form` is text, jsonl or csv; None for JSON lines where the first line that is not blank starts with {, else text.
    `names` are the columns there may be. A row that cannot be read carries its error. Raises UsageError for UTF-16, for
    a line without end, and for a CSV header that cannot be used.
    """
    lines = _of_text(_bounded(lines, label), label)
    if form is None:
        form, lines = _sniffed(lines)
    read = {"text": _text_rows, "jsonl": _json_rows, "csv": _csv_rows}[form]
    for row in read(lines, label, names):
        yield _checked_encoding(row)


def _bounded(lines: Iterable[str], label: str) -> Iterator[str]:
    """The lines of a file or of anything else, read no further than a line may be long. Raises UsageError for more."""
    read: Callable[[int], str] | None = getattr(lines, "readline", None)
    bounded = iter(lambda: read(LONGEST_LINE + 1), "") if read else iter(lines)
    for number, line in enumerate(bounded, 1):
        if len(line) > LONGEST_LINE:
            problem = f"{label} line {number} has more than {LONGEST_LINE} characters"
            raise UsageError(problem, "give each item a line of its own")
        yield line


def _of_text(lines: Iterator[str], label: str) -> Iterator[str]:
    """The lines, unless the first shows that the file is UTF-16, as PowerShell's > writes it."""
    first = next(lines, "")
    halves = {frozenset(first[:8:2]), frozenset(first[1:8:2])}  # of ASCII, one half of the bytes is NUL
    if first.startswith(UTF16) or (len(first) > 3 and frozenset("\0") in halves and len(halves) > 1):
        raise UsageError(f"{label} is UTF-16, not UTF-8", SAVE)
    return chain([first] if first else [], lines)


def _sniffed(lines: Iterator[str]) -> tuple[str, Iterator[str]]:
    seen = []
    for line in lines:
        seen.append(line)
        if line.strip(SPACE):
            break
    return "jsonl" if seen and seen[-1].lstrip("\ufeff \t").startswith("{") else "text", chain(seen, lines)


def _text_rows(lines: Iterator[str], label: str, names: Collection[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        prompt = line.strip(SPACE)
        if prompt and not prompt.startswith("#"):
            yield Row(f"{label} line {number}", number, {"prompt": prompt})


def _json_rows(lines: Iterator[str], label: str, names: Collection[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if text := line.strip(SPACE):
            yield _json_row(text, f"{label} line {number}", number)


def _json_row(text: str, where: str, number: int) -> Row:
    try:
        values = json_of(text)
        if not isinstance(values, dict):
            raise ValueError("column 1: a line must be a JSON object")
    except ValueError as error:
        hint = 'for example {"prompt": "a fox", "seed": 7}'
        return Row(where, number, error=UsageError(f"{where}, {error}", hint))
    return Row(where, number, values)


def _csv_rows(lines: Iterator[str], label: str, names: Collection[str]) -> Iterator[Row]:
    """Comma, semicolon or tab, whichever makes the most known columns of the header; quotes may hold line ends."""
    csv.field_size_limit(LONGEST_CELL)
    blank, first = _first_line(lines)
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


def _first_line(lines: Iterator[str]) -> tuple[int, str]:
    """How many blank lines there are, and the line after them; the last one, if all are blank."""
    line = ""
    for blank, line in enumerate(lines):
        line = line.lstrip("\ufeff")
        if line.strip():
            return blank, line
    return 0, line


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
            raise unknown_argument(f"{where}, column {at}", name, names)
        if name and argument_name(name) in map(argument_name, header[: at - 1]):
            raise UsageError(f"{where}, column {at}: {name!r} is there twice", "keep one of them")
    return header


def _checked_encoding(row: Row) -> Row:
    """A row, refused if it holds bytes that are no UTF-8 (read as lone surrogates), or NULs, which no text has."""
    for name, value in row.values.items():
        for text in (name, value):
            if fault := _fault_of(text if isinstance(text, str) else ""):
                problem = f"{row.where}, column {shown(name)}: {fault}"
                return replace(row, values={}, error=UsageError(problem, "save the file as UTF-8, a prompt a line"))
    return row


def _fault_of(text: str) -> str:
    """What is wrong with the characters of a text, "" for nothing."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "it is not valid UTF-8"
    return "it has a NUL character in it" if "\0" in text else ""
