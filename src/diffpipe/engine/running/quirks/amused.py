"""aMUSEd: inpainting at any size."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import AmusedInpaintPipeline


def load_amused_inpaint(pipe: AmusedInpaintPipeline) -> None:
    """Let the pipeline take pictures of other sizes than multiples of 256: it rounds its latents as if pixels."""
    pipe.mask_processor.register_to_config(vae_scale_factor=1)
