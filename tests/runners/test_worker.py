"""The warm worker and its client in one process, with a pipeline of a few lines: faults that a real one rarely has."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from manifests import config_json, manifest
from subprocesses import until

from diffpipe.cache.store import Store
from diffpipe.cli import workers
from diffpipe.core.errors import CacheError, DeviceLost, DiffpipeError, Exit, UsageError
from diffpipe.core.flag import Flag
from diffpipe.core.manifest import Manifest
from diffpipe.core.request import Artifact, Outcome, Request
from diffpipe.core.source import Role
from diffpipe.memory import device_facts, machine
from diffpipe.memory.device_facts import Device
from diffpipe.runners.job import Callbacks, Job
from diffpipe.runners.outcomes import as_diffpipe_error
from diffpipe.runners.settings import RunSettings
from diffpipe.runners.wire import Answer
from diffpipe.runners.worker import channel, client, clients, lifecycle, memory_check, places, runner, server
from diffpipe.runners.worker.channel import Channel
from diffpipe.runners.worker.client import Client
from diffpipe.runners.worker.fingerprint import SETTINGS, fingerprint
from diffpipe.runners.worker.lifecycle import Link, Running, Unusable
from diffpipe.runners.worker.protocol import Answered, FilePiece, Make, Ready, Status, Welcome, from_client
from diffpipe.runners.worker.typed_paths import absolute
from diffpipe.storage import fetching

KEY = "0123456789abcdef" * 4
FLAGS = [Flag("prompt", "text").to_json(), Flag("image", "image").to_json()]
MANIFEST = manifest(config_json(placement={"device": "auto"}), flags=FLAGS)
SEVERAL = Job(several=True)


@dataclass
class FakeEntry:
    key: str = KEY
    folder: Path = Path()
    summary: Mapping[str, Any] = None  # type: ignore[assignment]

    def manifest(self) -> Manifest:
        return MANIFEST

    def locations(self) -> dict[Role, str]:
        return {}


class FakeSession:
    """A pipeline whose prompt says what becomes of the item."""

    def __init__(self, *_: object) -> None:
        pass

    def side_by_side(self) -> bool:
        return False

    def memory_now(self) -> str:
        return "peak 1 MB"

    def device_memory(self) -> int | None:
        return None

    def outcomes(self, requests: list[Request], settings: RunSettings) -> Iterator[Outcome]:
        for request in requests:
            error = None
            try:
                self.make(request, settings)
            except (CacheError, DeviceLost):
                raise
            except Exception as caught:
                error = as_diffpipe_error(caught)
            made = Artifact(request.paths[0], request.seed, request.index, "image", 0.1)
            yield Outcome(request, () if error else (made,), (f"made {request.paths[0]}",), error)

    def make(self, request: Request, settings: RunSettings) -> None:
        what = request.arguments["prompt"]
        if what == "memory":
            raise DiffpipeError("no memory", "less", Exit.OUT_OF_MEMORY)
        if what == "disk":
            raise CacheError(f"cannot write {request.paths[0]}: full", "free some space")
        if what == "device":
            raise DeviceLost("CUDA error: unspecified launch failure")
        if what == "bug":
            raise RuntimeError("oh")
        if what == "short of memory":
            settings.on_warning(f"{request.id}: out of memory, trying VAE slicing")
        if what == "loud":
            settings.on_warning("x" * 3_000_000)
        for step in range(10_000 if what == "slow" else 1):
            settings.on_step(request, step, 10_000)
            time.sleep(0.001)
        Path(request.paths[0]).write_bytes(Path(request.arguments.get("image") or os.devnull).read_bytes())


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A cache; workers have a folder, and keep files, in places of the test's own."""
    base = tmp_path_factory.mktemp("w")
    (base / "spool").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
    monkeypatch.setattr(places.tempfile, "tempdir", str(base / "spool"))
    monkeypatch.setattr(fetching, "_place", lambda _process: str(base))  # what clients keep is there until they end
    monkeypatch.chdir(base)
    return Store(base / "home")


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (errno.EMFILE, "raise how many"),
        (errno.ENOSPC, "free some"),
        (errno.EROFS, "check that"),
        (errno.ELOOP, "remove "),
    ],
)
def test_only_what_is_no_lock_may_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, hint: str
) -> None:
    """Of a lock that a worker holds nothing else is to be told: without it a second one would start."""

    def fails(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code), str(tmp_path / "w.lock"))

    monkeypatch.setattr("filelock.FileLock.acquire", fails)
    with pytest.raises(CacheError) as caught:
        places.lock(tmp_path / "w")
    assert str(caught.value.hint).startswith(hint)


