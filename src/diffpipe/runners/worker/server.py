"""The warm worker: a process that keeps one pipeline loaded and makes what this user's clients ask for, in order.

    python -P -m diffpipe.runners.worker.server PLACE ROOT KEY SECONDS

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
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ...cache import measured
from ...cache.store import Entry, Store
from ...cache.verify import locate
from ...core.errors import DiffpipeError, Exit
from ...core.flag import Flag
from ...core.request import Outcome, Request
from ...memory.machine import resident
from ...storage import urls
from ..inputs import reader
from ..job import Ears, Job, error_json, outcome_json, request_of
from . import channel, lifecycle
from .channel import Lost, Message

log = logging.getLogger("diffpipe.worker")

GUESTS = 200  # clients at once
LOOK = 0.5  # seconds between looks at the clock and the socket
SPACE = "free some space, or use --no-worker"
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
        self.arguments: Mapping[str, Any] = {}  # of the request that came last
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


class Wanted(NamedTuple):
    """Requests that go together. `files`: the client's names of their input files, and where what it sent of them lies;
    `forget`: what lies of files that only earlier requests needed.
    """

    guest: Guest
    requests: list[Request]
    files: Mapping[str, str]
    forget: list[Path]

    def named(self, text: str) -> str:
        """A text with the client's names of its files."""
        for name, spooled in self.files.items():
            text = text.replace(spooled, urls.shown(name))
        return text

    def renamed(self, outcome: Outcome) -> Outcome:
        if outcome.error:
            outcome.error.message = self.named(outcome.error.message)
        return replace(outcome, warnings=tuple(map(self.named, outcome.warnings)))


