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

import json
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..core.canonical import digest
from ..core.errors import CacheError, NotFoundError, UsageError
from ..core.source import Source, file_of
from ..storage.disk import DigestCache, identity, write_atomic, write_json

KEY = re.compile(r"[0-9a-f]{64}")
PREFIX = re.compile(r"[0-9a-f]{6,64}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
SHORT = 12  # hex digits of a key that are shown
IMPORTED = "imported:"  # how the place of a source within the cache begins (see blobs.py)
STALE = 3600.0  # seconds after which a temporary folder without a living lock is left over from a crash


@dataclass(frozen=True)
class Entry:
    """A cached pipeline: its key, folder and summary. The rest is read when it is asked for."""

    key: str
    folder: Path
    summary: Mapping[str, Any]

    def manifest(self) -> dict[str, Any]:
        """The manifest. Raises CacheError if it was cut short or edited."""
        value = intact(self.folder / "manifest.json")
        if value.get("key") != self.key:
            raise CacheError(f"the cache entry {self.key[:SHORT]} is damaged", self.mend())
        return value

    def sources(self) -> dict[str, Any]:
        """Where the sources lie on this machine and each file's identity at build time; {} if that is damaged."""
        value = intact(self.folder / "sources.json")
        root = self.folder.parent.parent / "sources"
        told = value.get("locations", {}).items()
        places = {role: str(root / at.removeprefix(IMPORTED)) for role, at in told if at.startswith(IMPORTED)}
        return {**value, "locations": {**value["locations"], **places}} if places else value

    def set_sources(self, value: Mapping[str, Any]) -> None:
        write_sealed(self.folder / "sources.json", _movable(value, self.folder.parent.parent))

    def faults(self) -> list[str]:
        """Which of the entry's own files were cut short or edited."""
        sound = {
            "manifest": intact(self.folder / "manifest.json").get("key") == self.key,
            "summary": intact(self.folder / "summary.json").get("key") == self.key,
            "record of sources": bool(self.sources()),
        }
        return [f"its {name} is damaged" for name, good in sound.items() if not good]

    def rebuild(self) -> str:
        """The command line that builds this entry again, as near as what is left of it tells."""
        words = self.sources().get("command")
        if words:
            return shlex.join([*words, "--force"])
        if self.summary:
            model = str(self.summary.get("model")).partition("@")[0]
            return f"diffpipe build {self.summary.get('provider')} --type {self.summary.get('type')} --model {model}"
        return f"diffpipe pipelines remove {self.key[:SHORT]}, then diffpipe build"

    def mend(self) -> str:
        """What to do about damage: the command that makes this entry, with what it does."""
        imported = self.sources().get("command", [])[1:3] == ["pipelines", "import"]
        return f"{'import' if imported else 'build'} it again: {self.rebuild()}"

    def last_used(self) -> float:
        """Seconds since the epoch; 0 when the entry is damaged."""
        try:
            return os.stat(os.path.join(self.folder, "summary.json")).st_mtime
        except OSError:
            return 0.0

    def touch(self) -> None:
        os.utime(self.folder / "summary.json")


def _movable(sources: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """A record of sources in which those within the cache are told by their place in it: a cache can be moved."""
    within = str(root / "sources") + os.sep
    told = sources["locations"].items()
    places = {role: IMPORTED + at.removeprefix(within) for role, at in told if at.startswith(within)}
    return {**sources, "locations": {**sources["locations"], **places}}


def home() -> Path:
    """The cache folder: DIFFPIPE_HOME, or the platform's user cache folder."""
    named = os.environ.get("DIFFPIPE_HOME")
    if named:
        return Path(named).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("diffpipe")


def _read(path: Path | str) -> dict[str, Any] | None:
    try:
        with open(path, "rb") as stream:
            value = json.loads(stream.read())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A value with its own digest, so that an edit shows."""
    return {**value, "digest": digest(value)}


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write what `intact` reads."""
    write_json(path, sealed(value))


def _write_all(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    for name, value in files.items():
        write_sealed(folder / name, value)


def intact(path: Path) -> dict[str, Any]:
    """What was written sealed, without the digest; {} if the file is missing, cut short or edited."""
    value = _read(path) or {}
    seal = value.pop("digest", None)
    return value if seal == digest(value) else {}


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
        summary = _read(os.path.join(folder, "summary.json"))
        if not summary or summary.get("key") != key:
            return None
        return Entry(key, Path(folder), {name: value for name, value in summary.items() if name != "digest"})

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

    def name_list(self) -> list[str]:
        """All names, without reading what they stand for."""
        return sorted(name for name in listdir(self.root / "names") if NAME.fullmatch(name))

    def _key_of(self, name: str) -> str | None:
        try:
            with open(os.path.join(self.root, "names", name), "rb") as stream:
                return stream.read().decode(errors="replace").strip()
        except OSError:
            return None

    def find(self, reference: str) -> Entry:
        """The entry of a name, a key, or a unique prefix of a key of at least 6 hex digits.

        Raises NotFoundError with near names, UsageError for an ambiguous prefix, CacheError for a damaged entry.
        """
        key = self.key(reference)
        entry = self.get(key)
        if entry is None:
            mend = Entry(key, self.root / "pipelines" / key, {}).mend()
            raise CacheError(f"the cache entry of {reference} is missing or damaged", mend)
        return entry

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
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder("locks") / f"{name}.lock", mode=0o600)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waiting()
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def publish(
        self, key: str, summary: Mapping[str, Any], manifest: Mapping[str, Any], sources: Mapping[str, Any]
    ) -> Entry:
        """Write an entry in a temporary folder and rename it into place.

        Over an older or damaged one, file by file: any mix of the two describes the same key, and no moment is without.
        """
        record = _movable(sources, self.root)
        files = {"manifest.json": manifest, "sources.json": record, "summary.json": {**summary, "key": key}}
        target = self.folder("pipelines") / key
        if target.exists():
            _write_all(target, files)
        else:
            temporary = Path(tempfile.mkdtemp(dir=self.folder("temporary"), prefix=key[:SHORT] + "-"))
            try:
                _write_all(temporary, files)
                os.replace(temporary, target)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        entry = self.get(key)
        assert entry is not None
        return entry

    def set_name(self, name: str, key: str) -> str | None:
        """Let a name stand for a key; the key it stood for before, if another.

        Raises UsageError for a name that is no plain file name or could be taken for a key.
        """
        check_name(name)
        before = self._key_of(name)
        if before != key:
            write_atomic(self.folder("names") / name, key.encode())
        return before if before not in (None, key) else None

    def rename(self, old: str, new: str) -> None:
        """Give a named pipeline another name. Raises NotFoundError, or UsageError if the new name is taken."""
        entry = self.find(old)
        check_name(new)
        if self._key_of(new) not in (None, entry.key):
            raise UsageError(f"the name {new} is taken", "remove it first, or choose another")
        self.set_name(new, entry.key)
        if old != new and self._key_of(old) == entry.key:
            self.drop_name(old)
            self._rename_in_command(entry, old, new)

    def _rename_in_command(self, entry: Entry, old: str, new: str) -> None:
        """Let the command that builds an entry again give it its new name."""
        sources = entry.sources()
        words = sources.get("command", [])
        for at, word in enumerate(words[:-1]):
            if word == "--name" and words[at + 1] == old:
                entry.set_sources({**sources, "command": [*words[: at + 1], new, *words[at + 2 :]]})

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
        (self.root / "names" / name).unlink(missing_ok=True)

    def bury(self, folder: Path) -> None:
        """Take a folder out of sight by one rename, then delete it: no reader sees half of it."""
        if folder.exists():
            grave = Path(tempfile.mkdtemp(dir=self.folder("temporary"), prefix="removed-"))
            os.replace(folder, grave / folder.name)
            shutil.rmtree(grave, ignore_errors=True)

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
        now = time.time()
        return [path for path in found if path.exists() and now - path.stat().st_mtime > STALE]

    def pins(self, request: str) -> dict[str, Any] | None:
        """What an identical earlier build request was pinned to (see build.py); None if there was none."""
        return _read(self.root / "pins" / request)

    def set_pins(self, request: str, value: Mapping[str, Any]) -> None:
        write_json(self.folder("pins") / request, value)


def check_name(name: str) -> None:
    """Raises UsageError unless a name is a plain file name that cannot be taken for a key."""
    if not NAME.fullmatch(name) or PREFIX.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a pipeline's name",
            "use letters, digits, dots, dashes and underscores, and not 6 or more hex digits alone",
        )


def listdir(path: Path) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def record_sources(sources: tuple[Source, ...], locations: Mapping[str, str], command: list[str]) -> dict[str, Any]:
    """What sources.json holds: where each source lies, each file's identity now, and how to build it again."""
    identities = {
        source.role: {path: identity(file_of(source, locations[source.role], path)) for path in source.files}
        for source in sources
    }
    return {"locations": dict(locations), "identities": identities, "command": command}
