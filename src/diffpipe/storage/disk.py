"""Local files: atomic writes, content digests that are computed once, safetensors headers, and free disk."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.canonical import canonical_json
from ..core.errors import CacheError, UsageError
from ..core.source import FileInfo

MAX_HEADER = 100_000_000  # bytes; the limit the safetensors format itself sets
SETTLED = 2.0  # seconds: a file changed later than this before hashing may change again within one clock tick
CHUNK = 1 << 20

Progress = Callable[[int], None]


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, or a crash, sees the old file or the new one and never a part."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def umask() -> int:
    """This process's umask, which can only be read by setting it: to a strict one, as other threads may make files."""
    os.umask(found := os.umask(0o077))
    return found


def mark(path: Path) -> str:
    """How the temporary files that become a file begin: what a crash left of it can be told from those of others."""
    return f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}."


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files and folders that a crash left of a file that nobody is writing now."""
    for left in path.parent.glob(f"{mark(path)}*.tmp"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, canonical_json(value).encode())


def identity(path: Path) -> list[int]:
    """What changes when a file's content changes: size, times of change (ns), inode. Follows links."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def sha256(path: Path, progress: Progress | None = None) -> str:
    """ "sha256:" and the hex digest of a file's content; `progress` is told the bytes read, chunk by chunk."""
    hasher = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            hasher.update(chunk)
            if progress:
                progress(len(chunk))
    return "sha256:" + hasher.hexdigest()


def git_blob(path: Path) -> str:
    """ "git:" and git's object id of a file (SHA-1 over "blob SIZE" NUL content): how a hub names its small files."""
    data = path.read_bytes()
    return "git:" + hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def content_digest(path: Path, kind: str) -> str:
    """The digest of a file in the notation of a recorded one ("sha256:…" or "git:…")."""
    return git_blob(path) if kind.startswith("git:") else sha256(path)


class DigestCache:
    """SHA-256 digests by path, trusted while the file's identity is the same: gigabytes are read once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def known(self, path: Path) -> FileInfo | None:
        """Size and digest of a file that was read before and is the same still; None for any other."""
        try:
            path = path.resolve(strict=True)
            known = _read_record(self._record(path))
            same = known and known.get("identity") == identity(path) and known.get("path") == str(path)
            return FileInfo(path.stat().st_size, known["digest"]) if known and same else None
        except OSError:
            return None

    def _record(self, path: Path) -> Path:
        return self.folder / hashlib.sha256(str(path).encode()).hexdigest()[:32]

    def get(self, path: Path, progress: Progress | None = None) -> FileInfo:
        """Size and digest of a file.

        Raises UsageError if the file cannot be read.
        """
        try:
            path = path.resolve(strict=True)
            before = identity(path)
            record = self._record(path)
            known = _read_record(record)
            if known and known.get("identity") == before and known.get("path") == str(path):
                return FileInfo(before[0], known["digest"])
            started = time.time()
            digest = sha256(path, progress)
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}", "check the path and its permissions") from error
        if identity(path) == before and started - max(before[1], before[2]) / 1e9 > SETTLED:
            self.folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.folder.mkdir(exist_ok=True, mode=0o700)
            write_json(record, {"path": str(path), "identity": before, "digest": digest})
        return FileInfo(before[0], digest)


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def safetensors_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: tensor name -> {"dtype", "shape", "data_offsets"} (and "__metadata__").

    The format (huggingface/safetensors, README "Format"): 8 bytes little-endian header size, the header, the data.
    Raises CacheError if the file is cut short or is not safetensors.
    """
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > MAX_HEADER:
                raise ValueError("header too long")
            header: dict[str, Any] = json.loads(stream.read(length))
        end = max((t["data_offsets"][1] for n, t in header.items() if n != "__metadata__"), default=0)
        if path.stat().st_size != 8 + length + end:
            raise ValueError("length differs from what the header says")
    except (ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise CacheError(
            f"{path.name} in {path.parent.name} is not a complete safetensors file", "fetch or copy the file again"
        ) from error
    return header


def weigh(headers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Parameters (elements), bytes and dtypes of the tensors that safetensors headers describe."""
    tensors = [tensor for header in headers for name, tensor in header.items() if name != "__metadata__"]
    return {
        "parameters": sum(math.prod(tensor["shape"]) for tensor in tensors),
        "bytes": sum(tensor["data_offsets"][1] - tensor["data_offsets"][0] for tensor in tensors),
        "dtypes": tuple(sorted({tensor["dtype"] for tensor in tensors})),
    }


def readable(count: float) -> str:
    """Bytes for people, in the units of disks and downloads (1 MB is 1,000,000 bytes)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"
