"""Pipeline + request -> finished output files."""

from __future__ import annotations

import errno
import inspect
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ...core.errors import DiffpipeError, Exit, UsageError
from ...core.flag import FRAME_RATES, MEDIA_KINDS, Flag, OutputKind, nearest
from ...core.manifest import Manifest
from ...core.request import Artifact, Request
from ...storage import urls
from .. import media
from ..classes import outputs
from ..classes.lookup import first_line
from ..classes.signature import tuple_arguments
from ..placement.devices import out_of_memory
from . import preview

log = logging.getLogger("diffpipe.engine")

DEFAULT_FPS = 10.0  # diffusers' export_to_video

OnStep = Callable[[int, int], None]  # steps done, steps in all
Texts = Callable[[Mapping[str, Any]], Mapping[str, str]]  # facts of a result -> what its file says of itself


# What diffpipe passes itself, so that a user cannot, and IP-Adapters, which no pipeline can be built with yet.
TENSORS = re.compile(r".*(embeds|latents|callback_on_step_end_tensor_inputs)|.*ip_adapter.*")
OWN = frozenset(
    {"self", "generator", "output_type", "return_dict", "callback", "callback_steps", "callback_on_step_end"}
)


def settable(pipeline: type) -> list[str]:
    """The names of the call arguments a user may set, flags or not."""
    parameters = inspect.signature(pipeline.__call__).parameters.values()  # type: ignore[operator]
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = [p.name for p in parameters if p.kind not in variadic]
    return [name for name in names if name not in OWN and not TENSORS.fullmatch(name)]


def read_media(flags: Mapping[str, Flag], arguments: Mapping[str, Any], *, fit: bool = False) -> dict[str, Any]:
    """Arguments with paths of media replaced by what is in the files: pictures, lists of frames, sounds.

    `fit`: crop pictures to the width and height that are asked for, or to the nearest the pipeline can make. Raises
    UsageError for what cannot be read, or does not go together.
    """
    read = dict(arguments)
    for name, flag in flags.items():
        if flag.kind in MEDIA_KINDS and name in arguments:
            value = arguments[name]
            many = [_read(flag, urls.local(path)) for path in (value if isinstance(value, list) else [value])]
            read[name] = many if isinstance(value, list) else many[0]
    _repeat_masks(flags, read)
    if fit:
        _fit(flags, read)
    _check_sizes(flags, read)
    return read


def _read(flag: Flag, path: Path) -> Any:
    option = "--" + flag.name.replace("_", "-")
    if flag.kind == "audio":
        return media.read_audio(path, option=option)
    if flag.kind == "video":
        frames = media.read_video(path, mask="mask" in flag.name, option=option).frames
        if flag.most and len(frames) > flag.most:
            raise UsageError(f"{option} has {len(frames)} frames", f"this pipeline takes {flag.most} at most: cut it")
        return frames
    return media.read_image(path, mask=flag.kind == "mask", mode=flag.mode or "RGB", option=option)


