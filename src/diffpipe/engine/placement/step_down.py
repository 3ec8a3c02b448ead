"""A loaded pipeline that steps down for the one item that ran out of memory, and back up for the next."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from ...core.build_spec import Placement
from ...core.device_names import DeviceKind
from ...core.errors import DiffpipeError, Exit
from ...memory.knobs import describe, next_step, options
from . import apply as placing
from . import devices

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

log = logging.getLogger("diffpipe.engine")

T = TypeVar("T")
Work: TypeAlias = "Callable[[DiffusionPipeline, Placement], T]"


class LoadedPipeline:
    """The pipeline of a run, loaded once as it was built: `built` says how.

    Tiling, casting and quantization change results, so a step down lasts for one item: the next starts as built, and
    no result depends on the items before it. `stored`: its quantized weights are in files, so that no other
    quantization can be had.
    """

    def __init__(
        self, load: Callable[[Placement], DiffusionPipeline], built: Placement, device: str, *, stored: bool
    ) -> None:
        self.load, self.built, self.device, self.stored = load, built, device, stored
        self.pipe, self.placement = load(built), built

    def make(self, work: Work[T], say: Callable[[str], None], *, step_down: bool = True) -> T:
        """What `work` makes of the pipeline and its placement; once more a step down each time memory runs out.

        `say` gets a line for each step. Raises what `work` raises; DiffpipeError with exit code 5 if memory runs out
        and there is no step left, or none may be taken.
        """
        tried = [self.built]
        while True:
            made = self._attempt(work, tried[-1])
            if made is not None:
                return made[0]
            devices.release(self.device)
            following = self._next(tried[-1])
            if following is None or not step_down:
                raise _out_of_memory(tried, following)
            say(f"memory ran out with {_tried(tried)}: trying again with {describe(following)}")
            tried.append(following)

    def as_built(self) -> DiffusionPipeline:
        """The pipeline without any step down."""
        return self._placed(self.built)

    def _attempt(self, work: Work[T], placement: Placement) -> tuple[T] | None:
        """None if memory ran out. The error goes with this frame: its traceback holds the tensors of the call."""
        try:
            return (work(self._placed(placement), placement),)
        except DiffpipeError as error:
            if self.pipe is not None:  # what a failed call left on the device, and in the state of hooks
                self.pipe.maybe_free_model_hooks()
            if error.exit_code != Exit.OUT_OF_MEMORY:
                raise
            log.debug("out of memory: %s", error.__cause__ or error)
            return None

    def _placed(self, placement: Placement) -> DiffusionPipeline:
        """The pipeline in a placement, loaded anew if that takes other weights or hooks."""
        if self.pipe is None or _heavy(placement) != _heavy(self.placement):
            self.pipe = None
            devices.release(self.device)
            self.pipe = self.load(placement)
        elif placement != self.placement:
            placing.switch(self.pipe, placement, self.placement)
        self.placement = placement
        return self.pipe

    def _next(self, placement: Placement) -> Placement | None:
        """The next step down in the documented order, without those that would change nothing here."""
        pipe = self.as_built() if self.pipe is None else self.pipe
        kind: DeviceKind = "cpu" if self.device == "cpu" else "accelerator"
        return next_step(placement, placing.parts(pipe), type(pipe).__name__, kind, self._fixed(pipe))

    def _fixed(self, pipe: DiffusionPipeline) -> set[str]:
        """What cannot be had: other quantized weights than the stored ones, and what no component has."""
        slices = any(hasattr(part, "set_attention_slice") for _, part in placing.modules(pipe))
        ordered = placing.ordered(type(pipe))
        lacking = {"quantize": self.stored, "attention_slicing": not slices, "cpu_offload": not ordered}
        return {name for name, missing in lacking.items() if missing}


def _heavy(placement: Placement) -> Placement:
    """A placement without the switches that change in place: for another the pipeline is loaded again."""
    return replace(placement, attention_slicing=False, vae_slicing=False, vae_tiling=False)


def _tried(tried: list[Placement]) -> str:
    return "the pipeline as it was built" if len(tried) == 1 else describe(tried[-1])


def _out_of_memory(tried: list[Placement], following: Placement | None) -> DiffpipeError:
    """The last word on an item, with the options that would help."""
    message = "memory ran out" + (f", in the end with {describe(tried[-1])}" if len(tried) > 1 else "")
    hint = "make it smaller, or build with a smaller --dtype"
    if following is not None:
        before = tried[-1].to_json()
        changed = {name: value for name, value in following.to_json().items() if before.get(name) != value}
        hint = f"build with {options(changed)}, or make it smaller"
    return DiffpipeError(message, hint, Exit.OUT_OF_MEMORY)
