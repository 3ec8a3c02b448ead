"""What operations on tensors without memory make, remembered by what they were given: blocks of a model repeat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ..seams.torch_dispatch_seam import Arguments, Keywords, aliases, tensors_of, with_tensors

if TYPE_CHECKING:
    import torch

    from ..seams.torch_dispatch_seam import Operation

Key: TypeAlias = tuple[object, ...]


class Results:
    """Runs operations on the meta device. Of those that neither write nor make views, each kind runs once.

    Many of torch's kernels for that device are written in Python, and take a hundred times what a tensor takes.
    """

    def __init__(self) -> None:
        self.known: dict[Key, Any] = {}
        self.pure: dict[Operation, bool] = {}

    def run(self, operation: Operation, args: Arguments, kwargs: Keywords) -> Any:
        """The operation's result: new tensors, or views of those given."""
        pure = self.pure.get(operation)
        if pure is None:
            pure = self.pure[operation] = not aliases(operation)
        key = (operation, _key(args), _key(kwargs)) if pure else ()
        try:
            found = self.known.get(key) if key else None
        except TypeError:  # an argument that cannot be a key
            key, found = (), None
        if found is not None:
            return _made(found)
        result = operation(*args, **kwargs)
        given = {one.untyped_storage() for one in tensors_of(args, kwargs)}
        if any(one.untyped_storage() in given for one in tensors_of(result)):  # aten._unsafe_view does not say so
            self.pure[operation] = False
        elif key:
            self.known[key] = with_tensors(_form, result)
        return result


class _Form(NamedTuple):
    """A tensor without its memory."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


def _form(tensor: torch.Tensor) -> _Form:
    return _Form(tuple(tensor.shape), tensor.stride(), tensor.dtype)


def _made(value: Any) -> Any:
    import torch

    if isinstance(value, _Form):
        return torch.empty_strided(value.shape, value.stride, dtype=value.dtype, device="meta")
    return type(value)(map(_made, value)) if isinstance(value, tuple | list) else value


def _key(value: Any) -> object:
    """What of an argument decides the form of a result. Numbers count by their kind: 1 and 1.0 make other dtypes."""
    import torch

    if isinstance(value, torch.Tensor):
        return (tuple(value.shape), value.stride(), value.dtype, value.device.type)
    if isinstance(value, tuple | list):
        return tuple(map(_key, value))
    if isinstance(value, dict):
        return tuple((name, _key(one)) for name, one in value.items())
    return (type(value), value)
