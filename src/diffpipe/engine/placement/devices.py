"""What devices there are, and on which one a pipeline runs."""

from __future__ import annotations

import logging
import re
import warnings
from textwrap import shorten
from typing import Any

from ...core.errors import UsageError

log = logging.getLogger("diffpipe.engine")


def devices() -> list[dict[str, Any]]:
    """Every device torch can use here, fastest first: name, description, memory in bytes (None where unknown)."""
    import torch

    found: list[dict[str, Any]] = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            found.append(
                {"name": f"cuda:{index}", "description": properties.name, "memory": int(properties.total_memory)}
            )
    if torch.backends.mps.is_available():
        found.append({"name": "mps", "description": "Apple GPU", "memory": None})
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        found += [
            {"name": f"xpu:{index}", "description": torch.xpu.get_device_name(index), "memory": None}
            for index in range(torch.xpu.device_count())
        ]
    found.append({"name": "cpu", "description": f"{torch.get_num_threads()} threads", "memory": host_memory()})
    return found


def kind(device: str) -> str:
    """What of a device results depend on: "cpu: AVX2", "cuda: NVIDIA L4". Nothing that tells machines apart."""
    import torch

    family = device.partition(":")[0]
    if family == "cpu":
        return f"cpu: {torch.backends.cpu.get_cpu_capability()}"
    described = {found["name"]: found["description"] for found in devices()}
    return f"{family}: {described.get(device) or described.get(f'{family}:0', '')}".removesuffix(": ")


def host_memory() -> int | None:
    """Physical memory in bytes, None where the system does not say."""
    import os

    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def choose_device(wanted: str) -> str:
    """The device to run on: the named one, or the first of `devices()` for "auto".

    Raises UsageError for a device that torch cannot use here.
    """
    names = [device["name"] for device in devices()]
    if wanted == "auto":
        return str(names[0])
    if wanted in names or f"{wanted}:0" in names:
        return wanted
    raise UsageError(f"there is no device {wanted!r} here", f"available: {', '.join(names)}")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's memory, or the host's, ran out (torch tells the latter by words only)."""
    import torch

    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


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
    import sys

    import torch

    parts = []
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, kilobytes on Linux
        parts.append(f"peak host memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6:.0f} MB")
    if device.startswith("cuda"):
        parts.append(f"peak device memory {torch.cuda.max_memory_allocated(device) / 1e6:.0f} MB")
    return ", ".join(parts)


def device_memory(device: str) -> int | None:
    """Bytes of a GPU's memory that torch holds; None without a GPU."""
    if not device.startswith("cuda"):
        return None
    import torch

    return int(torch.cuda.memory_reserved(device))
