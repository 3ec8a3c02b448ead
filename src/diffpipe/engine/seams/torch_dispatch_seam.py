"""How every operation of torch is seen as it runs: what a trace of memory stands on. Tried with torch 2.13.0."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeAlias

from .seam import Seam

if TYPE_CHECKING:
    import torch

    Operation: TypeAlias = torch._ops.OpOverload

WITHOUT = "plan --trace fails; plan without it is as before"
MODES = Seam(
    "torch",
    "torch.utils._python_dispatch.TorchDispatchMode",
    buys="plan --trace: the operations of a run are seen, and take neither weights nor arithmetic",
    without=WITHOUT,
    file="torch/utils/_python_dispatch.py",
    text="class TorchDispatchMode:",
)
TREES = Seam(
    "torch",
    "torch.utils._pytree",
    buys="plan --trace: the tensors among an operation's arguments and results",
    without=WITHOUT,
    file="torch/utils/_pytree.py",
    text="def tree_iter(",
)
SCHEMAS = Seam(
    "torch",
    "OpOverload._schema",
    buys="plan --trace: which of its arguments an operation writes to, or makes views of",
    without=WITHOUT,
    file="torch/_ops.py",
    text="self._schema = schema",
)
SEAMS = (MODES, TREES, SCHEMAS)

Arguments: TypeAlias = tuple[Any, ...]
Keywords: TypeAlias = Mapping[str, Any]


def seen_by(handle: Callable[[Operation, Arguments, Keywords], object]) -> AbstractContextManager[object]:
    """While it is entered, `handle` gets every operation on tensors in the place of torch's own kernels."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Operation, types: object, args: Arguments = (), kwargs: Keywords | None = None
        ) -> object:
            return handle(func, args, kwargs or {})

    return Seen()  # type: ignore[no-untyped-call]


def tensors_of(*values: object) -> Iterator[torch.Tensor]:
    """The tensors in nested lists, tuples and dictionaries."""
    import torch
    from torch.utils._pytree import tree_iter

    return (one for one in tree_iter(values) if isinstance(one, torch.Tensor))


def with_tensors(change: Callable[[torch.Tensor], object], value: Any) -> Any:
    """A nested value with each tensor changed."""
    import torch
    from torch.utils._pytree import tree_map

    return tree_map(lambda one: change(one) if isinstance(one, torch.Tensor) else one, value)


def written(operation: Operation, args: Arguments, kwargs: Keywords) -> list[torch.Tensor]:
    """Of the tensors that an operation is given, those that it writes to."""
    found: list[object] = []
    for number, argument in enumerate(operation._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(args[number] if number < len(args) else kwargs.get(argument.name))
    return list(tensors_of(found))


def aliases(operation: Operation) -> bool:
    """Whether an operation writes to what it is given, or makes views of it."""
    schema = operation._schema
    return any(one.alias_info is not None for one in (*schema.arguments, *schema.returns))
