"""Input files, and results, as they go from one node to another."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from ...storage.opening import read_regular

MOST_BYTES = 1 << 33  # of one file, which is held in memory as it goes: as many as a film has in it

Files: TypeAlias = dict[str, bytes]  # the content of a file by "", or of a folder's files by their names
State: TypeAlias = list[tuple[str, int, int]]  # of each file: name, size, time of the last change (ns)


def state(path: Path) -> State:
    """What tells the content of a file, or of a folder's files, from another."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    found = [(file.name, file.stat()) for file in files if file.is_file()]
    return [(name, status.st_size, status.st_mtime_ns) for name, status in found]


def content(path: Path) -> Files:
    """A file, or the files of a folder."""
    if not path.is_dir():
        return {"": read_regular(path, MOST_BYTES)}
    return {file.name: read_regular(file, MOST_BYTES) for file in sorted(path.iterdir()) if file.is_file()}


def lay_out(files: Files, path: Path) -> None:
    """Write what `content` read."""
    if "" in files:
        path.write_bytes(files[""])
        return
    path.mkdir()
    for name, data in files.items():
        (path / Path(name).name).write_bytes(data)
