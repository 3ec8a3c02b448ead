"""Linear layers with 8- or 4-bit weights, by optimum-quanto or torchao behind one interface.

Both libraries make a weight a tensor that knows how to multiply (a torch "wrapper subclass"), so a quantized module is
the module itself with other weights: nothing is swapped, and what holds of the module's class holds still.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Protocol, cast

from ...core import quantization
from ...core.errors import UsageError
from ...core.quantization import GROUP, INT4_ROWS, PACKAGES, group_size
from ..seams import torch_seam, torchao_seam
from . import kernels

if TYPE_CHECKING:
    import torch

    Quantize = Callable[[torch.Tensor, str], torch.Tensor]


class _Wrapper(Protocol):
    """A tensor that wraps others, as torch.compile has it: https://docs.pytorch.org/docs/main/torch.compiler_aot.html"""

    def __tensor_flatten__(self) -> tuple[list[str], object]: ...


@dataclass(frozen=True)
class Backend:
    """A library that quantizes: its package, how to install it, and a function from a weight to a quantized one.

    `modes` gives, per mode, "" or why the backend cannot take it. `unfit` says why a weight of (out, in) features
    cannot be quantized, "" if it can.
    """

    package: str
    install: str
    modes: Mapping[str, str]
    quantize: Quantize
    unfit: Callable[[int, int, str], str]
    prepare: Callable[[], None]


def quanto_weight(weight: torch.Tensor, mode: str) -> torch.Tensor:
    """A weight (out, in) as quanto's; each row, or group of a row in int4, has a scale of its own.

    Rows and groups without any spread have scale 0, which would divide 0 by 0: they get 1.
    """
    from optimum.quanto import AbsmaxOptimizer, MaxOptimizer, qfloat8, qint4, qint8, quantize_weight

    if mode == "int4":
        size = group_size(weight.shape[1])
        scale, shift = MaxOptimizer()(weight, qint4, 0, size)
        made: torch.Tensor = quantize_weight(weight, qint4, 0, _no_zeros(scale), shift, size, optimized=False)
    else:
        kind = {"fp8": qfloat8, "int8": qint8}[mode]
        made = quantize_weight(weight, kind, 0, _no_zeros(AbsmaxOptimizer()(weight, kind, 0)), optimized=False)
    return made


def _no_zeros(scale: torch.Tensor) -> torch.Tensor:
    return scale.masked_fill(scale == 0, 1)


def _quanto_unfit(rows: int, columns: int, mode: str) -> str:
    if mode != "int4":
        return ""
    size = group_size(columns)
    if size == GROUP and rows % INT4_ROWS:
        return f"int4 needs a multiple of {INT4_ROWS} outputs, it has {rows}"
    return f"int4 needs a multiple of 32 inputs, it has {columns}" if columns > GROUP and size is None else ""


def _torchao_weight(weight: torch.Tensor, mode: str) -> torch.Tensor:
    """A weight (out, in) as torchao's; rows of zeros, which its fp8 turns into NaN, are put right."""
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    layer = _layer(weight)
    quantize_(layer, {"fp8": Float8WeightOnlyConfig, "int8": Int8WeightOnlyConfig}[mode](set_inductor_config=False))
    if mode == "fp8":
        torchao_seam.mend_empty_rows(layer.weight)
    return layer.weight


def _layer(weight: torch.Tensor) -> torch.nn.Linear:
    """A Linear without bias that holds a weight."""
    import torch

    with torch.device("meta"):
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    return layer


BACKENDS: Mapping[str, Backend] = {
    "quanto": Backend(
        PACKAGES["quanto"],
        "pip install optimum-quanto",
        {"fp8": "", "int8": "", "int4": ""},
        quanto_weight,
        _quanto_unfit,
        lambda: kernels.use_plain_kernels(quanto_weight),
    ),
    "torchao": Backend(
        PACKAGES["torchao"],
        "pip install 'diffpipe[torchao]'",
        {"fp8": "", "int8": "", "int4": "each of its int4 formats is for one kind of accelerator"},
        _torchao_weight,
        lambda rows, columns, mode: "",
        lambda: None,
    ),
}
MODULES = {"optimum-quanto": "optimum.quanto", "torchao": "torchao"}  # package -> what is imported


def backend_for(name: str, mode: str) -> Backend:
    """The backend of a name, ready for a mode. Raises UsageError if it is not installed or cannot take the mode."""
    backend = BACKENDS[name]
    if backend.modes[mode]:
        others = " or ".join(mode for mode, reason in backend.modes.items() if not reason)
        raise UsageError(
            f"{name} has no {mode} that runs everywhere: {backend.modes[mode]}",
            f"choose {others}, or --quantize-backend quanto",
        )
    if not installed(backend):
        raise UsageError(f"{backend.package} is not installed", backend.install)
    backend.prepare()
    return backend


def installed(backend: Backend) -> bool:
    try:
        return importlib.util.find_spec(MODULES[backend.package]) is not None
    except ModuleNotFoundError:
        return False


