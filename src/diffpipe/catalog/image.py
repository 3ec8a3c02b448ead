"""Families that make pictures.

A row says only what the pipeline's own signature cannot know: repositories (the first is the default), better defaults,
which media arguments are needed, size steps. Sources: the model repositories' cards and diffusers 0.42.
"""

from __future__ import annotations

from typing import Any

from .rows import PipelineType, Provider

QUIRKS = "diffpipe.engine.running.quirks"
AT_IMAGE_SIZE = {"call": f"{QUIRKS}:call_at_image_size"}


def steps(pixels: int, help: str = "") -> dict[str, Any]:
    """Flags of sizes that go in steps of so many pixels."""
    fields = {"multiple_of": pixels, "minimum": pixels} | ({"help": help} if help else {})
    return {"width": fields, "height": fields}


def as_image(pixels: int) -> dict[str, Any]:
    """Flags of sizes that the given picture decides (see `call_at_image_size`)."""
    return steps(pixels, "Pixels. Default: as the picture has, or in its proportions.")


# The docstrings speak of arrays and tensors here.
PROMPT: dict[str, Any] = {"prompt": {"required": True, "help": "What to make, in words."}}
CHANGE: dict[str, Any] = {"prompt": {"required": True, "help": "What to change, in words."}}
IMAGE: dict[str, Any] = {"image": {"required": True, "many": False, "help": "The picture to start from."}}
MASK = {"required": True, "kind": "mask", "help": "White is painted anew, black is kept. As large as the picture."}
IMAGE_AND_MASK: dict[str, Any] = {**IMAGE, "mask_image": MASK}
FOLLOWED = {"required": True, "many": False, "help": "The picture that the ControlNet follows."}
CONTROL_IMAGE: dict[str, Any] = {"control_image": FOLLOWED}
# One ControlNet, so one value of each.
ONE_CONTROLNET: dict[str, Any] = {
    name: {"many": False}
    for name in ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end")
}
# See `call_upscale`. The tiles have the sizes that the pipeline is called with.
UPSCALE: dict[str, Any] = {
    **PROMPT,
    **IMAGE,
    "width": None,
    "height": None,
    "scale": {
        "kind": "number",
        "default": 2.0,
        "minimum": 1,
        "maximum": 16,
        "help": "How many times larger to make it.",
    },
    "tile_size": {
        "kind": "integer",
        "default": 1024,
        "minimum": 16,
        "multiple_of": 16,
        "help": "Pixels to a side of the tiles that are redrawn one by one.",
    },
    "tile_overlap": {
        "kind": "integer",
        "default": 64,
        "minimum": 0,
        "help": "Pixels by which the tiles overlap and are blended.",
    },
    "resample": {
        "kind": "choice",
        "default": "lanczos",
        "choices": ("lanczos", "bicubic", "bilinear", "nearest"),
        "help": "The filter to enlarge with before redrawing.",
    },
}
# Low enough that what is in a tile stays what it is.
UPSCALE_DEFAULTS: dict[str, Any] = {"strength": 0.3}
UPSCALE_QUIRKS = {"call": f"{QUIRKS}:call_upscale"}

FLUX_MODELS = ("black-forest-labs/FLUX.1-schnell", "black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-Krea-dev")
# 8 pixels a latent, 2 x 2 latents a token (FluxPipeline.check_inputs: vae_scale_factor * 2).
FLUX_FLAGS: dict[str, Any] = {**PROMPT, **steps(16)}
FLUX_LIKE_IMAGE: dict[str, Any] = {**PROMPT, **as_image(16)}

