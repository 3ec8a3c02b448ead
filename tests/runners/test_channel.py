"""Messages between processes: frames of any JSON over a socket, what comes in that is none, and the socket's folder."""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import IS_ROOT
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from subprocesses import until

from diffpipe.batch.argument_values import json_of
from diffpipe.cache.store import Store
from diffpipe.core.errors import CacheError
from diffpipe.core.parsing import DEEPEST
from diffpipe.core.request import Request
from diffpipe.runners.worker import channel, folder, lifecycle
from diffpipe.runners.worker.channel import Channel, Listener, Lost
from diffpipe.runners.worker.protocol import Make, from_client

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)
messages = st.dictionaries(st.text(), values)
own = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def private(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of sockets, in a place of the test's own whose path is short."""
    base = tmp_path_factory.mktemp("r")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
    return folder.folder()


@pytest.fixture
def connected(private: Path) -> Iterator[Callable[[], tuple[Channel, Channel]]]:
    """Both ends of a channel: the client's, the worker's."""
    opened: list[Channel | Listener] = []

    def connect() -> tuple[Channel, Channel]:
        listener = channel.listen(private / "x")
        with ThreadPoolExecutor() as pool:
            accepted = pool.submit(listener.accept, 30)
            client = connected_to(private / "x")
            worker = accepted.result()
        assert worker
        opened.extend([client, worker, listener])
        return client, worker

    yield connect
    for one in opened:
        one.close()


def connected_to(place: Path) -> Channel:
    found = channel.connect(place, 30)
    assert found
    return found


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# Frames


def test_any_json_both_ways(connected: Callable[[], tuple[Channel, Channel]]) -> None:
    client, worker = connected()

    @own
    @given(messages)
    @example({"": [], "surrogate": "\udcff", "deep": [[[[{}]]]]})
    def told(message: dict[str, Any]) -> None:
        client.send(message)
        there = worker.receive(5)
        worker.send(there)
        assert client.receive(5) == message

    told()


def test_a_large_message_in_pieces(connected: Callable[[], tuple[Channel, Channel]]) -> None:
    client, worker = connected()
    message = {"data": "x" * (channel.LARGEST - 100)}
    sending = threading.Thread(target=client.send, args=(message,))
    sending.start()
    found = worker.receive(5)
    sending.join()
    assert found == message


def test_what_a_prompt_file_may_hold_is_as_deep_in_a_message(connected: Callable[[], tuple[Channel, Channel]]) -> None:
    client, worker = connected()
    deep: object = 1
    for _ in range(DEEPEST):
        deep = [deep]
    asked = Request(0, 1, {"prompt": "x", "attention": json_of(json.dumps(deep))}, ("x.png",), id="x")
    client.send(Make((asked,), {}).to_json())
    assert from_client(worker.receive(5) or {}) == Make((asked,), {})


def test_what_is_too_large_is_not_sent(connected: Callable[[], tuple[Channel, Channel]]) -> None:
    client, worker = connected()
    with pytest.raises(ValueError, match="the limit is"):
        client.send({"data": "x" * channel.LARGEST})
    client.send({"next": 1})
    assert worker.receive(5) == {"next": 1}


def test_messages_of_several_threads_are_whole(connected: Callable[[], tuple[Channel, Channel]]) -> None:
    client, worker = connected()
    wanted = [{"thread": thread, "at": at, "data": "x" * 50_000} for thread in range(4) for at in range(10)]

    def send(thread: int) -> None:
        for message in wanted[thread * 10 : thread * 10 + 10]:
            client.send(message)

    threads = [threading.Thread(target=send, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    found = [worker.receive(5) for _ in wanted]
    for thread in threads:
        thread.join()
    assert sorted(found, key=json.dumps) == sorted(wanted, key=json.dumps)


def test_no_message_in_time_is_none(connected: Callable[[], tuple[Channel, Channel]]) -> None:
    client, _ = connected()
    started = time.monotonic()
    assert client.receive(0.1) is None
    assert time.monotonic() - started >= 0.1


def test_an_end_is_told(connected: Callable[[], tuple[Channel, Channel]]) -> None:
    client, worker = connected()
    worker.send({"last": True})
    worker.close()
    worker.close()
    assert client.receive(5) == {"last": True}
    with pytest.raises(Lost):
        client.receive(5)
    with pytest.raises(Lost):
        client.send({"more": "x" * 1_000_000})
    with pytest.raises(Lost):
        worker.receive(0)


def test_who_takes_nothing_is_lost(
    connected: Callable[[], tuple[Channel, Channel]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "MESSAGE_TIMEOUT", 0.2)
    client, _worker = connected()
    with pytest.raises(Lost, match="takes nothing"):
        client.send({"data": "x" * 5_000_000})


def test_half_a_message_is_lost(
    connected: Callable[[], tuple[Channel, Channel]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "MESSAGE_TIMEOUT", 0.2)
    client, worker = connected()
    client.socket.send(struct.pack(">I", 100) + b"half")
    with pytest.raises(Lost, match="half a message"):
        worker.receive(5)


def test_the_time_for_a_message_is_for_the_whole_of_it(
    connected: Callable[[], tuple[Channel, Channel]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who sends a byte now and then holds a receiver up no longer than who sends none."""
    monkeypatch.setattr(channel, "MESSAGE_TIMEOUT", 0.3)
    client, worker = connected()
    ended = threading.Event()

    def dribble() -> None:
        client.socket.send(struct.pack(">I", 100_000))
        while not ended.wait(0.02):
            client.socket.send(b" ")

    dribbling = threading.Thread(target=dribble)
    dribbling.start()
    try:
        with pytest.raises(Lost, match="half a message"):
            worker.receive(30)
    finally:
        ended.set()
        dribbling.join()


def test_who_takes_a_message_too_slowly_is_lost(
    connected: Callable[[], tuple[Channel, Channel]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "MESSAGE_TIMEOUT", 0.3)
    client, worker = connected()
    ended = threading.Event()

    def sip() -> None:
        while not ended.wait(0.02):
            with suppress(BlockingIOError):
                client.socket.recv(100_000)

    sipping = threading.Thread(target=sip)
    sipping.start()
    try:
        with pytest.raises(Lost, match="takes nothing"):
            worker.send({"data": "x" * (channel.LARGEST - 100)})
    finally:
        ended.set()
        sipping.join()


def test_an_offer_waits_for_nobody(connected: Callable[[], tuple[Channel, Channel]]) -> None:
    """Who is stopped takes nothing, and may be in the midst of a message of another thread."""
    client, worker = connected()
    began = time.monotonic()
    with worker._lock:
        worker.offer({"alive": True})
    with suppress(BlockingIOError):
        while True:
            worker.socket.send(framed(b'{"large": 1}') * 1000)
    worker.offer({"alive": True})
    assert time.monotonic() - began < channel.MESSAGE_TIMEOUT
    quiet, talking = connected()
    talking.offer({"alive": True})
    assert quiet.receive(5) == {"alive": True}
    assert client.receive(5) == {"large": 1}


def test_a_channel_that_another_thread_reads_is_closed(connected: Callable[[], tuple[Channel, Channel]]) -> None:
    client, worker = connected()
    before = descriptors()
    with ThreadPoolExecutor() as pool:
        reading = pool.submit(client.receive, 30)
        until(lambda: client._receiving)
        client.close()
        assert descriptors() == before  # not while it is read: the number could be another file's
        worker.send({"last": 1})
        assert reading.result() == {"last": 1}
    assert descriptors() < before


# What is no message


DEEP = b"[" * 100_000
BAD = st.one_of(
    st.binary(max_size=200),
    st.binary(max_size=200).map(lambda data: struct.pack(">I", len(data)) + data),
    values.filter(lambda value: not isinstance(value, dict)).map(lambda v: framed(json.dumps(v).encode())),
    st.integers(channel.LARGEST + 1, 2**32 - 1).map(lambda length: struct.pack(">I", length) + b"x"),
)


def framed(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def test_garbage_ends_that_client_alone(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "MESSAGE_TIMEOUT", 0.05)
    listener = channel.listen(private / "g")
    taken: list[Any] = []

    def attend() -> None:
        while True:
            if not (came := listener.accept(1)):
                continue
            try:
                if (found := came.receive(0.05)) is not None:
                    assert isinstance(found, dict)
                    came.send(found)
                    taken.append(found)
            except Lost:
                pass
            finally:
                came.close()
            if taken and taken[-1] == {"end": True}:
                return

    attending = threading.Thread(target=attend, daemon=True)
    attending.start()

    @own
    @given(BAD)
    @example(framed(DEEP))
    @example(framed(b'{"a": ' * 50_000))
    @example(framed(b"9" * 10_000))
    @example(framed(b"\xff\xfe{}"))
    @example(b"")
    def sent(data: bytes) -> None:
        client = connected_to(private / "g")
        with suppress(OSError):
            client.socket.send(data)
        with suppress(Lost):  # JSON may be a message
            assert isinstance(client.receive(5), dict)
        client.close()

    sent()
    client = connected_to(private / "g")
    client.send({"end": True})
    assert client.receive(5) == {"end": True}
    attending.join(5)
    assert not attending.is_alive()
    client.close()
    listener.close()


# Places


def test_the_folder_is_private(private: Path) -> None:
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert folder.folder() == private


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o777])
def test_a_folder_that_others_may_enter_is_refused(private: Path, mode: int) -> None:
    private.chmod(mode)
    with pytest.raises(CacheError, match="is open to other users"):
        folder.folder()


@pytest.mark.skipif(not IS_ROOT, reason="only root can give files away")
def test_a_folder_of_another_user_is_refused(private: Path) -> None:
    os.chown(private, 65534, 65534)
    with pytest.raises(CacheError, match="belongs to another user"):
        folder.folder()


def test_a_link_is_no_folder(private: Path, tmp_path: Path) -> None:
    private.rmdir()
    private.symlink_to(tmp_path)
    with pytest.raises(CacheError, match="is a link or a file"):
        folder.folder()


@pytest.mark.parametrize("what", ["a link", "a folder"])
@pytest.mark.parametrize("ending", [".lock", ".pid", ".sock"])
def test_what_is_no_workers_in_its_place_is_named(private: Path, tmp_path: Path, what: str, ending: str) -> None:
    store = Store(tmp_path)
    place = lifecycle.place_of(store, "f" * 64)
    place.with_suffix(".sock").touch()
    path = place.with_suffix(ending)
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/null/nowhere") if what == "a link" else path.mkdir()
    if what == "a link" and ending != ".lock":
        assert lifecycle.running(store) == []
        return
    with pytest.raises(CacheError, match=f"{path.name} is no (lock|file) of a worker") as caught:
        lifecycle.running(store)
    assert caught.value.hint == f"remove {path}"


@pytest.mark.parametrize("named", ["", "no/absolute/path", "/no/such/folder"])
def test_without_a_runtime_folder_it_is_in_the_temporary_one(
    named: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path_factory.mktemp("t")
    monkeypatch.setenv("XDG_RUNTIME_DIR", named)
    monkeypatch.setattr(folder.tempfile, "gettempdir", lambda: str(temporary))
    assert folder.folder() == temporary / f"diffpipe-{os.getuid()}"


def test_a_path_that_is_too_long_for_a_socket_gives_way_to_a_short_one(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sockaddr_un holds 104 bytes on macOS and BSD, 108 on Linux."""
    deep, short = tmp_path / ("x" * 100), tmp_path_factory.mktemp("s")
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    monkeypatch.setattr(folder.tempfile, "gettempdir", lambda: str(deep))
    monkeypatch.setattr(folder, "SHORT_TEMPORARY", str(short))
    found = folder.folder()
    listener = channel.listen(lifecycle.place_of(Store(tmp_path), "f" * 64))
    listener.close()
    assert found == short / f"diffpipe-{os.getuid()}"
    assert len(os.fsencode(listener.path)) <= folder.LONGEST_PATH


def test_without_any_short_path_there_is_no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "SHORT_TEMPORARY", str(tmp_path / ("x" * 100)))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(folder.tempfile, "gettempdir", lambda: str(tmp_path / ("x" * 100)))
    with pytest.raises(CacheError, match="are too long"):
        folder.folder()


def test_without_unix_sockets_there_is_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(CacheError, match="this system has no Unix sockets, which workers need"):
        folder.folder()


def test_nobody_there_is_none(private: Path) -> None:
    place = private / "none"
    assert channel.connect(place) is None
    channel.listen(place).close()
    assert channel.connect(place) is None
    channel.listen(place).socket.close()
    assert channel.path_of(place).exists()
    assert channel.connect(place) is None


def test_who_lets_nobody_in_is_no_nobody(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process that is stopped, once all places to wait in are taken."""
    listener = channel.listen(private / "s")
    waiting: list[Any] = []

    def crowd() -> None:
        for _ in range(2 * channel.BACKLOG):
            waiting.append(channel.connect(private / "s", 0.2))

    with pytest.raises(Lost, match="takes no connection"):
        crowd()
    for one in (*waiting, listener):
        one.close()


@pytest.mark.skipif(not IS_ROOT, reason="only root can give files away")
def test_what_belongs_to_another_is_not_used(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = channel.listen(private / "o")
    os.chown(channel.path_of(private / "o"), 65534, 65534)
    with pytest.raises(CacheError, match="is not yours"):
        channel.connect(private / "o")
    listener.close()


@pytest.mark.skipif(not IS_ROOT, reason="only root can become another user")
def test_another_users_process_is_not_talked_to(private: Path) -> None:
    """Its socket's file is ours; the process that listens is not."""
    path = channel.path_of(private / "p")
    ready, told = os.pipe()
    child = os.fork()
    if not child:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
        os.setuid(65534)
        listening.listen()
        os.write(told, b"1")
        while True:
            listening.accept()
    try:
        os.read(ready, 1)
        with pytest.raises(CacheError, match="another user's"):
            channel.connect(private / "p")
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(told)


def test_a_listener_knows_whether_it_is_found(private: Path) -> None:
    first = channel.listen(private / "l")
    assert first.in_place()
    channel.path_of(private / "l").unlink()
    assert not first.in_place()
    second = channel.listen(private / "l")
    first.close()
    first.close()
    assert second.in_place()  # what is another's is left alone
    second.close()
    assert list(private.iterdir()) == []


def test_descriptors_do_not_grow_with_clients(private: Path) -> None:
    listener = channel.listen(private / "f")

    def attend() -> None:
        for _ in range(50):
            came = listener.accept(5)
            assert came
            came.send(came.receive(5) or {})
            came.close()

    attending = threading.Thread(target=attend)
    attending.start()
    before = descriptors()
    for number in range(50):
        client = connected_to(private / "f")
        client.send({"number": number})
        assert client.receive(5) == {"number": number}
        client.close()
    attending.join()
    assert descriptors() == before
    listener.close()
    assert list(private.iterdir()) == []
