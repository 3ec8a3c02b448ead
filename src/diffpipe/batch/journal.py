"""The journal of a batch: what was made and what failed, beside the outputs, so that a run that stopped can be resumed.

JSON lines. One when a run begins: {"journal": 1, "pipeline": KEY, "seed": N}. One when an item starts: {"id", "item",
"status": "started", "seed", "paths"}. One when it ends, on disk (fsync) before the next item ends: {"id", "item",
"status": "done" or "failed", "seed", "files": [{"path", "size", "digest"}], "seconds", "warnings", "error"}.
`item` is the digest of pipeline, arguments and seed. Paths are relative to the journal's folder, with /; URLs are whole
but for credentials, and have a "tag" where their store has one of a file's content. An item's last line counts. A last
line that a crash cut short is dropped.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ..core.counter import CompactCounter
from ..core.errors import CacheError, UsageError
from ..storage import urls
from ..storage.disk import remove_leftovers, sha256

VERSION = 1
FIRST = b'{"journal": '  # how a journal begins


class Journal:
    """An open journal. Only the place of each item's last line is kept in memory: 16 bytes an item."""

    def __init__(self, path: Path, reader: IO[bytes], writer: IO[bytes]) -> None:
        self.path = path
        self.header: dict[str, Any] = {}
        self._reader, self._writer = reader, writer
        self._places = CompactCounter(large=True)  # id -> 1 + where its last line begins
        self._end = 0
        self._lock = threading.RLock()  # runs on many machines draw items in another thread than they end in
        self._read()

    def _read(self) -> None:
        for line in self._reader:
            if not self._end and line[: len(FIRST)] != FIRST[: len(line)]:
                raise UsageError(f"{self.path} is no journal", "choose another --journal; nothing in it was changed")
            if not line.endswith(b"\n"):
                break
            value = _parsed(line)
            if "journal" in value:
                self.header = value
            elif isinstance(value.get("id"), str):
                self._places[value["id"]] = self._end + 1
            self._end += len(line)
        self._writer.truncate(self._end)

    def begin(self, pipeline: str, seed: int) -> None:
        """Note that a run begins, of which pipeline (key), and the seed that the items' random ones derive from."""
        self.header = {"journal": VERSION, "pipeline": pipeline, "seed": seed}
        self._write(self.header)

    def last(self, item_id: str) -> dict[str, Any] | None:
        """An item's last line, None if it has none."""
        with self._lock:
            if not (place := self._places[item_id]):
                return None
            self._reader.seek(place - 1)
            value = _parsed(self._reader.readline())
        return value if value.get("id") == item_id else None

    def started(self, item_id: str, item: str, seed: int, paths: Sequence[str]) -> None:
        """Note which paths are an item's own. Not synced: what a crash of the machine loses is made again."""
        files = [self._relative(path) for path in paths]
        self._write({"id": item_id, "item": item, "status": "started", "seed": seed, "paths": files}, sync=False)

    def clear(self, item_id: str) -> None:
        """Remove what a crash left of an item that was started: temporary files in the place of its own."""
        line = self.last(item_id)
        if line and line["status"] == "started":
            for path in self.paths(line):
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
        stored: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Note a finished item with size and digest of its files; they and the line are on disk when this returns.

        `stored`: what is known of files at URLs (see `Artifact.stored`), which need not be read again then.
        """
        for path in paths:
            if not urls.is_url(path):
                _sync(Path(path))
        files = [{"path": self._relative(path), **((stored or {}).get(path) or _state_at(path))} for path in paths]
        line: dict[str, Any] = {"id": item_id, "item": item, "status": "done", "seed": seed, "files": files}
        self._write({**line, "seconds": round(seconds, 3), "warnings": list(warnings), "error": None})

    def failed(self, item_id: str, item: str, seed: int | None, error: str) -> None:
        """Note an item that failed; `item` is "" and the seed None where its line could not be read."""
        line: dict[str, Any] = {"id": item_id, "item": item, "status": "failed", "seed": seed, "files": []}
        self._write({**line, "seconds": 0.0, "warnings": [], "error": error})

    def paths(self, line: Mapping[str, Any]) -> list[str]:
        """The absolute paths, and URLs as shown, that an item's line names."""
        named = line.get("paths") or [file["path"] for file in line.get("files", ())]
        return [path if urls.is_url(path) else os.path.abspath(self.path.parent / path) for path in named]

    def intact(self, line: Mapping[str, Any], like: str = "") -> bool:
        """Whether every file of a finished item is there with the content it was written with.

        `like`: a URL with the credentials for those in the journal, which has none. What a store's tag tells need not
        be read. Raises DiffpipeError for a store that cannot be asked.
        """
        files = line.get("files", ())
        return bool(files) and all(self._is_as(file, like) for file in files)

    def _is_as(self, file: Mapping[str, Any], like: str) -> bool:
        path = str(file["path"])
        if not urls.is_url(path):
            return {"path": path, **_state(self.path.parent / path)} == file
        url = urls.with_credentials(path, like)
        noted = {name: file.get(name) for name in ("size", "digest")}
        return urls.unchanged(url, file) or (urls.exists(url) and _state_at(url) == noted)

    def _relative(self, path: str) -> str:
        if urls.is_url(path):
            return urls.shown(path)
        return Path(os.path.relpath(path, self.path.parent)).as_posix()

    def _write(self, value: Mapping[str, Any], *, sync: bool = True) -> None:
        line = json.dumps(value).encode() + b"\n"
        with self._lock:
            try:
                if self._writer.write(line) < len(line):
                    raise OSError("the disk is full")
                if sync:
                    os.fsync(self._writer.fileno())
            except OSError as error:
                self._writer.truncate(self._end)
                reason = error.strerror or str(error)
                raise CacheError(
                    f"cannot write {self.path}: {reason}", "make room, then go on with --resume"
                ) from error
            if "id" in value:
                self._places[value["id"]] = self._end + 1
            self._end += len(line)


