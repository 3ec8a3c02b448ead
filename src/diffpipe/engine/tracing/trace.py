"""One call of a pipeline without weights: encode, one step, decode; what lives in each stage besides the weights."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ...catalog.rows import PipelineType
from ...core.build_spec import Placement
from ...core.components import Stage
from ...core.errors import DiffpipeError, UsageError
from ...core.flag import Flag
from ...core.tracing import Held, Recipe
from ...memory.estimate import Task
from ..classes import outputs
from ..classes.lookup import first_line
from ..classes.signature import call_of, read_flags, tuple_arguments
from ..loading.load import hook
from ..placement import apply
from .assembly import assemble
from .living import Living

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

P = ParamSpec("P")
T = TypeVar("T")
PROMPT = "a lighthouse at dusk"  # what it says does not matter: stand_ins.Tokenizer
MEL_RATE = 100  # frames a second of a spectrogram (memory.recorded.default_sizes)
CODING: Mapping[str, Stage | None] = {"encode": None, "decode": "decode"}  # an autoencoder's calls: where they begin
RESIDENT = Placement()


def trace(recipe: Recipe, task: Task, row: PipelineType, placement: Placement = RESIDENT) -> tuple[Held, ...]:
    """What lives while each component works, for the sizes of a task. Nothing is computed, and no weight is read.

    Of `placement` the switches that a call sees count: attention slicing, VAE slicing and tiling. Raises UsageError
    where the pipeline cannot be made or called without its weights.
    """
    with _quiet():
        pipe = assemble(recipe)
        if "load" in row.quirks:
            hook(row.quirks["load"])(pipe)
        apply.switch(pipe, placement)
        weights = [tensor for _, part in apply.modules(pipe) for tensor in (*part.parameters(), *part.buffers())]
        living = Living(weights)
        _follow(pipe, living)
        call = hook(row.quirks["call"]) if "call" in row.quirks else None
        given = arguments(type(pipe), task, row)
        try:
            with living.watching():
                call(pipe, given) if call else pipe(**given)
        except DiffpipeError:
            raise
        except Exception as error:  # models raise whatever a value leads to that nobody computed
            problem = f"{recipe.pipeline} cannot be traced: {first_line(error)}"
            raise UsageError(problem, "plan it without --trace; --traceback shows where it failed") from error
    return tuple(Held(stage, part, most) for (stage, part), most in living.most.items() if part)


@contextmanager
def _quiet() -> Iterator[None]:
    """What the libraries say of values that nobody computed means nothing."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _follow(pipe: DiffusionPipeline, living: Living) -> None:
    """Have a pipeline's components say when they work: which one, and that a stage begins."""
    for name, part in apply.modules(pipe):
        part.register_forward_pre_hook(lambda *_, name=name: living.at_work(name))
    for name, part in apply.modules(pipe, "denoiser"):
        part.register_forward_pre_hook(lambda *_, name=name: living.at_work(name, "denoise"))
    for name, part in apply.modules(pipe, "decoder"):
        for method, stage in CODING.items():
            if hasattr(part, method):
                setattr(part, method, _telling(getattr(part, method), living, name, stage))


def _telling(method: Callable[P, T], living: Living, name: str, stage: Stage | None) -> Callable[P, T]:
    @functools.wraps(method)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        living.at_work(name, stage)
        return method(*args, **kwargs)

    return wrapper


def arguments(pipeline: type, task: Task, row: PipelineType) -> dict[str, Any]:
    """The arguments of a call that makes what a task says in one step; media where the pipeline needs them."""
    import torch

    flags = {flag.name: flag for flag in read_flags(pipeline, row)}
    taken = call_of(pipeline).parameters.keys() | flags.keys()
    given: dict[str, Any] = {name: flag.default for name, flag in flags.items() if flag.default is not None}
    given |= {flag.name: _value(flag, task) for flag in flags.values() if flag.required}
    sizes: dict[str, object] = {"width": task.width, "height": task.height, "num_frames": task.frames}
    sizes |= {"audio_length_in_s": task.height / MEL_RATE, "strength": 1.0}  # of one step, all
    sizes |= {"prompt": PROMPT if task.batch == 1 else [PROMPT] * task.batch}
    sizes |= {name: 1 for name in taken if name.endswith("num_inference_steps")}
    given |= {name: value for name, value in sizes.items() if name in taken}
    given |= {name: tuple(given[name]) for name in tuple_arguments(pipeline) & given.keys()}
    return {**outputs.output_arguments(pipeline), **given, "generator": torch.Generator().manual_seed(0)}


def _value(flag: Flag, task: Task) -> object:
    """A value for an argument that a pipeline does not go without."""
    from PIL import Image

    size = task.width, task.height
    one: object = PROMPT
    if flag.kind in ("image", "mask"):
        one = Image.new(flag.mode or ("L" if flag.kind == "mask" else "RGB"), size, 255)
    elif flag.kind == "video":
        one = [Image.new("RGB", size)] * task.frames
    return [one] if flag.many and not flag.scalar else one
