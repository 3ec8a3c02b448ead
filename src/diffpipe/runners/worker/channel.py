"""Messages between two processes of one user: a length in 4 bytes, then JSON. Never pickle, never a network.

Unix sockets where the system has them, named pipes (FIFOs) where it does not or the socket's path would be too long,
and Windows' named pipes there. All lie in, or are named after, a folder that is private to the user.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import select
import socket
import stat
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ...core.errors import CacheError

LARGEST = 16 << 20  # bytes of a message: a request is some kB, a piece of a file PIECE
PIECE = 1 << 20  # bytes of a file that go into one message
PATIENCE = 10.0  # seconds in which the rest of a begun message must come, or be taken
LONGEST_PATH = 100  # bytes of a Unix socket's path (sockaddr_un: 108 on Linux, 104 on macOS and BSD)
BACKLOG = 64
DOOR_LINE = 40  # bytes of a client's line in the door of FIFOs: whole or not at all (PIPE_BUF is 512 at least)
Message = dict[str, Any]


class Lost(Exception):
    """The other side is gone, or what it sends is no message."""


class Channel(Protocol):
    """A connection. `send` may be called by several threads, `receive` by one at a time."""

    def send(self, message: Mapping[str, Any]) -> None:
        """Raises Lost when the other side is gone or takes nothing, ValueError for a message that is too large."""

    def receive(self, timeout: float | None) -> Message | None:
        """The next message; None where none begins within so many seconds. Raises Lost."""

    def close(self) -> None: ...


class Listener(Protocol):
    """Where connections come in."""

    def accept(self, timeout: float) -> Channel | None:
        """The next connection of this user's; None where there is none within so many seconds. Raises OSError where
        none can come any more, or none be taken."""

    def in_place(self) -> bool:
        """Whether clients can still find it."""

    def close(self) -> None: ...


# The folder


def folder() -> Path:
    """The folder that sockets lie in, made where it is missing.

    Raises CacheError where it is another's, or open to others: what lies there cannot be trusted then.
    """
    own = os.environ.get("XDG_RUNTIME_DIR") or ""
    usable = os.path.isabs(own) and os.path.isdir(own)
    base = Path(own) / "diffpipe" if usable else Path(tempfile.gettempdir(), f"diffpipe-{_user()}").absolute()
    try:
        base.mkdir(mode=0o700, exist_ok=True)
        found = os.lstat(base)
    except OSError as error:
        raise CacheError(
            f"the folder of workers cannot be made: {error.strerror}", "set XDG_RUNTIME_DIR to a folder of yours"
        ) from error
    if hasattr(os, "getuid"):
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            hint = "remove it, or set XDG_RUNTIME_DIR to a folder of yours"
            raise CacheError(f"the folder of workers, {base}, belongs to another user", hint)
        if found.st_mode & 0o077:
            raise CacheError(f"the folder of workers, {base}, is open to other users", f"chmod 700 {base}")
    return base


def _user() -> str:
    if hasattr(os, "getuid"):
        return str(os.getuid())
    import getpass

    return hashlib.sha256(getpass.getuser().encode()).hexdigest()[:8]


# One frame


def _packed(message: Mapping[str, Any]) -> bytes:
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > LARGEST:
        raise ValueError(f"a message of {len(data)} bytes, the limit is {LARGEST}")
    return struct.pack(">I", len(data)) + data


def _unpacked(data: bytes) -> Message:
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Lost("not a message") from error
    if not isinstance(message, dict):
        raise Lost("not a message")
    return message


# Unix sockets and FIFOs: file descriptors that are read and written alike


class Stream:
    """A channel over two file descriptors (the same one twice for a socket), which it closes."""

    def __init__(self, source: int, target: int) -> None:
        self.source, self.target = source, target
        for descriptor in {source, target}:
            os.set_blocking(descriptor, False)
        self._lock = threading.Lock()
        self._receiving = self._closed = False

    def send(self, message: Mapping[str, Any]) -> None:
        data = memoryview(_packed(message))
        with self._lock:
            end = time.monotonic() + PATIENCE
            while data:
                if self._closed:
                    raise Lost("closed")
                try:
                    data = data[os.write(self.target, data) :]
                    end = time.monotonic() + PATIENCE
                except BlockingIOError:
                    if not _ready(self.target, select.POLLOUT, end - time.monotonic()):
                        raise Lost("the other side takes nothing") from None
                except OSError as error:
                    raise Lost(str(error)) from error

    def receive(self, timeout: float | None) -> Message | None:
        with self._lock:
            if self._closed:
                raise Lost("closed")
            self._receiving = True
        try:
            if not _ready(self.source, select.POLLIN, timeout):
                return None
            end = time.monotonic() + PATIENCE
            (length,) = struct.unpack(">I", self._exactly(4, end))
            if length > LARGEST:
                raise Lost("a message that is too large")
            return _unpacked(self._exactly(length, end))
        finally:
            with self._lock:
                self._receiving = False
                if self._closed:
                    self._release()

    def _exactly(self, count: int, end: float) -> bytes:
        found = bytearray()
        while len(found) < count:
            try:
                piece = os.read(self.source, min(count - len(found), PIECE))
            except BlockingIOError:
                if not _ready(self.source, select.POLLIN, end - time.monotonic()):
                    raise Lost("half a message") from None
                continue
            except OSError as error:
                raise Lost(str(error)) from error
            if not piece:
                raise Lost("closed")
            found += piece
        return bytes(found)

    def close(self) -> None:
        """Use it no more. While another thread receives, that one gives the descriptors back, at its time-out."""
        with self._lock:
            if not self._closed:
                self._closed = True
                if not self._receiving:
                    self._release()

    def _release(self) -> None:
        for descriptor in {self.source, self.target}:
            os.close(descriptor)


def _ready(descriptor: int, event: int, timeout: float | None) -> bool:
    """Whether a descriptor can be read or written, or has ended, within so many seconds."""
    poller = select.poll()
    try:
        poller.register(descriptor, event)
    except (OSError, ValueError) as error:
        raise Lost("closed") from error
    return bool(poller.poll(None if timeout is None else max(0, timeout) * 1000))


class _Sockets:
    """Listens at a Unix socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with suppress(FileNotFoundError):
            path.unlink()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.bind(str(path))
        path.chmod(0o600)
        self.socket.listen(BACKLOG)
        self.inode = path.stat().st_ino

    def accept(self, timeout: float) -> Channel | None:
        self.socket.settimeout(timeout)
        try:
            made, _ = self.socket.accept()
        except TimeoutError:
            return None
        if not _same_user(made):
            made.close()
            return None
        return _over(made)

    def in_place(self) -> bool:
        return _is(self.path, self.inode)

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


