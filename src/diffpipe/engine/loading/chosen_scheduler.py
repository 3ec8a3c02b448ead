"""The scheduler that a build asks for, in the place of the model's own: whether it can be, and making it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING

from ...core.canonical import JsonObject, JsonValue
from ...core.configuration import SchedulerChoice
from ...core.errors import UsageError
from ..classes.schedulers import fitting, schedule_of, scheduler_class

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

    from ..classes.schedulers import Pipeline, Scheduler

# What a setting may be, by its default.
KINDS = ((bool, bool), (int | float, int | float), (str, str))


def check(
    asked: SchedulerChoice, pipeline: Pipeline, shipped: Scheduler | None, settings: Mapping[str, JsonValue]
) -> None:
    """Raises UsageError where the scheduler asked for does not fit the model, or has no such settings.

    `shipped` and `settings`: the class and configuration of the model's own scheduler, None where it has none.
    """
    if not asked:
        return
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
    try:
        replaced(shipped.from_config(dict(settings)), asked)
    except Exception as error:  # constructors refuse a value in any way they like
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{chosen.__name__} cannot be set up so: {reason}", "check --scheduler-config") from error


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
    default = parameters[name].default
    allowed = next((allowed for kind, allowed in KINDS if isinstance(default, kind)), None)
    if allowed is None or value is None:
        return
    if not isinstance(value, allowed) or (isinstance(value, bool) and allowed is not bool):
        raise UsageError(
            f"{scheduler.__name__}: {name} cannot be {json.dumps(value)}", f"the default is {json.dumps(default)}"
        )


def replaced(shipped: SchedulerMixin, asked: SchedulerChoice) -> SchedulerMixin:
    """The scheduler of a build: always set up as the shipped one, with the settings laid over."""
    cls = scheduler_class(asked.name) if asked.name else type(shipped)
    # As arguments: from_config drops settings of the configuration that the shipped one had by default alone.
    made: SchedulerMixin = cls.from_config(shipped.config, **{**_same_flow(cls, shipped), **asked.settings})
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
