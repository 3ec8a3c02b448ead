"""What a worker and its clients say to each other, with something else in one place of it."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from diffpipe.core.canonical import JsonObject, JsonValue
from diffpipe.core.errors import DiffpipeError
from diffpipe.core.parsing import Misfit
from diffpipe.core.request import Artifact, Request
from diffpipe.runners.wire import Answer
from diffpipe.runners.worker import protocol
from diffpipe.runners.worker.channel import Lost, _message
from diffpipe.runners.worker.fingerprint import fingerprint
from hostile.runner import Case

CASES = 600
ODD: tuple[JsonValue, ...] = (
    None, True, 0, -1, 5, 2**64, 10**400, 1e308, "", "..", "/", "a\0b", "\ud800", "\x1b[2J", "x" * 100_000, [], [[]],
    {}, {"": {}}, [None] * 1000, {"make": []}, "load", "../../x", [1, "../x"],
)  # fmt: skip
REQUEST = Request(0, 7, {"prompt": "a fox", "image": "x.png"}, ("out.png",), id="a")
ARTIFACT = Artifact("out.png", 7, 0, "image", 0.1)
FROM_CLIENT: tuple[JsonObject, ...] = (
    {"hello": 1, "ask": "status"},
    {"job": {"batch_size": 1, "previews": {"every": 2}}, "umask": 0o22, "keep": 5.0, "steps": True},
    protocol.FilePiece(1, "x.png", b"data").to_json(),
    protocol.Make((REQUEST,), {"x.png": (1, "x.png")}, (0,)).to_json(),
)
FROM_WORKER: tuple[JsonObject, ...] = (
    protocol.Answered(Answer((ARTIFACT,)), "seed 7").to_json(),
    protocol.Step(0, 1, 2).to_json(),
    protocol.Notice("a line").to_json(),
    protocol.Picture(b"data").to_json(),
    protocol.Failed(DiffpipeError("full", "free some space")).to_json(),
    protocol.Welcome("f" * 64, 60.0, fingerprint()).to_json(),
    {"status": {"key": "f", "pid": 1, "memory": 5, "loaded": True, "busy": False, "idle": 0.0, "keep": 5.0}},
)
READERS: tuple[Callable[[JsonObject], object], ...] = (
    protocol.Hello.from_json, protocol.from_client, protocol.from_worker, protocol.greeting_of, protocol.answer_of,
)  # fmt: skip


def cases(rng: random.Random, folder: Path) -> Iterator[Case]:
    while True:
        message = changed(rng, rng.choice((*FROM_CLIENT, *FROM_WORKER)))
        data = json.dumps(message).encode()
        if rng.random() < 0.2:
            at = rng.randrange(len(data))
            data = data[:at] + bytes([rng.randrange(256)]) + data[at + rng.randrange(3) :]
        yield Case(f"{data[:300]!r}", partial(read, data))


def read(data: bytes) -> None:
    """As a worker and a client read it; what is no message ends that connection."""
    try:
        message = _message(data)
    except Lost:
        return
    faults = []
    for reader in READERS:
        try:
            reader(message)
        except Misfit as error:
            faults.append(error)
    if len(faults) == len(READERS):
        raise faults[0]


def changed(rng: random.Random, message: JsonObject) -> JsonObject:
    """A message with another value, one name more or one less, somewhere in it."""
    made = copy.deepcopy(message)
    inside: JsonValue = made
    while True:
        if isinstance(inside, dict) and inside:
            name = rng.choice(list(inside))
            below = inside[name]
            if isinstance(below, dict | list) and below and rng.random() < 0.7:
                inside = below
                continue
            if rng.random() < 0.2:
                del inside[name]
            else:
                inside[name] = rng.choice(ODD)
        elif isinstance(inside, list) and inside:
            inside[rng.randrange(len(inside))] = rng.choice(ODD)
        return made
