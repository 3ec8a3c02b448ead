"""What a client and a worker say to each other, as types: each message is parsed where it comes in.

A client begins with `Hello`. A worker answers one that asks for something with `Status` or `Going`, others with
`Welcome` or `Refused`. Then comes from the client `Begin`, and for each group of requests `FilePiece`s and `Make`; from
the worker `Ready`, and for each group `Step`s, `Notice`s, `Picture`s and an `Answered` a request. `Alive` comes while
there is work, `Failed` ends a client's work. Whoever leaves has its item stopped at the next step.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from ...core.canonical import JsonObject, JsonValue
from ...core.errors import DiffpipeError
from ...core.parsing import Fields, Misfit
from ...core.request import Request
from ..job import LONGEST_KEEP, Job
from ..wire import Answer, error_json, error_of, request_json, request_of
from . import channel
from .fingerprint import Fingerprint

VERSION = 1  # of what stands here
LONGEST = channel.LARGEST  # characters of a text: all that a message can hold
Question = Literal["status", "stop", "retire"]


# The first messages: those of other versions are understood, too


@dataclass(frozen=True)
class Hello:
    """`ask`: for an answer alone, None to be let in."""

    ask: Question | None = None

    def to_json(self) -> JsonObject:
        return {"hello": VERSION, **({"ask": self.ask} if self.ask else {})}

    @classmethod
    def from_json(cls, message: JsonObject) -> Hello:
        """Raises Misfit."""
        fields = Fields(message)
        fields.integer("hello")
        ask: Question | None = fields.choice("ask", Question) if "ask" in fields else None
        return cls(ask)


@dataclass(frozen=True)
class Welcome:
    """A client was let in. `keep`: seconds that the worker stays after its last item."""

    key: str
    keep: float
    fingerprint: Fingerprint
    version: int = VERSION

    def to_json(self) -> JsonObject:
        return {"welcome": self.version, "key": self.key, "keep": self.keep, **self.fingerprint.to_json()}


@dataclass(frozen=True)
class Refused:
    """A client was not let in."""

    why: str

    def to_json(self) -> JsonObject:
        return {"refused": self.why}


@dataclass(frozen=True)
class Going:
    """The worker ends, at once or after its clients: so many are there."""

    clients: int

    def to_json(self) -> JsonObject:
        return {"going": self.clients}


@dataclass(frozen=True)
class Status:
    """How a worker is. `memory`, `device_memory`: bytes that it holds, None where that is not known or there is no GPU.
    `idle`: seconds since its last item, 0 while `busy`."""

    key: str
    pid: int
    memory: int | None
    device_memory: int | None
    loaded: bool
    busy: bool
    idle: float
    keep: float
    requests: int
    clients: int

    def to_json(self) -> JsonObject:
        return {"status": dict(vars(self))}

    @classmethod
    def from_json(cls, fields: Fields) -> Status:
        """Raises Misfit."""
        return cls(
            key=fields.text("key", ""),
            pid=fields.integer("pid"),
            memory=fields.maybe_integer("memory"),
            device_memory=fields.maybe_integer("device_memory"),
            loaded=fields.truth("loaded", False),
            busy=fields.truth("busy", False),
            idle=fields.number("idle", 0.0),
            keep=fields.number("keep", 0.0),
            requests=fields.integer("requests", 0),
            clients=fields.integer("clients", 0),
        )


def greeting_of(message: JsonObject) -> Welcome | Refused:
    """Raises Misfit."""
    fields = Fields(message)
    if "refused" in fields:
        return Refused(fields.text("refused"))
    version = fields.integer("welcome")
    return Welcome(fields.text("key", ""), fields.number("keep", 0.0), Fingerprint.from_json(fields), version)


def answer_of(message: JsonObject) -> Status | Going:
    """Raises Misfit."""
    fields = Fields(message)
    return Status.from_json(fields.object("status")) if "status" in fields else Going(fields.integer("going"))


# From a client that was let in


@dataclass(frozen=True)
class Begin:
    """How its requests are made. `umask`: of its files. `keep`: seconds that the worker is to stay from now on, None
    for as before. `steps`: whether it wants to hear of each step."""

    job: Job
    umask: int
    keep: float | None
    steps: bool

    def to_json(self) -> JsonObject:
        return {"job": self.job.to_json(), "umask": self.umask, "keep": self.keep, "steps": self.steps}

    @classmethod
    def from_json(cls, fields: Fields) -> Begin:
        umask = fields.integer("umask", most=0o777)
        keep = fields.maybe_number("keep")
        if keep is not None and not 0 <= keep <= LONGEST_KEEP:
            raise Misfit("keep is no time that a worker may stay")
        return cls(Job.from_json(fields.object("job")), umask, keep, fields.truth("steps"))


@dataclass(frozen=True)
class FilePiece:
    """A piece of an input file: the next one of the file of that name below `number`."""

    number: int
    name: str
    data: bytes

    def to_json(self) -> JsonObject:
        return {"file": self.number, "name": self.name, "piece": base64.b64encode(self.data).decode()}

    @classmethod
    def from_json(cls, fields: Fields) -> FilePiece:
        return cls(fields.integer("file"), fields.text("name"), _bytes(fields, "piece"))


@dataclass(frozen=True)
class Make:
    """Requests that go together. `files`: the client's names of their input files -> number and name under which they
    were sent. `forget`: the numbers of those that only earlier requests needed."""

    requests: tuple[Request, ...]
    files: Mapping[str, tuple[int, str]]
    forget: tuple[int, ...] = ()

    def to_json(self) -> JsonObject:
        requests: list[JsonValue] = [request_json(request) for request in self.requests]
        files: JsonObject = {name: [number, sent] for name, (number, sent) in self.files.items()}
        return {"make": requests, "files": files, "forget": list(self.forget)}

    @classmethod
    def from_json(cls, fields: Fields) -> Make:
        files = fields.object("files")
        return cls(
            tuple(map(request_of, fields.objects("make"))),
            {name: _sent_as(files.value[name]) for name in files.names()},
            tuple(map(_file_number, fields.values("forget"))),
        )


def _sent_as(value: JsonValue) -> tuple[int, str]:
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[1], str)):
        raise Misfit("a file has no number and name")
    return _file_number(value[0]), value[1]


def _file_number(value: JsonValue) -> int:
    if not isinstance(value, int) or value < 0:
        raise Misfit("a file's number is none")
    return value


FromClient = Begin | FilePiece | Make


def from_client(message: JsonObject) -> FromClient:
    """Raises Misfit."""
    fields = Fields(message)
    if "file" in fields:
        return FilePiece.from_json(fields)
    return Begin.from_json(fields) if "job" in fields else Make.from_json(fields)


# From a worker to a client that was let in


@dataclass(frozen=True)
class Ready:
    """The pipeline is loaded. `side_by_side`: whether requests are made side by side."""

    side_by_side: bool

    def to_json(self) -> JsonObject:
        return {"ready": self.side_by_side}


@dataclass(frozen=True)
class Alive:
    """A sign of life."""

    def to_json(self) -> JsonObject:
        return {"alive": True}


@dataclass(frozen=True)
class Step:
    """A step is done, `done` of `steps`, of the request that stands at `place` in its group."""

    place: int
    done: int
    steps: int

    def to_json(self) -> JsonObject:
        return {"step": self.place, "done": self.done, "steps": self.steps}


@dataclass(frozen=True)
class Notice:
    """A line for the user."""

    line: str

    def to_json(self) -> JsonObject:
        return {"notice": self.line}


@dataclass(frozen=True)
class Picture:
    """A preview, as PNG."""

    data: bytes

    def to_json(self) -> JsonObject:
        return {"picture": base64.b64encode(self.data).decode()}


@dataclass(frozen=True)
class Answered:
    """What became of the first request of those that are left. `log`: the same as a line of the log."""

    answer: Answer
    log: str

    def to_json(self) -> JsonObject:
        return {"outcome": self.answer.to_json(), "log": self.log}


@dataclass(frozen=True)
class Failed:
    """An error that ends this client's work."""

    error: DiffpipeError

    def to_json(self) -> JsonObject:
        return {"failed": error_json(self.error)}


FromWorker = Ready | Alive | Step | Notice | Picture | Answered | Failed


def from_worker(message: JsonObject) -> FromWorker:
    """Raises Misfit."""
    fields = Fields(message)
    readers: dict[str, Callable[[], FromWorker]] = {
        "outcome": lambda: Answered(Answer.from_json(fields.object("outcome")), fields.text("log", most=LONGEST)),
        "step": lambda: Step(fields.integer("step"), fields.integer("done"), fields.integer("steps")),
        "notice": lambda: Notice(fields.text("notice", most=LONGEST)),
        "picture": lambda: Picture(_bytes(fields, "picture")),
        "ready": lambda: Ready(fields.truth("ready")),
        "failed": lambda: Failed(error_of(fields.object("failed"))),
        "alive": Alive,
    }
    for name in readers:
        if name in fields:
            return readers[name]()
    raise Misfit("a message of no known kind")


def _bytes(fields: Fields, name: str) -> bytes:
    try:
        return base64.b64decode(fields.text(name, most=LONGEST), validate=True)
    except (binascii.Error, ValueError) as error:
        raise error if isinstance(error, Misfit) else Misfit(f"{name} is no base64") from error
