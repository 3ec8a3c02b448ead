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
    buys="calls of an offloaded pipeline run side by side: each component comes to the device once for all of them",
    without="requests of an offloaded pipeline run one after another",
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
