"""Adapters: what their files hold, added to the weights of a pipeline."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.components import is_text_encoder, kind_of
from ...core.errors import UsageError
from ...core.source import Source
from ..adapters import formulas, rows
from ..adapters.file import AdapterFile
from ..adapters.places import Names, Place, Shapes, shapes_of, wanted_denoiser
from ..adapters.plan import Plan, in_short, plan
from ..seams import diffusers_seam
from . import adapters_beside, control_adapter

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

log = logging.getLogger("diffpipe.engine")

ELEMENTS = 1 << 20  # of a weight that are computed at a time: 4 MB in float32


def fuse(
    pipe: DiffusionPipeline, loras: Sequence[tuple[Path, Source]], *, pickle: bool = False, partial: bool = False
) -> None:
    """Add adapters to the weights at their scales, in order. Scale 0 leaves the weights untouched.

    Weights that are stored quantized cannot be added to: there adapters stay beside them. `partial`: what of them this
    pipeline cannot take is left out without a warning, since the build said so. Raises UsageError if the pipeline
    takes no adapters or one changes no layer of it.
    """
    kept = adapters_beside.Kept(pipe)
    for number, (path, source) in enumerate(loras):
        if source.scale == 0:
            continue
        if not hasattr(pipe, "load_lora_weights"):
            raise UsageError(f"{type(pipe).__name__} takes no LoRA", "build it without --lora")
        file = AdapterFile(file_in(path, source), pickle=pickle, peft=source.peft)
        planned = _planned(pipe, file, source)
        if planned.left and not partial:
            log.warning("the LoRA %s is applied in part; left out: %s", source.label, in_short(planned.left))
        for component in {place.component for place in planned.places} - kept.components:
            parameters = dict(getattr(pipe, component).named_parameters())
            shapes = {name: tuple(one.shape) for name, one in parameters.items()}
            for place in (place for place in planned.places if place.component == component):
                _add(parameters, shapes, place, file, source.scale)
        kept.add(f"adapter_{number}", source.scale, planned.places, file)
        log.info("applied LoRA %s at scale %g: %d layers", source.label, source.scale, len(planned.places))
    kept.set_scales()


def file_in(path: Path, source: Source) -> Path:
    """The adapter's file of a source that lies at a path."""
    return path / next(iter(source.files)) if path.is_dir() else path


def adaptable(pipeline: type[DiffusionPipeline], components: Collection[str]) -> list[str]:
    """The components that adapters may change: those that diffusers says, and every denoiser and text encoder."""
    named = diffusers_seam.lora_parts(pipeline)
    found = [name for name in components if kind_of(name) == "denoiser" or is_text_encoder(name) or name in named]
    return sorted(found, key=lambda name: (named.index(name) if name in named else len(named), name))


def components(
    pipeline: type[DiffusionPipeline],
    present: Collection[str],
    loras: Sequence[tuple[Path, Source]],
    *,
    pickle: bool = False,
) -> set[str]:
    """The components that adapters may change: those that diffusers says, and text encoders that a file speaks of."""
    names = Names(adaptable(pipeline, list(present)), lambda _: {})
    files = [AdapterFile(file_in(path, source), pickle=pickle) for path, source in loras if source.scale]
    spoken_of = {names.component_of(row.module) for file in files for row in rows.read(file.shapes).rows}
    return spoken_of | set(diffusers_seam.lora_parts(pipeline))


def _planned(pipe: DiffusionPipeline, file: AdapterFile, source: Source) -> Plan:
    """Raises UsageError where nothing of an adapter is for the pipeline."""
    components = adaptable(type(pipe), list(pipe.components))
    present = {name: part for name in components if (part := getattr(pipe, name, None)) is not None}
    denoisers = [name for name in present if kind_of(name) == "denoiser"]
    denoiser, _ = wanted_denoiser(source.into, file.path.name, denoisers, file.shapes)
    control_adapter.widen(pipe, denoiser, file)
    planned = plan(file, Names(present, lambda name: shapes_of(present[name]), denoiser), type(pipe))
    if not planned.places:
        raise UsageError(f"the LoRA {source.label} changes no layer of this pipeline", "is it for another family?")
    return planned


def _add(parameters: Mapping[str, torch.Tensor], shapes: Shapes, place: Place, file: AdapterFile, scale: float) -> None:
    """Add a row of an adapter's file to the weights and biases of its layers, of a component's `parameters`."""
    import torch

    tensors = {name: file.tensor(tensor) for name, tensor in place.row.parts.items()}
    alpha = _alpha(place, file)
    weights = [parameters[name] for name in place.parameters(shapes) or ()]
    biases = [parameters[name] for name in place.parameters(shapes, "bias") or ()]
    with torch.no_grad():
        if biases and (factor := formulas.bias_factor(place.row.kind, tensors, scale)) is not None:
            for bias, own in zip(biases, _divided(factor, biases, place.swapped), strict=True):
                bias.copy_(bias.float() * own)
        if formulas.is_product(place.row.kind, tensors) and all(weight.is_contiguous() for weight in weights):
            _added_product(weights, tensors, formulas.strength(tensors, alpha) * scale, place.swapped)
        else:
            change = formulas.weight_change(place.row.kind, tensors, scale, alpha, lambda: _whole(weights, place))
            if change is not None:
                _added(weights, change, place.swapped)
        if (change := formulas.bias_change(tensors, scale, alpha)) is not None:
            _added(biases, change, place.swapped)


def _alpha(place: Place, file: AdapterFile) -> float | None:
    """The alpha of the file's metadata, for a row that has no tensor of it."""
    shapes = {part: file.shapes[name] for part, name in place.row.parts.items()}
    return file.alpha(place.row.module, place.component, formulas.rank_of(shapes))


def _whole(weights: Sequence[torch.Tensor], place: Place) -> torch.Tensor:
    """The layers' weights one after another, as one of the file's layers."""
    import torch

    whole = torch.cat([weight.float() for weight in weights])
    return whole.roll(whole.shape[0] // 2, 0) if place.swapped else whole


def _added_product(
    weights: Sequence[torch.Tensor], tensors: Mapping[str, torch.Tensor], factor: float, swapped: bool
) -> None:
    """Add a plain LoRA's product to weights, as many rows at a time as stay in the processor's cache.

    A Flux layer of 12,288 x 3,072 in bfloat16 takes 0.15 s so and 1.0 s as a whole (one core).
    """
    up, down = tensors["up"].flatten(1), tensors["down"].flatten(1)
    up = up.roll(up.shape[0] // 2, 0) if swapped else up
    step = max(1, ELEMENTS // down.shape[1])
    start = 0
    for weight in weights:
        rows = weight.view(weight.shape[0], -1)
        for first in range(0, len(rows), step):
            block = rows[first : first + step]
            change = (up[start + first : start + first + len(block)] @ down).mul_(factor)
            block.copy_(change.to(block.device).add_(block))
        start += len(rows)


def _added(parameters: Sequence[torch.Tensor], change: torch.Tensor, swapped: bool) -> None:
    """Add a change to parameters, in float32, and round once to what they are stored in."""
    for parameter, own in zip(parameters, _divided(change, parameters, swapped), strict=True):
        parameter.copy_(own.reshape(parameter.shape).to(parameter.device).add_(parameter))


def _divided(change: torch.Tensor, parameters: Sequence[torch.Tensor], swapped: bool) -> Sequence[torch.Tensor]:
    import torch

    change = change.roll(change.shape[0] // 2, 0) if swapped else change
    if len(parameters) == 1:
        return [change]
    return torch.split(change, [parameter.shape[0] for parameter in parameters])
