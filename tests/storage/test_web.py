"""Inputs at http(s) URLs, read from a server on this machine: what it refuses, cuts, redirects and drags out."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Cli
from hub_server import closed_port
from PIL import Image

from diffpipe.core.errors import AccessError, CacheError, DiffpipeError, Exit, NotFoundError, UsageError
from diffpipe.storage import disk, fetching, http_guard, presence, publishing, stores, streams, web

DATA = bytes(range(256)) * 2000  # 512 kB


@dataclass
class Server:
    """What a server has (by path), how it behaves, and the requests that it got: method, path, Range, Authorization."""

    files: dict[str, bytes]
    url: str = ""
    ranges: bool = True
    etag: str = '"one"'
    length: bool = True
    head: int = 200  # status of an answer to HEAD
    status: int = 0  # of every answer
    cuts: list[int] = field(default_factory=list)  # bytes before the cut, for request after request
    trickle: float = 0.0  # seconds before each byte
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)

    def ranges_of(self) -> list[str | None]:
        return [asked for method, _, asked, _ in self.requests if method == "GET"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    on: Server

    def do_HEAD(self) -> None:
        self.answer(self.on.head)

    def do_GET(self) -> None:
        self.answer(200)

    def answer(self, status: int) -> None:
        path, asked = self.path.partition("?")[0], self.headers["Range"]
        self.on.requests.append((self.command, self.path, asked, self.headers["Authorization"]))
        data, status = self.on.files.get(path, b""), self.on.status or status
        if path.startswith("/to/"):
            return self.send(302, b"", {"Location": self.on.url + path.removeprefix("/to")})
        if path == "/loop":
            return self.send(302, b"", {"Location": "/loop"})
        if path not in self.on.files:
            return self.send(404, b"", {})
        if status != 200:
            return self.send(status, b"", {})
        headers = {"ETag": self.on.etag} | ({"Accept-Ranges": "bytes"} if self.on.ranges else {})
        if asked and self.on.ranges and self.headers["If-Range"] in (None, self.on.etag):
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self.send(206, data[start:], headers)
        return self.send(200, data, headers)

    def send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        if self.on.length:
            headers["Content-Length"] = str(len(data))
        else:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        with suppress(ConnectionError):
            if self.on.cuts and status < 300:
                data = data[: self.on.cuts.pop(0)]
                self.close_connection = True
            if self.on.trickle:
                for at in range(len(data)):
                    stopped.wait(self.on.trickle)
                    self.wfile.write(data[at : at + 1])
            else:
                self.wfile.write(data)

    def log_message(self, *_args: object) -> None:
        pass


class QuietServer(ThreadingHTTPServer):
    daemon_threads, block_on_close = True, False

    def handle_error(self, *_args: object) -> None:
        """A client may leave in the middle of an answer."""


stopped = threading.Event()


@pytest.fixture
def server() -> Iterator[Server]:
    on = Server({"/a.bin": DATA, "/deep/my%20fox.png": b"fox"})
    bound = QuietServer(("127.0.0.1", 0), type("Bound", (Handler,), {"on": on}))
    on.url = f"http://127.0.0.1:{bound.server_address[1]}"
    stopped.clear()
    threading.Thread(target=bound.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield on
    stopped.set()
    bound.shutdown()
    bound.server_close()


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, which are noted and not made."""
    pauses: list[float] = []
    monkeypatch.setattr(web, "time", SimpleNamespace(sleep=pauses.append, monotonic=web.time.monotonic))
    presence.forget()
    return pauses


def failing(url: str) -> DiffpipeError:
    with pytest.raises(DiffpipeError) as error:
        fetching.fetched(url)
    return error.value


def test_a_file_is_fetched_once_while_it_is_the_same(server: Server) -> None:
    first = fetching.fetched(f"{server.url}/a.bin")
    assert (first.name, first.read_bytes()) == ("a.bin", DATA)
    assert fetching.fetched(f"{server.url}/a.bin") == first
    assert [method for method, *_ in server.requests] == ["HEAD", "GET", "HEAD"]
    server.files["/a.bin"], server.etag = b"new", '"two"'
    assert fetching.fetched(f"{server.url}/a.bin").read_bytes() == b"new"
    assert fetching.fetched(f"{server.url}/deep/my%20fox.png?X-Amz-Signature=secret").read_bytes() == b"fox"


def test_what_is_there(server: Server) -> None:
    assert presence.exists(f"{server.url}/a.bin")
    assert not presence.exists(f"{server.url}/b.bin")
    assert presence.stamp(f"{server.url}/a.bin") == {"size": len(DATA), "tag": '"one"'}
    assert presence.state(f"{server.url}/a.bin")["size"] == len(DATA)
    assert streams.size(f"{server.url}/a.bin") == len(DATA)


def test_a_tag_is_noted_within_bounds(server: Server) -> None:
    server.etag = '"' + "x" * 60_000 + '"'
    assert len(str(presence.stamp(f"{server.url}/a.bin"))) < 1100


