"""Whether a LoRA is for a pipeline, seen before any weight is fetched: it is loaded into the class without weights."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...core.canonical import JsonValue
from ...core.components import is_text_encoder
from ...core.errors import UsageError
from ..classes.hollow import hollow
from ..classes.lookup import pipeline_parts
from ..seams import diffusers_seam
from .adapters import load_into

if TYPE_CHECKING:
    import torch

    from ..classes.lookup import ComponentClass, Pipeline

log = logging.getLogger("diffpipe.engine")

HINT = "choose a LoRA made for this model, or leave it out"
NAME = "adapter"
# A layer's second and first matrix as `lora_state_dict` returns them: in the layouts of peft, older diffusers, LoKr.
UP = re.compile(r"\.(lora_B|lora\.up|\w+_lora\.up|lora_linear_layer\.up|lora_up)\.weight$|\.lokr_w1(_a)?$")
DOWN = re.compile(r"\.(lora_A|lora\.down|lora_linear_layer\.down|lora_down)\.weight$")
# What the loaders of a Flux Control LoRA widen by design: it takes the control picture's latents beside its own.
WIDENED = {"x_embedder"}
CONTROL = "FluxControlPipeline"
# The least share of an adapter's layers that must be in the model. Pruned models have half of the original's and take
# its LoRAs (SSD-1B those of SDXL). Models that share some names and widths differ in what they lack altogether: of a
# Flux LoRA 57% are in Qwen Image, which has no single blocks; of a Qwen LoRA a third are in Flux.
LEAST, LEAST_WITH_STRANGE_PARTS = 0.4, 0.75

# A component's class and configuration (config.json, {} where that is not known); None for no such component.
Settings = Callable[[str], "tuple[ComponentClass, Mapping[str, JsonValue]] | None"]
Parts = Mapping[str, "torch.nn.Module"]
Layers = Mapping[str, tuple[int, ...]]  # layer -> (out, in, …) of its weight, under the name it has without an adapter
Widths = tuple[int, int]  # what a layer of the adapter takes in, and what the model's layer of that name does


class Fit(NamedTuple):
    """How many of an adapter's layers the pipeline has, of how many."""

    fitting: int
    layers: int


def check(pipeline: Pipeline, path: Path, label: str, settings: Settings, *, pickle: bool = False) -> Fit | None:
    """Load an adapter's file into the pipeline's class with no weights in it, by upstream's own loader.

    None where that cannot be tried without the weights. Raises UsageError where the adapter is for another model: none
    of its layers is in this one, or they have other widths.
    """
    _check_kinds(pipeline, path, label)
    parts = _hollow_parts(pipeline, settings)
    trial = None if parts is None else _try(pipeline, parts, path, label, pickle)
    if trial is None:
        return None
    trial.check_that_it_does_something()
    fitting = trial.check_share()
    trial.check_widths()
    trial.check_control()
    return Fit(min(fitting, len(trial.layers)), len(trial.layers))


def _check_kinds(pipeline: Pipeline, path: Path, label: str) -> None:
    if not hasattr(pipeline, "load_lora_weights"):
        raise UsageError(f"{pipeline.__name__} takes no LoRA", "build it without --lora")
    if path.suffix == ".gguf":
        raise UsageError(f"{label} is a GGUF file, which holds a model's weights", "a LoRA is a .safetensors file")


def _hollow_parts(pipeline: Pipeline, settings: Settings) -> Parts | None:
    """The parts that the pipeline's LoRAs may change, without weights; None where settings of one are not known."""
    found = {name: known for name in diffusers_seam.lora_parts(pipeline) if (known := settings(name))}
    if not all(configuration for _, configuration in found.values()):
        return None
    return {name: hollow(cls, configuration) for name, (cls, configuration) in found.items()}


def _try(pipeline: Pipeline, parts: Parts, path: Path, label: str, pickle: bool) -> _Trial | None:
    """Load an adapter onto parts without weights; None where its loader cannot do without them.

    Raises UsageError where layers have other widths.
    """
    shell = diffusers_seam.shell(pipeline, {name: parts.get(name) for name in pipeline_parts(pipeline)[0]})
    before = {name: _layers_of(part) for name, part in parts.items()}
    trial = _Trial(pipeline, label, parts, before, diffusers_seam.record_lora_conversion(shell))
    try:
        load_into(shell, path, NAME, pickle=pickle)
    except (AttributeError, TypeError, NotImplementedError, OSError) as error:
        log.debug("the LoRA %s is checked when it is loaded: %s", label, error)
        return None
    except RuntimeError as error:
        raise trial.other_widths(trial.first_misfit()) from error
    except (ValueError, KeyError, AssertionError) as error:
        log.debug("the LoRA %s: %s", label, error)  # none of its names is read, or found: check_share says so
    return trial


