"""The steps of a call, reported as the pipeline takes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...core.flag import Arguments
from ..seams import diffusers_seam
from .preview import Observer, Preview

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

OnStep = Callable[[int, int], None]  # steps done, steps in all


class Steps:
    """Counts the steps of one call, in whichever of diffusers' two forms the pipeline reports them, and shows previews.

    `arguments`: those of the call, media read.
    """

    def __init__(
        self, pipe: DiffusionPipeline, arguments: Arguments, on_step: OnStep, previews: Preview | None
    ) -> None:
        self.pipe, self.on_step = pipe, on_step
        self.asked = int(arguments.get("num_inference_steps") or 0)
        self.observer = Observer(pipe, arguments, previews) if previews else None
        self.done = 0

    def callback(self) -> Arguments:
        """The call argument that has the pipeline report its steps; none where it takes none."""
        parameters = inspect.signature(type(self.pipe).__call__).parameters
        if "callback_on_step_end" in parameters:
            return {"callback_on_step_end": self._on_step_end}
        return {"callback": self._callback} if "callback" in parameters else {}

    def _on_step_end(
        self, _pipe: DiffusionPipeline, _index: int, _timestep: object, tensors: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        self._step(tensors.get("latents"))
        return tensors

    def _callback(self, _index: int, _timestep: object, latents: torch.Tensor | None) -> None:
        self._step(latents)

    def _step(self, latents: torch.Tensor | None) -> None:
        self.done += 1
        total = diffusers_seam.step_count(self.pipe) or self.asked
        self.on_step(self.done, total)
        if self.observer:
            self.observer.step(self.done, total, latents)
