"""What the libraries log, warn of and show: bars and advice stay off stderr, what a user should hear becomes ours."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ...core.item_warnings import about, made_together
from ..seams import transformers_seam
from . import library_words

log = logging.getLogger("diffpipe.libraries")

LIBRARIES = ("diffusers", "transformers", "peft", "accelerate", "optimum", "torchao", "huggingface_hub", "torch")


def listen() -> None:
    """Keep the libraries' progress bars off stderr, and pass on their warnings as our own: see library_words.

    What they ask is answered "no", and shown to nobody.
    """
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # torchao's import, which diffusers does if it can

    import diffusers
    import torch
    import transformers

    for library in (diffusers, transformers):  # the two that print by themselves
        library.utils.logging.set_verbosity_warning()
        library.utils.logging.disable_default_handler()
        library.utils.logging.disable_progress_bar()
    for name in LIBRARIES:
        logger = logging.getLogger(name)
        logger.addHandler(_HEARD)  # once: it is the same one
        logger.propagate = False
    transformers_seam.answer(consented=False)
    torch.set_warn_always(True)  # an item's warnings are its own, wherever it stands
    warnings.simplefilter("always")
    warnings.showwarning = _warned


@contextmanager
def unheard() -> Iterator[None]:
    """Let diffusers and transformers warn of nothing: of a model that is only looked at, without weights."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def hear_again() -> None:
    """Have the libraries say again what they say once a process: an item's warnings are its own, wherever it stands."""
    from accelerate.logging import MultiProcessAdapter
    from transformers.utils.logging import warning_once

    for once in (warning_once, MultiProcessAdapter.warning_once):
        once.cache_clear()


def pass_on(library: str, text: str, category: str = "") -> None:
    """A library's warning as a warning of ours, or as a line of the log.

    What is said of prompts that are encoded together is told of those items that it is true of.
    """
    together, cut = made_together(), library_words.cut_off(text)
    if len(together) > 1 and len(cut) == len(together):
        for request, part in zip(together, cut, strict=True):
            if part:
                with about(request):
                    _tell(library, part, category)
    else:
        _tell(library, text, category)


def _tell(library: str, text: str, category: str) -> None:
    words = library_words.sort(library, text, category)
    if words is None:
        log.info("heard: %s: %s", library, library_words.in_a_line(text[: library_words.LONGEST_READ]))
    else:
        log.warning("%s", words)


class _Heard(logging.Handler):
    """Passes on what a library logs as a warning, or as an error that it recovered from."""

    def emit(self, record: logging.LogRecord) -> None:
        pass_on(record.name.partition(".")[0], record.getMessage())


_HEARD = _Heard(logging.WARNING)


def _warned(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """In the place of `warnings.showwarning`."""
    pass_on(_library_of(filename), str(message), category.__name__)


def _library_of(filename: str) -> str:
    """The package that a file belongs to, by the folder of packages it lies in."""
    parts = Path(filename).parts
    at = next((at for at, part in enumerate(parts) if part in ("site-packages", "dist-packages")), None)
    return Path(parts[at + 1]).stem if at is not None and at + 1 < len(parts) else "Python"
