"""Inputs and outputs that lie at URLs (file://, s3://, gs://, …): seen, fetched, and published whole or not at all.

The stores are fsspec's, and so are their settings and credentials. A URL may hold credentials itself: what is shown,
logged, noted or written of one is what `shown` leaves of it.
"""

from __future__ import annotations

import atexit
import errno
import functools
import hashlib
import os
import posixpath
import re
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.counter import CompactCounter
from ..core.errors import AccessError, CacheError, DiffpipeError, NotFoundError, UsageError
from .disk import CHUNK, mark

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # two letters at least: C: is a drive
IN_TEXT = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+://)(?:[^\s/'\"]*@)?([^\s'\"?]*)(?:\?[^\s'\"]*)?")
# Parameters that sign a URL (AWS, Google, Azure, CDNs): new ones do not make it another file.
SIGNING = re.compile(
    r"(?i)x-(amz|goog)-.*|signature|expires|key-pair-id|policy|awsaccesskeyid|googleaccessid"
    r"|sig|s[eiprtv]|sk(oid|tid|t|e|s|v)|spr|(access_|auth_)?token"
)
DISK = ("file", "local")
READ_ONLY = ("http", "https", "github", "data", "zip", "tar", "libarchive", "reference", "generic")
# Where one request makes a whole object, or none. Elsewhere a file is given its name when it is complete.
OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "tos", "memory")
PACKAGES = {"smbclient": "smbprotocol", "smbprotocol": "smbprotocol", "webdav4": "webdav4[fsspec]"}  # by module
CREDENTIALS = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "run gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS",
}
TAGS = ("md5Hash", "ETag", "etag")  # how stores call what changes with an object's content
LONGEST = 1024  # bytes of an object's name in S3, Google's store and Azure's
ASKED = 50  # files of a folder that are asked for one by one; then it is listed, a thousand or so names a request
KEPT = 32  # fetched files that are kept for who reads them next


class StoreError(DiffpipeError):
    """A store that cannot be asked, or read: the next file of it would fare no better."""


# What a URL says


def is_url(text: str) -> bool:
    return "://" in text and SCHEME.match(text) is not None


def was_url(path: Path) -> bool:
    """Whether a path is what pathlib, which takes doubled slashes away, makes of a URL."""
    return is_url(re.sub(":/+", "://", str(path), count=1))


def split(url: str) -> tuple[str, str, str]:
    """Scheme, who and where (user, password, host; or bucket), and the path, its / before it."""
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return scheme, authority, slash + path


def shown(path: str) -> str:
    """A path, or a URL without credentials: no user, no password, and none of the parameters that may sign it."""
    if not is_url(path):
        return path
    scheme, authority, rest = split(path)
    return f"{scheme}://{authority.rpartition('@')[2]}{rest}".partition("?")[0]


def hidden(text: str) -> str:
    """A text of anybody's with every URL in it as `shown` leaves it."""
    return IN_TEXT.sub(r"\1\2", text) if "://" in text else text


def lasting(value: Any) -> Any:
    """What of a call argument says which file it is: a URL without its user and what signs it; all else as it is."""
    if isinstance(value, list):
        return [lasting(one) for one in value]
    if not isinstance(value, str) or not is_url(value):
        return value
    scheme, authority, rest = split(value)
    path, _, query = rest.partition("?")
    own = [one for one in query.split("&") if one and not SIGNING.fullmatch(one.partition("=")[0])]
    return f"{scheme}://{authority.rpartition('@')[2]}{path}{'?' if own else ''}{'&'.join(own)}"


def with_credentials(url: str, like: str) -> str:
    """A URL as `shown`, with the user and password of another one at the same place."""
    scheme, authority, path = split(url)
    of, other, _ = split(like)
    user, at, host = other.rpartition("@")
    return f"{scheme}://{user}{at}{authority}{path}" if (of, host) == (scheme, authority) else url


def on_disk(url: str) -> str | None:
    """The absolute path that a file:// URL means, None for a URL of another kind."""
    scheme, authority, path = split(url)
    if scheme.lower() not in DISK:
        return None
    place = authority + path
    return os.path.abspath(os.path.expanduser(place[1:] if re.match(r"/[A-Za-z]:", place) else place))


