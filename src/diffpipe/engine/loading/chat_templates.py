"""What a tokenizer's chat template may take: a small program by whoever made the model, run in jinja2's sandbox.

That keeps it from everything outside, and bounds neither time nor memory.
"""

from __future__ import annotations

import functools
import importlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from ...core.errors import UsageError
from ..classes.hollow import MOST_MEMORY, little_memory

if TYPE_CHECKING:
    from _typeshed import TraceFunction

R = TypeVar("R")

SLOWEST = 10.0  # seconds for one conversation; the longest templates take some thousandths
LONGEST = 10_000_000  # characters that one makes of a conversation; prompts with the longest have ten thousand
OPERATORS = frozenset({"**", "*", "//", "%"})  # those of jinja2 that can take long at once
MOST_BITS = 10_000  # of a whole number in a template, which counts messages
ENDLESS, AGAIN = "the chat template of the model's tokenizer does not come to an end", "copy or fetch the model again"


def bound() -> None:
    """Bound every template from now on. Where jinja2 is not imported by now, no tokenizer is that could have one."""
    environment = sys.modules.get("jinja2.environment")
    if environment is not None and not hasattr(environment.Template.render, "__wrapped__"):
        environment.Template.render = bounded(environment.Template.render)
        # jinja2 computes what a template has of constants as it reads it.
        environment.Environment.from_string = bounded(environment.Environment.from_string)
        sandbox = importlib.import_module("jinja2.sandbox").SandboxedEnvironment
        sandbox.intercepted_binops = OPERATORS
        sandbox.call_binop = _small(sandbox.call_binop)


def _small(call: Callable[..., object]) -> Callable[..., object]:
    """The same, for whole numbers of which one step comes to an end: nothing else can stop it."""

    @functools.wraps(call)
    def called(own: object, context: object, operator: str, left: object, right: object) -> object:
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * (abs(right) if operator == "**" else 1)
            if max(bits, right.bit_length()) > MOST_BITS:
                raise UsageError(ENDLESS, AGAIN)
        return call(own, context, operator, left, right)

    return called


def bounded(step: Callable[..., R]) -> Callable[..., R]:
    """The same, within bounds: rendering, or reading a template. Raises UsageError for one that goes beyond."""

    @functools.wraps(step)
    def done(*given: object, **words: object) -> R:
        try:
            with little_memory(MOST_MEMORY), within(SLOWEST):
                made = step(*given, **words)
        except (TimeoutError, MemoryError):
            made = None
        if made is not None and (not isinstance(made, str) or len(made) <= LONGEST):
            return made
        raise UsageError(ENDLESS, AGAIN)

    return done


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raises TimeoutError at the next line of Python, of what is called in here, that begins later."""
    end, before = time.monotonic() + seconds, sys.gettrace()

    def traced(_frame: FrameType, _event: str, _argument: object) -> TraceFunction:
        if time.monotonic() > end:
            raise TimeoutError
        return traced

    sys.settrace(traced)
    try:
        yield
    finally:
        sys.settrace(before)
