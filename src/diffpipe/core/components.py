"""What the components of a pipeline are, told from the names that diffusers gives them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

DENOISERS = ("transformer", "unet", "prior")


DENOISER_ONLY = ("model.diffusion_model.",)  # what a checkpoint is taken to hold whose tensors cannot be listed (GGUF)


QUANTIZED = re.compile(r"(prior_)?(transformer|unet|prior|text_encoder)(_\d+)?")  # what --quantize takes unless told


def quantized_by_default(components: Iterable[str]) -> list[str]:
    """The denoisers and text encoders among a pipeline's components, sorted: never the autoencoder."""
    return sorted(name for name in components if QUANTIZED.fullmatch(name))


def parts_of_checkpoint(tensors: Iterable[str], components: Collection[str]) -> set[str]:
    """Which of a pipeline's components a single-file checkpoint holds, told from its tensor names.

    Prefixes of the original layouts (diffusers/loaders/single_file_utils.py, CHECKPOINT_KEY_NAMES): first_stage_model
    and vae for the autoencoder; cond_stage_model, conditioner and text_encoders for text encoders; the denoiser is the
    rest.
    """
    prefixes = {name.split(".", 1)[0] for name in tensors} - {"__metadata__"}
    found: set[str] = set()
    if prefixes & {"first_stage_model", "vae"}:
        found |= {name for name in components if name in ("vae", "vqvae")}
    if prefixes & {"cond_stage_model", "conditioner", "text_encoders"}:
        found |= {name for name in components if name.startswith("text_encoder")}
    if prefixes - {"first_stage_model", "vae", "cond_stage_model", "conditioner", "text_encoders"}:
        found |= {name for name in components if name in DENOISERS}
    return found


def part_checkpoint(header: Mapping[str, Any], components: Collection[str]) -> dict[str, dict[str, Any]]:
    """A single-file checkpoint's safetensors header, parted by the component that each tensor belongs to."""
    parted: dict[str, dict[str, Any]] = {}
    for name, tensor in header.items():
        if name != "__metadata__":
            for part in sorted(parts_of_checkpoint([name], components))[:1]:
                parted.setdefault(part, {})[name] = tensor
    return parted


Kind = Literal["denoiser", "guide", "encoder", "decoder", "other"]


DENOISER = re.compile(r"(transformer|unet|prior)(_\d+)?$")


DECODER = re.compile(r"^(vae|vqvae|movq)$|vqgan$")


GUIDE = re.compile(r"controlnet|adapter")


ENCODER = re.compile(r"text_encoder|image_encoder|language_model|projection_model|connectors")


def kind_of(name: str) -> Kind:
    """What a component does, told by its name (diffusers' own names). A guide works together with the denoiser."""
    for pattern, kind in ((DECODER, "decoder"), (DENOISER, "denoiser"), (GUIDE, "guide"), (ENCODER, "encoder")):
        if pattern.search(name):
            return kind  # type: ignore[return-value]
    return "other"
