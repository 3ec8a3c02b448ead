"""The size of the result where none is asked for: that of the picture or video given, as near as a pipeline can."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from ....core.flag import Arguments

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from diffusers.utils import BaseOutput
    from PIL.Image import Image

T = TypeVar("T", "Image", "list[Image]")

SIDES = ("width", "height")
SCALED = frozenset({"image", "last_image", "video", "mask"})  # what must have the size of the frames


def call_at_image_size(pipe: DiffusionPipeline, arguments: Arguments) -> BaseOutput:
    """Where no size is asked for, make the result as large as the picture given, as near as the pipeline can.

    The pipelines' own default is a square, into which they squeeze the picture.
    """
    return pipe(**with_image_size(pipe, arguments))


def call_at_area(pipe: DiffusionPipeline, arguments: Arguments) -> BaseOutput:
    """Where no size is asked for, make frames in the proportions of the picture or video given, `max_area` pixels.

    The pipelines' own default is a wide screen, into which they squeeze what is given.
    """
    return pipe(**with_area(pipe, arguments))


def with_image_size(pipe: DiffusionPipeline, arguments: Arguments) -> Arguments:
    """The arguments with width and height: those given, or else (where one is, the other) in the picture's proportions.

    A picture of more pixels than the pipeline's own default size has is scaled down to as many: memory and time grow
    with them, and models draw badly far above the size that they were trained at.
    """
    picture = arguments.get("image") or arguments.get("control_image")
    first = picture[0] if isinstance(picture, list) else picture
    width, height = arguments.get("width"), arguments.get("height")
    if first is None or (width and height):
        return arguments
    area = min(first.width * first.height, native_side(pipe) ** 2)
    size = size_at_area(first.size, area, size_step(pipe), width, height)
    return {**arguments, **dict(zip(SIDES, size, strict=True))}


def with_area(pipe: DiffusionPipeline, arguments: Arguments) -> Arguments:
    """The arguments with width and height (see `size_at_area`) and without `max_area`; pictures scaled to that size."""
    call = {name: value for name, value in arguments.items() if name != "max_area"}
    given = call["video"][0] if call.get("video") else call.get("image")
    if given is None:
        return call
    asked = call.get("width"), call.get("height")
    size = size_at_area(given.size, arguments["max_area"], frame_step(pipe), *asked)
    scaled = {name: _resized(call[name], size) for name in SCALED & call.keys()}
    return {**call, **scaled, **dict(zip(SIDES, size, strict=True))}


def _resized(value: T, size: tuple[int, int]) -> T:
    return [frame.resize(size) for frame in value] if isinstance(value, list) else value.resize(size)


def size_at_area(
    given: tuple[int, int], area: int, step: int, width: int | None = None, height: int | None = None
) -> tuple[int, int]:
    """(width, height) in multiples of `step` and in the proportions of `given`: of at most `area` pixels, or with the
    one side that is asked for. With both asked for, just those. The formula is WanImageToVideoPipeline's example's."""
    tall = given[1] / given[0]
    wide = width or (height / tall if height else (area / tall) ** 0.5)
    high = height or wide * tall
    return width or max(step, round(wide) // step * step), height or max(step, round(high) // step * step)


def size_step(pipe: DiffusionPipeline) -> int:
    """The pixels that sides of results go in steps of. Most pipelines' image processors count patches of latents in;
    that of Stable Diffusion 3 does not."""
    return int(pipe.image_processor.config.vae_scale_factor * getattr(pipe, "patch_size", 1))


def native_side(pipe: DiffusionPipeline) -> int:
    """The pixels to a side of the square that a pipeline makes by default."""
    latents = getattr(pipe, "default_sample_size", None) or pipe.unet.config.sample_size
    return int(latents * pipe.vae_scale_factor)


def frame_step(pipe: DiffusionPipeline) -> int:
    """The pixels to a side of what is one token of the denoiser of a video."""
    if hasattr(pipe, "vae_spatial_compression_ratio"):  # LTX
        return int(pipe.vae_spatial_compression_ratio * pipe.transformer_spatial_patch_size)
    return int(pipe.vae_scale_factor_spatial * (pipe.transformer or pipe.transformer_2).config.patch_size[1])