def normal(url: str) -> str:
    """A URL without . and .. and doubled slashes; a file's is absolute."""
    if place := on_disk(url):
        return f"file://{'' if place.startswith('/') else '/'}{Path(place).as_posix()}"
    scheme, authority, path = split(url)
    return f"{scheme}://{authority}{posixpath.normpath('/' + path.lstrip('/'))}"


def beside(path: str, mark: str) -> str:
    """A path or URL with a mark after the file's name: out/x.png, 2 -> out/x-2.png."""
    stem, ending = os.path.splitext(path)
    return f"{stem}-{mark}{ending}"


# Stores


def check_scheme(url: str) -> None:
    """Raises UsageError for a scheme that fsspec does not know, or whose package is not installed."""
    if "::" in url:
        raise UsageError("URLs within URLs (::) are not taken", "copy the file out first")
    _check_scheme(split(url)[0])


@functools.cache
def _check_scheme(scheme: str) -> None:
    from fsspec.registry import get_filesystem_class

    try:
        get_filesystem_class(scheme)
    except ValueError:
        hint = "use file://, s3://, gs:// or another that fsspec knows"
        raise UsageError(f"{scheme}:// is no kind of URL that is known", hint) from None
    except ImportError as error:
        module = str(getattr(error.__cause__, "name", None) or "").split(".")[0]
        hint = f"pip install {PACKAGES.get(module, module)}" if module else str(error)
        raise UsageError(f"{scheme}:// needs a package that is not installed", hint) from None


def check_output(url: str) -> None:
    """Raises UsageError for a URL at which no file can be published."""
    scheme, authority, path = split(url)
    check_scheme(url)
    if scheme in READ_ONLY:
        raise UsageError(f"--output: {scheme}:// can only be read", "use file://, s3://, gs:// or a folder here")
    if "{" in authority.replace("{{", "").rpartition("@")[2] and scheme not in DISK:
        raise UsageError("--output: a URL's bucket or host cannot be a field", "write it in full")
    if "?" in path:
        raise UsageError(f"--output: {shown(url)}?… has parameters", "leave ? and what follows out")


def check_bucket(url: str) -> None:
    """Raises NotFoundError for a URL in a bucket of which its store says that it is not there."""
    scheme, bucket, _ = split(url)
    check_scheme(url)
    if scheme not in OBJECT_STORES or scheme == "memory":
        return
    fs, _ = _store(url)
    try:
        fs.info(bucket.rpartition("@")[2])
    except FileNotFoundError:
        raise NotFoundError(f"there is no bucket {shown(f'{scheme}://{bucket}')}", "make it first") from None
    except Exception:  # who may not ask may still write
        return


def _store(url: str, doing: str = "read") -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    check_scheme(url)
    from fsspec.core import url_to_fs

    with _told(doing, url):
        # What other processes write meanwhile must be seen.
        fs, path = url_to_fs(url, use_listings_cache=False)
        return fs, str(path)


@contextmanager
def _told(doing: str, url: str) -> Iterator[None]:
    """Whatever a store raises, in the user's terms; not FileExistsError, and nothing of what it says of credentials."""
    try:
        yield
    except (DiffpipeError, FileExistsError):
        raise
    except Exception as error:  # each store has exceptions of its own
        raise _error(doing, url, error) from None  # a traceback, too, would tell


def _error(doing: str, url: str, error: Exception) -> DiffpipeError:
    where, scheme = shown(url), split(url)[0]
    if _denied(error):
        hint = CREDENTIALS.get({"s3a": "s3", "gcs": "gs"}.get(scheme, scheme), "check the credentials and permissions")
        return AccessError(f"access to {where} is denied", hint)
    missing = isinstance(error, FileNotFoundError)
    if doing == "read" and (missing or isinstance(error, NotADirectoryError | IsADirectoryError)):
        return NotFoundError(f"there is no file {where}", "check the URL")
    said = (getattr(error, "strerror", None) or str(error) or type(error).__name__).strip().partition("\n")[0]
    reason = "its bucket or folder is not there" if missing else hidden(said)[:200]
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if doing == "write" or full:
        hint = "make room" if full else "check the URL and the connection"
        return CacheError(f"cannot {doing} {where}: {reason}", f"{hint}, then go on with --resume")
    return StoreError(f"cannot read {where}: {reason}", "check the URL and the connection, then try again")


