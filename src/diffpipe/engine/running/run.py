"""One call of a pipeline for one request or several: prepared, made, taken apart, written."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from ...core.errors import DeviceLost, DiffpipeError, Exit
from ...core.flag import Arguments, OutputKind
from ...core.request import Artifact, Request
from ...storage.disk import of_the_system
from .. import media
from ..classes import outputs
from ..classes.lookup import first_line
from ..classes.signature import tuple_arguments
from ..loading import library_logs
from ..placement import devices
from ..placement.settle import settled
from ..seams import diffusers_seam
from . import ignored
from .files import Text, no_text, write_all
from .finite import finite_only
from .own_state import each_its_own, generators
from .preview import Preview
from .results import Result, frame_rate, results_of, shared
from .steps import OnStep, Steps

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from diffusers.utils import BaseOutput

Quirk: TypeAlias = "Callable[[DiffusionPipeline, Arguments], BaseOutput]"  # a row's own way to call its pipeline


log = logging.getLogger("diffpipe.run")


@dataclass(frozen=True)
class PipelineCall:
    """What one call of a pipeline makes, and for whom.

    `kind` of what the pipeline makes, and its own `fps` of videos. Several `requests` differ in seed and prompts alone;
    `arguments` are theirs with media read. `quirk`: the row's own way to call the pipeline. `texts`: what each
    request's files say (see `metadata.texts`), () for nothing. `previews`: how what is being made is shown.
    `before_writing` may raise, to leave the results unwritten. `usual`: what the arguments are where none is given.
    """

    kind: OutputKind
    requests: Sequence[Request]
    arguments: Sequence[Arguments]
    on_step: OnStep
    fps: float | None = None
    quirk: Quirk | None = None
    texts: Sequence[Text] = ()
    previews: Preview | None = None
    before_writing: Callable[[], None] = lambda: None
    usual: Arguments = field(default_factory=dict)


def run(pipe: DiffusionPipeline, call: PipelineCall) -> list[list[Artifact]]:
    """Call the pipeline once and write what it makes to each request's paths, in order.

    Raises DiffpipeError for a failing call, with exit code 5 when memory ran out; DrawnTogether where several requests
    cannot have each its own noise in one call; DeviceLost where none can be made any more.
    """
    try:
        return _run(pipe, call)
    except Exception as error:  # a device tells of its failure at any later call
        cause = error.__cause__ or error
        if isinstance(cause, RuntimeError) and devices.is_lost(diffusers_seam.device_of(pipe).type):
            raise DeviceLost(first_line(cause)) from error
        raise


def _run(pipe: DiffusionPipeline, call: PipelineCall) -> list[list[Artifact]]:
    started = time.perf_counter()
    steps = Steps(pipe, call.arguments[0], call.on_step, call.previews)
    arguments = {**_prepared(pipe, call), **steps.callback()}
    with each_its_own(pipe, len(call.requests)), finite_only(pipe, call.kind):
        output = _called(pipe, arguments, call.quirk)
    seconds = (time.perf_counter() - started) / len(call.requests)
    fps = frame_rate(call.requests[0], call.arguments[0], call.fps)
    results = results_of(pipe, output, call.kind, fps, call.arguments[0])
    _tell(pipe, call, results, steps)
    shares = shared(results, len(call.requests))
    call.before_writing()
    texts = call.texts or [no_text] * len(shares)
    return [
        write_all(request, share, seconds, text)
        for request, share, text in zip(call.requests, shares, texts, strict=True)
    ]


def _tell(pipe: DiffusionPipeline, call: PipelineCall, results: Sequence[Result], steps: Steps) -> None:
    """Warn of what the call did not use of its arguments, or made otherwise."""
    arguments = call.arguments[0]
    counted = bool(steps.callback()) and call.quirk is None
    lines = (
        *ignored.unused(pipe, arguments, call.usual),
        *ignored.made_otherwise(results, arguments, len(call.requests)),
        *ignored.no_step(steps.asked, steps.done, counted=counted),
    )
    for line in lines:
        log.warning("%s", line)


def _prepared(pipe: DiffusionPipeline, call: PipelineCall) -> Arguments:
    """The arguments as the pipeline takes them, with generators."""
    cls: type = type(pipe)
    together = {**_together(call.arguments), "generator": generators([request.seed for request in call.requests])}
    tuples = tuple_arguments(cls)
    taken = {name: tuple(value) if name in tuples else _tensor(pipe, value) for name, value in together.items()}
    return {**outputs.output_arguments(cls), **taken}


def _together(arguments: Sequence[Arguments]) -> Arguments:
    """The arguments of one call for all requests: lists of prompts where there are several."""
    first, *others = arguments
    if not others:
        return first
    prompts = {name for name, value in first.items() if isinstance(value, str) and "prompt" in name}
    return {**first, **{name: [one[name] for one in arguments] for name in prompts}}


def _tensor(pipe: DiffusionPipeline, value: object) -> object:
    """A sound as the tensor (channels, samples) that pipelines take, at the pipeline's own rate; all else as it is."""
    if not isinstance(value, media.Sound):
        return value
    import torch

    return torch.from_numpy(media.resample(value, outputs.sound_rate(pipe) or value.rate).samples)


def _called(pipe: DiffusionPipeline, arguments: Arguments, quirk: Quirk | None) -> BaseOutput:
    """What the pipeline returns. Raises DiffpipeError for whatever it raises."""
    library_logs.hear_again()
    try:
        with settled(pipe):
            return quirk(pipe, arguments) if quirk else pipe(**arguments)
    except DiffpipeError:
        raise
    except Exception as error:  # pipelines raise whatever an argument they did not expect leads to
        raise _failed(pipe, error) from error


def _failed(pipe: DiffusionPipeline, error: Exception) -> DiffpipeError:
    if devices.out_of_memory(error):
        hint = "make a smaller picture, or build with a smaller --dtype"
        return DiffpipeError("memory ran out", hint, Exit.OUT_OF_MEMORY)
    return of_the_system(error) or DiffpipeError(
        f"{type(pipe).__name__} failed: {first_line(error)}",
        "check the arguments (--help lists them); --traceback shows where it failed",
    )
