"""Local files: written whole or not at all, what crashes leave of them, free space, and disks' errors in words."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ..core.canonical import canonical_json
from ..core.errors import CacheError, DiffpipeError, Exit, UsageError
from .opening import UnfitFile

CHUNK = 1 << 20  # bytes of a file that are held at a time
LONGEST_SHOWN = 100  # characters of a name in a message
NAME_FILE = "name a file on a disk"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, no quota, or larger than the disk or a limit allows
BROKEN = tuple(getattr(errno, name) for name in ("EIO", "ESTALE", "ENXIO", "ENODEV", "EUCLEAN") if hasattr(errno, name))
SAID = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # what else libraries say in the system's words
UNMAPPED = "failed to map segment"  # the loader of libraries, where memory for one is refused
LONGEST_CHAIN = 10  # errors that one is followed back through


def user_path(text: str) -> Path:
    """The path that a user wrote, ~ and ~NAME as their homes. Raises UsageError where there is no such user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        who = text.partition("/")[0]
        raise UsageError(
            f"there is no home folder of {shortened(who)}", f"write ./{shortened(text)} for a name that begins so"
        ) from None


# Whole or not at all


@contextmanager
def replacing(path: Path, *, within: Path | None = None, shared: bool = False) -> Iterator[BinaryIO]:
    """A stream into a new file that takes `path`'s place when the block ends, and leaves nothing behind if it raises.

    A reader, or a crash, sees the old file or the new one and never a part. `within` is the folder of the temporary
    file, on the same disk, where it is not the file's own. `shared` opens it to others as the umask does; else it is
    this user's alone. Raises UsageError where a device, pipe or socket would be replaced.
    """
    check_replaceable(path)
    with temporary_file(path, within) as temporary:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        if shared:
            share(temporary)
        os.replace(temporary, path)


@contextmanager
def temporary_file(path: Path, within: Path | None = None) -> Iterator[Path]:
    """An empty file on the disk of `path`, which goes when the block ends unless it was given a name by then."""
    with _told_of(path):
        handle, name = tempfile.mkstemp(dir=within or path.parent, prefix=mark(path), suffix=".tmp")
        os.close(handle)
        try:
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)


@contextmanager
def temporary_folder(path: Path, within: Path | None = None) -> Iterator[Path]:
    """An empty folder on the disk of `path`, which goes with what is in it unless it was given a name by then."""
    with _told_of(path):
        folder = Path(tempfile.mkdtemp(dir=within or path.parent, prefix=mark(path), suffix=".tmp"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Let an error of a disk name the file that was to be, and neither none nor a temporary one."""
    try:
        yield
    except OSError as error:
        own = isinstance(error.filename, str | bytes) and mark(path) in os.fsdecode(error.filename)
        if own or (error.filename is None and error.errno in (*FULL, *BROKEN)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextmanager
def folder_made(path: Path) -> Iterator[None]:
    """The folder of a file, made where it is missing; what was made goes again if the block raises, unless others put
    something there."""
    missing = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for folder in missing:
                folder.rmdir()
        raise


def give_name(temporary: Path, path: Path, *, overwrite: bool) -> None:
    """Give a finished file its name. Raises FileExistsError where that is taken, unless it may `overwrite`, and
    UsageError where a device, pipe or socket has it."""
    check_replaceable(path)
    if overwrite or not _linked(temporary, path):
        os.replace(temporary, path)
    else:
        temporary.unlink()


def check_replaceable(path: Path) -> None:
    """Raises UsageError for a device, pipe or socket: a rename would put a file in its place, for everybody."""
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)):
        raise UsageError(f"{path} is a device, pipe or socket, which a file cannot replace", "name a file")


def _linked(temporary: Path, path: Path) -> bool:
    """Give a file another name, which must be free: a hard link fails where it is not, a rename would not. False if
    the file system has no hard links."""
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        raise
    except OSError:
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, "File exists", str(path)) from None
        return False


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file of this user's alone, whole or not at all (see `replacing`)."""
    with replacing(path) as stream:
        stream.write(data)


def write_json(path: Path, value: object) -> None:
    """Write a small record of a cache, as `write_atomic` does. What is no file at its path goes."""
    if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
        discard(path)
    # Names of files need not be Unicode: json reads lone surrogates back.
    write_atomic(path, canonical_json(value).encode(errors="surrogatepass"))


def umask() -> int:
    """This process's umask, which can only be read by setting it: to a strict one, as other threads may make files."""
    os.umask(found := os.umask(0o077))
    return found


def share(path: Path) -> None:
    """Open a temporary file or folder to others as the umask has it: the standard library makes them private."""
    os.chmod(path, (0o777 if path.is_dir() else 0o666) & ~umask())


# What crashes leave


def mark(path: Path) -> str:
    """How the temporary files that become a file begin: what a crash left of it can be told from those of others."""
    return f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}."


def remove_leftovers(path: Path, age: float = 0.0) -> None:
    """Remove the temporary files and folders that a crash left of a file that nobody is writing now, or of which
    nothing was written for `age` seconds."""
    for left in path.parent.glob(f"{mark(path)}*.tmp"):
        if age and time.time() - left.stat().st_mtime <= age:
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def discard(path: Path) -> None:
    """Remove whatever is at a path, a folder with all that is in it, also where that may not be read.

    Raises OSError where it cannot be removed.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    try:
        with suppress(OSError):
            shutil.rmtree(path)
            return
        os.chmod(path, 0o700)
        for folder, folders, _ in os.walk(path):
            for name in folders:
                if not os.path.islink(inside := os.path.join(folder, name)):
                    os.chmod(inside, 0o700)
        shutil.rmtree(path)
    except RecursionError:
        raise OSError(errno.ENAMETOOLONG, "its folders are nested too deeply", str(path)) from None


# Space


def free_bytes(folder: Path) -> int:
    """Bytes that are free on the disk of a folder, which need not be there yet."""
    there = next(part for part in (folder.absolute(), *folder.absolute().parents) if part.exists())
    return shutil.disk_usage(there).free


def check_free(folder: Path, needed: int, what: str) -> None:
    """Raises CacheError where a disk has not as many bytes free."""
    free = free_bytes(folder)
    if needed > free:
        raise CacheError(f"{what} needs {readable(needed)}, and {readable(free)} are free", "free some space")


def readable(count: float) -> str:
    """Bytes for people, in the units of disks and downloads (1 MB is 1,000,000 bytes)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


# What disks say


def shortened(name: str) -> str:
    """A name as a message can hold it."""
    return name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}…"


