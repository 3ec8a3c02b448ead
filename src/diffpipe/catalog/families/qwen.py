"""Qwen-Image by Alibaba."""

from __future__ import annotations

from ...core.flag import Arguments
from ..rows import PipelineType, Provider
from ..shared_flags import (
    AT_IMAGE_SIZE,
    CHANGE,
    CONTROL_IMAGE,
    IMAGE,
    ONE_CONTROLNET,
    PROMPT,
    QUIRKS,
    UPSCALE,
    UPSCALE_DEFAULTS,
    UPSCALE_QUIRKS,
    Flags,
    as_image,
    steps,
)

QWEN_MODELS = ("Qwen/Qwen-Image",)
# Without a negative prompt there is no guidance at all; the model card passes one space.
QWEN_DEFAULTS: Arguments = {"negative_prompt": " "}
# 8 pixels a latent, 2 x 2 latents a token (check_inputs: vae_scale_factor * 2).
QWEN_FLAGS: Flags = {**PROMPT, **steps(16)}
QWEN_AT_IMAGE: Flags = {**PROMPT, **as_image(16)}

QWEN = Provider(
    name="qwen",
    title="Qwen-Image by Alibaba",
    homepage="https://huggingface.co/Qwen",
    types=(
        PipelineType("text2image", "QwenImagePipeline", QWEN_MODELS, defaults=QWEN_DEFAULTS, flags=QWEN_FLAGS),
        PipelineType(
            "img2img",
            "QwenImageImg2ImgPipeline",
            QWEN_MODELS,
            defaults=QWEN_DEFAULTS,
            flags={**QWEN_AT_IMAGE, **IMAGE},
            quirks=AT_IMAGE_SIZE,
        ),
        PipelineType(
            "edit",
            "QwenImageEditPipeline",
            ("Qwen/Qwen-Image-Edit", "Qwen/Qwen-Image-Edit-2509", "Qwen/Qwen-Image-Edit-2511"),
            defaults=QWEN_DEFAULTS,
            flags={**QWEN_AT_IMAGE, **CHANGE, **IMAGE},
            notes="its processor needs torchvision",
        ),
        PipelineType(
            "edit-plus",
            "QwenImageEditPlusPipeline",
            ("Qwen/Qwen-Image-Edit-2509", "Qwen/Qwen-Image-Edit-2511"),
            defaults=QWEN_DEFAULTS,
            # Trained on one to three pictures, says the model card.
            flags={
                **QWEN_AT_IMAGE,
                **CHANGE,
                "image": {"required": True, "most": 3, "help": "A picture to change or to take from: up to three."},
            },
            notes="its processor needs torchvision",
        ),
        PipelineType(
            "controlnet",
            "QwenImageControlNetPipeline",
            QWEN_MODELS,
            defaults=QWEN_DEFAULTS,
            flags={**QWEN_AT_IMAGE, **CONTROL_IMAGE, **ONE_CONTROLNET},
            components={"controlnet": "InstantX/Qwen-Image-ControlNet-Union"},
            quirks=AT_IMAGE_SIZE,
        ),
        PipelineType(
            "layered",
            "QwenImageLayeredPipeline",
            ("Qwen/Qwen-Image-Layered",),
            defaults=QWEN_DEFAULTS,
            flags={
                "image": {"required": True, "many": False, "mode": "RGBA", "help": "The picture to take apart."},
                "prompt": {"help": "What the picture shows. Default: a caption that the model writes itself."},
                "layers": {"minimum": 1, "help": "How many layers to make."},
                "resolution": {
                    "kind": "choice",
                    "choices": ("640", "1024"),
                    "default": "640",
                    "help": "The layers have as many pixels as a square of this side, in the picture's proportions.",
                },
            },
            quirks={"call": f"{QUIRKS}.qwen:call_layered"},
            notes="makes one RGBA picture a layer; its processor needs torchvision",
        ),
        PipelineType(
            "upscale",
            "QwenImageImg2ImgPipeline",
            QWEN_MODELS,
            defaults={**QWEN_DEFAULTS, **UPSCALE_DEFAULTS},
            flags=UPSCALE,
            quirks=UPSCALE_QUIRKS,
        ),
    ),
)
