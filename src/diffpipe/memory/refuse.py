"""Whether what is asked for needs far more memory than the machine has: refused before anything is loaded.

On the CPU nothing else would: the kernel grants memory until there is none, and then ends the process.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property

from ..core.errors import DiffpipeError, Exit
from ..core.flag import PER_CALL, Arguments, Flag, nearest
from ..core.manifest import Manifest
from ..core.source import Role
from .estimate import Task, peaks
from .machine import accelerator, device_kind, host_total
from .plan import gib
from .tables import Table, built_table

# Refused is what needs this many times the memory there is in all: predictions of classes that nothing was recorded of
# may be twice too high, and swapping makes up for some.
FAR = 2.0
HALVINGS = 12  # of frames, and of width and height, in search of what to name that fits

Check = Callable[[Arguments], None]


def check_of(manifest: Manifest, locations: Mapping[Role, str], batch_size: int, step_down: bool) -> Check:
    """A function that raises DiffpipeError with exit code 5 for call arguments that need far too much memory.

    `locations`: where its sources lie. `step_down`: whether a GPU that is full may be used in a placement that needs
    less, which is then what counts. What is not known counts as nothing.
    """
    return _Pipeline(manifest, locations, batch_size, step_down).check


def needed(manifest: Manifest, locations: Mapping[Role, str]) -> tuple[int, int]:
    """Bytes of host and of device memory that an ordinary run of a pipeline is predicted to need; 0 where unknown."""
    pipeline = _Pipeline(manifest, locations)
    task = pipeline.task({})
    predicted = peaks(pipeline.table.parts, manifest.config.placement, task) if task else ()
    return max((peak.host for peak in predicted), default=0), max((peak.device for peak in predicted), default=0)


class _Pipeline:
    """What runs of a built pipeline are predicted to need, from its manifest and settings: nothing is loaded."""

    def __init__(
        self, manifest: Manifest, locations: Mapping[Role, str], batch_size: int = 1, step_down: bool = False
    ) -> None:
        self.manifest, self.locations = manifest, locations
        self.batch_size, self.step_down = batch_size, step_down
        self.flags = manifest.flags_by_name
        self.short = functools.cache(self._short)  # a batch asks for the same sizes thousands of times

    @cached_property
    def table(self) -> Table:
        return built_table(self.manifest, self.locations)

    def check(self, arguments: Arguments) -> None:
        """Raises DiffpipeError, naming what is predicted to fit."""
        task = self.task(arguments)
        if task is None or not (problem := self.short(task, FAR)):
            return
        frames = f", {task.frames} frames" if task.frames > 1 else ""
        at_once = f", {task.batch} at once" if task.batch > 1 else ""
        smaller = (words for words, one in _smaller(task, self.flags) if not self.short(one, 1.0))
        raise DiffpipeError(
            f"{task.width} x {task.height}{frames}{at_once}: {problem}",
            f"{next(smaller, '--memory auto at the build')} is predicted to need less; --force tries it as it is",
            Exit.OUT_OF_MEMORY,
        )

    def task(self, arguments: Arguments) -> Task | None:
        """What is to be made; None where its size is not known."""
        width, height = self._size(arguments, "width"), self._size(arguments, "height")
        if not (width or height):
            return None
        prompts = arguments.get("prompt")
        at_once = max(int(arguments.get(name) or 1) for name in PER_CALL) * self.batch_size
        video = self.manifest.kind == "video"
        return Task(
            pipeline=self.table.pipeline,
            width=width or height or 0,
            height=height or width or 0,
            frames=(self._size(arguments, "num_frames", "frames") or 1) if video else 1,
            batch=at_once * (len(prompts) if isinstance(prompts, list) else 1),
            dtype=self.manifest.config.dtype,
            device=device_kind(self.manifest.config.device),
        )

    def _size(self, arguments: Arguments, name: str, usual: str = "") -> int | None:
        """A size as it is asked for, else the flag's own, else the model's."""
        default = self.flags[name].default if name in self.flags else None
        value = arguments.get(name) or default or self.table.sizes.get(usual or name)
        return value if isinstance(value, int) else None

    def _short(self, task: Task, most: float) -> str:
        """What a run needs and what there is, in words, where the one is `most` times the other; else ""."""
        placement, there = self.manifest.config.placement, None
        if task.device == "accelerator":
            there = accelerator(self.manifest.config.device)
            if self.step_down:
                placement = replace(placement, vae_slicing=True, vae_tiling=True, cpu_offload="sequential")
        predicted = peaks(self.table.parts, placement, task)
        both = there is not None and there.shared
        host = max(peak.host + (peak.device if both else 0) for peak in predicted)
        if problem := _beyond(host, host_total(), "this machine has", most):
            return problem
        if there is None or both:
            return ""
        return _beyond(max(peak.device for peak in predicted), there.total, "the GPU has", most)


def _beyond(needed: int, total: int | None, owner: str, most: float) -> str:
    if not total or needed <= most * total:
        return ""
    return f"some {gib(needed)} of memory would be needed, and {owner} {gib(total)} in all"


def _smaller(task: Task, flags: Mapping[str, Flag]) -> Iterator[tuple[str, Task]]:
    """The same with less to make at once, then shorter, then smaller, and how to call it; in sizes that can be made."""
    if task.batch > 1:
        yield "one at a time", replace(task, batch=1)
    for halved in range(1, HALVINGS):
        if frames := task.frames >> halved:
            yield f"{frames} frames", replace(task, frames=frames, batch=1)
    for halved in range(1, HALVINGS):
        width, height = (
            nearest(flags[name], side >> halved)[0] if name in flags else max(side >> halved, 1)
            for name, side in (("width", task.width), ("height", task.height))
        )
        yield f"{width} x {height}", replace(task, width=width, height=height)
