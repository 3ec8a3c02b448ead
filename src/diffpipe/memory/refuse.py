"""Whether what is asked for needs far more memory than the machine has: told before anything is loaded.

On the CPU nothing else would: the kernel grants memory until there is none, and then ends the process.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..core.errors import DiffpipeError, Exit
from ..core.flag import PER_CALL, Flag, nearest
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

Sizes = Mapping[str, Any]  # call arguments
Check = Callable[[Sizes], None]


def check_of(manifest: Manifest, locations: Mapping[Role, str], batch_size: int, step_down: bool) -> Check:
    """A function that raises DiffpipeError with exit code 5 for call arguments that need far too much memory.

    `locations`: where its sources lie. `step_down`: whether a GPU that is full may be used in a
    placement that needs less, which is then what counts. What is not known counts as nothing.
    """
    flags = manifest.flags_by_name
    found = functools.cache(lambda: built_table(manifest, locations))
    short = functools.cache(functools.partial(_short, manifest, found, step_down))

    def check(arguments: Sizes) -> None:
        task = _task(manifest, found(), flags, arguments, batch_size)
        if task is None or not (said := short(task, FAR)):
            return
        frames = f", {task.frames} frames" if task.frames > 1 else ""
        at_once = f", {task.batch} at once" if task.batch > 1 else ""
        fits = next((told for told, one in _smaller(task, flags) if not short(one, 1.0)), "--memory auto at the build")
        raise DiffpipeError(
            f"{task.width} x {task.height}{frames}{at_once}: {said}",
            f"{fits} is predicted to need less; --force tries it as it is",
            Exit.OUT_OF_MEMORY,
        )

    return check


def needed(manifest: Manifest, locations: Mapping[Role, str]) -> tuple[int, int]:
    """Bytes of host and of device memory that an ordinary run of a pipeline is predicted to need; 0 where unknown."""
    flags = manifest.flags_by_name
    found = built_table(manifest, locations)
    task = _task(manifest, found, flags, {}, 1)
    if task is None:
        return 0, 0
    predicted = peaks(found.parts, manifest.config.placement, task)
    return max(peak.host for peak in predicted), max(peak.device for peak in predicted)


def _task(
    manifest: Manifest, found: Table, flags: Mapping[str, Flag], arguments: Sizes, batch_size: int
) -> Task | None:
    """What is to be made; None where its size is not known."""

    def size(name: str, usual: str) -> int | None:
        default = flags[name].default if name in flags else None
        value = arguments.get(name) or default or found.sizes.get(usual)
        return value if isinstance(value, int) else None

    width, height = size("width", "width"), size("height", "height")
    if not (width or height):
        return None
    prompts = arguments.get("prompt")
    at_once = max(int(arguments.get(name) or 1) for name in PER_CALL) * batch_size
    return Task(
        pipeline=found.pipeline,
        width=width or height or 0,
        height=height or width or 0,
        frames=size("num_frames", "frames") or 1 if manifest.kind == "video" else 1,
        batch=at_once * (len(prompts) if isinstance(prompts, list) else 1),
        dtype=manifest.config.dtype,
        device=device_kind(manifest.config.device),
    )


def _short(manifest: Manifest, found: Callable[[], Table], step_down: bool, task: Task, most: float) -> str:
    """What a run needs and what there is, in words, where the one is `most` times the other; else ""."""
    placement = manifest.config.placement
    if task.device == "accelerator" and step_down:
        placement = replace(placement, vae_slicing=True, vae_tiling=True, cpu_offload="sequential")
    predicted = peaks(found().parts, placement, task)
    there = accelerator(manifest.config.device) if task.device == "accelerator" else None
    both = there is not None and there.shared
    host = max(peak.host + (peak.device if both else 0) for peak in predicted)
    if said := _beyond(host, host_total(), "this machine has", most):
        return said
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
