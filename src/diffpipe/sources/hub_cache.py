"""The hub's own cache (HF_HOME, HF_HUB_CACHE) in its own layout, so that other programs use the same copies.

blobs/DIGEST holds the bytes, snapshots/COMMIT/PATH links to them, refs/REVISION names a commit, and
blobs/DIGEST.incomplete is a download that stopped (https://huggingface.co/docs/huggingface_hub/guides/manage-cache).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..core.names import COMMIT, DIGEST
from ..core.source import FileInfo, Source
from ..storage.digests import content_digest
from ..storage.disk import write_atomic
from ..storage.opening import read_regular
from . import hub_seam

LONGEST_REF = 1000  # bytes of a file that holds a commit, which has 40
NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
LARGEST_TEXT = 10_000_000  # bytes: the hub keeps larger files, and binary ones, by SHA-256

# (repository, commit) -> the revisions that named it in this process: downloads record them once the files are there,
# so that a listing alone never moves a name away from a commit that offline work can use.
_names: dict[tuple[str, str], set[str]] = {}


@dataclass(frozen=True)
class Repository:
    """A hub repository at one commit: all its files, or offline those in the cache."""

    repo: str
    commit: str
    files: Mapping[str, FileInfo]

    @classmethod
    def of(cls, source: Source) -> Repository:
        """The repository of a pinned source, with the files that it pins."""
        return cls(source.label, source.commit or "", source.files)


# Where things lie


def root() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def folder(repo: str) -> Path:
    """The repository's folder in the hub's cache."""
    return root() / hub_seam.folder_name(repo)


def snapshot(repository: Repository) -> Path:
    return folder(repository.repo) / "snapshots" / repository.commit


def blob_of(repository: Repository, path: str) -> Path:
    return folder(repository.repo) / "blobs" / repository.files[path].digest.partition(":")[2]


def lock_file(blob: Path) -> Path:
    return root() / ".locks" / blob.parent.parent.name / f"{blob.name}.lock"


def partial_of(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.incomplete")


# What is there


def size_of(path: Path) -> int:
    """Bytes of a plain file, links followed; -1 where there is none."""
    try:
        facts = path.stat()
    except OSError as error:
        if error.errno in NOT_THERE:
            return -1
        raise
    return facts.st_size if stat.S_ISREG(facts.st_mode) else -1


def is_inside(path: Path, repository: Path) -> bool:
    """Whether a path, links followed, is one of a repository's folder in the hub's cache: others may write into it, and
    links lead anywhere. That folder, or its blobs, may itself be a link, as to a larger disk."""
    place = path.resolve()
    return any(place.is_relative_to(home.resolve()) for home in (root(), repository, repository / "blobs"))


def is_present(repository: Repository, path: str) -> bool:
    """Whether a file is in the cache, as large as it should be; a link to what has another digest is not it."""
    place = snapshot(repository) / path
    if size_of(place) != repository.files[path].size or not is_inside(place, folder(repository.repo)):
        return False
    return not place.is_symlink() or Path(os.readlink(place)).name == blob_of(repository, path).name


def has_blob(blob: Path, size: int) -> bool:
    """Whether the bytes of a file are in the cache."""
    return size_of(blob) == size and is_inside(blob, blob.parent.parent)


def bytes_there(blob: Path, size: int) -> int:
    """Of `size` bytes, how many the cache holds: all, those of a download that stopped, or none."""
    if has_blob(blob, size):
        return size
    stopped = size_of(partial_of(blob))
    return stopped if 0 < stopped <= size else 0


def cached_commit(repo: str, revision: str) -> str | None:
    """The commit of a revision whose snapshot is in the cache."""
    place = folder(repo)
    try:
        ref = place / "refs" / revision
        commit = revision if COMMIT.fullmatch(revision) else read_regular(ref, LONGEST_REF).decode().strip()
    except (OSError, ValueError):
        return None
    return commit if COMMIT.fullmatch(commit) and (place / "snapshots" / commit).is_dir() else None


def cached(repo: str, revision: str) -> Repository | None:
    """A repository as the cache has it, None where it has nothing of that revision."""
    commit = cached_commit(repo, revision)
    if not commit:
        return None
    place = folder(repo) / "snapshots" / commit
    paths = (path for path in sorted(place.rglob("*")) if path.is_file() and is_inside(path, folder(repo)))
    return Repository(repo, commit, {path.relative_to(place).as_posix(): _cached_info(path) for path in paths})


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
        return "\0" not in read_regular(path, LARGEST_TEXT).decode()
    except ValueError:
        return False


# What is put there


def link(blob: Path, pointer: Path) -> None:
    """Make the snapshot's file: a relative link to the blob, or the blob itself where the file system has no links."""
    pointer.unlink(missing_ok=True)
    if hub_seam.has_links():
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    else:
        os.replace(blob, pointer)


def note_name(repository: Repository, revision: str) -> None:
    """Remember what a commit was called, for `write_refs`."""
    _names.setdefault((repository.repo, repository.commit), set()).add(revision)


def write_refs(repository: Repository) -> None:
    """Write which commit a branch or tag is: offline finds it by that name."""
    for revision in _names.get((repository.repo, repository.commit), ()):
        ref = folder(repository.repo) / "refs" / revision
        if revision != repository.commit and not _says(ref, repository.commit):
            ref.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(ref, repository.commit.encode())


def _says(ref: Path, commit: str) -> bool:
    try:
        return read_regular(ref, LONGEST_REF).decode() == commit
    except (OSError, ValueError):
        return False