def test_the_last_words_of_a_worker_that_said_much(tmp_path: Path) -> None:
    places.log_of(tmp_path / "w").write_bytes(b"warning\n" * 200_000 + b"it is broken\n")
    assert lifecycle._last_line(tmp_path / "w") == ": it is broken"


@pytest.fixture
def start(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., server.Worker]]:
    """Starts a worker in a thread of this process: start(keep). All have ended, and left nothing, at the test's end."""
    monkeypatch.setattr(server, "Session", FakeSession)
    monkeypatch.setattr(server, "locate", lambda *_: {})
    monkeypatch.setattr(server, "POLL", 0.02)
    monkeypatch.setattr(lifecycle, "HEARTBEAT", 0.05)
    threads: list[threading.Thread] = []
    workers: list[server.Worker] = []
    place = places.place_of(store, KEY)

    def started(keep: float = 60.0) -> server.Worker:
        there = threading.Event()

        def run() -> None:
            lock = places.lock(place)  # which is its thread's
            assert lock
            workers.append(server.Worker(place, lock, store, FakeEntry(), keep))  # type: ignore[arg-type]
            there.set()
            workers[-1].run()
            if lock.counts():
                places.sweep(place)
            lock.release()

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        assert there.wait(60)
        return workers[-1]

    yield started
    for one in workers:
        one.stopping = True
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert [path.name for path in place.parent.iterdir() if path.suffix != ".lock"] == []
    until(lambda: not list(Path("spool").iterdir()))


def found(store: Store) -> Link:
    told: list[str] = []
    link = lifecycle.find(store, KEY, told.append)
    assert isinstance(link, Link), told
    return link


def request(number: int, prompt: str = "fine", **arguments: Any) -> Request:
    return Request(number, number, {"prompt": prompt, **arguments}, (f"{number}.png",), id=str(number))


def heard() -> tuple[list[str], Callbacks]:
    told: list[str] = []
    return told, Callbacks(lambda request, done, steps: None, told.append)


def run(store: Store, requests: list[Request], job: Job = SEVERAL, link: Link | None = None) -> list[Outcome]:
    def no_other() -> Link:
        raise AssertionError("the worker was lost")

    return list(runner.run_on_worker(link or found(store), no_other, MANIFEST, requests, job, heard()[1]))


# What comes back


def test_outcomes_come_back_as_they_are(store: Store, start: Callable[..., server.Worker]) -> None:
    start()
    prompts = ["fine", "memory", "bug", "fine"]
    made = run(store, [request(number, prompt) for number, prompt in enumerate(prompts)])
    assert [outcome.request.id for outcome in made] == ["0", "1", "2", "3"]
    assert [outcome.error and outcome.error.exit_code for outcome in made] == [
        None, Exit.OUT_OF_MEMORY, Exit.FAILED, None,
    ]  # fmt: skip
    assert [outcome.artifacts for outcome in made] == [
        (Artifact("0.png", 0, 0, "image", 0.1),), (), (), (Artifact("3.png", 3, 3, "image", 0.1),),
    ]  # fmt: skip
    assert made[0].warnings == ("made 0.png",)
    assert made[2].error
    assert made[2].error.message == "RuntimeError: oh"
    assert "in make" in made[2].error.__notes__[0]  # where it came from, for --traceback


