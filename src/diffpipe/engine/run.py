"""Pipeline + request -> finished output files."""

from __future__ import annotations

import errno
import inspect
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DiffpipeError, Exit, UsageError
from ..specs import Artifact, Flag, Request
from .load import first_line
from .media import read_image, write_image
from .place import out_of_memory
from .signature import tuple_arguments

log = logging.getLogger("diffpipe.engine")

OnStep = Callable[[int, int], None]  # steps done, steps in all


# What diffpipe passes itself, so that a user cannot.
TENSORS = re.compile(r".*(embeds|latents|callback_on_step_end_tensor_inputs)")
OWN = frozenset(
    {"self", "generator", "output_type", "return_dict", "callback", "callback_steps", "callback_on_step_end"}
)


def settable(pipeline: type) -> list[str]:
    """The names of the call arguments a user may set, flags or not."""
    parameters = inspect.signature(pipeline.__call__).parameters.values()  # type: ignore[operator]
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = [p.name for p in parameters if p.kind not in variadic]
    return [name for name in names if name not in OWN and not TENSORS.fullmatch(name)]


def read_media(flags: Mapping[str, Flag], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments with picture and mask paths replaced by the pictures. Raises UsageError for what cannot be read."""
    read: dict[str, Any] = {}
    for name, value in arguments.items():
        kind = flags[name].kind if name in flags else "json"
        if kind in ("image", "mask"):
            option = "--" + name.replace("_", "-")
            pictures = [
                read_image(Path(path), mask=kind == "mask", option=option)
                for path in (value if isinstance(value, list) else [value])
            ]
            read[name] = pictures if isinstance(value, list) else pictures[0]
        else:
            read[name] = value
    _check_sizes(flags, read)
    return read


def _check_sizes(flags: Mapping[str, Flag], arguments: Mapping[str, Any]) -> None:
    """A mask must be as large as its picture: pipelines stretch it silently otherwise."""
    picture: Any = arguments.get("image")
    for name, value in arguments.items():
        mask = name in flags and flags[name].kind == "mask" and hasattr(value, "size")
        if mask and hasattr(picture, "size") and value.size != picture.size:
            raise UsageError(
                f"--{name.replace('_', '-')} is {value.size[0]} x {value.size[1]} but --image is "
                f"{picture.size[0]} x {picture.size[1]}",
                "make the mask the size of the picture",
            )


def run(pipe: Any, request: Request, arguments: Mapping[str, Any], on_step: OnStep) -> list[Artifact]:
    """Call the pipeline once and write what it makes to the request's paths, in order.

    The generator lives on the CPU, so a seed means the same noise on every device. Raises DiffpipeError for a failing
    call, with exit code 5 when memory ran out.
    """
    import torch

    started = time.perf_counter()
    tuples = tuple_arguments(type(pipe))
    call = {
        **{name: tuple(value) if name in tuples else value for name, value in arguments.items()},
        "generator": torch.Generator("cpu").manual_seed(request.seed),
        **_callback(pipe, arguments, on_step),
    }
    try:
        output = pipe(**call)
    except Exception as error:  # pipelines raise whatever an argument they did not expect leads to
        if out_of_memory(error):
            raise DiffpipeError(
                "memory ran out", "make a smaller picture, or build with a smaller --dtype", Exit.OUT_OF_MEMORY
            ) from error
        raise DiffpipeError(
            f"{type(pipe).__name__} failed: {first_line(error)}",
            "check the arguments (--help lists them); --traceback shows where it failed",
        ) from error
    seconds = time.perf_counter() - started
    pictures = [keep_unmasked(picture, arguments) for picture in pictures_of(output)]
    return [
        _write(picture, path, request, seconds)
        for picture, path in zip(pictures, numbered(request.paths, len(pictures)), strict=True)
    ]


def keep_unmasked(picture: Any, arguments: Mapping[str, Any]) -> Any:
    """An inpainted picture with the source's own pixels where the mask is black.

    Pipelines decode the whole picture anew, so what was not to change comes back slightly blurred.
    """
    from PIL import Image

    source, mask = arguments.get("image"), arguments.get("mask_image")
    if not isinstance(source, Image.Image) or not isinstance(mask, Image.Image):
        return picture
    size = picture.size
    return Image.composite(picture.convert("RGB"), source.resize(size, Image.Resampling.LANCZOS), mask.resize(size))


def numbered(paths: Sequence[str], count: int) -> list[str]:
    """As many paths as there are pictures: where there are more than planned, -2, -3, … after the last."""
    last = Path(paths[-1])
    suffixes = range(2, count - len(paths) + 2)
    more = [str(last.with_name(f"{last.stem}-{suffix}{last.suffix}")) for suffix in suffixes]
    return [*paths, *more][:count]


def pictures_of(output: Any) -> list[Any]:
    """The PIL images of a pipeline's output. Raises DiffpipeError where it made no pictures."""
    images = getattr(output, "images", None)
    if images is None and hasattr(output, "image"):
        images = output.image
    if not isinstance(images, list):
        images = [images]
    if not images or not all(hasattr(picture, "save") for picture in images):
        raise DiffpipeError("the pipeline made no pictures", "this version of diffpipe writes pictures only")
    return images


def _write(picture: Any, path: str, request: Request, seconds: float) -> Artifact:
    try:
        written = write_image(picture, Path(path), overwrite=request.overwrite)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise DiffpipeError(
            f"cannot write {path}: {error.strerror or error}",
            "free some space" if full else "choose another --output",
            Exit.CACHE,
        ) from error
    if str(written) != path:
        log.warning("%s was made by another process meanwhile; wrote %s", path, written)
    return Artifact(
        str(written), request.seed, request.index, "image", seconds, {"width": picture.width, "height": picture.height}
    )


def _callback(pipe: Any, arguments: Mapping[str, Any], on_step: OnStep) -> dict[str, Any]:
    """The call argument that reports steps, in whichever of diffusers' two forms the pipeline takes."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    done = 0

    def total() -> int:
        return int(getattr(pipe, "_num_timesteps", 0) or arguments.get("num_inference_steps") or 0)

    def step(pipe_: Any, _index: int, _timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        nonlocal done
        done += 1
        on_step(done, total())
        return kwargs

    def legacy(_index: int, _timestep: Any, _latents: Any) -> None:
        step(pipe, 0, 0, {})

    if "callback_on_step_end" in parameters:
        return {"callback_on_step_end": step}
    if "callback" in parameters:
        return {"callback": legacy}
    return {}
