"""Stable Diffusion 1 and 2: the words of Attend and Excite, and the three stages of DiffEdit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ....core.errors import UsageError
from ....core.flag import Arguments
from ...seams import diffusers_seam
from .area import native_side, size_step

if TYPE_CHECKING:
    import numpy as np
    from diffusers import StableDiffusionAttendAndExcitePipeline, StableDiffusionDiffEditPipeline
    from diffusers.utils import BaseOutput
    from PIL.Image import Image
    from transformers import PreTrainedTokenizerBase

CELL = 32  # pixels to a side of one of the places where Attend and Excite looks at attention

# --- Attend and Excite -----------------------------------------------------------------------------------------------


def call_attend_excite(pipe: StableDiffusionAttendAndExcitePipeline, arguments: Arguments) -> BaseOutput:
    """Find the tokens of the `words` to emphasise in the prompt, and look at attention where it is for this size.

    The pipeline's default resolution of attention fits pictures of 512 x 512 only, and its own rule for others mixes up
    width and height.
    """
    call = {name: value for name, value in arguments.items() if name != "words"}
    words, prompt = arguments["words"], call["prompt"]
    found = [token_indices(pipe.tokenizer, one, words) for one in (prompt if isinstance(prompt, list) else [prompt])]
    call["token_indices"] = found if isinstance(prompt, list) else found[0]
    if not call.get("attn_res"):
        call["attn_res"] = tuple(-(-(call.get(side) or native_side(pipe)) // CELL) for side in ("height", "width"))
    if call.get("thresholds"):  # JSON has no numbers for keys
        call["thresholds"] = {int(step): float(value) for step, value in call["thresholds"].items()}
    return pipe(**call)


def token_indices(tokenizer: PreTrainedTokenizerBase, prompt: str, words: Sequence[str]) -> list[int]:
    """The places in the tokenized prompt of every token of the words (or phrases), each at its first occurrence.

    Raises UsageError for a word that the prompt does not have.
    """
    prompted = tokenizer(prompt, truncation=True).input_ids
    found: list[int] = []
    for word in words:
        own = tokenizer(word, add_special_tokens=False).input_ids
        start = _first_place(own, prompted)
        if start is None:
            raise UsageError(f"--words {word}: the prompt does not have it", "name words as the prompt has them")
        found += range(start, start + len(own))
    return found


def _first_place(part: Sequence[int], whole: Sequence[int]) -> int | None:
    """Where tokens stand first among others, side by side; None where they do not, or where there are none."""
    starts = range(len(whole) - len(part) + 1)
    return next((at for at in starts if part and whole[at : at + len(part)] == part), None)


# --- DiffEdit --------------------------------------------------------------------------------------------------------

MASK_ARGUMENTS = ("num_maps_per_mask", "mask_encode_strength", "mask_thresholding_ratio")
SHARED_ARGUMENTS = ("num_inference_steps", "guidance_scale", "generator", "cross_attention_kwargs")  # of all stages


def load_diffedit(pipe: StableDiffusionDiffEditPipeline) -> None:
    """Give the pipeline the scheduler that it inverts pictures with, which no folder holds.

    Only DDIM and multistep DPM-Solver have inverses: any other scheduler is replaced by DDIM.
    """
    import diffusers

    kept = isinstance(pipe.scheduler, diffusers.DPMSolverMultistepScheduler)
    forward, inverse = (
        (diffusers.DPMSolverMultistepScheduler, diffusers.DPMSolverMultistepInverseScheduler)
        if kept
        else (diffusers.DDIMScheduler, diffusers.DDIMInverseScheduler)
    )
    config = pipe.scheduler.config
    pipe.register_modules(scheduler=forward.from_config(config), inverse_scheduler=inverse.from_config(config))


def call_diffedit(pipe: StableDiffusionDiffEditPipeline, arguments: Arguments) -> BaseOutput:
    """Change what `mask_prompt` says is in the picture into what `prompt` says.

    Three stages: find the mask where the two prompts disagree about the picture; invert the picture to noise under the
    first; denoise under the second, inside the mask. The output has the mask as `mask_image`, in the result's size.
    """
    image, now = _whole_latents(pipe, arguments["image"]), arguments["mask_prompt"]
    masking, shared = _given(arguments, *MASK_ARGUMENTS), _given(arguments, *SHARED_ARGUMENTS)
    mask = pipe.generate_mask(image=image, source_prompt=now, target_prompt=arguments["prompt"], **masking, **shared)
    steps = arguments["num_inference_steps"]
    there = min(int(steps * arguments["inpaint_strength"]), steps)
    diffusers_seam.set_step_count(pipe, 2 * there)  # and back
    inverting = _given(arguments, "inpaint_strength", "callback")
    inverted = pipe.invert(image=image, prompt=now, **inverting, **shared).latents
    call = {name: value for name, value in arguments.items() if name not in ("image", "mask_prompt", *MASK_ARGUMENTS)}
    output = pipe(mask_image=mask, image_latents=inverted, **call)
    output.mask_image = [_mask_picture(mask[0], output.images[0].size)]
    return output


def _given(call: Arguments, *names: str) -> Arguments:
    """Those of the named arguments that the call has."""
    return {name: call[name] for name in names if name in call}


def _whole_latents(pipe: StableDiffusionDiffEditPipeline, image: Image) -> Image:
    """The picture cropped, about its middle, to whole latents: the pipeline would stretch it."""
    from PIL import ImageOps

    step = size_step(pipe)
    return ImageOps.fit(image, (max(step, image.width // step * step), max(step, image.height // step * step)))


def _mask_picture(mask: np.ndarray[tuple[int, ...], np.dtype[np.generic]], size: tuple[int, int]) -> Image:
    """A mask (height, width) of latents, 0 or 1, as a picture in black and white."""
    import numpy as np
    from PIL import Image

    return Image.fromarray((np.asarray(mask) * 255).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
