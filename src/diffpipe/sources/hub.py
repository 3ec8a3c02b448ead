"""The model hub: the one module that talks to it, through huggingface_hub, imported only when a function is called.

Files lie in the hub's own cache (HF_HOME, HF_HUB_CACHE) in its own layout, so other programs use the same copies:
blobs/DIGEST holds the bytes, snapshots/COMMIT/PATH links to them, refs/REVISION names a commit, and
blobs/DIGEST.incomplete is a download that stopped (https://huggingface.co/docs/huggingface_hub/guides/manage-cache).
The client's own download puts every attempt in a new temporary file and deletes it on failure, so a download here is
streamed by the client's HTTP session into DIGEST.incomplete instead: it resumes at the byte where it stopped, in the
same process or the next one.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ..core.errors import AccessError, CacheError, DiffpipeError, NotFoundError, UsageError
from ..core.source import FileInfo
from ..storage.digests import content_digest
from ..storage.disk import write_atomic
from ..storage.tensor_headers import TensorHeader, TensorInfo, read_safetensors

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils.tqdm import tqdm

# The client would add a request about the program that runs it to the first one: nothing is sent but what is asked for.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

TRUE = {"1", "on", "yes", "true"}  # as huggingface_hub reads its own variables
COMMIT = re.compile(r"[0-9a-f]{40}")
DIGEST = re.compile(r"git:[0-9a-f]{40}|sha256:[0-9a-f]{64}")
PAUSES = (0.5, 1.0, 2.0)  # seconds before each new attempt after a connection that brought no byte
LARGEST_TEXT = 10_000_000  # bytes: the hub keeps larger files, and binary ones, by SHA-256
PLAIN_HTTP_LIMIT = 50_000_000_000  # bytes: huggingface_hub.constants.MAX_HTTP_DOWNLOAD_SIZE; above it only Xet serves

# (repository, commit) -> the revisions that named it in this process: `fetch` records them once the files are there, so
# that a listing alone never moves a name away from a commit that offline work can use.
_names: dict[tuple[str, str], set[str]] = {}


@dataclass(frozen=True)
class Repository:
    """A hub repository at one commit: all its files, or offline those in the cache."""

    repo: str
    commit: str
    files: Mapping[str, FileInfo]


def token() -> str | None:
    """HF_TOKEN, HUGGINGFACE_HUB_ACCESS_TOKEN, or what `hf auth login` saved.

    Raises AccessError if it has characters no token has (a header cannot carry them).
    """
    from huggingface_hub import get_token

    variables = ("HF_TOKEN", "HUGGINGFACE_HUB_ACCESS_TOKEN")
    found = next((value for name in variables if (value := os.environ.get(name, "").strip())), None) or get_token()
    if found and not re.fullmatch(r"[!-~]+", found):
        raise AccessError("the access token has spaces or letters that no token has", "copy it again into HF_TOKEN")
    return found


def is_offline(flag: bool) -> bool:
    """Whether --offline, DIFFPIPE_OFFLINE or the hub client's own variables forbid the network."""
    names = ("DIFFPIPE_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return flag or any(os.environ.get(name, "").lower() in TRUE for name in names)


def reachable() -> bool:
    """Whether the hub answers at all (one request; about ten seconds at most)."""
    from httpx2 import HTTPError, InvalidURL
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        url = f"{constants.ENDPOINT}/api/models"
        return get_session().head(url, timeout=constants.HF_HUB_ETAG_TIMEOUT).status_code < 500
    except (HTTPError, InvalidURL, OfflineModeIsEnabled):
        return False


def describe(repo: str, revision: str | None = None, offline: bool = False) -> Repository:
    """The commit of a revision (default main) and its files, in one request; offline from the cache.

    Raises UsageError for what is no repository id; NotFoundError for a repository or revision that does not exist, or
    is not in the cache when offline; AccessError for a private one; DiffpipeError if the hub cannot be reached, even
    when the cache holds a copy: an older commit is used only where --offline asks for it.
    """
    revision = revision or "main"
    _check_names(repo, revision)
    if is_offline(offline):
        return _describe_cached(repo, revision)
    from huggingface_hub import HfApi, constants

    with _explained(repo, revision) as secret:
        info = HfApi().model_info(
            repo,
            revision=None if revision == "main" else revision,
            files_metadata=True,
            token=secret or False,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
    files = {file.rfilename: _file_info(file) for file in info.siblings or () if _is_safe(file.rfilename)}
    if not COMMIT.fullmatch(info.sha or "") or None in files.values():
        raise _not_a_hub()
    _names.setdefault((repo, info.sha or ""), set()).add(revision)
    return Repository(repo, info.sha or "", {path: known for path, known in files.items() if known})


def read_text(repository: Repository, path: str, offline: bool = False) -> str:
    """The text of a small file, fetched into the cache. Raises what `fetch` raises, CacheError if it is no text."""
    _download(repository, [path], offline, quiet=True)
    try:
        return (_snapshot(repository) / path).read_text(encoding="utf-8")
    except ValueError as error:
        raise CacheError(f"{path} of {repository.repo} is not text", "name another repository or revision") from error


def read_header(repository: Repository, path: str, offline: bool = False) -> TensorHeader:
    """The header of a safetensors file, by requests for its first bytes; from the disk if the file is in the cache.

    Raises CacheError if it is not safetensors, and what `fetch` raises.
    """
    _check_listed(repository, [path])
    if is_present(repository, path):
        return read_safetensors(_snapshot(repository) / path)
    if is_offline(offline):
        raise _not_cached(repository.repo, path)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import SafetensorsParsingError

    try:
        with _explained(repository.repo, repository.commit, path) as secret:
            found = HfApi().parse_safetensors_file_metadata(
                repository.repo, path, revision=repository.commit, token=secret or False
            )
    except SafetensorsParsingError as error:
        raise CacheError(f"{path} of {repository.repo} is not a safetensors file", "name another file") from error
    tensors = {
        name: TensorInfo(tensor.dtype, tuple(tensor.shape), *tensor.data_offsets)
        for name, tensor in found.tensors.items()
    }
    return TensorHeader(tensors, found.metadata or {})


def fetch(repository: Repository, paths: Iterable[str], offline: bool = False, quiet: bool = False) -> Path:
    """Download these files into the hub's cache and return the snapshot folder; those already there cost no request.

    Each is checked against its size and digest before it gets its name. A progress bar goes to stderr, or a line per
    file where stderr is no terminal. Raises CacheError for a full disk (checked before the first byte) or a damaged
    download, NotFoundError offline, AccessError, or DiffpipeError if the connection stays cut: what arrived is kept,
    and the next call resumes it.
    """
    _download(repository, sorted(set(paths)), offline, quiet)
    if not is_offline(offline):
        with _disk_errors(repository.repo):
            _write_refs(repository)
    return _snapshot(repository)


# The cache


def _folder(repo: str) -> Path:
    """The repository's folder in the hub's cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")


def _snapshot(repository: Repository) -> Path:
    return _folder(repository.repo) / "snapshots" / repository.commit


def _blob(repository: Repository, path: str) -> Path:
    return _folder(repository.repo) / "blobs" / repository.files[path].digest.partition(":")[2]


def _partial(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.incomplete")


def _size(path: Path) -> int:
    """Bytes of a file, links followed; -1 where there is none."""
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return -1


def is_present(repository: Repository, path: str) -> bool:
    """Whether a file is in the cache, as large as it should be."""
    return _size(_snapshot(repository) / path) == repository.files[path].size


def _cached_commit(repo: str, revision: str) -> str | None:
    """The commit of a revision whose snapshot is in the cache."""
    folder = _folder(repo)
    try:
        commit = revision if COMMIT.fullmatch(revision) else (folder / "refs" / revision).read_text().strip()
    except OSError:
        return None
    return commit if COMMIT.fullmatch(commit) and (folder / "snapshots" / commit).is_dir() else None


def _describe_cached(repo: str, revision: str) -> Repository:
    commit = _cached_commit(repo, revision)
    if not commit:
        raise _not_cached(repo, "" if revision == "main" else f"revision {revision}")
    root = _folder(repo) / "snapshots" / commit
    paths = (path for path in sorted(root.rglob("*")) if path.is_file())
    files = {path.relative_to(root).as_posix(): _cached_info(path) for path in paths}
    return Repository(repo, commit, files)


def _cached_info(path: Path) -> FileInfo:
    """Size and digest of a cached file. A link's target is named by the digest; where the file system has no links
    the file itself is hashed, as the hub would: text by git's object id, the rest by SHA-256."""
    size = path.stat().st_size
    name = Path(os.readlink(path)).name if path.is_symlink() else ""
    for digest in (f"git:{name}", f"sha256:{name}"):
        if DIGEST.fullmatch(digest):
            return FileInfo(size, digest)
    return FileInfo(size, content_digest(path, "git:" if size <= LARGEST_TEXT and _is_text(path) else "sha256:"))


def _is_text(path: Path) -> bool:
    try:
        return "\0" not in path.read_text(encoding="utf-8")
    except ValueError:
        return False


def _write_refs(repository: Repository) -> None:
    """Remember which commit a branch or tag is: offline finds it by that name."""
    for revision in _names.get((repository.repo, repository.commit), ()):
        ref = _folder(repository.repo) / "refs" / revision
        if revision != repository.commit and (not ref.is_file() or ref.read_text() != repository.commit):
            ref.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(ref, repository.commit.encode())


# Downloads


def _download(repository: Repository, paths: list[str], offline: bool, quiet: bool) -> None:
    _check_listed(repository, paths)
    with _disk_errors(repository.repo):
        missing = [path for path in paths if not is_present(repository, path)]
        if missing and is_offline(offline):
            raise _not_cached(repository.repo, missing[0])
        if missing:
            _download_files(repository, missing, quiet)


def _download_files(repository: Repository, paths: list[str], quiet: bool) -> None:
    from huggingface_hub.utils.tqdm import tqdm

    # Equal content is stored, and so counted, once.
    sizes = {_blob(repository, path): repository.files[path].size for path in paths}
    present = sum(_bytes_there(blob, size) for blob, size in sizes.items())
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
                print(f"downloading {path} ({_amount(repository.files[path].size)})", file=sys.stderr)
            large = repository.files[path].size > PLAIN_HTTP_LIMIT
            (_download_by_client if large else _download_file)(repository, path, bar)


def _bytes_there(blob: Path, size: int) -> int:
    """Of `size` bytes, how many the cache holds: all, those of a download that stopped, or none."""
    if _size(blob) == size:
        return size
    partial = _size(_partial(blob))
    return partial if 0 < partial <= size else 0


def _check_disk(repo: str, needed: int) -> None:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())).free
    if needed > free:
        raise CacheError(
            f"{repo} needs {_amount(needed)} more on the disk of the hub's cache, where {_amount(free)} are free",
            "free some space (`hf cache prune`, `hf cache rm`) or point HF_HOME to a folder on a larger disk",
        )


