"""The warm worker: a process that keeps one pipeline loaded and makes what this user's clients ask for, in order.

    python -P -m diffpipe.runners.serve PLACE ROOT KEY SECONDS

What goes over the channel, client first (see channel.py for frames, job.py for what requests and outcomes are):

    {"hello": PROTOCOL, "ask": "status" | "stop" | "retire"}     {"status": …} | {"going": …}
    {"hello": PROTOCOL}                                          {"welcome": PROTOCOL, "key": …, "versions": …, …}
    {"job": …, "umask": …, "keep": …, "steps": …}                {"ready": how many are made side by side}
    {"file": …, "name": …, "piece": …}                           a piece of an input file
    {"make": [requests], "files": …, "forget": […]}              {"step": …} {"tell": …} {"picture": …} {"outcome": …}

{"alive": true} comes while there is work. {"failed": error} ends a client's work. Whoever leaves has its item stopped
at the next step.
"""

from __future__ import annotations

import base64
import functools
import io
import logging
import os
import queue
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .. import measured
from ..errors import DiffpipeError, Exit
from ..machine import resident
from ..specs import Flag, Request
from ..store import Entry, Store
from ..verify import locate
from . import channel, warm
from .channel import Lost, Message
from .job import Ears, Job, error_json, outcome_json, request_of
from .reading import reader

log = logging.getLogger("diffpipe.worker")

GUESTS = 200  # clients at once
LOOK = 0.5  # seconds between looks at the clock and the socket
STOPPED = DiffpipeError("the worker was stopped", "run it again; a batch goes on with --resume")


class Guest:
    """A client that is connected, and what it has asked for."""

    def __init__(self, connected: channel.Channel) -> None:
        self.channel = connected
        self.gone = False
        self.waiting = 0  # groups of requests that are not finished
        self.job: Job | None = None
        self.umask = 0o077
        self.steps = False
        self.spool: Path | None = None
        self.how: Any = None

    def tell(self, **message: Any) -> None:
        try:
            self.channel.send(message)
        except Lost:
            self.gone = True

    def fail(self, error: DiffpipeError) -> None:
        """Tell of an error that ends its work."""
        self.tell(failed=error_json(error))
        self.gone = True

    def leave(self) -> None:
        self.gone = True
        self.channel.close()
        if self.spool:
            shutil.rmtree(self.spool, ignore_errors=True)