class Worker:
    """One pipeline, its guests, and the queue of what they want. The main thread alone touches the pipeline."""

    def __init__(self, place: Path, lock: lifecycle.Lock, store: Store, entry: Entry, keep: float) -> None:
        self.place, self.lock, self.entry, self.keep = place, lock, entry, keep
        self.manifest = entry.manifest()
        self.flags = {flag["name"]: Flag.from_json(flag) for flag in self.manifest["flags"]}
        self.about = {"key": entry.key, "pid": os.getpid(), "home": str(store.root), **lifecycle.greeting()}
        self.listener = channel.listen(place)
        self.queue: queue.SimpleQueue[Wanted | None] = queue.SimpleQueue()
        self.wanted: Wanted | None = None  # what is being made
        self.guests: set[Guest] = set()
        self.door = threading.Lock()  # held to let a guest in, to let none in any more, and to count what guests want
        self.session: Any = None
        self.side_by_side = False
        self.requests = 0
        self.stopping = self.retiring = False
        self.last = time.monotonic()

    # The main thread

    def run(self) -> None:
        """Load, then make what is asked for, until it is told to stop or nothing was asked for `keep` seconds."""
        for work in (self._welcome, self._give_signs):
            threading.Thread(target=work, daemon=True).start()
        try:
            self._load()
            while not self._over():
                with suppress(queue.Empty):
                    if (wanted := self.queue.get(timeout=LOOK)) is not None:
                        self._make(wanted)
        except DiffpipeError as error:
            self._dismiss(error)
        except SystemExit:  # asked to by a signal
            self._dismiss(STOPPED)
        else:
            self._dismiss(STOPPED)

    def _load(self) -> None:
        from ..local import Session

        try:
            session = Session(self.manifest, locate(self.entry, self.manifest))
        except DiffpipeError:
            raise
        except Exception as error:
            raise DiffpipeError(f"{type(error).__name__}: {error}", "--no-worker --traceback shows where") from error
        self.side_by_side = session.side_by_side()
        self.session = session
        self.last = time.monotonic()
        for guest in list(self.guests):
            self._ready(guest)

    def _over(self) -> bool:
        with self.door:  # whoever was let in is served
            idle = not self.guests and self.queue.empty()
            self.stopping |= idle and (self.retiring or time.monotonic() - self.last >= self.keep)
            return self.stopping

    def _make(self, wanted: Wanted) -> None:
        """Make what goes together, unless the guest has left."""
        from .. import local

        self.wanted, guest = wanted, wanted.guest
        try:
            for left in wanted.forget:
                shutil.rmtree(left, ignore_errors=True)
            os.umask(guest.umask)
            for outcome in self._made(wanted):
                if outcome.error and (self.stopping or guest.gone):
                    break  # told with all that is left, or to nobody
                self.requests += 1
                log_line = f"{local.told(outcome)}; {self.session.memory_now()}"
                guest.tell(outcome=outcome_json(outcome), log=log_line)
        except DiffpipeError as error:
            guest.fail(error)
        except Exception as error:
            guest.fail(local.as_ours(error))
        finally:
            os.umask(0o077)
            with self.door:
                guest.waiting -= 1
            self.wanted, self.last = None, time.monotonic()

    def _made(self, wanted: Wanted) -> Iterator[Outcome]:
        from .. import local

        guest = wanted.guest
        if guest.gone or not guest.job:
            return
        if guest.how is None:
            ears = Ears(self._on_step(guest), self._tell(guest), self._shown(guest))
            read = reader(self.flags, guest.job.fit, ears.tell)
            how = local.how_of(guest.job, ears, read, functools.partial(measured.add, self.entry.folder))
            guest.how = replace(how, before_writing=functools.partial(self._stop_if_unwanted, guest))
        self.numbers = {id(request): number for number, request in enumerate(wanted.requests)}
        yield from map(wanted.renamed, self.session.outcomes(wanted.requests, guest.how))

    def _on_step(self, guest: Guest) -> Any:
        def on_step(request: Request, done: int, steps: int) -> None:
            self._stop_if_unwanted(guest)
            if guest.steps:
                guest.tell(step=[self.numbers[id(request)], done, steps])

        return on_step

    def _stop_if_unwanted(self, guest: Guest) -> None:
        if guest.gone or self.stopping:
            raise DiffpipeError("stopped", "", Exit.INTERRUPTED)

    def _tell(self, guest: Guest) -> Any:
        def tell(line: str) -> None:
            guest.tell(tell=self.wanted.named(line) if self.wanted else line)

        return tell

    def _shown(self, guest: Guest) -> Any:
        def show(picture: Any) -> None:
            with io.BytesIO() as stream:
                picture.save(stream, "PNG")
                data = base64.b64encode(stream.getvalue()).decode()
            if len(data) < channel.LARGEST - 1024:
                guest.tell(picture=data)
            else:
                show(picture.reduce(2))

        return show

    def _dismiss(self, error: DiffpipeError) -> None:
        """Close the door, then tell whoever is there."""
        with self.door:
            self.stopping = True
            self.listener.close()
        for guest in list(self.guests):
            guest.fail(error)
            guest.leave()

    # Threads that listen

    def _welcome(self) -> None:
        """Let clients in, and keep the socket in its place."""
        while not self.stopping:
            try:
                self._stay()
                came = self.listener.accept(LOOK)
            except (OSError, Lost) as error:  # no folder, or no descriptors left
                log.info("nobody can come in: %s", error)
                time.sleep(LOOK)
                continue
            if came:
                threading.Thread(target=self._attend, args=(Guest(came),), daemon=True).start()

    def _stay(self) -> None:
        """Listen anew where the socket was removed. Where the lock was too, another worker may be there: end."""
        with self.door:
            if self.stopping or self.listener.in_place():
                return
            self.retiring = self.retiring or not self.lock.counts()
            if not self.retiring:
                self.listener.close()
                self.listener = channel.listen(self.place)

    def _give_signs(self) -> None:
        """Tell those that wait that this process lives."""
        while not self.stopping:
            time.sleep(lifecycle.LIFE)
            for guest in list(self.guests):
                if guest.waiting or not self.session:  # who waits, reads
                    guest.tell(alive=True)

    def _attend(self, guest: Guest) -> None:
        """Do what a client asks until it leaves; one that sends no sense is shown out."""
        try:
            greeting = guest.channel.receive(channel.MESSAGE_TIMEOUT)
            if greeting is None or "hello" not in greeting:
                return
            if "ask" in greeting:
                self._answer(guest, greeting["ask"])
                return
            if refused := self._refused(guest):
                guest.tell(refused=refused)
                return
            guest.tell(welcome=lifecycle.PROTOCOL, keep=self.keep, **self.about)
            while not guest.gone:
                if message := guest.channel.receive(LOOK):
                    self._take(guest, message)
        except OSError as error:
            guest.fail(DiffpipeError(f"the worker cannot keep an input file: {error.strerror}", SPACE, Exit.CACHE))
        except Exception as error:  # whatever a client sends must not cost the others
            log.info("a client left: %s: %s", type(error).__name__, error)
        finally:
            with self.door:
                if guest in self.guests:
                    self.guests.remove(guest)
                    self.last = time.monotonic()
            guest.leave()

    def _refused(self, guest: Guest) -> str | None:
        """Let a guest in, or say why not."""
        with self.door:
            if self.stopping or self.retiring:
                return "the worker is about to end"
            if len(self.guests) >= GUESTS:
                return f"the worker has {GUESTS} clients already"
            self.guests.add(guest)
        return None

    def _answer(self, guest: Guest, asked: str) -> None:
        if asked == "status":
            guest.tell(status=self._status())
        if asked not in ("stop", "retire"):
            return
        with self.door:
            self.retiring = True
            self.stopping |= asked == "stop"
            left = len(self.guests)
        guest.tell(going=left)
        for other in list(self.guests) if asked == "stop" else ():
            other.fail(STOPPED)  # the step that runs may take longer than this process is given
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
            files = {name: str(self._spooled(guest, *where)) for name, where in message["files"].items()}
            requests = [self._with_files(guest, request_of(request), files) for request in message["make"]]
            forget = [self._spooled(guest, number, "") for number in message["forget"]]
            with self.door:
                guest.waiting += 1
            self.queue.put(Wanted(guest, requests, files, forget))

    def _ready(self, guest: Guest) -> None:
        if guest.job:
            guest.tell(ready=self.side_by_side)

    def _spooled(self, guest: Guest, number: int, name: str) -> Path:
        """Where an input file of a client's lies. Raises ValueError for a name that leads elsewhere."""
        if guest.spool is None:
            guest.spool = Path(tempfile.mkdtemp(prefix=lifecycle.spool_prefix(self.place)))
        path = Path(name)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError("a name that leads elsewhere")
        return guest.spool / str(int(number)) / path

    def _spool(self, guest: Guest, message: Message) -> None:
        path = self._spooled(guest, message["file"], message["name"])
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as stream:
            stream.write(base64.b64decode(message["piece"]))

    def _with_files(self, guest: Guest, request: Request, files: Mapping[str, str]) -> Request:
        """A request with the paths of its client's files replaced by those of what the client sent.

        Raises KeyError for a file that was not sent: this process opens none of its own accord.
        """

        def here(value: Any) -> Any:
            return [here(one) for one in value] if isinstance(value, list) else files[value]

        media = {name: here(value) for name, value in lifecycle.media_of(request.arguments, self.flags).items()}
        arguments = {**request.arguments, **media}
        if arguments != guest.arguments:  # else the same object, which need not be read again
            guest.arguments = arguments
        return replace(request, arguments=guest.arguments)


