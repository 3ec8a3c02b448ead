"""Messages as types: what is written is read as the same, and what is no message is a Misfit, never anything else."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diffpipe.core.errors import CacheError
from diffpipe.core.parsing import Misfit
from diffpipe.core.request import Artifact, Request
from diffpipe.results.metadata import About
from diffpipe.runners.job import Job, Previews
from diffpipe.runners.wire import Answer
from diffpipe.runners.worker import protocol
from diffpipe.runners.worker.fingerprint import Fingerprint
from diffpipe.runners.worker.protocol import (
    Alive,
    Answered,
    Begin,
    Failed,
    FilePiece,
    Going,
    Hello,
    Make,
    Notice,
    Picture,
    Ready,
    Refused,
    Status,
    Step,
    Welcome,
)

STATUS = Status("k" * 64, 4321, 10**9, None, True, False, 1.5, 300.0, 7, 2)
WELCOME = Welcome("k" * 64, 300.0, Fingerprint({"torch": "2.13.0", "python": "3.11.7"}, "i", "s"))
REQUEST = Request(3, 2**64 - 1, {"prompt": "a fox \udcff", "image": ["a", "b"]}, ("x.png",), True, 8.0, "3", "d" * 64)
ABOUT = Job(4, True, True, About("dev", True, 4), False, Previews(2, True))
MADE = Answer((Artifact("x.png", 7, 3, "image", 0.5, {"width": 64}, {"size": 9}),), ("stretched",))


@pytest.mark.parametrize(
    ("message", "read"),
    [
        (Hello(), Hello.from_json),
        (Hello("retire"), Hello.from_json),
        (WELCOME, protocol.greeting_of),
        (Refused("the worker is about to end"), protocol.greeting_of),
        (STATUS, protocol.answer_of),
        (Going(0), protocol.answer_of),
        (Begin(Job(), 0o022, None, False), protocol.from_client),
        (Begin(ABOUT, 0o077, 0.0, True), protocol.from_client),
        (FilePiece(0, "folder/00001.png", b"\0\xff"), protocol.from_client),
        (Make((REQUEST, Request(0, 0, {})), {"a": (0, "a"), "b": (1, "b")}, (2, 3)), protocol.from_client),
        (Ready(False), protocol.from_worker),
        (Alive(), protocol.from_worker),
        (Step(0, 1, 50), protocol.from_worker),
        (Notice("x" * 2_000_000), protocol.from_worker),
        (Picture(b"\x89PNG"), protocol.from_worker),
        (Answered(MADE, "seed 7: 0.50 s"), protocol.from_worker),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "to_json") else "",
)
def test_what_is_written_is_read_as_the_same(message: Any, read: Callable[[Any], Any]) -> None:
    assert read(json.loads(json.dumps(message.to_json()))) == message


def test_an_error_keeps_its_words_its_exit_code_and_where_it_came_from() -> None:
    failed = protocol.from_worker(Failed(CacheError("full", "free some space")).to_json())
    assert isinstance(failed, Failed)
    error = failed.error
    assert (error.message, error.hint, error.exit_code) == ("full", "free some space", 6)
    assert error.__notes__ == ["diffpipe.core.errors.CacheError: full\n"]


JOB = {"job": {}, "umask": 0, "keep": None, "steps": False}
MAKE: dict[str, Any] = {"make": [], "files": {}, "forget": []}


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"unknown": 1},
        {**JOB, "umask": 0o1000},
        {**JOB, "umask": -1},
        {**JOB, "steps": 1},
        {**JOB, "keep": 10**400},
        {**JOB, "keep": True},
        {**JOB, "keep": -1},
        {**JOB, "keep": 1e18},
        {**JOB, "job": {"batch_size": 0}},
        {**JOB, "job": {"about": {}}},
        {**JOB, "job": {"previews": {"every": 0}}},
        {"file": -1, "name": "x", "piece": ""},
        {"file": True, "name": "x", "piece": ""},
        {"file": 0, "name": "x", "piece": "!"},
        {**MAKE, "make": [{"index": 0, "seed": 2**64, "arguments": {}, "paths": []}]},
        {**MAKE, "make": [{"index": 0, "seed": 0, "arguments": {}, "paths": [1]}]},
        {**MAKE, "make": [[]]},
        {**MAKE, "files": {"x": [1, "y", 2]}},
        {**MAKE, "files": {"x": ["0", "y"]}},
        {**MAKE, "forget": [".."]},
    ],
    ids=str,
)
def test_what_no_client_sends_is_a_misfit(message: dict[str, Any]) -> None:
    with pytest.raises(Misfit):
        protocol.from_client(message)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
WORDS = """
    hello ask welcome refused status going job umask keep steps file name piece make files forget outcome step done
    notice picture ready failed alive log message hint code trace artifacts warnings error key versions pid
"""
names = st.sampled_from(WORDS.split())
anything = st.recursive(values, lambda inner: st.dictionaries(names, inner, max_size=6), max_leaves=8)
READERS = (
    Hello.from_json, protocol.greeting_of, protocol.answer_of, protocol.from_client, protocol.from_worker,
)  # fmt: skip


@settings(max_examples=50)
@given(st.dictionaries(names, anything, max_size=6))
@example({"failed": {"message": "", "hint": "", "code": 99, "trace": ""}})
@example({"outcome": {"artifacts": [{"kind": "film"}], "warnings": []}, "log": ""})
@example({"hello": 1, "ask": "explode"})
@example({"hello": 1, "ask": {}})
def test_whatever_comes_is_read_or_a_misfit(message: dict[str, Any]) -> None:
    for read in READERS:
        with suppress(Misfit):
            read(message)
