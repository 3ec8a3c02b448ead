"""The cache on disk: key -> entry, name -> key. An entry is published by one rename: it is whole or not there.

pipelines/KEY/summary.json    what `pipelines list` prints (its mtime is the last use)
pipelines/KEY/manifest.json   everything `generate` needs, immutable, with its own digest
pipelines/KEY/sources.json    where the sources lie here, and the identity of each file
weights/KEY/                  quantized weights (see weights.py)
blobs/, sources/              source files that came in bundles (see blobs.py)
names/NAME                    a key
pins/, digests/, locks/, temporary/
"""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from ..core.canonical import JsonObject
from ..core.errors import CacheError, NotFoundError, UsageError
from ..core.manifest import Manifest
from ..core.parsing import Fields, Misfit, OtherVersion
from ..core.source import Role, Source
from ..storage.digests import DigestCache
from ..storage.disk import discard, raise_limit, reason, temporary_folder, user_path, write_atomic, write_json
from ..storage.opening import read_regular
from .entry import KEY, SHORT, Entry, manifest_in, mend_by, movable, sources_in, unreadable
from .records import SourcesRecord, Summary
from .sealed import read_json, write_all

PREFIX = re.compile(r"[0-9a-f]{6,64}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
LONGEST_KEY = 1000  # bytes of a file that holds a key, which has 64
STALE = 3600.0  # seconds after which a temporary folder without a living lock is left over from a crash


def home() -> Path:
    """The cache folder: DIFFPIPE_HOME, or the platform's user cache folder."""
    named = os.environ.get("DIFFPIPE_HOME")
    if named:
        return user_path(named).absolute()
    from platformdirs import user_cache_path

    return user_cache_path("diffpipe")


class Store:
    """The cache under one folder, private to the user."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or home()
        self.digests = DigestCache(self.root / "digests")

    def folder(self, name: str) -> Path:
        """A sub-folder, made with mode 0700 when it is missing.

        Raises CacheError if the cache cannot be written.
        """
        path = self.root / name
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise CacheError(
                f"the cache folder cannot be written: {error.strerror}", "set DIFFPIPE_HOME to a folder of yours"
            ) from error
        return path

    def get(self, key: str) -> Entry | None:
        """The entry of a full key, if its summary can be read."""
        if not KEY.fullmatch(key):
            return None
        # Plain strings here and in _key_of: Path's operators are half the time of listing ten thousand entries.
        folder = os.path.join(self.root, "pipelines", key)
        value = read_json(os.path.join(folder, "summary.json"))
        if not value or value.get("key") != key:
            return None
        try:
            return Entry(key, Path(folder), Summary.from_json(Fields(value)))
        except Misfit:
            return None

    def sound(self, key: str) -> Entry | None:
        """The entry of a full key, if none of its own files is damaged."""
        entry = self.get(key)
        return entry if entry and not entry.faults() else None

    def entries(self) -> Iterator[Entry]:
        """All entries whose summary can be read, in no order."""
        for key in self.keys():
            entry = self.get(key)
            if entry:
                yield entry

    def keys(self) -> list[str]:
        """The keys of all entries, whole or damaged."""
        return [name for name in listdir(self.root / "pipelines") if KEY.fullmatch(name)]

    def names(self) -> dict[str, str]:
        """name -> key, sorted by name."""
        return {name: key for name in self.name_list() if (key := self._key_of(name)) is not None}

    def of_another_version(self, key: str) -> OtherVersion | None:
        """How the entry of a key is one that another diffpipe wrote and this one cannot read; None where it is not."""
        try:
            manifest_in(self.root / "pipelines" / key)
        except OtherVersion as error:
            return error
        except Misfit:
            return None
        return None

    def name_list(self) -> list[str]:
        """All names, without reading what they stand for."""
        return sorted(name for name in listdir(self.root / "names") if NAME.fullmatch(name))

    def _key_of(self, name: str) -> str | None:
        """The key of a name: "" where what is there cannot be read, None where nothing is."""
        try:
            return read_regular(os.path.join(self.root, "names", name), LONGEST_KEY).decode(errors="replace").strip()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise_limit(error)
            return ""

    def find(self, reference: str) -> Entry:
        """The entry of a name, a key, or a unique prefix of a key of at least 6 hex digits.

        Raises NotFoundError with near names, UsageError for an ambiguous prefix, CacheError for a damaged entry.
        """
        key = self.key(reference)
        entry = self.get(key)
        if entry is None:
            if other := self.of_another_version(key):
                raise unreadable(key, other, self.mend(key))
            there = KEY.fullmatch(key) and os.path.lexists(self.root / "pipelines" / key)
            hint = self.mend(key) if there else f"diffpipe pipelines remove {reference}"
            raise CacheError(f"the cache entry of {reference} is missing or damaged", hint)
        return entry

    def mend(self, key: str) -> str:
        """What to do about a damaged entry, as near as what is left of it says."""
        if entry := self.get(key):
            return entry.mend()
        record = sources_in(self.root / "pipelines" / key)
        removal = f"diffpipe pipelines remove {key[:SHORT]}, then diffpipe build"
        return mend_by(record, shlex.join([*record.command, "--force"]) if record and record.command else removal)

    def key(self, reference: str) -> str:
        """The key that a name, a key or a unique prefix of one stands for, whatever state its entry is in.

        Raises NotFoundError with near names, UsageError for an ambiguous prefix.
        """
        key = self._key_of(reference) if NAME.fullmatch(reference) else None
        if key is None and PREFIX.fullmatch(reference):
            keys = [known for known in self.keys() if known.startswith(reference)]
            if len(keys) > 1:
                raise UsageError(f"{len(keys)} keys begin with {reference}", "give more digits, or a name")
            key = keys[0] if keys else None
        if key is None:
            near = get_close_matches(reference, self.name_list(), n=3)
            raise NotFoundError(
                f"there is no pipeline {reference!r}",
                f"did you mean {' or '.join(near)}?"
                if near
                else "diffpipe pipelines list shows what there is, diffpipe build makes more",
            )
        return key

    @contextmanager
    def lock(self, name: str, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold a lock between processes; `waiting` is called once if another process holds it."""
        with self.lock_if_free(name) as free:
            if free:
                yield
                return
        waiting()
        with self._locked(name, -1):
            yield

    @contextmanager
    def lock_if_free(self, name: str) -> Iterator[bool]:
        """Whether no other process holds a lock; it is held within the block where that is so."""
        with self._locked(name, 0) as held:
            yield held

    @contextmanager
    def _locked(self, name: str, timeout: float) -> Iterator[bool]:
        """Whether a lock was had within so many seconds (-1: however long it takes). Raises CacheError."""
        from filelock import FileLock, Timeout

        path = self.folder("locks") / f"{name}.lock"
        if os.path.lexists(path) and not (path.is_file() and not path.is_symlink()):
            self.bury(path)  # no process can hold what is no file
        lock = FileLock(path, mode=0o600)
        try:
            lock.acquire(timeout=timeout)
        except Timeout:
            yield False
            return
        except OSError as error:
            raise CacheError(f"cannot lock {path}: {reason(error)}", "mend its permissions, or remove it") from error
        try:
            yield True
        finally:
            lock.release()

    def drop_lock(self, name: str) -> None:
        """Remove a lock's file unless another process holds it.

        Removed while it is held here: who waits for it takes a new one (filelock sees a file without a name).
        """
        with self.lock_if_free(name) as free:
            if free:
                (self.root / "locks" / f"{name}.lock").unlink(missing_ok=True)

    def publish(self, summary: Summary, manifest: Manifest, sources: SourcesRecord) -> Entry:
        """Write an entry in a temporary folder and rename it into place.

        Over an older or damaged one, file by file: any mix of the two describes the same key, and no moment is without.
        """
        key, record = manifest.key, movable(sources, self.root)
        files = {
            "manifest.json": manifest.to_json(),
            "sources.json": record.to_json(),
            "summary.json": {**summary.to_json(), "key": key},
        }
        target = self.folder("pipelines") / key
        if target.is_symlink() or not target.is_dir():
            self.bury(target)  # nothing, or what damage or another program put there
        try:
            write_all(target, files)
        except FileNotFoundError:  # it is new, or was removed meanwhile
            with temporary_folder(target, within=self.folder("temporary")) as temporary:
                write_all(temporary, files)
                os.replace(temporary, target)
        return Entry(key, target, summary)

    def set_name(self, name: str, key: str) -> str | None:
        """Let a name stand for a key; the key it stood for before, if another.

        Raises UsageError for a name that is no plain file name or could be taken for a key.
        """
        check_name(name)
        before = self._key_of(name)
        if before != key:
            if before == "":
                self.drop_name(name)
            write_atomic(self.folder("names") / name, key.encode())
        return before if before not in (None, key) else None

    def rename(self, old: str, new: str) -> None:
        """Give a named pipeline another name. Raises NotFoundError, or UsageError if the new name is taken."""
        entry = self.find(old)
        check_name(new)
        if self._key_of(new) not in (None, entry.key):
            raise UsageError(f"the name {new} is taken", "remove it first, or choose another")
        if named := old != new and self._key_of(old) == entry.key:
            self._rename_in_command(entry, old, new)  # first, as it takes most room
        self.set_name(new, entry.key)
        if named:
            self.drop_name(old)

    def _rename_in_command(self, entry: Entry, old: str, new: str) -> None:
        """Let the command that builds an entry again give it its new name."""
        record = entry.sources()
        for at, word in enumerate(record.command[:-1]) if record else ():
            if record and word == "--name" and record.command[at + 1] == old:
                command = (*record.command[: at + 1], new, *record.command[at + 2 :])
                entry.set_sources(replace(record, command=command))

    def remove(self, reference: str) -> str:
        """Remove a name; the entry goes with its last name, or at once when a key is given. Returns the key."""
        key = self._key_of(reference) if NAME.fullmatch(reference) else None
        if key is not None:
            self.drop_name(reference)
            if key in self.names().values():
                return key
        else:
            key = self.key(reference)
        self.drop(key)
        return key

    def drop(self, key: str) -> None:
        """Remove an entry and every name that stands for it."""
        for name, known in self.names().items():
            if known == key:
                self.drop_name(name)
        if KEY.fullmatch(key):
            self.bury(self.root / "pipelines" / key)

    def drop_name(self, name: str) -> None:
        """Remove a name. Raises CacheError where that cannot be."""
        self.discard(self.root / "names" / name)

    def bury(self, path: Path) -> None:
        """Take a folder, or whatever is at its path, out of sight by one rename, then delete it: no reader sees half of
        it. Raises CacheError where that cannot be."""
        if os.path.lexists(path):
            with self._removing(path), temporary_folder(path, within=self.folder("temporary")) as grave:
                if path.is_dir() and not path.is_symlink():
                    os.chmod(path, 0o700)  # who may not write in a folder may not move it
                os.replace(path, grave / path.name)
                discard(grave / path.name)

    def discard(self, path: Path) -> None:
        """Remove what is at a path within the cache, if anything. Raises CacheError where that cannot be."""
        with self._removing(path):
            discard(path)

    @contextmanager
    def _removing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            return  # another process was faster
        except OSError as error:
            hint = f"remove it by hand: rm -rf {shlex.quote(str(path))}"
            raise CacheError(f"cannot remove {path}: {reason(error)}", hint) from error

    def leftovers(self) -> list[Path]:
        """What crashes left: temporary folders and files that no running build can own any more."""
        folders = [self.root / name for name in ("temporary", "names", "pins", "digests", "headers")]
        folders += [self.root / "pipelines" / key for key in self.keys()]
        found = [
            folder / name
            for folder in folders
            for name in listdir(folder)
            if folder.name == "temporary" or name.endswith(".tmp")
        ]
        old = [path for path in found if time.time() - latest(path) > STALE]
        return [path for path in old if path.parent.name != "temporary"] if old and self._busy() else old

    def _busy(self) -> bool:
        """Whether a build or an import runs: what it writes may lie untouched for longer than any left-over."""
        locks = (name.removesuffix(".lock") for name in listdir(self.root / "locks") if name.endswith(".lock"))
        return any(self._is_held(name) for name in locks)

    def _is_held(self, name: str) -> bool:
        with self.lock_if_free(name) as free:
            return not free

    def pins(self, request: str) -> dict[Role, Source]:
        """What an identical earlier build request was pinned to (see building/request.py).

        {} if there was none, or if what it built is not there any more.
        """
        value = read_json(self.root / "pins" / request)
        try:
            data = Fields(value)
            sources = [Source.from_json(one) for one in data.objects("sources")]
        except Misfit:  # of an older diffpipe, or damaged: pinned anew
            return {}
        return {source.role: source for source in sources} if self.sound(data.text("key", "")) else {}

    def unused_pins(self, keys: Collection[str]) -> list[str]:
        """The requests whose pins are for no entry of `keys`."""
        names = [
            name for name in listdir(self.root / "pins") if not name.endswith(".tmp")
        ]  # a build may be writing those
        return [name for name in names if (read_json(self.root / "pins" / name) or {}).get("key") not in keys]

    def set_pins(self, request: str, key: str, sources: Iterable[Source]) -> None:
        value: JsonObject = {"key": key, "sources": [source.to_json() for source in sources]}
        write_json(self.folder("pins") / request, value)


def check_name(name: str) -> None:
    """Raises UsageError unless a name is a plain file name that cannot be taken for a key."""
    if not NAME.fullmatch(name) or PREFIX.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a pipeline's name",
            "use letters, digits, dots, dashes and underscores, and not 6 or more hex digits alone",
        )


def latest(path: Path) -> float:
    """When something was last written at a path, or in the folder there, in seconds since the epoch; now, where that
    cannot be told."""
    try:
        inside = [entry.stat(follow_symlinks=False) for entry in os.scandir(path)] if path.is_dir() else []
        return max(one.st_mtime for one in (os.lstat(path), *inside))
    except OSError:
        return time.time()


def listdir(path: Path) -> list[str]:
    try:
        return os.listdir(path)
    except OSError as error:
        raise_limit(error)
        return []
