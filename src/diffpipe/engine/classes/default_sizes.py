"""What size a pipeline class makes where no one asks for another, as it derives it itself."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING

from ...catalog.pipelines import Derived, Size
from ..seams import diffusers_source_seam

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    Pipeline = type[DiffusionPipeline]

SIZES = {"width": "width", "height": "height", "num_frames": "frames", "num_inference_steps": "steps"}
AUTOENCODERS = ("vae", "vqvae", "movq")


def default_sizes(pipeline: Pipeline) -> dict[str, Size]:
    """width and height in pixels, frames and steps: numbers, or what they are derived from in the model's settings.

    What cannot be known from the class is left out.
    """
    parameters = inspect.signature(inspect.unwrap(pipeline.__call__)).parameters
    found: dict[str, Size] = {}
    for argument, name in SIZES.items():
        parameter = parameters.get(argument)
        if parameter is None:
            derived = _of_the_denoiser(pipeline) if name in ("width", "height") else None
        elif type(parameter.default) is int:
            derived = parameter.default
        else:
            derived = _derived(pipeline, argument) or (_usual(pipeline) if name in ("width", "height") else None)
        if derived is not None:
            found[name] = derived
    return found


def _derived(pipeline: Pipeline, argument: str) -> Size | None:
    """What `__call__` takes where an argument is None: `height = height or X`."""
    what = diffusers_source_seam.otherwise(pipeline, argument)
    if number := re.fullmatch(r"(\d+)", what):
        return int(number[1])
    if "default_sample_size" in what:
        return _sample_size(pipeline, scaled="vae_scale_factor" in what)
    if setting := re.match(r"self\.(\w+)\.config\.(\w+)(.*)", what):
        return Derived(setting[1], setting[2], scaled="vae_scale_factor" in setting[3])
    return None


def _usual(pipeline: Pipeline) -> Size | None:
    """For a class that says in more words what it takes (of pictures, of either setting)."""
    return _sample_size(pipeline, scaled=True) or _of_the_denoiser(pipeline)


def _sample_size(pipeline: Pipeline, *, scaled: bool) -> Size | None:
    """`self.default_sample_size` of the constructor: a number, or the denoiser's setting."""
    what = diffusers_source_seam.default_sample_size(pipeline)
    if number := re.fullmatch(r"(\d+)", what):
        return Derived("", "", scaled=scaled, number=int(number[1]))
    setting = re.search(r"(\w+)\.config\.(sample_\w+)", what)
    return Derived(setting[1], setting[2], scaled=scaled, number=128) if setting else None


def _of_the_denoiser(pipeline: Pipeline) -> Size | None:
    """For a class that takes no size: its U-Net's, or its transformer's, scaled by the autoencoder if it has one."""
    parts = inspect.signature(pipeline.__init__).parameters
    denoiser = next((name for name in ("unet", "transformer") if name in parts), None)
    scaled = any(name in parts for name in AUTOENCODERS)
    return Derived(denoiser, "sample_size", scaled=scaled) if denoiser else None