def test_a_full_disk_ends_the_run_and_not_the_worker(store: Store, start: Callable[..., server.Worker]) -> None:
    start()
    with pytest.raises(DiffpipeError) as caught:
        run(store, [request(0, "disk"), request(1)])
    assert (caught.value.message, caught.value.exit_code) == ("cannot write 0.png: full", Exit.CACHE)
    assert not Path("1.png").exists()
    assert run(store, [request(2)])[0].error is None


def test_every_variable_that_decides_on_devices_is_compared() -> None:
    assert [name for name in device_facts.VARIABLES if not name.startswith(SETTINGS)] == []


def test_a_worker_whose_device_failed_ends(store: Store, start: Callable[..., server.Worker]) -> None:
    worker = start()
    with pytest.raises(DiffpipeError, match="the device failed: CUDA error: unspecified launch failure"):
        run(store, [request(0, "device"), request(1)])
    until(lambda: worker.stopping)


def test_a_pipeline_that_cannot_be_loaded(
    store: Store, start: Callable[..., server.Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()

    def fails(*_: object) -> None:
        gate.wait(60)
        raise CacheError("the weights changed", "build it again")

    monkeypatch.setattr(server, "Session", fails)
    start()
    link = found(store)
    gate.set()
    with pytest.raises(DiffpipeError, match="the weights changed") as caught:
        run(store, [request(0)], link=link)
    assert (caught.value.hint, caught.value.exit_code) == ("build it again", Exit.CACHE)


def test_paths_come_back_as_they_were_typed(store: Store, start: Callable[..., server.Worker]) -> None:
    start()
    for folder in ("a", "b"):
        Path(folder).mkdir()
    typed = ["x.png", "a/x.png", "./b/../b/x.png", os.path.abspath("y.png")]
    requests = [replace(request(number), paths=(path,)) for number, path in enumerate(typed)]
    made = run(store, requests)
    assert [outcome.artifacts[0].path for outcome in made] == typed
    assert made[1].warnings == ("made a/x.png",)


def test_lines_for_the_user_are_heard(store: Store, start: Callable[..., server.Worker]) -> None:
    """As those of an item that ran out of memory and was made with less."""
    start()
    told, callbacks = heard()
    requests = [request(0), request(1, "short of memory")]
    made = list(runner.run_on_worker(found(store), lambda: found(store), MANIFEST, requests, SEVERAL, callbacks))
    assert [outcome.error for outcome in made] == [None, None]
    assert told == ["1: out of memory, trying VAE slicing"]


# Input files


def test_each_item_has_its_own_input_file(store: Store, start: Callable[..., server.Worker]) -> None:
    """Asked for ahead: the files of an item that waits are not thrown away with those of the one before."""
    start()
    for name in "abc":
        Path(f"{name}.bin").write_bytes(name.encode() * 3_000_000)
    Path("empty").touch()
    names = ["a.bin", "b.bin", "a.bin", "c.bin", "c.bin", "empty", "a.bin"]
    made = run(store, [request(number, image=name) for number, name in enumerate(names)])
    assert [outcome.error for outcome in made] == [None] * len(names)
    for number, name in enumerate(names):
        assert Path(f"{number}.png").read_bytes() == Path(name).read_bytes()


def test_a_file_that_is_gone_costs_its_item_alone(store: Store, start: Callable[..., server.Worker]) -> None:
    start()
    Path("there").touch()
    made = run(store, [request(0, image="there"), request(1, image="gone"), request(2, image="there")])
    assert {outcome.request.id: outcome.error and outcome.error.message for outcome in made} == {
        "0": None, "1": "cannot read gone: No such file or directory", "2": None,
    }  # fmt: skip


def test_a_pipe_is_sent(store: Store, start: Callable[..., server.Worker]) -> None:
    start()
    source, target = os.pipe()
    os.write(target, b"through a pipe")
    os.close(target)
    made = run(store, [request(0, image=f"/dev/fd/{source}"), request(1, image=f"/dev/fd/{source}")])
    os.close(source)
    assert [outcome.error for outcome in made] == [None, None]
    assert Path("0.png").read_bytes() == Path("1.png").read_bytes() == b"through a pipe"


def test_a_named_pipe_is_opened_once(store: Store, start: Callable[..., server.Worker]) -> None:
    start()
    os.mkfifo("fifo")
    writing = threading.Thread(target=lambda: Path("fifo").write_bytes(b"x" * 1_000_000))
    writing.start()
    made = run(store, [request(0, image="fifo")])
    writing.join(60)
    assert (made[0].error, Path("0.png").stat().st_size) == (None, 1_000_000)


def test_a_full_disk_of_input_files(
    store: Store, start: Callable[..., server.Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told although the client is still sending, and to that client alone."""
    start()
    Path("large").write_bytes(bytes(20_000_000))
    add = clients.Spool.add

    def full(spool: clients.Spool, piece: FilePiece) -> None:
        add(spool, replace(piece, data=b""))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(clients.Spool, "add", full)
    with pytest.raises(DiffpipeError) as caught:
        run(store, [request(0, image="large")])
    assert (caught.value.message, caught.value.exit_code) == (
        "the worker cannot keep an input file: No space left on device", Exit.CACHE,
    )  # fmt: skip
    assert run(store, [request(1)])[0].error is None


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/../../x"])
def test_no_name_leads_out_of_the_spool(store: Store, start: Callable[..., server.Worker], name: str) -> None:
    start()
    link = found(store)
    link.channel.send(FilePiece(0, name, b"").to_json())
    shown_out(link)


def test_a_file_that_was_not_sent_is_not_read(store: Store, start: Callable[..., server.Worker]) -> None:
    start()
    link = found(store)
    Client(link, {}, heard()[1]).begin(SEVERAL, None, steps=False)
    link.channel.send(Make((absolute(request(0, image="/etc/passwd")),), files={}).to_json())
    shown_out(link)
    assert not Path("0.png").exists()


def shown_out(link: Link) -> None:
    """The worker closes the connection, whatever it says before."""
    with pytest.raises(channel.Lost):
        all(iter(lambda: link.channel.receive(60), None))
    link.channel.close()


# Clients that go wrong


@pytest.mark.parametrize(
    "message",
    [
        {"make": [], "files": {}, "forget": []},
        {"make": [{}], "files": {}, "forget": []},
        {"make": [{"index": 0}], "files": 5, "forget": []},
        {"job": None},
        {"job": {"about": None, "previews": None, "new": 1}, "umask": 0, "steps": 0, "keep": None},
        {"job": {"about": None, "previews": None}, "umask": 10**30, "steps": 0, "keep": None},
        {"file": -1, "name": "x", "piece": ""},
        {"file": 0, "name": "x" * 1000, "piece": ""},
        {"unknown": 1},
        {},
    ],
)
def test_nonsense_costs_nobody_else(store: Store, start: Callable[..., server.Worker], message: Any) -> None:
    started = start()
    link = found(store)
    link.channel.send(message)
    with suppress(channel.Lost):
        link.channel.send(
            {"make": [{"index": "x", "seed": 0, "arguments": {}, "paths": []}], "files": {}, "forget": []}
        )
    assert run(store, [request(0)])[0].error is None
    link.channel.close()
    until(lambda: not started.clients)


def test_who_takes_nothing_holds_up_the_others_for_a_while_only(
    store: Store, start: Callable[..., server.Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that was suspended, as by Ctrl-Z."""
    start()
    suspended = Client(found(store), {}, heard()[1])
    suspended.begin(SEVERAL, None, steps=False)
    link = found(store)
    monkeypatch.setattr(channel, "MESSAGE_TIMEOUT", 1.0)
    suspended.ask([request(0, "loud")])
    assert run(store, [request(1)], link=link)[0].error is None
    suspended.link.channel.close()


def test_who_leaves_has_its_item_stopped(store: Store, start: Callable[..., server.Worker]) -> None:
    started = start()
    leaving = Client(found(store), {}, heard()[1])
    leaving.begin(SEVERAL, None, steps=False)
    leaving.ask([request(0, "slow")])
    leaving.ask([request(1)])
    until(lambda: started.current)
    leaving.link.channel.close()
    assert run(store, [request(2)])[0].error is None
    assert sorted(path.name for path in Path().glob("*.png")) == ["2.png"]
    assert started.requests == 1


def test_threads_do_not_grow_with_clients(store: Store, start: Callable[..., server.Worker]) -> None:
    others = threading.active_count()  # of earlier tests in this process
    start()
    run(store, [request(0)])
    until(lambda: threading.active_count() <= others + 3)
    before = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for number in range(30):
        run(store, [request(number)])
    until(lambda: (threading.active_count(), len(os.listdir("/proc/self/fd"))) <= before)


# Workers that end


def test_nobody_who_was_let_in_is_sent_away(store: Store, start: Callable[..., server.Worker]) -> None:
    """Clients that come as a worker's time is over: served whole, or told at the door."""
    place = places.place_of(store, KEY)
    served = 0
    for number in range(30):
        start(keep=0.0)
        link = None
        while link is None and channel.path_of(place).exists():
            try:
                link = lifecycle._welcomed(place, 5)
            except (Unusable, channel.Lost):
                break
        if link:
            made = run(store, [request(number)], link=link)
            assert made[0].error is None
            served += 1
        assert places.gone(place, 10)
    assert served > 0


def test_the_idle_time_begins_after_the_last_item(
    store: Store, start: Callable[..., server.Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, seen = [0.0], list[float]()

    def monotonic() -> float:
        seen.append(now[0])
        return now[0]

    monkeypatch.setattr(server, "time", SimpleNamespace(monotonic=monotonic, sleep=time.sleep))
    started = start(keep=100.0)
    now[0] = 99.0
    run(store, [request(0)])
    until(lambda: not started.clients)
    now[0] = 198.0
    assert lifecycle.ask(started.place, "status")  # which does not keep it
    now[0] = 198.9
    until(lambda: seen.count(198.9) > 1)
    assert not started.stopping
    now[0] = 199.0
    until(lambda: started.stopping)


def test_a_full_house(store: Store, start: Callable[..., server.Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_CLIENTS", 1)
    monkeypatch.setattr(lifecycle, "END_TIMEOUT", 0.1)
    start()
    link = found(store)
    with pytest.raises(Unusable, match="has 1 clients already"):
        lifecycle.find(store, KEY, print)
    link.channel.close()


def test_who_only_connects_takes_no_threads_without_end(
    store: Store, start: Callable[..., server.Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    start()
    assert run(store, [request(0)])[0].error is None  # all its threads have begun
    place = places.place_of(store, KEY)
    monkeypatch.setattr(server, "MOST_CONNECTIONS", threading.active_count() + 5)
    silent = [channel.connect(place) for _ in range(8)]
    with pytest.raises(Unusable, match="connections already"):
        lifecycle.find(store, KEY, print)
    for one in silent:
        assert one
        one.close()


def test_an_upgraded_client_replaces_an_idle_worker(
    store: Store, start: Callable[..., server.Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    start(keep=77.0)
    link = found(store)
    newer = replace(fingerprint(), versions={"diffpipe": "99.0"})
    monkeypatch.setattr(lifecycle, "fingerprint", lambda: newer)
    monkeypatch.setattr(lifecycle, "END_TIMEOUT", 0.1)
    with pytest.raises(Unusable, match="of other versions and still at work"):
        lifecycle.find(store, KEY, print)
    with pytest.raises(Unusable, match="is about to end"):  # it lets nobody in any more
        lifecycle.find(store, KEY, print)
    assert run(store, [request(0)], link=link)[0].error is None
    assert places.gone(places.place_of(store, KEY), 5)


def test_an_idle_one_of_other_versions_is_replaced(
    store: Store, start: Callable[..., server.Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    start(keep=77.0)
    newer = replace(fingerprint(), versions={"diffpipe": "99.0"})
    monkeypatch.setattr(lifecycle, "fingerprint", lambda: newer)
    told: list[str] = []
    assert lifecycle.find(store, KEY, told.append) == 77.0
    assert told == ["the worker was of other versions: it was stopped"]
    assert lifecycle.find(store, KEY, told.append) is None


def test_other_settings(store: Store, start: Callable[..., server.Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    start()
    other = replace(fingerprint(), settings="other")
    monkeypatch.setattr(lifecycle, "fingerprint", lambda: other)
    with pytest.raises(Unusable, match="with other settings"):
        lifecycle.find(store, KEY, print)


def test_what_a_worker_is_compared_by_is_read_before_it_loads(
    store: Store, start: Callable[..., server.Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries set variables as they are imported, which its clients have not imported."""
    happened: list[str] = []
    monkeypatch.setattr(server, "fingerprint", lambda: happened.append("read") or fingerprint())
    monkeypatch.setattr(server, "Session", lambda *_: happened.append("loaded") or FakeSession())
    start()
    assert run(store, [request(0)])[0].error is None
    assert happened == ["read", "loaded"]


@pytest.mark.parametrize(
    ("variables", "cores", "groups"),
    [({"OMP_NUM_THREADS": "7"}, {0}, [1]), ({}, {0, 1, 2}, [1]), ({}, {0}, [1, 2])],
    ids=["variables", "cores", "groups"],
)
def test_what_settings_are(
    variables: dict[str, str], cores: set[int], groups: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def settings(variables: dict[str, str], cores: set[int], groups: list[int]) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(os, "sched_getaffinity", lambda pid: cores)
            patch.setattr(os, "getgroups", lambda: groups)
            for name, value in variables.items():
                patch.setenv(name, value)
            return fingerprint.__wrapped__().settings

    usual = {"OMP_NUM_THREADS": "1"}
    assert settings(usual, {0}, [1]) == settings({**usual, "TORCHINDUCTOR_CACHE_DIR": "/tmp/x"}, {0}, [1])
    assert settings({**usual, **variables}, cores, groups) != settings(usual, {0}, [1])


def test_stop_ends_the_item_and_tells_its_client(store: Store, start: Callable[..., server.Worker]) -> None:
    started = start()
    place = places.place_of(store, KEY)
    link = found(store)

    def stop() -> None:
        until(lambda: started.current)
        lifecycle.stop(place)

    stopping = threading.Thread(target=stop)
    stopping.start()
    with pytest.raises(DiffpipeError, match="the worker was stopped"):
        run(store, [request(0, "slow"), request(1)], link=link)
    stopping.join(60)
    assert places.gone(place, 0)
    assert list(Path().glob("*.png")) == []


@pytest.mark.parametrize("what", ["socket", "folder"])
def test_what_clients_look_for_is_removed(store: Store, start: Callable[..., server.Worker], what: str) -> None:
    """Without its socket it listens anew; without its lock another one may be there, and it ends."""
    started = start()
    path = channel.path_of(places.place_of(store, KEY))
    if what == "socket":
        path.unlink()
        until(path.exists)
        assert run(store, [request(0)])[0].error is None
        return
    for one in path.parent.iterdir():
        one.unlink()
    until(lambda: started.stopping)


# Stand-ins for workers that die or fall silent


def stand_in(store: Store, serve_one: Callable[[Channel], object], times: int) -> threading.Thread:
    """Workers that welcome a client, then do as `serve_one` does, each by itself."""
    listener = channel.listen(places.place_of(store, KEY))

    def attend() -> None:
        for _ in range(times):
            came = listener.accept(60)
            assert came
            came.receive(60)
            came.send(Welcome(KEY, 60.0, fingerprint()).to_json())
            with suppress(channel.Lost):
                serve_one(came)
            came.close()
        listener.close()

    thread = threading.Thread(target=attend)
    thread.start()
    return thread


def asked_of(came: Channel) -> tuple[Request, ...] | None:
    """The requests of the group that a client asks for; None once it has left."""
    with suppress(channel.Lost):
        message = came.receive(60)
        assert message
        make = from_client(message)
        assert isinstance(make, Make)
        return make.requests
    return None


def answer(came: Channel, request: Request) -> None:
    made = Artifact(request.paths[0], 1, 0, "image", 0.1)
    came.send(Answered(Answer((made,)), "made").to_json())


def test_an_item_that_workers_die_of_is_given_up(store: Store) -> None:
    asked: list[str] = []

    def dies(came: Channel) -> None:
        came.receive(60)
        came.send(Ready(False).to_json())
        groups = [asked_of(came), asked_of(came)]
        (first,), (second,) = (group or () for group in groups)
        asked.append(f"{first.id} {first.overwrite}")
        if first.id != "bad":
            answer(came, first)
            answer(came, second)
            came.receive(60)

    requests = [replace(request(at), id=name) for at, name in enumerate(["bad", "good", "fine"])]
    thread = stand_in(store, dies, 4)
    told, callbacks = heard()
    made = list(runner.run_on_worker(found(store), lambda: found(store), MANIFEST, requests, SEVERAL, callbacks))
    thread.join()
    assert asked == ["bad False", "bad True", "bad True", "good False"]
    assert [(one.request.id, one.error and one.error.message) for one in made] == [
        ("bad", "the worker ended 3 times while it made this"), ("good", None), ("fine", None),
    ]  # fmt: skip
    assert set(told) == {"the worker ended; another one goes on"}


def test_of_items_that_went_together_only_those_fail_that_workers_die_of(store: Store) -> None:
    """Side by side, no outcome comes before all are made: after a death each goes by itself."""
    asked: list[list[str]] = []

    def dies(came: Channel) -> None:
        came.receive(60)
        came.send(Ready(True).to_json())
        while group := asked_of(came):
            asked.append([one.id for one in group])
            if "bad" in asked[-1]:
                return
            answer(came, group[0])

    requests = [replace(request(at), id=name) for at, name in enumerate(["one", "bad", "two"])]
    thread = stand_in(store, dies, 5)
    made = list(runner.run_on_worker(found(store), lambda: found(store), MANIFEST, requests, SEVERAL, heard()[1]))
    thread.join()
    assert asked[0] == ["one", "bad", "two"]
    assert {len(one) for one in asked[1:]} == {1}
    assert [(one.request.id, one.error is None) for one in made] == [("one", True), ("bad", False), ("two", True)]


def test_workers_that_die_while_they_load_are_given_up(store: Store) -> None:
    thread = stand_in(store, lambda came: came.receive(60), runner.TRIES)
    with pytest.raises(DiffpipeError, match="the worker ended while it loaded the pipeline"):
        list(runner.run_on_worker(found(store), lambda: found(store), MANIFEST, [request(0)], SEVERAL, heard()[1]))
    thread.join()


def test_a_worker_that_falls_silent_is_given_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "HEARTBEAT_TIMEOUT", 0.3)
    thread = stand_in(store, lambda came: (came.receive(60), came.receive(60)), 1)
    link = found(store)
    with pytest.raises(DiffpipeError, match="the worker ended while it loaded"):
        list(runner.run_on_worker(link, lambda: link, MANIFEST, [request(0)], SEVERAL, heard()[1], tries=1))
    thread.join()


def test_a_worker_that_does_not_answer_is_ended(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its socket takes connections, its lock is held, and nothing comes."""
    monkeypatch.setattr(lifecycle, "WELCOME_TIMEOUT", 0.3)
    monkeypatch.setattr(lifecycle, "ANSWER_TIMEOUT", 0.3)
    place = places.place_of(store, KEY)
    text = (
        "import os, sys, time; from pathlib import Path; from diffpipe.runners.worker import channel, places\n"
        "place = Path(sys.argv[1]); lock = places.lock(place); listener = channel.listen(place)\n"
        "places.pid_file(place).write_text(str(os.getpid())); print('there', flush=True); time.sleep(60)"
    )
    words = [
        sys.executable,
        "-c",
        text,
        str(place),
        "diffpipe.runners.worker.server",
    ]  # which it looks like to lifecycle.kill
    with subprocess.Popen(words, stdout=subprocess.PIPE) as silent:
        assert silent.stdout
        silent.stdout.readline()
        told: list[str] = []
        assert [one.status for one in lifecycle.running(store)] == [None]
        assert lifecycle.find(store, KEY, told.append) is None
        assert silent.wait(60) < 0
    assert told == ["the worker did not answer: it was ended"]
    assert {path.suffix for path in place.parent.iterdir()} == {".lock"}


@pytest.mark.parametrize(("command", "times"), [("kill -9 $$", 3), ("exit 1", 1), ("exit 0", 3)])
def test_one_that_is_killed_as_it_starts_is_started_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, command: str, times: int
) -> None:
    begun: list[list[str]] = []

    def begin(place: Path, words: list[str]) -> subprocess.Popen[bytes]:
        begun.append(words)
        places.pid_file(place).write_text("1")
        return subprocess.Popen(["sh", "-c", command])

    monkeypatch.setattr(lifecycle, "_started", begin)
    with pytest.raises(DiffpipeError, match="no worker came up"):
        lifecycle.start(store, KEY, 5.0)
    assert begun == [[str(store.root), KEY, "5.0"]] * times


def test_a_number_that_is_another_processs_by_now_is_not_killed(store: Store) -> None:
    place = places.place_of(store, KEY)
    places.pid_file(place).write_text(str(os.getpid()))  # whose lock nobody holds
    lifecycle.kill(place)
    assert not places.pid_file(place).exists()


def test_no_worker_looks_at_the_clock() -> None:
    """What is set back cannot matter: all that waits does so by the monotonic clock."""
    for module in (channel, client, clients, lifecycle, memory_check, places, runner, server):
        assert module.__file__
        assert not re.search(r"time\.time\(|datetime", Path(module.__file__).read_text())


# Memory


def test_the_idlest_ends_first_where_memory_is_short(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = {"busy": 0.0, "used": 600.0, "short": 5.0, "long": 50.0, "longest": 500.0}
    others = [
        Running(Path(name), Status(name, 1, 1, None, True, name == "busy", seconds, 60.0, 1, int(name == "used")))
        for name, seconds in idle.items()
    ]
    free = [1000]

    def retire(place: Path) -> bool:
        free[0] += 400
        return True

    monkeypatch.setattr(lifecycle, "running", lambda store: [*others, Running(Path("silent"), None)])
    monkeypatch.setattr(lifecycle, "retire", retire)
    monkeypatch.setattr(machine, "host_free", lambda: free[0])
    monkeypatch.setattr(machine, "accelerators", lambda: (Device("cuda:0", "GPU", 1000),))
    monkeypatch.setattr(machine, "free", lambda device: 900)

    def made(host: int, device: int = 0) -> list[str]:
        free[0] = 1000
        monkeypatch.setattr(memory_check, "needed", lambda *_: (host, device))
        return [one.key for one in memory_check.free_memory(store, FakeEntry(), MANIFEST)]  # type: ignore[arg-type]

    assert made(1000) == []
    assert made(1001) == ["longest"]
    assert made(1700) == ["longest", "long"]
    assert made(10_000) == ["longest", "long", "short"]
    assert made(0, 901) == ["longest", "long", "short"]
    assert made(0, 900) == []


# Durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("90", 90), ("30s", 30), ("5m", 300), ("1h", 3600), ("1h30m", 5400), ("1.5H", 5400), (" 2d ", 172800)],
)
def test_durations(text: str, seconds: float) -> None:
    assert workers.seconds(text, "--keep-warm") == seconds


@pytest.mark.parametrize(
    "text", ["", "m", "-5", "5 m", "5x", "1e3", "nan", "inf", "٥m", "1..5s", "1h30", "31d", "9" * 400]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError):
        workers.seconds(text, "--keep-warm")


@given(st.integers(0, workers.LONGEST_KEEP))
def test_durations_are_told_as_they_are_typed(seconds: int) -> None:
    assert workers.seconds(workers.duration(seconds), "") == seconds


@given(st.text())
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    with suppress(UsageError):
        assert 0 <= workers.seconds(text, "") <= workers.LONGEST_KEEP
