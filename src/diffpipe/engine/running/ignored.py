"""What a call was given and did not use, or made otherwise than it was asked for, in words for the user."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ...core.canonical import JsonValue
from ...core.flag import PER_CALL, Arguments
from ..classes.signature import call_of
from ..seams.diffusers_source_seam import reads_guidance_embedding
from .results import Result

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

# What only the half without the prompt of classifier-free guidance reads (arXiv:2207.12598).
GUIDED = re.compile(r"negative_prompt(_\d)?|guidance_rescale|cfg_normalization|cfg_truncation")


def unused(pipe: DiffusionPipeline, arguments: Arguments, usual: Arguments) -> Iterator[str]:
    """A line for each argument that did nothing in the call that was just made. `usual`: the flags' defaults."""
    given = {name: value for name, value in arguments.items() if value and value != usual.get(name)}
    guided = [name for name in given if GUIDED.fullmatch(name)]
    if guided and guides(pipe, arguments) is False:
        scale = "true_cfg_scale" if "true_cfg_scale" in call_of(type(pipe)).parameters else "guidance_scale"
        for name in guided:
            yield f"{_option(name)} changes nothing: guidance is off, which a larger {_option(scale)} turns on"
    if "guidance_scale" in given and _without_guidance(pipe):
        yield "--guidance-scale changes nothing: this model was distilled to need none"
    scheduler = getattr(pipe, "scheduler", None)
    if "eta" in given and scheduler is not None and "eta" not in inspect.signature(scheduler.step).parameters:
        yield f"--eta changes nothing: {type(scheduler).__name__} does not use it"


def guides(pipe: DiffusionPipeline, arguments: Arguments) -> bool | None:
    """Whether the last call of a pipeline used classifier-free guidance, as the pipeline itself tells or by its scales;
    None where neither says."""
    parameters = call_of(type(pipe)).parameters
    scales = {name: arguments.get(name, one.default) for name, one in parameters.items() if name.endswith("_scale")}
    if "true_cfg_scale" in scales:
        return _above_one(scales["true_cfg_scale"])
    if isinstance(getattr(type(pipe), "do_classifier_free_guidance", None), property):
        try:
            return bool(pipe.do_classifier_free_guidance)
        except (AttributeError, TypeError):  # a quirk called another pipeline
            pass
    own = [value for name, value in scales.items() if name.endswith("guidance_scale")]
    return any(map(_above_one, own)) if own else None


def _above_one(value: object) -> bool:
    return any(isinstance(one, int | float) and one > 1 for one in (value if isinstance(value, list) else [value]))


def _without_guidance(pipe: DiffusionPipeline) -> bool:
    """Whether the scale is an input of the denoiser, and this one has no such input (FLUX.1 [schnell])."""
    config = getattr(getattr(pipe, "transformer", None), "config", None)
    embeds = getattr(config, "guidance_embeds", True)
    return not embeds and reads_guidance_embedding(type(pipe))


def made_otherwise(results: Sequence[Result], arguments: Arguments, calls: int) -> Iterator[str]:
    """A line for each number that was asked for and is another in what came out. `calls`: requests of the call."""
    main = [one for one in results if one.kind != "audio" and not one.role]
    details: Mapping[str, JsonValue] = main[0].details() if main else {}
    numbers = {"width": details.get("width"), "height": details.get("height"), "num_frames": details.get("frames")}
    if arguments.get("padding_mask_crop") is not None:  # what is painted is put back into the whole picture
        numbers = {}
    numbers |= {name: len(main) // calls for name in PER_CALL if main}
    for name, made in numbers.items():
        asked = arguments.get(name)
        if isinstance(asked, int) and isinstance(made, int) and asked != made:
            yield f"{_option(name)} {asked} was asked for: the pipeline made {made} of it"


def no_step(steps: int, done: int, *, counted: bool) -> Iterator[str]:
    """A line where none of the steps asked for was run: strength times steps below one."""
    if counted and steps and not done:
        yield f"none of {steps} steps was run: what comes out is what it started from; give more --strength or steps"


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