def version(name: str) -> str:
    """The installed version of a backend's package."""
    return importlib.metadata.version(BACKENDS[name].package)


def choose(
    module: torch.nn.Module, mode: str, backend: str, exclude: Collection[str] = ()
) -> tuple[list[str], dict[str, str]]:
    """The names of the Linear layers that will be quantized, and those that will not with the reason.

    Convolutions, norms and embeddings are not Linear: they always keep their format. `exclude`: patterns of layer names
    (fnmatch) besides those that are left everywhere.
    """
    import torch

    taken = backend_for(backend, mode)
    users, dtype = _users(module), compute_dtype(module)
    wanted: list[str] = []
    left: dict[str, str] = {}
    for name, layer in module.named_modules():
        if not isinstance(layer, torch.nn.Linear) or torch_seam.is_only_read(layer):
            continue
        weight = layer.weight
        if quantization.left(name) or any(fnmatchcase(name, pattern) for pattern in exclude):
            left[name] = "excluded"
        elif weight.dtype != dtype:
            left[name] = f"kept in {str(weight.dtype).removeprefix('torch.')}"
        elif type(weight) is not torch.nn.Parameter:
            left[name] = f"quantized already ({type(weight).__name__})"
        elif users[id(weight)] > 1:
            left[name] = "shares its weight with another layer"
        elif reason := taken.unfit(layer.out_features, layer.in_features, mode):
            left[name] = reason
        else:
            wanted.append(name)
    return wanted, left


def compute_dtype(module: torch.nn.Module) -> torch.dtype:
    """The dtype of most of a module's parameters: the libraries keep some, where precision matters, in float32."""
    counts: dict[torch.dtype, int] = {}
    for parameter in module.parameters():
        counts[parameter.dtype] = counts.get(parameter.dtype, 0) + parameter.numel()
    return max(counts, key=counts.__getitem__)


def _users(module: torch.nn.Module) -> dict[int, int]:
    users: dict[int, int] = {}
    for _, parameter in module.named_parameters(remove_duplicate=False):
        users[id(parameter)] = users.get(id(parameter), 0) + 1
    return users


def quantize_module(module: torch.nn.Module, mode: str, backend: str, exclude: Collection[str] = ()) -> dict[str, str]:
    """Quantize a module in place, layer by layer, after any LoRA was fused: the other way round the LoRA is lost.

    Returns the Linear layers left alone, each with the reason. Raises UsageError as `backend_for` does.
    """
    wanted, left = choose(module, mode, backend, exclude)
    for name in wanted:
        layer = cast("torch.nn.Linear", module.get_submodule(name))
        layer.weight = frozen(quantized(layer.weight.detach(), mode, backend))
    return left


def quantized(weight: torch.Tensor, mode: str, backend: str) -> torch.Tensor:
    """A weight (out, in) quantized, as the tensor that stands in its place."""
    import torch

    with torch.no_grad():
        return BACKENDS[backend].quantize(weight, mode)


def frozen(tensor: torch.Tensor) -> torch.nn.Parameter:
    """A tensor as a parameter that is not trained."""
    import torch

    return torch.nn.Parameter(tensor, requires_grad=False)


@functools.cache
def template(rows: int, columns: int, dtype: torch.dtype, mode: str, backend: str) -> torch.Tensor:
    """What a weight of this shape becomes, on the meta device: its inner tensors' names, shapes and dtypes."""
    import torch

    return quantized(torch.empty((rows, columns), dtype=dtype, device="meta"), mode, backend)


def is_wrapper(tensor: torch.Tensor) -> bool:
    """Whether a tensor wraps others, as a quantized one does."""
    return hasattr(type(tensor), "__tensor_flatten__")


def inner_tensors(tensor: torch.Tensor, prefix: str) -> dict[str, torch.Tensor]:
    """The plain tensors that a quantized one wraps, by dotted name: "weight" -> "weight._data", "weight._scale"."""
    names, _ = cast(_Wrapper, tensor).__tensor_flatten__()
    found: dict[str, torch.Tensor] = {}
    for name in names:
        inner: torch.Tensor = getattr(tensor, name)
        at = f"{prefix}.{name}"
        found |= {at: inner} if _is_plain(inner) else inner_tensors(inner, at)
    return found


def wrap(like: torch.Tensor, tensors: Mapping[str, torch.Tensor], prefix: str) -> torch.Tensor:
    """The inverse of `inner_tensors`: the given tensors, not copied, wrapped as those of `like` are."""
    names, context = cast(_Wrapper, like).__tensor_flatten__()
    inner = {}
    for name in names:
        part, at = getattr(like, name), f"{prefix}.{name}"
        inner[name] = tensors[at] if _is_plain(part) else wrap(part, tensors, at)
    made: torch.Tensor = type(like).__tensor_unflatten__(inner, context, like.size(), like.stride())  # type: ignore[attr-defined]
    return made


def _is_plain(tensor: torch.Tensor) -> bool:
    import torch

    return type(tensor) in (torch.Tensor, torch.nn.Parameter)