@pytest.mark.parametrize("head", [403, 404, 405, 501])
def test_a_server_that_answers_get_alone(server: Server, head: int) -> None:
    server.head = head  # as S3 does for URLs that are signed for GET
    assert presence.exists(f"{server.url}/a.bin")
    assert fetching.fetched(f"{server.url}/a.bin").read_bytes() == DATA


def test_credentials_of_a_url_are_sent_and_not_shown(server: Server) -> None:
    url = server.url.replace("://", "://me:secret@")
    assert fetching.fetched(f"{url}/a.bin").read_bytes() == DATA
    assert {sent for *_, sent in server.requests} == {"Basic bWU6c2VjcmV0"}
    server.status = 401
    error = failing(f"{url}/a.bin?sig=secret")
    assert (type(error), error.message) == (AccessError, f"access to {server.url}/a.bin is denied")


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (403, AccessError, "access to {} is denied"),
        (404, NotFoundError, "there is no file {}"),
        (410, NotFoundError, "there is no file {}"),
        (429, stores.StoreError, "cannot read {}: it answers 429 Too Many Requests"),
        (500, stores.StoreError, "cannot read {}: it answers 500 Internal Server Error"),
    ],
)
def test_what_a_server_refuses(server: Server, status: int, kind: type[DiffpipeError], said: str) -> None:
    server.status = status
    error = failing(f"{server.url}/a.bin")
    assert (type(error), error.message) == (kind, said.format(f"{server.url}/a.bin"))
    assert error.hint


def test_a_server_that_is_not_there(slept: list[float]) -> None:
    url = f"http://me:secret@127.0.0.1:{closed_port()}/a.bin"
    error = failing(url)
    assert type(error) is stores.StoreError
    assert error.message.startswith("cannot read http://127.0.0.1:")
    assert "refused" in error.message
    assert "secret" not in error.message
    assert slept == []


def test_redirects_are_followed_and_do_not_go_on_for_ever(server: Server) -> None:
    assert fetching.fetched(f"{server.url}/to/a.bin").read_bytes() == DATA
    error = failing(f"{server.url}/loop")
    assert (type(error), "redirects" in error.message) == (stores.StoreError, True)
    assert len([path for _, path, *_ in server.requests if path == "/loop"]) <= http_guard.REDIRECTS + 1


