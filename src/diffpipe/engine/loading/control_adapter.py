"""Control LoRAs of Flux: they widen the first layer, which takes a control picture's latents beside its own."""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING

from ..adapters import rows
from ..adapters.file import AdapterFile
from ..adapters.places import Names, shapes_of
from ..classes.lookup import pipeline_parts

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

    from ..classes.lookup import Pipeline

WIDENED = "x_embedder"
CONTROL = "FluxControlPipeline"


def takes_control(pipeline: Pipeline) -> bool:
    """Whether a pipeline joins a control picture to the denoiser's own input, as no ControlNet does."""
    taken, parts = signature(pipeline.__call__).parameters, pipeline_parts(pipeline)[0]
    return "control_image" in taken and "controlnet" not in parts


def wider_input(file: AdapterFile, names: Names) -> int:
    """How much a file's first layer takes in, where that is more than the model's does; 0 where it is not."""
    for row in rows.read(file.shapes).rows:
        place = names.place(row) if "down" in row.parts else None
        if place and place.component == names.denoiser and place.modules == (WIDENED,):
            taken, shape = file.shapes[row.parts["down"]][1], names.shapes(names.denoiser)[f"{WIDENED}.weight"]
            return taken if len(shape) == 2 and taken > shape[1] else 0
    return 0


def widen(pipe: DiffusionPipeline, denoiser: str, file: AdapterFile) -> None:
    """Widen the first layer of a pipeline that takes a control picture, if a file was made for a wider one.

    The new columns are zero: until the adapter is added, the layer does what it did.
    """
    import torch

    model: torch.nn.Module | None = getattr(pipe, denoiser, None)
    layer = getattr(model, WIDENED, None)
    if model is None or not isinstance(layer, torch.nn.Linear) or not takes_control(type(pipe)):
        return
    width = wider_input(file, Names([denoiser], lambda _: shapes_of(model), denoiser))
    if not width:
        return
    weight = layer.weight.data
    wide = torch.nn.Linear(width, layer.out_features, layer.bias is not None, weight.device, weight.dtype)
    with torch.no_grad():
        wide.weight.zero_()
        wide.weight[:, : layer.in_features] = weight
        if layer.bias is not None:
            wide.bias.copy_(layer.bias)
    setattr(model, WIDENED, wide)
    pipe.components[denoiser].register_to_config(in_channels=width)
