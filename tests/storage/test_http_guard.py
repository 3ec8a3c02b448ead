"""What servers do to a client that is guarded: drag answers out, pack them, say them without end, lead elsewhere."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import httpx2
import pytest

from diffpipe.storage import http_guard, httpx_seam

Say = Callable[[bytes], None]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"


@contextmanager
def serving(answer: Callable[[Say], None]) -> Iterator[str]:
    """A server that answers each connection, as soon as something is asked, by what `answer` says."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def one(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                connection.recv(65536)
                answer(connection.sendall)

        def all_of_them() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=one, args=(listening.accept()[0],), daemon=True).start()

        threading.Thread(target=all_of_them, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def client() -> Iterator[httpx2.Client]:
    with http_guard.guard(httpx2.Client(follow_redirects=True, timeout=20, trust_env=False)) as made:
        yield made


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_guard, "PATIENCE", 0.2)


def byte_by_byte(data: bytes) -> Callable[[Say], None]:
    def answer(say: Say) -> None:
        for at in range(len(data)):
            say(data[at : at + 1])
            time.sleep(0.02)

    return answer


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 1000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 1000,
        b"HTTP/1.1 302 Found\r\nLocation: /x\r\nX: " + b"x" * 9000,
    ],
    ids=["headers", "interim answers", "a redirect"],
)
def test_headers_that_are_dragged_out(client: httpx2.Client, method: str, data: bytes) -> None:
    with serving(byte_by_byte(data)) as url, pytest.raises(TimeoutError, match=r"it sent \d+ bytes in \d seconds"):
        client.request(method, url)


@pytest.mark.usefixtures("impatient")
def test_a_body_that_is_dragged_out(client: httpx2.Client) -> None:
    def answer(say: Say) -> None:
        say(OK)
        byte_by_byte(b"x" * 1000)(say)

    with serving(answer) as url, pytest.raises(TimeoutError, match="it sent"):
        client.get(url)


def test_interim_answers_without_end(client: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_guard, "LONGEST_HEADERS", 100_000)

    def answer(say: Say) -> None:
        while True:
            say(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000)

    with serving(answer) as url, pytest.raises(TimeoutError, match="headers are longer than 100000 bytes"):
        client.get(url)


def test_headers_without_end(client: httpx2.Client) -> None:
    def answer(say: Say) -> None:
        say(b"HTTP/1.1 200 OK\r\n")
        while True:
            say(b"X-A: b\r\n" * 1000)

    with serving(answer) as url, pytest.raises(httpx2.RemoteProtocolError):
        client.get(url)


@pytest.mark.parametrize("status", [302, 404])
def test_a_body_that_nobody_asked_for_is_read_past_and_no_further(client: httpx2.Client, status: int) -> None:
    said = []

    def answer(say: Say) -> None:
        say(b"HTTP/1.1 %d No\r\nLocation: http://127.0.0.1:1/\r\nTransfer-Encoding: chunked\r\n\r\n" % status)
        while True:
            say(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            said.append(65536)

    with serving(answer) as url:
        if status == 302:
            with pytest.raises(httpx2.ConnectError):
                client.get(url)
        else:
            assert client.get(url).content == b""
        time.sleep(0.05)
    assert sum(said) < 50_000_000  # what the sockets hold


def test_a_packed_refusal_is_not_unpacked(client: httpx2.Client) -> None:
    data = gzip.compress(bytes(10_000_000))

    def answer(say: Say) -> None:
        say(b"HTTP/1.1 500 No\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(data) + data)

    with serving(answer) as url:
        assert client.get(url).content == b""


def test_a_file_may_take_as_long_as_its_reader(client: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(http_guard.time, "monotonic", lambda: now[0])

    def answer(say: Say) -> None:
        say(OK + bytes(1_000_000))

    with serving(answer) as url, client.stream("GET", url) as response:
        read = 0
        for chunk in response.iter_bytes():
            now[0] += 1000
            read += len(chunk)
    assert read == 1_000_000


def test_each_request_begins_anew(client: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_guard, "LONGEST_HEADERS", 100_000)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            with listening.accept()[0] as connection, suppress(OSError):
                while connection.recv(65536):
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\n" + bytes(90_000))

        threading.Thread(target=answer, daemon=True).start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        assert [len(client.get(url).content) for _ in range(5)] == [90_000] * 5


@pytest.mark.parametrize("to", ["http://host/a", "HTTP://other/", "file:///etc/passwd", "ftp://host/"])
def test_encryption_is_not_left(to: str) -> None:
    transport = httpx2.MockTransport(lambda request: httpx2.Response(302, headers={"Location": to}))
    client = http_guard.guard(httpx2.Client(transport=transport, follow_redirects=True))
    with pytest.raises(httpx2.RemoteProtocolError, match="without encryption"):
        client.get("https://host/")


def test_the_seam_reaches_every_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    seen: list[object] = []
    with httpx2.Client() as client:
        httpx_seam.replace_backends(client, lambda backend: seen.append(backend) or backend)
        transports = [client._transport, *client._mounts.values()]
    assert len(seen) == len([one for one in transports if one is not None]) >= 3
