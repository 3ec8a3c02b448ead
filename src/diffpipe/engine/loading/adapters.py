"""LoRAs: whether one is for this pipeline, told before any weight is fetched, and fusing them into the weights."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

from ...core.errors import UsageError
from ...core.source import Source

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
# its LoRAs (SSD-1B those of SDXL). Models that share some names and widths are told by what they lack altogether: of
# a Flux LoRA 57% are in Qwen Image, which has no single blocks; of a Qwen LoRA a third are in Flux.
LEAST, LEAST_WITH_STRANGE_PARTS = 0.4, 0.75

# A component's class and configuration (config.json, {} where that is not known); None for no such component.
Settings = Callable[[str], "tuple[Any, Mapping[str, Any]] | None"]


class Fit(NamedTuple):
    """How many of an adapter's layers the pipeline has, of how many."""

    fitting: int
    layers: int


def check(pipeline: Any, path: Path, label: str, settings: Settings, *, pickle: bool = False) -> Fit | None:
    """Load an adapter's file into the pipeline's class with no weights in it, by upstream's own loader.

    None where that cannot be tried without the weights. Raises UsageError where the adapter is for another model: none
    of its layers is in this one, or they have other widths.
    """
    if not hasattr(pipeline, "load_lora_weights"):
        raise UsageError(f"{pipeline.__name__} takes no LoRA", "build it without --lora")
    if path.suffix == ".gguf":
        raise UsageError(f"{label} is a GGUF file, which holds a model's weights", "a LoRA is a .safetensors file")
    found = {name: pair for name in pipeline._lora_loadable_modules if (pair := settings(name))}
    if not all(configuration for _, configuration in found.values()):
        return None
    parts = {name: _hollow(cls, configuration) for name, (cls, configuration) in found.items()}
    shapes = {name: _shapes(part) for name, part in parts.items()}
    shell = _shell(pipeline, parts)
    tensors = _record_conversion(shell)
    try:
        load_into(shell, path, NAME, pickle=pickle)
    except (AttributeError, TypeError, NotImplementedError, OSError) as error:
        log.debug("the LoRA %s is checked when it is loaded: %s", label, error)
        return None
    except RuntimeError as error:
        raise _other_shape(label, pipeline, _widths(tensors, shapes)) from error
    except (ValueError, KeyError, AssertionError) as error:
        log.debug("the LoRA %s: %s", label, error)  # none of its names is read, or found: told below
    ups = {name: tensor for name, tensor in tensors.items() if UP.search(name)}
    if ups and not any(bool(tensor.any()) for tensor in ups.values()):
        raise UsageError(f"the LoRA {label} changes no layer: its weights are all zero", HINT)
    fitting = _fitting(label, pipeline, list(ups), parts)
    changed = {name: _shapes(part) for name, part in parts.items()}
    widened = [layer for name in parts for layer in WIDENED if changed[name].get(layer) != shapes[name].get(layer)]
    if reshaped := [width for name in parts for width in _reshaped(shapes[name], changed[name])]:
        raise _other_shape(label, pipeline, reshaped[0])
    if widened and not takes_control(pipeline):
        raise UsageError(
            f"{label} is a Control LoRA, which needs a control picture; {pipeline.__name__} takes none",
            f"build it for {CONTROL}: diffpipe build custom --class {CONTROL} --model SOURCE --lora {label}",
        )
    return Fit(min(fitting, len(ups)), len(ups))


def takes_control(pipeline: Any) -> bool:
    """Whether a pipeline joins a control picture to the denoiser's own input, as no ControlNet does."""
    from ..classes.lookup import pipeline_parts

    taken, parts = signature(pipeline.__call__).parameters, pipeline_parts(pipeline)[0]
    return "control_image" in taken and "controlnet" not in parts


def _shell(pipeline: Any, parts: Mapping[str, Any]) -> Any:
    """A pipeline of these parts alone, for its LoRA loader: its __init__ would want the others too."""
    from ..classes.lookup import pipeline_parts

    shell = pipeline.__new__(pipeline)
    shell.register_modules(**{name: parts.get(name) for name in pipeline_parts(pipeline)[0]})
    return shell


def _hollow(cls: Any, settings: Mapping[str, Any]) -> Any:
    """A model without weights: its parameters are on the meta device."""
    import transformers
    from accelerate import init_empty_weights

    with init_empty_weights():
        if issubclass(cls, transformers.PreTrainedModel):
            return cls(cls.config_class.from_dict(dict(settings)))
        return cls.from_config(dict(settings))


def _record_conversion(shell: Any) -> dict[str, Any]:
    """The tensors as `lora_state_dict` will have renamed them, filled in while the pipeline loads an adapter."""
    tensors: dict[str, Any] = {}
    convert = type(shell).lora_state_dict

    def recorded(*arguments: Any, **options: Any) -> Any:
        made = convert(*arguments, **options)
        tensors.update(made[0] if isinstance(made, tuple) else made)
        return made

    shell.lora_state_dict = recorded
    return tensors


