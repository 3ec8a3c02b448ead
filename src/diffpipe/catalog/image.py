"""Families that make pictures.

A row says only what the pipeline's own signature cannot know: repositories (the first is the default), better defaults,
which media arguments are needed, size steps. Sources: the model repositories' cards and diffusers 0.42.
"""

from __future__ import annotations

from typing import Any

from ..specs import PipelineType, Provider

IMAGE: dict[str, Any] = {"image": {"required": True, "many": False}}
IMAGE_AND_MASK: dict[str, Any] = {**IMAGE, "mask_image": {"required": True, "kind": "mask"}}
PROMPT: dict[str, Any] = {"prompt": {"required": True}}

FLUX_MODELS = ("black-forest-labs/FLUX.1-schnell", "black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-Krea-dev")
# 8 pixels a latent, 2 x 2 latents a token (FluxPipeline.check_inputs: vae_scale_factor * 2).
FLUX_FLAGS: dict[str, Any] = {**PROMPT, "width": {"multiple_of": 16}, "height": {"multiple_of": 16}}

FLUX = Provider(
    name="flux",
    title="FLUX.1 by Black Forest Labs",
    homepage="https://huggingface.co/black-forest-labs",
    types=(
        PipelineType("text2image", "FluxPipeline", FLUX_MODELS, flags=FLUX_FLAGS),
        PipelineType("img2img", "FluxImg2ImgPipeline", FLUX_MODELS, flags={**FLUX_FLAGS, **IMAGE}),
        PipelineType("inpaint", "FluxInpaintPipeline", FLUX_MODELS, flags={**FLUX_FLAGS, **IMAGE_AND_MASK}),
    ),
)

SD_MODELS = (
    "stabilityai/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2",
    "CompVis/stable-diffusion-v1-4",
)

STABLE_DIFFUSION = Provider(
    name="stable-diffusion",
    title="Stable Diffusion 1 and 2",
    homepage="https://huggingface.co/stabilityai",
    types=(
        PipelineType("text2image", "StableDiffusionPipeline", SD_MODELS, flags=PROMPT),
        PipelineType("img2img", "StableDiffusionImg2ImgPipeline", SD_MODELS, flags={**PROMPT, **IMAGE}),
        PipelineType("inpaint", "StableDiffusionInpaintPipeline", SD_MODELS, flags={**PROMPT, **IMAGE_AND_MASK}),
    ),
)

CUSTOM = Provider(
    name="custom",
    title="Any diffusers folder or repository",
    homepage="https://huggingface.co/models?library=diffusers",
    types=(PipelineType("auto", ""),),
)

PROVIDERS = (FLUX, STABLE_DIFFUSION, CUSTOM)
