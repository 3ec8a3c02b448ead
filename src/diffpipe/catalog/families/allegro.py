"""Allegro by Rhymes AI."""

from __future__ import annotations

from ..rows import PipelineType, Provider
from ..shared_flags import ONE_VIDEO, PROMPT, QUIRKS, frames

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
            quirks={"load": f"{QUIRKS}.allegro:load_allegro"},
            notes="88 frames by Allegro, 40 by Allegro-T2V-40x720P, unless asked for others",
        ),
    ),
)
