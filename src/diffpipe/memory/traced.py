"""A trace beside the estimate: what each stage holds besides weights by either, and the peaks that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..catalog.plugins import float32_of_class
from ..core.build_spec import Placement
from ..core.components import Stage
from ..core.tracing import Held
from .estimate import AT_WORK, BESIDE, CONVOLUTION, RESERVE, Task, moving, peaks, shown_at_once, weights
from .recorded import RecordedModel, RecordedTrace
from .sizes import Sizes
from .tables import in_float32

WITHIN = 0.10  # how far an estimate may be off a trace
SLACK = RESERVE // 10  # bytes: so little is in what is left alone of each device
TRACED: tuple[Stage, ...] = ("encode", "denoise", "decode")

# Where estimate and trace of a recorded model are further apart, by model and stage: which of them is wrong, and why.
APART: Mapping[tuple[str, Stage], str] = {
    ("wan2.1-14b", "encode"): "the estimate is too high where several samples are made at once: the table of T5's "
    "distances is one for all of them",
    ("wuerstchen", "denoise"): "the estimate is too low: the second denoiser, which is called decoder, counts as what "
    "decodes",
}


@dataclass(frozen=True)
class Beside:
    """A stage by trace and by estimate, in bytes.

    `component`: the one at work at the traced peak. `living`: the tensors alive then besides weights; `traced`: with
    what convolutions take besides, as estimates count it; `device`: with the weights that are on the device then.
    `estimated`: the most that a component is estimated to hold in this stage.
    """

    stage: Stage
    component: str
    living: int
    traced: int
    device: int
    estimated: int

    @property
    def off(self) -> float:
        """How far the estimate is from the trace: 0.1 for a tenth more."""
        return self.estimated / self.traced - 1 if self.traced else 0.0

    @property
    def agrees(self) -> bool:
        return abs(self.off) <= WITHIN or abs(self.estimated - self.traced) <= SLACK


def beside(parts: Sequence[Sizes], placement: Placement, task: Task, held: Sequence[Held]) -> tuple[Beside, ...]:
    """Each stage of a trace beside its estimate. Components of unknown size weigh nothing.

    On the CPU, where the process is in the same memory, `device` has it too.
    """
    kept = weights(parts, placement, task.dtype)
    known = {part.name: part for part in parts if part.name in kept}
    offloaded = placement.cpu_offload != "none"
    guides = sum(kept[name] for name, part in known.items() if part.kind in BESIDE)

    process = {peak.stage: peak.device - peak.moving for peak in peaks(parts, placement, task)}

    def on_device(one: Held, taken: int) -> int:
        if not offloaded:
            return (process[one.stage] if task.device == "cpu" else sum(kept.values())) + taken
        part = known.get(one.component)
        there = shown_at_once(part, kept[part.name], placement.cpu_offload) if part else 0
        return there + taken + (guides if one.stage == "denoise" else 0)

    found = []
    for stage in TRACED:
        rows = [(one, _taken(one, known.get(one.component), task)) for one in held if one.stage == stage]
        if not rows:
            continue
        one, taken = max(rows, key=lambda row: on_device(*row))
        estimates = (moving(part, placement, task) for part in known.values() if part.kind in AT_WORK[stage])
        found.append(Beside(stage, one.component, one.living, taken, on_device(one, taken), max(estimates, default=0)))
    return tuple(found)


def _taken(one: Held, part: Sizes | None, task: Task) -> int:
    """What lives, with what convolutions take besides in a decoder."""
    if part is None or part.kind != "decoder":
        return one.living
    return round(one.living * CONVOLUTION[task.device]["3d" if part.temporal > 1 else "2d"])


def of_recorded(model: RecordedModel, trace: RecordedTrace) -> tuple[Beside, ...]:
    """A recorded trace beside the estimate from the recorded constants."""
    parts = in_float32(model.components, float32_of_class(model.pipeline))
    made = trace.made
    task = Task(model.pipeline, made["width"], made["height"], made["frames"], made["batch"])
    return beside(parts, Placement(), task, trace.held)
