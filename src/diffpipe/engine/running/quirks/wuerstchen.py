"""Würstchen: the steps of its two stages count together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ....core.flag import Arguments
from ...seams import diffusers_seam

if TYPE_CHECKING:
    from diffusers import WuerstchenCombinedPipeline
    from diffusers.utils import BaseOutput

PRIOR_STEPS, DECODER_STEPS = 60, 12  # the pipeline's own defaults


def call_wuerstchen(pipe: WuerstchenCombinedPipeline, arguments: Arguments) -> BaseOutput:
    """Report the prior's steps, most of the work, as well as the decoder's."""
    prior = arguments.get("prior_num_inference_steps", PRIOR_STEPS)
    diffusers_seam.set_step_count(pipe, prior + arguments.get("num_inference_steps", DECODER_STEPS))
    return pipe(**arguments, prior_callback_on_step_end=arguments.get("callback_on_step_end"))