@contextmanager
def opened(path: Path) -> Iterator[Journal]:
    """The journal at a path, made if it is not there, held against other runs.

    Raises UsageError while another run holds it and for a file that is no journal, CacheError if it cannot be written.
    """
    from filelock import FileLock, Timeout

    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(path.with_name(f".{path.name}.lock"), timeout=0))
            writer = stack.enter_context(path.open("ab", buffering=0))
            reader = stack.enter_context(path.open("rb"))
        except Timeout:
            raise UsageError(f"another run is writing {path}", "wait for it, or choose another --journal") from None
        except OSError as error:
            raise CacheError(f"cannot write {path}: {error.strerror}", "choose another --journal") from error
        yield Journal(path, reader, writer)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _sync(path: Path) -> None:
    """Put a file, or all files of a folder, on disk: a power cut must not leave an empty one that is noted as done."""
    for file in path.iterdir() if path.is_dir() else (path,):
        with suppress(OSError), file.open("r+b") as stream:
            os.fsync(stream.fileno())


def _state_at(path: str) -> dict[str, Any]:
    """The same of a path or URL, which is read for it."""
    if not urls.is_url(path):
        return _state(Path(path))
    if place := urls.on_disk(path):
        return _state(Path(place))
    return urls.state(path)


def _state(path: Path) -> dict[str, Any]:
    """Size and content digest of a file, or of all files of a folder of frames; {} if it cannot be read."""
    try:
        if not path.is_dir():
            return {"size": path.stat().st_size, "digest": sha256(path)}
        frames = sorted(path.iterdir())
        digests = "".join(f"{frame.name} {sha256(frame)}\n" for frame in frames).encode()
        size = sum(frame.stat().st_size for frame in frames)
        return {"size": size, "digest": "sha256:" + hashlib.sha256(digests).hexdigest()}
    except OSError:
        return {}
