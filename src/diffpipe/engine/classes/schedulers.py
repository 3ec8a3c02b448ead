"""Which schedulers fit a pipeline, and another one in place of the shipped one."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from enum import Enum
from typing import Any

from ...core.errors import UsageError

# For models distilled to few steps (LCM and TCD LoRAs), on the noise schedule of the model they were distilled from.
FEW_STEPS = frozenset({"LCMScheduler", "TCDScheduler"})
# What `_compatibles` allow and mathematics does not: EDM scales what goes into the denoiser and comes out of it in its
# own way (arXiv:2206.00364), CogVideoX shifts the schedule to no signal at its end.
ALONE = frozenset({"EDMEulerScheduler", "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"})
NOTHING: Mapping[str, Any] = {}


def scheduler_class(name: str) -> Any:
    """A scheduler class of diffusers. Raises UsageError with near names, or the package that it needs."""
    import diffusers

    found = getattr(diffusers, name, None) if name.isidentifier() else None
    if _is_scheduler(found):
        return found
    if name.endswith("Scheduler") and (packages := getattr(found, "_backends", None)):
        missing = ", ".join(package for package in packages if not importlib.util.find_spec(package))
        raise UsageError(f"{name} needs a package that is not installed: {missing}", f"pip install {missing}")
    near = get_close_matches(name, [known for known in dir(diffusers) if "Scheduler" in known], n=3)
    raise UsageError(
        f"diffusers has no scheduler {name!r}", f"did you mean {' or '.join(near)}?" if near else "check the name"
    )


def _is_scheduler(found: Any) -> bool:
    import diffusers

    return isinstance(found, type) and issubclass(found, diffusers.SchedulerMixin) and hasattr(found, "set_timesteps")


def fitting(pipeline: type, shipped: Any = None, settings: Mapping[str, Any] = NOTHING) -> list[str]:
    """The names of the scheduler classes that a pipeline runs with, sorted.

    `shipped` and `settings`: the class and configuration of the model's own scheduler; without them, the classes that
    the pipeline's constructor names stand for it. A flow (Flux, SD 3, Wan) and a noise schedule (SD 1, XL) do not mix;
    the solvers with `use_flow_sigmas` do either. Among noise schedules, what fits is what diffusers' own `_compatibles`
    say. Schedulers of one model alone (aMUSEd, Würstchen, EDM) fit nothing else.
    """
    named = annotated(pipeline)
    shipped_ones = [shipped] if shipped else named
    flow = any(_flow(known) for known in shipped_ones) or bool(settings.get("use_flow_sigmas"))
    if flow:
        found = [known for known in _usable() if _flow(known) or _either(known)]
        found = [known for known in found if _serves(pipeline, known)]
    elif not shipped and named and all(map(_either, named)):  # Sana ships a flow, PixArt noise: both name DPM-Solver++
        found = [known for known in _usable() if _either(known)]
    else:
        found = [known for known in _usable() if any(_related(known, one) for one in shipped_ones)]
    own = [known for known in named if _either(known) or _flow(known) == flow]
    return sorted({known.__name__ for known in [*found, *own, *([shipped] if shipped else [])]})


def annotated(pipeline: type) -> list[Any]:
    """The scheduler classes that the constructor's annotation of `scheduler` names."""
    parameter = inspect.signature(pipeline.__init__).parameters.get("scheduler")  # type: ignore[misc]
    return list(_classes(parameter.annotation)) if parameter else []


def _classes(annotation: Any) -> Iterable[Any]:
    import diffusers

    parts: Iterable[Any]
    if isinstance(annotation, str):
        parts = (getattr(diffusers, name, None) for name in re.findall(r"\w+", annotation))
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType):
        parts = (one for part in typing.get_args(annotation) for one in _classes(part))
    elif isinstance(annotation, type) and issubclass(annotation, Enum):  # KarrasDiffusionSchedulers
        parts = (getattr(diffusers, member.name, None) for member in annotation if member.name not in ALONE)
    else:
        parts = [annotation]
    return [part for part in parts if _is_scheduler(part)]


