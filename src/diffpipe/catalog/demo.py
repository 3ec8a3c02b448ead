"""The embedded demo model (src/diffpipe/demo): a small Flux that draws emoji, for the first picture and for tests."""

from __future__ import annotations

from typing import Any

from ..specs import PipelineType, Provider
from .image import FLUX_FLAGS, IMAGE, IMAGE_AND_MASK

MODEL = ("embedded:demo",)
# What the model was trained for: FluxPipeline's own defaults (1024 pixels, 28 steps, 512 tokens) suit the large ones.
DEFAULTS: dict[str, Any] = {
    "width": 128,
    "height": 128,
    "num_inference_steps": 8,
    "guidance_scale": 2.5,
    "max_sequence_length": 32,
}

DEMO = Provider(
    name="demo",
    title="The embedded demo model: emoji on coloured backgrounds, 128 x 128, offline",
    types=(
        PipelineType("text2image", "FluxPipeline", MODEL, defaults=DEFAULTS, flags=FLUX_FLAGS),
        PipelineType("img2img", "FluxImg2ImgPipeline", MODEL, defaults=DEFAULTS, flags={**FLUX_FLAGS, **IMAGE}),
        PipelineType(
            "inpaint", "FluxInpaintPipeline", MODEL, defaults=DEFAULTS, flags={**FLUX_FLAGS, **IMAGE_AND_MASK}
        ),
    ),
    vocabulary="demo/vocabulary.json",
)

PROVIDERS = (DEMO,)
