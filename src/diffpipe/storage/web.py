"""Files of web servers (http://, https://), which are read by httpx2: it is imported when the first one is.

A connection that is cut is made again and goes on at the byte where it stopped. No wait is endless: each has a
time-out, which begins anew only when bytes have come.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

from .. import __version__
from ..core.errors import UsageError
from . import http_guard
from .disk import CHUNK, check_free, readable
from .urls import shown, split

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from httpx2 import Client, Response

SCHEMES = ("http", "https")
CONNECTING = 10.0  # seconds until a server must have taken a connection
SILENCE = 30.0  # seconds without a byte after which a connection counts as cut
PAUSES = (0.5, 1.0, 2.0)  # seconds before each new attempt after one that brought no byte
LARGEST = 20_000_000_000  # bytes of an input: longer than any film that a pipeline takes
LONGEST_TAG = 1000  # characters of such a header, which journals note; real ones have 100
KEPT = ("ETag", "Last-Modified", "Content-MD5")  # headers that change with a file's content


def is_web(url: str) -> bool:
    return split(url)[0].lower() in SCHEMES


class Refused(OSError):
    """A server's answer that is no file, with its HTTP status."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"it answers {status} {said}".rstrip())
        self.status = status


class Web:
    """Web servers as a store (see stores.Reads). Raises OSError and httpx2's errors, which stores.explained reads."""

    def info(self, url: str) -> Mapping[str, object]:
        response = _sent("HEAD", url, {})
        if not response.is_success:  # many a server answers GET alone, as it does for URLs that are signed for GET
            response = _answer(url, {})
            response.close()
        named = {name: response.headers[name][:LONGEST_TAG] for name in KEPT if name in response.headers}
        return {"name": url, "type": "file", "size": _length(response), **named}

    def open(self, url: str, mode: str, *, block_size: int) -> IO[bytes]:
        return io.BufferedReader(WebFile(url), CHUNK)

    def get_file(self, url: str, target: str) -> None:
        """Raises UsageError for a file that is larger than LARGEST, CacheError where the disk has no room for it."""
        with WebFile(url) as source, open(target, "wb") as out:
            if source.size:
                check_size(url, source.size)
                check_free(Path(target).parent, source.size, shown(url))
            while data := source.read(CHUNK):
                check_size(url, out.tell() + len(data))
                out.write(data)


def check_size(url: str, size: int) -> None:
    """Raises UsageError for an input of more bytes than LARGEST."""
    if size > LARGEST:
        raise UsageError(f"{shown(url)} is larger than {readable(LARGEST)}", "copy the file here, and name that")


class WebFile(io.RawIOBase):
    """A file of a web server. It can be sought in where the server gives parts of it.

    `size` is its bytes, None where the server does not say.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self._at = self._position = 0  # of the next byte that the connection brings, and of the next one to be read
        self._left = b""  # what came and was not read yet
        self._response: Response | None = None
        self._pace = http_guard.Pace()  # of all its connections
        response = self._begin({})
        self.size = _length(response)
        self._parts = self.size is not None and response.headers.get("Accept-Ranges", "").lower() == "bytes"
        tag = response.headers.get("ETag", "W/")
        self._version = response.headers.get("Last-Modified", "") if tag.startswith("W/") else tag

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._parts

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_CUR or offset:  # to be told where one is needs no parts
            if not self._parts:
                raise io.UnsupportedOperation("the server gives no parts of the file")
            start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size or 0}[whence]
            self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        if self.size is not None and self._position >= self.size:
            return 0
        self._move()
        data = self._taken(len(view))
        view[: len(data)] = data
        self._position = self._at
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._end()
        super().close()

    def _move(self) -> None:
        """Be where the next byte is to be read: what lies near ahead is read past, elsewhere begins another request."""
        if not 0 <= self._position - self._at <= CHUNK:
            self._end()
            self._at = self._position
        while self._at < self._position:
            if not self._taken(self._position - self._at):
                return

    def _taken(self, most: int) -> bytes:
        """The next bytes, at least one and at most so many; none at the end of the file."""
        if not self._left:
            self._left = self._next()
        data, self._left = self._left[:most], self._left[most:]
        self._at += len(data)
        return data

    def _next(self) -> bytes:
        """What the connection brings next, made again where it was cut. Raises httpx2's TransportError, OSError."""
        from httpx2 import TransportError

        pauses = list(PAUSES)
        while True:
            try:
                if self._response is None:
                    self._go_on()
                return self._waited_for()
            except TransportError:
                self._end()
                if not pauses or not self._parts:
                    raise
                time.sleep(pauses.pop(0))

    def _waited_for(self) -> bytes:
        """What the connection brings next. Raises TimeoutError for one that brings too little in the time waited."""
        data, began = b"", time.monotonic()
        try:
            data = next(self._chunks, b"")
        finally:
            self._pace.waited(len(data), time.monotonic() - began)
        return data

    def _begin(self, headers: Mapping[str, str]) -> Response:
        self._response = response = _answer(self.url, headers)
        self._chunks = response.iter_bytes()
        return response

    def _go_on(self) -> None:
        """Ask for the rest of the file. Raises OSError if it is another file by now."""
        headers = {"Range": f"bytes={self._at}-"} | ({"If-Range": self._version} if self._version else {})
        response = self._begin(headers)
        where = re.match(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if response.status_code != 206 or not where or int(where[1]) != self._at:
            raise OSError("it was replaced while it was read")

    def _end(self) -> None:
        if self._response is not None:
            self._response.close()
        self._response, self._left = None, b""


@functools.cache
def _client(process: int) -> Client:
    """The connections of a process: a fork of it must not write into them."""
    from httpx2 import Client, Timeout

    client = Client(
        timeout=Timeout(SILENCE, connect=CONNECTING),
        follow_redirects=True,
        # Packed bodies cannot be gone on with.
        headers={"User-Agent": f"diffpipe/{__version__}", "Accept-Encoding": "identity"},
    )
    return http_guard.guard(client)


def _answer(url: str, headers: Mapping[str, str]) -> Response:
    """The beginning of an answer that brings a file, or a part of one. Raises FileNotFoundError and Refused."""
    response = _sent("GET", url, headers)
    if response.is_success:
        return response
    response.close()
    if response.status_code in (404, 410):
        raise FileNotFoundError(errno.ENOENT, "the server has no such file")
    raise Refused(response.status_code, response.reason_phrase)


def _sent(method: str, url: str, headers: Mapping[str, str]) -> Response:
    """The beginning of an answer, whatever it says; that to HEAD is closed."""
    from httpx2 import RemoteProtocolError

    client = _client(os.getpid())
    request = client.build_request(method, url, headers=headers)
    try:
        response = client.send(request, stream=True)
    except RemoteProtocolError:  # a connection that was kept may have been closed by the server meanwhile
        response = client.send(request, stream=True)
    if method == "HEAD":
        response.close()
    return response


def _length(response: Response) -> int | None:
    """Bytes of the file, None where its server does not say, or packs it."""
    text = response.headers.get("Content-Length", "")
    packed = response.headers.get("Content-Encoding", "identity") != "identity"
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 and not packed else None
