"""Messages between two processes of one user over a Unix socket: a length in 4 bytes, then JSON. Never pickle, never a
network."""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ...core.canonical import JsonObject
from ...core.errors import CacheError
from ...core.parsing import WRAPPED, Misfit, parse_json

LARGEST = 16 << 20  # bytes of a message: a request is some kB, a piece of a file PIECE
PIECE = 1 << 20  # bytes of a file that go into one message
MESSAGE_TIMEOUT = 10.0  # seconds in which the rest of a begun message must come, or all of it be taken
BACKLOG = 64
ENDING = ".sock"


class Lost(Exception):
    """The other side is gone, or what it sends is no message."""


class Channel:
    """A connection. `send` may be called by several threads, `receive` by one at a time."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.socket.setblocking(False)
        self._lock = threading.Lock()
        self._receiving = self._closed = False

    def send(self, message: Mapping[str, object]) -> None:
        """Raises Lost when the other side is gone or too slow, ValueError for a message that is too large."""
        data = _frame(message)
        with self._lock:
            self._send(data)

    def offer(self, message: Mapping[str, object]) -> None:
        """Send a short message, unless that would mean to wait: the other side has enough to read then. Raises Lost."""
        if self._lock.acquire(blocking=False):
            try:
                if not self._closed and _ready(self.socket, select.POLLOUT, 0):
                    self._send(_frame(message))
            finally:
                self._lock.release()

    def _send(self, message: bytes) -> None:
        data = memoryview(message)
        end = time.monotonic() + MESSAGE_TIMEOUT  # of the whole message, however many pieces it is taken in
        while data:
            if self._closed:
                raise Lost("closed")
            try:
                data = data[self.socket.send(data) :]
            except BlockingIOError:
                if not _ready(self.socket, select.POLLOUT, end - time.monotonic()):
                    raise Lost("the other side takes nothing") from None
            except OSError as error:
                raise Lost(str(error)) from error

    def receive(self, timeout: float | None) -> JsonObject | None:
        """The next message; None where none begins within so many seconds. Raises Lost."""
        with self._lock:
            if self._closed:
                raise Lost("closed")
            self._receiving = True
        try:
            if not _ready(self.socket, select.POLLIN, timeout):
                return None
            end = time.monotonic() + MESSAGE_TIMEOUT  # of the whole message, however many pieces it comes in
            (length,) = struct.unpack(">I", self._exactly(4, end))
            if length > LARGEST:
                raise Lost("a message that is too large")
            return _message(self._exactly(length, end))
        finally:
            with self._lock:
                self._receiving = False
                if self._closed:
                    self.socket.close()

    def _exactly(self, count: int, end: float) -> bytes:
        """So many bytes, those that are not here yet by `end` of the monotonic clock."""
        found = bytearray()
        while len(found) < count:
            try:
                piece = self.socket.recv(min(count - len(found), PIECE))
            except BlockingIOError:
                if not _ready(self.socket, select.POLLIN, end - time.monotonic()):
                    raise Lost("half a message") from None
                continue
            except OSError as error:
                raise Lost(str(error)) from error
            if not piece:
                raise Lost("closed")
            found += piece
        return bytes(found)

    def close(self) -> None:
        """Use it no more. While another thread receives, that one closes the socket, at its time-out."""
        with self._lock:
            if not self._closed:
                self._closed = True
                if not self._receiving:
                    self.socket.close()


def _frame(message: Mapping[str, object]) -> bytes:
    data = json.dumps(message, separators=(",", ":"), allow_nan=False).encode()
    if len(data) > LARGEST:
        raise ValueError(f"a message of {len(data)} bytes, the limit is {LARGEST}")
    return struct.pack(">I", len(data)) + data


def _message(data: bytes) -> JsonObject:
    try:
        message = parse_json(data, LARGEST, "the message", deepest=WRAPPED)
    except Misfit as error:
        raise Lost(str(error)) from error
    if not isinstance(message, dict):
        raise Lost("not a message")
    return message


def _ready(connected: socket.socket, event: int, timeout: float | None) -> bool:
    """Whether a socket can be read or written, or has ended, within so many seconds."""
    poller = select.poll()
    try:
        poller.register(connected, event)
    except (OSError, ValueError) as error:
        raise Lost("closed") from error
    return bool(poller.poll(None if timeout is None else max(0, timeout) * 1000))


class Listener:
    """Where connections come in: a socket at a path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Bound beside its place, by a name as long, and moved there once it listens: nobody finds one that does not.
        beside = path.with_name(path.name[:-1] + "~")
        with suppress(FileNotFoundError):
            beside.unlink()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.bind(str(beside))
        beside.chmod(0o600)
        self.socket.listen(BACKLOG)
        os.replace(beside, path)
        self.inode = path.stat().st_ino

    def accept(self, timeout: float) -> Channel | None:
        """The next connection of this user's; None where there is none within so many seconds. Raises OSError where
        none can come any more, or none be taken."""
        self.socket.settimeout(timeout)
        try:
            made, _ = self.socket.accept()
        except TimeoutError:
            return None
        if not _same_user(made):
            made.close()
            return None
        return Channel(made)

    def in_place(self) -> bool:
        """Whether clients can still find it."""
        try:
            return self.path.stat().st_ino == self.inode
        except OSError:
            return False

    def close(self) -> None:
        if self.in_place():
            self.path.unlink(missing_ok=True)
        self.inode = 0
        self.socket.close()


def _same_user(connected: socket.socket) -> bool:
    """Whether the process at the other end is this user's, by the kernel's word."""
    try:
        if hasattr(socket, "SO_PEERCRED"):  # Linux, unix(7): pid, uid, gid
            _, user, _ = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        else:  # macOS and BSD, unix(4): LOCAL_PEERCRED gives struct xucred: version, uid, …
            _, user = struct.unpack("2I", connected.getsockopt(0, 1, 76)[:8])
    except OSError:
        return False
    return bool(user == os.getuid())


def path_of(place: Path) -> Path:
    """The socket of a place (a path without ending): it shows that something listens there, or did."""
    return place.with_name(place.name + ENDING)


def listen(place: Path) -> Listener:
    return Listener(path_of(place))


def connect(place: Path, timeout: float = MESSAGE_TIMEOUT) -> Channel | None:
    """A connection to what listens at a place; None where nothing does.

    Raises CacheError where what is there cannot be trusted, Lost where it does not take the connection in time.
    """
    path = path_of(place)
    try:
        return _connected(path, timeout)
    except PermissionError as error:
        raise CacheError(f"{path} is not yours: {error.strerror}", f"remove {path}, or use --no-worker") from error
    except TimeoutError as error:
        raise Lost("it takes no connection") from error
    except OSError:
        return None


def _connected(path: Path, timeout: float) -> Channel:
    if path.lstat().st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "the socket is another user's")
    end = time.monotonic() + timeout
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.settimeout(timeout)
    try:
        while (code := made.connect_ex(str(path))) == errno.EAGAIN and time.monotonic() < end:
            time.sleep(0.01)  # as many as may wait do so
        if code == errno.EAGAIN:
            raise TimeoutError(code, os.strerror(code))
        if code:
            raise OSError(code, os.strerror(code))
        if not _same_user(made):
            raise PermissionError(errno.EPERM, "the worker is another user's")
    except BaseException:
        made.close()
        raise
    return Channel(made)
