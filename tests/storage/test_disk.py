"""Files on this machine's disks: whole or not at all, digests that are trusted only while they must hold, and words."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from diffpipe.cli import output
from diffpipe.core.errors import CacheError, Exit, UsageError
from diffpipe.core.source import FileInfo
from diffpipe.storage import digests, disk
from diffpipe.storage.digests import SETTLED, DigestCache

LARGER = "raise how large a process may make a file (ulimit -f), or use a disk that takes larger ones"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Whole or not at all


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with disk.replacing(path) as stream:
        stream.write(b"new")
        assert path.read_bytes() == b"old"
    assert (path.read_bytes(), names(tmp_path)) == (b"new", ["x"])


@pytest.mark.parametrize("stop", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_file_that_is_not_finished_leaves_nothing(tmp_path: Path, stop: BaseException) -> None:
    (tmp_path / "x").write_bytes(b"old")

    def write() -> None:
        with disk.replacing(tmp_path / "x") as stream:
            stream.write(b"half")
            raise stop

    with pytest.raises(type(stop)):
        write()
    assert ((tmp_path / "x").read_bytes(), names(tmp_path)) == (b"old", ["x"])


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_who_may_read_a_file(tmp_path: Path, mask: int) -> None:
    os.umask(mask)
    with disk.replacing(tmp_path / "shared", shared=True), disk.replacing(tmp_path / "own"):
        pass
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("shared", "own")}
    assert modes == {"shared": 0o666 & ~mask, "own": 0o600}
    assert disk.umask() == mask


def test_a_temporary_file_may_lie_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "there").mkdir()
    with disk.replacing(tmp_path / "there" / "x", within=tmp_path / "work"):
        assert (len(names(tmp_path / "work")), names(tmp_path / "there")) == (1, [])
    assert (names(tmp_path / "work"), names(tmp_path / "there")) == ([], ["x"])


def test_a_folder_goes_unless_it_was_named(tmp_path: Path) -> None:
    with disk.temporary_folder(tmp_path / "x") as folder:
        (folder / "file").touch()
        os.replace(folder, tmp_path / "x")
    with disk.temporary_folder(tmp_path / "y") as folder:
        (folder / "file").touch()
    assert (names(tmp_path), names(tmp_path / "x")) == (["x"], ["file"])


def no_links(source: object, target: object) -> None:
    raise OSError(errno.EPERM, "no hard links here")


@pytest.mark.parametrize("links", [True, False])
def test_a_name_that_is_taken_is_not_given_again(tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    for text, overwrite, expected in (("one", False, "one"), ("two", False, "one"), ("three", True, "three")):
        with disk.temporary_file(tmp_path / "x") as temporary:
            temporary.write_text(text)
            try:
                disk.give_name(temporary, tmp_path / "x", overwrite=overwrite)
            except FileExistsError:
                assert text == "two"
        assert ((tmp_path / "x").read_text(), names(tmp_path)) == (expected, ["x"])


def test_leftovers_are_those_of_one_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        left = tmp_path / f"{disk.mark(Path(name))}123.tmp"
        left.touch()
        os.utime(left, (1, 1))
    (tmp_path / f"{disk.mark(Path('a'))}new.tmp").mkdir()
    disk.remove_leftovers(tmp_path / "a", age=3600)
    assert len(names(tmp_path)) == 2
    disk.remove_leftovers(tmp_path / "a")
    assert names(tmp_path) == [f"{disk.mark(Path('b'))}123.tmp"]


def test_nothing_is_removed_by_a_clock_that_went_back(tmp_path: Path) -> None:
    left = tmp_path / f"{disk.mark(Path('a'))}1.tmp"
    left.touch()
    os.utime(left, (2**40, 2**40))
    disk.remove_leftovers(tmp_path / "a", age=3600)
    assert left.exists()
    assert output.ago(2.0**40) == "just now"


# Digests


DIGEST = "sha256:" + hashlib.sha256(b"content").hexdigest()


def cache(folder: Path, after: float, file: Path) -> DigestCache:
    """A cache that looks at its clock so many seconds after a file's last change."""
    changed = max(file.stat().st_mtime_ns, file.stat().st_ctime_ns) / 1e9
    return DigestCache(folder / "digests", lambda: changed + after)


@pytest.mark.parametrize(
    ("after", "kept"), [(-3600.0, False), (0.0, False), (SETTLED - 0.1, False), (SETTLED + 0.1, True), (3600.0, True)]
)
def test_a_digest_is_kept_once_its_file_has_settled(tmp_path: Path, after: float, kept: bool) -> None:
    """Else the file may change again within one tick of its times, and look the same."""
    file = tmp_path / "x"
    file.write_bytes(b"content")
    own = cache(tmp_path, after, file)
    assert own.get(file) == FileInfo(7, DIGEST)
    assert own.known(file) == (FileInfo(7, DIGEST) if kept else None)


def test_a_kept_digest_is_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"content")
    own = cache(tmp_path, 3600, file)
    own.get(file)
    monkeypatch.setattr(digests, "sha256", lambda path, progress: "read again")
    assert own.get(file).digest == DIGEST
    os.utime(file, (1, 1))
    assert own.get(file).digest == "read again"


