"""What diffpipe replaces in optimum-quanto. Tried with optimum-quanto 0.2.7, its last release.

quanto chooses its kernels by device, shape and alignment, compiles C++ or CUDA when it first needs some of them, and
writes what it compiled into site-packages. None of them is used (see loading.kernels for what stands in their place, on
every device):

- int8 on the CPU calls torch._weight_int8pack_mm, which ends the process with a segmentation fault unless the weights
  are 16-byte aligned and in_features % 16 == 0.
- int4 on the CPU, and on some GPUs, packs weights anew for torch's int4pack kernel, so no stored weight can be mapped
  or moved, and needs quanto::unpack in C++.
- fp8 on CUDA goes to Marlin, which made noise for many (optimum-quanto issues 343 and 409).
- fp8 and int8 elsewhere scale the weights before the product, which rounds them.

Its tensors lose what they wrap when `tensor.data` is set, and cannot be pinned. Group offload does both, and asks
torchao's tensors alone to move in another way.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from . import torch_seam
from .seam import Seam

if TYPE_CHECKING:
    import torch

REFUSED = "what is quantized by quanto is refused: loading.kernels tries products whose values are known"

EXTENSIONS = Seam(
    "optimum-quanto",
    "library.extensions.extension._extensions",
    buys="no kernel is taken that would have to be compiled (Marlin, AWQ)",
    without="fp8 and int4 may compile code for the device at the first call, and fp8 may make noise there",
    file="optimum/quanto/library/extensions/extension.py",
    text="_extensions = {}",
)
OPERATORS = Seam(
    "optimum-quanto",
    "operators quanto::unpack and quanto::qbytes_mm",
    buys="int8 that cannot end the process, int4 without a compiler, the same arithmetic on every device",
    without=REFUSED,
    file="optimum/quanto/library/unpack.py",
    text='"quanto::unpack", "(Tensor self, int bits) -> Tensor"',
)
CREATE = Seam(
    "optimum-quanto",
    "WeightQBitsTensor.create",
    buys="int4 weights stay as they are stored: they can be mapped, and moved between devices",
    without=REFUSED,
    file="optimum/quanto/tensor/weights/qbits.py",
    text="def create(qtype, axis, group_size, size, stride, data, scale, shift, requires_grad=False)",
)
MOVING = Seam(
    "optimum-quanto",
    "QTensor.data, QTensor.pin_memory and PackedTensor.pin_memory",
    buys="quantized weights can be offloaded in groups and layer by layer",
    without="a pipeline with such weights fails at its first call when it is offloaded so",
    file="optimum/quanto/tensor/qtensor.py",
    text="class QTensor(torch.Tensor):",
)
SEAMS = (EXTENSIONS, OPERATORS, CREATE, MOVING)

Unpack = Callable[["torch.Tensor", int], "torch.Tensor"]
Multiply = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor"], "torch.Tensor"]


def replace_kernels(unpack: Unpack, matmul: Multiply) -> None:
    """Put these in the place of quanto's own for as long as the process lives, and keep int4 weights as stored."""
    from optimum.quanto.library.extensions import extension

    getattr(extension, "_extensions", {}).clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a kernel is replaced is the point
        replace = partial(_library().impl, allow_override=True)
        for key in torch_seam.dispatch_keys():
            replace("unpack", unpack, key)
            replace("qbytes_mm", matmul, key)
    _keep_plain_weights()


def _keep_plain_weights() -> None:
    """Make int4 weights of the class that holds them as they are stored, not of one for a kernel."""
    from optimum.quanto import WeightQBitsTensor

    WeightQBitsTensor.create = staticmethod(WeightQBitsTensor)


def let_move() -> None:
    """Give quanto's tensors what a plain one has where it is moved: `data` that can be set, and `pin_memory`.

    The methods are the class's own from then on: whoever moves tensors, as diffusers' group offload does, calls them.
    """
    from optimum.quanto.tensor import qtensor
    from optimum.quanto.tensor.packed import PackedTensor

    qtensor.QTensor.data = property(_alias, _become)
    for kind in (qtensor.QTensor, PackedTensor):
        kind.pin_memory, kind.is_pinned = _pinned, _is_pinned


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    """What `tensor.data` is of a plain tensor: another over the same memory."""
    return tensor.detach()


def _become(tensor: torch.Tensor, other: torch.Tensor) -> None:
    """What `tensor.data = other` does to a plain tensor: it stays the object it is, and is what `other` is.

    `other` stays as it was.
    """
    import torch

    alias = torch.nn.Parameter(other, requires_grad=tensor.requires_grad)
    torch.utils.swap_tensors(tensor, alias)  # type: ignore[no-untyped-call]


def _pinned(tensor: Any) -> torch.Tensor:
    """The same weights over memory that a device can read while it computes: each of the tensors inside, by itself."""
    names, context = tensor.__tensor_flatten__()
    inner = {name: getattr(tensor, name).pin_memory() for name in names}
    made: torch.Tensor = type(tensor).__tensor_unflatten__(inner, context, tensor.size(), tensor.stride())
    return made


def _is_pinned(tensor: Any) -> bool:
    return all(getattr(tensor, name).is_pinned() for name in tensor.__tensor_flatten__()[0])


@functools.cache
def _library() -> torch.library.Library:
    """The handle that keeps replaced kernels in place: torch takes them back when it goes."""
    import torch

    return torch.library.Library("quanto", "IMPL")  # type: ignore[no-untyped-call]