class Worker:
    """One pipeline, its guests, and the queue of what they want. The main thread alone touches the pipeline."""

    def __init__(self, place: Path, store: Store, entry: Entry, keep: float) -> None:
        self.place, self.entry, self.keep = place, entry, keep
        self.manifest = entry.manifest()
        self.flags = {flag["name"]: Flag.from_json(flag) for flag in self.manifest["flags"]}
        self.about = {"key": entry.key, "pid": os.getpid(), "home": str(store.root), **warm.greeting()}
        self.listener = channel.listen(place)
        self.queue: queue.SimpleQueue[tuple[Guest, list[Request]] | None] = queue.SimpleQueue()
        self.guests: set[Guest] = set()
        self.session: Any = None
        self.side_by_side = False
        self.requests = 0
        self.stopping = self.retiring = False
        self.started = self.last = time.monotonic()

    # The main thread

    def run(self) -> None:
        """Load, then make what is asked for, until it is told to stop or nothing was asked for `keep` seconds."""
        threading.Thread(target=self._welcome, daemon=True).start()
        try:
            self._load()
            while not self._over():
                with suppress(queue.Empty):
                    if (wanted := self.queue.get(timeout=LOOK)) is not None:
                        self._make(*wanted)
        except DiffpipeError as error:
            self._dismiss(error)
        else:
            self._dismiss(STOPPED)

    def _load(self) -> None:
        from .local import Session

        try:
            self.session = Session(self.manifest, locate(self.entry, self.manifest))
        except DiffpipeError:
            raise
        except Exception as error:
            raise DiffpipeError(f"{type(error).__name__}: {error}", "--no-worker --traceback shows where") from error
        self.side_by_side = self.session.side_by_side()
        self.last = time.monotonic()
        for guest in list(self.guests):
            self._ready(guest)

    def _over(self) -> bool:
        if self.stopping:
            return True
        idle = not self.guests and self.queue.empty()
        return idle and (self.retiring or time.monotonic() - self.last >= self.keep)

    def _make(self, guest: Guest, requests: list[Request]) -> None:
        """Make what goes together, unless the guest has left."""
        from . import local

        assert guest.job
        if guest.how is None:
            ears = Ears(self._on_step(guest), lambda line: guest.tell(tell=line), self._shown(guest))
            read = reader(self.flags, guest.job.fit, ears.tell)
            guest.how = local.how_of(guest.job, ears, read, functools.partial(measured.add, self.entry.folder))
        os.umask(guest.umask)
        self.numbers = {id(request): number for number, request in enumerate(requests)}
        try:
            made = self.session.outcomes([] if guest.gone else requests, guest.how)
            for number, outcome in enumerate(made):
                self.requests += 1
                guest.tell(
                    outcome=outcome_json(outcome),
                    number=number,
                    log=f"{local.told(outcome)}; {self.session.memory_now()}",
                )
        except DiffpipeError as error:
            guest.fail(error)
        except Exception as error:
            guest.fail(local.as_ours(error))
        finally:
            os.umask(0o077)
            guest.waiting -= 1
            self.last = time.monotonic()

    def _on_step(self, guest: Guest) -> Any:
        def on_step(request: Request, done: int, steps: int) -> None:
            if guest.gone or self.stopping:
                raise DiffpipeError("stopped", "", Exit.INTERRUPTED)
            if guest.steps:
                guest.tell(step=[self.numbers[id(request)], done, steps])

        return on_step

    def _shown(self, guest: Guest) -> Any:
        def show(picture: Any) -> None:
            with io.BytesIO() as stream:
                picture.save(stream, "PNG")
                guest.tell(picture=base64.b64encode(stream.getvalue()).decode())

        return show

    def _dismiss(self, error: DiffpipeError) -> None:
        """Close the door, then tell whoever is there."""
        self.stopping = True
        self.listener.close()
        for guest in list(self.guests):
            guest.fail(error)
            guest.leave()

    # Threads that listen

    def _welcome(self) -> None:
        """Let clients in, tell those that wait that this process lives, and keep the socket in its place."""
        said = time.monotonic()
        while not self.stopping:
            with suppress(OSError):
                if not self.listener.in_place() and not self.stopping:
                    self.listener.close()
                    self.listener = channel.listen(self.place)
            with suppress(OSError, ValueError):
                if came := self.listener.accept(LOOK):
                    threading.Thread(target=self._attend, args=(Guest(came),), daemon=True).start()
            if time.monotonic() - said >= warm.LIFE:
                said = time.monotonic()
                for guest in list(self.guests):
                    guest.tell(alive=True)

    def _attend(self, guest: Guest) -> None:
        """Do what a client asks until it leaves; one that sends no sense is shown out."""
        try:
            greeting = guest.channel.receive(channel.PATIENCE)
            if greeting is None or "hello" not in greeting:
                return
            if "ask" in greeting:
                self._answer(guest, greeting["ask"])
                return
            if len(self.guests) >= GUESTS or self.retiring or self.stopping:
                return
            self.guests.add(guest)
            guest.tell(welcome=warm.PROTOCOL, keep=self.keep, **self.about)
            while not guest.gone:
                if message := guest.channel.receive(LOOK):
                    self._take(guest, message)
        except (Lost, KeyError, ValueError, TypeError, AttributeError) as error:
            log.info("a client left: %s", error)
        finally:
            self.guests.discard(guest)
            guest.leave()
            self.last = time.monotonic()

    def _answer(self, guest: Guest, asked: str) -> None:
        if asked == "status":
            guest.tell(status=self._status())
            return
        self.retiring = True
        self.stopping = self.stopping or asked == "stop"
        guest.tell(going=len(self.guests))
        self.queue.put(None)

    def _status(self) -> dict[str, Any]:
        busy = self.session is None or any(guest.waiting for guest in list(self.guests))
        return {
            **self.about,
            "memory": resident(),
            "device_memory": self.session.device_memory() if self.session else None,
            "loaded": self.session is not None,
            "busy": busy,
            "idle": 0.0 if busy else time.monotonic() - self.last,
            "keep": self.keep,
            "requests": self.requests,
            "clients": len(self.guests),
        }

    def _take(self, guest: Guest, message: Message) -> None:
        if "job" in message:
            guest.job, guest.how = Job.from_json(message["job"]), None
            guest.umask, guest.steps = int(message["umask"]), bool(message["steps"])
            self.keep = self.keep if message["keep"] is None else float(message["keep"])
            if self.session:
                self._ready(guest)
        elif "file" in message:
            self._spool(guest, message)
        elif "make" in message:
            requests = [request_of(request) for request in message["make"]]
            files = {path: str(self._spooled(guest, *where)) for path, where in message["files"].items()}
            for number in message["forget"]:
                shutil.rmtree(self._spooled(guest, number, ""), ignore_errors=True)
            guest.waiting += 1
            self.queue.put((guest, [_with_files(request, self.flags, files) for request in requests]))

    def _ready(self, guest: Guest) -> None:
        if guest.job:
            guest.tell(ready=self.side_by_side)

    def _spooled(self, guest: Guest, number: int, name: str) -> Path:
        """Where an input file of a client's lies. Raises ValueError for a name that leads elsewhere."""
        if guest.spool is None:
            guest.spool = Path(tempfile.mkdtemp(prefix=warm.spool_prefix(self.place)))
        path = Path(name)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError("a name that leads elsewhere")
        return guest.spool / str(int(number)) / path

    def _spool(self, guest: Guest, message: Message) -> None:
        path = self._spooled(guest, message["file"], message["name"])
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("ab") as stream:
                stream.write(base64.b64decode(message["piece"]))
        except OSError as error:
            hint = "free some space, or use --no-worker"
            guest.fail(DiffpipeError(f"the worker cannot keep an input file: {error.strerror}", hint, Exit.CACHE))


def _with_files(request: Request, flags: Mapping[str, Flag], files: Mapping[str, str]) -> Request:
    """A request with the paths of its client's files replaced by those of what the client sent."""
    from dataclasses import replace

    if not files:
        return request

    def here(value: Any) -> Any:
        return [here(one) for one in value] if isinstance(value, list) else files.get(value, value)

    media = warm.media_of(request.arguments, flags)
    return replace(request, arguments={**request.arguments, **{name: here(value) for name, value in media.items()}})


def main() -> None:
    place, root, key, keep = sys.argv[1:]
    os.umask(0o077)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(Exit.OK))
    lock = warm.lock(Path(place))
    if not lock:
        return  # another worker came first
    store = Store(Path(root))
    entry = store.get(key)
    if entry is None:
        return
    warm.clear_spools(Path(place))
    worker = Worker(Path(place), store, entry, float(keep))
    try:
        worker.run()
    finally:
        worker.listener.close()
        warm.clear_spools(Path(place))
        warm.log_of(Path(place)).unlink(missing_ok=True)
    sys.stderr.flush()
    os._exit(0)  # tearing down torch takes most of a second, and leaves the memory taken meanwhile


if __name__ == "__main__":
    main()