def _lock(place: Path) -> lifecycle.Lock | None:
    """The lock of a place. None where another worker has it: one that waited would take its place when that ends."""
    end = time.monotonic() + channel.MESSAGE_TIMEOUT
    while time.monotonic() < end:
        if held := lifecycle.lock(place, 0.1):  # a client may have it for a moment, to look
            return held
        if listens := channel.connect(place):
            listens.close()
            return None
    return None


def main() -> None:
    place, root, key, keep = sys.argv[1:]
    os.umask(0o077)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    for name in ("SIGTERM", "SIGHUP", "SIGINT"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: sys.exit(Exit.OK))
    lock = _lock(Path(place))
    if not lock:
        return  # another worker came first
    store = Store(Path(root))
    entry = store.get(key)
    if entry is None:
        return
    lifecycle.clear_spools(Path(place))
    code = Exit.OK
    try:
        lifecycle.pid_file(Path(place)).write_text(str(os.getpid()))
        Worker(Path(place), lock, store, entry, float(keep)).run()
    except SystemExit:
        pass  # asked to by a signal
    except Exception:
        log.exception("the worker failed")
        code = Exit.FAILED
    finally:
        if lock.counts():  # else what lies there is another worker's
            lifecycle.sweep(Path(place))
            if not code:
                lifecycle.log_of(Path(place)).unlink(missing_ok=True)
    sys.stderr.flush()
    os._exit(code)  # tearing down torch takes most of a second, and leaves the memory taken meanwhile


if __name__ == "__main__":
    main()
