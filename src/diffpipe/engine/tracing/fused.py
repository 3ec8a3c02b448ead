"""What fused kernels hold, where torch would break their operation up for a device that it does not know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    *_: Any,
    **__: Any,
) -> torch.Tensor:
    """SDPA's fused kernels: the result, laid out as (batch, tokens, heads, width), and a mask of truths as numbers.

    The attention matrix is never held (github.com/Dao-AILab/flash-attention).
    """
    import torch

    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.empty(attn_mask.shape, dtype=query.dtype, device=query.device)
    shape = (*query.shape[:-1], value.shape[-1])
    if query.dim() != 4:
        return torch.empty(shape, dtype=query.dtype, device=query.device)
    batch, heads, tokens, width = shape
    made = torch.empty((batch, tokens, heads, width), dtype=query.dtype, device=query.device)
    return made.transpose(1, 2)


def rms_norm(value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """The result, and a number for each row that is kept until it is there: nothing between is held."""
    import torch

    made = torch.empty_like(value)
    torch.empty((*value.shape[:-1], 1), dtype=torch.float32, device=value.device)
    return made


def fused() -> AbstractContextManager[object]:
    """While it is entered, tensors of the meta device are handled so."""
    import torch
    from torch.overrides import TorchFunctionMode

    functions: Mapping[object, Callable[..., torch.Tensor]] = {
        torch.nn.functional.scaled_dot_product_attention: attention,
        torch.nn.functional.rms_norm: rms_norm,
        torch.rms_norm: rms_norm,
    }

    class Fused(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
        ) -> Any:
            kwargs = kwargs or {}
            instead = functions.get(func)
            first = args[0] if args else kwargs.get("query")
            if instead is not None and isinstance(first, torch.Tensor) and first.device.type == "meta":
                return instead(*args, **kwargs)
            return func(*args, **kwargs)

    return Fused()
