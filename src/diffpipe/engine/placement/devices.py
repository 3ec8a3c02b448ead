"""What devices there are, and on which one a pipeline runs."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from textwrap import shorten

from ...core.errors import UsageError
from ...memory import device_facts, machine
from ...memory.device_facts import Device

log = logging.getLogger("diffpipe.engine")


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

    family = device.partition(":")[0]
    if family == "cpu":
        return f"cpu: {torch.backends.cpu.get_cpu_capability()}"
    described = {found.name: found.description for found in devices()}
    return f"{family}: {described.get(device) or described.get(f'{family}:0', '')}".removesuffix(": ")


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


# How errors begin or what they say that are of no class of their own: the CPU's allocator, and Apple's.
OUT_OF_MEMORY = ("can't allocate memory", "MPS backend out of memory")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's memory, or the host's, ran out."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(words in str(error) for words in OUT_OF_MEMORY)


def quiet_libraries() -> None:
    """Keep the libraries' progress bars and advice off stderr; real warnings go to the log."""
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # torchao's import, which diffusers does if it can

    import diffusers
    import transformers

    # What diffusers logs as an error, it raises or recovers from.
    diffusers.utils.logging.set_verbosity_warning()
    diffusers.utils.logging.disable_default_handler()
    logging.getLogger("diffusers").addHandler(_CUT)
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.captureWarnings(True)
    warnings.simplefilter("default")


class _Cut(logging.Handler):
    """Passes on, as a warning of our own, that a prompt is longer than a text encoder reads: diffusers only logs it."""

    WORDS = re.compile(r"following part of your input was truncated because .*?(\d+) tokens: (.*)", re.DOTALL)

    def emit(self, record: logging.LogRecord) -> None:
        if said := self.WORDS.search(record.getMessage()):
            lost = shorten(said[2].strip("[]'\" "), 60, placeholder="…")
            log.warning("the prompt is longer than the %s tokens that a text encoder reads; cut off: %s", said[1], lost)


_CUT = _Cut(logging.WARNING)


def memory_now(device: str) -> str:
    """Peak memory so far, for the log: of this process, and of the device where it has its own."""
    parts = []
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, kilobytes on Linux
        parts.append(f"peak host memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6:.0f} MB")
    if (peak := peak_memory(device)) is not None:
        parts.append(f"peak device memory {peak / 1e6:.0f} MB")
    return ", ".join(parts)


def peak_memory(device: str) -> int | None:
    """The most bytes of a device's memory that tensors took so far; None where torch does not count them (CPU, MPS)."""
    import torch

    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    return int(torch.xpu.max_memory_allocated(device)) if device.startswith("xpu") else None


def device_memory(device: str) -> int | None:
    """Bytes of a device's memory that torch holds; None on the CPU."""
    import torch

    if device.startswith("cuda"):
        return int(torch.cuda.memory_reserved(device))
    if device.startswith("xpu"):
        return int(torch.xpu.memory_reserved(device))
    return int(torch.mps.driver_allocated_memory()) if device == "mps" else None


def _main() -> None:
    """Say what torch sees, for a process that has no torch (see memory.device_facts)."""
    import torch

    print(device_facts.as_text(device_facts.from_torch(torch, free="--free" in sys.argv[1:])))


if __name__ == "__main__":
    _main()
