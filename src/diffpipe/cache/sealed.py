"""Small JSON files with their own digest, so that an edit or a cut shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..core.canonical import JsonObject, digest
from ..core.parsing import parse_json
from ..storage.disk import raise_limit, write_json
from ..storage.opening import open_regular, read_most

LARGEST = 8_000_000  # bytes of one of its files; a sharded model of 1,000 files has 0.3 MB. JSON takes 25 times as many


def read_json(path: Path | str) -> JsonObject | None:
    """The JSON object of a file of the cache; None where it is missing, larger than any of ours, or none."""
    try:
        with open_regular(path) as stream:
            value = parse_json(read_most(stream, LARGEST + 1), LARGEST)
    except (OSError, ValueError) as error:  # a name from a damaged file may be none that a system takes
        raise_limit(error)
        return None
    return value if isinstance(value, dict) else None


def sealed(value: JsonObject) -> JsonObject:
    """A value with its own digest, so that an edit shows."""
    return {**value, "digest": digest(value)}


def write_sealed(path: Path, value: JsonObject) -> None:
    """Write what `intact` reads."""
    write_json(path, sealed(value))


def write_all(folder: Path, files: Mapping[str, JsonObject]) -> None:
    for name, value in files.items():
        write_sealed(folder / name, value)


def intact(path: Path) -> JsonObject:
    """What was written sealed, without the digest; {} if the file is missing, cut short or edited."""
    value = read_json(path) or {}
    seal = value.pop("digest", None)
    return value if seal == digest(value) else {}
