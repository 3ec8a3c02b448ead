"""Workers as their clients see them: whether one may be used, how one is started, asked and stopped."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...cache.store import Store
from ...core.errors import CacheError, DiffpipeError
from ...core.parsing import Misfit
from ...storage.opening import open_regular, read_regular
from . import channel, protocol
from .channel import Channel, Lost
from .environment import of_worker
from .fingerprint import fingerprint
from .places import clean, gone, log_of, pid_file, place_of, places
from .protocol import Going, Hello, Question, Refused, Status, Welcome

if TYPE_CHECKING:
    import subprocess

log = logging.getLogger("diffpipe.run")

HEARTBEAT = 5.0  # seconds between two signs of life
HEARTBEAT_TIMEOUT = 60.0  # seconds without a sign of life after which a worker is given up
WELCOME_TIMEOUT = 20.0  # seconds a worker's welcome may take, while it imports and loads
START_TIMEOUT = 30.0  # seconds a worker has from its start to its welcome
START_TRIES = 3  # times it is started where it is killed meanwhile
STOP_TIMEOUT = 20.0  # seconds a worker has to stop in
END_TIMEOUT = 2.0  # seconds a worker takes to end that lets nobody in any more and has no clients
ANSWER_TIMEOUT = 5.0  # seconds an idle worker's answer may take
LONGEST_LOG = 1 << 16  # bytes at the end of what a worker that crashed printed
LONGEST_PID = 20  # digits of a process
SERVER = "diffpipe.runners.worker.server"


class Unusable(DiffpipeError):
    """A worker is there that this process must not use, or that lets nobody in."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, "try again later, or use --no-worker")


@dataclass(frozen=True)
class Link:
    """A worker that welcomed this process."""

    channel: Channel
    welcome: Welcome
    place: Path


@dataclass(frozen=True)
class Running:
    """A worker that runs. `status` is None of one that does not answer."""

    place: Path
    status: Status | None


# Finding one


def ask(place: Path, what: Question) -> Status | Going | None:
    """A worker's answer, of any version; None where there is no worker.

    Raises Lost where one is there but does not answer.
    """
    with suppress(Lost, Misfit):
        connected = channel.connect(place, ANSWER_TIMEOUT)
        if connected is None:
            clean(place)
            return None
        try:
            connected.send(Hello(what).to_json())
            if answer := connected.receive(ANSWER_TIMEOUT):
                return protocol.answer_of(answer)
        finally:
            connected.close()
    if clean(place):
        return None
    raise Lost("the worker does not answer")


def find(store: Store, key: str, tell: Callable[[str], None]) -> Link | float | None:
    """The worker of a pipeline that may be used; else the seconds that one of other versions, now stopped, was to be
    kept; else None.

    Raises CacheError for a folder or socket that cannot be trusted, Unusable where the worker must not be used.
    """
    place = place_of(store, key)
    try:
        link = _welcomed(place, WELCOME_TIMEOUT)
    except Lost:
        if not clean(place) and not gone(place, END_TIMEOUT):
            tell("the worker did not answer: it was ended")
            kill(place)
        return None
    except Unusable:
        if not gone(place, END_TIMEOUT):
            raise
        link = None
    if link is None:
        clean(place)
        return None
    if not _same_code(link.welcome):
        link.channel.close()
        return _retired(link, tell)
    return _checked(link, key)


def _same_code(welcome: Welcome) -> bool:
    return welcome.version == protocol.VERSION and welcome.fingerprint.same_code(fingerprint())


def _checked(link: Link, key: str) -> Link:
    """A worker that is loaded with this key, by a process like this one. Raises Unusable for another."""
    welcome = link.welcome
    if welcome.key == key and _same_code(welcome) and welcome.fingerprint == fingerprint():
        return link
    link.channel.close()
    if welcome.key != key:
        raise Unusable("the worker is of another pipeline")
    raise Unusable("the worker was started with other settings (threads, devices)")


def _welcomed(place: Path, timeout: float) -> Link | None:
    """A connection to the worker at a place, None where there is none.

    Raises Lost where it says nothing of sense, Unusable where it lets nobody in.
    """
    connected = channel.connect(place)
    if connected is None:
        return None
    try:
        connected.send(Hello().to_json())
        message = connected.receive(timeout)
        if message is None:
            raise Lost("no welcome")
        greeting = protocol.greeting_of(message)
        if isinstance(greeting, Refused):
            raise Unusable(greeting.why)
    except Misfit as error:
        connected.close()
        raise Lost(f"no welcome: {error}") from error
    except (Lost, Unusable):
        connected.close()
        raise
    return Link(connected, greeting, place)


