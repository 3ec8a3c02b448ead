"""What each component of a pipeline does, by the names that diffusers gives them; what a single file holds."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Literal, TypeVar

from .checkpoint_marks import is_averaged, is_mark

T = TypeVar("T")
Kind = Literal["denoiser", "guide", "encoder", "decoder", "other"]
Stage = Literal["load", "encode", "denoise", "decode"]  # of a run, in order

# The first that a name fits says what the component does. A guide works together with the denoiser.
KINDS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("decoder", re.compile(r"^(vae|vqvae|movq)$|vqgan$")),
    ("denoiser", re.compile(r"(transformer|unet|prior)(_\d+)?$")),
    ("guide", re.compile(r"controlnet|adapter")),
    ("encoder", re.compile(r"text_encoder|image_encoder|language_model|projection_model|connectors")),
)
TEXT_ENCODER = re.compile(r"text_encoder|language_model")

# Of the parts of a single-file checkpoint: what its denoiser, autoencoder and text encoders are called in a pipeline.
DENOISERS = ("transformer", "unet", "prior")
AUTOENCODERS = ("vae", "vqvae")
DENOISER_ONLY = ("model.diffusion_model.",)  # what a checkpoint is taken to hold whose tensors cannot be listed (GGUF)


def kind_of(name: str) -> Kind:
    """What a component of this name does."""
    return next((kind for kind, pattern in KINDS if pattern.search(name)), "other")


def is_text_encoder(name: str) -> bool:
    """Whether it encodes text, for the denoiser or for a prior."""
    return TEXT_ENCODER.search(name) is not None


def text_encoders(names: Iterable[str]) -> list[str]:
    """Of components the text encoders of the pipeline itself: text_encoder, text_encoder_2 and so on, not a prior's."""
    return [name for name in names if name.startswith("text_encoder")]


def parts_of_checkpoint(tensors: Iterable[str], components: Collection[str]) -> set[str]:
    """Which of a pipeline's components a single-file checkpoint holds, by the names of its tensors.

    Prefixes of the original layouts (diffusers/loaders/single_file_utils.py, CHECKPOINT_KEY_NAMES): first_stage_model
    and vae for the autoencoder; cond_stage_model, conditioner and text_encoders for text encoders; the denoiser is the
    rest. Markers and averages of weights are of no component.
    """
    names = [name for name in tensors if not (is_mark(name) or is_averaged(name))]
    prefixes = {name.split(".", 1)[0] for name in names} - {"__metadata__"}
    found: set[str] = set()
    if prefixes & {"first_stage_model", "vae"}:
        found |= {name for name in components if name in AUTOENCODERS}
    if prefixes & {"cond_stage_model", "conditioner"}:
        found |= set(text_encoders(components))
    if "text_encoders" in prefixes:
        found |= _encoders_of({name.split(".")[1] for name in names if name.startswith("text_encoders.")}, components)
    if prefixes - {"first_stage_model", "vae", "cond_stage_model", "conditioner", "text_encoders"}:
        found |= {name for name in components if name in DENOISERS}
    return found


def _encoders_of(parts: Collection[str], components: Collection[str]) -> set[str]:
    """The text encoders that parts of a checkpoint of Stable Diffusion 3 or Flux are; all of them for other parts."""
    known = text_encoders(components)
    if not set(parts) <= {"clip_l", "clip_g", "t5xxl"}:
        return set(known)
    places = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5xxl": max(known, default="")}
    return {places[part] for part in parts} & set(known)


def part_checkpoint(tensors: Mapping[str, T], components: Collection[str]) -> dict[str, dict[str, T]]:
    """A single-file checkpoint's tensors by name, parted by the component that each belongs to."""
    parted: dict[str, dict[str, T]] = {}
    for name, tensor in tensors.items():
        for part in sorted(parts_of_checkpoint([name], components))[:1]:
            parted.setdefault(part, {})[name] = tensor
    return parted
