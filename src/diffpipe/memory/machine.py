"""What this machine has: the device that a name means here, how much memory is free and in all. The one answer.

Without torch in this process: its devices are known from device_facts, host memory from psutil within the limits of
control groups, and what is free on NVIDIA's GPUs from nvidia-smi.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from ..core.device_names import DEVICE, DEVICES, DeviceKind, family
from ..core.errors import UsageError
from . import control_groups, device_facts
from .device_facts import Device

SMI = ("--query-gpu=uuid,memory.free", "--format=csv,noheader,nounits")
PATIENCE = 5  # seconds: nvidia-smi answers in a tenth of one, and hangs with a broken driver
ROOT = Path("/")


def accelerators() -> tuple[Device, ...]:
    """The devices that torch can use besides the CPU, those that "auto" prefers first."""
    return device_facts.known()


def accelerator(wanted: str) -> Device | None:
    """What a device's name ("auto", "cuda:1", "mps") means here; None for the CPU, or if it is not here."""
    there = accelerators()
    if wanted == "auto":
        return there[0] if there else None
    return next((one for one in there if one.name in (wanted, f"{wanted}:0")), None)


def names() -> list[str]:
    """What a device may be called: the kinds that torch comes with, then devices that are known to be here."""
    here = (one.name for one in device_facts.remembered())
    return list(dict.fromkeys([*DEVICES, *here]))


def device_kind(wanted: str) -> DeviceKind:
    """What kind of device a name will be here."""
    return "cpu" if wanted == "cpu" or (wanted == "auto" and not accelerators()) else "accelerator"


def check_name(name: str) -> None:
    """Raises UsageError for what is no device: neither of the kinds that torch comes with, nor of those here."""
    spelled = DEVICE.fullmatch(name) is not None
    if spelled and family(name) in DEVICES:
        return
    here = {family(one.name) for one in accelerators()} - {*DEVICES}
    if not spelled or family(name) not in here:
        more = "".join(f", {kind}" for kind in sorted(here))
        raise UsageError(f"--device {name!r} is no device", f"use auto, cpu, cuda, cuda:N, mps or xpu{more}")


def free(device: Device) -> int | None:
    """Bytes of a device's memory that no process holds now; None where nothing says."""
    if device.shared:
        return min((size for size in (device.total, host_free()) if size is not None), default=None)
    if device.uuid and (found := _nvidia().get(device.uuid)) is not None:
        return found
    there = device_facts.ask(free=True) or ()
    return next((one.free for one in there if one.name == device.name), None)


def _nvidia() -> dict[str, int]:
    """UUID, as torch says it, -> bytes free; {} without nvidia-smi, or for GPUs that it does not know the memory of."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    try:
        done = subprocess.run([program, *SMI], capture_output=True, text=True, timeout=PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    pairs = (line.split(",") for line in done.stdout.splitlines() if line.count(",") == 1)
    return {uuid.strip().removeprefix("GPU-"): int(mib) << 20 for uuid, mib in pairs if mib.strip().isdecimal()}


def host_free(root: Path = ROOT) -> int | None:
    """Bytes of host memory that a program can have without swapping; None where the system does not say."""
    import psutil

    try:
        available = int(psutil.virtual_memory().available)
    except OSError:  # a system without /proc
        return None
    return min([available, *(group.free for group in control_groups.groups(root))])


def host_memory(root: Path = ROOT) -> int | None:
    """Bytes of host memory in all, within the limits on this process; None where the system does not say."""
    import psutil

    try:
        total = int(psutil.virtual_memory().total)
    except OSError:
        return None
    return min([total, *(group.limit for group in control_groups.groups(root))])


def host_total(root: Path = ROOT) -> int | None:
    """Bytes of host memory and swap in all, within the limits on this process; None where nothing says."""
    import psutil

    memory = host_memory(root)
    if memory is None:
        return None
    try:
        swap = int(psutil.swap_memory().total)
    except (OSError, RuntimeError):  # Windows without performance counters
        swap = 0
    limits = (group.with_swap for group in control_groups.groups(root))
    return min([memory + swap, *(limit for limit in limits if limit is not None)])


def resident() -> int | None:
    """Bytes of memory that this process holds now; None where the system does not say."""
    import psutil

    try:
        return int(psutil.Process().memory_info().rss)
    except (OSError, psutil.Error):
        return None
