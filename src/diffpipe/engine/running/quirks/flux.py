"""FLUX.1: the size that Kontext makes, and control modes by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ....catalog.families.flux import CONTROL_MODES
from ....core.errors import UsageError
from ....core.flag import Arguments
from .area import SIDES, call_at_image_size, with_image_size

if TYPE_CHECKING:
    from diffusers import FluxControlNetPipeline, FluxKontextPipeline
    from diffusers.utils import BaseOutput


def call_kontext(pipe: FluxKontextPipeline, arguments: Arguments) -> BaseOutput:
    """Keep the picture's proportions, and make the size that is asked for.

    The pipeline scales any size to `max_area`, a million pixels, and makes a square where none is given.
    """
    call = with_image_size(pipe, arguments)
    if "max_area" not in call and call.keys() >= set(SIDES) and arguments.keys() & set(SIDES):
        call = {**call, "max_area": call["width"] * call["height"]}
    return pipe(**call)


def call_flux_controlnet(pipe: FluxControlNetPipeline, arguments: Arguments) -> BaseOutput:
    """Take the control mode by name, and the size from the control picture.

    Raises UsageError for a ControlNet that needs a mode and gets none, and the other way round.
    """
    mode = arguments.get("control_mode")
    if pipe.controlnet.union and mode is None:
        raise UsageError("--control-mode is missing", f"this ControlNet takes one of: {', '.join(CONTROL_MODES)}")
    if mode is not None and not pipe.controlnet.union:
        raise UsageError("this ControlNet takes no --control-mode", "leave it out")
    chosen = {} if mode is None else {"control_mode": CONTROL_MODES[mode]}
    return call_at_image_size(pipe, {**arguments, **chosen})
