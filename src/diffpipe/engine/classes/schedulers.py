"""Which schedulers fit a pipeline."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from enum import Enum
from typing import TYPE_CHECKING, Literal, TypeGuard

from ...core.canonical import JsonValue
from ...core.errors import UsageError
from ..seams import diffusers_source_seam
from ..seams.diffusers_seam import compatible_schedulers, missing_backends

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, SchedulerMixin

    Scheduler = type[SchedulerMixin]
    Pipeline = type[DiffusionPipeline]

Settings = Mapping[str, JsonValue]  # a scheduler's configuration

# What a scheduler steps through: a flow from noise to data (Flux, SD 3, Wan), a noise schedule (SD 1, XL), or either,
# as its settings say.
Schedule = Literal["flow", "noise", "either"]

# For models distilled to few steps (LCM and TCD LoRAs), on the noise schedule of the model they were distilled from.
FEW_STEPS = frozenset({"LCMScheduler", "TCDScheduler"})
# What diffusers lets take each other's place and mathematics does not: EDM scales what goes into the denoiser and comes
# out of it in its own way (arXiv:2206.00364), CogVideoX shifts the schedule to no signal at its end.
ALONE = frozenset({"EDMEulerScheduler", "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"})
NOTHING: Settings = {}


def scheduler_class(name: str) -> Scheduler:
    """A scheduler class of diffusers. Raises UsageError with near names, or the package that it needs."""
    import diffusers

    found = getattr(diffusers, name, None) if name.isidentifier() else None
    if is_scheduler(found):
        return found
    if name.endswith("Scheduler") and (packages := missing_backends(found)):
        missing = ", ".join(packages)
        raise UsageError(f"{name} needs a package that is not installed: {missing}", f"pip install {missing}")
    near = get_close_matches(name, [known for known in dir(diffusers) if "Scheduler" in known], n=3)
    raise UsageError(
        f"diffusers has no scheduler {name!r}", f"did you mean {' or '.join(near)}?" if near else "check the name"
    )


def is_scheduler(found: object) -> TypeGuard[Scheduler]:
    """Whether something is a class of schedulers that a pipeline can call step by step."""
    import diffusers

    return isinstance(found, type) and issubclass(found, diffusers.SchedulerMixin) and hasattr(found, "set_timesteps")


def fitting(pipeline: Pipeline, shipped: Scheduler | None = None, settings: Settings = NOTHING) -> list[str]:
    """The names of the scheduler classes that a pipeline runs with, sorted.

    `shipped` and `settings`: the class and configuration of the model's own scheduler; without them, the classes that
    the pipeline's constructor names stand for it. Flows and noise schedules do not mix. Among noise schedules, what
    fits is what diffusers says of them itself. Schedulers of one model alone (aMUSEd, Würstchen, EDM) fit nothing else.
    """
    named = annotated(pipeline)
    models = [shipped] if shipped else named
    schedule = _model_schedule(models, settings, known=shipped is not None)
    fits: Mapping[Schedule, Callable[[Scheduler], bool]] = {
        "flow": lambda one: schedule_of(one) != "noise" and _serves(pipeline, one),
        "either": lambda one: schedule_of(one) == "either",
        "noise": lambda one: any(_related(one, model) for model in models),
    }
    own = [one for one in named if schedule_of(one) == "either" or (schedule_of(one) == "flow") == (schedule == "flow")]
    found = [*filter(fits[schedule], _usable()), *own, *([shipped] if shipped else [])]
    return sorted({one.__name__ for one in found})


def _model_schedule(models: list[Scheduler], settings: Settings, *, known: bool) -> Schedule:
    """What a model was made for, by its scheduler's class and settings, or by all that its pipeline class names.

    Not `known`, if all of those step through either: Sana ships a flow, PixArt noise, and both name DPM-Solver++.
    """
    schedules = [schedule_of(model) for model in models]
    if "flow" in schedules or settings.get("use_flow_sigmas"):
        return "flow"
    return "either" if not known and set(schedules) == {"either"} else "noise"


def schedule_of(scheduler: Scheduler) -> Schedule:
    """What a class of schedulers steps through."""
    if "FlowMatch" in scheduler.__name__:
        return "flow"
    either = "use_flow_sigmas" in inspect.signature(scheduler.__init__).parameters
    return "either" if either and compatible_schedulers(scheduler) else "noise"


def annotated(pipeline: Pipeline) -> list[Scheduler]:
    """The scheduler classes that the constructor's annotation of `scheduler` names."""
    parameter = inspect.signature(pipeline.__init__).parameters.get("scheduler")
    return _classes(parameter.annotation) if parameter else []


def _classes(annotation: object) -> list[Scheduler]:
    import diffusers

    parts: list[object]
    if isinstance(annotation, str):
        parts = [getattr(diffusers, name, None) for name in re.findall(r"\w+", annotation)]
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType):
        parts = [one for part in typing.get_args(annotation) for one in _classes(part)]
    elif isinstance(annotation, type) and issubclass(annotation, Enum):  # KarrasDiffusionSchedulers
        parts = [getattr(diffusers, member.name, None) for member in annotation if member.name not in ALONE]
    else:
        parts = [annotation]
    return [part for part in parts if is_scheduler(part)]


def _usable() -> list[Scheduler]:
    """The scheduler classes that any pipeline could call: those that denoise, step by step, with defaults for all."""
    import diffusers

    found = [getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Scheduler")]
    return [one for one in found if is_scheduler(one) and _is_plain(one) and "Inverse" not in one.__name__]


def _is_plain(scheduler: Scheduler) -> bool:
    """Whether it is made without arguments, and steps from (model output, timestep, sample) alone."""
    if not hasattr(scheduler, "step") or _required(scheduler.__init__) != {"self"}:
        return False
    return _required(scheduler.step) == {"self", "model_output", "timestep", "sample"}


def _required(function: Callable[..., object]) -> set[str]:
    """The arguments of a function that have no default."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters
    return {name for name, p in parameters.items() if p.default is inspect.Parameter.empty and p.kind not in variadic}


def _related(scheduler: Scheduler, shipped: Scheduler) -> bool:
    """Whether two schedulers step through the same kind of noise schedule."""
    name, other = scheduler.__name__, shipped.__name__
    if name == other or {name, other} & ALONE:
        return name == other
    taken = compatible_schedulers(shipped)
    few = name in FEW_STEPS and "DDIMScheduler" in taken
    return few or name in taken or other in compatible_schedulers(scheduler)


def _serves(pipeline: Pipeline, scheduler: Scheduler) -> bool:
    """Whether a flow's scheduler does what the pipeline asks of it: its `set_timesteps` takes the noise levels and the
    shift that `__call__` always passes (Flux), and it can noise a picture where one is started from."""
    passed = diffusers_source_seam.schedule_arguments(pipeline)
    noising = diffusers_source_seam.noising_methods(pipeline)
    able = not noising or any(hasattr(scheduler, name) for name in noising)
    return able and passed <= set(inspect.signature(scheduler.set_timesteps).parameters)
