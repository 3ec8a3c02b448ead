"""Equal prompts are encoded once: what a pipeline's encode_prompt returned is kept and given again."""

from __future__ import annotations

import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

LARGEST = 64_000_000  # bytes of embeddings that are kept; FLUX.1's prompts take 4 MB each in bfloat16


# What a pipeline notes of its own progress: no part of what it is asked for.
PROGRESS = {"_num_timesteps", "_current_timestep", "_interrupt"}


def install(pipe: Any) -> None:
    """Give a pipeline with `encode_prompt` one that remembers. The results are the same to the bit.

    Settings of a call that a pipeline keeps in itself (guidance scale, CLIP layers to skip) tell calls apart, too.
    """
    encode = getattr(pipe, "encode_prompt", None)
    if inspect.ismethod(encode):
        pipe.encode_prompt = remembering(encode, lambda: _settings(pipe))


def _settings(pipe: Any) -> list[Any]:
    kept = {name: value for name, value in vars(pipe).items() if name.startswith("_") and name not in PROGRESS}
    return [(name, value) for name, value in sorted(kept.items()) if _key(value) is not None]


def remembering(
    encode: Callable[..., Any], settings: Callable[[], Any] = tuple, largest: int = LARGEST
) -> Callable[..., Any]:
    """A function of plain values (text, numbers, devices, dtypes) that returns what it did the last time.

    `settings`: what else the result depends on. Calls with anything else, such as pictures and tensors, go through.
    Every call gets copies, so that a pipeline may change them in place. The least recently used are forgotten first.
    """
    known: OrderedDict[Any, tuple[int, Any]] = OrderedDict()

    @functools.wraps(encode)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        key = _key([args, kwargs, settings()])
        if key is None:
            return encode(*args, **kwargs)
        if key in known:
            known.move_to_end(key)
            return _copy(known[key][1])
        made = encode(*args, **kwargs)
        size = _bytes(made)
        if size is not None:
            known[key] = size, _copy(made)
            while sum(size for size, _ in known.values()) > largest:
                known.popitem(last=False)
        return made

    return wrapper


def _key(value: Any) -> Any:
    """A value as something hashable that equal values of equal types share; None for what is not plain."""
    import torch

    if isinstance(value, list | tuple | dict):
        keys = [_key(part) for part in (value.items() if isinstance(value, dict) else value)]
        return None if None in keys else (type(value).__name__, tuple(keys))
    plain = value is None or isinstance(value, str | bool | int | float | torch.device | torch.dtype)
    return (type(value).__name__, value) if plain else None


def _bytes(value: Any) -> int | None:
    """The bytes of all tensors in lists and tuples; None where there is anything else than those and plain values."""
    if type(value) in (list, tuple):
        sizes = [_bytes(part) for part in value]
        return None if None in sizes else sum(size or 0 for size in sizes)
    if hasattr(value, "nelement"):
        return int(value.nelement() * value.element_size())
    return 0 if value is None or isinstance(value, str | bool | int | float) else None


def _copy(value: Any) -> Any:
    """The same value with tensors of its own."""
    if isinstance(value, list | tuple):
        return type(value)(_copy(part) for part in value)
    return value.clone() if hasattr(value, "clone") else value
