"""Allegro: its autoencoder works in tiles and in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import AllegroPipeline


def load_allegro(pipe: AllegroPipeline) -> None:
    """Decode in tiles, the only way there is (AutoencoderKLAllegro._decode), and in float32, as the example does."""
    pipe.vae.enable_tiling()
    pipe.vae.float()
