"""The stores behind URLs, which are fsspec's (web servers excepted), and what goes wrong with them in the user's terms.

Settings and credentials of a store are those of its fsspec package.
"""

from __future__ import annotations

import errno
import functools
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import IO, Literal, Protocol

from ..core.errors import AccessError, CacheError, DiffpipeError, NotFoundError, UsageError
from . import web
from .disk import NAME_FILE, SAID, is_full, no_room, of_the_system, reason, shortened
from .opening import UnfitFile
from .urls import DISK, hidden, is_url, shown, split

READ_ONLY = ("http", "https", "github", "data", "zip", "tar", "libarchive", "reference", "generic")
# Where one request makes a whole object, or none. Elsewhere a file is given its name when it is complete.
OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "tos", "memory")
PACKAGES = {"smbclient": "smbprotocol", "smbprotocol": "smbprotocol", "webdav4": "webdav4[fsspec]"}  # by module
CREDENTIALS = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "run gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS",
}
SAME = {"s3a": "s3", "gcs": "gs"}  # schemes of one kind of store
AGAIN = "try again"  # what to do once what was wrong is mended

Doing = Literal["read", "write"]
Info = Mapping[str, object]  # what a store says of a file: name, type, size, and what its kind of store adds


class StoreError(DiffpipeError):
    """A store that cannot be asked, or read: the next file of it would fare no better."""


class Reads(Protocol):
    """What is used of a store that is read."""

    def info(self, path: str) -> Info: ...
    def open(self, path: str, mode: str, *, block_size: int) -> IO[bytes]: ...
    def get_file(self, path: str, target: str) -> None: ...


class FileSystem(Reads, Protocol):
    """What is used of fsspec's file systems (fsspec.spec.AbstractFileSystem)."""

    protocol: str | tuple[str, ...]
    transaction: AbstractContextManager[object]

    def ls(self, path: str, *, detail: bool) -> list[Info]: ...
    def exists(self, path: str) -> bool: ...
    def makedirs(self, path: str, *, exist_ok: bool) -> None: ...
    def put_file(self, source: str, path: str, *, mode: str = "overwrite") -> None: ...
    def pipe_file(self, path: str, data: bytes, *, mode: str) -> None: ...
    def mv(self, source: str, path: str) -> None: ...
    def rm_file(self, path: str) -> None: ...


# What can be read and written


def check_scheme(url: str) -> None:
    """Raises UsageError for a scheme that nothing here knows, or whose package is not installed."""
    if "::" in url:
        raise UsageError("URLs within URLs (::) are not taken", "copy the file out first")
    if not web.is_web(url):
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


def check_writable(url: str) -> None:
    """Raises UsageError for a URL of a kind that can only be read."""
    scheme = split(url)[0]
    check_scheme(url)
    if scheme in READ_ONLY:
        raise UsageError(f"{scheme}:// can only be read", "use file://, s3://, gs:// or a folder here")


def check_output(url: str) -> None:
    """Raises UsageError for a URL at which no file can be published."""
    scheme, authority, path = split(url)
    check_writable(url)
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
    store, _ = open_store(url)
    try:
        store.info(bucket.rpartition("@")[2])
    except FileNotFoundError:
        raise NotFoundError(f"there is no bucket {shown(f'{scheme}://{bucket}')}", "make it first") from None
    except Exception:  # who may not ask may still write
        return


# File systems


def reader(url: str) -> tuple[Reads, str]:
    """The store that a URL is read from, and the path in it."""
    return (web.Web(), url) if web.is_web(url) else open_store(url)


def open_store(url: str, doing: Doing = "read", then: str = AGAIN) -> tuple[FileSystem, str]:
    """The file system of a URL, and the path in it."""
    check_scheme(url)
    from fsspec.core import url_to_fs

    with explained(url, doing, then):
        # What other processes write meanwhile must be seen.
        store, path = url_to_fs(url, use_listings_cache=False)
        return store, str(path)


def own_store(url: str) -> tuple[FileSystem, str]:
    """The same, shared with nobody: a transaction takes in whatever else is written with its file system meanwhile."""
    check_scheme(url)
    from fsspec.core import url_to_fs

    with explained(url, "write"):
        shared, path = url_to_fs(url)
        return type(shared)(*shared.storage_args, **shared.storage_options, skip_instance_cache=True), str(path)


# What stores say


@contextmanager
def explained(place: str, doing: Doing = "read", then: str = AGAIN) -> Iterator[None]:
    """Turn whatever is raised for a path or URL into an error in the user's terms, with no credentials in it.

    FileExistsError passes, as callers know what to do. `then`: what to do once what was wrong is mended.
    """
    try:
        yield
    except FileExistsError:
        raise
    except Exception as error:  # each store has exceptions of its own
        raise in_words(place, error, doing, then) from None  # whose traceback may show credentials


def in_words(place: str, error: Exception, doing: Doing = "read", then: str = AGAIN) -> DiffpipeError:
    """What an exception of a disk or store means for who named `place`, a path or URL (see `explained`)."""
    if isinstance(error, DiffpipeError):
        return error
    where = shown(place)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return UsageError(f"the name {shortened(where)} is longer than a disk can hold", "choose a shorter one")
    if isinstance(error, UnfitFile):
        return UsageError(f"cannot {doing} {where}: {error.strerror}", NAME_FILE)
    if getattr(error, "errno", None) in SAID and (limit := of_the_system(error)):
        return limit
    if _denied(error):
        return AccessError(f"access to {where} is denied", _credentials(place))
    if is_full(error):
        full = no_room(where, getattr(error, "errno", None))
        return CacheError(full.message, f"{full.hint}, then {then}")
    if isinstance(error, IsADirectoryError):
        return UsageError(f"{where} is a folder", "name a file in it")
    check = "check the URL and the connection" if is_url(place) else "check the path and its permissions"
    missing = isinstance(error, FileNotFoundError | NotADirectoryError)
    if doing == "write":
        said = "its bucket or folder is not there" if missing else _said(error)
        return CacheError(f"cannot write {where}: {said}", f"{check}, then {then}")
    if missing:
        return NotFoundError(f"there is no file {where}", "check the path or URL")
    return StoreError(f"cannot read {where}: {_said(error)}", f"{check}, then {then}")


def _said(error: Exception) -> str:
    return hidden(reason(error))[:200]


def _denied(error: Exception) -> bool:
    """Whether a store wants other credentials: by errno, by HTTP status, or by what its exception is called."""
    status = getattr(error, "status", None) or getattr(error, "code", None)
    named = re.search(r"Credential|Authenti|Unauthorized|Forbidden", f"{type(error).__name__} {str(error)[:20]}")
    return isinstance(error, PermissionError) or str(status) in ("401", "403") or named is not None


def _credentials(place: str) -> str:
    if not is_url(place):
        return "check its permissions"
    scheme = split(place)[0]
    return CREDENTIALS.get(SAME.get(scheme, scheme), "check the credentials and permissions")
