"""Whether a cache entry and the files it stands on are what they were at the build."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from ..core.errors import CacheError
from ..core.source import FileInfo, Source, file_of, place_of
from ..storage.disk import content_digest, identity
from . import weights
from .store import SHORT, Entry, Store


def locate(entry: Entry, manifest: dict[str, Any]) -> dict[str, Path]:
    """role -> folder or file of every source, each checked to be unchanged since the build.

    Files whose size and times are as recorded are not read again. Raises CacheError with the command to rebuild.
    """
    recorded = entry.sources()
    if not recorded:
        raise CacheError(f"the cache entry {entry.key[:SHORT]} lost its record of sources", entry.mend())
    identities = recorded.get("identities", {})
    changed = False
    for source in map(Source.from_json, manifest["sources"]):
        seen = identities.setdefault(source.role, {})
        for path, info in source.files.items():
            place = file_of(source, recorded.get("locations", {}).get(source.role, ""), path)
            now = identity(place) if place.exists() else None
            if now is None or now != seen.get(path):
                problem = check_file(source, path, place, info)
                if problem:
                    mend = entry.mend()
                    if now is None and source.kind in ("folder", "file") and mend.startswith("build"):
                        mend = f"put it back, or give its new place to this: {entry.rebuild()}"
                    raise CacheError(f"{problem} since {entry.key[:SHORT]} was built", mend)
                seen[path], changed = now, True
    if changed:
        with suppress(OSError):  # a cache that may only be read serves as well
            entry.set_sources(recorded)
    found = {role: place_of(location) for role, location in recorded["locations"].items()}
    return found | _stored(entry, manifest)


def _stored(entry: Entry, manifest: dict[str, Any]) -> dict[str, Path]:
    """Where the quantized weights lie, each file what it was when it was written. Raises CacheError."""
    if "quantization" not in manifest:
        return {}
    store, key = Store(entry.folder.parent.parent), manifest["quantization"]["key"]
    try:
        weights.files(store, key)
    except CacheError as error:
        raise CacheError(error.message, entry.mend()) from error
    return {"weights": weights.folder(store, key)}


def check_file(source: Source, path: str, place: Path, info: FileInfo) -> str | None:
    """What is wrong with a source's file, None if it is what it was."""
    label = f"{path} of {source.label}" if source.kind != "file" else path
    try:
        size = place.stat().st_size
    except OSError:
        return f"{label} was moved or removed"
    if size != info.size:
        return f"{label} changed its size from {info.size} to {size} bytes"
    try:
        same = content_digest(place, info.digest) == info.digest
    except OSError as error:
        return f"{label} cannot be read ({error.strerror})"
    return None if same else f"{label} was changed"


def problems(entry: Entry) -> list[str]:
    """Everything wrong with an entry, each file read whole."""
    found = entry.faults()
    if found:
        return found
    manifest, locations = entry.manifest(), entry.sources()["locations"]
    for source in map(Source.from_json, manifest["sources"]):
        for path, info in source.files.items():
            problem = check_file(source, path, file_of(source, locations.get(source.role, ""), path), info)
            if problem:
                found.append(problem)
    if "quantization" in manifest:
        found += weights.problems(Store(entry.folder.parent.parent), manifest["quantization"]["key"])
    return found
