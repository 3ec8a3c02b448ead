"""Wan: what reads and decodes pictures works in float32, and VACE's frames are those of its video."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ....core.errors import UsageError
from ....core.flag import Arguments
from .area import with_area

if TYPE_CHECKING:
    from diffusers import WanPipeline, WanVACEPipeline
    from diffusers.utils import BaseOutput


def load_wan(pipe: WanPipeline) -> None:
    """Read and decode pictures in float32, as the examples of Wan's pipelines do."""
    for part in (pipe.vae, getattr(pipe, "image_encoder", None)):
        if part is not None:
            part.float()


def call_vace(pipe: WanVACEPipeline, arguments: Arguments) -> BaseOutput:
    """Make as many frames as the video has, in its proportions, unless asked for others.

    The pipeline needs both to agree. Raises UsageError for a video of fewer frames than num_frames.
    """
    call = with_area(pipe, arguments)
    video = call.get("video")
    if video is None:
        return pipe(**call)
    frames = call.get("num_frames") or _whole_latents(len(video), pipe.vae_scale_factor_temporal)
    if len(video) < frames:
        raise UsageError(f"--video has {len(video)} frames but --num-frames is {frames}", "ask for fewer frames")
    cut = {name: call[name][:frames] for name in ("video", "mask") if name in call}
    return pipe(**{**call, **cut, "num_frames": frames})


def _whole_latents(frames: int, each: int) -> int:
    """The most of so many frames that are whole latents: one frame, then `each` make one."""
    return (frames - 1) // each * each + 1
