"""What diffpipe uses of textual-image beyond its documentation. Tried with textual-image 0.8.

`textual_image._terminal.get_cell_size`: asks the terminal for the size of a cell while stdout stands for it, which the
library keeps. Without it the library asks at the first picture, when stdout may be a pipe; the size is then guessed.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

from . import standard_input


def renderable() -> Any:
    """The library's class for this terminal. It asks the terminal by what it takes for stdout and stdin, at import.

    Stdout may be a pipe, so it is given stderr; where stdin is no terminal it must not ask, for it would eat prompts.
    Raises ImportError where the library is not installed.
    """
    stdout = sys.__stdout__
    given = standard_input.stream()
    asks = given is not None and given.isatty()
    try:
        sys.__stdout__ = sys.stderr if asks else None  # type: ignore[misc,assignment]
        with standard_input.lent():
            from textual_image import renderable as known

            if asks:
                with suppress(ImportError):
                    from textual_image._terminal import get_cell_size

                    get_cell_size()
    finally:
        sys.__stdout__ = stdout  # type: ignore[misc]
    return known.Image if asks else known.HalfcellImage
