"""What a scheduler's settings do, seen by stepping it through a few numbers instead of a model."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from ...core.canonical import JsonValue
from ..seams.diffusers_source_seam import passes_shift, schedule_arguments

if TYPE_CHECKING:
    import torch
    from diffusers import SchedulerMixin

    from ..classes.schedulers import Pipeline

# Settings of solvers look at how many steps there are: few and many, even and odd.
STEP_COUNTS = (4, 5, 17)
# Of a sample, and of what a model predicts of it: latents, and pixels with their variance.
CHANNELS = ((4, 4), (4, 8), (3, 6))
TOKENS = 1024  # of a picture of 512 x 512, for the shift that grows with them


def problem(scheduler: SchedulerMixin, pipeline: Pipeline) -> str:
    """Why a scheduler cannot step, whatever the number of steps and the channels; "" where it can."""
    import torch

    reason = ""
    for count, (channels, predicted) in itertools.product(STEP_COUNTS, CHANNELS):
        try:
            if all(bool(torch.isfinite(one).all()) for one in _trace(scheduler, pipeline, count, channels, predicted)):
                return ""
            reason = reason or "what it makes are not finite numbers"
        except Exception as error:  # schedulers refuse settings in any way they like
            reason = reason or " ".join(str(error).split())[:200] or type(error).__name__
    return reason


def changed_while_running(scheduler: SchedulerMixin, pipeline: Pipeline, asked: Mapping[str, JsonValue]) -> set[str]:
    """The settings asked for that the scheduler gives another value once it is told its steps."""
    changed: set[str] = set()
    for count in STEP_COUNTS:
        one = copy.deepcopy(scheduler)
        with suppress(Exception):  # what cannot be tried so is left to the call itself
            _set_steps(one, pipeline, count)
            changed |= {name for name in asked if one.config[name] != scheduler.config[name]}
    return changed


def same_effect(one: SchedulerMixin, other: SchedulerMixin, pipeline: Pipeline) -> bool:
    """Whether two schedulers of one class step alike; False where that cannot be tried."""
    import torch

    try:
        pairs = [(_trace(one, pipeline, count), _trace(other, pipeline, count)) for count in STEP_COUNTS]
    except Exception:  # a scheduler may ask for anything that only its own pipeline has
        return False
    return all(
        len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        for first, second in pairs
    )


def _trace(
    scheduler: SchedulerMixin, pipeline: Pipeline, steps: int, channels: int = 4, predicted: int = 4
) -> list[torch.Tensor]:
    """Everything that a scheduler makes of a made-up model in some steps: timesteps, noise levels, each sample.

    `channels`: of the sample; `predicted`: of what the model makes of it.
    """
    import torch

    made = copy.deepcopy(scheduler)
    with torch.random.fork_rng(devices=()), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numbers that no model makes
        torch.manual_seed(0)
        _set_steps(made, pipeline, steps)
        sample = torch.randn(1, channels, 4, 4) * torch.as_tensor(getattr(made, "init_noise_sigma", 1.0))
        return [*_schedule(made), *_samples(made, sample, predicted // channels)]


def _schedule(scheduler: SchedulerMixin) -> Iterator[torch.Tensor]:
    import torch

    for name in ("timesteps", "sigmas"):
        if getattr(scheduler, name, None) is not None:
            yield torch.as_tensor(getattr(scheduler, name)).double()


def _samples(scheduler: SchedulerMixin, sample: torch.Tensor, times: int) -> Iterator[torch.Tensor]:
    """The sample after each step. What stands for the model gives values beyond 1, so that clipping shows."""
    import torch

    extra = _generator(scheduler.step)
    for at in scheduler.timesteps:
        scaled = scheduler.scale_model_input(sample, at) if hasattr(scheduler, "scale_model_input") else sample
        made = scheduler.step((3 * torch.sin(2 * scaled + 1)).repeat(1, times, 1, 1), at, sample, **extra)
        sample = made[0] if isinstance(made, tuple) else made.prev_sample
        yield sample.clone()


def _generator(step: Callable[..., object]) -> dict[str, torch.Generator]:
    import torch

    taken = "generator" in inspect.signature(step).parameters
    return {"generator": torch.Generator().manual_seed(0)} if taken else {}


def _set_steps(scheduler: SchedulerMixin, pipeline: Pipeline, steps: int) -> None:
    """As the pipeline sets them: with noise levels and a shift of its own where it passes those."""
    passed = schedule_arguments(pipeline)
    takes = inspect.signature(scheduler.set_timesteps).parameters
    own_sigmas = "sigmas" in passed & set(takes) and not scheduler.config.get("use_flow_sigmas")
    how = {"sigmas": [1 - n / steps for n in range(steps)]} if own_sigmas else {"num_inference_steps": steps}
    shifts = "mu" in takes and scheduler.config.get("use_dynamic_shifting") and passes_shift(pipeline)
    mu = {"mu": _shift(scheduler.config)} if shifts else {}
    scheduler.set_timesteps(**how, **mu)


def _shift(config: Mapping[str, JsonValue]) -> float:
    """Linear in the tokens between two known sizes (calculate_shift of diffusers' pipeline_flux.py)."""

    def setting(name: str, usual: float) -> float:
        value = config.get(name)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else usual

    least, most = setting("base_image_seq_len", 256), setting("max_image_seq_len", 4096)
    low, high = setting("base_shift", 0.5), setting("max_shift", 1.15)
    return low + (high - low) * (TOKENS - least) / (most - least) if most != least else low
