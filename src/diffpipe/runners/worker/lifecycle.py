"""Warm workers as their clients see them: where they are, whether one may be used, how one is started and stopped."""

from __future__ import annotations

import functools
import glob
import hashlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import __version__
from ...building.build import versions
from ...cache.store import Store
from ...core.errors import CacheError, DiffpipeError
from ...core.flag import MEDIA_KINDS, Flag
from . import channel
from .channel import Channel, Lost, Message
from .folder import folder, supported

if TYPE_CHECKING:
    import subprocess

log = logging.getLogger("diffpipe.run")

PROTOCOL = 1
LIFE = 5.0  # seconds between two signs of life
SILENCE = 60.0  # seconds without a sign of life after which a worker is given up
WELCOME = 20.0  # seconds a worker's welcome may take, while it imports and loads
STARTING = 30.0  # seconds a worker has from its start to its welcome
STARTS = 3  # times it is started where it is killed meanwhile
GOING = 20.0  # seconds a worker has to stop in
PARTING = 2.0  # seconds a worker takes to end that lets nobody in any more and has no clients
ANSWER = 5.0  # seconds an idle worker's answer may take
NAMED = 24  # hex digits of the key in a place's name
# What of a process's environment changes the bytes that torch computes, or the device it computes on.
SETTINGS = (
    "ATEN_", "CUBLAS_", "CUDA_", "DIFFUSERS_", "DNNL_", "FLASH_ATTENTION_", "HIP", "HSA_", "KMP_", "LD_PRELOAD",
    "MIOPEN_", "MKL_", "NVIDIA_", "OMP_", "ONEDNN_", "OPENBLAS_", "PYTORCH_", "ROCBLAS_", "ROCR_", "TORCH", "TRITON_",
    "XFORMERS_", "ZE_",
)  # fmt: skip
# What of it names folders, maybe from the current one on.
SEARCHED = {"PYTHONPATH", "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "TMPDIR"}
TOKENS = ("HF_TOKEN", "HUGGINGFACE_HUB_ACCESS_TOKEN", "HUGGING_FACE_HUB_TOKEN")


@functools.cache
def greeting() -> dict[str, Any]:
    """What must be equal in a client and the worker it uses: versions, and settings as a digest."""
    own = {name: value for name, value in os.environ.items() if name.startswith(SETTINGS)}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = repr((sorted(own.items()), cores, _rights())).encode(errors="surrogateescape")
    found = {**versions(), "diffpipe": __version__, "python": sys.version.split()[0]}
    return {"versions": found, "installation": _short(sys.prefix), "settings": hashlib.sha256(text).hexdigest()[:16]}


def _rights() -> list[Any]:
    """What decides where this process's files come to lie and whose they are: groups, and namespaces on Linux."""
    groups = [os.getgid(), *sorted(os.getgroups())] if hasattr(os, "getgid") else []
    spaces = []
    for kind in ("mnt", "pid"):
        with suppress(OSError):
            spaces.append(os.readlink(f"/proc/self/ns/{kind}"))
    return [groups, spaces]


def _short(path: str) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


class Unusable(DiffpipeError):
    """A worker is there that this process must not use, or that lets nobody in."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, "try again later, or use --no-worker")


@dataclass(frozen=True)
class Link:
    """A worker that welcomed this process. `said` is its welcome."""

    channel: Channel
    said: Message
    place: Path


# Places


def place_of(store: Store, key: str) -> Path:
    """Where the worker of a pipeline of this cache listens: a path without ending. Raises CacheError (see folder)."""
    return folder() / f"{_short(str(store.root.resolve()))[:8]}-{key[:NAMED]}"


def places(store: Store) -> Iterator[Path]:
    """The places of this cache at which a worker listens, or did."""
    stem = f"{_short(str(store.root.resolve()))[:8]}-"
    for path in sorted(folder().iterdir()) if supported() else ():
        if path.name.startswith(stem) and path.suffix == channel.ENDING:
            yield path.with_suffix("")


@dataclass(frozen=True)
class Lock:
    """A lock that is held. `inode`: its file's."""

    held: Any
    inode: int

    def release(self) -> None:
        self.held.release()

    def counts(self) -> bool:
        """Whether it keeps others out: its file still is where they look for it."""
        with suppress(OSError):
            return os.stat(self.held.lock_file).st_ino == self.inode
        return False


def lock(place: Path, timeout: float = 5.0) -> Lock | None:
    """The lock that a worker holds while it lives; None where another holds it longer than so many seconds."""
    from filelock import FileLock, Timeout

    held = FileLock(place.with_suffix(".lock"), mode=0o600)
    try:
        held.acquire(timeout=timeout)
    except Timeout:
        return None
    return Lock(held, os.stat(held.lock_file).st_ino)


def clean(place: Path) -> bool:
    """Remove what a worker that died left behind; whether there is no worker."""
    if not os.path.lexists(channel.path_of(place)) and not pid_file(place).exists():
        return True
    held = lock(place, 0)
    if held is None:
        return False
    sweep(place)
    held.release()
    return True


def sweep(place: Path) -> None:
    """Remove what a worker that has ended, or ends now, has of files."""
    channel.path_of(place).unlink(missing_ok=True)
    pid_file(place).unlink(missing_ok=True)
    with suppress(OSError):
        if not log_of(place).stat().st_size:
            log_of(place).unlink()
    clear_spools(place)


def pid_file(place: Path) -> Path:
    """Where a worker that lives (holds its lock) has its process id."""
    return place.with_suffix(".pid")


def log_of(place: Path) -> Path:
    """What the worker's libraries print; it goes with the worker, unless that crashes."""
    return place.with_suffix(".log")


def spool_prefix(place: Path) -> str:
    """How the temporary folders begin that hold its clients' input files."""
    return f"diffpipe-worker-{_short(str(place))}-"


def clear_spools(place: Path) -> None:
    for left in glob.glob(os.path.join(tempfile.gettempdir(), glob.escape(spool_prefix(place)) + "*")):
        shutil.rmtree(left, ignore_errors=True)


# Finding one


def ask(place: Path, what: str) -> Message | None:
    """A worker's answer to "status", "stop" or "retire", in any version; None where there is none.

    Raises Lost where one is there but does not answer.
    """
    with suppress(Lost):
        connected = channel.connect(place, ANSWER)
        if connected is None:
            clean(place)
            return None
        try:
            connected.send({"hello": PROTOCOL, "ask": what})
            if answer := connected.receive(ANSWER):
                return answer
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
        link = _welcomed(place, WELCOME)
    except Lost:
        if not clean(place) and not gone(place, PARTING):
            tell("the worker did not answer: it was ended")
            kill(place)
        return None
    except Unusable:
        if not gone(place, PARTING):
            raise
        link = None
    if link is None:
        clean(place)
        return None
    if not _same(link, "versions", "installation"):
        link.channel.close()
        return _retired(link, tell)
    return _checked(link, key)


def _same(link: Link, *names: str) -> bool:
    return link.said["welcome"] == PROTOCOL and all(link.said.get(name) == greeting()[name] for name in names)


def _checked(link: Link, key: str) -> Link:
    """A worker that is loaded with this key, by a process like this one. Raises Unusable for another."""
    if link.said.get("key") == key and _same(link, *greeting()):
        return link
    link.channel.close()
    if link.said.get("key") != key:
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
        connected.send({"hello": PROTOCOL})
        said = connected.receive(timeout) or {}
        if "welcome" in said:
            return Link(connected, said, place)
        raise Unusable(str(said["refused"])) if "refused" in said else Lost("no welcome")
    except (Lost, Unusable):
        connected.close()
        raise


def _retired(link: Link, tell: Callable[[str], None]) -> float:
    """Let a worker of other versions end; how long it was to be kept. Raises Unusable where it still has clients."""
    if not retire(link.place):
        raise Unusable("the worker is of other versions and still at work")
    tell("the worker was of other versions: it was stopped")
    return float(link.said.get("keep") or 0)


def retire(place: Path) -> bool:
    """Let a worker end that has no clients; whether it has. One that has some ends after them."""
    answer: Message | None = None
    with suppress(Lost):
        answer = ask(place, "retire")
    # A client that has just left may still be counted.
    return gone(place, PARTING if (answer or {}).get("going") else GOING)


def gone(place: Path, timeout: float) -> bool:
    """Whether a worker has ended within so many seconds."""
    held = lock(place, timeout)
    if held:
        held.release()
    return bool(held)


# Starting and stopping


def start(store: Store, key: str, keep: float) -> Link:
    """A worker that was started now, or by another process a moment ago. One that is killed meanwhile is started again.

    Raises DiffpipeError where none comes up, Unusable where another one is there.
    """
    place = place_of(store, key)
    end = time.monotonic() + STARTING
    for _ in range(STARTS):
        try:
            process = _begun(place, [str(store.root), key, str(keep)])
        except OSError as error:
            raise CacheError(f"no worker can be started: {error.strerror}", "run it with --no-worker") from error
        if link := _up(place, process, end):
            return _checked(link, key)
        if process.poll() is None or process.returncode > 0:  # it takes too long, or is broken; else it was killed
            break
    raise DiffpipeError(f"no worker came up{_last_line(place)}", "run it with --no-worker")


def _begun(place: Path, words: list[str]) -> subprocess.Popen[bytes]:
    """A worker's process, which has nothing of this one's but its environment, without tokens: it is offline."""
    import subprocess

    environment = {name: value for name, value in os.environ.items() if name not in TOKENS}
    for name in SEARCHED & environment.keys():  # it leaves this folder, which may go
        folders = environment[name].split(os.pathsep)
        environment[name] = os.pathsep.join(os.path.abspath(os.path.expanduser(folder)) for folder in folders)
    words = [sys.executable, "-P", "-m", "diffpipe.runners.worker.server", str(place), *words]
    with open(os.open(log_of(place), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as printed:
        return subprocess.Popen(
            words, env=environment, cwd=place.parent, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=printed, stderr=printed,
        )  # fmt: skip


def _is_worker(pid: int) -> bool:
    """Whether a process may be a worker: the number may come from another namespace, or have been given anew."""
    try:
        return b"diffpipe.runners.worker.server" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return not os.path.isdir("/proc/self")


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
        lines = log_of(place).read_text(errors="replace").strip().splitlines()
        return f": {lines[-1].strip()}" if lines else ""
    return ""


def running(store: Store) -> list[Message]:
    """Place and status of every worker of this cache; the status is None of one that does not answer."""
    found = []
    for place in list(places(store)):
        try:
            answer = ask(place, "status")
        except Lost:
            found.append({"place": place, "status": None})
            continue
        if answer and "status" in answer:
            found.append({"place": place, "status": answer["status"]})
    return found


def stop(place: Path) -> None:
    """End a worker; its item stops at the next step. One that does not end in time is killed."""
    with suppress(Lost):
        if ask(place, "stop") is None:
            return
        if gone(place, GOING):
            clean(place)
            return
    kill(place)


def kill(place: Path) -> None:
    """End a worker that does not answer."""
    with suppress(OSError, ValueError):
        pid = int(pid_file(place).read_text())
        if not gone(place, 0) and _is_worker(pid):
            os.kill(pid, signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    gone(place, GOING)
    clean(place)


# Input files


def media_of(arguments: Mapping[str, Any], flags: Mapping[str, Flag]) -> dict[str, Any]:
    """The call arguments that name files."""
    return {name: value for name, value in arguments.items() if name in flags and flags[name].kind in MEDIA_KINDS}
