"""Numbers that are not finite, noticed where a decoder gets and gives them: made into pixels, they are plain black.

Diffusers clips infinity to black or white and casts NaN to black, so nothing can be seen of either in a picture.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple, ParamSpec, TypeAlias, TypeVar
from weakref import WeakSet

from ...core.components import kind_of
from ...core.errors import DiffpipeError
from ...core.flag import NOUNS, OutputKind

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

P = ParamSpec("P")
T = TypeVar("T")
Parts: TypeAlias = "Mapping[str, torch.nn.Module]"


class _Seen(NamedTuple):
    """Whether all that a component got, and all that it gave, was finite: numbers on its device, read when all is over,
    so that nothing waits for a GPU. None where it was no floating-point numbers. `dtype`: of its weights then."""

    given: torch.Tensor | None
    made: torch.Tensor | None
    dtype: torch.dtype | None


_calls: ContextVar[dict[str, _Seen] | None] = ContextVar("calls", default=None)
_watched: WeakSet[torch.nn.Module] = WeakSet()


@contextmanager
def finite_only(pipe: DiffusionPipeline, kind: OutputKind) -> Iterator[None]:
    """A call of a pipeline within it fails where what is decoded is not finite, once it is over.

    Raises DiffpipeError that says where the numbers came from, with what to build instead.
    """
    parts = _modules(pipe)
    _watch(parts)
    seen: dict[str, _Seen] = {}
    before = _calls.set(seen)
    try:
        yield
    finally:
        _calls.reset(before)
    for name, one in seen.items():
        if one.given is not None and not one.given:
            raise _not_finite(kind, *_denoiser(parts, name, one))
        if one.made is not None and not one.made:
            raise _not_finite(kind, name, one.dtype)


@contextmanager
def unwatched() -> Iterator[None]:
    """What is decoded within it, for a preview, decides nothing."""
    before = _calls.set(None)
    try:
        yield
    finally:
        _calls.reset(before)


def _modules(pipe: DiffusionPipeline) -> dict[str, torch.nn.Module]:
    import torch

    parts: Mapping[str, object] = getattr(pipe, "components", {})
    return {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module)}


def _watch(parts: Parts) -> None:
    """Have the decoders and vocoders tell of each call; in a pipeline of pixels, which has none, the denoisers."""
    decoders = {name: part for name, part in parts.items() if callable(getattr(part, "decode", None))}
    denoisers = {name: part for name, part in parts.items() if kind_of(name) == "denoiser" or "decoder" in name}
    vocoders = {name: part for name, part in parts.items() if "vocoder" in name}
    for name, part in decoders.items():
        if part not in _watched:
            _watched.add(part)
            setattr(part, "decode", _telling(name, part, getattr(part, "decode")))  # noqa: B009, B010
    for name, part in {**vocoders, **({} if decoders else denoisers)}.items():
        if part not in _watched:
            _watched.add(part)
            part.register_forward_hook(functools.partial(_after, name))


def _telling(name: str, part: torch.nn.Module, decode: Callable[P, T]) -> Callable[P, T]:
    @functools.wraps(decode)
    def decoded(*args: P.args, **kwargs: P.kwargs) -> T:
        made = decode(*args, **kwargs)
        _note(name, part, (*args, *kwargs.values()), made)
        return made

    return decoded


def _after(name: str, part: torch.nn.Module, _given: object, made: object) -> None:
    """What torch calls after a denoiser."""
    _note(name, part, None, made)


def _note(name: str, part: torch.nn.Module, given: object, made: object) -> None:
    seen = _calls.get()
    if seen is None:
        return
    before = seen.get(name, _Seen(None, None, None))
    dtype = next((one.dtype for one in part.parameters()), None)
    seen[name] = _Seen(_both(before.given, given), _both(before.made, made), dtype)


def _both(before: torch.Tensor | None, value: object) -> torch.Tensor | None:
    """Whether a value is finite, too."""
    tensor = _first(value)
    if tensor is None or not tensor.is_floating_point() or not tensor.numel():
        return before
    finite = _all_finite(tensor.detach())
    return finite if before is None else before & finite


def _all_finite(tensor: torch.Tensor) -> torch.Tensor:
    try:
        low, high = tensor.aminmax()  # NaN if any is; unlike isfinite, it takes no memory as large as a video
    except NotImplementedError:  # on some devices, for some formats
        return tensor.isfinite().all()
    return low.isfinite() & high.isfinite()


def _first(value: object) -> torch.Tensor | None:
    """The first tensor of any nesting of what decoders take and return."""
    import torch

    if isinstance(value, torch.Tensor):
        return value
    inside: Iterable[object] = value.values() if isinstance(value, Mapping) else ()
    inside = value if isinstance(value, list | tuple) else inside
    return next((found for one in inside if (found := _first(one)) is not None), None)


def _denoiser(parts: Parts, decoder: str, one: _Seen) -> tuple[str, torch.dtype | None]:
    """Where latents come from that were not finite before they were decoded, and in which dtype it computes."""
    name = next((name for name in parts if kind_of(name) == "denoiser"), decoder)
    return name, next((weights.dtype for weights in parts[name].parameters()), one.dtype)


def _not_finite(kind: OutputKind, name: str, dtype: torch.dtype | None) -> DiffpipeError:
    dtype_name = str(dtype or "").removeprefix("torch.")
    problem = f"the {name} made numbers that are not finite{f' in {dtype_name}' if dtype_name else ''}"
    heard = kind == "audio" or "vocoder" in name or "audio" in name
    nothing = "the sound would be silence or noise" if heard else f"the {NOUNS[kind]} would be black"
    return DiffpipeError(f"{problem}: {nothing}", _advice(name, dtype_name))


def _advice(name: str, dtype: str) -> str:
    """What to build instead: bfloat16 has float32's range at float16's size."""
    if dtype == "float16":
        other = f", or with one made for float16: --component {name}=SOURCE" if kind_of(name) == "decoder" else ""
        return f"half precision overflowed: build again with --dtype bfloat16 or float32{other}"
    if dtype == "bfloat16":
        return "build again with --dtype float32; if that does not help, try another scheduler or fewer steps"
    return "try other settings, another scheduler, or no --quantize; diffpipe pipelines verify finds damaged weights"
