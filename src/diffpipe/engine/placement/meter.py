"""Peak memory of each stage of a run, as far as the high-water marks of the process and the device show it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, ParamSpec, TypeVar

from ...core.components import Stage
from . import apply as placing
from . import devices, host_memory

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

P = ParamSpec("P")
T = TypeVar("T")


class Marks(NamedTuple):
    """Bytes of the device's memory and of the host's; None where that is not known."""

    device: int | None = None
    host: int | None = None

    def raised_to(self, now: Marks) -> Marks:
        """Those of later marks that are higher, None for the others: what was used meanwhile is not known."""
        return Marks(_raised(self.device, now.device), _raised(self.host, now.host))

    def or_else(self, other: Marks) -> Marks:
        """These, or the other's where these are not known."""
        return Marks(self.device or other.device, self.host or other.host)


def _raised(before: int | None, now: int | None) -> int | None:
    return now if before is None or (now or 0) > before else None


def marks(device: str) -> Marks:
    """The most memory held so far: on a GPU by torch's tensors, on the host by this process."""
    return Marks(devices.peak_memory(device), host.most if (host := host_memory.held()) else None)


class Meter:
    """Watches the calls of one pipeline. A stage's peak is known where it is higher than anything before it.

    Marks that only rise cost nothing to read and hide nothing: the stage that decides what a run needs always raises
    them.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.stage: Stage | None = "encode"  # None: between calls
        self.before = Marks()
        self.peaks: dict[Stage, Marks] = {}

    def watch(self, pipe: DiffusionPipeline) -> DiffusionPipeline:
        """The same pipeline, whose denoisers and decoders report when they start."""
        for _, part in placing.modules(pipe, "denoiser"):
            part.register_forward_pre_hook(lambda *_: self.enter("denoise"))
        for _, part in placing.modules(pipe, "decoder"):
            if hasattr(part, "decode"):
                part.decode = self._reporting(part.decode)
        return pipe

    def _reporting(self, decode: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(decode)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            self.enter("decode")
            return decode(*args, **kwargs)

        return wrapper

    def start(self) -> None:
        """Begin a call."""
        self.peaks, self.stage, self.before = {}, "encode", marks(self.device)

    def enter(self, stage: Stage | None) -> None:
        """A stage begins, or goes on."""
        if stage == self.stage:
            return
        now = marks(self.device)
        if self.stage is not None:
            self.peaks[self.stage] = self.before.raised_to(now).or_else(self.peaks.get(self.stage, Marks()))
        self.stage, self.before = stage, now

    def stop(self) -> dict[Stage, Marks]:
        """The call has ended: stage -> peak on the device and on the host, None where it was not the highest so far."""
        self.enter(None)
        return {stage: peak for stage, peak in self.peaks.items() if peak != Marks()}
