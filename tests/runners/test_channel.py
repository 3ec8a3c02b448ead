"""Messages between processes: frames of any JSON, over sockets and FIFOs, and what comes in that is none."""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from diffpipe.core.errors import CacheError
from diffpipe.runners.worker import channel
from diffpipe.runners.worker.channel import FIFOS, SOCKETS, Kind, Lost

KINDS = pytest.mark.parametrize("kind", [SOCKETS, FIFOS], ids=["sockets", "fifos"])
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)
messages = st.dictionaries(st.text(), values)
own = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def private(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of sockets, in a place of the test's own whose path is short."""
    base = tmp_path_factory.mktemp("r")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
    return channel.folder()


@pytest.fixture
def connected(private: Path) -> Iterator[Callable[[Kind], tuple[Any, Any]]]:
    """Both ends of a channel of a kind: the client's, the worker's."""
    opened: list[Any] = []

    def connect(kind: Kind) -> tuple[Any, Any]:
        listener = kind.listen(private / "x")
        accepted: list[Any] = []
        taking = threading.Thread(target=lambda: accepted.append(listener.accept(5)))
        taking.start()
        client = kind.to(private / "x", 5)
        taking.join()
        opened.extend([client, accepted[0], listener])
        return client, accepted[0]

    yield connect
    for one in opened:
        one.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# Frames


@KINDS
def test_any_json_both_ways(connected: Callable[[Kind], tuple[Any, Any]], kind: Kind) -> None:
    client, worker = connected(kind)

    @own
    @given(messages)
    @example({"": [], "surrogate": "\udcff", "deep": [[[[{}]]]]})
    def told(message: dict[str, Any]) -> None:
        client.send(message)
        there = worker.receive(5)
        worker.send(there)
        assert client.receive(5) == message

    told()


@KINDS
def test_a_large_message_in_pieces(connected: Callable[[Kind], tuple[Any, Any]], kind: Kind) -> None:
    client, worker = connected(kind)
    message = {"data": "x" * (channel.LARGEST - 100)}
    sending = threading.Thread(target=client.send, args=(message,))
    sending.start()
    found = worker.receive(5)
    sending.join()
    assert found == message


@KINDS
def test_what_is_too_large_is_not_sent(connected: Callable[[Kind], tuple[Any, Any]], kind: Kind) -> None:
    client, worker = connected(kind)
    with pytest.raises(ValueError, match="the limit is"):
        client.send({"data": "x" * channel.LARGEST})
    client.send({"next": 1})
    assert worker.receive(5) == {"next": 1}


@KINDS
def test_messages_of_several_threads_are_whole(connected: Callable[[Kind], tuple[Any, Any]], kind: Kind) -> None:
    client, worker = connected(kind)
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


@KINDS
def test_no_message_in_time_is_none(connected: Callable[[Kind], tuple[Any, Any]], kind: Kind) -> None:
    client, _ = connected(kind)
    started = time.monotonic()
    assert client.receive(0.1) is None
    assert 0.1 <= time.monotonic() - started < 2


@KINDS
def test_an_end_is_told(connected: Callable[[Kind], tuple[Any, Any]], kind: Kind) -> None:
    client, worker = connected(kind)
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


@KINDS
def test_who_takes_nothing_is_lost(
    connected: Callable[[Kind], tuple[Any, Any]], kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "PATIENCE", 0.2)
    client, _worker = connected(kind)
    started = time.monotonic()
    with pytest.raises(Lost, match="takes nothing"):
        client.send({"data": "x" * 5_000_000})
    assert time.monotonic() - started < 2


@KINDS
def test_half_a_message_is_lost(
    connected: Callable[[Kind], tuple[Any, Any]], kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "PATIENCE", 0.2)
    client, worker = connected(kind)
    os.write(client.target, struct.pack(">I", 100) + b"half")
    with pytest.raises(Lost, match="half a message"):
        worker.receive(5)


@KINDS
def test_a_channel_that_another_thread_reads_is_closed(
    connected: Callable[[Kind], tuple[Any, Any]], kind: Kind
) -> None:
    client, _ = connected(kind)
    before = descriptors()
    found: list[Any] = []
    reading = threading.Thread(target=lambda: found.append(client.receive(0.3)))
    reading.start()
    time.sleep(0.1)
    client.close()
    assert descriptors() == before  # not while it is read: the number could be another file's
    reading.join()
    assert found == [None]
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


@KINDS
def test_garbage_ends_that_client_alone(private: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "PATIENCE", 0.05)
    listener = kind.listen(private / "g")
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
        client = kind.to(private / "g", 5)
        with suppress(OSError):
            os.write(client.target, data)
        with suppress(Lost):  # JSON may be a message
            assert isinstance(client.receive(5), dict)
        client.close()

    sent()
    client = kind.to(private / "g", 5)
    client.send({"end": True})
    assert client.receive(5) == {"end": True}
    attending.join(5)
    assert not attending.is_alive()
    client.close()
    listener.close()


def test_garbage_in_the_door_costs_nobody_the_way_in(private: Path) -> None:
    listener = FIFOS.listen(private / "d")
    door = os.open(private / "d", os.O_WRONLY)
    os.write(door, b"rubbish" * 50 + b"\n" + b"x" * 39 + b"\n" + b"../" * 13 + b"\nhalf a li")
    accepted: list[Any] = []

    def attend() -> None:
        while not accepted:
            if came := listener.accept(1):
                accepted.append(came)

    attending = threading.Thread(target=attend, daemon=True)
    attending.start()
    with suppress(TimeoutError):  # its line is the end of the half one
        FIFOS.to(private / "d", 0.3)
    client = FIFOS.to(private / "d", 5)
    client.send({"there": 1})
    attending.join(5)
    assert accepted[0].receive(5) == {"there": 1}
    os.close(door)
    for one in (client, accepted[0], listener):
        one.close()
    assert sorted(private.iterdir()) == []


# Places


def test_the_folder_is_private(private: Path) -> None:
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert channel.folder() == private


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o777])
def test_a_folder_that_others_may_enter_is_refused(private: Path, mode: int) -> None:
    private.chmod(mode)
    with pytest.raises(CacheError, match="is open to other users"):
        channel.folder()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_folder_of_another_user_is_refused(private: Path) -> None:
    os.chown(private, 65534, 65534)
    with pytest.raises(CacheError, match="belongs to another user"):
        channel.folder()


