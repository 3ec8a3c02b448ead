"""Families that make video. Sources: the model repositories' cards and diffusers 0.42."""

from __future__ import annotations

from typing import Any

from .image import IMAGE, PROMPT, QUIRKS, steps
from .rows import PipelineType, Provider


def frames(each: int, remainder: int, **fields: Any) -> dict[str, Any]:
    """A flag of a number of frames: `each` of them are a latent, but for `remainder` frames of their own."""
    return {"num_frames": {"multiple_of": each, "remainder": remainder, "minimum": max(remainder, 1), **fields}}


# See `call_at_area`: sizes are those of what is given unless they are asked for.
NO_SIZE: dict[str, Any] = {"width": None, "height": None}
AT_AREA = {"call": f"{QUIRKS}:call_at_area"}
# Pipelines that make one whatever num_videos_per_prompt says, or fail (Wan 2.1 from a picture). --count makes several.
ONE_VIDEO: dict[str, Any] = {"num_videos_per_prompt": None}


def as_given(pixels: int, area: int, least: int) -> dict[str, Any]:
    """Flags of sizes in the proportions of the picture or video that is given, `area` pixels unless told otherwise; in
    steps of so many pixels, from `least` on."""
    side = {
        "multiple_of": pixels,
        "minimum": least,
        "help": "Pixels. Default: in the proportions of what is given, see --max-area.",
    }
    return {
        "width": side,
        "height": side,
        "max_area": {
            "kind": "integer",
            "default": area,
            "minimum": least * least,
            "help": "The pixels of a frame where width and height are not given.",
        },
    }


# --- Wan -------------------------------------------------------------------------------------------------------------

WAN_TEXT_MODELS = (
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    "Wan-AI/Wan2.1-T2V-14B-Diffusers",
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
)
WAN_IMAGE_MODELS = (
    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
    "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers",
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers",
)
WAN_VACE_MODELS = ("Wan-AI/Wan2.1-VACE-1.3B-diffusers", "Wan-AI/Wan2.1-VACE-14B-diffusers")

WAN_FPS = 16.0
WAN_AREA = 480 * 832  # the example of WanImageToVideoPipeline, for the 480P models
# 8 pixels a latent, 2 x 2 latents a token (check_inputs). The first frame is a latent of its own, then 4 make one: any
# other number the pipelines round, with a warning.
WAN_FRAMES = frames(4, 1)
WAN_FLAGS: dict[str, Any] = {
    **PROMPT,
    **steps(16),
    "guidance_scale_2": {
        "help": "Wan 2.2: the guidance scale of its second denoiser, for the last steps. Default: as guidance_scale."
    },
}
# In float32 from the start: rounded to bfloat16 first, their weights would stay so. `load_wan` is for custom.
WAN_FLOAT32 = ("vae", "image_encoder")
WAN_LOAD = {"load": f"{QUIRKS}:load_wan"}
WAN_NOTES = "480P wants --scheduler-config '{\"flow_shift\": 3}', 720P (1280 x 720) a flow_shift of 5"

