"""Warm workers as their clients see them: where they are, whether one may be used, how one is started and stopped."""

from __future__ import annotations

import functools
import glob
import hashlib
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
from typing import Any

from .. import __version__
from ..build import versions
from ..errors import DiffpipeError
from ..specs import MEDIA_KINDS, Flag
from ..store import Store
from . import channel
from .channel import Channel, Lost, Message

PROTOCOL = 1
LIFE = 5.0  # seconds between two signs of life
SILENCE = 60.0  # seconds without a sign of life after which a worker is given up
STARTING = 30.0  # seconds a worker has from its start to its welcome
GOING = 20.0  # seconds a worker has to stop in
ANSWER = 5.0  # seconds an idle worker's answer may take
NAMED = 24  # hex digits of the key in a place's name
# What of a process's environment changes the bytes that torch computes, or the device it computes on.
SETTINGS = (
    "ATEN_", "CUBLAS_", "CUDA_", "DNNL_", "HIP_", "HSA_", "MKL_", "NVIDIA_", "OMP_", "ONEDNN_", "OPENBLAS_", "PYTORCH_",
    "ROCR_", "TORCH_", "ZE_", "DIFFUSERS_",
)  # fmt: skip


@functools.cache
def greeting() -> dict[str, Any]:
    """What must be equal in a client and the worker it uses: versions, and settings as a digest."""
    own = {name: value for name, value in os.environ.items() if name.startswith(SETTINGS)}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = repr((sorted(own.items()), cores)).encode(errors="surrogateescape")
    found = {"diffpipe": __version__, "python": sys.version.split()[0], **versions()}
    return {"versions": found, "installation": _short(sys.prefix), "settings": hashlib.sha256(text).hexdigest()[:16]}


def _short(path: str) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


@dataclass(frozen=True)
class Link:
    """A worker that welcomed this process. `said` is its welcome."""

    channel: Channel
    said: Message


# Places


def place_of(store: Store, key: str) -> Path:
    """Where the worker of a pipeline of this cache listens: a path without ending. Raises CacheError (see folder)."""
    return channel.folder() / f"{_short(str(store.root.resolve()))[:8]}-{key[:NAMED]}"


def places(store: Store) -> Iterator[Path]:
    """The places of this cache at which a worker listens, or did."""
    stem = f"{_short(str(store.root.resolve()))[:8]}-"
    endings = {kind.ending for kind in (channel.SOCKETS, channel.FIFOS, channel.PIPES)}
    for path in sorted(channel.folder().iterdir()):
        if path.name.startswith(stem) and path.suffix in endings:
            yield path.with_suffix("")


def lock(place: Path, timeout: float = 5.0) -> Any:
    """The lock that a worker holds while it lives; None where another holds it longer than so many seconds."""
    from filelock import FileLock, Timeout

    held = FileLock(place.with_suffix(".lock"), mode=0o600)
    try:
        held.acquire(timeout=timeout)
    except Timeout:
        return None
    return held


def clean(place: Path) -> bool:
    """Remove what a worker that died left behind; whether there is no worker."""
    held = lock(place, 0)
    if held is None:
        return False
    channel.path_of(place).unlink(missing_ok=True)
    clear_spools(place)
    held.release()
    return True


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


def ask(place: Path, what: str, timeout: float = ANSWER) -> Message | None:
    """A worker's answer to "status", "stop" or "retire", in any version; None where there is none.

    Raises Lost where one is there but does not answer.
    """
    with suppress(Lost):
        connected = channel.connect(place, timeout)
        if connected is None:
            clean(place)
            return None
        try:
            connected.send({"hello": PROTOCOL, "ask": what})
            if answer := connected.receive(timeout):
                return answer
        finally:
            connected.close()
    if clean(place):
        return None
    raise Lost("the worker does not answer")


