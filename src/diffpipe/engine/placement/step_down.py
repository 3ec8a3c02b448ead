"""A loaded pipeline that steps down for the one item that ran out of memory, and back up for the next."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from ...core.build_spec import Placement
from ...core.errors import DeviceLost, DiffpipeError, Exit, let_go
from ...memory.knobs import describe, options
from ...memory.ladder import ON, Known, next_step, steps_from
from . import apply as placing
from . import devices

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from ..loading.load import Look

log = logging.getLogger("diffpipe.engine")

T = TypeVar("T")
Work: TypeAlias = "Callable[[DiffusionPipeline, Placement], T]"
Load: TypeAlias = "Callable[[Placement, Look], DiffusionPipeline]"

MORE = 1.05  # times the memory that there was when a pipeline did not fit: it is worth another try


class LoadedPipeline:
    """The pipeline of a run, loaded once as it was built: `built` says how.

    Tiling, casting and quantization change results, so a step down lasts for one item: the next starts as built, and
    no result depends on the items before it. A pipeline that does not fit as it was built is not loaded so again while
    there is no more memory than there was: each item then starts with the first step that fits. `stored`: its quantized
    weights are in files, so that no other quantization can be had. `compiled`: its denoisers are.
    """

    def __init__(self, load: Load, built: Placement, device: str, *, stored: bool, compiled: bool = False) -> None:
        """Raises what `load` raises, but for memory that ran out on the way to the device: see `as_built`."""
        self.load, self.built, self.device, self.stored, self.compiled = load, built, device, stored, compiled
        self.pipe: DiffusionPipeline | None = None
        self.placement = built
        self.known: Known | None = None  # from the first time that it was read
        self.unfit: dict[Placement, int | None] = {}  # what ran out of memory when loaded -> what there was, if known
        self.failed: dict[Placement, str] = {}  # steps that could not be loaded for another reason -> what it was
        self.resident = 0  # bytes of weights on the device between calls
        self.as_built()

    def make(self, work: Work[T], say: Callable[[str], None], *, step_down: bool = True) -> T:
        """What `work` makes of the pipeline and its placement; once more a step down each time memory runs out.

        `say` gets a line for each step. Raises what `work` raises; DiffpipeError with exit code 5 if memory runs out
        and there is no step left, or none may be taken.
        """
        placement = self.built
        while True:
            fits = self._placed(placement) is not None
            if fits and (made := self._attempt(work, placement)) is not None:
                return made[0]
            devices.release(self.device)
            following = self._next(placement, loading=not fits)
            if following is None or not step_down:
                raise self._out_of_memory(placement, following, loading=not fits)
            say(f"{self._ran_out(placement, loading=not fits)}: trying again with {describe(following)}")
            placement = following

    def as_built(self) -> DiffusionPipeline | None:
        """The pipeline without any step down; None where it does not fit so."""
        return self._placed(self.built)

    def check_fits(self) -> None:
        """Raises DiffpipeError with exit code 5, naming what to build with, where it does not fit as it was built."""
        if self.as_built() is None:
            raise self._out_of_memory(self.built, self._next(self.built, loading=True), loading=True)

    def _attempt(self, work: Work[T], placement: Placement) -> tuple[T] | None:
        """None if memory ran out. The error goes with this frame: its traceback holds the tensors of the call."""
        assert self.pipe is not None
        try:
            return (work(self.pipe, placement),)
        except BaseException as error:
            let_go(error)
            self._clear()
            if not isinstance(error, DiffpipeError) or error.exit_code != Exit.OUT_OF_MEMORY:
                raise
            log.debug("out of memory: %s", error.__cause__ or error)
            return None

    def _clear(self) -> None:
        """Take from the device what a failed call left there, and in the state of hooks.

        A pipeline that still has layers there which hooks brought one by one is given up, and loaded when it is needed
        again; so is one on a device that failed for good, as what it failed of is to be told.
        """
        assert self.pipe is not None
        hooked = self.placement.cpu_offload in ("group", "sequential")
        try:
            self.pipe.maybe_free_model_hooks()
            left = hooked and placing.bytes_on_device(self.pipe) > self.resident
        except Exception:
            log.debug("what the call left could not be taken back", exc_info=True)
            left = True
        if left:
            self.pipe = None

    def _placed(self, placement: Placement) -> DiffusionPipeline | None:
        """The pipeline in a placement, loaded anew if that takes other weights or hooks; None if it does not fit."""
        if self.pipe is None or _heavy(placement) != _heavy(self.placement):
            if self._is_unfit(placement):
                return None
            self.pipe = None
            self.pipe = self._loaded(placement)
        elif placement != self.placement:
            placing.switch(self.pipe, placement, self.placement)
        self.placement = placement
        return self.pipe

    def _is_unfit(self, placement: Placement) -> bool:
        """Whether it did not fit so before, and there is not more memory now."""
        if _heavy(placement) not in self.unfit:
            return False
        before, now = self.unfit[_heavy(placement)], devices.room(self.device)
        return before is None or now is None or now <= before * MORE

    def _loaded(self, placement: Placement) -> DiffusionPipeline | None:
        """The pipeline from its files; None if memory runs out on its way to the device."""
        devices.release(self.device)
        try:
            pipe = self.load(placement, self._look)
        except DiffpipeError as error:
            memory = error.exit_code == Exit.OUT_OF_MEMORY
            another = _heavy(placement) != _heavy(self.built) and not isinstance(error, DeviceLost)
            if self.known is None or not (memory or another):
                raise  # not even the host holds it, or it cannot be loaded at all
            log.debug("not loaded: %s", error.__cause__ or error)
            self.unfit[_heavy(placement)] = devices.room(self.device) if memory else None
            if not memory:
                self.failed[_heavy(placement)] = error.message
            return None
        self.unfit.pop(_heavy(placement), None)
        self.resident = placing.bytes_on_device(pipe)
        return pipe

    def _look(self, pipe: DiffusionPipeline) -> None:
        """Note what decides which steps can be taken."""
        if self.known is None:
            self.known = Known(
                type(pipe).__name__,
                placing.parts(pipe),
                "cpu" if self.device == "cpu" else "accelerator",
                ordered=placing.ordered(type(pipe)),
                slices=any(hasattr(part, "set_attention_slice") for _, part in placing.modules(pipe)),
                stored=self.stored,
                compiled=self.compiled,
                float8=devices.has_float8(self.device),
            )

    def _next(self, placement: Placement, *, loading: bool) -> Placement | None:
        """The next step down in the documented order. Why others are left out goes to the log."""
        assert self.known  # else its first load raised
        for step in steps_from(placement, self.known, loading=loading):
            if step.why not in ("", ON):
                log.info("no step to %s: %s", step.name, step.why)
        return next_step(placement, self.known, loading=loading)

    def _ran_out(self, placement: Placement, *, loading: bool) -> str:
        what = "the pipeline as it was built" if placement == self.built else describe(placement)
        if loading and (why := self.failed.get(_heavy(placement))):
            return f"{what} cannot be had here ({why})"
        return f"memory ran out as {what} was loaded" if loading else f"memory ran out with {what}"

    def _out_of_memory(self, placement: Placement, following: Placement | None, *, loading: bool) -> DiffpipeError:
        """The last word on an item, with the options that would help."""
        message = "memory ran out"
        if placement != self.built:
            message += f", in the end with {describe(placement)}"
        elif loading:
            message = f"the pipeline does not fit into the memory of {self.device} as it was built"
        hint = "make it smaller, or build with a smaller --dtype"
        if following is not None:
            before = placement.to_json()
            changed = {name: value for name, value in following.to_json().items() if before.get(name) != value}
            hint = f"build with {options(changed)}, or {'with a smaller --dtype' if loading else 'make it smaller'}"
        return DiffpipeError(message, hint, Exit.OUT_OF_MEMORY)


def _heavy(placement: Placement) -> Placement:
    """A placement without the switches that change in place: for another the pipeline is loaded again."""
    return replace(placement, attention_slicing=False, vae_slicing=False, vae_tiling=False)
