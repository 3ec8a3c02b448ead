"""Adapters beside weights that are stored quantized and cannot be added to: diffusers and PEFT compute with both."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...core.errors import UsageError
from ..adapters import formulas
from ..adapters.file import AdapterFile
from ..adapters.places import Place, shapes_of
from ..adapters.plan import in_short
from ..seams import diffusers_seam

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

log = logging.getLogger("diffpipe.engine")

# The parts of a row that PEFT's plain adapter has; the rest would need the weight itself.
PLAIN = frozenset({"down", "up", "alpha"})


class Kept:
    """The adapters that stay beside the weights of a pipeline."""

    def __init__(self, pipe: DiffusionPipeline) -> None:
        self.pipe = pipe
        self.components = {name for name, part in pipe.components.items() if is_quantized(part)}
        self.scales: dict[str, float] = {}

    def add(self, adapter: str, scale: float, places: Sequence[Place], file: AdapterFile) -> None:
        """Load what of an adapter is for quantized weights, under a name.

        Raises UsageError for what cannot be kept beside them.
        """
        mine = [place for place in places if place.component in self.components]
        if not mine:
            return
        if strange := not_plain(mine, diffusers_seam.lora_parts(type(self.pipe))):
            raise UsageError(
                f"{in_short(strange)} cannot be applied to quantized weights",
                "take weights that are not quantized; --quantize makes them so after adapters were added",
            )
        states: dict[str, dict[str, torch.Tensor]] = {}
        for place in mine:
            own = _plain(place, file, getattr(self.pipe, place.component))
            states.setdefault(place.component, {}).update(own)
        for component, state in states.items():
            self._load(component, state, adapter)
        self.scales[adapter] = scale

    def _load(self, component: str, state: dict[str, torch.Tensor], adapter: str) -> None:
        """Denoisers by themselves: a pipeline with two gives all that it loads to its first."""
        part = getattr(self.pipe, component)
        if hasattr(part, "load_lora_adapter"):
            part.load_lora_adapter(state, prefix=component, adapter_name=adapter)
        else:
            self.pipe.load_lora_weights(state, adapter_name=adapter)

    def set_scales(self) -> None:
        if self.scales:
            self.pipe.set_adapters(list(self.scales), adapter_weights=list(self.scales.values()))


def is_quantized(part: object) -> bool:
    """Whether a component came quantized, as GGUF or by a library's own layers."""
    return bool(getattr(part, "quantization_method", None) or getattr(part, "hf_quantizer", None))


def not_plain(places: Sequence[Place], components: Sequence[str]) -> list[str]:
    """The layers that can only be added to weights: of other kinds, or of components that PEFT is not used for."""
    plain = (place.row.kind == "lora" and not set(place.row.parts) - PLAIN for place in places)
    return [
        place.row.module
        for place, is_plain in zip(places, plain, strict=True)
        if not is_plain or place.component not in components
    ]


def _plain(place: Place, file: AdapterFile, part: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A row as PEFT has it, its strength within the second matrix: COMPONENT.MODULE.lora_A.weight and lora_B.weight."""
    import torch

    tensors = {part: file.tensor(name) for part, name in place.row.parts.items()}
    rank = tensors["down"].shape[0]
    strength = formulas.strength(tensors, file.alpha(place.row.module, place.component, rank))
    up = tensors["up"] * strength
    up = up.roll(up.shape[0] // 2, 0) if place.swapped else up
    shapes = shapes_of(part)
    found: dict[str, torch.Tensor] = {}
    heights = [shapes[f"{module}.weight"][0] for module in place.modules]
    for module, own in zip(place.modules, torch.split(up, heights), strict=True):
        found[f"{place.component}.{module}.lora_A.weight"] = tensors["down"]
        found[f"{place.component}.{module}.lora_B.weight"] = own.contiguous()
    return found
