"""AudioLDM 1 and 2 by CVSSP."""

from __future__ import annotations

from ..rows import PipelineType, Provider
from ..shared_flags import PROMPT, Flags

AUDIOLDM_MODELS = tuple(f"cvssp/audioldm-{name}" for name in ("s-full-v2", "s-full", "m-full", "l-full"))
AUDIOLDM2_MODELS = ("cvssp/audioldm2", "cvssp/audioldm2-large", "cvssp/audioldm2-music")
# A latent is 4 frames of 10 ms (check_inputs: the vocoder's step times vae_scale_factor).
FLAGS: Flags = {**PROMPT, "audio_length_in_s": {"minimum": 0.04, "help": "The length in seconds."}}

AUDIOLDM = Provider(
    name="audioldm",
    title="AudioLDM 1 and 2 by CVSSP",
    homepage="https://huggingface.co/cvssp",
    types=(
        PipelineType(
            "text2audio",
            "AudioLDMPipeline",
            AUDIOLDM_MODELS,
            defaults={"audio_length_in_s": 5.12},  # as the models' unet.sample_size makes it
            flags=FLAGS,
            legacy=True,
        ),
        PipelineType(
            "audioldm2",
            "AudioLDM2Pipeline",
            AUDIOLDM2_MODELS,
            defaults={"audio_length_in_s": 10.24},  # as the models' unet.sample_size makes it
            flags={
                **FLAGS,
                "transcription": {"help": "What is said: for models that speak, with --max-new-tokens 512."},
                "num_waveforms_per_prompt": {"help": "The number of sounds to make, the best one first with librosa."},
                "max_new_tokens": {"minimum": 1},
            },
        ),
    ),
)
