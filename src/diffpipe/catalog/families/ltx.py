"""LTX-Video and LTX-2 by Lightricks."""

from __future__ import annotations

from ...core.flag import Arguments
from ..rows import PipelineType, Provider
from ..shared_flags import AT_AREA, IMAGE, NO_SIZE, PROMPT, Flags, as_given, frames, steps

# Those of 2.3 moved in May 2026, from dg845.
LTX2_MODELS = ("Lightricks/LTX-2", "diffusers/LTX-2.3-Diffusers", "diffusers/LTX-2.3-Distilled-Diffusers")
# 32 pixels a latent (check_inputs). The first frame is a latent of its own, then 8 make one: of any other number the
# pipelines make fewer.
LTX_FLAGS: Flags = {**PROMPT, **steps(32), **frames(8, 1)}
# The pipeline's own, where no duration head decides it: given here so that the number is checked and shown.
LTX2_DEFAULTS: Arguments = {"num_frames": 121}
LTX2_AREA = 512 * 768
LTX2_LEAST = 64  # the decoder mirrors latents at the edges (its "reflect" padding): it needs two to a side
LTX2_SIZES: Flags = {side: {"multiple_of": 32, "minimum": LTX2_LEAST} for side in ("width", "height")}
LTX2_NOTES = (
    "the distilled model takes 8 steps and no guidance: --guidance-scale 1 --stg-scale 0 --modality-scale 1, "
    "and the same for --audio-..."
)

LTX = Provider(
    name="ltx",
    title="LTX-Video and LTX-2 by Lightricks",
    homepage="https://huggingface.co/Lightricks",
    types=(
        PipelineType(
            "text2video",
            "LTXPipeline",
            ("Lightricks/LTX-Video",),
            flags=LTX_FLAGS,
            notes="models from 0.9.1 on want --decode-timestep 0.03 --decode-noise-scale 0.025",
        ),
        PipelineType(
            "ltx2",
            "LTX2Pipeline",
            LTX2_MODELS,
            defaults=LTX2_DEFAULTS,
            flags={**LTX_FLAGS, **LTX2_SIZES},
            notes=LTX2_NOTES,
        ),
        PipelineType(
            "ltx2-img2video",
            "LTX2ImageToVideoPipeline",
            LTX2_MODELS,
            defaults={**NO_SIZE, **LTX2_DEFAULTS},
            flags={**LTX_FLAGS, **as_given(32, LTX2_AREA, LTX2_LEAST), **IMAGE},
            quirks=AT_AREA,
            notes=LTX2_NOTES,
        ),
    ),
)