WAN = Provider(
    name="wan",
    title="Wan 2.1 and 2.2 by Alibaba",
    homepage="https://huggingface.co/Wan-AI",
    types=(
        PipelineType(
            "text2video",
            "WanPipeline",
            WAN_TEXT_MODELS,
            flags={
                **WAN_FLAGS,
                **WAN_FRAMES,
                "num_videos_per_prompt": {"help": "The number of videos to make for each prompt, in one call."},
            },
            fps=WAN_FPS,
            float32=("vae",),
            quirks=WAN_LOAD,
            notes=f"{WAN_NOTES}; the card of 2.2 has 40 steps, guidance 4 and 3, 1280 x 720",
        ),
        PipelineType(
            "img2video",
            "WanImageToVideoPipeline",
            WAN_IMAGE_MODELS,
            defaults=NO_SIZE,
            flags={
                **WAN_FLAGS,
                **WAN_FRAMES,
                **as_given(16, WAN_AREA, 16),
                **IMAGE,
                **ONE_VIDEO,
                "last_image": {
                    "help": "The picture that the video ends with: for Wan 2.2, or a model of first and last frames."
                },
            },
            fps=WAN_FPS,
            float32=WAN_FLOAT32,
            quirks={**WAN_LOAD, **AT_AREA},
            notes=f"{WAN_NOTES} and --max-area 921600; the card of 2.2 has 40 steps, guidance 3.5",
        ),
        PipelineType(
            "video2video",
            "WanVideoToVideoPipeline",
            WAN_TEXT_MODELS[:2],
            defaults=NO_SIZE,
            flags={**PROMPT, **as_given(16, WAN_AREA, 16), **ONE_VIDEO, "video": {"required": True}},
            fps=WAN_FPS,
            float32=WAN_FLOAT32,
            quirks={**WAN_LOAD, **AT_AREA},
            notes="makes 4n + 1 frames: up to 3 of the last are left out",
        ),
        PipelineType(
            "vace",
            "WanVACEPipeline",
            WAN_VACE_MODELS,
            defaults={**NO_SIZE, "num_frames": None},
            flags={
                **WAN_FLAGS,
                **frames(4, 1, help="The number of frames. Default: as the video has, or 81 without one."),
                **as_given(16, WAN_AREA, 16),
                "video": {"help": "The video to change, or to follow: depth, pose, sketches."},
                "mask": {
                    "help": "What to make anew, a video or one picture: white is made, black is kept. Default: all."
                },
                "reference_images": {"help": "A picture of what is to be in the video."},
                "conditioning_scale": {"many": False, "minimum": 0, "help": "How strongly to follow the video."},
                **ONE_VIDEO,
            },
            fps=WAN_FPS,
            float32=("vae",),
            quirks={**WAN_LOAD, "call": f"{QUIRKS}:call_vace"},
            notes="a video with its mask is inpainted; alone, it is followed; without any, the prompt decides",
        ),
    ),
)

# --- LTX -------------------------------------------------------------------------------------------------------------

LTX2_MODELS = ("Lightricks/LTX-2", "dg845/LTX-2.3-Diffusers", "dg845/LTX-2.3-Distilled-Diffusers")
# 32 pixels a latent (check_inputs). The first frame is a latent of its own, then 8 make one: of any other number the
# pipelines make fewer.
LTX_FLAGS: dict[str, Any] = {**PROMPT, **steps(32), **frames(8, 1)}
# The pipeline's own, where no duration head decides it: given here so that the number is checked and shown.
LTX2_DEFAULTS: dict[str, Any] = {"num_frames": 121}
LTX2_AREA = 512 * 768
LTX2_LEAST = 64  # the decoder mirrors latents at the edges (its "reflect" padding): it needs two to a side
LTX2_SIZES: dict[str, Any] = {side: {"multiple_of": 32, "minimum": LTX2_LEAST} for side in ("width", "height")}
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

# --- Allegro ---------------------------------------------------------------------------------------------------------

ALLEGRO = Provider(
    name="allegro",
    title="Allegro by Rhymes AI",
    homepage="https://huggingface.co/rhymes-ai",
    types=(
        PipelineType(
            "text2video",
            "AllegroPipeline",
            ("rhymes-ai/Allegro", "rhymes-ai/Allegro-T2V-40x720P"),
            # Cleaning needs Beautiful Soup: without it the pipeline warns and goes on without. The same everywhere.
            defaults={"clean_caption": False},
            # What the tiles of the autoencoder cover: 24 frames of 320 x 320, then 16, 240 and 200 more for each next
            # one (AutoencoderKLAllegro.kernel and stride). The rest would be grey. Heights are even latents too.
            flags={
                **PROMPT,
                **frames(16, 8, minimum=24, help="The number of frames. Default: as the model, 88 or 40."),
                "width": {"multiple_of": 240, "remainder": 80, "minimum": 320, "help": "Pixels. Default: 1280."},
                "height": {"multiple_of": 400, "remainder": 320, "minimum": 320, "help": "Pixels. Default: 720."},
                **ONE_VIDEO,
            },
            fps=15.0,
            float32=("vae",),
            quirks={"load": f"{QUIRKS}:load_allegro"},
            notes="88 frames by Allegro, 40 by Allegro-T2V-40x720P, unless told otherwise",
        ),
    ),
)

PROVIDERS = (WAN, LTX, ALLEGRO)
