"""How many channels a denoiser takes, which says what it was trained for: inpainting, editing, control pictures."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ...core.canonical import JsonValue
from ...core.errors import UsageError

# The layer whose input is the denoiser's, by class.
INPUT_LAYER = {
    "UNet2DConditionModel": "conv_in.weight",
    "FluxTransformer2DModel": "x_embedder.weight",
    "WanTransformer3DModel": "patch_embedding.weight",
}
# Pipelines of which is known what they put beside the latents (their prepare_mask_latents and prepare_image_latents).
UNETS = re.compile(
    r"StableDiffusion(XL)?(ControlNet(Union)?)?(PAG)?(Img2Img|Inpaint|InstructPix2Pix)?Pipeline"
    r"|StableDiffusion(AttendAndExcite|DiffEdit|Depth2Img|Upscale)Pipeline"
)
FLUXES = re.compile(r"Flux(Control(?!Net)|ControlNet|Kontext|Fill)?(Img2Img|Inpaint)?Pipeline")
WANS = re.compile(r"Wan(VideoToVideo|ImageToVideo)?Pipeline")
MASK = 64  # a mask of 8 x 8 pixels a latent, 2 x 2 of which are a token: 4 x 64 channels (FluxFillPipeline)


class Use(NamedTuple):
    """What a number of channels is for, and the pipeline class that gives it."""

    what: str
    pipeline: str


def check(
    pipeline: str,
    part: str,
    kind: str,
    channels: int | None,
    settings: Mapping[str, JsonValue],
    way: Callable[[str], str],
) -> None:
    """Refuse a denoiser that takes other channels than the pipeline gives it, naming the pipeline that does.

    `part`: what the user knows the denoiser by. `kind`: its class. `channels`: of its file, None where only its
    settings are known. `way`: how to build a pipeline class. Raises UsageError.
    """
    taken, made = channels or _number(settings, "in_channels"), _made(kind, settings)
    if not (taken and made):
        return
    given = _given(pipeline, kind, made)
    if given and taken not in given:
        use = use_of(kind, taken, settings)
        amount = " or ".join(map(str, given))
        meant = f" ({use.what})" if use else ""
        hint = way(use.pipeline) if use else "choose a model that was made for this type"
        raise UsageError(f"{part} takes {taken} channels{meant}, and {pipeline} gives it {amount}", hint)


def use_of(kind: str, channels: int, settings: Mapping[str, JsonValue]) -> Use | None:
    """What a denoiser with so many channels is for; None where that is not known."""
    made = _made(kind, settings)
    if made is None:
        return None
    xl = "XL" if settings.get("addition_embed_type") == "text_time" else ""
    uses = {
        "UNet2DConditionModel": {
            made: Use("text to image", f"StableDiffusion{xl}Pipeline"),
            made + 5: Use("inpainting: a mask and the picture beside it", f"StableDiffusion{xl}InpaintPipeline"),
            made + 4: Use("instruct-pix2pix: the picture beside it", f"StableDiffusion{xl}InstructPix2PixPipeline"),
            made + 1: Use("a depth map beside it", "StableDiffusionDepth2ImgPipeline"),
            made + 3: Use("a small picture beside it", "StableDiffusionUpscalePipeline"),
        },
        "FluxTransformer2DModel": {
            made: Use("text to image", "FluxPipeline"),
            2 * made: Use("a control picture beside it: canny, depth", "FluxControlPipeline"),
            2 * made + 4 * MASK: Use("fill: a mask and the picture beside it", "FluxFillPipeline"),
        },
        "WanTransformer3DModel": {
            made: Use("text to video", "WanPipeline"),
            2 * made + 4: Use("image to video: the picture beside it", "WanImageToVideoPipeline"),
        },
    }
    return uses.get(kind, {}).get(channels)


def _given(pipeline: str, kind: str, made: int) -> tuple[int, ...]:
    """The numbers of channels that a pipeline can give a denoiser that makes so many; () where that is not known."""
    if kind == "UNet2DConditionModel" and UNETS.fullmatch(pipeline):
        extra = {"Inpaint": (0, 5), "InstructPix2Pix": (4,), "Depth2Img": (1,), "Upscale": (3,)}
        return tuple(made + more for more in next((extra[one] for one in extra if one in pipeline), (0,)))
    if kind == "FluxTransformer2DModel" and FLUXES.fullmatch(pipeline):
        if "Fill" in pipeline:
            return (2 * made + 4 * MASK,)
        return (2 * made,) if re.match(r"FluxControl(?!Net)", pipeline) else (made,)
    if kind == "WanTransformer3DModel" and WANS.fullmatch(pipeline):
        # Wan 2.2's small model takes the picture in the place of the first latents.
        return (2 * made + 4, made) if "ImageToVideo" in pipeline else (made,)
    return ()


def _made(kind: str, settings: Mapping[str, JsonValue]) -> int | None:
    """The channels that a denoiser makes: those of the latents (Flux: of a token)."""
    if kind not in INPUT_LAYER:
        return None
    default = 4 if kind == "UNet2DConditionModel" else 16 if kind == "WanTransformer3DModel" else None
    return _number(settings, "out_channels") or default or _number(settings, "in_channels")


def _number(settings: Mapping[str, JsonValue], name: str) -> int | None:
    found = settings.get(name)
    return found if isinstance(found, int) and not isinstance(found, bool) else None