def of_the_system(error: BaseException | None) -> DiffpipeError | None:
    """What a limit of the system means, whichever file or library met it; None for what is none of them.

    A library written in C tells of it in words, or as the cause of an error of its own. What an error only came after
    may have been dealt with: there no room, descriptors or memory alone count.
    """
    caused = True
    for _ in range(LONGEST_CHAIN):
        if error is None or isinstance(error, DiffpipeError):
            return None
        code = _code(error)
        if (caused or code in (*FULL, *SAID)) and (found := _limit(error, code)):
            return found
        caused = caused and error.__cause__ is not None
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def raise_limit(error: BaseException) -> None:
    """Raises DiffpipeError for a limit of this process, which says nothing of whether a file is there or whole."""
    if (limit := of_the_system(error)) and getattr(error, "errno", None) in (*SAID, None):
        raise limit from error


def _limit(error: BaseException, code: int | None) -> DiffpipeError | None:
    name = getattr(error, "filename", None)
    where = shortened(os.fsdecode(name)) if isinstance(name, str | bytes) else ""
    if code == errno.ENOMEM:
        hint = "close other programs, or raise what a process may have (ulimit -v)"
        return DiffpipeError("memory ran out", hint, Exit.OUT_OF_MEMORY)
    if code == errno.ENAMETOOLONG:
        return UsageError(f"the name {where or 'of a file'} is longer than a disk can hold", "choose a shorter one")
    if code in FULL:
        return no_room(where or "the output", code)
    if code in (errno.EMFILE, errno.ENFILE):
        return CacheError("no more files can be opened", "raise how many a process may have open (ulimit -n)")
    if code is not None and code in BROKEN:
        return CacheError(f"{where or 'a disk'} fails: {os.strerror(code)}", "check the disk, or use another")
    return None


def _code(error: BaseException) -> int | None:
    """The errno of an error: its own, or that whose words its text ends with, where they are not anybody's."""
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    try:
        text = str(error)
    except Exception:  # of a library or plug-in
        text = ""
    if UNMAPPED in text:
        return errno.ENOMEM
    if isinstance(error, OSError):
        return error.errno
    return next((code for code in (*FULL, *SAID) if _tells(text, code)), None)


def _tells(text: str, code: int) -> bool:
    words = re.escape(os.strerror(code))
    return re.search(rf"\[Errno {code}\] {words}|{words}\W*((os error )?{code}\W*)?$", text) is not None


def refused(error: OSError) -> DiffpipeError | None:
    """What any error of a disk means, for who knows no better; None for an OSError that is not the system's."""
    if found := of_the_system(error):
        return found
    if error.errno is None:
        return None
    where = shortened(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else ""
    if isinstance(error, UnfitFile):
        return UsageError(f"cannot read {where or 'the file'}: {reason(error)}", NAME_FILE)
    return CacheError(
        f"cannot use {where}: {reason(error)}" if where else f"the system refuses: {reason(error)}",
        "check that it is there and what its permissions are; --traceback shows where",
    )


def no_room(where: str, code: int | None = None) -> CacheError:
    """There is no room for a file, or more than this process may write into one (EFBIG)."""
    larger = "raise how large a process may make a file (ulimit -f), or use a disk that takes larger ones"
    return CacheError(f"there is no room for {where}", larger if code == errno.EFBIG else "free some space")


def is_full(error: BaseException) -> bool:
    """Whether an error says that there is no room for more bytes."""
    return getattr(error, "errno", None) in FULL


def reason(error: BaseException) -> str:
    """What an error says, in one line and without the file's name where the system tells them apart."""
    said = str(getattr(error, "strerror", None) or error).strip()
    return said.splitlines()[0] if said else type(error).__name__


def unreadable(where: str, error: OSError, hint: str = "check the path and its permissions") -> DiffpipeError:
    """What it means that a file which the user named cannot be read."""
    return of_the_system(error) or UsageError(f"{where}: {reason(error)}", hint)


def unwritable(where: str, error: OSError, hint: str) -> DiffpipeError:
    """What it means that a file cannot be written; `hint` is for where more room would not help."""
    if is_full(error):
        return no_room(where, error.errno)
    if error.errno not in (errno.ENAMETOOLONG, *BROKEN) and (found := of_the_system(error)):
        return found
    return CacheError(f"cannot write {where}: {reason(error)}", hint)
