"""What rows of the catalogue cannot say: functions that they name under `quirks` (see PipelineType).

`load` functions take the pipeline. `call` functions take the pipeline and its call's arguments, generator and callback
among them, and return what the pipeline would.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from ...core.errors import UsageError

SIDES = ("width", "height")

# --- The size of the result ------------------------------------------------------------------------------------------


def call_at_image_size(pipe: Any, arguments: Mapping[str, Any]) -> Any:
    """Where no size is asked for, make the result as large as the picture given, as near as the pipeline can.

    The pipelines' own default is a square, into which they squeeze the picture.
    """
    return pipe(**with_image_size(pipe, arguments))


def with_image_size(pipe: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with width and height: those given, or else (where one is, the other) in the picture's proportions.

    A picture of more pixels than the pipeline's own default size has is scaled down to as many: memory and time grow
    with them, and models draw badly far above the size that they were trained at.
    """
    picture = arguments.get("image") or arguments.get("control_image")
    first = picture[0] if isinstance(picture, list) else picture
    width, height = arguments.get("width"), arguments.get("height")
    if first is None or (width and height):
        return dict(arguments)
    area = min(first.width * first.height, native_side(pipe) ** 2)
    size = size_at_area(first.size, area, size_step(pipe), width, height)
    return {**arguments, **dict(zip(SIDES, size, strict=True))}


