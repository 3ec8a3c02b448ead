"""FLUX.1 and FLUX.2 by Black Forest Labs."""

from __future__ import annotations

from ..rows import PipelineType, Provider
from ..shared_flags import (
    AT_IMAGE_SIZE,
    CHANGE,
    CONTROL_IMAGE,
    IMAGE,
    IMAGE_AND_MASK,
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

FLUX_MODELS = ("black-forest-labs/FLUX.1-schnell", "black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-Krea-dev")
# 8 pixels a latent, 2 x 2 latents a token (FluxPipeline.check_inputs: vae_scale_factor * 2).
FLUX_FLAGS: Flags = {**PROMPT, **steps(16)}
FLUX_AT_IMAGE: Flags = {**PROMPT, **as_image(16)}

# FLUX.1-dev-Controlnet-Union's model card.
CONTROL_MODES = {"canny": 0, "tile": 1, "depth": 2, "blur": 3, "pose": 4, "gray": 5, "low-quality": 6}

FLUX = Provider(
    name="flux",
    title="FLUX.1 by Black Forest Labs",
    homepage="https://huggingface.co/black-forest-labs",
    types=(
        PipelineType("text2image", "FluxPipeline", FLUX_MODELS, flags=FLUX_FLAGS),
        PipelineType(
            "img2img", "FluxImg2ImgPipeline", FLUX_MODELS, flags={**FLUX_AT_IMAGE, **IMAGE}, quirks=AT_IMAGE_SIZE
        ),
        PipelineType(
            "inpaint",
            "FluxInpaintPipeline",
            FLUX_MODELS,
            flags={**FLUX_AT_IMAGE, **IMAGE_AND_MASK},
            quirks=AT_IMAGE_SIZE,
        ),
        PipelineType(
            "fill",
            "FluxFillPipeline",
            ("black-forest-labs/FLUX.1-Fill-dev",),
            flags={**FLUX_AT_IMAGE, **IMAGE_AND_MASK},
            quirks=AT_IMAGE_SIZE,
        ),
        PipelineType(
            "kontext",
            "FluxKontextPipeline",
            ("black-forest-labs/FLUX.1-Kontext-dev",),
            defaults={"max_area": None},  # as many pixels as width and height ask for
            flags={
                **FLUX_AT_IMAGE,
                **CHANGE,
                "image": {"many": False, "help": "The picture to edit, if any."},
                "max_area": {
                    "help": "Pixels in all. Default: width times height, or a million where those are not given."
                },
            },
            quirks={"call": f"{QUIRKS}.flux:call_kontext"},
        ),
        PipelineType(
            "controlnet",
            "FluxControlNetPipeline",
            FLUX_MODELS[1::-1] + FLUX_MODELS[2:],  # the ControlNets are trained for dev
            # The Union's model card; diffusers' own are 1.0 and 1.0.
            defaults={"controlnet_conditioning_scale": 0.7, "control_guidance_end": 0.8},
            flags={
                **FLUX_AT_IMAGE,
                **CONTROL_IMAGE,
                **ONE_CONTROLNET,
                "control_mode": {
                    "kind": "choice",
                    "many": False,
                    "choices": tuple(CONTROL_MODES),
                    "help": "What the control picture shows. For ControlNets that know several kinds (Union, but not "
                    "Union-Pro-2.0).",
                },
            },
            components={"controlnet": "InstantX/FLUX.1-dev-Controlnet-Union"},
            quirks={"call": f"{QUIRKS}.flux:call_flux_controlnet"},
            notes="other ControlNets: Shakker-Labs/FLUX.1-dev-ControlNet-Union-Pro, -Union-Pro-2.0",
        ),
        PipelineType(
            "upscale",
            "FluxImg2ImgPipeline",
            FLUX_MODELS,
            defaults=UPSCALE_DEFAULTS,
            flags=UPSCALE,
            quirks=UPSCALE_QUIRKS,
        ),
    ),
)

# Up to ten pictures to work from, says the model card.
REFERENCES: Flags = {"image": {"most": 10, "help": "A picture to work from, if any: at least 64 x 64 pixels."}}

FLUX2 = Provider(
    name="flux2",
    title="FLUX.2 by Black Forest Labs",
    homepage="https://huggingface.co/black-forest-labs",
    types=(
        PipelineType(
            "text2image",
            "Flux2Pipeline",
            ("diffusers/FLUX.2-dev-bnb-4bit", "black-forest-labs/FLUX.2-dev", "fal/FLUX.2-dev-Turbo"),
            flags={**FLUX_FLAGS, **REFERENCES},
            notes="the first repository is quantized already and needs bitsandbytes; its processor needs torchvision",
        ),
        PipelineType(
            "klein",
            "Flux2KleinPipeline",
            (
                "black-forest-labs/FLUX.2-klein-4B",
                "black-forest-labs/FLUX.2-klein-9B",
                "black-forest-labs/FLUX.2-klein-base-4B",
                "black-forest-labs/FLUX.2-klein-base-9B",
            ),
            flags={**FLUX_FLAGS, **REFERENCES},
        ),
    ),
)
