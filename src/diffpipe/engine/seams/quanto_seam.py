"""What diffpipe replaces in optimum-quanto. Tried with optimum-quanto 0.2.7, its last release.

quanto chooses its kernels by device, shape and alignment, compiles C++ or CUDA when it first needs some of them, and
writes what it compiled into site-packages. Three are not used (see loading.kernels for what stands in their place):

- int8 on the CPU calls torch._weight_int8pack_mm, which ends the process with a segmentation fault unless the weights
  are 16-byte aligned and in_features % 16 == 0.
- int4 on the CPU packs weights anew for torch's int4pack kernel, so no stored weight can be mapped, and needs
  quanto::unpack in C++.
- fp8 on CUDA goes to Marlin, which made noise for many (optimum-quanto issues 343 and 409).
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from .seam import Seam

if TYPE_CHECKING:
    import torch

CUDA_EXTENSION = "quanto_cuda"
REFUSED = "what is quantized by quanto is refused: loading.kernels tries products whose values are known"

EXTENSIONS = Seam(
    "optimum-quanto",
    "library.extensions.extension._extensions",
    buys="no kernel is taken that would have to be compiled (Marlin, AWQ)",
    without="fp8 and int4 may compile code for the GPU at the first call, and fp8 may make noise there",
    file="optimum/quanto/library/extensions/extension.py",
    text="_extensions = {}",
)
OPERATORS = Seam(
    "optimum-quanto",
    "operators quanto::unpack and quanto::qbytes_mm",
    buys="int8 that cannot end the process, int4 without a compiler",
    without=REFUSED,
    file="optimum/quanto/library/unpack.py",
    text='"quanto::unpack", "(Tensor self, int bits) -> Tensor"',
)
CREATE = Seam(
    "optimum-quanto",
    "WeightQBitsTensor.create",
    buys="int4 weights on the CPU stay as they are stored, and can be mapped",
    without=REFUSED,
    file="optimum/quanto/tensor/weights/qbits.py",
    text="def create(qtype, axis, group_size, size, stride, data, scale, shift, requires_grad=False)",
)
SEAMS = (EXTENSIONS, OPERATORS, CREATE)

Unpack = Callable[["torch.Tensor", int], "torch.Tensor"]
Multiply = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor"], "torch.Tensor"]


def replace_kernels(unpack: Unpack, matmul: Multiply) -> None:
    """Put these in the place of quanto's own for as long as the process lives, and keep int4 weights as stored."""
    from optimum.quanto.library.extensions import extension

    getattr(extension, "_extensions", {}).pop(CUDA_EXTENSION, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a kernel is replaced is the point
        replace = partial(_library().impl, allow_override=True)
        replace("unpack", unpack, "CPU")
        replace("unpack", unpack, "CUDA")
        replace("qbytes_mm", matmul, "CPU")
    _keep_plain_weights()


def _keep_plain_weights() -> None:
    """Make int4 weights on the CPU of the class that holds them as they are stored, not of one for a kernel."""
    from optimum.quanto import WeightQBitsTensor

    create = WeightQBitsTensor.create

    def create_plain(
        qtype: Any, axis: int, group_size: int, size: torch.Size, stride: tuple[int, ...], data: Any, *rest: Any
    ) -> torch.Tensor:
        made = WeightQBitsTensor if data.device.type == "cpu" else create
        tensor: torch.Tensor = made(qtype, axis, group_size, size, stride, data, *rest)
        return tensor

    WeightQBitsTensor.create = staticmethod(create_plain)


@functools.cache
def _library() -> torch.library.Library:
    """The handle that keeps replaced kernels in place: torch takes them back when it goes."""
    import torch

    return torch.library.Library("quanto", "IMPL")  # type: ignore[no-untyped-call]
