"""The journal of a batch: what was made and what failed, beside the outputs, so that a run that stopped can be resumed.

JSON lines (see `journal_lines`): one when a run begins, one when an item starts, one when it ends, on disk (fsync)
before the next item ends. An item's last line counts. A last line that a crash cut short is dropped.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

from ..core.counter import CompactCounter
from ..core.errors import CacheError, UsageError
from ..core.parsing import Misfit
from ..storage import presence, urls
from ..storage.digests import sha256
from ..storage.disk import remove_leftovers, unwritable
from ..storage.opening import open_regular
from .journal_lines import LONGEST_LINE, Header, NotedFile, Record, header_of, line_of, object_of, record_of

FIRST = b'{"journal": '  # how a journal begins


class Journal:
    """An open journal, which is not written where it has no `writer`.

    Only the place of each item's last line is kept in memory: 16 bytes an item.
    """

    def __init__(self, path: Path, reader: IO[bytes], writer: IO[bytes] | None = None) -> None:
        self.path = path
        self.header: Header | None = None
        self._reader, self._writer = reader, writer
        self._places = CompactCounter(large=True)  # id -> 1 + where its last line begins
        self._end = 0
        self._lock = threading.RLock()  # runs on many machines draw items in another thread than they end in
        for line in self._whole_lines():
            self._index(line)
        if writer:
            writer.truncate(self._end)

    # Reading

    def _whole_lines(self) -> Iterator[bytes]:
        """The lines that no crash cut short. Raises UsageError for a file that is no journal."""
        while line := self._reader.readline(LONGEST_LINE):
            if not self._end and line[: len(FIRST)] != FIRST[: len(line)]:
                raise UsageError(f"{self.path} is no journal", "choose another --journal; nothing in it was changed")
            if line.endswith(b"\n"):
                yield line
            elif len(line) == LONGEST_LINE:
                raise self._damaged(f"it has a line of more than {LONGEST_LINE} bytes")

    def _index(self, line: bytes) -> None:
        """Note where an item's line is, or what a run says of itself; lines that are damaged are passed over."""
        value = object_of(line)
        if "journal" in value:
            try:
                self.header = header_of(value)
            except Misfit as error:
                raise self._damaged(str(error)) from error
        elif isinstance(item_id := value.get("id"), str):
            self._places[item_id] = self._end + 1
        self._end += len(line)

    def _damaged(self, how: str) -> CacheError:
        return CacheError(f"{self.path} is damaged: {how}", "choose another --journal")

    def last(self, item_id: str) -> Record | None:
        """An item's last line, None if it has none. Raises CacheError for one that says what no diffpipe wrote."""
        with self._lock:
            if not (place := self._places[item_id]):
                return None
            self._reader.seek(place - 1)
            value = object_of(self._reader.readline(LONGEST_LINE))
        if value.get("id") != item_id:  # two ids may share a digest
            return None
        try:
            return record_of(value)
        except Misfit as error:
            problem = f"what {self.path} says of {item_id} is damaged: {error}"
            raise CacheError(problem, "remove that line, or choose another --journal") from error

    def paths(self, record: Record) -> list[str]:
        """The absolute paths, and URLs as shown, that an item's line names."""
        named = record.paths or [file.path for file in record.files]
        return [path if urls.is_url(path) else os.path.abspath(self.path.parent / path) for path in named]

    def intact(self, record: Record, like: str = "") -> bool:
        """Whether every file of a finished item is there with the content it was written with.

        `like`: a URL with the credentials for those in the journal, which has none. What a store's tag tells need not
        be read. Raises DiffpipeError for a store that cannot be asked.
        """
        return bool(record.files) and all(self._is_as(file, like) for file in record.files)

    def _is_as(self, file: NotedFile, like: str) -> bool:
        if not urls.is_url(file.path):
            place = self.path.parent / file.path
            if _size(place) != file.size:  # of another size it is not read: a journal can name any file
                return False
            now = _noted(file.path, place)
        elif not urls.same_store(file.path, like):  # a journal does not decide who is asked
            return False
        else:
            url = urls.with_credentials(file.path, like)
            if presence.unchanged(url, file.stamp()):
                return True
            if not presence.exists(url):
                return False
            now = _noted_at(file.path, url)
        return file.digest is not None and now == replace(file, tag=None)

    # Writing

    def begin(self, pipeline: str, seed: int) -> None:
        """Note that a run begins, of which pipeline (key), and the seed that the items' random ones derive from."""
        self.header = Header(pipeline, seed)
        self._write(self.header)

    def started(self, item_id: str, item: str, seed: int, paths: Sequence[str]) -> None:
        """Note which paths are an item's own. Not synced: what a crash of the machine loses is made again."""
        own = tuple(self._relative(path) for path in paths)
        self._write(Record(item_id, item, "started", seed, own), sync=False)

    def clear(self, item_id: str) -> None:
        """Remove what a crash left of an item that was started: temporary files in the place of its own."""
        record = self.last(item_id)
        if record and record.state == "started":
            for path in self.paths(record):
                if place := urls.on_disk(path) if urls.is_url(path) else path:
                    remove_leftovers(Path(place))

    def done(
        self,
        item_id: str,
        item: str,
        seed: int,
        paths: Sequence[str],
        seconds: float,
        warnings: Sequence[str] = (),
        stored: Mapping[str, Mapping[str, object]] | None = None,
    ) -> None:
        """Note a finished item with size and digest of its files; they and the line are on disk when this returns.

        `stored`: what is known of files at URLs (see `Artifact.stored`), which need not be read again then.
        """
        for path in paths:
            if not urls.is_url(path):
                _sync(Path(path))
        files = tuple(self._note(path, (stored or {}).get(path)) for path in paths)
        self._write(Record(item_id, item, "done", seed, (), files, seconds, tuple(warnings)))

    def _note(self, path: str, known: Mapping[str, object] | None) -> NotedFile:
        name = self._relative(path)
        noted = _of_store(name, known) if known else _noted_at(name, path)
        if noted.digest is None and not urls.is_url(path):
            raise CacheError(f"{path} cannot be read back", "it was removed, maybe: make it again with --resume")
        return noted

    def failed(self, item_id: str, item: str, seed: int | None, error: str) -> None:
        """Note an item that failed; `item` is "" and the seed None where its line could not be read."""
        self._write(Record(item_id, item, "failed", seed, error=error))

    def refused(self, item_id: str, error: str) -> None:
        """Note an item that cannot be made, once. What was made or begun stays known: this takes nothing back."""
        try:
            before = self.last(item_id)
        except CacheError:
            return
        if before is None or (before.state == "failed" and before.error != error):
            self.failed(item_id, "", None, error)

    def _relative(self, path: str) -> str:
        if urls.is_url(path):
            return urls.shown(path)
        return Path(os.path.relpath(path, self.path.parent)).as_posix()

    def check_there(self) -> None:
        """Raises CacheError where the file that is written is not the one at the path any more: removed, or renamed."""
        assert self._writer
        with suppress(OSError):
            if os.path.samestat(os.stat(self.path), os.fstat(self._writer.fileno())):
                return
        raise CacheError(
            f"the journal {self.path} was removed or renamed while the run wrote it",
            "see what became of its folder; a run with the old journal goes on with --resume",
        )

    def _write(self, value: Header | Record, *, sync: bool = True) -> None:
        assert self._writer  # what is opened to be read is not written
        line = line_of(value)
        with self._lock:
            try:
                self.check_there()
                if self._writer.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if sync:
                    os.fsync(self._writer.fileno())
            except OSError as error:
                with suppress(OSError):
                    self._writer.truncate(self._end)
                told = unwritable(str(self.path), error, "check its disk")
                raise CacheError(told.message, f"{told.hint}, then go on with --resume") from error
            if isinstance(value, Record):
                self._places[value.id] = self._end + 1
            self._end += len(line)


