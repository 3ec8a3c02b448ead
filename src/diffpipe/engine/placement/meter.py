"""Peak memory of each stage of a run, as far as the high-water marks of the process and the device tell it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from . import apply as placing

Marks = tuple[int | None, int | None]  # bytes: of the device, of the host


def marks(device: str) -> Marks:
    """The most memory held so far: on a GPU by torch's tensors, on the host by this process (None where not told)."""
    import torch

    held = torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else None
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        host = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration, ValueError):
        return held, None
    return held, host


class Meter:
    """Watches the calls of one pipeline. A stage's peak is known where it is higher than anything before it.

    Marks that only rise cost nothing to read and hide nothing: the stage that decides what a run needs always raises
    them.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.stage = "encode"
        self.before: Marks = (None, None)
        self.peaks: dict[str, Marks] = {}

    def watch(self, pipe: Any) -> Any:
        """The same pipeline, whose denoisers and decoders tell when they start."""
        for _, part in placing.modules(pipe, "denoiser"):
            part.register_forward_pre_hook(lambda *_: self.enter("denoise"))
        for _, part in placing.modules(pipe, "decoder"):
            if hasattr(part, "decode"):
                part.decode = self._telling(part.decode)
        return pipe

    def _telling(self, decode: Any) -> Any:
        @functools.wraps(decode)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self.enter("decode")
            return decode(*args, **kwargs)

        return wrapper

    def start(self) -> None:
        """Begin a call."""
        self.peaks, self.stage, self.before = {}, "encode", marks(self.device)

    def enter(self, stage: str) -> None:
        """A stage begins, or goes on."""
        if stage == self.stage:
            return
        now = marks(self.device)
        device, host = (
            new if old is None or (new or 0) > old else None for old, new in zip(self.before, now, strict=True)
        )
        known = self.peaks.get(self.stage, (None, None))
        self.peaks[self.stage] = device or known[0], host or known[1]
        self.stage, self.before = stage, now

    def stop(self) -> dict[str, Marks]:
        """The call has ended: stage -> peak on the device and on the host, None where it was not the highest so far."""
        self.enter("")
        return {stage: peak for stage, peak in self.peaks.items() if peak != (None, None)}
