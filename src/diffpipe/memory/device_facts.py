"""Which devices torch can use on this machine: read from torch, and kept, so that planning need not import it.

Only torch knows: its build decides what of a machine it can use (CUDA, ROCm, XPU, MPS, what a package brings, or
nothing), and variables like CUDA_VISIBLE_DEVICES in which order. A process that has torch keeps what it sees (`keep`).
Where nothing is kept and the machine shows signs of a GPU, torch is asked in a process of its own, once; without such
signs nothing is asked.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from ..cache.store import home
from ..core.canonical import digest
from ..core.device_names import DEVICE
from ..core.parsing import Fields, Misfit, parse_json
from ..storage.disk import write_json
from ..storage.opening import read_regular

log = logging.getLogger("diffpipe.memory")

FORMAT = 1  # of what is kept: raise it when it is read in another way
LARGEST = 1 << 16  # bytes of what is kept: a machine with sixteen devices needs 4 kB
PATIENCE = 120  # seconds: importing torch takes one from memory, and a minute from a slow disk
MONTH = 30 * 86400.0  # seconds after which what was kept is removed: every start of a machine has facts of its own

# What decides which devices torch has, and in which order: the variables of CUDA, ROCm and Level Zero.
VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "HSA_OVERRIDE_GFX_VERSION", "ZE_AFFINITY_MASK",
    "ZE_FLAT_DEVICE_HIERARCHY", "ONEAPI_DEVICE_SELECTOR", "TORCH_DEVICE_BACKEND_AUTOLOAD",
)  # fmt: skip
# Nodes that drivers make: NVIDIA's, Tegra's, AMD's for computing, and the one of all kinds in WSL.
NODES = ("dev/nvidiactl", "dev/nvidia[0-9]*", "dev/nvmap", "dev/kfd", "dev/dxg")
INTEL = "0x8086"  # vendor of a PCI device


@dataclass(frozen=True)
class Device:
    """What torch can run on: its name there ("cuda:0"), what it is, bytes of its memory (None where nothing says).

    `shared`: whether its memory is the host's. `uuid`: what its driver knows it by, "" where torch does not say.
    `free`: bytes that no process held when torch was asked for it, None where it was not.
    """

    name: str
    description: str
    total: int | None
    shared: bool = False
    uuid: str = ""
    free: int | None = None

    @classmethod
    def from_json(cls, data: Fields) -> Device:
        """Raises Misfit for what is no device."""
        if not DEVICE.fullmatch(data.text("name")):
            raise Misfit("name is no device")
        return cls(
            data.text("name"),
            data.text("description", most=500),
            data.maybe_integer("total"),
            data.truth("shared", False),
            data.text("uuid", "", most=100),
            data.maybe_integer("free"),
        )


def from_torch(torch: ModuleType, *, free: bool = False) -> tuple[Device, ...]:
    """The devices but the CPU that an imported torch can use, the one that "auto" takes first.

    `free`: also what is free on each, for which torch makes a context there.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)  # a build of torch has one kind
    if accelerator is None:
        return ()
    module = torch.get_device_module(accelerator.type)
    if not hasattr(module, "get_device_properties"):  # Apple's, which is one, and has the host's memory
        return (Device(accelerator.type, "Apple GPU", _reported(module, "recommended_max_memory"), shared=True),)
    found = (_described(module, accelerator.type, index) for index in range(module.device_count()))
    return tuple(
        replace(one, free=_reported(module, "mem_get_info", i)) if free else one for i, one in enumerate(found)
    )


def _described(module: ModuleType, kind: str, index: int) -> Device:
    """One of torch's devices. Its module tells properties, under names that differ a little from kind to kind."""
    about = module.get_device_properties(index)
    shared = any(getattr(about, name, False) for name in ("is_integrated", "is_integrated_gpu"))
    return Device(f"{kind}:{index}", about.name, int(about.total_memory), shared, str(getattr(about, "uuid", "")))


def _reported(module: ModuleType, name: str, *arguments: int) -> int | None:
    """A number, or the first of several, that torch gives; None where this version or driver cannot."""
    try:
        found = getattr(module, name)(*arguments)
    except (AttributeError, RuntimeError):
        return None
    return int(found[0] if isinstance(found, tuple) else found)


