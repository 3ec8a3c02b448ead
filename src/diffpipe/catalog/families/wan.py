"""Wan 2.1 and 2.2 by Alibaba."""

from __future__ import annotations

from ..rows import PipelineType, Provider
from ..shared_flags import AT_AREA, IMAGE, NO_SIZE, ONE_VIDEO, PROMPT, QUIRKS, Flags, Quirks, as_given, frames, steps

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
WAN_FLAGS: Flags = {
    **PROMPT,
    **steps(16),
    "guidance_scale_2": {
        "help": "Wan 2.2: the guidance scale of its second denoiser, for the last steps. Default: as guidance_scale."
    },
}
# In float32 from the start: rounded to bfloat16 first, their weights would stay so. `load_wan` is for custom.
WAN_FLOAT32 = ("vae", "image_encoder")
WAN_LOAD: Quirks = {"load": f"{QUIRKS}.wan:load_wan"}
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
            quirks={**WAN_LOAD, "call": f"{QUIRKS}.wan:call_vace"},
            notes="a video with its mask is inpainted; alone, it is followed; without any, the prompt decides",
        ),
    ),
)