@contextmanager
def opened(path: Path) -> Iterator[Journal]:
    """The journal at a path, made if it is not there, held against other runs.

    Raises UsageError while another run holds it and for a file that is no journal, CacheError for one that is damaged,
    or that cannot be written.
    """
    from filelock import FileLock, Timeout

    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                open_regular(path).close()  # what is no file is refused before a lock is left beside it
            stack.enter_context(FileLock(path.with_name(f".{path.name}.lock"), timeout=0))
            writer = stack.enter_context(open_regular(path, "ab", 0))
            reader = stack.enter_context(open_regular(path))
        except Timeout:
            raise UsageError(f"another run is writing {path}", "wait for it, or choose another --journal") from None
        except OSError as error:
            raise unwritable(str(path), error, "choose another --journal") from error
        yield Journal(path, reader, writer)


@contextmanager
def opened_to_read(path: Path) -> Iterator[Journal]:
    """The journal at a path as it is, though another run writes it: no file is changed, and none made.

    Raises UsageError for a file that is no journal, CacheError for one that is damaged or cannot be read.
    """
    with ExitStack() as stack:
        try:
            reader = stack.enter_context(open_regular(path))
        except OSError as error:
            raise CacheError(f"cannot read {path}: {error.strerror}", "choose another --journal") from error
        yield Journal(path, reader)


def _sync(path: Path) -> None:
    """Put a file, or all files of a folder, on disk: a power cut must not leave an empty one that is noted as done."""
    for file in path.iterdir() if path.is_dir() else (path,):
        with suppress(OSError), open_regular(file, "r+b") as stream:
            os.fsync(stream.fileno())


def _noted_at(name: str, path: str) -> NotedFile:
    """A path or URL, which is read, as it is noted under a name. Raises DiffpipeError for a URL that cannot be read."""
    if not urls.is_url(path):
        return _noted(name, Path(path))
    if place := urls.on_disk(path):
        return _noted(name, Path(place))
    return _of_store(name, presence.state(path))


def _of_store(name: str, state: Mapping[str, object]) -> NotedFile:
    size, digest, tag = (state.get(key) for key in ("size", "digest", "tag"))
    return NotedFile(
        name,
        size if isinstance(size, int) else None,
        digest if isinstance(digest, str) else None,
        tag if isinstance(tag, str) else None,
    )


def _size(path: Path) -> int | None:
    """Bytes of a file, or of all files of a folder of frames; None for what is neither."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        found = [file.stat() for file in files]
    except OSError:
        return None
    return sum(one.st_size for one in found) if all(stat.S_ISREG(one.st_mode) for one in found) else None


def _noted(name: str, path: Path) -> NotedFile:
    """Size and content digest of a file, or of all files of a folder of frames; neither if it cannot be read."""
    try:
        if not path.is_dir():
            return NotedFile(name, path.stat().st_size, sha256(path))
        frames = sorted(path.iterdir())
        digests = "".join(f"{frame.name} {sha256(frame)}\n" for frame in frames).encode()
        size = sum(frame.stat().st_size for frame in frames)
        return NotedFile(name, size, "sha256:" + hashlib.sha256(digests).hexdigest())
    except OSError:
        return NotedFile(name)
