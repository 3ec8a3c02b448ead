"""Z-Image by Tongyi."""

from __future__ import annotations

from ..rows import PipelineType, Provider
from ..shared_flags import PROMPT, steps

Z_IMAGE = Provider(
    name="z-image",
    title="Z-Image by Tongyi",
    homepage="https://huggingface.co/Tongyi-MAI",
    types=(
        PipelineType(
            "text2image",
            "ZImagePipeline",
            ("Tongyi-MAI/Z-Image-Turbo",),
            # Turbo is distilled: so the pipeline's example has it.
            defaults={"guidance_scale": 0.0, "num_inference_steps": 8},
            flags={**PROMPT, **steps(16)},
            notes="layerwise casting does not work with it",
        ),
    ),
)
