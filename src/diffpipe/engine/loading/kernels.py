"""Plain torch kernels for optimum-quanto: the same arithmetic wherever weights lie, no compiler, nothing unsafe.

seams.quanto_seam says which of quanto's own they replace, and why. They are faster, too: for 512 x 3072 x 12288 in
bfloat16, with one thread of a processor with AMX, int8 takes 0.09 s where torch._weight_int8pack_mm takes 0.45 s, and
int4 0.17 s where torch's int4pack kernel takes 0.42 s.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...core.errors import UsageError
from ..seams import quanto_seam

if TYPE_CHECKING:
    import torch

    Quantize = Callable[[torch.Tensor, str], torch.Tensor]

KNOWN = "0.2.7"  # the version of optimum-quanto that this was written and tested for
BLOCK = 1 << 16  # weights converted at a time: the table's indices stay in the processor's cache


@functools.cache
def use_plain_kernels(quantize: Quantize) -> None:
    """Put the kernels of this module in quanto's place, once a process, and try them on what `quantize` makes.

    Raises UsageError if this version of quanto does not take them or works otherwise.
    """
    quanto_seam.replace_kernels(unpack, matmul)
    quanto_seam.let_move()
    _try(quantize)


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """quanto::unpack: the 2- or 4-bit values of uint8 rows, the lowest bits' rows first (rows x 8/bits, columns)."""
    import torch

    return torch.cat([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)])


def matmul(activations: torch.Tensor, weights: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """quanto::qbytes_mm: activations (tokens, in) times 8-bit weights (out, in), each row with its scale.

    The scale comes after the product, where it is one multiplication a result and rounds no weight; in float16, whose
    range is small, before it.
    """
    import torch

    dtype = scales.dtype
    plain = dequantize(weights, dtype)
    if dtype == torch.float16:
        return activations.to(dtype) @ (plain * scales).t()
    return (activations.to(dtype) @ plain.t()) * scales.flatten()


def dequantize(weights: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """8-bit weights in a wider format, without their scale.

    On the CPU float8 goes through a table of its 256 values, a block at a time: torch's own conversion takes four times
    as long there.
    """
    import torch

    if weights.dtype != torch.float8_e4m3fn or weights.device.type != "cpu":
        return weights.to(dtype)
    table, wide = _values(dtype), torch.empty(weights.shape, dtype=dtype)
    blocks = torch.split(weights.contiguous().view(torch.uint8).view(-1), BLOCK)
    for block, place in zip(blocks, torch.split(wide.view(-1), BLOCK), strict=True):
        torch.index_select(table, 0, block.int(), out=place)
    return wide


@functools.cache
def _values(dtype: torch.dtype) -> torch.Tensor:
    """The value of each byte as a float8_e4m3fn."""
    import torch

    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(dtype)


def _try(quantize: Quantize) -> None:
    """Multiply by an identity whose products are known. Raises UsageError if anything but them comes out."""
    import torch

    weight = torch.eye(16, 32) * torch.arange(1, 17)[:, None]
    for mode in ("fp8", "int8", "int4"):
        made = torch.nn.functional.linear(torch.eye(32), quantize(weight, mode))
        if not torch.allclose(made, weight.t(), atol=0.01):
            raise UsageError(
                "the installed optimum-quanto is not one that diffpipe can work with",
                f"install the version it was tested with: pip install optimum-quanto=={KNOWN}",
            )