def _usable() -> list[Any]:
    """The scheduler classes that any pipeline could call: those that denoise, step by step, with defaults for all."""
    import diffusers

    found = [getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Scheduler")]
    return [known for known in found if _is_scheduler(known) and _plain(known) and "Inverse" not in known.__name__]


def _plain(scheduler: Any) -> bool:
    """Whether it is made without arguments, and steps from (model output, timestep, sample) alone."""
    step = inspect.signature(scheduler.step).parameters if hasattr(scheduler, "step") else {"none": None}
    return _required(inspect.signature(scheduler.__init__).parameters) == {"self"} and _required(step) == {
        "self", "model_output", "timestep", "sample"
    }  # fmt: skip


def _required(parameters: Mapping[str, Any]) -> set[str]:
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = (p for p in parameters.values() if p and p.default is inspect.Parameter.empty and p.kind not in variadic)
    return {parameter.name for parameter in needed}


def _flow(scheduler: Any) -> bool:
    """Whether a scheduler integrates a flow (SD 3, Flux) rather than a noise schedule."""
    return "FlowMatch" in scheduler.__name__


def _either(scheduler: Any) -> bool:
    """Whether a scheduler does both, by its settings."""
    return "use_flow_sigmas" in inspect.signature(scheduler.__init__).parameters and bool(scheduler._compatibles)


def _related(scheduler: Any, shipped: Any) -> bool:
    """Whether two schedulers step through the same kind of noise schedule."""
    names = {scheduler.__name__, shipped.__name__}
    if len(names) == 1 or names & ALONE:
        return len(names) == 1
    few = scheduler.__name__ in FEW_STEPS and "DDIMScheduler" in shipped._compatibles
    return few or shipped.__name__ in scheduler._compatibles or scheduler.__name__ in shipped._compatibles


def _serves(pipeline: type, scheduler: Any) -> bool:
    """Whether a flow's scheduler does what the pipeline asks of it: its `set_timesteps` takes the noise levels and the
    shift that `__call__` always passes (Flux), and it can noise a picture where one is started from."""
    called = inspect.getsource(inspect.unwrap(pipeline.__call__))  # type: ignore[operator]
    passed = (
        {"sigmas"} if re.search(r"^ *sigmas = (?!None|self\.)|set_timesteps\(sigmas=", called, re.MULTILINE) else set()
    )
    passed |= {"mu"} if re.search(r"\bmu=(?!None)", called) else set()
    noising = set(re.findall(r"self\.scheduler\.(scale_noise|add_noise)\(", _module_source(pipeline)))
    able = not noising or any(hasattr(scheduler, name) for name in noising)
    return able and passed <= set(inspect.signature(scheduler.set_timesteps).parameters)


def _module_source(pipeline: type) -> str:
    # inspect.getsource of a class parses its whole module
    return inspect.getsource(inspect.getmodule(pipeline))  # type: ignore[arg-type]


def check(spec: Mapping[str, Any], pipeline: type, shipped: Any, settings: Mapping[str, Any]) -> None:
    """Raises UsageError where the build's `scheduler` does not fit or `scheduler_config` names what it has not.

    `shipped` and `settings`: the class and configuration of the model's own scheduler, None where it has none.
    """
    if not spec["scheduler"] and not spec["scheduler_config"]:
        return
    if shipped is None:
        raise UsageError("this pipeline has no scheduler to change", "leave out --scheduler and --scheduler-config")
    chosen = scheduler_class(spec["scheduler"]) if spec["scheduler"] else shipped
    names = fitting(pipeline, shipped, settings)
    if chosen.__name__ not in names:
        raise UsageError(
            f"{chosen.__name__} does not fit a model made for {shipped.__name__}", f"choose one of: {', '.join(names)}"
        )
    known = sorted(set(inspect.signature(chosen.__init__).parameters) - {"self"})
    for name, value in spec["scheduler_config"].items():
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise UsageError(
                f"{chosen.__name__} has no setting {name!r}",
                f"did you mean {near[0]}?" if near else f"it has: {', '.join(known)}",
            )
        _check_setting(chosen, name, value)
    try:
        replaced(shipped.from_config(dict(settings)), {"class": spec["scheduler"], "config": spec["scheduler_config"]})
    except Exception as error:  # constructors refuse a value in any way they like
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{chosen.__name__} cannot be set up so: {reason}", "check --scheduler-config") from error


def _check_setting(scheduler: Any, name: str, value: Any) -> None:
    """Raises UsageError for a value of another kind than the setting's default."""
    default = inspect.signature(scheduler.__init__).parameters[name].default
    for kind, allowed in ((bool, bool), (int | float, int | float), (str, str)):
        if isinstance(default, kind):
            fits = isinstance(value, allowed) and (kind is bool or not isinstance(value, bool))
            if value is not None and not fits:
                raise UsageError(
                    f"{scheduler.__name__}: {name} cannot be {json.dumps(value)}",
                    f"the default is {json.dumps(default)}",
                )
            return


def replaced(shipped: Any, scheduler: Mapping[str, Any]) -> Any:
    """The scheduler of a build, {"class": name or None, "config": settings}: always set up as the shipped one, with the
    settings laid over."""
    cls = scheduler_class(scheduler["class"]) if scheduler["class"] else type(shipped)
    return cls.from_config({**shipped.config, **_same_flow(cls, shipped), **scheduler["config"]})


def _same_flow(cls: Any, shipped: Any) -> dict[str, Any]:
    """The settings that let a solver of either kind integrate the flow of a FlowMatch scheduler, and back: each calls
    the timestep shift by another name."""
    if _flow(type(shipped)) and _either(cls):
        shift = {"flow_shift": shipped.config.get("shift", 1.0)}
        return {"use_flow_sigmas": True, "prediction_type": "flow_prediction", **shift}
    if _flow(cls) and shipped.config.get("use_flow_sigmas"):
        return {"shift": shipped.config.get("flow_shift", 1.0)}
    return {}
