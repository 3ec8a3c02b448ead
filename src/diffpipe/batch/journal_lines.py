"""The lines of a journal: what each says, as JSON and back, within limits.

A run's: {"journal": 1, "pipeline": KEY, "seed": N}. An item's, when it starts: {"id", "item", "status": "started",
"seed", "paths"}; when it ends: {"id", "item", "status": "done" or "failed", "seed", "files": [{"path", "size",
"digest", "tag"}], "seconds", "warnings", "error"}. `item` is the digest of pipeline, arguments and seed. Paths are
relative to the journal's folder, with /; URLs are whole but for credentials, and have a "tag" where their store has one
of a file's content. A file that could not be read when it was noted has its path alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..core.canonical import JsonObject, JsonValue
from ..core.errors import UsageError
from ..core.flag import MAX_SEED
from ..core.parsing import Fields, Misfit

VERSION = 1
LONGEST_LINE = 1 << 24  # bytes, its end included
LONGEST_WORDS = 100_000  # characters of an error or a warning; the rest of a longer one is cut
MOST_FILES = 100_000  # of one item

State = Literal["started", "done", "failed"]


@dataclass(frozen=True)
class Header:
    """What a run is of: the pipeline's key, and the seed that the items' random ones derive from."""

    pipeline: str
    seed: int

    def to_json(self) -> JsonObject:
        return {"journal": VERSION, "pipeline": self.pipeline, "seed": self.seed}


@dataclass(frozen=True)
class NotedFile:
    """A file as it was when its item was done. `size` and `digest` are None where it could not be read."""

    path: str
    size: int | None = None
    digest: str | None = None
    tag: str | None = None

    def to_json(self) -> JsonObject:
        given = {"path": self.path, "size": self.size, "digest": self.digest, "tag": self.tag}
        return {name: value for name, value in given.items() if value is not None}

    def stamp(self) -> Mapping[str, int | str]:
        """Size, digest and tag, by name, as far as they are known."""
        given = {"size": self.size, "digest": self.digest, "tag": self.tag}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Record:
    """An item's line. `paths` are those that are its own once it has started, `files` what it has made.

    `item` is "" and `seed` None for a row that could not be read.
    """

    id: str
    item: str
    state: State
    seed: int | None
    paths: tuple[str, ...] = ()
    files: tuple[NotedFile, ...] = ()
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    error: str | None = None

    def to_json(self) -> JsonObject:
        line: JsonObject = {"id": self.id, "item": self.item, "status": self.state, "seed": self.seed}
        if self.state == "started":
            return {**line, "paths": list(self.paths)}
        return {
            **line,
            "files": [file.to_json() for file in self.files],
            "seconds": round(self.seconds, 3),
            "warnings": [words[:LONGEST_WORDS] for words in self.warnings],
            "error": self.error[:LONGEST_WORDS] if self.error is not None else None,
        }


def line_of(value: Header | Record) -> bytes:
    return json.dumps(value.to_json()).encode() + b"\n"


def object_of(line: bytes) -> JsonObject:
    """The JSON object of a line; {} for one that a crash or an edit damaged."""
    try:
        value: JsonValue = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def header_of(value: JsonObject) -> Header:
    """Raises Misfit, and UsageError for the journal of a newer version."""
    fields = Fields(value)
    if fields.integer("journal") > VERSION:
        raise UsageError("the journal was written by a newer diffpipe", "update diffpipe, or choose another --journal")
    return Header(fields.text("pipeline"), fields.integer("seed", most=MAX_SEED))


def record_of(value: JsonObject) -> Record:
    """Raises Misfit."""
    fields = Fields(value)
    state: State = fields.choice("status", State)
    record_id, item, seed = fields.text("id"), fields.text("item"), fields.maybe_integer("seed", most=MAX_SEED)
    if state == "started":
        paths = tuple(map(_path, fields.texts("paths", ())))
        if len(paths) > MOST_FILES:
            raise Misfit(f"it has more than {MOST_FILES} files")
        return Record(record_id, item, state, seed, paths)
    files = fields.objects("files")
    if len(files) > MOST_FILES:
        raise Misfit(f"it has more than {MOST_FILES} files")
    return Record(
        record_id,
        item,
        state,
        seed,
        files=tuple(map(_file_of, files)),
        seconds=fields.number("seconds", 0.0),
        warnings=fields.texts("warnings", ()),
        error=fields.maybe_text("error"),
    )


def _file_of(fields: Fields) -> NotedFile:
    return NotedFile(
        _path(fields.text("path")), fields.maybe_integer("size"), fields.maybe_text("digest"), fields.maybe_text("tag")
    )


def _path(text: str) -> str:
    """A path that a system can be asked for. Raises Misfit."""
    try:
        if b"\0" in os.fsencode(text):
            raise Misfit("a path has a NUL character in it")
    except UnicodeEncodeError as error:
        raise Misfit("a path is no text that a system takes") from error
    return text
