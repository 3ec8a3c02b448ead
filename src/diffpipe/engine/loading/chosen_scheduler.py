"""The scheduler that a build asks for, in the place of the model's own: whether it can be, and making it."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING

from ...core.canonical import JsonObject, JsonValue
from ...core.configuration import SchedulerChoice
from ...core.errors import UsageError
from ..classes.schedulers import fitting, schedule_of, scheduler_class
from ..seams.diffusers_source_seam import reads_setting
from . import scheduler_effect

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, SchedulerMixin

    from ..classes.schedulers import Pipeline, Scheduler

LARGEST = 1_000_000  # of a number: schedulers make tables as long as num_train_timesteps, 1,000 of every known model
# What a setting may be, by its default.
KINDS = ((bool, bool), (int | float, int | float), (str, str))


def check(
    asked: SchedulerChoice, pipeline: Pipeline, shipped: Scheduler | None, settings: Mapping[str, JsonValue]
) -> list[str]:
    """What the user should hear of the settings asked for: those without an effect, those that do not stay.

    `shipped` and `settings`: the class and configuration of the model's own scheduler, None where it has none. Raises
    UsageError where the scheduler does not fit the model, has no such settings, or makes other ones of them.
    """
    if not asked:
        return []
    if shipped is None:
        raise UsageError("this pipeline has no scheduler to change", "leave out --scheduler and --scheduler-config")
    chosen = scheduler_class(asked.name) if asked.name else shipped
    names = fitting(pipeline, shipped, settings)
    if chosen.__name__ not in names:
        raise UsageError(
            f"{chosen.__name__} does not fit a model made for {shipped.__name__}", f"choose one of: {', '.join(names)}"
        )
    for name, value in asked.settings.items():
        _check_setting(chosen, name, value)
    own = shipped.from_config(dict(settings))
    made = set_up(own, asked, chosen)
    _check_steps(own, made, asked, pipeline)
    return [*_idle(own, made, asked, pipeline), *_overruled(made, asked, pipeline)]


def set_up(own: SchedulerMixin, asked: SchedulerChoice, chosen: Scheduler) -> SchedulerMixin:
    """The scheduler asked for, with every setting as it was asked for.

    Raises UsageError where it cannot be made, with the package that it lacks, or makes another value of a setting.
    """
    try:
        made = replaced(own, asked)
    except Exception as error:  # constructors refuse a value in any way they like
        reason = " ".join(str(error).split())[:200]
        package = re.search(r"install (\w+)", reason) if isinstance(error, ImportError) else None
        hint = f"pip install {package[1]}" if package else "check --scheduler-config"
        raise UsageError(f"{chosen.__name__} cannot be set up so: {reason}", hint) from error
    for name, value in asked.settings.items():
        found = plain(made.config.get(name))
        if found != plain(value):
            raise UsageError(
                f"{chosen.__name__} makes {json.dumps(found)} of {name} = {json.dumps(value)}",
                f"ask for {json.dumps(found)}, leave {name} out, or choose another --scheduler",
            )
    return made


def _check_steps(own: SchedulerMixin, made: SchedulerMixin, asked: SchedulerChoice, pipeline: Pipeline) -> None:
    """Raises UsageError where the settings keep a scheduler from stepping, which many look at only then."""
    if not asked.settings or not (reason := scheduler_effect.problem(made, pipeline)):
        return
    if not scheduler_effect.problem(replaced(own, SchedulerChoice(asked.name, {})), pipeline):
        raise UsageError(f"{type(made).__name__} cannot run so: {reason}", "check --scheduler-config")


def plain(value: object) -> JsonValue:
    """A setting as JSON has it: tuples and arrays as lists."""
    found: JsonValue = json.loads(json.dumps(value, default=lambda other: getattr(other, "tolist", other.__str__)()))
    return found


def _idle(own: SchedulerMixin, made: SchedulerMixin, asked: SchedulerChoice, pipeline: Pipeline) -> Iterator[str]:
    """What changes nothing: without it, the scheduler does the same, and the pipeline does not read it."""
    for name in asked.settings:
        rest = {other: value for other, value in asked.settings.items() if other != name}
        try:
            without = replaced(own, SchedulerChoice(asked.name, rest))
        except Exception:  # needed by the others, then
            continue
        changed = plain(without.config.get(name)) != plain(made.config.get(name))
        if changed and not reads_setting(pipeline, name) and scheduler_effect.same_effect(made, without, pipeline):
            yield f"--scheduler-config {name} changes nothing: {type(made).__name__} does not use it as it is set up"


def _overruled(made: SchedulerMixin, asked: SchedulerChoice, pipeline: Pipeline) -> Iterator[str]:
    for name in sorted(scheduler_effect.changed_while_running(made, pipeline, asked.settings)):
        yield f"--scheduler-config {name} does not stay: {type(made).__name__} sets it anew by the number of steps"


def _check_setting(scheduler: Scheduler, name: str, value: JsonValue) -> None:
    """Raises UsageError for a setting that there is not, or a value of another kind than its default."""
    parameters = inspect.signature(scheduler.__init__).parameters
    known = sorted(parameters.keys() - {"self"})
    if name not in known:
        near = get_close_matches(name, known, n=1)
        raise UsageError(
            f"{scheduler.__name__} has no setting {name!r}",
            f"did you mean {near[0]}?" if near else f"it has: {', '.join(known)}",
        )
    if isinstance(value, int | float) and not abs(value) <= LARGEST:
        raise UsageError(f"{scheduler.__name__}: {name} cannot be {json.dumps(value)}", f"{LARGEST:,} is the most")
    default = parameters[name].default
    allowed = next((allowed for kind, allowed in KINDS if isinstance(default, kind)), None)
    if allowed is None or value is None:
        return
    if not isinstance(value, allowed) or (isinstance(value, bool) and allowed is not bool):
        raise UsageError(
            f"{scheduler.__name__}: {name} cannot be {json.dumps(value)}", f"the default is {json.dumps(default)}"
        )


def put(pipe: DiffusionPipeline, asked: SchedulerChoice) -> None:
    """Give a pipeline the scheduler asked for, and the pipelines in it that had the same one (Würstchen's decoder)."""
    from diffusers import DiffusionPipeline

    own = pipe.scheduler
    made = replaced(own, asked)
    inner = (one for one in vars(pipe).values() if isinstance(one, DiffusionPipeline))
    for one in [pipe, *inner]:
        if getattr(one, "scheduler", None) is own:
            one.scheduler = made


def replaced(shipped: SchedulerMixin, asked: SchedulerChoice) -> SchedulerMixin:
    """The scheduler of a build: always set up as the shipped one, with the settings laid over."""
    cls = scheduler_class(asked.name) if asked.name else type(shipped)
    # As arguments: from_config drops settings of the configuration that the shipped one had by default alone.
    given = {**_same_flow(cls, shipped), **asked.settings}
    made: SchedulerMixin = cls.from_config(shipped.config, **given)
    # It takes the shipped one's list of what was not given along, by which it would be dropped when made anew.
    unset = [name for name in made.config.get("_use_default_values", ()) if name not in given]
    made.register_to_config(_use_default_values=unset)
    return made


def _same_flow(cls: Scheduler, shipped: SchedulerMixin) -> JsonObject:
    """The settings that let a solver of either kind integrate the flow of a FlowMatch scheduler, and back: each calls
    the timestep shift by another name."""
    made, given = schedule_of(cls), schedule_of(type(shipped))
    if (given, made) == ("flow", "either"):
        shift = {"flow_shift": shipped.config.get("shift", 1.0)}
        return {"use_flow_sigmas": True, "prediction_type": "flow_prediction", **shift}
    if made == "flow" and shipped.config.get("use_flow_sigmas"):
        return {"shift": shipped.config.get("flow_shift", 1.0)}
    return {}