FLUX = Provider(
    name="flux",
    title="FLUX.1 by Black Forest Labs",
    homepage="https://huggingface.co/black-forest-labs",
    types=(
        PipelineType("text2image", "FluxPipeline", FLUX_MODELS, flags=FLUX_FLAGS),
        PipelineType(
            "img2img", "FluxImg2ImgPipeline", FLUX_MODELS, flags={**FLUX_LIKE_IMAGE, **IMAGE}, quirks=AT_IMAGE_SIZE
        ),
        PipelineType(
            "inpaint",
            "FluxInpaintPipeline",
            FLUX_MODELS,
            flags={**FLUX_LIKE_IMAGE, **IMAGE_AND_MASK},
            quirks=AT_IMAGE_SIZE,
        ),
        PipelineType(
            "fill",
            "FluxFillPipeline",
            ("black-forest-labs/FLUX.1-Fill-dev",),
            flags={**FLUX_LIKE_IMAGE, **IMAGE_AND_MASK},
            quirks=AT_IMAGE_SIZE,
        ),
        PipelineType(
            "kontext",
            "FluxKontextPipeline",
            ("black-forest-labs/FLUX.1-Kontext-dev",),
            defaults={"max_area": None},  # as many pixels as width and height ask for
            flags={
                **FLUX_LIKE_IMAGE,
                **CHANGE,
                "image": {"many": False, "help": "The picture to edit, if any."},
                "max_area": {
                    "help": "Pixels in all. Default: width times height, or a million where those are not given."
                },
            },
            quirks={"call": f"{QUIRKS}:call_kontext"},
        ),
        PipelineType(
            "controlnet",
            "FluxControlNetPipeline",
            FLUX_MODELS[1::-1] + FLUX_MODELS[2:],  # the ControlNets are trained for dev
            # The Union's model card; diffusers' own are 1.0 and 1.0.
            defaults={"controlnet_conditioning_scale": 0.7, "control_guidance_end": 0.8},
            flags={
                **FLUX_LIKE_IMAGE,
                **CONTROL_IMAGE,
                **ONE_CONTROLNET,
                "control_mode": {
                    "kind": "choice",
                    "many": False,
                    "choices": ("canny", "tile", "depth", "blur", "pose", "gray", "low-quality"),
                    "help": "What the control picture shows. For ControlNets that know several kinds (Union, but not "
                    "Union-Pro-2.0).",
                },
            },
            components={"controlnet": "InstantX/FLUX.1-dev-Controlnet-Union"},
            quirks={"call": f"{QUIRKS}:call_flux_controlnet"},
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
REFERENCES: dict[str, Any] = {"image": {"most": 10, "help": "A picture to work from, if any: at least 64 x 64 pixels."}}

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

QWEN_MODELS = ("Qwen/Qwen-Image",)
# Without a negative prompt there is no guidance at all; the model card passes one space.
QWEN_DEFAULTS: dict[str, Any] = {"negative_prompt": " "}

QWEN = Provider(
    name="qwen",
    title="Qwen-Image by Alibaba",
    homepage="https://huggingface.co/Qwen",
    types=(
        PipelineType("text2image", "QwenImagePipeline", QWEN_MODELS, defaults=QWEN_DEFAULTS, flags=FLUX_FLAGS),
        PipelineType(
            "img2img",
            "QwenImageImg2ImgPipeline",
            QWEN_MODELS,
            defaults=QWEN_DEFAULTS,
            flags={**FLUX_LIKE_IMAGE, **IMAGE},
            quirks=AT_IMAGE_SIZE,
        ),
        PipelineType(
            "edit",
            "QwenImageEditPipeline",
            ("Qwen/Qwen-Image-Edit", "Qwen/Qwen-Image-Edit-2509", "Qwen/Qwen-Image-Edit-2511"),
            defaults=QWEN_DEFAULTS,
            flags={**FLUX_LIKE_IMAGE, **CHANGE, **IMAGE},
            notes="its processor needs torchvision",
        ),
        PipelineType(
            "edit-plus",
            "QwenImageEditPlusPipeline",
            ("Qwen/Qwen-Image-Edit-2509", "Qwen/Qwen-Image-Edit-2511"),
            defaults=QWEN_DEFAULTS,
            # Trained on one to three pictures, says the model card.
            flags={
                **FLUX_LIKE_IMAGE,
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
            flags={**FLUX_LIKE_IMAGE, **CONTROL_IMAGE, **ONE_CONTROLNET},
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
            quirks={"call": f"{QUIRKS}:call_layered"},
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

SD_MODELS = (
    "stabilityai/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2",
    "CompVis/stable-diffusion-v1-4",
)
SDXL_MODELS = ("stabilityai/stable-diffusion-xl-base-1.0",)
SD3_MODELS = (
    "stabilityai/stable-diffusion-3.5-medium",
    "stabilityai/stable-diffusion-3.5-large",
    "stabilityai/stable-diffusion-3.5-large-turbo",
    "stabilityai/stable-diffusion-3-medium-diffusers",
)
# These ControlNet pipelines take the control picture as their image.
IS_CONTROL_IMAGE: dict[str, Any] = {"image": FOLLOWED}

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
            components={"controlnet": "thibaud/controlnet-sd21-canny-diffusers"},
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
            quirks={"call": f"{QUIRKS}:call_attend_excite"},
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
            quirks={"load": f"{QUIRKS}:load_diffedit", "call": f"{QUIRKS}:call_diffedit"},
            legacy=True,
            notes="also writes the mask it found",
        ),
    ),
)

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
            quirks={"load": f"{QUIRKS}:load_amused_inpaint"},
        ),
    ),
)

WUERSTCHEN = Provider(
    name="wuerstchen",
    title="Würstchen by Pablo Pernias and others",
    homepage="https://huggingface.co/warp-ai",
    legacy=True,
    types=(
        PipelineType(
            "text2image",
            "WuerstchenCombinedPipeline",
            ("warp-ai/wuerstchen",),
            # Two compressions: 42.67 times by the prior, 4 by the decoder's. Whole in both from 128 on.
            flags={**PROMPT, **steps(128)},
            components={
                "prior_tokenizer": "warp-ai/wuerstchen-prior/tokenizer",
                "prior_text_encoder": "warp-ai/wuerstchen-prior/text_encoder",
                "prior_prior": "warp-ai/wuerstchen-prior/prior",
                "prior_scheduler": "warp-ai/wuerstchen-prior/scheduler",
            },
            quirks={"call": f"{QUIRKS}:call_wuerstchen"},
        ),
    ),
)

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

PROVIDERS = (FLUX, FLUX2, QWEN, STABLE_DIFFUSION, AMUSED, WUERSTCHEN, Z_IMAGE)
