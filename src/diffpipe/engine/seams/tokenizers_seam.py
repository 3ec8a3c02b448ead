"""What diffpipe uses of tokenizers beyond its documentation. Tried with tokenizers 0.23.3, by transformers 5.23.0.

It is written in Rust: what it did not expect of a file or a text ends in a panic, which prints on stderr what it came
upon, and is raised as an error that no `except Exception` catches.
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, ParamSpec, TypeVar

from ...core.errors import CacheError
from .seam import Seam

P = ParamSpec("P")
R = TypeVar("R")

PANIC = "pyo3_runtime"  # the module that PanicException says it is of; no name can be imported from it
LOADING = Seam(
    "transformers",
    "PreTrainedTokenizerBase._from_pretrained",
    buys="a damaged tokenizer.json is told in two lines",
    without="what the library in Rust prints stands on the terminal, with a traceback",
    file="transformers/tokenization_utils_base.py",
    text="def _from_pretrained(",
)
ENCODING = Seam(
    "transformers",
    "TokenizersBackend._encode_plus",
    buys="a tokenizer that fails on a prompt is told in two lines",
    without="what the library in Rust prints stands on the terminal, with a traceback",
    file="transformers/tokenization_utils_tokenizers.py",
    text="def _encode_plus(",
)
SEAMS = (LOADING, ENCODING)


def tell() -> None:
    """Have panics of tokenizers raised as CacheError, and what they print shown to nobody."""
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase as Base
    from transformers.tokenization_utils_tokenizers import TokenizersBackend as Fast

    if not hasattr(Base._from_pretrained, "__wrapped__"):
        Base._from_pretrained = classmethod(_told(Base._from_pretrained.__func__))  # type: ignore[method-assign]
        Fast._encode_plus = _told(Fast._encode_plus)  # type: ignore[method-assign]


def _told(function: Callable[P, R]) -> Callable[P, R]:
    @functools.wraps(function)
    def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        with panics_told():
            return function(*args, **kwargs)

    return inner


@contextmanager
def panics_told() -> Iterator[None]:
    """Raise a panic within the block as CacheError. What is written to stderr meanwhile comes afterwards, or, as Rust
    writes to the descriptor itself, not at all."""
    _flush()
    kept = os.dup(2)
    with _scratch() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException as error:
            if type(error).__module__ != PANIC:
                raise
            with suppress(OSError):
                said.truncate(0)
            first = next(iter(str(error).splitlines()), "")
            raise CacheError(
                f"a tokenizer of the model failed: {first}",
                "its tokenizer.json is damaged, or made for another version: fetch the model again, and build it",
            ) from error
        finally:
            _flush()
            os.dup2(kept, 2)
            os.close(kept)
            with suppress(OSError):  # a stderr that is full, or gone
                said.seek(0)
                while text := said.read(65536):
                    os.write(2, text)


def _scratch() -> IO[bytes]:
    """Where what is printed waits; nowhere, where no file can be written."""
    try:
        return tempfile.TemporaryFile()
    except OSError:
        return open(os.devnull, "w+b")


def _flush() -> None:
    with suppress(OSError, ValueError):
        sys.stderr.flush()
