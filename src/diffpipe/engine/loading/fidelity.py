"""How far a quantized component is from the original: both called with what the pipeline itself calls it with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...core.components import is_text_encoder
from ...core.errors import DiffpipeError
from ...core.flag import Arguments, Flag
from ..classes.lookup import first_line
from .sample import sample

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

    RowCall = Callable[[DiffusionPipeline, Arguments], object]  # a row's own way to call its pipeline

log = logging.getLogger("diffpipe.engine")

# Below this a component no longer computes what it was trained for; noise has a cosine near 0. The least that were
# measured: over the tiny test pipelines 0.9997 (int8), 0.997 (fp8) and 0.96 (int4), on the Flux of
# tools/bench_quantize.py 0.9999, 0.999 and 0.99.
LEAST_COSINE = 0.9
INNER = 0.95  # of an output's values decide

Call = tuple[tuple[object, ...], Mapping[str, object]]  # what a component is called with: arguments, named arguments
Measured = Mapping[str, float]  # "relative_error" and "cosine"


class _Enough(BaseException):
    """Ends a pipeline's call once all that is wanted was seen. No Exception, so that no pipeline catches it."""


@dataclass(frozen=True)
class Reference:
    """What a component was called with, and the numbers that the original made of it, in float32."""

    call: Call
    output: torch.Tensor


def references(
    pipe: DiffusionPipeline, names: Collection[str], flags: Collection[Flag], call: RowCall | None = None
) -> dict[str, Reference]:
    """The first call of each named component in a short run, and what it returns; those never called are left out.

    A component that the run does not reach (the second denoiser of Wan 2.2) takes the call of another of its class.
    `call`: the row's own way to call the pipeline.
    """
    import torch

    calls = _first_calls(pipe, names, sample(pipe, flags), call)
    for name in set(names) - set(calls):
        twin = next((other for other in calls if type(getattr(pipe, other)) is type(getattr(pipe, name))), None)
        if twin:
            calls[name] = calls[twin]
    with torch.no_grad():
        found = {name: Reference(c, numbers(getattr(pipe, name)(*c[0], **c[1]))) for name, c in calls.items()}
    for name in [name for name, reference in found.items() if not _is_something(reference.output)]:
        log.warning("%s is not compared: the original's own output is not a number, or nothing", name)
        del found[name]
    return found


def _is_something(output: torch.Tensor) -> bool:
    return bool(output.isfinite().all() and output.any())


def _first_calls(
    pipe: DiffusionPipeline, names: Collection[str], arguments: Arguments, call: RowCall | None
) -> dict[str, Call]:
    calls: dict[str, Call] = {}
    denoisers = {name for name in names if not is_text_encoder(name)}

    def seen(name: str) -> Callable[..., None]:
        def hook(_module: torch.nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
            calls.setdefault(name, (args, kwargs))
            called = {type(getattr(pipe, other)) for other in calls}
            if name in denoisers and all(type(getattr(pipe, other)) in called for other in denoisers):
                raise _Enough

        return hook

    hooks = [getattr(pipe, name).register_forward_pre_hook(seen(name), with_kwargs=True) for name in names]
    try:
        call(pipe, arguments) if call else pipe(**arguments)
    except _Enough:
        pass
    except Exception as error:  # pipelines raise whatever an argument they did not expect leads to
        log.warning("the call that quantized weights are compared on failed: %s", first_line(error))
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def numbers(output: object) -> torch.Tensor:
    """Every float that a component returned, as one float32 vector on the CPU."""
    import torch

    return torch.cat([tensor.detach().float().cpu().flatten() for tensor in _tensors(output)])


def _tensors(value: object) -> Iterator[torch.Tensor]:
    import torch

    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from _tensors(inner)


def compare(reference: Reference, module: torch.nn.Module) -> Measured:
    """The relative error |quantized - original| / |original| and the cosine between the two outputs' vectors.

    Values are cut to the size that `INNER` of the original's (but zeros) keep to: where a model divides by something
    near 0, as the prior of Wuerstchen does, one value would decide alone. Both are NaN where an output is not finite.
    """
    import torch

    args, kwargs = reference.call
    with torch.no_grad():
        made = numbers(module(*args, **kwargs)).double()
    if not made.isfinite().all():
        return {"relative_error": float("nan"), "cosine": float("nan")}
    original = reference.output.double()
    sizes = original[original != 0].abs()  # most of a padded text is zeros
    limit = sizes.kthvalue(max(1, int(INNER * sizes.numel()))).values.item()
    made, original = made.clamp(-limit, limit), original.clamp(-limit, limit)
    error = (made - original).norm() / original.norm()
    cosine = torch.dot(made, original) / (made.norm() * original.norm())
    return {"relative_error": float(error), "cosine": float(cosine)}


def check(name: str, measured: Measured, mode: str) -> None:
    """Raises DiffpipeError with advice where a quantized component makes NaN or noise."""
    cosine = measured["cosine"]
    if cosine >= LEAST_COSINE:  # false for NaN too
        return
    what = "is not a number" if cosine != cosine else f"has a cosine of {cosine:.3f} with the original"
    gentler = {"int4": "--quantize int8", "int8": "--quantize fp8", "fp8": "--quantize int8"}[mode]
    raise DiffpipeError(
        f"{name} in {mode} does not make what it should: its output {what}",
        f"{gentler}, or name the components that may be quantized with --quantize-components; what overflows in "
        "float16 needs --dtype bfloat16",
    )
