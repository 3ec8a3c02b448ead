"""Opening what somebody named: files on a disk, and pipes where they are taken. No open waits, and no read is endless.

A device, a pipe without end, a socket or a file of the kernel's can stand at any path, or be put there between a look
at the path and its opening: so each is told by the open descriptor.
"""

from __future__ import annotations

import errno
import io
import os
import select
import stat
import time
from pathlib import Path
from typing import IO, Literal

NO_FILE = "a device, pipe or socket, not a file"
WRITER_TIMEOUT = 2.0  # seconds in which somebody must have opened a pipe to write: a shell starts both ends at once
# Not to wait in open() for the other end of a pipe, and not to be given a terminal. Windows has neither.
AT_ONCE = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)

# By O_PATH, which Linux has, also a folder is opened that may be written and not read.
HELD = getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_PATH", 0) | getattr(os, "O_CLOEXEC", 0)

CHUNK = 1 << 20  # bytes of a file that grows, at a time
LARGEST_INDEX = 1_000_000  # bytes of a model_index.json; they have a few hundred
LARGEST_TEXT = 500_000_000  # bytes of a text file of a model: the largest tokenizers and indexes have a tenth of it

Mode = Literal["rb", "ab", "wb", "r+b"]


class UnfitFile(OSError):
    """That what lies at a path is no file to be read or written; `strerror` says what it is."""


def unfit(words: str, path: str) -> UnfitFile:
    """The error for a path at which something else lies: "it is" and these words."""
    return UnfitFile(errno.EINVAL, f"it is {words}", path)


def open_regular(path: str | Path, mode: Mode = "rb", buffering: int = -1) -> IO[bytes]:
    """A file on a disk, opened without waiting.

    Raises OSError, whose strerror says it in words, for one that is no regular file.
    """
    return open(path, mode, buffering, opener=_regular)


def read_regular(path: str | Path, most: int) -> bytes:
    """The content of a file of at most `most` bytes. Raises OSError, also for one that is no regular file or larger."""
    with open_regular(path) as stream:
        data = read_most(stream, most + 1)
    if len(data) > most:
        raise unfit(f"larger than {most} bytes", str(path))
    return data


def read_most(stream: IO[bytes], most: int) -> bytes:
    """The first `most` bytes of an open file, in memory for what there is of it: `read(most)` asks for all at once."""
    data = stream.read(min(most, os.fstat(stream.fileno()).st_size))
    while len(data) < most and (more := stream.read(min(most - len(data), CHUNK))):  # what was added meanwhile
        data += more
    return data


def open_stream(path: str | Path, still: float | None = None) -> io.BufferedReader:
    """A file, or the read end of a pipe that somebody writes to: of a shell's <(...), or named.

    `still`: seconds in which a pipe's next byte must come; None to wait as long as somebody holds its other end.
    Raises OSError for all else, and for a pipe to which nobody comes to write within WRITER_TIMEOUT.
    """
    descriptor = _opened(str(path), os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
    try:
        piped = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
        if not piped:
            _check_regular(descriptor, os.O_RDONLY, str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return io.BufferedReader(_Pipe(descriptor, str(path), still) if piped else io.FileIO(descriptor))


def open_folder(path: str) -> int:
    """A descriptor of a folder, which keeps its number meanwhile. Raises OSError, also where none opens one."""
    return os.open(path, os.O_RDONLY | HELD)


def open_log(path: str | Path) -> io.TextIOWrapper:
    """A file, device, or pipe that somebody reads, to add text to, opened without waiting. Raises OSError."""
    return open(path, "a", encoding="utf-8", opener=_log)


def check_stream(stream: IO[bytes]) -> None:
    """Raises OSError for a standard input that nobody can mean: a folder, or a device that never ends."""
    try:
        status = os.fstat(stream.fileno())
    except io.UnsupportedOperation:  # one of another program's, that stands on no descriptor
        return
    if stat.S_ISDIR(status.st_mode):
        raise unfit("a folder", "")
    endless = stat.S_ISCHR(status.st_mode) and not os.isatty(stream.fileno())
    if (endless and status.st_rdev != os.stat(os.devnull).st_rdev) or stat.S_ISBLK(status.st_mode):
        raise unfit("a device", "")


def is_pipe(path: str | Path) -> bool:
    """Whether a pipe is at a path now; who opens it looks again."""
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def _log(path: str, flags: int) -> int:
    descriptor = _opened(path, flags)
    if AT_ONCE:
        os.set_blocking(descriptor, True)  # of a pipe that is read slowly, no line is to be lost
    return descriptor


def _regular(path: str, flags: int) -> int:
    descriptor = _opened(path, flags)
    try:
        _check_regular(descriptor, flags, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _opened(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | AT_ONCE, 0o666)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
    # A pipe that nobody reads, a socket, a device without a driver.
    raise unfit("a pipe that nobody reads" if is_pipe(path) and not flags & os.O_RDWR else NO_FILE, path)


def _check_regular(descriptor: int, flags: int, path: str) -> None:
    """Raises OSError for what is no file on a disk: those of the kernel call themselves regular and empty, and may wait
    or never end."""
    status = os.fstat(descriptor)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(status.st_mode):
        raise unfit(NO_FILE, path)
    reading = not flags & (os.O_WRONLY | os.O_RDWR)
    if reading and not status.st_size and _says_something(descriptor) and not os.fstat(descriptor).st_size:
        raise unfit("a file of the system's, not of a disk", path)


def _says_something(descriptor: int) -> bool:
    """Whether an empty file has content, or makes its readers wait for some."""
    if not hasattr(os, "pread"):  # Windows, which has no such files
        return False
    try:
        return os.pread(descriptor, 1, 0) != b""
    except OSError:
        return True


class _Pipe(io.RawIOBase):
    """The read end of a pipe, opened so that nothing waits but `readinto`, and that no longer than it may."""

    def __init__(self, descriptor: int, name: str, still: float | None) -> None:
        self._descriptor, self.name, self._still = descriptor, name, still
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        try:
            self._first = self._beginning()
        except BaseException:
            self.close()  # once: when this object goes, the number may be another file's
            raise

    def _beginning(self) -> bytes:
        """The first bytes. Raises OSError where nobody comes to write them."""
        end = time.monotonic() + WRITER_TIMEOUT
        while True:
            try:
                data = os.read(self._descriptor, 1)
            except BlockingIOError:  # somebody is there, and has said nothing yet
                return b""
            if data or self._poll.poll(0):  # or has gone already
                return data
            if time.monotonic() > end:
                raise unfit("a pipe to which nobody writes", self.name)
            time.sleep(0.01)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data, self._first = self._first, b""
        if not data:
            if not self._poll.poll(None if self._still is None else self._still * 1000):
                raise unfit(f"a pipe through which nothing came for {self._still:g} s", self.name)
            data = os.read(self._descriptor, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()
