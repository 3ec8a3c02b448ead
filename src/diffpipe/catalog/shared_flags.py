"""Flags, defaults and quirks that rows of several families share.

A row says only what the pipeline's own signature cannot know. The docstrings of pipelines speak of arrays and tensors
where a command line takes files, so the help of media is here, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from ..core.flag import Arguments
from .rows import FlagFields

Flags: TypeAlias = Mapping[str, FlagFields | None]  # by call argument: fields to override, None for no flag
Quirks: TypeAlias = Mapping[str, str]  # by hook

QUIRKS = "diffpipe.engine.running.quirks"

# --- What is given ---------------------------------------------------------------------------------------------------

PROMPT: Flags = {"prompt": {"required": True, "help": "What to make, in words."}}
CHANGE: Flags = {"prompt": {"required": True, "help": "What to change, in words."}}
IMAGE: Flags = {"image": {"required": True, "many": False, "help": "The picture to start from."}}
MASK: FlagFields = {
    "required": True,
    "kind": "mask",
    "help": "White is painted anew, black is kept. As large as the picture.",
}
IMAGE_AND_MASK: Flags = {**IMAGE, "mask_image": MASK}
FOLLOWED: FlagFields = {"required": True, "many": False, "help": "The picture that the ControlNet follows."}
CONTROL_IMAGE: Flags = {"control_image": FOLLOWED}
# One ControlNet, so one value of each.
ONE_CONTROLNET: Flags = {
    name: {"many": False}
    for name in ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end")
}
# Pipelines that make one whatever num_videos_per_prompt says, or fail (Wan 2.1 from a picture). --count makes several.
ONE_VIDEO: Flags = {"num_videos_per_prompt": None}

# --- Sizes -----------------------------------------------------------------------------------------------------------


def steps(pixels: int, help: str = "") -> Flags:
    """Flags of sizes that go in steps of so many pixels."""
    side: FlagFields = {"multiple_of": pixels, "minimum": pixels}
    if help:
        side["help"] = help
    return {"width": side, "height": side}


def as_image(pixels: int) -> Flags:
    """Flags of sizes that the given picture decides (see `call_at_image_size`)."""
    return steps(pixels, "Pixels. Default: as the picture has, or in its proportions.")


def as_given(pixels: int, area: int, least: int) -> Flags:
    """Flags of sizes in the proportions of the picture or video that is given, `area` pixels unless asked otherwise; in
    steps of so many pixels, from `least` on (see `call_at_area`)."""
    side: FlagFields = {
        "multiple_of": pixels,
        "minimum": least,
        "help": "Pixels. Default: in the proportions of what is given, see --max-area.",
    }
    return {
        "width": side,
        "height": side,
        "max_area": {
            "kind": "integer",
            "default": area,
            "minimum": least * least,
            "help": "The pixels of a frame where width and height are not given.",
        },
    }


def frames(each: int, remainder: int, *, minimum: int = 1, help: str = "") -> Flags:
    """A flag of a number of frames: `each` of them are a latent, but for `remainder` frames of their own."""
    number: FlagFields = {"multiple_of": each, "remainder": remainder, "minimum": max(remainder, minimum)}
    if help:
        number["help"] = help
    return {"num_frames": number}


AT_IMAGE_SIZE: Quirks = {"call": f"{QUIRKS}.area:call_at_image_size"}
AT_AREA: Quirks = {"call": f"{QUIRKS}.area:call_at_area"}
NO_SIZE: Arguments = {"width": None, "height": None}  # that of what is given, for AT_AREA

# --- Upscaling -------------------------------------------------------------------------------------------------------

# See `call_upscale`: the tiles have the sizes that the pipeline is called with.

UPSCALE: Flags = {
    **PROMPT,
    **IMAGE,
    "width": None,
    "height": None,
    "scale": {
        "kind": "number",
        "default": 2.0,
        "minimum": 1,
        "maximum": 16,
        "help": "How many times larger to make it.",
    },
    "tile_size": {
        "kind": "integer",
        "default": 1024,
        "minimum": 16,
        "multiple_of": 16,
        "help": "Pixels to a side of the tiles that are redrawn one by one.",
    },
    "tile_overlap": {
        "kind": "integer",
        "default": 64,
        "minimum": 0,
        "help": "Pixels by which the tiles overlap and are blended.",
    },
    "resample": {
        "kind": "choice",
        "default": "lanczos",
        "choices": ("lanczos", "bicubic", "bilinear", "nearest"),
        "help": "The filter to enlarge with before redrawing.",
    },
}
UPSCALE_DEFAULTS: Arguments = {"strength": 0.3}  # low enough that what is in a tile stays what it is
UPSCALE_QUIRKS: Quirks = {"call": f"{QUIRKS}.upscale:call_upscale"}