def size_at_area(
    given: tuple[int, int], area: int, step: int, width: int | None = None, height: int | None = None
) -> tuple[int, int]:
    """(width, height) in multiples of `step` and in the proportions of `given`: of at most `area` pixels, or with the
    one side that is asked for. With both asked for, just those. The formula is WanImageToVideoPipeline's example's."""
    tall = given[1] / given[0]
    wide = width or (height / tall if height else (area / tall) ** 0.5)
    high = height or wide * tall
    return width or max(step, round(wide) // step * step), height or max(step, round(high) // step * step)


def size_step(pipe: Any) -> int:
    """The pixels that sides of results go in steps of. Most pipelines' image processors count patches of latents in;
    that of Stable Diffusion 3 does not."""
    return int(pipe.image_processor.config.vae_scale_factor * getattr(pipe, "patch_size", 1))


def native_side(pipe: Any) -> int:
    """The pixels to a side of the square that a pipeline makes by default."""
    latents = getattr(pipe, "default_sample_size", None) or pipe.unet.config.sample_size
    return int(latents * pipe.vae_scale_factor)


def call_kontext(pipe: Any, arguments: Mapping[str, Any]) -> Any:
    """Keep the picture's proportions, and make the size that is asked for.

    The pipeline scales any size to `max_area`, a million pixels, and makes a square where none is given.
    """
    call = with_image_size(pipe, arguments)
    if "max_area" not in call and call.keys() >= set(SIDES) and arguments.keys() & set(SIDES):
        call["max_area"] = call["width"] * call["height"]
    return pipe(**call)


# --- Control ---------------------------------------------------------------------------------------------------------

# FLUX.1-dev-Controlnet-Union's model card.
CONTROL_MODES = {"canny": 0, "tile": 1, "depth": 2, "blur": 3, "pose": 4, "gray": 5, "low-quality": 6}


def call_flux_controlnet(pipe: Any, arguments: Mapping[str, Any]) -> Any:
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


def call_layered(pipe: Any, arguments: Mapping[str, Any]) -> Any:
    """The resolution is one of two numbers: a choice among texts on the command line."""
    return pipe(**{**arguments, "resolution": int(arguments.get("resolution") or 640)})


# --- Upscaling -------------------------------------------------------------------------------------------------------


def call_upscale(pipe: Any, arguments: Mapping[str, Any]) -> Any:
    """Enlarge the picture, then let an image-to-image pipeline redraw it tile by tile, blended where tiles overlap.

    `arguments` are those of the pipeline but for width and height, and `scale`, `resample` (the name of a filter of
    Pillow's), `tile_size` and `tile_overlap` in pixels. The result has exactly round(side * scale) pixels to a side.
    Every tile has a generator of its own, seeded by the run's.
    """
    import torch
    from PIL import Image

    call = dict(arguments)
    scale, resample, tile, overlap = (call.pop(name) for name in ("scale", "resample", "tile_size", "tile_overlap"))
    image, generator = call.pop("image"), call.pop("generator")
    enlarged = image.resize(
        (round(image.width * scale), round(image.height * scale)), Image.Resampling[resample.upper()]
    )
    padded = pad(enlarged, size_step(pipe), tile)
    boxes = tile_boxes(padded.size, tile, overlap)
    sized = {"width", "height"} <= inspect.signature(type(pipe).__call__).parameters.keys()
    _count_steps_of(call, len(boxes))
    redrawn = []
    for box in boxes:
        piece = padded.crop(box)
        seed = int(torch.randint(2**62, (), generator=generator))
        own = {"image": piece, "generator": torch.Generator("cpu").manual_seed(seed)}
        size = dict(zip(SIDES, piece.size, strict=True)) if sized else {}
        redrawn.append(pipe(**call, **own, **size).images)
    whole = [blend(padded.size, boxes, tiles, overlap) for tiles in zip(*redrawn, strict=True)]
    return SimpleNamespace(images=[picture.crop((0, 0, *enlarged.size)) for picture in whole])


def _count_steps_of(call: dict[str, Any], calls: int) -> None:
    """Let the step callback see the steps of all calls together as the pipeline's own."""
    callback = call.get("callback_on_step_end")
    if callback is None:
        return

    def counting(pipe: Any, index: int, *rest: Any) -> Any:
        if index == 0:  # each call sets it anew
            pipe._num_timesteps *= calls
        return callback(pipe, index, *rest)

    call["callback_on_step_end"] = counting


def pad(image: Any, step: int, tile: int) -> Any:
    """The picture with its last rows and columns repeated, so that every side below `tile` is a multiple of `step`."""
    import numpy as np
    from PIL import Image

    right, bottom = (-side % step if side < tile else 0 for side in image.size)
    return Image.fromarray(np.pad(np.asarray(image), ((0, bottom), (0, right), (0, 0)), mode="edge"))


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along a side: each overlaps the one before by `overlap`, the last one by as much as it must."""
    return [*range(0, max(length - tile, 0), tile - overlap), max(length - tile, 0)]


def tile_boxes(size: tuple[int, int], tile: int, overlap: int) -> list[tuple[int, int, int, int]]:
    """(left, top, right, bottom) of every tile, row by row; a side shorter than a tile is one tile."""
    width, height = size
    return [
        (left, top, min(left + tile, width), min(top + tile, height))
        for top in tile_starts(height, tile, overlap)
        for left in tile_starts(width, tile, overlap)
    ]


def blend(size: tuple[int, int], boxes: Sequence[tuple[int, int, int, int]], tiles: Sequence[Any], overlap: int) -> Any:
    """One picture of `size` from tiles (RGB) at their boxes: a weighted mean, the weights falling off towards inner
    edges over `overlap` pixels, so that no seam shows."""
    import numpy as np
    from PIL import Image

    width, height = size
    total, weights = np.zeros((height, width, 3)), np.zeros((height, width, 1))
    for (left, top, right, bottom), tile in zip(boxes, tiles, strict=True):
        across = ramp(right - left, overlap if left > 0 else 0, overlap if right < width else 0)
        down = ramp(bottom - top, overlap if top > 0 else 0, overlap if bottom < height else 0)
        weight = (down[:, None] * across[None, :])[..., None]
        total[top:bottom, left:right] += weight * np.asarray(tile.convert("RGB"), dtype=float)
        weights[top:bottom, left:right] += weight
    return Image.fromarray((total / weights).round().astype(np.uint8))


def ramp(length: int, rising: int, falling: int) -> Any:
    """Weights in (0, 1] along a side: up from its start over `rising` pixels, down to its end over `falling`."""
    import numpy as np

    place = np.arange(length)
    up, down = (place + 1) / (rising + 1), (length - place) / (falling + 1)
    return np.minimum(np.minimum(up, down), 1.0)


# --- Attend and Excite -----------------------------------------------------------------------------------------------


def call_attend_excite(pipe: Any, arguments: Mapping[str, Any]) -> Any:
    """Find the tokens of the `words` to emphasise in the prompt, and look at attention where it is for this size.

    The pipeline's default resolution of attention fits pictures of 512 x 512 only, and its own rule for others mixes up
    width and height.
    """
    call = dict(arguments)
    words, prompt = call.pop("words"), call["prompt"]
    found = [token_indices(pipe.tokenizer, one, words) for one in (prompt if isinstance(prompt, list) else [prompt])]
    call["token_indices"] = found if isinstance(prompt, list) else found[0]
    if not call.get("attn_res"):
        height, width = (call.get(side) or native_side(pipe) for side in ("height", "width"))
        call["attn_res"] = (-(-height // 32), -(-width // 32))
    if call.get("thresholds"):  # JSON has no numbers for keys
        call["thresholds"] = {int(step): float(value) for step, value in call["thresholds"].items()}
    return pipe(**call)


def token_indices(tokenizer: Any, prompt: str, words: Sequence[str]) -> list[int]:
    """The places in the tokenized prompt of every token of the words (or phrases), each at its first occurrence.

    Raises UsageError for a word that the prompt does not have.
    """
    prompted = tokenizer(prompt, truncation=True).input_ids
    found: list[int] = []
    for word in words:
        own = tokenizer(word, add_special_tokens=False).input_ids
        starts = (at for at in range(len(prompted) - len(own) + 1) if own and prompted[at : at + len(own)] == own)
        start = next(starts, None)
        if start is None:
            raise UsageError(f"--words {word}: the prompt does not have it", "name words as the prompt has them")
        found += range(start, start + len(own))
    return found


# --- DiffEdit --------------------------------------------------------------------------------------------------------


def load_diffedit(pipe: Any) -> None:
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


MASK_ARGUMENTS = ("num_maps_per_mask", "mask_encode_strength", "mask_thresholding_ratio")


def call_diffedit(pipe: Any, arguments: Mapping[str, Any]) -> Any:
    """Change what `mask_prompt` says is in the picture into what `prompt` says.

    Three stages: find the mask where the two prompts disagree about the picture; invert the picture to noise under the
    first; denoise under the second, inside the mask. The output has the mask as `mask_image`, in the result's size.
    """
    call = dict(arguments)
    image, shown = _whole_latents(pipe, call.pop("image")), call.pop("mask_prompt")
    masking = _given(call, *MASK_ARGUMENTS)
    call = {name: value for name, value in call.items() if name not in masking}
    shared = _given(call, "num_inference_steps", "guidance_scale", "generator", "cross_attention_kwargs")
    mask = pipe.generate_mask(image=image, source_prompt=shown, target_prompt=call["prompt"], **masking, **shared)
    steps = call["num_inference_steps"]
    pipe._num_timesteps = 2 * min(int(steps * call["inpaint_strength"]), steps)  # there, and back
    inverting = _given(call, "inpaint_strength", "callback")
    inverted = pipe.invert(image=image, prompt=shown, **inverting, **shared).latents
    output = pipe(mask_image=mask, image_latents=inverted, **call)
    output.mask_image = [_mask_picture(mask[0], output.images[0].size)]
    return output


def _given(call: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Those of the named arguments that the call has."""
    return {name: call[name] for name in names if name in call}


def _whole_latents(pipe: Any, image: Any) -> Any:
    """The picture cropped, about its middle, to whole latents: the pipeline would stretch it."""
    from PIL import ImageOps

    step = size_step(pipe)
    return ImageOps.fit(image, tuple(max(step, side // step * step) for side in image.size))


def _mask_picture(mask: Any, size: tuple[int, int]) -> Any:
    """A mask (height, width) of latents, 0 or 1, as a picture in black and white."""
    import numpy as np
    from PIL import Image

    return Image.fromarray((np.asarray(mask) * 255).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)


# --- aMUSEd ----------------------------------------------------------------------------------------------------------


def load_amused_inpaint(pipe: Any) -> None:
    """Let the pipeline take pictures of other sizes than multiples of 256: it rounds its latents as if pixels."""
    pipe.mask_processor.register_to_config(vae_scale_factor=1)


# --- Wuerstchen ------------------------------------------------------------------------------------------------------


def call_wuerstchen(pipe: Any, arguments: Mapping[str, Any]) -> Any:
    """Report the prior's steps, most of the work, as well as the decoder's."""
    callback = arguments.get("callback_on_step_end")
    pipe._num_timesteps = arguments.get("prior_num_inference_steps", 60) + arguments.get("num_inference_steps", 12)
    return pipe(**arguments, prior_callback_on_step_end=callback)


# --- Video -----------------------------------------------------------------------------------------------------------


def load_wan(pipe: Any) -> None:
    """Read and decode pictures in float32, as the examples of Wan's pipelines do."""
    for part in (pipe.vae, getattr(pipe, "image_encoder", None)):
        if part is not None:
            part.float()


def load_allegro(pipe: Any) -> None:
    """Decode in tiles, the only way there is (AutoencoderKLAllegro._decode), and in float32, as the example does."""
    pipe.vae.enable_tiling()
    pipe.vae.float()


def call_at_area(pipe: Any, arguments: Mapping[str, Any]) -> Any:
    """Where no size is asked for, make frames in the proportions of the picture or video given, `max_area` pixels.

    The pipelines' own default is a wide screen, into which they squeeze what is given.
    """
    return pipe(**with_area(pipe, arguments))


def with_area(pipe: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with width and height (see `size_at_area`) and without `max_area`; pictures scaled to that size."""
    call = dict(arguments)
    area = call.pop("max_area")
    given = call["video"][0] if call.get("video") else call.get("image")
    if given is None:
        return call
    size = size_at_area(given.size, area, frame_step(pipe), call.get("width"), call.get("height"))
    for name in SCALED & call.keys():
        call[name] = [f.resize(size) for f in call[name]] if isinstance(call[name], list) else call[name].resize(size)
    return {**call, "width": size[0], "height": size[1]}


SCALED = {"image", "last_image", "video", "mask"}


def frame_step(pipe: Any) -> int:
    """The pixels to a side of what is one token of the denoiser."""
    if hasattr(pipe, "vae_spatial_compression_ratio"):  # LTX
        return int(pipe.vae_spatial_compression_ratio * pipe.transformer_spatial_patch_size)
    return int(pipe.vae_scale_factor_spatial * (pipe.transformer or pipe.transformer_2).config.patch_size[1])


def call_vace(pipe: Any, arguments: Mapping[str, Any]) -> Any:
    """Make as many frames as the video has, in its proportions, unless told otherwise.

    The pipeline needs both to agree. Raises UsageError for a video of fewer frames than num_frames.
    """
    call = with_area(pipe, arguments)
    video, frames = call.get("video"), call.get("num_frames")
    if video is None:
        return pipe(**call)
    if frames is None:
        frames = (len(video) - 1) // pipe.vae_scale_factor_temporal * pipe.vae_scale_factor_temporal + 1
    if len(video) < frames:
        raise UsageError(f"--video has {len(video)} frames but --num-frames is {frames}", "ask for fewer frames")
    call |= {name: call[name][:frames] for name in ("video", "mask") if name in call}
    call["num_frames"] = frames
    return pipe(**call)