def _to_socket(path: Path, timeout: float) -> Channel:
    if path.lstat().st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "the socket is another user's")
    end = time.monotonic() + timeout
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connected.settimeout(timeout)
    try:
        while (code := connected.connect_ex(str(path))) == errno.EAGAIN and time.monotonic() < end:
            time.sleep(0.01)  # as many as may wait do so
        if code == errno.EAGAIN:
            raise TimeoutError(code, os.strerror(code))
        if code:
            raise OSError(code, os.strerror(code))
        if not _same_user(connected):
            raise PermissionError(errno.EPERM, "the worker is another user's")
    except BaseException:
        connected.close()
        raise
    return _over(connected)


def _is(path: Path, inode: int) -> bool:
    try:
        return path.stat().st_ino == inode
    except OSError:
        return False


def _over(connected: socket.socket) -> Stream:
    descriptor = connected.detach()
    return Stream(descriptor, descriptor)


class _Fifos:
    """Listens at a FIFO, the door: a client makes two of its own and writes their name into it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with suppress(FileNotFoundError):
            path.unlink()
        os.mkfifo(path, 0o600)
        self.door = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # held open for writing too: it never ends
        self.inode = path.stat().st_ino
        self.names: list[str] = []
        self.rest = b""

    def accept(self, timeout: float) -> Channel | None:
        if not self.names and _ready(self.door, select.POLLIN, timeout):
            *lines, rest = (self.rest + os.read(self.door, DOOR_LINE * BACKLOG)).split(b"\n")
            self.names, self.rest = [line.decode("ascii", "replace") for line in lines], rest[-DOOR_LINE:]
        while self.names:
            name = self.names.pop(0)
            if len(name) == DOOR_LINE - 1 and name.isalnum():
                with suppress(OSError):  # that client has left
                    return self._entered(self.path.with_name(name))
        return None

    def _entered(self, stem: Path) -> Channel:
        """The channel over a client's FIFOs. The client removes their names once it finds the second one opened."""
        target = _own_fifo(stem.with_suffix(".out"), os.O_WRONLY)
        try:
            return Stream(_own_fifo(stem.with_suffix(".in"), os.O_RDONLY), target)
        except OSError:
            os.close(target)
            raise

    def in_place(self) -> bool:
        return _is(self.path, self.inode)

    def close(self) -> None:
        if self.in_place():
            self.path.unlink(missing_ok=True)
        if self.inode:
            self.inode = 0
            os.close(self.door)


