"""What a tokenizer's chat template may take: a small program by whoever made the model, run in jinja2's sandbox.

That keeps it from everything outside, and bounds neither time nor memory.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from ...core.errors import UsageError
from ..classes.hollow import MOST_MEMORY, little_memory

if TYPE_CHECKING:
    from _typeshed import TraceFunction

SLOWEST = 10.0  # seconds for one conversation; the longest templates take some thousandths
LONGEST = 10_000_000  # characters that one makes of a conversation; prompts with the longest have ten thousand


def bound() -> None:
    """Bound every template from now on. Where jinja2 is not imported by now, no tokenizer is that could have one."""
    environment = sys.modules.get("jinja2.environment")
    if environment is not None and not hasattr(environment.Template.render, "__wrapped__"):
        environment.Template.render = bounded(environment.Template.render)


def bounded(render: Callable[..., str]) -> Callable[..., str]:
    """The same, within bounds. Raises UsageError for a template that goes beyond."""

    @functools.wraps(render)
    def rendered(*given: object, **words: object) -> str:
        try:
            with little_memory(MOST_MEMORY), within(SLOWEST):
                text = render(*given, **words)
        except (TimeoutError, MemoryError):
            text = ""
        else:
            if len(text) <= LONGEST:
                return text
        raise UsageError(
            "the chat template of the model's tokenizer does not come to an end", "copy or fetch the model again"
        )

    return rendered


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