def test_a_redirect_to_an_address_without_encryption_is_refused() -> None:
    import httpx2

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.scheme == "https":
            return httpx2.Response(302, headers={"Location": "http://host/a.bin"})
        return httpx2.Response(200, content=DATA)

    client = http_guard.guard(httpx2.Client(transport=httpx2.MockTransport(answer), follow_redirects=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(web, "_client", lambda process: client)
        error = failing("https://host/a.bin")
    assert error.message == "cannot read https://host/a.bin: it is redirected to an address without encryption"


def test_a_cut_connection_goes_on_at_its_byte(server: Server, slept: list[float]) -> None:
    server.cuts = [100_000, 0, 0, 200_000, 0, 0, 100_000]
    assert fetching.fetched(f"{server.url}/a.bin").read_bytes() == DATA
    assert server.ranges_of() == [None, *["bytes=100000-"] * 3, *["bytes=300000-"] * 3, "bytes=400000-"]
    assert slept == [0.5, 1.0, 2.0, 0.5, 1.0, 2.0, 0.5]


def test_a_connection_that_stays_cut(server: Server, slept: list[float]) -> None:
    server.cuts = [100_000, 0, 0, 0, 0]
    error = failing(f"{server.url}/a.bin")
    assert (type(error), error.exit_code) == (stores.StoreError, Exit.FAILED)
    assert slept == [0.5, 1.0, 2.0]


def test_a_file_that_is_replaced_meanwhile_is_not_put_together_of_two(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.cuts = [100_000]

    def replace(seconds: float) -> None:
        server.files["/a.bin"], server.etag = DATA[::-1], '"two"'

    monkeypatch.setattr(web.time, "sleep", replace)
    assert failing(f"{server.url}/a.bin").message.endswith(": it was replaced while it was read")


def test_a_server_without_parts_is_read_in_one_go(server: Server, slept: list[float]) -> None:
    server.ranges = False
    assert fetching.fetched(f"{server.url}/a.bin").read_bytes() == DATA
    server.cuts, server.etag = [100_000], '"two"'
    assert type(failing(f"{server.url}/a.bin")) is stores.StoreError
    assert slept == []


def test_a_server_that_does_not_say_how_long_a_file_is(server: Server) -> None:
    server.length = False
    assert fetching.fetched(f"{server.url}/a.bin").read_bytes() == DATA
    assert presence.stamp(f"{server.url}/a.bin") == {"size": None, "tag": '"one"'}


@pytest.mark.parametrize("length", [True, False])
def test_a_file_without_bounds_is_refused(server: Server, length: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "LARGEST", 1000)
    server.length = length
    error = failing(f"{server.url}/a.bin")
    assert (type(error), error.message) == (UsageError, f"{server.url}/a.bin is larger than 1.0 kB")


def test_a_file_without_bounds_is_read_nowhere(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setattr(web, "LARGEST", 1000)
    MemoryFileSystem().pipe_file("/large.bin", DATA)
    for url in ("memory://large.bin", f"{server.url}/a.bin"):
        with pytest.raises(UsageError, match=r"is larger than 1\.0 kB"):
            presence.state(url)
    assert failing("memory://large.bin").message == "memory://large.bin is larger than 1.0 kB"
    MemoryFileSystem().rm_file("/large.bin")


def test_a_disk_without_room_is_told_before_the_first_byte(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 1000)
    error = failing(f"{server.url}/a.bin")
    assert type(error) is CacheError
    assert error.message == f"{server.url}/a.bin needs 512.0 kB, and 1.0 kB are free"


def test_a_server_that_falls_silent(server: Server, slept: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "SILENCE", 0.2)
    web._client.cache_clear()
    server.trickle = 3600
    error = failing(f"{server.url}/a.bin")
    web._client.cache_clear()
    assert (type(error), error.message) == (stores.StoreError, f"cannot read {server.url}/a.bin: timed out")
    assert slept[-3:] == [0.5, 1.0, 2.0]


def test_a_server_that_drags_a_file_out(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**9))  # ten seconds go by at each look at it
    monkeypatch.setattr(web.time, "monotonic", lambda: 10.0 * next(clock))
    server.trickle = 0.001
    error = failing(f"{server.url}/a.bin")
    assert type(error) is stores.StoreError
    assert " bytes in 70 seconds" in error.message


def test_a_byte_now_and_then_is_no_progress(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**9))
    monkeypatch.setattr(web.time, "monotonic", lambda: 30.0 * next(clock))  # as if each were waited for in vain
    server.cuts = [1] * 100
    error = failing(f"{server.url}/a.bin")
    assert error.message == f"cannot read {server.url}/a.bin: it sent 2 bytes in 90 seconds"


def test_waiting_for_a_reader_is_not_the_servers_fault(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(web.time, "monotonic", lambda: now[0])
    with web.WebFile(f"{server.url}/a.bin") as file:
        read = b""
        while data := file.read(1000):
            read += data
            now[0] += 1000  # between two reads
    assert read == DATA


def test_what_is_not_needed_is_not_read(server: Server) -> None:
    with streams.reading(f"{server.url}/a.bin") as stream:
        assert stream.seekable()
        assert stream.read(10) == DATA[:10]
        assert stream.seek(400_000) == 400_000
        assert stream.read(10) == DATA[400_000:400_010]
        assert stream.seek(-5, 2) == len(DATA) - 5
        assert (stream.read(), stream.read()) == (DATA[-5:], b"")


def test_far_ahead_begins_another_request(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "CHUNK", 1000)
    with web.WebFile(f"{server.url}/a.bin") as file:
        assert file.read(10) == DATA[:10]
        file.seek(500)
        assert file.read(10) == DATA[500:510]
        file.seek(300_000)
        assert file.read(10) == DATA[300_000:300_010]
        file.seek(0)
        assert file.read(10) == DATA[:10]
    assert server.ranges_of() == [None, "bytes=300000-", "bytes=0-"]


def test_nothing_is_written_there(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    with pytest.raises(UsageError, match="http:// can only be read"):
        stores.check_output(f"{server.url}/x.png")
    with pytest.raises(UsageError, match="http:// can only be read"), streams.writing(f"{server.url}/x.tar"):
        pass
    with pytest.raises(UsageError, match="http:// can only be read"):
        publishing.publish(tmp_path / "x", f"{server.url}/x.png", overwrite=True)


def test_a_picture_of_a_web_server_is_an_input(cli: Cli, server: Server, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "green").save(tmp_path / "green.png")
    server.files["/green.png"] = (tmp_path / "green.png").read_bytes()
    server.files["/prompts.jsonl"] = (json.dumps({"id": "a", "prompt": "a fox"}) + "\n").encode()
    cli("build", "demo", "--type", "img2img", check=True)
    call = ("generate", "demo-img2img", "--seed", 1, "--num-inference-steps", 2)
    cli(*call, "--prompt", "a fox", "--image", "green.png", "-o", "local.png", cwd=tmp_path, check=True)
    prompts = ("--prompts-from", f"{server.url}/prompts.jsonl", "-o", "away.png", "--overwrite")
    cli(*call, *prompts, "--image", f"{server.url}/green.png", cwd=tmp_path, check=True)
    with Image.open(tmp_path / "local.png") as local, Image.open(tmp_path / "away.png") as away:
        assert local.tobytes() == away.tobytes()
    refused = cli(*call, "--prompt", "a fox", "--image", f"{server.url}/none.png", cwd=tmp_path)
    assert refused.returncode == Exit.NOT_FOUND
    assert f"--image: there is no file {server.url}/none.png" in refused.stderr


def test_an_address_that_is_none() -> None:
    for url in ("http://", "http://[::1", f"http://127.0.0.1:{10**6}/x"):
        assert isinstance(failing(url), DiffpipeError)
