"""Limits of Linux control groups on the memory of this process: of its own group and of each above it.

A system slice, a container or a batch system's job may set one at any level, and the least of all holds (Linux kernel,
admin-guide/cgroup-v2 "Memory" and cgroup-v1/memory).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")


@dataclass(frozen=True)
class Group:
    """A group with a limit: its bytes, and those of `used` that the kernel would not give back when memory is wanted.

    What a group uses counts the pages of files it read; those unused for long (inactive_file) the kernel drops.
    `with_swap`: the limit on memory and swap together, None where there is none.
    """

    limit: int
    used: int
    with_swap: int | None = None

    @property
    def free(self) -> int:
        return max(0, self.limit - self.used)


def groups(root: Path = ROOT) -> Iterator[Group]:
    """Every group with a limit, from this process's own up to the topmost that can be seen; none on other systems."""
    for folder, version in _folders(root):
        if found := (_second if version == 2 else _first)(folder):
            yield found


def _folders(root: Path) -> Iterator[tuple[Path, int]]:
    """The folders of the groups, with the version of their hierarchy.

    In a container without a namespace for control groups the process's path is the host's, and only the topmost folder
    is there: the container's own.
    """
    mount = root / "sys/fs/cgroup"
    for hierarchy, controllers, path in _memberships(root):
        names = [name for name in PurePosixPath(path).parts if name not in ("/", "..")]
        first = "memory" in controllers.split(",")
        if first or hierarchy == "0":
            top = mount / "memory" if first else mount
            for depth in range(len(names), -1, -1):
                yield top.joinpath(*names[:depth]), 1 if first else 2


def _memberships(root: Path) -> list[list[str]]:
    """Lines of /proc/self/cgroup: the hierarchy's number ("0" for version 2), its controllers, the group's path."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return [["0", "", "/"]]
    return [parts for line in lines if len(parts := line.split(":", 2)) == 3]


def _second(folder: Path) -> Group | None:
    limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
    if limit is None or used is None:
        return None
    swap = _number(folder / "memory.swap.max")
    return Group(limit, used - _dropped(folder, "inactive_file"), None if swap is None else limit + swap)


def _first(folder: Path) -> Group | None:
    limit, used = _number(folder / "memory.limit_in_bytes"), _number(folder / "memory.usage_in_bytes")
    if limit is None or used is None:
        return None
    both = _number(folder / "memory.memsw.limit_in_bytes")
    return Group(limit, used - _dropped(folder, "total_inactive_file"), both)


def _number(path: Path) -> int | None:
    """A file's number; None for "max" (no limit), or where there is no such file."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _dropped(folder: Path, name: str) -> int:
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name} "))
    except (OSError, ValueError, IndexError, StopIteration):
        return 0