def _denied(error: Exception) -> bool:
    """Whether a store wants other credentials: by errno, by HTTP status, or by what its exception is called."""
    status = getattr(error, "status", None) or getattr(error, "code", None)
    named = re.search(r"Credential|Authenti|Unauthorized|Forbidden", f"{type(error).__name__} {str(error)[:20]}")
    return isinstance(error, PermissionError) or str(status) in ("401", "403") or named is not None


# What is there


@dataclass
class _Folder:
    """A folder of a store as it was: the stamps of files that were asked for; once it is listed, the names in it, and
    name, size and tag of each in one text. `tried`: whether it was to be listed."""

    asked: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    names: CompactCounter | None = None
    tried: bool = False


_folders: dict[str, _Folder] = {}


def forget() -> None:
    """Ask the stores again what is there: what folders hold is remembered, for batches ask of each of their files."""
    _folders.clear()


def exists(url: str) -> bool:
    """Whether a file is there. Raises DiffpipeError where the store cannot be asked."""
    place = on_disk(url)
    return _remembered(url) if place is None else os.path.lexists(place)


def unchanged(url: str, noted: Mapping[str, Any]) -> bool:
    """Whether a store says of a file, without its being read, what it said when it was `noted` (see `stamp`)."""
    return "tag" in noted and on_disk(url) is None and _remembered(url, noted)


def _remembered(url: str, noted: Mapping[str, Any] | None = None) -> bool:
    """Whether a file is, or was when this run asked first, in its folder; and is what was `noted` of it."""
    fs, path = _store(url)
    folder = _folders.setdefault(shown(url).rpartition("/")[0], _Folder())
    if len(folder.asked) == ASKED and path not in folder.asked and not folder.tried:
        folder.names, folder.tried = _listed(fs, path, split(url)[0]), True
    if folder.names is not None:
        return bool(folder.names[_summed(path, noted) if noted else path])
    found = folder.asked[path] if path in folder.asked else stamp(url)
    if len(folder.asked) < ASKED:
        folder.asked[path] = found
    return found is not None and (noted is None or found == {name: noted[name] for name in ("size", "tag")})


def _listed(fs: Any, path: str, scheme: str) -> CompactCounter | None:
    """What is in the folder of a file; None if that cannot be told."""
    folder = path.rpartition("/")[0]
    if scheme in READ_ONLY or not folder:
        return None
    names = CompactCounter()
    try:
        for entry in fs.ls(folder, detail=True):
            if (stamp := _stamp(entry)) is not None:
                names[entry["name"]] = names[_summed(entry["name"], stamp)] = 1
    except FileNotFoundError:
        return names
    except Exception:  # who may not list may still ask for each
        return None
    return names


def stamp(url: str) -> dict[str, Any] | None:
    """Size of a file in bytes, and the store's own tag of its content where it has one; None if there is no file."""
    fs, path = _store(url)
    with _told("read", url):
        try:
            return _stamp(fs.info(path))
        except (FileNotFoundError, NotADirectoryError):
            return None


def _stamp(info: Mapping[str, Any]) -> dict[str, Any] | None:
    if info.get("type") == "directory":
        return None
    tag = next((str(info[name]) for name in TAGS if info.get(name)), None)
    return {"size": info.get("size")} | ({"tag": tag} if tag else {})


def _summed(path: str, stamp: Mapping[str, Any]) -> str:
    return f"{path}\n{stamp.get('size')}\n{stamp.get('tag')}"


def state(url: str) -> dict[str, Any]:
    """Size and content digest of a file, which is read for it. Raises DiffpipeError if it cannot be."""
    fs, path = _store(url)
    hasher, size = hashlib.sha256(), 0
    with _told("read", url), fs.open(path, "rb") as stream:
        while chunk := stream.read(CHUNK):
            hasher.update(chunk)
            size += len(chunk)
    return {"size": size, "digest": f"sha256:{hasher.hexdigest()}"}


# Reading


_fetched: OrderedDict[tuple[int, str, str], Path] = OrderedDict()
_lock = threading.Lock()


def local(path: str) -> Path:
    """A path, or the file that a URL's is fetched to. Raises DiffpipeError where it cannot be."""
    return fetched(path) if is_url(path) else Path(path)


