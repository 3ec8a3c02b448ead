"""How far a quantized component is from the original: both called with what the pipeline itself calls it with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...core.components import is_text_encoder
from ...core.errors import DiffpipeError
from ...core.flag import Flag, nearest
from ..classes.lookup import first_line
from ..classes.signature import tuple_arguments

log = logging.getLogger("diffpipe.engine")

SIDE = 256  # pixels of the picture that is begun: the smallest that the released families make
FRAMES = 9
SECONDS = 2.0
STEPS = 2  # with one, the shifted schedule of Qwen-Image divides 0 by 0
PROMPT = "a lighthouse at dusk"
# Below this a component no longer computes what it was trained for; noise has a cosine near 0. The least that were
# measured: over the tiny test pipelines 0.9997 (int8), 0.997 (fp8) and 0.96 (int4), on the Flux of
# tools/bench_quantize.py 0.9999, 0.999 and 0.99.
LEAST_COSINE = 0.9
INNER = 0.95  # of an output's values decide

Call = tuple[tuple[Any, ...], dict[str, Any]]  # what a component is called with: arguments, named arguments


class _Enough(BaseException):
    """Ends a pipeline's call once all that is wanted was seen. No Exception, so that no pipeline catches it."""


@dataclass(frozen=True)
class Reference:
    """What a component was called with, and the numbers that the original made of it, in float32."""

    call: Call
    output: Any


def references(
    pipe: Any, names: Collection[str], flags: Collection[Flag], call: Callable[[Any, dict[str, Any]], Any] | None = None
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


def _is_something(output: Any) -> bool:
    return bool(output.isfinite().all() and output.any())


def _first_calls(pipe: Any, names: Collection[str], arguments: dict[str, Any], call: Any) -> dict[str, Call]:
    calls: dict[str, Call] = {}
    denoisers = {name for name in names if not is_text_encoder(name)}

    def seen(name: str) -> Any:
        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
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


def sample(pipe: Any, flags: Collection[Flag]) -> dict[str, Any]:
    """Arguments for a small, short run of any pipeline, made from its flags; the same ones every time."""
    import torch

    made = {flag.name: value for flag in flags if (value := _value(flag)) is not None}
    pipeline_class: type = type(pipe)
    tuples = tuple_arguments(pipeline_class)
    lists = {name: tuple(value) if name in tuples else value for name, value in made.items()}
    return {**lists, "generator": torch.Generator("cpu").manual_seed(0)}


def _value(flag: Flag) -> Any:
    """What an argument is given: small sizes, few steps, text, drawn pictures; None for those that can be left out."""
    fixed = {"strength": 1.0, "audio_length_in_s": SECONDS, "audio_end_in_s": SECONDS}
    sizes = {"height": SIDE, "width": SIDE, "num_frames": FRAMES}
    if flag.name.endswith("num_inference_steps"):
        return nearest(flag, STEPS)[0]
    if flag.name in fixed:
        return fixed[flag.name]
    if flag.name in sizes:
        return nearest(flag, sizes[flag.name])[0]
    if not flag.required and flag.default is not None:
        return flag.default
    if not flag.required and flag.kind != "choice" and flag.name not in ("prompt", "image", "mask_image"):
        return None
    value = _needed(flag)
    return [value] if flag.many and not flag.scalar and value is not None else value


def _needed(flag: Flag) -> Any:
    """A value for an argument that must be given, by its kind."""
    import torch

    if flag.kind in ("image", "mask"):
        return _picture(flag)
    if flag.kind == "video":
        return [_picture(flag)] * FRAMES
    if flag.kind == "audio":
        return torch.sin(torch.arange(32000) / 10.0).repeat(2, 1)
    if flag.kind == "text":
        return PROMPT
    if flag.kind == "choice":
        return flag.choices[0]
    return {"integer": 1, "number": 1.0, "boolean": False}.get(flag.kind)


def _picture(flag: Flag) -> Any:
    """A gradient (a mask: its bright half) in the mode that the pipeline wants."""
    from PIL import Image

    gradient = Image.linear_gradient("L").resize((SIDE, SIDE))
    if flag.kind == "mask" or "mask" in flag.name:
        return gradient.point(lambda level: 255 if level > 127 else 0)
    return gradient.convert(flag.mode or "RGB")


def numbers(output: Any) -> Any:
    """Every float that a component returned, as one float32 vector on the CPU."""
    import torch

    return torch.cat([tensor.detach().float().cpu().flatten() for tensor in _tensors(output)])


def _tensors(value: Any) -> Iterator[Any]:
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


def compare(reference: Reference, module: Any) -> dict[str, float]:
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


def check(name: str, measured: Mapping[str, float], mode: str) -> None:
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
