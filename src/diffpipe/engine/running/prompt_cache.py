"""Equal prompts are encoded once: what a pipeline's encode_prompt returned is kept and given again."""

from __future__ import annotations

import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Generic, NamedTuple, ParamSpec, TypeVar, cast

from ..seams import diffusers_seam

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

LARGEST = 64_000_000  # bytes of embeddings that are kept; FLUX.1's prompts take 4 MB each in bfloat16

P = ParamSpec("P")
T = TypeVar("T")


def install(pipe: DiffusionPipeline) -> None:
    """Give a pipeline with `encode_prompt` one that remembers. The results are the same to the bit.

    Settings of a call that a pipeline keeps in itself (guidance scale, CLIP layers to skip) distinguish calls, too.
    """
    encode = getattr(pipe, "encode_prompt", None)
    if inspect.ismethod(encode):
        pipe.encode_prompt = remembering(encode, lambda: _settings(pipe))


def _settings(pipe: DiffusionPipeline) -> list[tuple[str, object]]:
    kept = diffusers_seam.call_settings(pipe)
    return [(name, value) for name, value in sorted(kept.items()) if _key(value) is not None]


class _Kept(NamedTuple):
    """What was made, its tensors in host memory, and how many bytes it takes."""

    made: object
    size: int


class _OnHost(NamedTuple):
    """A copy of a tensor in host memory, and the device that the tensor was on."""

    tensor: torch.Tensor
    device: torch.device


class _Memory(Generic[T]):
    """What was made, by what it was made of, up to `largest` bytes. The least recently used are forgotten first.

    Whoever asks gets copies, so that they may be changed in place. What is kept is kept in host memory: a device's is
    for the pipeline, and nothing of a call stays there.
    """

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.kept: OrderedDict[Hashable, _Kept] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        return key in self.kept

    def get(self, key: Hashable) -> T:
        self.kept.move_to_end(key)
        return cast(T, _from_host(self.kept[key].made))

    def keep(self, key: Hashable, made: T) -> None:
        """Keep it unless there is anything in it that cannot be copied."""
        size = _bytes(made)
        if size is None:
            return
        self.kept[key] = _Kept(_to_host(made), size)
        while sum(kept.size for kept in self.kept.values()) > self.largest:
            self.kept.popitem(last=False)


def remembering(
    encode: Callable[P, T], settings: Callable[[], object] = tuple, largest: int = LARGEST
) -> Callable[P, T]:
    """A function of plain values (text, numbers, devices, dtypes) that returns what it did the last time.

    `settings`: what else the result depends on. Calls with anything else, such as pictures and tensors, go through.
    """
    memory: _Memory[T] = _Memory(largest)

    @functools.wraps(encode)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        key = _key([args, kwargs, settings()])
        if key is None:
            return encode(*args, **kwargs)
        if key in memory:
            return memory.get(key)
        made = encode(*args, **kwargs)
        memory.keep(key, made)
        return made

    return wrapper


def _key(value: object) -> Hashable | None:
    """A value as something hashable that equal values of equal types share; None for what is not plain."""
    import torch

    if isinstance(value, list | tuple | dict):
        keys = [_key(part) for part in (value.items() if isinstance(value, dict) else value)]
        return None if None in keys else (type(value).__name__, tuple(keys))
    plain = value is None or isinstance(value, str | bool | int | float | torch.device | torch.dtype)
    return (type(value).__name__, value) if plain else None


def _bytes(value: object) -> int | None:
    """The bytes of all tensors in lists and tuples; None where there is anything else than those and plain values."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.nelement() * value.element_size()
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        sizes = [_bytes(part) for part in value]
        return None if None in sizes else sum(size or 0 for size in sizes)
    return 0 if value is None or isinstance(value, str | bool | int | float) else None


def _to_host(value: object) -> object:
    """The same value with copies of its tensors."""
    import torch

    if isinstance(value, torch.Tensor):
        return _OnHost(value.to("cpu", copy=True), value.device)
    return type(value)(map(_to_host, value)) if isinstance(value, list | tuple) else value


def _from_host(value: object) -> object:
    """The inverse of `_to_host`, with new tensors."""
    if isinstance(value, _OnHost):
        return value.tensor.to(value.device, copy=True)
    return type(value)(map(_from_host, value)) if isinstance(value, list | tuple) else value
