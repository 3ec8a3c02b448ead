"""How a pipeline will be kept in memory, decided before anything is downloaded or loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..cache import measured
from ..cache.store import Store
from ..catalog.rows import PipelineType
from ..core.build_spec import BuildSpec, Placement
from ..core.device_names import DeviceKind
from ..core.errors import DiffpipeError, Exit, UsageError
from ..sources.pin import Pinned
from . import knobs
from .build_need import BuildNeed, build_need
from .estimate import Task, correction
from .machine import accelerator, device_kind, free, host_free
from .plan import UNLIMITED, Machine, Plan, plan
from .tables import Table, table

Sizes = Mapping[str, int | None]  # width, height, frames and batch as asked for; None for the usual
NOTHING: Sizes = {}


@dataclass(frozen=True)
class Choice:
    """A build request with the placement it gets; why, where it was chosen; and what the user should hear of it.

    `need`: host memory that the build takes, None where it loads nothing.
    """

    spec: BuildSpec
    reason: str = ""
    notices: tuple[str, ...] = ()
    need: BuildNeed | None = None


def choose(spec: BuildSpec, row: PipelineType, store: Store, offline: bool, pinned: Callable[[], Pinned]) -> Choice:
    """The placement of a build: the switches given as far as the model takes them, or the fastest that fits.

    Raises UsageError for a combination known not to work, naming one that does; DiffpipeError with exit code 5 where
    nothing is predicted to fit, saying what is nearest.
    """
    asked = spec.placement
    if asked.memory == "manual" and asked.device_memory:
        raise UsageError("--device-memory does nothing without --memory auto", "add --memory auto")
    if asked == Placement():
        return Choice(spec)
    if asked.memory == "manual":
        knobs.check(asked, spec.pipeline or row.pipeline, device_kind(spec.device))
        found = table(spec, row, store, offline, pinned)
        taken, notices = knobs.takable(asked, found.parts)
        task = task_of(found, row, NOTHING, spec.dtype, "cpu")
        need = build_need(found.parts, taken, task, loras=bool(spec.loras))
        return Choice(replace(spec, placement=taken), notices=notices, need=need)
    # Without a GPU it will run on the CPU, so the limit is the host's.
    here = "cpu" if device_kind(spec.device) == "cpu" else spec.device
    machine = machine_of(here, asked.device_memory)
    found, task, made = planned(spec, row, store, offline, machine, pinned)
    if not made.chosen.fits:
        raise DiffpipeError(made.reason, "free some memory, or name the switches yourself", Exit.OUT_OF_MEMORY)
    notices = made.notices
    if made.unknown:
        notices += (f"the size of {', '.join(made.unknown)} is not known: more will be needed than was planned for",)
    placement = replace(made.chosen.placement, memory="auto", device_memory=asked.device_memory)
    need = build_need(found.parts, placement, task, loras=bool(spec.loras))
    return Choice(replace(spec, placement=placement), made.reason, notices, need)


def planned(
    spec: BuildSpec,
    row: PipelineType,
    store: Store,
    offline: bool,
    machine: Machine,
    pinned: Callable[[], Pinned],
    sizes: Sizes = NOTHING,
) -> tuple[Table, Task, Plan]:
    """A request's components, what it is planned for, and the plan. `sizes`: width, height, frames, batch as asked for.

    Peaks that runs of the same model measured correct the predictions. Raises UsageError as `choose` does.
    """
    knobs.check(spec.placement, spec.pipeline or row.pipeline, machine.device)
    found = table(spec, row, store, offline, pinned)
    task = task_of(found, row, sizes, spec.dtype, machine.device)
    factors = correction(known_peaks(store, spec.model, found.pipeline), found.parts, task)
    made = plan(found.parts, task, machine, replace(spec.placement, device_memory=None), factors)
    return found, task, made


def known_peaks(store: Store, model: str, pipeline: str) -> list[measured.Measured]:
    """What runs of pipelines of this model and class measured here."""
    labels = {model, Path(model).name}
    return [
        record
        for entry in store.entries()
        if entry.summary.pipeline == pipeline and entry.summary.model.partition("@")[0] in labels
        for record in measured.read(entry.folder)
    ]


def machine_of(device: str, wanted: int | None) -> Machine:
    """What to plan for: the memory `wanted` in bytes, else what is free on the device now.

    Raises UsageError if that is unknown.
    """
    host = host_free() or UNLIMITED
    if device == "cpu":
        return Machine("cpu", wanted or host, wanted or host)
    if wanted:  # a machine that is not here: its host memory is not known
        return Machine("accelerator", wanted)
    here = accelerator(device)
    if here is None and device == "auto":
        return Machine("cpu", host, host)
    memory = free(here) if here else None
    if here is None or memory is None:
        name = here.name if here else device
        raise UsageError(f"nothing here says how much memory {name} has", "name it, for example --device-memory 12GiB")
    return Machine("accelerator", memory, host, here.shared)


def task_of(found: Table, row: PipelineType, sizes: Sizes, dtype: str, device: DeviceKind) -> Task:
    """What to plan for: the sizes asked for, else the row's defaults, else the model's."""

    def size(name: str, argument: str, default: int) -> int:
        return int(sizes.get(name) or row.defaults.get(argument) or found.sizes.get(name) or default)

    films = any(part.kind == "decoder" and part.temporal > 1 for part in found.parts)
    video = "video" in row.name or (films and not found.pipeline.startswith("QwenImage"))
    return Task(
        pipeline=found.pipeline,
        width=size("width", "width", 832 if video else 1024),
        height=size("height", "height", 480 if video else 1024),
        frames=size("frames", "num_frames", 81 if video else 1),
        batch=sizes.get("batch") or 1,
        steps=size("steps", "num_inference_steps", 28),
        dtype=dtype,
        device=device,
    )