def test_a_link_is_no_folder(private: Path, tmp_path: Path) -> None:
    private.rmdir()
    private.symlink_to(tmp_path)
    with pytest.raises(CacheError, match="belongs to another user"):
        channel.folder()


@pytest.mark.parametrize("named", ["", "no/absolute/path", "/no/such/folder"])
def test_without_a_runtime_folder_it_is_in_the_temporary_one(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", named)
    monkeypatch.setattr(channel.tempfile, "gettempdir", lambda: str(tmp_path))
    assert channel.folder() == tmp_path / f"diffpipe-{os.getuid()}"


def test_a_path_that_is_too_long_for_a_socket_is_a_fifo(monkeypatch: pytest.MonkeyPatch) -> None:
    assert channel.kind_of(Path("/run/user/1000/diffpipe/01234567-0123456789abcdef01234567")) is SOCKETS
    assert channel.kind_of(Path("/" + "x" * 96)) is FIFOS
    monkeypatch.delattr(socket, "AF_UNIX")
    assert channel.kind_of(Path("/run/x")) is FIFOS


@KINDS
def test_nobody_there_is_none(private: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "kind_of", lambda place: kind)
    place = private / "none"
    assert channel.connect(place) is None
    channel.listen(place).close()
    assert channel.connect(place) is None
    stale = channel.listen(place)
    if kind is SOCKETS:
        stale.socket.close()  # type: ignore[attr-defined]
    else:
        os.close(stale.door)  # type: ignore[attr-defined]
    assert channel.path_of(place).exists()
    assert channel.connect(place) is None


@KINDS
def test_who_lets_nobody_in_is_no_nobody(private: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process that is stopped, once all places to wait in are taken."""
    monkeypatch.setattr(channel, "kind_of", lambda place: kind)
    listener = channel.listen(private / "s")
    waiting: list[Any] = []

    def crowd() -> None:
        for _ in range(2 * channel.BACKLOG):
            waiting.append(channel.connect(private / "s", 0.2))

    with pytest.raises(Lost, match="takes no connection"):
        crowd()
    for one in (*waiting, listener):
        one.close()


@KINDS
@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_what_belongs_to_another_is_not_used(private: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "kind_of", lambda place: kind)
    listener = channel.listen(private / "o")
    os.chown(channel.path_of(private / "o"), 65534, 65534)
    with pytest.raises(CacheError, match="is not yours"):
        channel.connect(private / "o")
    listener.close()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
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


@KINDS
def test_a_listener_knows_whether_it_is_found(private: Path, kind: Kind) -> None:
    first = kind.listen(private / "l")
    assert first.in_place()
    (private / "l").unlink()
    assert not first.in_place()
    second = kind.listen(private / "l")
    first.close()
    first.close()
    assert second.in_place()  # what is another's is left alone
    second.close()
    assert list(private.iterdir()) == []


@KINDS
def test_descriptors_do_not_grow_with_clients(private: Path, kind: Kind) -> None:
    listener = kind.listen(private / "f")

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
        client = kind.to(private / "f", 5)
        client.send({"number": number})
        assert client.receive(5) == {"number": number}
        client.close()
    attending.join()
    assert descriptors() == before
    listener.close()
    assert list(private.iterdir()) == []