def _pictures(flags: Mapping[str, Flag], arguments: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every picture and frame among the arguments, with the name of its argument."""
    for name, value in arguments.items():
        if name in flags and flags[name].kind in ("image", "mask", "video"):
            for picture in value if isinstance(value, list) else [value]:
                yield name, picture


def _fit(flags: Mapping[str, Flag], arguments: dict[str, Any]) -> None:
    """Crop every picture about its middle to the size that is made: what is asked for, else near that of the first."""
    from PIL import Image, ImageOps

    first = next((picture for _, picture in _pictures(flags, arguments)), None)
    if first is None:
        return
    sides = {"width": first.width, "height": first.height}
    width, height = (
        arguments.get(side) or (nearest(flags[side], pixels)[0] if side in flags else pixels // 8 * 8)
        for side, pixels in sides.items()
    )

    def fitted(picture: Any) -> Any:
        return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)

    for name in {name for name, _ in _pictures(flags, arguments)}:
        value = arguments[name]
        arguments[name] = [fitted(picture) for picture in value] if isinstance(value, list) else fitted(value)


def _repeat_masks(flags: Mapping[str, Flag], arguments: dict[str, Any]) -> None:
    """A single picture is the mask of every frame of the video."""
    video = arguments.get("video")
    for name, value in arguments.items():
        if name in flags and flags[name].kind == "video" and "mask" in name and video and len(value) == 1:
            arguments[name] = value * len(video)


def _check_sizes(flags: Mapping[str, Flag], arguments: Mapping[str, Any]) -> None:
    """A mask must be as large as its picture, and as long as its video: pipelines stretch or cut it silently."""
    for name, value in arguments.items():
        of = "video" if isinstance(value, list) else "image"
        whole = arguments.get(of)
        if name not in flags or "mask" not in name or flags[name].kind not in ("mask", "video"):
            continue
        if not whole:
            if of in flags and flags[name].kind == "video":
                raise UsageError(f"--{name.replace('_', '-')} needs a --{of}", f"give the {of} that it is the mask of")
            continue
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, list) and isinstance(whole, list) and len(value) != len(whole):
            raise UsageError(f"{option} has {len(value)} frames but --{of} has {len(whole)}", "make them equally long")
        mask, picture = (item[0] if isinstance(item, list) else item for item in (value, whole))
        if mask.size != picture.size:
            raise UsageError(
                f"{option} is {mask.size[0]} x {mask.size[1]} but --{of} is {picture.size[0]} x {picture.size[1]}",
                f"make the mask the size of the {'video' if of == 'video' else 'picture'}, or pass --fit",
            )


def run(
    pipe: Any,
    manifest: Manifest,
    requests: Sequence[Request],
    arguments: Sequence[Mapping[str, Any]],
    on_step: OnStep,
    call: Any,
    texts: Sequence[Texts] = (),
    previews: preview.Preview | None = None,
    before_writing: Callable[[], None] = lambda: None,
) -> list[list[Artifact]]:
    """Call the pipeline once and write what it makes to each request's paths, in order.

    Several requests differ in seed and prompts alone; `arguments` are theirs with media read. `call`: the row's own way
    to call it, or None. `texts`: what each request's files say (see `metadata.texts`), () for
    nothing. `previews`: how what is being made is shown. `before_writing` may raise, to leave the results unwritten.
    Generators live on the CPU, so a seed means the same noise on every device.

    Raises DiffpipeError for a failing call, with exit code 5 when memory ran out.
    """
    started = time.perf_counter()
    pipeline_class: Any = type(pipe)
    tuples = tuple_arguments(pipeline_class)
    together = _together(requests, arguments)
    called = {
        **outputs.output_arguments(pipeline_class),
        **{name: tuple(value) if name in tuples else _tensor(pipe, value) for name, value in together.items()},
        **_callback(pipe, together, on_step, previews),
    }
    try:
        output = call(pipe, called) if call else pipe(**called)
    except DiffpipeError:
        raise
    except Exception as error:  # pipelines raise whatever an argument they did not expect leads to
        if out_of_memory(error):
            raise DiffpipeError(
                "memory ran out", "make a smaller picture, or build with a smaller --dtype", Exit.OUT_OF_MEMORY
            ) from error
        raise DiffpipeError(
            f"{type(pipe).__name__} failed: {first_line(error)}",
            "check the arguments (--help lists them); --traceback shows where it failed",
        ) from error
    seconds = (time.perf_counter() - started) / len(requests)
    results = results_of(pipe, output, manifest, requests[0], arguments[0])
    shares = [results] if len(requests) == 1 else [[result] for result in results]
    if len(shares) != len(requests):
        raise DiffpipeError(f"{len(requests)} prompts made {len(results)} results", "leave --batch-size out")
    before_writing()
    return [
        [
            _write(result, path, request, seconds, text(_facts(result, path, place, len(share))))
            for place, (result, path) in enumerate(zip(share, numbered(request.paths, share), strict=True))
        ]
        for request, share, text in zip(requests, shares, texts or [_no_text] * len(requests), strict=True)
    ]


def _together(requests: Sequence[Request], arguments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The arguments of one call for all requests: lists of what differs, and of generators, where there are several.

    Torch's own generators begin anew, too: some decoders and schedulers draw from those (LTX's noise injection).
    """
    import torch

    torch.manual_seed(requests[0].seed)
    generators = [torch.Generator("cpu").manual_seed(request.seed) for request in requests]
    if len(requests) == 1:
        return {**arguments[0], "generator": generators[0]}
    listed = {
        name: [one[name] for one in arguments] if isinstance(value, str) and "prompt" in name else value
        for name, value in arguments[0].items()
    }
    return {**listed, "generator": generators}


def _tensor(pipe: Any, value: Any) -> Any:
    """A sound as the tensor (channels, samples) that pipelines take, at the pipeline's own rate; all else as it is."""
    if not isinstance(value, media.Sound):
        return value
    import torch

    return torch.from_numpy(media.resample(value, outputs.sound_rate(pipe) or value.rate).samples)


@dataclass(frozen=True)
class Result:
    """What one file will hold: a picture, or a video's frames with its sound, or a sound. `role`: "mask" for extras."""

    kind: OutputKind
    content: Any
    fps: float = 0.0
    sound: Any = None
    role: str = ""


def results_of(
    pipe: Any, output: Any, manifest: Manifest, request: Request, arguments: Mapping[str, Any]
) -> list[Result]:
    """Everything a call made, the main results first. Raises DiffpipeError where there is nothing."""
    if manifest.kind == "audio":
        return [Result("audio", sound) for sound in outputs.sound_of(pipe, output)]
    if manifest.kind == "video":
        videos, sounds = outputs.frames_of(output), outputs.sound_of(pipe, output)
        fps = frame_rate(manifest, request, arguments)
        return [Result("video", v, fps, s) for v, s in zip_longest(videos, sounds[: len(videos)])]
    pictures = [keep_unmasked(picture, arguments) for picture in outputs.images_of(pipe, output)]
    return [Result("image", picture) for picture in pictures] + [
        Result("image", mask, role="mask") for mask in getattr(output, "mask_image", None) or []
    ]


def frame_rate(manifest: Manifest, request: Request, arguments: Mapping[str, Any]) -> float:
    """Frames a second of a video: what was asked for, else what the call was told, else what the row or class says."""
    told = [request.fps, *(arguments.get(name) for name in FRAME_RATES), manifest.fps]
    return float(next((rate for rate in told if rate), DEFAULT_FPS))


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


def numbered(paths: Sequence[str], results: Sequence[Result]) -> list[str]:
    """A path for each result: where there are more than planned, -2, -3, … after the last; extras by their role."""
    main = [result for result in results if not result.role]
    suffixes = range(2, len(main) - len(paths) + 2)
    more = [urls.beside(paths[-1], str(suffix)) for suffix in suffixes]
    extras = [result.role for result in results if result.role]
    numbers = [extras[:place].count(role) for place, role in enumerate(extras, 1)]
    marks = [role if number == 1 else f"{role}-{number}" for role, number in zip(extras, numbers, strict=True)]
    return [*paths, *more][: len(main)] + [urls.beside(paths[0], mark) for mark in marks]


def _facts(result: Result, path: str, place: int, count: int) -> dict[str, Any]:
    """What a file's text may say of a result, which is at this place, from 0, among the `count` of its call."""
    form = Path(path).suffix[1:].lower() or "frames"
    return {"kind": result.kind, "format": form, "index": place, "of": count, **_details(result)}


def _no_text(_facts: Mapping[str, Any]) -> Mapping[str, str]:
    return {}


def _write(result: Result, path: str, request: Request, seconds: float, text: Mapping[str, str]) -> Artifact:
    asked = urls.shown(path)
    write = partial(_encode, result, overwrite=request.overwrite, text=text)
    try:
        if urls.is_url(path):
            written, stored = media.write_at(path, write, overwrite=request.overwrite)
        else:
            written, stored = str(write(Path(path))), {}
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise DiffpipeError(
            f"cannot write {asked}: {error.strerror or error}",
            "free some space" if full else "choose another --output",
            Exit.CACHE,
        ) from error
    if written != path:
        log.warning("%s was made by another process meanwhile; wrote %s", asked, urls.shown(written))
    details = _details(result)
    return Artifact(urls.shown(written), request.seed, request.index, result.kind, seconds, details, stored)


def _encode(result: Result, path: Path, *, overwrite: bool, text: Mapping[str, str]) -> Path:
    if result.kind == "image":
        return media.write_image(result.content, path, overwrite=overwrite, text=text)
    if result.kind == "video":
        fps, sound = result.fps, result.sound
        return media.write_video(result.content, path, fps=fps, sound=sound, overwrite=overwrite, text=text)
    return media.write_audio(result.content, path, overwrite=overwrite, text=text)


def _details(result: Result) -> dict[str, Any]:
    """What a result is, for --json: pixels, frames and frames a second, seconds and samples a second."""
    role = {"role": result.role} if result.role else {}
    if result.kind == "image":
        return {"width": result.content.width, "height": result.content.height} | role
    heard = result.content if result.kind == "audio" else result.sound
    sound = {"rate": heard.rate, "channels": heard.samples.shape[0]} if heard else {}
    if result.kind == "audio":
        return {"duration": round(heard.samples.shape[1] / heard.rate, 3)} | sound
    first, frames = result.content[0], len(result.content)
    size = {"width": first.width, "height": first.height, "frames": frames, "fps": result.fps}
    return size | {"duration": round(frames / result.fps, 3)} | sound


def _callback(
    pipe: Any, arguments: Mapping[str, Any], on_step: OnStep, previews: preview.Preview | None = None
) -> dict[str, Any]:
    """The call argument that reports steps, in whichever of diffusers' two forms the pipeline takes."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    done = 0
    observer = preview.Observer(pipe, arguments, previews) if previews else None

    def total() -> int:
        return int(getattr(pipe, "_num_timesteps", 0) or arguments.get("num_inference_steps") or 0)

    def step(pipe_: Any, _index: int, _timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        nonlocal done
        done += 1
        on_step(done, total())
        if observer:
            observer.step(done, total(), kwargs.get("latents"))
        return kwargs

    def legacy(_index: int, _timestep: Any, latents: Any) -> None:
        step(pipe, 0, 0, {"latents": latents})

    if "callback_on_step_end" in parameters:
        return {"callback_on_step_end": step}
    if "callback" in parameters:
        return {"callback": legacy}
    return {}
