"""The weights of a single file as numbers that mean what they are: float8 with scales is multiplied by them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...core.checkpoint_marks import is_averaged, is_mark, scaling, spread
from ...core.errors import UsageError
from ...storage.tensor_headers import read_safetensors

if TYPE_CHECKING:
    import torch

SAFETENSORS = ".safetensors"


def is_plain(file: Path) -> bool:
    """Whether a file can be read by the libraries as it is; only safetensors files say so."""
    return file.suffix != SAFETENSORS or not any(is_mark(name) for name in read_safetensors(file).tensors)


def read(file: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights of a safetensors file by name, mapped, without markers, scales and averages beside them.

    Those that have a scale are multiplied by it in float32 and rounded to `dtype`; others are as they are in the file.
    Raises UsageError for scales that fit no weight.
    """
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = load_file(file)
    scales = scaling(tensors).scales
    return {
        name: _scaled(file, name, tensor, tensors[scales[name]], dtype) if name in scales else tensor
        for name, tensor in tensors.items()
        if not (is_mark(name) or is_averaged(name))
    }


def _scaled(file: Path, name: str, weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    import torch

    shape = spread(tuple(weight.shape), tuple(scale.shape))
    if shape is None:
        raise UsageError(f"the scale of {name} in {file.name} does not fit its weight", "choose another file")
    factor = scale.to(torch.float32).reshape(shape)
    for axis, size in enumerate(shape):
        if size > 1:
            factor = factor.repeat_interleave(weight.shape[axis] // size, axis)
    return (weight.to(torch.float32) * factor).to(dtype)
