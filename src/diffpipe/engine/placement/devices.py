"""What torch can run on here, on which of it a pipeline runs, and what every kind of device does in its own way."""

from __future__ import annotations

import gc
import random
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from ...core.device_names import family
from ...core.errors import UsageError
from ...memory import device_facts, machine
from ...memory.device_facts import Device

if TYPE_CHECKING:
    import torch


def devices() -> tuple[Device, ...]:
    """Every device that torch can use here, the one that "auto" takes first and the CPU last.

    What is seen is kept for processes without torch.
    """
    import torch

    found = device_facts.from_torch(torch)
    device_facts.keep(found)
    cpu = Device("cpu", f"{torch.get_num_threads()} threads", machine.host_memory(), shared=True)
    return (*found, cpu)


def kind(device: str) -> str:
    """What of a device results depend on: "cpu: AVX2", "cuda: NVIDIA L4". Nothing that tells machines apart."""
    import torch

    of = family(device)
    if of == "cpu":
        return f"cpu: {torch.backends.cpu.get_cpu_capability()}"
    described = {found.name: found.description for found in devices()}
    return f"{of}: {described.get(device) or described.get(f'{of}:0', '')}".removesuffix(": ")


def choose_device(wanted: str) -> str:
    """The device to run on: the named one, or the first of `devices()` for "auto".

    Raises UsageError for a device that torch cannot use here.
    """
    names = [device.name for device in devices()]
    if wanted == "auto":
        return names[0]
    if wanted in names or f"{wanted}:0" in names:
        return wanted
    raise UsageError(f"there is no device {wanted!r} here", f"available: {', '.join(names)}")


def use(device: str) -> None:
    """Have a device be the one that this thread's streams, and kernels of packages, go to where they name none."""
    import torch

    if torch.device(device).index:  # of the first it is true already
        torch.accelerator.set_device_index(torch.device(device))


# What errors say that are of no class of their own: the CPU's allocator, Apple's, drivers that could give no memory for
# a context, pinned memory or a kernel, and the libraries of CUDA, ROCm and oneAPI.
OUT_OF_MEMORY = (
    "can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED", "DEVICE_ALLOCATION_FAILED",
    "HOST_ALLOCATION_FAILED", "rocblas_status_memory_error", "UR_RESULT_ERROR_OUT_OF_",
)  # fmt: skip


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's memory, or the host's, ran out."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def is_lost(device: str) -> bool:
    """Whether a device failed so that it does nothing more for this process, as after an access to wrong memory: it
    says so again to whoever waits for it."""
    backend = _backend(device)
    if backend is None or not hasattr(backend, "synchronize"):
        return False
    try:
        backend.synchronize()
    except RuntimeError as error:
        return not out_of_memory(error)
    return False


def peak_memory(device: str) -> int | None:
    """The most bytes of a device's memory that tensors took so far; None where torch does not count them (CPU, MPS)."""
    count = getattr(_backend(device), "max_memory_allocated", None)
    return None if count is None else int(count(device))


def device_memory(device: str) -> int | None:
    """Bytes of a device's memory that torch holds; None on the CPU."""
    backend = _backend(device)
    if backend is None:
        return None
    if hasattr(backend, "memory_reserved"):
        return int(backend.memory_reserved(device))
    return int(backend.driver_allocated_memory())  # MPS


def has_streams(device: str) -> bool:
    """Whether copies to a device can go on while it computes."""
    return hasattr(_backend(device), "Stream")


def has_float8(device: str) -> bool:
    """Whether a device can hold weights in 8-bit floats: Apple's cannot (pytorch#148420). One that is full may."""
    import torch

    try:
        torch.zeros(1, dtype=torch.float8_e4m3fn).to(device)
    except TypeError:
        return False
    except RuntimeError as error:
        return out_of_memory(error)
    return True


def room(device: str) -> int | None:
    """Bytes of a device's memory that are free or held by this process; None on the CPU, and where a driver does not
    say. Of Apple's, which has the host's memory, what that has."""
    backend, held = _backend(device), device_memory(device)
    if backend is None or held is None:
        return None
    if not hasattr(backend, "mem_get_info"):
        free = machine.host_free()
        return None if free is None else free + held
    try:
        return int(backend.mem_get_info(device)[0]) + held
    except RuntimeError:
        return None


def release(device: str) -> None:
    """Give memory that nothing refers to any more back to the device."""
    gc.collect()
    if backend := _backend(device):
        backend.empty_cache()


def _backend(device: str) -> ModuleType | None:
    """Torch's module of a kind of device (torch.cuda, torch.mps, torch.xpu); None for the CPU."""
    import torch

    kind = family(device)
    found: ModuleType | None = None if kind == "cpu" else torch.get_device_module(kind)
    return found


class RandomStates(NamedTuple):
    """The states of a process's own generators: torch's of the CPU and of the accelerator's devices, numpy's, and
    Python's."""

    cpu: torch.Tensor
    accelerator: list[torch.Tensor]  # of each device; none while it is not in use
    numpy: dict[str, Any]  # as numpy itself types it
    python: tuple[Any, ...]

    @classmethod
    def now(cls) -> RandomStates:
        import numpy as np
        import torch

        states: list[torch.Tensor] = []
        module = _accelerator_in_use()
        if module is not None:
            every = hasattr(module, "get_rng_state_all")
            states = module.get_rng_state_all() if every else [module.get_rng_state()]
        return cls(torch.get_rng_state(), states, np.random.get_state(legacy=False), random.getstate())

    def restore(self) -> None:
        import numpy as np
        import torch

        np.random.set_state(self.numpy)
        random.setstate(self.python)
        torch.set_rng_state(self.cpu)
        module = _accelerator_in_use() if self.accelerator else None
        if module is None:
            return
        if hasattr(module, "set_rng_state_all"):
            module.set_rng_state_all(self.accelerator)
        else:
            module.set_rng_state(self.accelerator[0])


def _accelerator_in_use() -> ModuleType | None:
    """Torch's module of the accelerator, where there is one that this process has used: asking begins its use."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return None
    module: ModuleType = torch.get_device_module(accelerator.type)
    return module if getattr(module, "is_initialized", lambda: True)() else None


def _main() -> None:
    """Print what torch sees, for a process that has no torch (see memory.device_facts)."""
    import torch

    print(device_facts.as_text(device_facts.from_torch(torch, free="--free" in sys.argv[1:])))


if __name__ == "__main__":
    _main()
