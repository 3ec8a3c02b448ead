"""What is asked of the model hub: which files a repository has, what their headers say, and small files.

Its answers are parsed into types here, within limits. Requests are in hub_client.py, downloads in download.py, the
cache in hub_cache.py, what goes wrong in hub_errors.py.
"""

from __future__ import annotations

from itertools import pairwise
from urllib.parse import quote

from ..core.errors import CacheError, UsageError
from ..core.names import COMMIT, DIGEST, stays_inside
from ..core.parsing import Fields, Misfit, parse_json
from ..core.source import FileInfo
from ..storage.disk import readable, shortened
from ..storage.opening import LARGEST_TEXT, read_regular
from ..storage.tensor_headers import LENGTH, TensorHeader, header_length, parse, read_safetensors
from . import download
from .hub_cache import Repository, cached, is_present, note_name, snapshot
from .hub_client import body, content, is_offline, page, token
from .hub_errors import explained, not_cached, not_listed

LARGEST_LISTING = 40_000_000  # bytes: some 300 a file, and the model card's data
MOST_FILES = 100_000  # of a repository; the hub advises against more
MOST_BRACKETS = 2_000_000  # [, { and : in a listing: a file has ten, and each costs up to 150 bytes once it is read
HEAD = 100_001  # bytes of a safetensors file that are asked for first: most headers are shorter


def describe(repo: str, revision: str | None = None, offline: bool = False) -> Repository:
    """The commit of a revision (default main) and its files, in one request; offline from the cache.

    Raises UsageError for what is no repository id; NotFoundError for a repository or revision that does not exist, or
    is not in the cache when offline; AccessError for a private one; DiffpipeError if the hub cannot be reached, even
    when the cache holds a copy: an older commit is used only where --offline asks for it.
    """
    revision = revision or "main"
    _check_names(repo, revision)
    if is_offline(offline):
        found = cached(repo, revision)
        if not found:
            raise not_cached(repo, "" if revision == "main" else f"revision {revision}")
        return found
    secret = token()
    with explained(repo, revision, secret=secret):
        repository = _listing(repo, body(_listing_url(repo, revision), secret, LARGEST_LISTING))
    note_name(repository, revision)
    return repository


def read_text(repository: Repository, path: str, offline: bool = False) -> str:
    """The text of a small file, fetched into the cache.

    Raises what `fetch` raises, and CacheError if it is no text or larger than LARGEST_TEXT.
    """
    if path in repository.files and repository.files[path].size > LARGEST_TEXT:
        what = f"{shortened(path)} of {repository.repo} is larger than {readable(LARGEST_TEXT)}"
        raise CacheError(f"{what}: it is no file of settings", "name another repository or revision")
    download.bring(repository, [path], offline, quiet=True)
    try:
        return read_regular(snapshot(repository) / path, LARGEST_TEXT).decode()
    except ValueError as error:
        raise CacheError(
            f"{shortened(path)} of {repository.repo} is not text", "name another repository or revision"
        ) from error


def read_header(repository: Repository, path: str, offline: bool = False) -> TensorHeader:
    """The header of a safetensors file, by requests for its first bytes; from the disk if the file is in the cache.

    Raises CacheError if it is not safetensors, and what `fetch` raises.
    """
    if path not in repository.files:
        raise not_listed(repository, path)
    if is_present(repository, path):
        return read_safetensors(snapshot(repository) / path)
    if is_offline(offline):
        raise not_cached(repository.repo, path)
    try:
        head = _part(repository, path, 0, HEAD)
        length = header_length(head)
        if len(head) < LENGTH + length:
            head += _part(repository, path, len(head), LENGTH + length)
        return parse(head[LENGTH : LENGTH + length], repository.files[path].size - LENGTH - length)
    except Misfit as error:
        raise CacheError(
            f"{shortened(path)} of {repository.repo} is not a safetensors file", "name another file"
        ) from error


def _part(repository: Repository, path: str, start: int, end: int) -> bytes:
    """The bytes of a file from `start` to `end`, of which there may be fewer."""
    secret, data = token(), bytearray()
    with (
        explained(repository.repo, repository.commit, path, secret),
        content(repository.repo, repository.commit, path, secret, f"bytes={start}-{end - 1}") as response,
    ):
        if response.status_code == 416:  # there are none
            return b""
        at = start if response.status_code == 206 else 0  # a server that knows no ranges sends all of it
        for chunk in response.iter_bytes():
            data += chunk
            if len(data) >= end - at:
                break
    return bytes(data[start - at : end - at])


# A repository's listing


def _listing_url(repo: str, revision: str) -> str:
    place = "" if revision == "main" else f"/revision/{quote(revision, safe='')}"
    return page(f"api/models/{repo}{place}?blobs=true")


def _listing(repo: str, data: bytes) -> Repository:
    """The commit and files of the hub's answer about a model. Raises Misfit for another one.

    Files whose names lead elsewhere, or which no disk could hold, are as if they were not there.
    """
    if sum(map(data.count, (b"[", b"{", b":"))) > MOST_BRACKETS:
        raise Misfit("the hub's answer has too many values")
    fields = Fields(parse_json(data, LARGEST_LISTING, "the hub's answer"))
    commit = fields.text("sha")
    if not COMMIT.fullmatch(commit):
        raise Misfit("sha is no commit")
    files = {file.text("rfilename"): file for file in fields.objects("siblings")}
    if len(files) > MOST_FILES:
        raise Misfit(f"it lists more than {MOST_FILES} files")
    known = {path: _file_info(file) for path, file in files.items() if _is_safe(path)}
    in_order = sorted(path.replace("/", "\0") for path in known)  # what is in a folder follows its name at once
    if any(after.startswith(before + "\0") for before, after in pairwise(in_order)):
        raise Misfit("a file and a folder have one name")  # which no commit has
    return Repository(repo, commit, known)


def _file_info(file: Fields) -> FileInfo:
    """Size and digest of a file of a listing."""
    digest = f"sha256:{file.object('lfs').text('sha256')}" if "lfs" in file else f"git:{file.text('blobId')}"
    if not DIGEST.fullmatch(digest):
        raise Misfit(f"{file.where} has no digest")
    return FileInfo(file.integer("size"), digest)


def _check_names(repo: str, revision: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(f"{repo!r} is not the name of a hub repository", "write owner/name") from error
    if not _is_safe(revision):
        raise UsageError(f"{revision!r} is not a revision", "give a branch, a tag or a commit")


def _is_safe(path: str) -> bool:
    """Whether a name from outside stays inside the folder it is put in, and can be given to a file."""
    lone = any("\ud800" <= character <= "\udfff" for character in path)  # half of a pair, which is no character
    return stays_inside(path) and not lone and "\\" not in path and ":" not in path