def _retired(link: Link, tell: Callable[[str], None]) -> float:
    """Let a worker of other versions end; how long it was to be kept. Raises Unusable where it still has clients."""
    if not retire(link.place):
        raise Unusable("the worker is of other versions and still at work")
    tell("the worker was of other versions: it was stopped")
    return link.welcome.keep


def retire(place: Path) -> bool:
    """Let a worker end that has no clients; whether it has. One that has some ends after them."""
    answer: Status | Going | None = None
    with suppress(Lost):
        answer = ask(place, "retire")
    used = isinstance(answer, Going) and answer.clients > 0
    # A client that has just left may still be counted.
    return gone(place, END_TIMEOUT if used else STOP_TIMEOUT)


def running(store: Store) -> list[Running]:
    """Every worker of this cache."""
    found = []
    for place in list(places(store)):
        try:
            answer = ask(place, "status")
        except Lost:
            found.append(Running(place, None))
            continue
        if isinstance(answer, Status):
            found.append(Running(place, answer))
    return found


# Starting and stopping


def start(store: Store, key: str, keep: float) -> Link:
    """A worker that was started now, or by another process a moment ago. One that is killed meanwhile is started again.

    Raises DiffpipeError where none comes up, Unusable where another one is there.
    """
    place = place_of(store, key)
    end = time.monotonic() + START_TIMEOUT
    for _ in range(START_TRIES):
        try:
            process = _started(place, [str(store.root), key, str(keep)])
        except OSError as error:
            raise CacheError(f"no worker can be started: {error.strerror}", "run it with --no-worker") from error
        if link := _up(place, process, end):
            return _checked(link, key)
        if process.poll() is None or process.returncode > 0:  # it takes too long, or is broken; else it was killed
            break
    raise DiffpipeError(f"no worker came up{_last_line(place)}", "run it with --no-worker")


def _started(place: Path, words: list[str]) -> subprocess.Popen[bytes]:
    """A worker's process, which has nothing of this one's but what it needs of its environment."""
    import subprocess

    bytecode = ["-B"] if sys.dont_write_bytecode else []
    words = [sys.executable, *bytecode, "-P", "-m", SERVER, str(place), *words]
    with open(os.open(log_of(place), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as printed:
        return subprocess.Popen(
            words, env=of_worker(os.environ), cwd=place.parent, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=printed, stderr=printed,
        )  # fmt: skip


def _up(place: Path, process: subprocess.Popen[bytes], end: float) -> Link | None:
    """The worker's welcome, None where its process has ended, or says nothing until `end` (of the monotonic clock)."""
    while time.monotonic() < end:
        try:
            if link := _welcomed(place, max(1.0, end - time.monotonic())):
                return link
        except Lost as error:
            log.info("no welcome: %s", error)
        except Unusable:  # another one, which is about to end
            if process.poll() is not None:
                raise
        if process.poll() is not None and clean(place):
            return None
        time.sleep(0.01)
    return None


def _last_line(place: Path) -> str:
    """What a worker that crashed said last."""
    with suppress(OSError):
        with open_regular(log_of(place)) as log_file:
            log_file.seek(max(0, os.fstat(log_file.fileno()).st_size - LONGEST_LOG))
            lines = log_file.read(LONGEST_LOG).decode(errors="replace").strip().splitlines()
        return f": {lines[-1].strip()}" if lines else ""
    return ""


def stop(place: Path) -> None:
    """End a worker; its item stops at the next step. One that does not end in time is killed."""
    with suppress(Lost):
        if ask(place, "stop") is None:
            return
        if gone(place, STOP_TIMEOUT):
            clean(place)
            return
    kill(place)


def kill(place: Path) -> None:
    """End a worker that does not answer."""
    with suppress(OSError, ValueError):
        pid = int(read_regular(pid_file(place), LONGEST_PID))
        if not gone(place, 0) and _is_worker(pid):
            os.kill(pid, signal.SIGKILL)
    gone(place, STOP_TIMEOUT)
    clean(place)


def _is_worker(pid: int) -> bool:
    """Whether a process may be a worker: the number may come from another namespace, or have been given anew."""
    try:
        return SERVER.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return not os.path.isdir("/proc/self")