def find(store: Store, key: str, tell: Callable[[str], None]) -> Link | float | None:
    """The worker of a pipeline that may be used; else the seconds that one of other versions, now stopped, was to be
    kept; else None.

    Raises CacheError for a folder or socket that cannot be trusted.
    """
    link = _welcomed(place_of(store, key))
    if link is None or link.said.get("key") != key:
        return None
    wanted = greeting()
    if link.said.get("welcome") != PROTOCOL or any(
        link.said.get(name) != wanted[name] for name in ("versions", "installation")
    ):
        link.channel.close()
        return _retired(place_of(store, key), link, tell)
    if link.said.get("settings") != wanted["settings"]:
        link.channel.close()
        tell("the worker was started with other settings (threads, devices): this run does not use it")
        return None
    return link


def _welcomed(place: Path, timeout: float = SILENCE) -> Link | None:
    connected = channel.connect(place)
    if connected is None:
        clean(place)
        return None
    with suppress(Lost):
        connected.send({"hello": PROTOCOL})
        said = connected.receive(timeout)
        while said and "welcome" not in said and said.get("alive"):
            said = connected.receive(timeout)
        if said and "welcome" in said:
            return Link(connected, said)
    connected.close()
    return None


def _retired(place: Path, link: Link, tell: Callable[[str], None]) -> float | None:
    """Let a worker of other versions end; how long it was to be kept, or None where it still has clients."""
    answer: Message | None = None
    with suppress(Lost):
        answer = ask(place, "retire")
    if (answer or {}).get("going") or not _gone(place, GOING):
        tell("the worker is of other versions and still at work: this run does not use it")
        return None
    tell("the worker was of other versions: it was stopped")
    return float(link.said.get("keep") or 0)


def _gone(place: Path, timeout: float) -> bool:
    held = lock(place, timeout)
    if held:
        held.release()
    return bool(held)


# Starting and stopping


def start(store: Store, key: str, keep: float) -> Link:
    """A worker that was started now, or by another process a moment ago.

    Raises DiffpipeError where none comes up.
    """
    import subprocess

    place = place_of(store, key)
    secret = ("HF_TOKEN", "HUGGINGFACE_HUB_ACCESS_TOKEN", "HUGGING_FACE_HUB_TOKEN")  # it is offline
    environment = {name: value for name, value in os.environ.items() if name not in secret}
    detached: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        detached = {"creationflags": subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP}
    words = [sys.executable, "-P", "-m", "diffpipe.runners.serve", str(place), str(store.root), key, str(keep)]
    with open(os.open(log_of(place), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as log:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, **detached)
    end = time.monotonic() + STARTING
    while time.monotonic() < end:
        link = _welcomed(place, max(1.0, end - time.monotonic())) if channel.path_of(place).exists() else None
        if link:
            return link
        if process.poll() is not None and not channel.path_of(place).exists():
            break
        time.sleep(0.01)
    raise DiffpipeError(f"no worker came up{_last_line(place)}", "run it with --no-worker")


def _last_line(place: Path) -> str:
    """What a worker that crashed said last."""
    with suppress(OSError):
        lines = log_of(place).read_text(errors="replace").strip().splitlines()
        return f": {lines[-1].strip()}" if lines else ""
    return ""


def running(store: Store) -> list[Message]:
    """The status of every worker of this cache; {"pid": None, …} of one that does not answer."""
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


def stop(place: Path, pid: int | None) -> None:
    """End a worker; its item stops at the next step. One that does not end in time is killed."""
    with suppress(Lost):
        answer = ask(place, "stop")
        if answer is None:
            return
    if not _gone(place, GOING) and pid:
        kill(pid)
        _gone(place, GOING)
    clean(place)


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)


# Input files


def media_of(arguments: Mapping[str, Any], flags: Mapping[str, Flag]) -> dict[str, Any]:
    """The call arguments that name files."""
    return {name: value for name, value in arguments.items() if name in flags and flags[name].kind in MEDIA_KINDS}
