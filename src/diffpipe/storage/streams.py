"""Large files by path or URL as streams: read in order, or written whole or not at all; never held in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from . import urls
from .disk import folder_made, remove_leftovers, replacing, user_path
from .opening import open_regular
from .presence import stamp
from .stores import check_writable, explained, in_words, own_store, reader

BLOCK = 64 << 20  # bytes of a request or part: S3 takes 10,000 parts, so 670 GB in one file
HEAD = 1 << 20  # the same where only the beginning is wanted
ABANDONED = 3600.0  # seconds without a write after which a temporary file is what a crash left


def inside(place: str, name: str) -> str:
    """The file of that name where a place is a folder (an existing one, or a URL that ends in /), else the place."""
    here = path_of(place)
    if place.endswith("/") or (here and here.is_dir()):
        return f"{place.rstrip('/')}/{name}"
    return place


def path_of(place: str) -> Path | None:
    """The path of a file on this machine's disks; None for one elsewhere."""
    if not urls.is_url(place):
        return user_path(place)
    here = urls.on_disk(place)
    return Path(here) if here else None


def size(place: str) -> int | None:
    """Bytes of a file, None where there is none. Raises what `reading` raises."""
    path = path_of(place)
    if path is None:
        found = stamp(place)
        return int(found["size"] or 0) if found else None  # some stores cannot tell
    with explained(place):
        return path.stat().st_size if path.exists() else None


@contextmanager
def reading(place: str, block: int = BLOCK) -> Iterator[IO[bytes]]:
    """A stream of a file, read `block` bytes a request where it lies elsewhere.

    Raises NotFoundError, AccessError, UsageError for a URL that nothing here can read, DiffpipeError.
    """
    path = path_of(place)
    if path is None:
        store, name = reader(place)
        with explained(place):
            stream = store.open(name, "rb", block_size=block)
    else:
        with explained(place):
            stream = open_regular(path)
    with stream:
        yield stream


@contextmanager
def writing(place: str) -> Iterator[IO[bytes]]:
    """A stream into a file that appears, or replaces an older one, when the block ends, and never if it raises.

    Raises UsageError for a URL that can only be read, AccessError, CacheError.
    """
    path = path_of(place)
    written = False
    try:
        with _writing_elsewhere(place) if path is None else _writing_here(path) as stream:
            yield stream
            written = True
    except Exception as error:
        if written:
            raise in_words(place, error, "write") from None
        raise


@contextmanager
def _writing_elsewhere(place: str) -> Iterator[IO[bytes]]:
    check_writable(place)
    store, name = own_store(place)
    with store.transaction:  # commits at its end, or discards
        with explained(place, "write"):
            stream = store.open(name, "wb", block_size=BLOCK)
        with stream:
            yield stream


@contextmanager
def _writing_here(path: Path) -> Iterator[IO[bytes]]:
    with ExitStack() as stack:
        with explained(str(path), "write"):
            stack.enter_context(folder_made(path))
            remove_leftovers(path, ABANDONED)
            stream = stack.enter_context(replacing(path, shared=True))
        yield stream