def _adapted(part: Any) -> list[str]:
    """The names of a model's layers that an adapter was put on."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [name for name, module in part.named_modules() if isinstance(module, BaseTunerLayer)]


def _shapes(part: Any) -> dict[str, tuple[int, ...]]:
    """Layer -> (out, in, …) of its weight, under the name it has without an adapter."""
    weights = ((name.replace(".base_layer", ""), tensor) for name, tensor in part.named_parameters())
    return {name.removesuffix(".weight"): tuple(tensor.shape) for name, tensor in weights if name.endswith(".weight")}


def _fitting(label: str, pipeline: Any, layers: list[str], parts: Mapping[str, Any]) -> int:
    """How many of its layers an adapter was put on. Raises UsageError where that is none, or too few.

    An adapter of the denoiser is foreign too where only its part for the text encoder fits: many families share CLIP.
    """
    denoising = [layer.split(".") for layer in layers if not layer.startswith("text_encoder")]
    adapted = {name: len(_adapted(part)) for name, part in parts.items()}
    has = {(name, child) for name, part in parts.items() for child, _ in part.named_children()}
    strange = {(name, child) for name, child, *_ in denoising if name in parts} - has
    idle = denoising and not any(count for name, count in adapted.items() if not name.startswith("text_encoder"))
    fitting = 0 if idle else sum(adapted.values())
    if not fitting or fitting < (LEAST_WITH_STRANGE_PARTS if strange else LEAST) * len(layers):
        said = f"of its {len(layers)} layers this {pipeline.__name__} has {fitting or 'none'}"
        said = said if layers else f"{pipeline.__name__} does not know the names of its layers"
        raise UsageError(f"the LoRA {label} is for another model: {said}", HINT)
    return fitting


def _widths(tensors: Mapping[str, Any], shapes: Mapping[str, Any]) -> tuple[int, int] | None:
    """What the first layer of another width takes in, and what the model's layer of that name does."""
    for name, tensor in tensors.items():
        if down := DOWN.search(name):
            part, _, layer = name[: down.start()].partition(".")
            shape = shapes.get(part, {}).get(layer)
            if shape and tensor.shape[1] != shape[1]:
                return tensor.shape[1], shape[1]
    return None


def _reshaped(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """Flux's loader widens layers for Control LoRAs, and so for those of a wider model: running them would fail."""
    for name, shape in before.items():
        if after.get(name, shape) != shape and name.rpartition(".")[2] not in WIDENED:
            yield after[name][1], shape[1]


def _other_shape(label: str, pipeline: Any, widths: tuple[int, int] | None) -> UsageError:
    said = "the widths of its layers differ"
    if widths:
        said = f"it was made for width {widths[0]}, this {pipeline.__name__} has {widths[1]} there"
    return UsageError(f"the LoRA {label} is for another model: {said}", HINT)


def load_into(pipe: Any, path: Path, adapter: str, *, pickle: bool = False) -> None:
    """Load an adapter's file beside the weights of a pipeline, under a name."""
    safe = None if pickle else True
    pipe.load_lora_weights(
        str(path.parent), weight_name=path.name, adapter_name=adapter, local_files_only=True, use_safetensors=safe
    )


def fuse(pipe: Any, loras: list[tuple[Path, Source]], *, pickle: bool = False) -> None:
    """Fuse adapters into the weights at their scales, in order. Scale 0 leaves the weights untouched.

    GGUF weights cannot be added to: there the adapters stay beside them. Raises UsageError if the pipeline takes no
    adapters or one changes no layer of it.
    """
    beside = any(_is_gguf(part) for part in pipe.components.values())
    scales = {}
    for number, (path, source) in enumerate(loras):
        if source.scale == 0:
            continue
        if not hasattr(pipe, "load_lora_weights"):
            raise UsageError(f"{type(pipe).__name__} takes no LoRA", "build it without --lora")
        adapter = f"{NAME}_{number}"
        scales[adapter] = source.scale
        load_into(pipe, path / next(iter(source.files)) if path.is_dir() else path, adapter, pickle=pickle)
        if adapter not in {known for names in pipe.get_list_adapters().values() for known in names}:
            raise UsageError(f"the LoRA {source.label} changes no layer of this pipeline", "is it for another family?")
        if not beside:
            pipe.fuse_lora(components=list(pipe.get_list_adapters()), lora_scale=source.scale, adapter_names=[adapter])
            pipe.unload_lora_weights()
        log.info("%s LoRA %s at scale %g", "loaded" if beside else "fused", source.label, source.scale)
    if beside and scales:
        pipe.set_adapters(list(scales), adapter_weights=list(scales.values()))


def _is_gguf(part: Any) -> bool:
    return "gguf" in str(getattr(part, "quantization_method", "")).lower()