def _download_file(repository: Repository, path: str, bar: tqdm) -> None:
    """Bring one file to its place, under the lock that the hub's client uses for it."""
    from huggingface_hub import constants
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    blob, size = _blob(repository, path), repository.files[path].size
    lock = Path(constants.HF_HUB_CACHE) / ".locks" / blob.parent.parent.name / f"{blob.name}.lock"
    for folder in (lock.parent, blob.parent, (_snapshot(repository) / path).parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if _size(blob) != size:
            _stream_to_end(repository, path, _partial(blob), bar)
            _check_content(repository, path, _partial(blob))
            os.replace(_partial(blob), blob)
        _link(blob, _snapshot(repository) / path)


def _download_by_client(repository: Repository, path: str, bar: tqdm) -> None:
    """Leave one file to the hub's client, with Xet; a download that stops starts over."""
    from huggingface_hub import hf_hub_download

    with _explained(repository.repo, repository.commit, path) as secret:
        hf_hub_download(repository.repo, path, revision=repository.commit, token=secret or False)
    bar.update(repository.files[path].size)


def _stream_to_end(repository: Repository, path: str, partial: Path, bar: tqdm) -> None:
    """Stream until the file is whole, resuming after each cut; gives up after some attempts that bring nothing."""
    from httpx2 import TransportError
    from huggingface_hub.errors import HfHubHTTPError

    size = repository.files[path].size
    if _size(partial) > size:
        partial.unlink()
    pauses = list(PAUSES)
    with _explained(repository.repo, repository.commit, path) as secret:
        while (before := _size(partial)) != size:
            try:
                _stream(repository, path, partial, bar, secret)
                if before >= _size(partial):
                    raise _damaged(repository, path)
            except (TransportError, HfHubHTTPError) as error:
                done = _size(partial)
                if done > before:
                    pauses = list(PAUSES)
                if not _may_pass(error, done) or (done <= 0 and not pauses):
                    raise
                if not pauses:
                    raise _cut(repository, path, done, _scrub(error, secret)) from error
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
    from huggingface_hub import constants, get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    size = repository.files[path].size
    url = hf_hub_url(repository.repo, path, revision=repository.commit)
    with partial.open("ab") as out:
        start = out.tell()
        # Compressed bodies cannot be resumed.
        headers = build_hf_headers(token=secret or False, headers={"Accept-Encoding": "identity"})
        if start:
            headers["Range"] = f"bytes={start}-"
        with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
            if response.status_code == 416:  # the hub's file is shorter than it announced
                out.truncate(0)
                raise _damaged(repository, path)
            hf_raise_for_status(response)
            if start and response.status_code != 206:  # a server that knows no ranges sends all of it
                out.truncate(0)
                bar.update(-start)
                start = 0
            for chunk in response.iter_bytes():
                start += len(chunk)
                if start > size:
                    out.truncate(0)
                    raise _damaged(repository, path)
                out.write(chunk)
                bar.update(len(chunk))


def _check_content(repository: Repository, path: str, partial: Path) -> None:
    info = repository.files[path]
    if _size(partial) != info.size or content_digest(partial, info.digest) != info.digest:
        partial.unlink()
        raise _damaged(repository, path)


def _link(blob: Path, pointer: Path) -> None:
    """Make the snapshot's file: a relative link to the blob, or the blob itself where the file system has no links."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import are_symlinks_supported

    pointer.unlink(missing_ok=True)
    if are_symlinks_supported(constants.HF_HUB_CACHE):
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    else:
        os.replace(blob, pointer)


# What is wrong, in the user's terms


def _check_names(repo: str, revision: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(f"{repo!r} is not the name of a hub repository", "write owner/name") from error
    if not _is_safe(revision):
        raise UsageError(f"{revision!r} is not a revision", "give a branch, a tag or a commit")


def _check_listed(repository: Repository, paths: list[str]) -> None:
    for path in paths:
        if path not in repository.files:
            raise NotFoundError(
                f"{repository.repo} has no file {path} at {repository.commit[:7]}",
                f"see its files at {_page(repository.repo)}/tree/{repository.commit}",
            )


def _is_safe(path: str) -> bool:
    """Whether a name from outside stays inside the folder it is put in."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and not any(c in path for c in "\\:\0") and ".." not in parts


def _file_info(sibling: Any) -> FileInfo | None:
    """Size and digest of a file in the hub's listing; None if the listing lacks them."""
    digest = f"sha256:{sibling.lfs.sha256}" if sibling.lfs else f"git:{sibling.blob_id}"
    return FileInfo(sibling.size, digest) if isinstance(sibling.size, int) and DIGEST.fullmatch(digest) else None


def _page(repo: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repo}"


def _amount(count: int) -> str:
    """Bytes for reading, in powers of 1000 as disks are sold and as the progress bar counts."""
    value, units = float(count), ["bytes", "kB", "MB", "GB", "TB", "PB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "bytes" else f"{value:.1f} {units[0]}"


def _not_cached(repo: str, part: str = "") -> NotFoundError:
    what = f"{part} of {repo}" if part else repo
    return NotFoundError(f"{what} is not in the cache, and offline is on", "run it once without --offline")


def _not_a_hub() -> DiffpipeError:
    return DiffpipeError(
        "the answer did not come from a model hub", "check HF_ENDPOINT, a proxy or a network that asks you to sign in"
    )


def _damaged(repository: Repository, path: str) -> CacheError:
    return CacheError(
        f"the download of {path} of {repository.repo} is damaged: its content is not what the hub announced",
        "run the same command again: it downloads that file anew",
    )


def _cut(repository: Repository, path: str, done: int, cause: str) -> DiffpipeError:
    size = repository.files[path].size
    return DiffpipeError(
        f"the connection was cut at {_amount(done)} of {_amount(size)} of {path} of {repository.repo} ({cause})",
        "check your connection, then run the same command again: it resumes there",
    )


@contextmanager
def _disk_errors(repo: str) -> Iterator[None]:
    """Say what a full or read-only disk means; the hub client's own errors are OSErrors too and pass."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise CacheError(
                f"the disk of the hub's cache is full: {repo} did not fit",
                "free some space (`hf cache rm`) or set HF_HOME to a larger disk, then run this again: it resumes",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise CacheError(
                f"the hub's cache cannot be written ({error.strerror})",
                "mend its permissions, or set HF_HOME to a folder of yours",
            ) from error
        raise


@contextmanager
def _explained(repo: str, revision: str, path: str = "") -> Iterator[str | None]:
    """Yield the token to send; turn the hub client's errors into ours, with no token left in any of them."""
    from httpx2 import HTTPError, InvalidURL
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    secret = token()
    try:
        yield secret
    except OfflineModeIsEnabled as error:
        raise _not_cached(repo, path) from error
    except HfHubHTTPError as error:
        raise _refused(error, repo, revision, path, secret) from error
    except (HTTPError, InvalidURL) as error:
        raise _unreachable(repo, revision, _scrub(error, secret)) from error
    except json.JSONDecodeError as error:
        raise _not_a_hub() from error


def _unreachable(repo: str, revision: str, cause: str) -> DiffpipeError:
    from huggingface_hub import constants

    hint = f"check your connection and HF_ENDPOINT ({constants.ENDPOINT})"
    if _cached_commit(repo, revision):
        hint += "; the cache holds a copy of it, which --offline would use"
    return DiffpipeError(f"the model hub cannot be reached ({cause or 'no answer'})", hint)


def _refused(error: HfHubHTTPError, repo: str, revision: str, path: str, secret: str | None) -> DiffpipeError:
    """What an HTTP status means. A hub answers 401 for what may be private, and names the rest by X-Error-Code
    (huggingface_hub.utils.hf_raise_for_status lists the codes)."""
    status, code = error.response.status_code, error.response.headers.get("X-Error-Code", "")
    cause, page = _scrub(error, secret), _page(repo)
    if status in (401, 403):
        return _forbidden(repo, status, code, (error.server_message or "").lower(), bool(secret))
    if code == "RevisionNotFound":
        return NotFoundError(f"{repo} has no revision {revision}", f"see its branches and tags at {page}/tree/main")
    if code == "EntryNotFound":
        return NotFoundError(f"{repo} has no file {path} at {revision[:7]}", f"see its files at {page}")
    if status == 404:
        hint = "check the spelling, and that your token may read it" if secret else f"check the spelling; {_sign_in()}"
        return NotFoundError(f"there is no repository {repo} on the hub", hint)
    if status == 429:
        return DiffpipeError("the hub asks for fewer requests", "wait some minutes; a token (HF_TOKEN) allows more")
    if status >= 500:
        return _unreachable(repo, revision, f"it answers {status}")
    return DiffpipeError(f"the hub refused {repo}: {cause}", f"open {page} to see whether it is there")


def _forbidden(repo: str, status: int, code: str, said: str, signed_in: bool) -> AccessError:
    page = _page(repo)
    settings = f"{page.removesuffix(repo)}settings/tokens"
    if signed_in and status == 401 and code != "GatedRepo":
        return AccessError("the hub does not accept the access token (wrong or expired)", f"make one at {settings}")
    if "disabled" in said:
        return AccessError(f"{repo} has been disabled on the hub", "name another repository")
    # A fine-grained token that lacks the permission for gated repositories gets the code of a licence not accepted.
    if code == "GatedRepo" and "fine-grained" not in said:
        extra = "" if signed_in else " with HF_TOKEN set or after `hf auth login`"
        hint = f"open {page}, accept the licence, then run this again{extra}"
        return AccessError(f"the licence of {repo} must be accepted first", hint)
    if status == 403:
        return AccessError(f"the access token may not read {repo}", f"give it that permission at {settings}")
    return AccessError(f"{repo} does not exist or is private", f"check the spelling; {_sign_in()}")


def _sign_in() -> str:
    return "if it is private, set HF_TOKEN or run `hf auth login`"


def _scrub(error: BaseException, secret: str | None) -> str:
    """Take the token out of an error and of those behind it, which --traceback and logs print; its first line."""
    behind: BaseException | None = error
    while behind is not None:
        behind.args = tuple(_without(value, secret) if isinstance(value, str) else value for value in behind.args)
        behind = behind.__cause__ or behind.__context__
    return (str(error).strip().splitlines() or [type(error).__name__])[0].partition(" for url ")[0]


def _without(text: str, secret: str | None) -> str:
    """A text without the token, without what looks like one, and without queries, which sign addresses of files."""
    text = re.sub(r"(https?://[^\s?]+)\?[^\s'\"]+", r"\1", text.replace(secret, "<token>") if secret else text)
    return re.sub(r"\bhf_\w{8,}", "<token>", text)