def _layers_of(part: torch.nn.Module) -> Layers:
    weights = ((name.replace(".base_layer", ""), tensor) for name, tensor in part.named_parameters())
    return {name.removesuffix(".weight"): tuple(tensor.shape) for name, tensor in weights if name.endswith(".weight")}


@dataclass(frozen=True)
class _Trial:
    """An adapter as diffusers' own loader put it on a pipeline's parts.

    `before`: the parts' layers as they were. `tensors`: the adapter's, under the names that diffusers gave them.
    """

    pipeline: Pipeline
    label: str
    parts: Parts
    before: Mapping[str, Layers]
    tensors: Mapping[str, torch.Tensor]

    @property
    def layers(self) -> list[str]:
        """The names of the adapter's layers: PART.LAYER and how its second matrix is called."""
        return [name for name in self.tensors if UP.search(name)]

    def check_that_it_does_something(self) -> None:
        if self.layers and not any(bool(self.tensors[name].any()) for name in self.layers):
            raise UsageError(f"the LoRA {self.label} changes no layer: its weights are all zero", HINT)

    def check_share(self) -> int:
        """How many layers the adapter was put on. Raises UsageError where that is none, or too few.

        An adapter of the denoiser is foreign too where only its part for the text encoder fits: many families share
        CLIP.
        """
        layers = self.layers
        denoising = [layer.split(".") for layer in layers if not is_text_encoder(layer.split(".")[0])]
        adapted = {name: _count_adapted(part) for name, part in self.parts.items()}
        idle = denoising and not any(count for name, count in adapted.items() if not is_text_encoder(name))
        fitting = 0 if idle else sum(adapted.values())
        has = {(name, child) for name, part in self.parts.items() for child, _ in part.named_children()}
        strange = {(name, child) for name, child, *_ in denoising if name in self.parts} - has
        if fitting and fitting >= (LEAST_WITH_STRANGE_PARTS if strange else LEAST) * len(layers):
            return fitting
        if layers:
            raise self._other_model(f"of its {len(layers)} layers this {self._class} has {fitting or 'none'}")
        raise self._other_model(f"{self._class} does not know the names of its layers")

    def check_widths(self) -> None:
        """Flux's loader widens layers for Control LoRAs, and so for those of a wider model: running them would fail."""
        for layer, before, after in self._changed():
            if layer.rpartition(".")[2] not in WIDENED:
                raise self.other_widths((after[1], before[1]))

    def check_control(self) -> None:
        """Raises UsageError for a Control LoRA where the pipeline takes no control picture."""
        widened = any(layer in WIDENED for layer, _, _ in self._changed())
        if widened and not takes_control(self.pipeline):
            raise UsageError(
                f"{self.label} is a Control LoRA, which needs a control picture; {self._class} takes none",
                f"build it for {CONTROL}: diffpipe build custom --class {CONTROL} --model SOURCE --lora {self.label}",
            )

    def _changed(self) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
        """The layers that were given another shape: name in its part, shape before and after."""
        for name, part in self.parts.items():
            after = _layers_of(part)
            for layer, shape in self.before[name].items():
                if after.get(layer, shape) != shape:
                    yield layer, shape, after[layer]

    def first_misfit(self) -> Widths | None:
        """The widths of the adapter's first layer that takes in something else than the model's layer of that name."""
        for name, tensor in self.tensors.items():
            if down := DOWN.search(name):
                part, _, layer = name[: down.start()].partition(".")
                shape = self.before.get(part, {}).get(layer)
                if shape and tensor.shape[1] != shape[1]:
                    return tensor.shape[1], shape[1]
        return None

    def other_widths(self, widths: Widths | None) -> UsageError:
        if widths is None:
            return self._other_model("the widths of its layers differ")
        return self._other_model(f"it was made for width {widths[0]}, this {self._class} has {widths[1]} there")

    def _other_model(self, reason: str) -> UsageError:
        return UsageError(f"the LoRA {self.label} is for another model: {reason}", HINT)

    @property
    def _class(self) -> str:
        return self.pipeline.__name__


def takes_control(pipeline: Pipeline) -> bool:
    """Whether a pipeline joins a control picture to the denoiser's own input, as no ControlNet does."""
    taken, parts = signature(pipeline.__call__).parameters, pipeline_parts(pipeline)[0]
    return "control_image" in taken and "controlnet" not in parts


def _count_adapted(part: torch.nn.Module) -> int:
    """How many of a model's layers an adapter was put on."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return sum(isinstance(module, BaseTunerLayer) for module in part.modules())
