"""What the libraries log and show: bars and advice stay off stderr, what a user should hear becomes our own warning."""

from __future__ import annotations

import logging
import re
import warnings
from textwrap import shorten

log = logging.getLogger("diffpipe.engine")


def quiet_libraries() -> None:
    """Keep the libraries' progress bars and advice off stderr; real warnings go to the log."""
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # torchao's import, which diffusers does if it can

    import diffusers
    import transformers

    # What diffusers logs as an error, it raises or recovers from.
    diffusers.utils.logging.set_verbosity_warning()
    diffusers.utils.logging.disable_default_handler()
    logging.getLogger("diffusers").addHandler(_CUT)
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.captureWarnings(True)
    warnings.simplefilter("default")


class _Cut(logging.Handler):
    """Passes on, as a warning of our own, that a prompt is longer than a text encoder reads: diffusers only logs it."""

    WORDS = re.compile(r"following part of your input was truncated because .*?(\d+) tokens: (.*)", re.DOTALL)

    def emit(self, record: logging.LogRecord) -> None:
        if said := self.WORDS.search(record.getMessage()):
            lost = shorten(said[2].strip("[]'\" "), 60, placeholder="…")
            log.warning("the prompt is longer than the %s tokens that a text encoder reads; cut off: %s", said[1], lost)


_CUT = _Cut(logging.WARNING)