def test_a_file_that_changes_while_it_is_read_is_not_kept(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"content")
    own = cache(tmp_path, 3600, file)
    own.get(file, lambda count: os.utime(file, (1, 1)))
    assert own.known(file) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: b"", lambda record: b"[]", lambda record: b"[" * 50_000, lambda record: b"\xff",
        lambda record: json.dumps({**json.loads(record), "digest": 7}).encode(),
        lambda record: json.dumps({**json.loads(record), "identity": "x"}).encode(),
        lambda record: json.dumps({**json.loads(record), "path": "/other"}).encode(),
    ],
)  # fmt: skip
def test_a_damaged_record_is_passed_over(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"content")
    own = cache(tmp_path, 3600, file)
    own.get(file)
    (record,) = (tmp_path / "digests").iterdir()
    record.write_bytes(damage(record.read_bytes()))
    assert own.known(file) is None
    assert own.get(file) == FileInfo(7, DIGEST)


def test_a_file_whose_name_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"caf\xe9")
    file.write_bytes(b"content")
    own = cache(tmp_path, 3600, file)
    assert own.get(file) == own.known(file) == FileInfo(7, DIGEST)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*/none: No such file or directory"):
        DigestCache(tmp_path / "digests").get(tmp_path / "none")
    assert DigestCache(tmp_path / "digests").known(tmp_path / "none") is None


# Space and words


def test_room_is_asked_for_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    disk.check_free(tmp_path / "a" / "b", 1, "x")
    with pytest.raises(CacheError, match=r"x needs 1000000\.0 TB, and .* are free"):
        disk.check_free(tmp_path / "a" / "b", 10**18, "x")


@pytest.mark.parametrize(
    ("code", "hint"), [(errno.ENOSPC, "free some space"), (errno.EDQUOT, "free some space"), (errno.EFBIG, LARGER)]
)
def test_a_full_disk(code: int, hint: str) -> None:
    error = disk.unwritable("x.png", OSError(code, os.strerror(code)), "choose another")
    assert (error.message, error.hint, error.exit_code) == ("there is no room for x.png", hint, Exit.CACHE)


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "x"), "no more files can be opened", Exit.CACHE),
        (RuntimeError("unable to open x: Too many open files (24)"), "no more files can be opened", Exit.CACHE),
        (OSError(errno.EIO, os.strerror(errno.EIO), "x"), "x fails: Input/output error", Exit.CACHE),
        (OSError(errno.EFBIG, os.strerror(errno.EFBIG), b"x"), "there is no room for x", Exit.CACHE),
        (RuntimeError("No space left on device (os error 28)"), "there is no room for the output", Exit.CACHE),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "memory ran out", Exit.OUT_OF_MEMORY),
        (MemoryError(), "memory ran out", Exit.OUT_OF_MEMORY),
        (ImportError("libx.so: failed to map segment from shared object"), "memory ran out", Exit.OUT_OF_MEMORY),
    ],
)
def test_a_limit_of_the_system_is_told_whoever_meets_it(error: Exception, message: str, code: Exit) -> None:
    found = disk.of_the_system(error)
    assert found
    assert (found.message, found.exit_code) == (message, code)
    wrapped = ValueError("a library's own words")
    wrapped.__cause__ = error
    told = disk.of_the_system(wrapped)
    assert told
    assert told.message == message


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"), OSError("no errno"), FileNotFoundError(errno.ENOENT, "none", "x"), Mute(),
        ValueError("prompt 'No space left on device' has 3 words"),
    ],
)  # fmt: skip
def test_what_is_no_limit_of_the_system(error: Exception) -> None:
    assert disk.of_the_system(error) is None


@pytest.mark.parametrize(
    ("code", "hidden", "told"),
    [(errno.ENODEV, False, False), (errno.EIO, False, False), (errno.ENOSPC, False, True), (errno.ENOSPC, True, False)],
)
def test_what_somebody_dealt_with_is_no_limit_unless_it_says_why(code: int, hidden: bool, told: bool) -> None:
    error = ValueError("another fault")
    error.__context__, error.__suppress_context__ = OSError(code, os.strerror(code), "x"), hidden
    assert (disk.of_the_system(error) is not None) == told


def test_a_temporary_file_is_not_named(tmp_path: Path) -> None:
    """Whoever reads of it knows the file that was asked for alone."""
    with pytest.raises(OSError, match="File too large") as failed, disk.replacing(tmp_path / "x"):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    assert failed.value.filename == str(tmp_path / "x")
    with pytest.raises(FileNotFoundError) as missing, disk.replacing(tmp_path / "none" / "x"):
        pass
    assert missing.value.filename == str(tmp_path / "none" / "x")


def test_another_fault_of_a_disk() -> None:
    error = disk.unwritable(
        "x.png", PermissionError(errno.EACCES, "Permission denied", "/secret/x.png"), "choose another"
    )
    assert (error.message, error.hint) == ("cannot write x.png: Permission denied", "choose another")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (1.5e6, "1.5 MB"), (2e12, "2.0 TB")]
)
def test_bytes_for_people(count: float, text: str) -> None:
    assert disk.readable(count) == text
