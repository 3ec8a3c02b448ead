"""Downloads from the model hub into its own cache, which go on at the byte where they stopped.

The hub client's own download puts every attempt in a new temporary file and deletes it on failure, so a download here
is streamed by the client's HTTP session into DIGEST.incomplete instead: it resumes in the same process or the next one.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ..core.printable import printable
from ..storage.digests import content_digest
from ..storage.disk import free_bytes, readable, shortened
from ..storage.http_guard import LEAST
from . import hub_cache, hub_seam
from .hub_cache import Repository, blob_of, bytes_there, is_present, partial_of, size_of, snapshot
from .hub_client import bring_by_xet, content, is_offline, token
from .hub_errors import cut, damaged, disk_explained, explained, leads_out, no_room, not_cached, not_listed, scrub

if TYPE_CHECKING:
    from huggingface_hub.utils.tqdm import tqdm

PAUSES = (0.5, 1.0, 2.0)  # seconds before each new attempt after a connection that brought no byte
PLAIN_HTTP_LIMIT = 50_000_000_000  # bytes: huggingface_hub.constants.MAX_HTTP_DOWNLOAD_SIZE; above it only Xet serves


def fetch(repository: Repository, paths: Iterable[str], offline: bool = False, quiet: bool = False) -> Path:
    """Download these files into the hub's cache and return the snapshot folder; those already there cost no request.

    Each is checked against its size and digest before it gets its name. A progress bar goes to stderr, or a line per
    file where stderr is no terminal. Raises CacheError for a full disk (checked before the first byte) or a damaged
    download, NotFoundError offline, AccessError, or DiffpipeError if the connection stays cut: what arrived is kept,
    and the next call resumes it.
    """
    bring(repository, sorted(set(paths)), offline, quiet)
    if not is_offline(offline):
        with disk_explained(repository.repo):
            hub_cache.write_refs(repository)
    return snapshot(repository)


def bring(repository: Repository, paths: list[str], offline: bool, quiet: bool) -> None:
    """Have these files in the cache. Raises what `fetch` raises."""
    for path in paths:
        if path not in repository.files:
            raise not_listed(repository, path)
    with disk_explained(repository.repo):
        missing = [path for path in paths if not is_present(repository, path)]
        if missing and is_offline(offline):
            raise not_cached(repository.repo, missing[0])
        if missing:
            _bring_all(repository, missing, quiet)


def _bring_all(repository: Repository, paths: list[str], quiet: bool) -> None:
    from huggingface_hub.utils.tqdm import tqdm

    # Equal content is stored, and so counted, once.
    sizes = {blob_of(repository, path): repository.files[path].size for path in paths}
    present = sum(bytes_there(place, size) for place, size in sizes.items())
    _check_disk(repository.repo, sum(sizes.values()) - present)
    lines = not quiet and not sys.stderr.isatty()
    with tqdm(  # type: ignore[no-untyped-call]
        desc=f"Downloading {repository.repo}",
        total=sum(sizes.values()),
        initial=present,
        unit="B",
        unit_scale=True,
        disable=quiet or lines,
    ) as bar:
        for path in paths:
            if lines:
                line = f"downloading {shortened(path)} ({readable(repository.files[path].size)})"
                print(printable(line), file=sys.stderr)
            _bring_one(repository, path, bar)


def _check_disk(repo: str, needed: int) -> None:
    free = free_bytes(hub_cache.folder(repo) / "blobs")  # which may be a link to a larger disk
    if needed > free:
        raise no_room(repo, needed, free)


def _bring_one(repository: Repository, path: str, bar: tqdm) -> None:
    """Bring one file to its place, under the lock that the hub's client uses for it."""
    place, size, pointer = blob_of(repository, path), repository.files[path].size, snapshot(repository) / path
    lock = hub_cache.lock_file(place)
    if not hub_cache.is_inside(pointer.parent, place.parent.parent):
        raise leads_out(repository, pointer.parent)
    for folder in (lock.parent, place.parent, pointer.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with hub_seam.file_lock(lock):
        if not hub_cache.has_blob(place, size):
            if partial_of(place).is_symlink():  # others may write into the cache, and links lead anywhere
                partial_of(place).unlink()
            if size <= PLAIN_HTTP_LIMIT or not _bring_by_xet(repository, path, partial_of(place), bar):
                _stream_to_end(repository, path, partial_of(place), bar)
            _check_content(repository, path, partial_of(place))
            os.replace(partial_of(place), place)
        hub_cache.link(place, pointer)


def _bring_by_xet(repository: Repository, path: str, partial: Path, bar: tqdm) -> bool:
    """Leave one file to the hub's client; whether it is one for Xet. A download that stops starts over."""
    secret = token()
    with explained(repository.repo, repository.commit, path, secret):
        size = repository.files[path].size
        return bring_by_xet(repository.repo, repository.commit, path, secret, partial, size, bar)


def _stream_to_end(repository: Repository, path: str, partial: Path, bar: tqdm) -> None:
    """Stream until the file is whole, resuming after each cut; gives up after some attempts that bring too little."""
    from httpx2 import TransportError
    from huggingface_hub.errors import HfHubHTTPError

    size, secret, pauses = repository.files[path].size, token(), list(PAUSES)
    if size_of(partial) > size:
        partial.unlink()
    mark = size_of(partial)  # bytes that were there when the attempts began to count
    with explained(repository.repo, repository.commit, path, secret):
        while (before := size_of(partial)) != size:
            try:
                _stream(repository, path, partial, bar, secret)
                if before >= size_of(partial):
                    raise damaged(repository, path)
            except (TransportError, HfHubHTTPError, TimeoutError) as error:
                done = size_of(partial)
                if done - mark >= LEAST:
                    pauses, mark = list(PAUSES), done
                if not _may_pass(error, done) or (done <= 0 and not pauses):
                    raise
                if not pauses:
                    raise cut(repository, path, done, scrub(error, secret)) from error
                time.sleep(pauses.pop(0))


def _may_pass(error: Exception, done: int) -> bool:
    """Whether trying again may help: not where the hub refuses, nor where there never was a connection."""
    from httpx2 import ConnectError, ConnectTimeout
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    return done > 0 or not isinstance(error, (ConnectError, ConnectTimeout))


def _stream(repository: Repository, path: str, partial: Path, bar: tqdm, secret: str | None) -> None:
    """Append what is missing of a file, by one ranged request. Every byte that arrived is on disk when this raises."""
    with partial.open("ab") as out:
        start = out.tell()
        asked = f"bytes={start}-" if start else ""
        with content(repository.repo, repository.commit, path, secret, asked) as response:
            if response.status_code == 416:  # the hub's file is shorter than it announced
                out.truncate(0)
                raise damaged(repository, path)
            if start and response.status_code != 206:  # a server that knows no ranges sends all of it
                out.truncate(0)
                bar.update(-start)
                start = 0
            _append(repository, path, response.iter_bytes(), start, out, bar)


def _append(repository: Repository, path: str, chunks: Iterable[bytes], start: int, out: IO[bytes], bar: tqdm) -> None:
    for chunk in chunks:
        start += len(chunk)
        if start > repository.files[path].size:
            out.truncate(0)
            raise damaged(repository, path)
        out.write(chunk)
        bar.update(len(chunk))


def _check_content(repository: Repository, path: str, partial: Path) -> None:
    info = repository.files[path]
    if size_of(partial) != info.size or content_digest(partial, info.digest) != info.digest:
        partial.unlink()
        raise damaged(repository, path)
