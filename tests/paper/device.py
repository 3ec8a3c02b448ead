"""An accelerator made of paper: a torch device "paper" without hardware, to test code that places tensors.

`install()` makes "paper:0" a device like "cuda:0": modules and pipelines move there, kernels refuse to mix its tensors
with those of the CPU, its memory is counted and may run out. What it computes is what the CPU computes, bit for bit.

How it works, without a line of C++:

- A paper tensor is a plain torch.Tensor (no subclass, so that every `type(x) is Tensor` holds as on a GPU). Its storage
  says device "paper:0", and its pointer is to a CPU storage that this module keeps. DLPack makes it: torch reads the
  device type kDLExtDev as PrivateUse1, the slot for devices from outside. A weak reference to the storage tells when it
  died, so the bytes are counted by storage, as an allocator counts them: views and aliases are free.
- A dispatcher fallback for PrivateUse1 gets every operation that such a tensor takes part in, after torch has broken it
  up as it does for a GPU. It runs it on CPU tensors over the same memory and wraps what is new. Being the dispatcher's,
  it is there in all threads and needs no mode.

What it cannot show: kernels of a GPU (their rounding, workspaces, supported dtypes), the caching allocator's fragments,
and anything asynchronous: copies and kernels are over when they return, streams and events do nothing.
Generators of its own ("paper") are not there either: torch lets Python register none. Draws without a generator come
from a stream of the device's own, as on a GPU; a CPU generator is refused for tensors of the device, as on a GPU.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import json
import math
import os
import types
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import backend_registration

NAME = "paper"
DEVICE = "paper:0"
TOTAL = 1 << 40  # bytes of the device's memory unless a limit is set
# Variables of a process: how many bytes its device has, and the file that gets a line about it at the process's end.
LIMIT, REPORT = "PAPER_MEMORY", "PAPER_REPORT"
OTHER_NOISE = 0x9E3779B9  # the device's noise is not the CPU's for the same seed, as it is not on a GPU
EXTENSION_DEVICE = 12  # kDLExtDev of dlpack.h, PrivateUse1 in torch

aten = torch.ops.aten
# Operations that may take tensors of both: copies, and indices, which CUDA takes from the CPU, too.
CROSSING = {"_copy_from", "index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
# Operations whose 0-dimensional CPU tensors CUDA refuses (elsewhere they count as numbers).
STRICT = {"embedding", "index_select", "gather", "scatter", "cat"}
# Operations that torch would break up for a device it does not know, while the CPU and CUDA have kernels of their own:
# they get kernels here: results are the CPU's to the bit, and no attention matrix is counted that SDPA never has.
WHOLE = (
    "aten::scaled_dot_product_attention", "aten::native_group_norm", "aten::native_layer_norm", "aten::_fused_rms_norm",
    "aten::silu", "aten::gelu", "aten::std", "aten::var",
)  # fmt: skip

# What autocast does in its lower precision.
LOWERED = ("linear", "matmul", "bmm", "mm", "addmm", "baddbmm", "convolution", "scaled_dot_product_attention")


# What is on the device


@dataclass
class Memory:
    """The device's memory. `granule`: what an allocation is rounded up to (512 for CUDA's own rounding)."""

    size: int = TOTAL
    granule: int = 1
    now: int = 0
    peak: int = 0
    refused: int = 0
    storages: dict[int, tuple[torch.UntypedStorage, int]] = field(default_factory=dict)  # address -> CPU storage, bytes

    @property
    def limit(self) -> int:
        """Bytes there are in all: what a test set here or in the environment of its process, else a lot."""
        return int(os.environ.get(LIMIT, self.size)) if self.size == TOTAL else self.size

    def take(self, storage: torch.UntypedStorage) -> None:
        """Count a new storage. Raises torch.OutOfMemoryError when it does not fit."""
        size = -(-storage.nbytes() // self.granule) * self.granule
        self.check(size)
        self.storages[storage.data_ptr()] = storage, size
        self.now += size
        self.peak = max(self.peak, self.now)

    def check(self, size: int) -> None:
        if self.now + size > self.limit:
            self.refused += 1
            free = self.limit - self.now
            raise torch.OutOfMemoryError(f"{NAME} out of memory. Tried to allocate {size} bytes, {free} bytes free.")

    def give_back(self, address: int) -> None:
        self.now -= self.storages.pop(address)[1]


@dataclass
class Traffic:
    """Copies between host and device: bytes, and how often, by direction ("to", "from", "within") and tensor."""

    size: Counter[str] = field(default_factory=Counter)
    count: Counter[str] = field(default_factory=Counter)
    tensors: Counter[tuple[str, str, tuple[int, ...]]] = field(default_factory=Counter)
    reads: int = 0  # single numbers that the host waited for: item(), bool(), int()

    def add(self, way: str, tensor: torch.Tensor) -> None:
        self.size[way] += tensor.numel() * tensor.element_size()
        self.count[way] += 1
        self.tensors[way, str(tensor.dtype), tuple(tensor.shape)] += 1

    def clear(self) -> None:
        self.size.clear(), self.count.clear(), self.tensors.clear()
        self.reads = 0


memory = Memory()
traffic = Traffic()
operations: Counter[str] = Counter()
_noise = torch.Generator("cpu")
_pinned: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()


def is_paper(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == NAME


# Tensors


class _DLDevice(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int32), ("index", ctypes.c_int32)]


class _DLManaged(ctypes.Structure):
    """DLManagedTensor of dlpack.h."""


_DLManaged._fields_ = [
    ("data", ctypes.c_void_p), ("device", _DLDevice), ("dimensions", ctypes.c_int32), ("dtype", ctypes.c_uint32),
    ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)), ("offset", ctypes.c_uint64),
    ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p),
]  # fmt: skip
_libc = ctypes.CDLL(None)
_libc.malloc.restype, _libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
_free = ctypes.cast(_libc.free, ctypes.c_void_p).value  # the deleter: C, as it may run while an exception is raised
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype, _new_capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


@functools.cache
def _dlpack_type(dtype: torch.dtype) -> int:
    """A dtype as DLPack has it: code, bits and lanes in 4 bytes."""
    capsule = torch.utils.dlpack.to_dlpack(torch.zeros(1, dtype=dtype, device="cpu"))
    return int(ctypes.cast(_capsule_pointer(capsule, b"dltensor"), ctypes.POINTER(_DLManaged)).contents.dtype)


def _flat(storage: torch.UntypedStorage, dtype: torch.dtype, of: torch.Tensor | None = None) -> torch.Tensor:
    """A paper tensor over a whole CPU storage. `of`: the paper tensor whose memory that is already, None for new."""
    shape = (ctypes.c_int64 * 1)(storage.nbytes() // dtype.itemsize)
    address = _libc.malloc(ctypes.sizeof(_DLManaged))
    managed = _DLManaged.from_address(address)
    managed.data, managed.device, managed.dimensions = storage.data_ptr(), _DLDevice(EXTENSION_DEVICE, 0), 1
    managed.dtype, managed.shape, managed.deleter = _dlpack_type(dtype), shape, _free
    managed.strides, managed.offset, managed.context = None, 0, None
    if of is None and storage.nbytes():
        memory.take(storage)
    made = torch._C._from_dlpack(_new_capsule(address, b"dltensor", None))
    held = made.untyped_storage()  # torch keeps this object as long as the storage itself lives
    if of is not None:
        weakref.finalize(held, _let_go, of).atexit = False
    elif storage.nbytes():
        weakref.finalize(held, memory.give_back, storage.data_ptr()).atexit = False
    return made  # type: ignore[no-any-return]


def _let_go(_tensor: torch.Tensor) -> None:
    """An alias is gone that kept a tensor alive."""


def _view(base: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A tensor over the memory of `base`, laid out as `like` is."""
    offset = like.storage_offset() - base.storage_offset()
    return torch._C._dynamo.guards._reinterpret_tensor(base, like.size(), like.stride(), offset)  # type: ignore[no-any-return]


