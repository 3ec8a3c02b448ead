"""The embedded demo model (src/diffpipe/demo): a small Flux that draws emoji, for the first picture and for tests."""

from __future__ import annotations

from ...core.flag import Arguments
from ..rows import FlagFields, PipelineType, Provider
from ..shared_flags import IMAGE, IMAGE_AND_MASK, Flags
from .flux import FLUX_FLAGS

MODEL = ("embedded:demo",)
# What the model was trained for: FluxPipeline's own defaults (1024 pixels, 28 steps, 512 tokens) suit the large ones.
DEFAULTS: Arguments = {
    "width": 128,
    "height": 128,
    "num_inference_steps": 8,
    "guidance_scale": 3.0,
    "max_sequence_length": 32,
}

# As tools/evaluate_demo.py measures them: the background follows the prompt while the subject keeps its place.
REDRAWN: Arguments = {**DEFAULTS, "strength": 0.8, "num_inference_steps": 12}
FILLED: Arguments = {**DEFAULTS, "strength": 1.0}
SIZE: FlagFields = {
    "help": "Pixels. The model draws 128 x 128; other sizes repeat or cut the subject.",
    "multiple_of": 16,
}
FLAGS: Flags = {**FLUX_FLAGS, "width": SIZE, "height": SIZE}

DEMO = Provider(
    name="demo",
    title="The embedded demo model: emoji on coloured backgrounds, 128 x 128, offline",
    types=(
        PipelineType("text2image", "FluxPipeline", MODEL, defaults=DEFAULTS, flags=FLAGS),
        PipelineType("img2img", "FluxImg2ImgPipeline", MODEL, defaults=REDRAWN, flags={**FLAGS, **IMAGE}),
        PipelineType("inpaint", "FluxInpaintPipeline", MODEL, defaults=FILLED, flags={**FLAGS, **IMAGE_AND_MASK}),
    ),
    vocabulary="demo/vocabulary.json",
)
