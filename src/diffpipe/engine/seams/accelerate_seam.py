"""What diffpipe uses of accelerate beyond its documentation. Tried with accelerate 1.15.0."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .seam import Seam

if TYPE_CHECKING:
    import torch

HOOK = Seam(
    "accelerate",
    "module._hf_hook",
    buys="calls of an offloaded pipeline run side by side: each component comes to the device once for all of them; "
    "what a call left on the device of one that is offloaded layer by layer, or in a way of its own, goes from it",
    without="requests of an offloaded pipeline run one after another; what a call left stays until the next",
    file="accelerate/hooks.py",
    text="module._hf_hook = hook",
)
SEAMS = (HOOK,)

PreForward = Callable[..., Any]  # takes (module, *args, **kwargs), returns the arguments of forward


@contextmanager
def gated(parts: Mapping[str, torch.nn.Module], gate: Callable[[str, PreForward], PreForward]) -> Iterator[None]:
    """Put `gate(name, pre_forward)` in the place of each part's hook's `pre_forward`, which brings it to its device."""
    hooks: dict[str, Any] = {name: part._hf_hook for name, part in parts.items() if hasattr(part, "_hf_hook")}
    for name, hook in hooks.items():
        hook.pre_forward = gate(name, hook.pre_forward)
    try:
        yield
    finally:
        for hook in hooks.values():
            del hook.pre_forward


def offload(model: torch.nn.Module) -> None:
    """Take from the device what a call left there of a model that comes to it whole, or layer by layer."""
    from accelerate.hooks import CpuOffload

    for module in model.modules():
        hook: Any = getattr(module, "_hf_hook", None)
        whole = isinstance(hook, CpuOffload)
        if hook is None or not is_there(module, recurse=whole):
            continue
        if whole:
            hook.init_hook(module)
        else:
            hook.post_forward(module, None)


def is_there(module: torch.nn.Module, *, recurse: bool = True) -> bool:
    """Whether weights of a module are on a device."""
    return any(weight.device.type not in ("cpu", "meta") for weight in module.parameters(recurse))