def on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """A CPU tensor over the same memory."""
    found = memory.storages.get(tensor.untyped_storage().data_ptr())
    empty = torch.empty(0, dtype=tensor.dtype, device="cpu")
    if found is None:  # nothing is in it
        return empty.new_empty(tensor.shape)
    return empty.set_(found[0], tensor.storage_offset(), tensor.size(), tensor.stride())


def wrapped(tensor: torch.Tensor, others: list[torch.Tensor]) -> torch.Tensor:
    """A CPU tensor's memory as a tensor of the device: a view of one of `others` if it is the same, else new."""
    tensor = tensor.resolve_conj().resolve_neg()
    storage = tensor.untyped_storage()
    owner = next((t for t in others if t.untyped_storage().data_ptr() == storage.data_ptr() and storage.nbytes()), None)
    if owner is not None and owner.dtype == tensor.dtype:
        return _view(owner, tensor)
    return _view(_flat(storage, tensor.dtype, owner), tensor)


# Operations


def tree_map(change: Callable[[Any], Any], value: Any) -> Any:
    """As torch's own, of what operations take and return: a tenth of its time."""
    kind = type(value)
    if kind is tuple or kind is list:
        return kind([tree_map(change, one) for one in value])
    if kind is dict:
        return {name: tree_map(change, one) for name, one in value.items()}
    return change(value)


