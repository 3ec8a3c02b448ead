"""Plain torch kernels for optimum-quanto: the same arithmetic wherever weights lie, no compiler, nothing unsafe.

quanto 0.2.7 chooses its kernels by device, shape and alignment, compiles C++ or CUDA when it first needs some of them,
and writes what it compiled into site-packages. Three of them are not used here:

- int8 on the CPU calls torch._weight_int8pack_mm, which ends the process with a segmentation fault unless the weights
  are 16-byte aligned and in_features % 16 == 0. It is also the slower way: 0.45 s where `matmul` below takes 0.09 s
  (512 x 3072 x 12288 in bfloat16, one thread, a processor with AMX).
- int4 on the CPU packs weights anew for torch's int4pack kernel, so no stored weight can be mapped, and needs
  quanto::unpack in C++. Unpacking by shifts and multiplying takes 0.17 s, that kernel 0.42 s.
- fp8 on CUDA goes to Marlin, which made noise for many (optimum-quanto issues 343 and 409).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ...core.errors import UsageError

KNOWN = "0.2.7"  # the version of optimum-quanto that this was written and tested for
BLOCK = 1 << 16  # weights converted at a time: the table's indices stay in the processor's cache


@functools.cache
def use_plain_kernels(quantize: Callable[[Any, str], Any]) -> None:
    """Put the kernels of this module in quanto's place, once a process, and try them on what `quantize` makes.

    Raises UsageError if this version of quanto does not take them or works otherwise.
    """
    import warnings

    from optimum.quanto import WeightQBitsTensor
    from optimum.quanto.library.extensions import extension

    # Without it quanto takes no kernel that it would have to compile: Marlin, AWQ.
    extension._extensions.pop("quanto_cuda", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a kernel is replaced is the point
        for device in ("CPU", "CUDA"):
            _library().impl("unpack", unpack, device, allow_override=True)
        _library().impl("qbytes_mm", matmul, "CPU", allow_override=True)
    create = WeightQBitsTensor.create

    def create_plain(qtype: Any, axis: Any, group_size: Any, size: Any, stride: Any, data: Any, *rest: Any) -> Any:
        made = WeightQBitsTensor if data.device.type == "cpu" else create
        return made(qtype, axis, group_size, size, stride, data, *rest)

    WeightQBitsTensor.create = staticmethod(create_plain)
    _try(quantize)


@functools.cache
def _library() -> Any:
    """The handle that keeps replaced kernels in place: torch takes them back when it goes."""
    import torch

    return torch.library.Library("quanto", "IMPL")  # type: ignore[no-untyped-call]


def unpack(packed: Any, bits: int) -> Any:
    """quanto::unpack: the 2- or 4-bit values of uint8 rows, the lowest bits' rows first (rows x 8/bits, columns)."""
    import torch

    return torch.cat([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)])


def matmul(activations: Any, weights: Any, scales: Any) -> Any:
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


def dequantize(weights: Any, dtype: Any) -> Any:
    """8-bit weights in a wider format, without their scale.

    float8 goes through a table of its 256 values, a block at a time: torch's own conversion takes four times as long.
    """
    import torch

    if weights.dtype != torch.float8_e4m3fn:
        return weights.to(dtype)
    table, wide = _values(dtype), torch.empty(weights.shape, dtype=dtype)
    blocks = torch.split(weights.contiguous().view(torch.uint8).view(-1), BLOCK)
    for block, place in zip(blocks, torch.split(wide.view(-1), BLOCK), strict=True):
        torch.index_select(table, 0, block.int(), out=place)
    return wide


@functools.cache
def _values(dtype: Any) -> Any:
    """The value of each byte as a float8_e4m3fn."""
    import torch

    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(dtype)


def _try(quantize: Callable[[Any, str], Any]) -> None:
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
