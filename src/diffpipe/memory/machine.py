"""What memory this machine has, without torch: from the kernel, and from nvidia-smi where there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

SMI = ("--query-gpu=index,uuid,name,memory.total,memory.free", "--format=csv,noheader,nounits")
PATIENCE = 5  # seconds: nvidia-smi answers in a tenth of one, and hangs with a broken driver


@dataclass(frozen=True)
class Gpu:
    """A GPU by the index that torch gives it: bytes in all, and bytes no process holds now."""

    index: int
    name: str
    total: int
    free: int


def gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs that torch will see, () where there is none or no nvidia-smi that answers."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        done = subprocess.run([program, *SMI], capture_output=True, text=True, timeout=PATIENCE, check=True)
        found = [_gpu(line) for line in done.stdout.splitlines() if line.strip()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()
    return tuple(_visible(found, os.environ.get("CUDA_VISIBLE_DEVICES")))


def _gpu(line: str) -> tuple[str, Gpu]:
    """A line of nvidia-smi's: index, UUID, name, MiB in all, MiB free. Raises ValueError for "[N/A]"."""
    index, uuid, name, total, free = (word.strip() for word in line.split(","))
    return uuid, Gpu(int(index), name, int(total) << 20, int(free) << 20)


def _visible(found: list[tuple[str, Gpu]], named: str | None) -> Iterator[Gpu]:
    """The GPUs that CUDA_VISIBLE_DEVICES names, by index or the beginning of a UUID, in its order and numbered anew.

    CUDA sees those before the first that is not there (CUDA C++ Programming Guide, environment variables).
    """
    words = [str(gpu.index) for _, gpu in found] if named is None else [word.strip() for word in named.split(",")]
    for number, word in enumerate(words):
        chosen = next(
            (g for uuid, g in found if word == str(g.index) or (len(word) > 4 and uuid.startswith(word))), None
        )
        if chosen is None:
            return
        yield replace(chosen, index=number)


def host_free(root: Path = Path("/")) -> int | None:
    """Bytes of host memory that a program can have without swapping; None where the system does not say.

    MemAvailable of /proc/meminfo, within the limit of the control group (cgroup v2, memory.max). What a group uses
    counts the pages of files it read, which the kernel drops when memory is wanted: those unused for long
    (inactive_file of memory.stat) are free.
    """
    try:
        lines = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return _physical()
    group = root / "sys/fs/cgroup"
    try:
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # no control group, or "max": no limit
        return free
    return max(0, min(free, limit - used + _droppable(group)))


def _droppable(group: Path) -> int:
    try:
        lines = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(lines["inactive_file"])
    except (OSError, KeyError, ValueError):
        return 0


def host_total(root: Path = Path("/")) -> int | None:
    """Bytes of host memory and swap in all, within the limit of the control group; None where nothing says."""
    try:
        lines = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
        memory, swap = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "SwapTotal"))
    except (OSError, KeyError, ValueError):
        return _physical()
    try:
        return min(memory, int((root / "sys/fs/cgroup/memory.max").read_text())) + swap
    except (OSError, ValueError):  # no control group, or "max": no limit
        return memory + swap


def _physical() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def resident() -> int | None:
    """Bytes of memory that this process holds now; None where the system does not say (proc(5), statm)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        pass
    try:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # the peak, in bytes on macOS
    except ImportError:
        return None