def fetched(url: str) -> Path:
    """A local file of a URL's content and name, fetched once while the store says that it is the same.

    It is there for as long as this process runs and reads few others: open it at once. Raises NotFoundError for no
    file, AccessError, DiffpipeError for a store that fails.
    """
    if place := on_disk(url):
        if not os.path.exists(place):
            raise NotFoundError(f"there is no file {shown(url)}", "check the URL")
        return Path(place)
    fs, path = _store(url)
    with _told("read", url):
        info = fs.info(path)
        if info.get("type") == "directory":
            raise IsADirectoryError(path)
        key = os.getpid(), url, str(sorted(info.items()))
        with _lock:
            if (known := _fetched.get(key)) and known.exists():
                _fetched.move_to_end(key)
                return known
        name = re.sub(r'[<>:"\\|?*\x00-\x1f]', "-", posixpath.basename(split(shown(url))[2]))[-60:]
        made = Path(tempfile.mkdtemp(dir=_place(os.getpid())), name or "file")
        fs.get_file(path, str(made))
        size, whole = made.stat().st_size, info.get("size")
        if whole is not None and size != whole and split(url)[0] not in READ_ONLY:  # which may have been packed
            raise OSError(f"it ended after {size} of {whole} bytes")
    _keep(key, made)
    return made


def _keep(key: tuple[int, str, str], made: Path) -> None:
    with _lock:
        _fetched[key] = made
        while len(_fetched) > KEPT:
            shutil.rmtree(_fetched.popitem(last=False)[1].parent, ignore_errors=True)


@functools.cache
def _place(process: int) -> str:
    """The folder of a process's fetched files, which goes when it ends (not when a fork of it does)."""
    folder = tempfile.mkdtemp(prefix="diffpipe-")

    def remove() -> None:
        if os.getpid() == process:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


# Writing


def publish(made: Path, url: str, *, overwrite: bool) -> None:
    """Put a finished local file at a URL: who reads there sees what was there before, or all of it.

    Raises FileExistsError where a file is and `overwrite` is not given, AccessError, CacheError if it cannot be made.
    """
    if place := on_disk(url):
        with _told("write", url):
            _publish_on_disk(made, Path(place), overwrite)
        return
    fs, path = _store(url, "write")
    if not overwrite and stamp(url) is not None:  # not every store refuses, when asked to, to replace an object
        raise FileExistsError(shown(url))
    put = _put if split(url)[0] in OBJECT_STORES else _put_and_rename
    with _told("write", url):
        put(fs, made, path, overwrite, lambda: stamp(url) is not None)


def _put(fs: Any, made: Path, path: str, overwrite: bool, taken: Callable[[], bool]) -> None:
    """One request that makes the object; without `overwrite`, one that makes it only if there is none."""

    def request(mode: str) -> None:
        if fs.protocol == "memory":  # opens the file under its name, and fills it then
            fs.pipe_file(path, made.read_bytes(), mode=mode)
        else:
            fs.put_file(str(made), path, mode=mode)

    if overwrite:
        return request("overwrite")
    try:
        request("create")
    except Exception as error:
        if taken():
            raise FileExistsError(path) from None
        if not isinstance(error, NotImplementedError) and getattr(error, "errno", None) != errno.ENOSYS:
            raise
        request("overwrite")  # a store that has no such request


def _put_and_rename(fs: Any, made: Path, path: str, overwrite: bool, taken: Callable[[], bool]) -> None:
    folder, _, name = path.rpartition("/")
    temporary = f"{folder}/.{name[:60]}.{os.urandom(8).hex()}.tmp"
    if folder:
        fs.makedirs(folder, exist_ok=True)
    try:
        fs.put_file(str(made), temporary)
        if not overwrite and taken():
            raise FileExistsError(path)
        fs.mv(temporary, path)
    except BaseException:
        if fs.exists(temporary):
            fs.rm_file(temporary)
        raise


def _publish_on_disk(made: Path, place: Path, overwrite: bool) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f"{mark(place)}{os.urandom(8).hex()}.tmp")
    try:
        with made.open("rb") as source, temporary.open("xb") as target:
            shutil.copyfileobj(source, target)
            target.flush()
            os.fsync(target.fileno())
        if overwrite or not _linked(temporary, place):
            os.replace(temporary, place)
    finally:
        temporary.unlink(missing_ok=True)


def _linked(temporary: Path, place: Path) -> bool:
    """Give a file its name, too, which must be free: a hard link fails where it is not, a rename would not. False if
    the file system has no hard links."""
    try:
        os.link(temporary, place)
        return True
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(place):
            raise FileExistsError(str(place)) from None
        return False