def known() -> tuple[Device, ...]:
    """The devices but the CPU that torch can use here, from what is kept, else from torch; () without any."""
    if "torch" in sys.modules:
        found = from_torch(sys.modules["torch"])
        keep(found)
        return found
    evidence = signs()
    return _known(_place(evidence)) if evidence else ()


@functools.cache
def _known(place: Path) -> tuple[Device, ...]:
    found = _kept(place)
    if found is None:
        found = ask()
        if found is None:
            return ()
        _write(place, found)
    return found


def remembered() -> tuple[Device, ...]:
    """Those that are kept, without asking torch: for completion, which nobody waits for. () where nothing is."""
    evidence = signs()
    return (_kept(_place(evidence)) if evidence else None) or ()


def keep(found: Sequence[Device]) -> None:
    """Keep what torch sees for processes without it; nothing on a machine without any sign of a GPU."""
    if evidence := signs():
        place = _place(evidence)
        if _kept(place) != tuple(found):
            _write(place, found)


def ask(*, free: bool = False) -> tuple[Device, ...] | None:
    """What a torch in a process of its own sees; None where it cannot be imported, or does not answer."""
    words = [sys.executable, "-P", "-m", "diffpipe.engine.placement.devices", *["--free"] * free]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=True)
        return _parsed(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, IndexError, Misfit) as error:
        log.warning("which devices torch can use could not be asked: %s", error)
        return None


def as_text(devices: Sequence[Device]) -> str:
    """Devices as one line, which `ask` reads."""
    return json.dumps(_as_json(devices))


def _as_json(devices: Sequence[Device]) -> dict[str, list[dict[str, object]]]:
    return {"devices": [asdict(device) for device in devices]}


def _parsed(text: str | bytes) -> tuple[Device, ...]:
    """Raises Misfit for what `as_text` did not write."""
    return tuple(map(Device.from_json, Fields(parse_json(text, LARGEST)).objects("devices")))


def _kept(place: Path) -> tuple[Device, ...] | None:
    try:
        return _parsed(read_regular(place, LARGEST))
    except (OSError, Misfit):
        return None


def _write(place: Path, devices: Sequence[Device]) -> None:
    """Keep devices, and nothing that is long out of use. A cache that may only be read stays as it is."""
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(place, _as_json(devices))
        for old in place.parent.iterdir():
            if old.stat().st_mtime < time.time() - MONTH:
                old.unlink()


def _place(evidence: Sequence[str]) -> Path:
    """The file of this machine since it was started, this environment's torch, and the variables as they are."""
    facts = {
        "format": FORMAT,
        "torch": _torch_version(),
        "environment": sys.prefix,
        "machine": platform.node(),
        "started": _started(),
        "signs": list(evidence),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }
    return home() / "devices" / digest(facts)[:32]


@functools.cache
def _torch_version() -> str:
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _started() -> str:
    """What changes when the machine is started again: a driver may be another then."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        import psutil

        return str(round(psutil.boot_time() / 60))


def signs(root: Path = Path("/")) -> tuple[str, ...]:
    """What on this machine says that there may be a GPU which some build of torch can use; () for a CPU alone."""
    return tuple(_signs(root))


def _signs(root: Path) -> Iterator[str]:
    if shutil.which("nvidia-smi"):
        yield "nvidia-smi"
    for pattern in NODES:
        yield from sorted(str(node.relative_to(root)) for node in root.glob(pattern))
    for vendor in sorted(root.glob("sys/class/drm/renderD*/device/vendor")):
        with suppress(OSError):
            if vendor.read_text().strip() == INTEL:
                yield vendor.parents[1].name
    if (platform.system(), platform.machine()) == ("Darwin", "arm64"):
        yield "Apple"
    yield from sorted({entry.name for entry in entry_points(group="torch.backends")})  # packages that bring devices
    if platform.system() == "Windows" and _torch_version().partition("+")[2].startswith(("xpu", "rocm")):
        yield "torch"
