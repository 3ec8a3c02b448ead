"""A worker: a process that keeps one pipeline loaded and makes what this user's clients ask for, in order.

    python -P -m diffpipe.runners.worker.server PLACE ROOT KEY SECONDS

protocol.py has what goes over its channels.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import queue
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...cache import measured
from ...cache.entry import Entry
from ...cache.store import Store
from ...cache.verify import locate
from ...core.errors import DeviceLost, DiffpipeError, Exit
from ...core.request import Outcome, Request
from ...memory.machine import resident
from ..inputs import reader
from ..job import Callbacks, Job
from ..local import Session
from ..outcomes import as_diffpipe_error, log_line
from ..settings import RunSettings, settings_of
from ..wire import Answer
from . import channel, lifecycle, places, protocol
from .channel import Channel, Lost
from .clients import ConnectedClient, RequestGroup, Spool
from .fingerprint import fingerprint
from .protocol import (
    Answered,
    Begin,
    FilePiece,
    FromClient,
    Going,
    Hello,
    Notice,
    Picture,
    Question,
    Ready,
    Refused,
    Status,
    Step,
    Welcome,
)

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger("diffpipe.worker")

MOST_CLIENTS = 200  # at once
MOST_CONNECTIONS = 400  # the same, with those that have not said yet what they want; each has a thread
POLL = 0.5  # seconds between looks at the clock and the socket
MOST_PREVIEW = channel.LARGEST // 4 * 3 - 1024  # bytes of a preview: base64 makes 4 of 3
NO_SPACE = "free some space, or use --no-worker"
STOPPED = DiffpipeError("the worker was stopped", "run it again; a batch goes on with --resume")


class Worker:
    """One pipeline, its clients, and the queue of what they ask for. The main thread alone touches the pipeline."""

    def __init__(self, place: Path, lock: places.Lock, store: Store, entry: Entry, keep: float) -> None:
        self.place, self.lock, self.entry, self.keep = place, lock, entry, keep
        self.manifest = entry.manifest()
        self.flags = self.manifest.flags_by_name
        self.fingerprint = fingerprint()  # before libraries are imported, as clients are asked for theirs
        self.listener = channel.listen(place)
        self.queue: queue.SimpleQueue[RequestGroup | None] = queue.SimpleQueue()
        self.current: RequestGroup | None = None  # what is being made
        self.clients: set[ConnectedClient] = set()
        self.entrance = (
            threading.Lock()
        )  # held to let a client in, to let none in any more, to count what they wait for
        self.session: Session | None = None
        self.side_by_side = False
        self.requests = 0
        self.stopping = self.retiring = False
        self.last = time.monotonic()

    # The main thread

    def run(self) -> None:
        """Load, then make what is asked for, until it is to stop or nothing was asked for `keep` seconds."""
        for work in (self._let_clients_in, self._send_heartbeats):
            threading.Thread(target=work, daemon=True).start()
        try:
            self._load()
            while not self._over():
                with suppress(queue.Empty):
                    if (group := self.queue.get(timeout=POLL)) is not None:
                        self._make(group)
        except DiffpipeError as error:
            self._close(error)
        except SystemExit:  # asked to by a signal
            self._close(STOPPED)
        else:
            self._close(STOPPED)

    def _load(self) -> None:
        try:
            session = Session(self.manifest, locate(self.entry, self.manifest))
        except DiffpipeError:
            raise
        except Exception as error:
            raise DiffpipeError(f"{type(error).__name__}: {error}", "--no-worker --traceback shows where") from error
        self.side_by_side = session.side_by_side()
        self.session = session
        self.last = time.monotonic()
        for client in list(self.clients):
            self._say_ready(client)

    def _over(self) -> bool:
        with self.entrance:  # whoever was let in is served
            idle = not self.clients and self.queue.empty()
            self.stopping |= idle and (self.retiring or time.monotonic() - self.last >= self.keep)
            return self.stopping

    def _make(self, group: RequestGroup) -> None:
        """Make what goes together, unless its client has left."""
        self.current, client = group, group.client
        try:
            for left in group.forget:
                shutil.rmtree(left, ignore_errors=True)
            os.umask(client.umask)
            for outcome in self._outcomes(group):
                if outcome.error and (self.stopping or client.left):
                    break  # sent with all that is left, or to nobody
                self.requests += 1
                assert self.session
                line = f"{log_line(outcome)}; {self.session.memory_now()}"
                client.send(Answered(Answer.of(outcome), line))
        except DeviceLost as error:  # this process can do nothing more; the next worker may
            client.fail(error)
            self.stopping = True
        except DiffpipeError as error:
            client.fail(error)
        except Exception as error:
            client.fail(as_diffpipe_error(error))
        finally:
            os.umask(0o077)
            with self.entrance:
                client.waiting -= 1
            self.current, self.last = None, time.monotonic()

    def _outcomes(self, group: RequestGroup) -> Iterator[Outcome]:
        client = group.client
        if client.left or not client.job or not self.session:
            return
        client.settings = client.settings or self._settings(client, client.job)
        yield from group.renamed(self.session.outcomes(group.requests, client.settings))

    def _settings(self, client: ConnectedClient, job: Job) -> RunSettings:
        """How a client's requests are made, and what it hears of them."""

        def on_step(request: Request, done: int, steps: int) -> None:
            self._stop_if_unwanted(client)
            if client.steps and self.current:
                place = next(at for at, one in enumerate(self.current.requests) if one is request)
                client.send(Step(place, done, steps))

        def on_warning(line: str) -> None:
            client.send(Notice(self.current.named(line) if self.current else line))

        callbacks = Callbacks(on_step, on_warning, lambda picture: client.send(Picture(_png(picture))))
        read = reader(self.flags, job.fit, on_warning)
        settings = settings_of(job, callbacks, read, functools.partial(measured.add, self.entry.folder))
        return replace(settings, before_writing=functools.partial(self._stop_if_unwanted, client))

    def _stop_if_unwanted(self, client: ConnectedClient) -> None:
        if client.left or self.stopping:
            raise DiffpipeError("stopped", "", Exit.INTERRUPTED)

    def _close(self, error: DiffpipeError) -> None:
        """Let nobody in any more, then say why to whoever is there."""
        with self.entrance:
            self.stopping = True
            self.listener.close()
        for client in list(self.clients):
            client.fail(error)
            client.disconnect()

    # Threads that listen

    def _let_clients_in(self) -> None:
        """Take connections, and keep the socket in its place."""
        while not self.stopping:
            try:
                self._keep_socket()
                came = self.listener.accept(POLL)
            except (OSError, Lost) as error:  # no folder, or no descriptors left
                log.info("nobody can come in: %s", error)
                time.sleep(POLL)
                continue
            if came and threading.active_count() < MOST_CONNECTIONS:
                threading.Thread(target=self._serve, args=(came,), daemon=True).start()
            elif came:
                with suppress(Lost):
                    came.offer(Refused(f"the worker has {MOST_CONNECTIONS} connections already").to_json())
                came.close()

    def _keep_socket(self) -> None:
        """Listen anew where the socket was removed. Where the lock was too, another worker may be there: end."""
        with self.entrance:
            if self.stopping or self.listener.in_place():
                return
            self.retiring = self.retiring or not self.lock.counts()
            if not self.retiring:
                self.listener.close()
                self.listener = channel.listen(self.place)

    def _send_heartbeats(self) -> None:
        """Show those that wait that this process lives."""
        while not self.stopping:
            time.sleep(lifecycle.HEARTBEAT)
            for client in list(self.clients):
                if client.waiting or not self.session:  # who waits, reads
                    client.show_life()

    def _serve(self, connected: Channel) -> None:
        """Do what a client asks until it leaves; one that sends no sense is disconnected."""
        client = ConnectedClient(connected, Spool(places.spool_prefix(self.place)))
        try:
            message = connected.receive(channel.MESSAGE_TIMEOUT)
            if message is None:
                return
            hello = Hello.from_json(message)
            if hello.ask:
                self._answer(client, hello.ask)
            elif refused := self._refused(client):
                client.send(Refused(refused))
            else:
                client.send(Welcome(self.entry.key, self.keep, self.fingerprint))
                while not client.left:
                    if message := connected.receive(POLL):
                        self._take(client, protocol.from_client(message))
        except OSError as error:
            client.fail(DiffpipeError(f"the worker cannot keep an input file: {error.strerror}", NO_SPACE, Exit.CACHE))
        except Exception as error:  # whatever a client sends must not cost the others
            log.info("a client left: %s: %s", type(error).__name__, error)
        finally:
            with self.entrance:
                if client in self.clients:
                    self.clients.remove(client)
                    self.last = time.monotonic()
            client.disconnect()

    def _refused(self, client: ConnectedClient) -> str | None:
        """Let a client in, or say why not."""
        with self.entrance:
            if self.stopping or self.retiring:
                return "the worker is about to end"
            if len(self.clients) >= MOST_CLIENTS:
                return f"the worker has {MOST_CLIENTS} clients already"
            self.clients.add(client)
        return None

    def _answer(self, client: ConnectedClient, asked: Question) -> None:
        if asked == "status":
            client.send(self._status())
            return
        with self.entrance:
            self.retiring = True
            self.stopping |= asked == "stop"
            left = len(self.clients)
        client.send(Going(left))
        for other in list(self.clients) if asked == "stop" else ():
            other.fail(STOPPED)  # the step that runs may take longer than this process is given
        self.queue.put(None)

    def _status(self) -> Status:
        busy = self.session is None or any(client.waiting for client in list(self.clients))
        return Status(
            key=self.entry.key,
            pid=os.getpid(),
            memory=resident(),
            device_memory=self.session.device_memory() if self.session else None,
            loaded=self.session is not None,
            busy=busy,
            idle=0.0 if busy else time.monotonic() - self.last,
            keep=self.keep,
            requests=self.requests,
            clients=len(self.clients),
        )

    def _take(self, client: ConnectedClient, message: FromClient) -> None:
        if isinstance(message, Begin):
            client.job, client.settings = message.job, None
            client.umask, client.steps = message.umask, message.steps
            self.keep = self.keep if message.keep is None else message.keep
            if self.session:
                self._say_ready(client)
        elif isinstance(message, FilePiece):
            client.spool.add(message)
        else:
            group = client.group(message, self.flags)
            with self.entrance:
                client.waiting += 1
            self.queue.put(group)

    def _say_ready(self, client: ConnectedClient) -> None:
        if client.job:
            client.send(Ready(self.side_by_side))


