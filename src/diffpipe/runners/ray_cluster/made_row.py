"""What became of a row of requests, as the dataset carries it from a worker to the driver: JSON, and files' bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from ...core.canonical import JsonObject, JsonValue
from ...core.errors import DiffpipeError
from ...core.parsing import Fields, Misfit, parse_json
from ..wire import Answer, error_json, error_of

LARGEST = 256 << 20  # bytes of a row's JSON
Sizes: TypeAlias = Mapping[str, int]  # bytes of an artifact's files by name, in the order in which they come


@dataclass(frozen=True)
class MadeRequest:
    """What became of a request. `carried`: of each artifact the sizes of its files, which come with the row; None for
    one that lies where it belongs."""

    answer: Answer
    carried: tuple[Sizes | None, ...]

    def to_json(self) -> JsonObject:
        carried: list[JsonValue] = [None if sizes is None else dict(sizes) for sizes in self.carried]
        return {**self.answer.to_json(), "carried": carried}

    @classmethod
    def from_json(cls, fields: Fields) -> MadeRequest:
        """Raises Misfit."""
        answer, carried = Answer.from_json(fields), tuple(map(_sizes_of, fields.values("carried")))
        if len(carried) != len(answer.artifacts):
            raise Misfit("a row of Ray has sizes of other artifacts")
        return cls(answer, carried)


@dataclass(frozen=True)
class MadeRow:
    """What became of a row. `requests`: of each, None for those that were not begun. `stopped`: what ends the whole
    run. `lines`: for the user. `memory`, `node`: of the worker, for the log."""

    requests: tuple[MadeRequest | None, ...] = ()
    stopped: DiffpipeError | None = None
    lines: tuple[str, ...] = ()
    memory: str = ""
    node: str = ""

    def to_bytes(self) -> bytes:
        value = {
            "requests": [one and one.to_json() for one in self.requests],
            "stopped": self.stopped and error_json(self.stopped),
            "lines": list(self.lines),
            "memory": self.memory,
            "node": self.node,
        }
        return json.dumps(value).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> MadeRow:
        """Raises Misfit."""
        fields = Fields(parse_json(data, LARGEST, "a row of Ray"), "a row of Ray")
        made = [None if one is None else MadeRequest.from_json(Fields(one)) for one in fields.values("requests")]
        return cls(
            requests=tuple(made),
            stopped=error_of(fields.object("stopped")) if "stopped" in fields else None,
            lines=fields.texts("lines"),
            memory=fields.text("memory"),
            node=fields.text("node"),
        )

    def seconds(self) -> float:
        """An item took, on average."""
        taken = [made.seconds for one in self.requests if one for made in one.answer.artifacts]
        return sum(taken) / max(1, len(self.requests))


def _sizes_of(value: JsonValue) -> Sizes | None:
    if value is None:
        return None
    fields = Fields(value, "the sizes of an artifact")
    return {name: fields.integer(name) for name in fields.names()}
