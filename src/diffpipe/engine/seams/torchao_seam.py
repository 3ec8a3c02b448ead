"""What diffpipe uses of torchao beyond its documentation. Tried with torchao 0.18.0."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .seam import Seam

if TYPE_CHECKING:
    import torch

ROWS = Seam(
    "torchao",
    "qdata and scale of a Float8Tensor",
    buys="rows of zeros, which torchao's fp8 turns into NaN, stay zeros",
    without="a component with such a row is refused when it is compared with the original, at the build",
    file="torchao/quantization/quantize_/workflows/float8/float8_tensor.py",
    text='tensor_data_names = ["qdata", "scale"]',
)
SEAMS = (ROWS,)


def mend_empty_rows(weight: torch.Tensor) -> None:
    """Put the rows of a float8 weight right that had nothing but zeros: values 0, scale 1."""
    import torch

    values: torch.Tensor | None = getattr(weight, "qdata", None)
    scale: torch.Tensor | None = getattr(weight, "scale", None)
    if values is not None and scale is not None:
        empty = scale == 0
        values.view(torch.uint8).masked_fill_(empty, 0)
        scale.masked_fill_(empty, 1)
