"""aMUSEd by Hugging Face."""

from __future__ import annotations

from ..rows import PipelineType, Provider
from ..shared_flags import IMAGE, IMAGE_AND_MASK, PROMPT, QUIRKS, steps

AMUSED_MODELS = ("amused/amused-256", "amused/amused-512")

AMUSED = Provider(
    name="amused",
    title="aMUSEd: small and fast, by Hugging Face",
    homepage="https://huggingface.co/amused",
    legacy=True,
    types=(
        PipelineType("text2image", "AmusedPipeline", AMUSED_MODELS, flags={**PROMPT, **steps(16)}),
        PipelineType("img2img", "AmusedImg2ImgPipeline", AMUSED_MODELS, flags={**PROMPT, **IMAGE}),
        PipelineType(
            "inpaint",
            "AmusedInpaintPipeline",
            AMUSED_MODELS,
            flags={**PROMPT, **IMAGE_AND_MASK},
            quirks={"load": f"{QUIRKS}.amused:load_amused_inpaint"},
        ),
    ),
)