def _own_fifo(path: Path, mode: int) -> int:
    """A FIFO of this user's, opened without waiting. Raises OSError for anything else."""
    descriptor = os.open(path, mode | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    found = os.fstat(descriptor)
    if not stat.S_ISFIFO(found.st_mode) or found.st_uid != os.getuid():
        os.close(descriptor)
        raise PermissionError(errno.EPERM, "no pipe of this user's")
    return descriptor


def _to_fifo(path: Path, timeout: float) -> Channel:
    door = _own_fifo(path, os.O_WRONLY)  # ENXIO where nobody listens
    name = secrets.token_hex(DOOR_LINE)[: DOOR_LINE - 1]
    stem = path.with_name(name)
    to_worker, to_client = stem.with_suffix(".in"), stem.with_suffix(".out")
    source = -1
    try:
        for made in (to_worker, to_client):
            os.mkfifo(made, 0o600)
        source = _own_fifo(to_client, os.O_RDONLY)
        os.write(door, f"{name}\n".encode())
        target = _entered_by_worker(to_worker, time.monotonic() + timeout)
        return Stream(source, target)
    except BaseException:
        if source >= 0:
            os.close(source)
        raise
    finally:
        os.close(door)
        for made in (to_worker, to_client):
            made.unlink(missing_ok=True)


def _entered_by_worker(path: Path, end: float) -> int:
    while True:
        try:
            return _own_fifo(path, os.O_WRONLY)
        except OSError as error:
            if error.errno != errno.ENXIO or time.monotonic() > end:
                raise TimeoutError("the worker does not answer") from error
            time.sleep(0.005)


# Windows


class _Pipe:
    """A channel over a named pipe of Windows."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._sending = threading.Lock()

    def send(self, message: Mapping[str, Any]) -> None:
        data = _packed(message)
        with self._sending:
            try:
                self.connection.send_bytes(data[4:])
            except (OSError, ValueError) as error:
                raise Lost(str(error)) from error

    def receive(self, timeout: float | None) -> Message | None:
        try:
            if not self.connection.poll(timeout):
                return None
            return _unpacked(self.connection.recv_bytes(LARGEST))
        except (EOFError, OSError) as error:
            raise Lost(str(error)) from error

    def close(self) -> None:
        self.connection.close()


def _secret(path: Path) -> bytes:
    """What both sides must know: in a file of the user's own folder, as pipes have no owner that Python tells."""
    file = path.with_suffix(".secret")
    with suppress(FileExistsError), open(file, "xb") as stream:
        stream.write(secrets.token_bytes(32))
    return file.read_bytes()


def _pipe_name(path: Path) -> str:
    return rf"\\.\pipe\diffpipe-{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}"


class _Pipes:
    """Listens at a named pipe of Windows, which goes with the process."""

    def __init__(self, path: Path) -> None:
        from multiprocessing import connection

        self.path = path
        self.listener = connection.Listener(_pipe_name(path), "AF_PIPE", authkey=_secret(path))
        path.with_suffix(".pipe").touch()

    def accept(self, timeout: float) -> Channel | None:
        from multiprocessing import AuthenticationError

        try:
            return _Pipe(self.listener.accept())
        except (OSError, EOFError, AuthenticationError):
            return None

    def in_place(self) -> bool:
        return True

    def close(self) -> None:
        self.path.with_suffix(".pipe").unlink(missing_ok=True)
        self.listener.close()


def _to_pipe(path: Path, _timeout: float) -> Channel:
    from multiprocessing import AuthenticationError, connection

    try:
        return _Pipe(connection.Client(_pipe_name(path), "AF_PIPE", authkey=_secret(path)))
    except AuthenticationError as error:
        raise PermissionError(errno.EPERM, str(error)) from error


# Which of them


class Kind(NamedTuple):
    """A way to connect: the ending of what marks the place, how to listen there, and how to get there."""

    ending: str
    listen: Callable[[Path], Listener]
    to: Callable[[Path, float], Channel]


SOCKETS = Kind(".sock", _Sockets, _to_socket)
FIFOS = Kind(".fifo", _Fifos, _to_fifo)
PIPES = Kind(".pipe", _Pipes, _to_pipe)


def kind_of(place: Path) -> Kind:
    """The way to connect at a place (a path without ending) on this system."""
    if sys.platform == "win32":
        return PIPES
    fits = len(os.fsencode(place)) + len(SOCKETS.ending) <= LONGEST_PATH
    return SOCKETS if hasattr(socket, "AF_UNIX") and fits else FIFOS


def path_of(place: Path) -> Path:
    """The file that shows that something listens at a place, or did."""
    return place.with_name(place.name + kind_of(place).ending)


def listen(place: Path) -> Listener:
    return kind_of(place).listen(path_of(place))


def connect(place: Path, timeout: float = PATIENCE) -> Channel | None:
    """A connection to what listens at a place; None where nothing does.

    Raises CacheError where what is there cannot be trusted, Lost where it does not take the connection in time.
    """
    try:
        return kind_of(place).to(path_of(place), timeout)
    except PermissionError as error:
        path = path_of(place)
        raise CacheError(f"{path} is not yours: {error.strerror}", f"remove {path}, or use --no-worker") from error
    except TimeoutError as error:
        raise Lost("it takes no connection") from error
    except OSError:
        return None
