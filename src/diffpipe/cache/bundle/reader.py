"""A bundle that is being read, from a disk or a network: strictly in order, every byte of it as an export writes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

from ...core.errors import CacheError
from ...core.source import FileInfo
from ...storage import stores, urls
from ...storage.disk import CHUNK
from .. import blobs
from . import contents
from .contents import BLOCK, END, EXPORT_AGAIN, Contents

MAKE = "make one: diffpipe pipelines export"

Advance = Callable[[int], None]


@dataclass
class Incoming:
    """A bundle that is being read, in order. Every part is either read or passed over."""

    stream: IO[bytes]
    source: str

    def contents(self) -> Contents:
        """The list at its head. Raises CacheError for what is no bundle."""
        first = self.take(BLOCK)
        length = contents.length(first)
        if length is None:
            raise CacheError(f"{urls.shown(self.source)} is no bundle of a pipeline", MAKE)
        data = self.take(length)
        self._match(contents.padding(length))
        return contents.read(data, urls.shown(self.source))

    def copy(self, member: str, info: FileInfo, out: IO[bytes], advance: Advance) -> None:
        """Write a member's content and check it. Raises CacheError if it is not what the list says."""
        self._match(contents.header(member, info.size))
        hasher, left = blobs.hasher(info.digest, info.size), info.size
        while left:
            chunk = self.take(min(left, CHUNK))
            hasher.update(chunk)
            with stores.explained("the cache", "write"):
                out.write(chunk)
            left -= len(chunk)
            advance(len(chunk))
        if hasher.hexdigest() != info.digest.partition(":")[2]:
            raise self._damaged("a file in it was changed")
        self._match(contents.padding(info.size))

    def skip(self, info: FileInfo, advance: Advance) -> None:
        """Pass over a member that the cache holds."""
        left = BLOCK + info.size + len(contents.padding(info.size))
        if self.stream.seekable():
            with stores.explained(self.source):
                self.stream.seek(left, 1)
            left = 0
        while left:  # a web server that knows no ranges
            left -= len(self.take(min(left, CHUNK)))
        advance(info.size)

    def end(self) -> None:
        """Raises CacheError where a bundle goes on after its last member, or stops before its end."""
        self._match(END)
        with stores.explained(self.source):
            if self.stream.read(1):
                raise self._damaged("it goes on after its end")

    def take(self, count: int) -> bytes:
        """So many bytes. Raises CacheError if there are fewer."""
        parts: list[bytes] = []
        while count:
            with stores.explained(self.source):
                parts.append(self.stream.read(count))
            if not parts[-1]:
                raise self._damaged("it is cut short")
            count -= len(parts[-1])
        return b"".join(parts)

    def _match(self, expected: bytes) -> None:
        if self.take(len(expected)) != expected:
            raise self._damaged("it was edited")

    def _damaged(self, what: str) -> CacheError:
        return CacheError(f"{urls.shown(self.source)} is no sound bundle: {what}", EXPORT_AGAIN)
