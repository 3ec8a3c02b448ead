"""A small, short call of any pipeline, made from its flags; the same one every time."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from ...core.flag import Arguments, Flag, nearest
from ...core.quantization import SAMPLE_FRAMES, SAMPLE_SIDE
from ..classes.signature import tuple_arguments

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL import Image

SECONDS = 2.0
STEPS = 2  # with one, the shifted schedule of Qwen-Image divides 0 by 0
PROMPT = "a lighthouse at dusk"

SIZES = {"height": SAMPLE_SIDE, "width": SAMPLE_SIDE, "num_frames": SAMPLE_FRAMES}
FIXED = {"strength": 1.0, "audio_length_in_s": SECONDS, "audio_end_in_s": SECONDS}
WANTED = ("prompt", "image", "mask_image")  # given even where they can be left out


def sample(pipe: DiffusionPipeline, flags: Collection[Flag]) -> Arguments:
    """The arguments of the call, a generator among them."""
    import torch

    made: dict[str, Any] = {flag.name: value for flag in flags if (value := _value(flag)) is not None}
    pipeline: type = type(pipe)
    for name in tuple_arguments(pipeline) & made.keys():
        made[name] = tuple(made[name])
    return {**made, "generator": torch.Generator("cpu").manual_seed(0)}


def _value(flag: Flag) -> object:
    """What an argument is given: small sizes, few steps, text, drawn pictures; None for those that can be left out."""
    if flag.name.endswith("num_inference_steps"):
        return nearest(flag, STEPS)[0]
    if flag.name in FIXED:
        return FIXED[flag.name]
    if flag.name in SIZES:
        return nearest(flag, SIZES[flag.name])[0]
    if not flag.required and flag.default is not None:
        return flag.default
    if not flag.required and flag.kind != "choice" and flag.name not in WANTED:
        return None
    value = _needed(flag)
    return [value] if flag.many and not flag.scalar and value is not None else value


def _needed(flag: Flag) -> object:
    """A value for an argument that must be given, by its kind."""
    import torch

    if flag.kind in ("image", "mask"):
        return _picture(flag)
    if flag.kind == "video":
        return [_picture(flag)] * SAMPLE_FRAMES
    if flag.kind == "audio":
        return torch.sin(torch.arange(32000) / 10.0).repeat(2, 1)
    if flag.kind == "text":
        return PROMPT
    if flag.kind == "choice":
        return flag.choices[0]
    plain: dict[str, object] = {"integer": 1, "number": 1.0, "boolean": False}
    return plain.get(flag.kind)


def _picture(flag: Flag) -> Image.Image:
    """A gradient (a mask: its bright half) in the mode that the pipeline wants."""
    from PIL import Image

    gradient = Image.linear_gradient("L").resize((SAMPLE_SIDE, SAMPLE_SIDE))
    if flag.kind == "mask" or "mask" in flag.name:
        return gradient.point(lambda level: 255 if level > 127 else 0)
    return gradient.convert(flag.mode or "RGB")