def _png(picture: Image) -> bytes:
    """A preview as PNG, smaller where it would not go into a message."""
    with io.BytesIO() as stream:
        picture.save(stream, "PNG")
        data = stream.getvalue()
    return data if len(data) <= MOST_PREVIEW else _png(picture.reduce(2))


def _lock(place: Path) -> places.Lock | None:
    """The lock of a place. None where another worker has it: one that waited would take its place when that ends."""
    end = time.monotonic() + channel.MESSAGE_TIMEOUT
    while time.monotonic() < end:
        if held := places.lock(place, 0.1):  # a client may have it for a moment, to look
            return held
        if listens := channel.connect(place):
            listens.close()
            return None
    return None


def main() -> None:
    place, root, key, keep = sys.argv[1:]
    os.umask(0o077)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(Exit.OK))
    lock = _lock(Path(place))
    if not lock:
        return  # another worker came first
    store = Store(Path(root))
    entry = store.get(key)
    if entry is None:
        return
    places.clear_spools(Path(place))
    code = Exit.OK
    try:
        places.pid_file(Path(place)).write_text(str(os.getpid()))
        Worker(Path(place), lock, store, entry, float(keep)).run()
    except SystemExit:
        pass  # asked to by a signal
    except Exception:
        log.exception("the worker failed")
        code = Exit.FAILED
    finally:
        if lock.counts():  # else what lies there is another worker's
            places.sweep(Path(place))
            if not code:
                places.log_of(Path(place)).unlink(missing_ok=True)
    sys.stderr.flush()
    os._exit(code)  # tearing down torch takes most of a second, and leaves the memory taken meanwhile


if __name__ == "__main__":
    main()
