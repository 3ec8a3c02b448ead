"""What diffpipe warns of while items are made, and which item it is about."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from .request import Request

# Loggers of what is true of a run and not of a result: steps down for want of memory, previews.
OF_THE_RUN = ("diffpipe.run", "diffpipe.preview")


class _Heard(NamedTuple):
    text: str
    logger: str
    about: Request | None  # None: all that are made in the same call


class ItemWarnings(logging.Handler):
    """Collects the warnings that diffpipe logs in this thread while it is entered, after those `before`.

    `group`: the requests that are made together meanwhile.
    """

    def __init__(self, before: ItemWarnings | None = None, group: Sequence[Request] = ()) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[_Heard] = list(before.heard) if before else []
        self.group = group

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self.thread:
            self.heard.append(_Heard(record.getMessage(), record.name, _about.get()))

    def __enter__(self) -> ItemWarnings:
        self.thread, self.before = threading.get_ident(), _open.set(self)
        logging.getLogger("diffpipe").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("diffpipe").removeHandler(self)
        _open.reset(self.before)

    def of(self, request: Request) -> tuple[str, ...]:
        """All that was said of an item, each once, in the order in which it was said."""
        return tuple(dict.fromkeys(one.text for one in self.heard if one.about in (None, request)))

    def of_files(self, request: Request) -> list[str]:
        """Of that, what is true of its files, whoever makes them."""
        own = (one for one in self.heard if one.logger not in OF_THE_RUN)
        return list(dict.fromkeys(one.text for one in own if one.about in (None, request)))


_open: ContextVar[ItemWarnings | None] = ContextVar("open", default=None)
_about: ContextVar[Request | None] = ContextVar("about", default=None)


@contextmanager
def about(request: Request) -> Iterator[None]:
    """What is warned of within is about this item alone, and not about the others of its call."""
    before = _about.set(request)
    try:
        yield
    finally:
        _about.reset(before)


def of_files(request: Request) -> list[str]:
    """What was warned of so far that is true of an item's files; [] where nobody collects it."""
    collected = _open.get()
    return collected.of_files(request) if collected else []


def made_together() -> Sequence[Request]:
    """The requests of the call that is being made; () where nobody collects its warnings."""
    collected = _open.get()
    return collected.group if collected else ()
