"""What diffpipe uses of torch beyond its documentation. Tried with torch 2.13.0."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial, wraps
from importlib.util import module_from_spec, spec_from_loader
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from .seam import Seam

if TYPE_CHECKING:
    import torch

DYNAMO = "torch._dynamo"  # torch's compiler front end: 1,100 modules, of which an uncompiled pipeline runs none
DEFERRED = ("2.13.",)  # versions of torch whose torch._dynamo may wait
MARKS = ("allow_in_graph", "assume_constant_result")  # its decorators that note something of a function
HIGHER_ORDER = f"{DYNAMO}._trace_wrapped_higher_order_op"

COMPILER = Seam(
    "torch",
    "torch._dynamo",
    buys="0.9 s of a cold start: the compiler is imported when anything of it is to run",
    without="the compiler is imported at each start, which takes 0.9 s more",
    file="torch/_dynamo/__init__.py",
    text="allow_in_graph,",
    versions=DEFERRED,
)
CPP_COMPILER = Seam(
    "torch",
    "torch._inductor.cpp_builder.get_cpp_compiler",
    buys="--compile is refused at the build where there is no C++ compiler",
    without="it fails at the first call",
    file="torch/_inductor/cpp_builder.py",
    text="def get_cpp_compiler() -> str:",
)
BARE_LINEAR = Seam(
    "torch",
    "nn.modules.linear.NonDynamicallyQuantizableLinear",
    buys="layers whose weights their parent reads, and that are never called, are not quantized",
    without="models with torch's own multi-head attention fail when they are quantized",
    file="torch/nn/modules/linear.py",
    text="class NonDynamicallyQuantizableLinear(Linear):",
)
INTERFACE = Seam(
    "torch",
    "torch._dynamo.device_interface.get_interface_for_device",
    buys="--compile is refused at the build for a device that torch compiles nothing for, or only with triton",
    without="it fails at the first call",
    file="torch/_dynamo/device_interface.py",
    text="def get_interface_for_device(",
)
DISPATCH_KEYS = Seam(
    "torch",
    "torch._C._dispatch_key_for_device",
    buys="quanto's products are computed in the same order on every device",
    without="quanto's own kernels are taken on a device that is not the CPU: int8 and fp8 give other results there",
    file="torch/library.py",
    text="torch._C._dispatch_key_for_device(",
)
PINNING = Seam(
    "torch",
    "torch._C._accelerator_setAllocatorSettings",
    buys="weights that are offloaded in groups take no more host memory than they have bytes",
    without="they take 1.4 to 1.6 times as much where they are streamed, more than a plan says",
    file="torch/cuda/memory.py",
    text="return torch._C._accelerator_setAllocatorSettings(env)",
)
SEAMS = (COMPILER, CPP_COMPILER, BARE_LINEAR, INTERFACE, DISPATCH_KEYS, PINNING)
# What is larger is not kept, and so not rounded (ATen/core/CachingHostAllocator.h).
PINNED = "pinned_max_cached_size_mb:1"


def has_cpp_compiler() -> bool:
    """Whether torch finds a C++ compiler, which compiled code for the CPU needs; True where it cannot be asked."""
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler
    except ImportError:
        return True
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def needs_triton(device: str) -> bool | None:
    """Whether torch compiles for a device with triton, and None where it compiles nothing for it."""
    try:
        from torch._dynamo.device_interface import DeviceInterface, get_interface_for_device
    except ImportError:
        return False
    try:
        interface = get_interface_for_device(device.partition(":")[0])
    except NotImplementedError:
        return None
    return interface.is_triton_capable is not DeviceInterface.is_triton_capable


def takes_triton(device: str) -> bool:
    """Whether a device for which torch compiles with triton is one that triton compiles for."""
    from torch._dynamo.device_interface import get_interface_for_device

    return bool(get_interface_for_device(device.partition(":")[0]).is_triton_capable(device))


def pin_no_more_than_needed() -> None:
    """Have pinned memory take as many bytes as are asked for: torch rounds each allocation that it would keep for later
    up to a power of two, which makes weights 1.4 to 1.6 times as large. What the user set of it stays."""
    import torch

    change = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
    said = str(getattr(torch._C, "_accelerator_getAllocatorSettings", str)())
    if change is not None and "pinned_max" not in said:
        with suppress(RuntimeError, ValueError):  # a device whose allocator has no such setting
            change(",".join(filter(None, [said, PINNED])))


def is_only_read(layer: torch.nn.Module) -> bool:
    """Whether a Linear is one whose weight its parent reads and that is never called itself."""
    from torch.nn.modules import linear

    return isinstance(layer, getattr(linear, "NonDynamicallyQuantizableLinear", ()))


def dispatch_keys() -> tuple[str, ...]:
    """Where torch looks for an operator's kernel, by its dispatcher's names: of the CPU, of the accelerator that torch
    was built for (which need not be there), and of all others."""
    import torch

    accelerator = torch.accelerator.current_accelerator()
    kinds = ("cpu",) if accelerator is None else ("cpu", accelerator.type)
    key_of = getattr(torch._C, "_dispatch_key_for_device", None)
    return ("CompositeExplicitAutograd", *(map(key_of, kinds) if key_of else ["CPU"]))


# --- The compiler, imported when it is needed ---


def defer_compiler() -> None:
    """Put a stand-in in the place of torch's compiler, where torch's version is one that this was tried with."""
    import torch

    if DYNAMO not in sys.modules and str(torch.__version__).startswith(DEFERRED):
        _stand_in(HIGHER_ORDER, "TransformGetItemToIndex")
        _Compiler().stand_in()


def _stand_in(name: str, *functions: str) -> None:
    """A module in whose place some of its functions stand, until one is called or anything else is asked for."""
    module = ModuleType(name)

    def real() -> ModuleType:
        if sys.modules.get(name) is module:
            del sys.modules[name]
        return importlib.import_module(name)

    def look_up(attribute: str) -> object:
        if attribute.startswith("__"):
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}")
        found: object = getattr(real(), attribute)
        return found

    def late(function: str) -> Callable[..., object]:
        return lambda *args, **kwargs: getattr(real(), function)(*args, **kwargs)

    vars(module).update({function: late(function) for function in functions}, __getattr__=look_up)
    sys.modules[name] = module


class _Compiler(importlib.abc.MetaPathFinder):
    """torch._dynamo before any of it runs: it has what libraries use of it as they are imported and load models, and
    becomes the package itself when anything else of it is asked for.
    """

    def __init__(self) -> None:
        self.module = module_from_spec(_found(DYNAMO))
        marks = {name: partial(self.mark, name) for name in MARKS}
        self.own = {**marks, "disable": self.disable, "eval_frame": self.frames()}
        self.marked: list[tuple[str, object]] = []
        self.lock, self.waiting = threading.RLock(), True

    def stand_in(self) -> None:
        vars(self.module).update(self.own, __getattr__=self.look_up)
        sys.modules[DYNAMO] = self.module
        sys.meta_path.insert(0, self)

    def mark(self, how: str, function: object) -> object:
        """What is marked before there is a compiler is marked when there is one."""
        self.marked.append((how, function))
        return function

    def frames(self) -> ModuleType:
        """torch._dynamo.eval_frame, of which diffusers asks whether modules are compiled: none is yet."""
        module, none = ModuleType(f"{DYNAMO}.eval_frame"), type("OptimizedModule", (), {})

        def look_up(name: str) -> object:
            if name == none.__name__ and self.waiting:
                return none
            found: object = getattr(self.look_up("eval_frame"), name)
            return found

        vars(module)["__getattr__"] = look_up
        return module

    def disable(self, function: Callable[..., object] | None = None, *how: Any, **options: Any) -> object:
        """Keep the compiler out of a function, which matters once there is one."""
        if function is None:
            return lambda function: self.disable(function, *how, **options)

        @wraps(function)
        def wrapper(*args: object, **kwargs: object) -> object:
            called = function if self.waiting else self.module.disable(function, *how, **options)
            return called(*args, **kwargs)

        return wrapper

    def look_up(self, name: str) -> object:
        if not name.startswith("__"):
            self.become()
        if name in vars(self.module):
            return vars(self.module)[name]
        raise AttributeError(f"module {DYNAMO!r} has no attribute {name!r}")

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Nothing: a module of the package is found as usual once the package is there, which may have imported it."""
        if not fullname.startswith(f"{DYNAMO}."):
            return None
        self.become()
        if module := sys.modules.get(fullname):
            vars(module)["__spec__"] = spec_from_loader(fullname, _Present(module))  # importlib goes by this alone
            return module.__spec__
        return None

    def become(self) -> None:
        """Import the package in this module's place."""
        with self.lock:
            if not self.waiting:
                return
            self.waiting = False
            sys.meta_path.remove(self)
            sys.modules.pop(HIGHER_ORDER, None)
            for name in self.own:
                del vars(self.module)[name]
            try:
                cast(importlib.abc.Loader, _found(DYNAMO).loader).exec_module(self.module)
            except BaseException:
                del sys.modules[DYNAMO]
                raise
            if vars(self.module).get("__getattr__") == self.look_up:
                del vars(self.module)["__getattr__"]
            for how, function in self.marked:
                getattr(self.module, how)(function)


def _found(name: str) -> importlib.machinery.ModuleSpec:
    spec = importlib.machinery.PathFinder.find_spec(name, importlib.import_module(name.rpartition(".")[0]).__path__)
    assert spec
    return spec


class _Present(importlib.abc.Loader):
    """Gives a module that was imported on the way to itself."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__spec__"] = self.spec
