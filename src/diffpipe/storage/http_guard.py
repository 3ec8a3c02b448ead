"""What every answer of a web server or a hub is held to, whoever asked: a time, a pace, and where it may lead.

It is done at the socket, so that headers, redirects and the bodies of refusals are held to it as files are. What a
host's name resolves to is asked of the system, which has a time of its own for that.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from . import httpx_seam

if TYPE_CHECKING:
    import ssl

    from httpcore2 import SOCKET_OPTION, NetworkBackend, NetworkStream
    from httpx2 import Client, Response, SyncByteStream

LEAST = 60_000  # bytes that must come
PATIENCE = 60.0  # within so many seconds of waiting for them
LONGEST_HEADERS = 1_000_000  # bytes until an answer's headers are there; h11 takes 100 kB, but 1xx without end
READ_PAST = 100_000  # bytes of a redirect's or refusal's body; after more of them the connection is closed
REDIRECTS = 5  # one after another; a hub that sends on to another server takes two


class Pace:
    """What came in how long a time of waiting: time in which nobody waited is not the server's fault."""

    def __init__(self) -> None:
        self._count, self._seconds = 0, 0.0

    def waited(self, count: int, seconds: float) -> None:
        """So many bytes came in so many seconds. Raises TimeoutError if that is slower than LEAST in PATIENCE."""
        self._count, self._seconds = self._count + count, self._seconds + seconds
        if self._count < LEAST and self._seconds > PATIENCE:
            raise TimeoutError(f"it sent {self._count} bytes in {self._seconds:.0f} seconds")
        if self._count >= LEAST:
            self._count, self._seconds = 0, 0.0


def guard(client: Client) -> Client:
    """Hold a client's answers to the limits above, and its redirects to encryption where there was some."""
    httpx_seam.replace_backends(client, _Backend)
    client.event_hooks["response"].append(_check)
    client.max_redirects = REDIRECTS
    return client


def _check(response: Response) -> None:
    """Called with each answer, those that redirect too, once its headers are there."""
    from httpx2 import RemoteProtocolError, SyncByteStream

    stream = response.extensions.get("network_stream")
    if isinstance(stream, _Stream):
        stream.begin_body()
    if response.status_code >= 300 and isinstance(response.stream, SyncByteStream):
        response.stream = _read_past(response.stream)
        response.headers.pop("Content-Encoding", None)
    if response.has_redirect_location and response.url.scheme == "https" and not _is_encrypted(response):
        raise RemoteProtocolError("it is redirected to an address without encryption", request=response.request)


def _is_encrypted(redirect: Response) -> bool:
    from httpx2 import InvalidURL

    try:
        return redirect.url.join(redirect.headers["Location"]).scheme == "https"
    except InvalidURL:  # which is told of when it is to be followed
        return True


def _read_past(stream: SyncByteStream) -> SyncByteStream:
    """A stream of which nothing comes out. What a hub says of a refusal is in its headers, and its client would
    take a body for what it expects, however large, deep or packed it is."""
    from httpx2 import SyncByteStream

    class Past(SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            read = 0
            for chunk in stream:
                read += len(chunk)
                if read > READ_PAST:
                    break
            yield from ()

        def close(self) -> None:
            stream.close()

    return Past()


class _Stream:
    """A connection (httpcore's NetworkStream) that ends where nothing worth the name comes."""

    def __init__(self, stream: NetworkStream) -> None:
        self._stream = stream
        self._begin()

    def _begin(self) -> None:
        self._pace = Pace()
        self._headers: int | None = 0  # bytes of them that came; None when they are there

    def begin_body(self) -> None:
        self._headers = None

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data, began = b"", time.monotonic()
        try:
            data = self._stream.read(max_bytes, timeout)
        finally:
            self._pace.waited(len(data), time.monotonic() - began)
        if self._headers is not None:
            self._headers += len(data)
            if self._headers > LONGEST_HEADERS:
                raise TimeoutError(f"its answer's headers are longer than {LONGEST_HEADERS} bytes")
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._begin()  # another request on the same connection
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> _Stream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)


class _Backend:
    """What makes connections (httpcore's NetworkBackend): those of another one, held to the limits."""

    def __init__(self, backend: NetworkBackend) -> None:
        self._backend = backend

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> _Stream:
        return _Stream(self._backend.connect_tcp(host, port, timeout, local_address, socket_options))

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[SOCKET_OPTION] | None = None
    ) -> _Stream:
        return _Stream(self._backend.connect_unix_socket(path, timeout, socket_options))

    def sleep(self, seconds: float) -> None:
        self._backend.sleep(seconds)
