"""Text encoders from single files: clip_l, clip_g, t5xxl and their like, with the settings of a pipeline's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.errors import UsageError
from ...core.text_encoder_names import own_names
from ..classes.hollow import usable
from . import plain_weights

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

GGUF = ".gguf"
MORE = "it has no place for"  # begins what is said of tensors that the model has not
FLOAT8 = "float8"  # in the names of torch's dtypes


def load(cls: type[PreTrainedModel], name: str, file: Path, folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The text encoder of a file; its settings are those of NAME/ in `folder`.

    Raises UsageError for weights that are not those of the class and settings.
    """
    config = cls.config_class.from_pretrained(folder, subfolder=name, local_files_only=True, trust_remote_code=False)
    model, unfit = _made(cls, config, _weights(file, dtype), dtype)
    if unfit:
        raise UsageError(f"{file.name} does not fit {name}: {unfit[0]}", "choose the file that was made for this model")
    return model.eval()


def unfitting(
    cls: type[PreTrainedModel], settings: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """What of a file's tensors, known by name and shape alone, is not as the class and its settings want it."""
    return _faults(cls, settings, {own: shapes[name] for name, own in own_names(shapes).items()})


def lacking(
    cls: type[PreTrainedModel], settings: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """What of a folder's tensors is missing or of another shape; more than it needs is usual (CLIP's other half)."""
    return [fault for fault in _faults(cls, settings, shapes) if not fault.startswith(MORE)]


def _faults(
    cls: type[PreTrainedModel], settings: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    import torch

    with usable(cls):
        config = cls.config_class.from_dict(dict(settings))
    weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    with usable(cls, len(shapes)):
        return _made(cls, config, weights, torch.float32, device_map="meta")[1]


def _made(
    cls: type[PreTrainedModel],
    config: PreTrainedConfig,
    weights: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
    **words: str,
) -> tuple[PreTrainedModel, list[str]]:
    """The model by transformers' own loader, which knows the earlier names of weights, and what did not fit in it."""
    if "text_projection.weight" in weights and not cls.__name__.endswith("WithProjection"):
        weights = {name: weight for name, weight in weights.items() if name != "text_projection.weight"}
    model, info = cls.from_pretrained(
        None,
        config=config,
        state_dict=dict(weights),
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        trust_remote_code=False,
        **words,
    )
    shapes = [f"{name} is {_by(has)}, not {_by(needs)}" for name, has, needs in sorted(info["mismatched_keys"])]
    missing = [f"{name} is missing" for name in sorted(info["missing_keys"])]
    return model, [*shapes, *missing, *(f"{MORE} {name}" for name in sorted(info["unexpected_keys"]))]


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _weights(file: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights by the model's own names; float8 and packed ones in `dtype`."""
    if file.suffix == GGUF:
        return _unpacked(file, dtype)
    if file.suffix != plain_weights.SAFETENSORS:
        raise UsageError(f"{file.name} is no safetensors or GGUF file", "give a text encoder as one of these")
    tensors = plain_weights.read(file, dtype)
    return {
        own: tensors[name].to(dtype) if FLOAT8 in str(tensors[name].dtype) else tensors[name]
        for name, own in own_names(tensors).items()
    }


def _unpacked(file: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A GGUF file's weights, unpacked one by one."""
    import torch
    from gguf import GGUFReader, quants

    packed = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    return {
        own: torch.from_numpy(quants.dequantize(packed[name].data, packed[name].tensor_type)).to(dtype)
        for name, own in own_names(packed).items()
    }