def _tensors(value: Any, found: list[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors in what an operation takes, added to those that were found."""
    if isinstance(value, torch.Tensor):
        found.append(value)
    elif isinstance(value, tuple | list):
        for one in value:
            _tensors(one, found)
    return found


@functools.cache
def _takes(op: Any) -> tuple[list[bool], bool]:
    """Which arguments of an operation are tensors, by place, and whether it draws from a generator."""
    drawn = torch.Tag.nondeterministic_seeded in op.tags
    arguments = op._schema.arguments
    return [str(one.type) == "Tensor" for one in arguments], drawn and any(one.name == "generator" for one in arguments)


def run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """The dispatcher's fallback: an operation on tensors of the device, done by the CPU."""
    name = op._schema.name.partition("::")[2]
    given = _tensors((args, tuple(kwargs.values())), [])
    ours = [tensor for tensor in given if is_paper(tensor)]
    operations[name] += 1
    _check_devices(op, name, given, ours)
    twins = {id(tensor): on_cpu(tensor) for tensor in ours}
    back = {id(twin): tensor for tensor in ours for twin in (twins[id(tensor)],)}

    def lowered(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return twins.get(id(value), value)
        return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value

    args_, kwargs_ = tree_map(lowered, (_numbers_as_tensors(op, args), kwargs))
    if kwargs_.get("pin_memory"):
        kwargs_["pin_memory"] = False
    if _takes(op)[1]:
        kwargs_["generator"] = _generator(kwargs.get("generator"))
    if name in ("empty", "empty_strided"):  # before the host has to find the memory
        _check_empty(op, args_, kwargs_)
    if name == "_local_scalar_dense":
        traffic.reads += 1
    if name == "_copy_from":  # what copy_ comes to
        return _copied(args, args_)
    made = op(*args_, **kwargs_)

    def lifted(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.device.type != "cpu":
            return value
        known = back.get(id(value))
        if known is None:
            return wrapped(value, ours)
        if known.shape != value.shape or known.stride() != value.stride():  # it was changed in place
            known.data = wrapped(value, ours)
        return known

    if name in ("is_pinned", "_local_scalar_dense"):
        return made
    return tree_map(lifted, made)


def _numbers_as_tensors(op: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Numbers come as numbers where an operation takes tensors, which some operations refuse to take back."""
    kinds = {bool: torch.bool, int: torch.int64, float: torch.get_default_dtype(), complex: torch.complex64}
    return tuple(
        torch.scalar_tensor(value, dtype=kinds[type(value)], device="cpu")
        if is_tensor and type(value) in kinds
        else value
        for value, is_tensor in zip(args, _takes(op)[0], strict=False)
    )


def _check_devices(op: Any, name: str, given: list[torch.Tensor], ours: list[torch.Tensor]) -> None:
    if name in CROSSING or len(given) == len(ours) or not ours:
        return
    for tensor in given:
        number = tensor.dim() == 0 and tensor.device.type == "cpu" and name not in STRICT
        if not is_paper(tensor) and not number:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{DEVICE} and {tensor.device}! ({op}: {[(str(t.device), tuple(t.shape)) for t in given]})"
            )


def _check_empty(op: Any, args: Any, kwargs: Any) -> None:
    dtype = kwargs.get("dtype") or torch.get_default_dtype()
    memory.check(math.prod(args[0]) * dtype.itemsize)


def _generator(given: Any) -> torch.Generator:
    if given is not None and given is not _noise:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found '{given.device.type}'")
    return _noise


def _copied(args: Any, lowered: Any) -> torch.Tensor:
    source, into = args[:2]
    traffic.add("within" if is_paper(source) and is_paper(into) else "to" if is_paper(into) else "from", source)
    lowered[1].copy_(lowered[0].conj() if source.is_conj() and is_paper(source) else lowered[0])
    return into  # type: ignore[no-any-return]


def _convolution(input: Any, weight: Any, bias: Any, *rest: Any) -> Any:
    return run(aten.convolution.default, input, weight, bias, *rest)


def _autocast(op: Any, *args: Any, **kwargs: Any) -> Any:
    dtype = torch.get_autocast_dtype(NAME)

    def cast(value: Any) -> Any:
        return value.to(dtype) if is_paper(value) and value.dtype == torch.float32 else value

    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
        return op(*tree_map(cast, args), **tree_map(cast, kwargs))


def _pin_memory(tensor: torch.Tensor, device: Any = None) -> torch.Tensor:
    pinned = torch.empty_like(tensor, device="cpu").copy_(tensor)
    _pinned.add(pinned.untyped_storage())
    return pinned


def _is_pinned(tensor: torch.Tensor, device: Any = None) -> bool:
    return tensor.untyped_storage() in _pinned


def _record_stream(tensor: Any, stream: Any) -> None:
    """Nothing is asynchronous here."""


# torch.paper


class Stream:
    """A stream on which everything is over when it returns. Event is the same."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None: ...

    @property
    def device(self) -> torch.device:
        return torch.device(NAME, 0)

    def nothing(self, *_args: Any, **_kwargs: Any) -> None: ...

    synchronize = wait_stream = wait_event = wait = record = nothing

    def query(self) -> bool:
        return True

    def elapsed_time(self, _other: Any) -> float:
        return 0.0

    def record_event(self, event: Any = None) -> Any:
        return event or Stream()


_stream = Stream()


def _module() -> types.ModuleType:
    """torch.paper, after torch.cuda."""
    module = types.ModuleType(f"torch.{NAME}")

    def reset_peak(_device: Any = None) -> None:
        memory.peak = memory.now

    def seed(number: int) -> None:
        _noise.manual_seed(number ^ OTHER_NOISE)

    def state(_device: Any = None) -> torch.Tensor:
        return _noise.get_state()

    def set_state(new: torch.Tensor, _device: Any = None) -> None:
        _noise.set_state(new)

    @contextlib.contextmanager
    def within(*_args: Any) -> Iterator[None]:
        yield

    def nothing(*_args: Any, **_kwargs: Any) -> None: ...

    def properties(_device: Any = None) -> Any:
        return types.SimpleNamespace(name="Paper", total_memory=memory.limit, major=0, minor=0, multi_processor_count=1)

    vars(module).update(
        Stream=Stream, Event=Stream, is_available=lambda: True, is_initialized=lambda: True, init=nothing,
        device_count=lambda: 1, current_device=lambda: 0, set_device=nothing, get_device_name=lambda _=None: "Paper",
        get_device_properties=properties, get_device_capability=lambda _=None: (0, 0), synchronize=nothing,
        empty_cache=nothing, ipc_collect=nothing, mem_get_info=lambda _=None: (memory.limit - memory.now, memory.limit),
        memory_allocated=lambda _=None: memory.now, max_memory_allocated=lambda _=None: memory.peak,
        memory_reserved=lambda _=None: memory.now, max_memory_reserved=lambda _=None: memory.peak,
        reset_peak_memory_stats=reset_peak, reset_max_memory_allocated=reset_peak, manual_seed=seed,
        manual_seed_all=seed, get_rng_state=state, set_rng_state=set_state, get_rng_state_all=lambda: [state()],
        set_rng_state_all=lambda states: set_state(states[0]), current_stream=lambda _=None: _stream,
        default_stream=lambda _=None: _stream, stream=within, device=within, _is_in_bad_fork=lambda: False,
        get_amp_supported_dtype=lambda: [torch.bfloat16, torch.float16], is_bf16_supported=lambda *_: True,
    )  # fmt: skip
    return module


_kept: list[Any] = []  # libraries, whose kernels go with them


@functools.cache
def install() -> None:
    """Make the device, once a process. Torch calls it where `site` is on the path (see conftest.py)."""
    atexit.register(report)
    import torch._dynamo  # it reads functions that are replaced here

    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_module())
    every, own = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    every.fallback(run, "PrivateUse1")
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in LOWERED:
        own.impl(name, functools.partial(_autocast, getattr(aten, name).default), "AutocastPrivateUse1")
    for name in WHOLE:
        for overload in getattr(aten, name.partition("::")[2]).overloads():
            op = getattr(getattr(aten, name.partition("::")[2]), overload)
            if "out" not in overload.split("_") and overload not in ("out", "grad_input"):
                full = name if overload == "default" else f"{name}.{overload}"
                own.impl(full.partition("::")[2], functools.partial(run, op), "PrivateUse1")
    own.impl("_copy_from", torch.library.fallthrough_kernel, "Conjugate")  # it does it itself
    own.impl("convolution_overrideable", _convolution, "PrivateUse1")
    own.impl("record_stream", _record_stream, "PrivateUse1")
    _kept.extend((every, own))
    own.impl("_pin_memory", _pin_memory, "CPU")
    own.impl("is_pinned", _is_pinned, "CPU")
    _plain_deepcopy = torch.Tensor.__deepcopy__

    def deepcopy(self: torch.Tensor, memo: dict[int, Any]) -> Any:
        """torch's own asks the device's allocator for a storage, and there is none to ask."""
        if type(self) is not torch.Tensor or not is_paper(self) or id(self) in memo:
            return _plain_deepcopy(self, memo)
        memo[id(self)] = copied = self.detach().clone(memory_format=torch.preserve_format)
        return copied.requires_grad_(self.requires_grad)

    _plain_data, _plain_compatible = torch.Tensor.data, torch._has_compatible_shallow_copy_type

    def set_data(self: torch.Tensor, new: torch.Tensor) -> None:
        """For `tensor.data = x` torch lets CUDA and the CPU take each other's place, but not devices from outside."""
        if is_paper(self) == is_paper(new):
            return _plain_data.__set__(self, new)
        other = new.detach().requires_grad_(self.requires_grad)
        return torch._C._swap_tensor_impl(self, other)  # as with CUDA, what Python hung on a subclass stays behind

    def compatible(one: torch.Tensor, other: torch.Tensor) -> bool:
        plain = all(type(tensor) in (torch.Tensor, torch.nn.Parameter) for tensor in (one, other))
        meta = "meta" in (one.device.type, other.device.type)
        return ((is_paper(one) or is_paper(other)) and plain and not meta) or _plain_compatible(one, other)

    torch.Tensor.data = property(_plain_data.__get__, set_data)
    torch._has_compatible_shallow_copy_type = compatible
    torch.Tensor.__deepcopy__ = deepcopy
    for name in ("empty_cache", "synchronize", "memory_allocated", "max_memory_allocated", "memory_reserved",
                 "max_memory_reserved", "reset_peak_memory_stats"):  # fmt: skip
        setattr(torch.accelerator, name, getattr(torch.get_device_module(NAME), name))


@contextlib.contextmanager
def limited(size: int) -> Iterator[None]:
    """The device has this many bytes, meanwhile."""
    before, memory.size = memory.size, size
    try:
        yield
    finally:
        memory.size = before


def report() -> None:
    """Append what the device of this process had to do to the file that the environment names, as a line of JSON."""
    if place := os.environ.get(REPORT):
        facts = {
            "now": memory.now, "peak": memory.peak, "refused": memory.refused, "operations": operations.total(),
            "moved": dict(traffic.size), "copies": dict(traffic.count), "reads": traffic.reads,
        }  # fmt: skip
        line = json.dumps(facts).encode() + b"\n"
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(descriptor, line)
        os.close(descriptor)
