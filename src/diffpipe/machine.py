"""What memory this machine has, without torch: from the kernel, and from nvidia-smi where there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SMI = ("--query-gpu=index,name,memory.total,memory.free", "--format=csv,noheader,nounits")
PATIENCE = 5  # seconds: nvidia-smi answers in a tenth of one, and hangs with a broken driver


@dataclass(frozen=True)
class Gpu:
    """A GPU by its index: bytes in all, and bytes no process holds now."""

    index: int
    name: str
    total: int
    free: int


def gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs here, () where there is none or no nvidia-smi that answers."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        done = subprocess.run([program, *SMI], capture_output=True, text=True, timeout=PATIENCE, check=True)
        return tuple(_gpu(line) for line in done.stdout.splitlines() if line.strip())
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()


def _gpu(line: str) -> Gpu:
    """A line of nvidia-smi's: index, name, MiB in all, MiB free. Raises ValueError for "[N/A]"."""
    index, name, total, free = (word.strip() for word in line.split(","))
    return Gpu(int(index), name, int(total) << 20, int(free) << 20)


def host_free(root: Path = Path("/")) -> int | None:
    """Bytes of host memory that a program can have without swapping; None where the system does not say.

    MemAvailable of /proc/meminfo, within the limit of the control group (cgroup v2, memory.max).
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
    return max(0, min(free, limit - used))


def _physical() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
