"""What a call draws noise from, and leaves behind, so that an item is the same in any place and beside any others."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ...core.errors import DrawnTogether
from ..placement.devices import RandomStates

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline, SchedulerMixin

NUMPY_SEEDS = 2**32  # numpy.random.seed takes no larger ones


def generators(seeds: Sequence[int]) -> torch.Generator | list[torch.Generator]:
    """A generator for each seed, on the CPU, so that a seed means the same noise on every device.

    All generators that a process has begin anew, too: some decoders and schedulers draw from those (LTX's noise
    injection, DPM-Solver's SDE).
    """
    import numpy as np
    import torch

    torch.manual_seed(seeds[0])
    np.random.seed(seeds[0] % NUMPY_SEEDS)
    random.seed(seeds[0])
    found = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    return found if len(found) > 1 else found[0]


@contextmanager
def each_its_own(pipe: DiffusionPipeline, items: int) -> Iterator[None]:
    """A call for some items, which leaves the schedulers as they were.

    Raises DrawnTogether where there are several and noise came from what they share: a sampler of the scheduler's own
    (one Brownian tree for the whole tensor), or a generator of the process.
    """
    schedulers = _schedulers(pipe)
    if items > 1 and any(hasattr(one, "noise_sampler") for one in schedulers):
        raise DrawnTogether()
    before = [copy.deepcopy(vars(one)) for one in schedulers]
    drawn = _states() if items > 1 else ()
    try:
        yield
    finally:
        for one, state in zip(schedulers, before, strict=True):
            vars(one).clear()
            vars(one).update(state)
    if items > 1 and drawn != _states():
        raise DrawnTogether()


def _schedulers(pipe: DiffusionPipeline) -> list[SchedulerMixin]:
    """The schedulers of a pipeline and of those in it, each once."""
    from diffusers import DiffusionPipeline, SchedulerMixin

    inner = [one for one in vars(pipe).values() if isinstance(one, DiffusionPipeline)]
    found = {
        id(part): part for one in [pipe, *inner] for part in vars(one).values() if isinstance(part, SchedulerMixin)
    }
    return list(found.values())


def _states() -> tuple[object, ...]:
    """The states of all generators of the process, as what can be compared."""
    now = RandomStates.now()
    tensors = [bytes(state.cpu().numpy()) for state in (now.cpu, *now.accelerator)]
    inner = now.numpy["state"]
    return (*tensors, now.python, inner["key"].tobytes(), inner["pos"])
