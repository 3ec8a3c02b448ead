"""diffpipe plan PROVIDER: what a pipeline needs and where it would live, before anything is downloaded or loaded."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..catalog.plugins import providers
from ..catalog.rows import Provider
from ..core.device_names import WRITTEN_KIND
from ..storage.disk import readable
from . import output, tree
from .build import BUILD, parameters, spec_of
from .flags import option, with_parameters

if TYPE_CHECKING:
    from ..building.request import Request
    from ..cache.store import Store
    from ..memory.build_need import BuildNeed
    from ..memory.estimate import Task
    from ..memory.plan import Machine, Option, Plan
    from ..memory.tables import Table
    from ..memory.traced import Beside

MAKING = "What is made"
SIZES = [
    option("width", int | None, None, "Pixels. Default: the model's own.", panel=MAKING, metavar="INTEGER", min=8),
    option("height", int | None, None, "Pixels. Default: the model's own.", panel=MAKING, metavar="INTEGER", min=8),
    option("frames", int | None, None, "Frames of a video. Default: the model's own.", panel=MAKING, metavar="INTEGER",
        min=1),
    option("batch", int, 1, "Samples made at once.", panel=MAKING, metavar="INTEGER", min=1),
    option("trace", bool, False, "Run the model's classes without weights, and show what each stage holds beside "
        "the estimate: in seconds, with torch.", panel=MAKING),
]  # fmt: skip
NOT_HERE = {"name", "force"}  # options of build that mean nothing for a plan


def make() -> Any:
    rows = {name: provider.title for name, provider in providers().items()}
    text = "Show what a pipeline needs and how it would fit, without loading it."
    return tree.group("plan", text, lambda: rows, _make)


def _make(name: str) -> Any:
    provider = providers().get(name)
    if provider is None:
        return None

    def function(**values: Any) -> None:
        _plan(provider, values)

    text = f"Plan {provider.title}: sizes, peaks at every stage, and the fastest way that fits. Nothing is loaded."
    return tree.command(name, with_parameters(function, _parameters(provider)), text)


def _parameters(provider: Provider) -> list[inspect.Parameter]:
    shown = [parameter for parameter in parameters(provider) if parameter.name not in NOT_HERE]
    last = next(number for number, parameter in enumerate(shown) if _panel(parameter) == BUILD)
    return [*shown[:last], *SIZES, *shown[last:]]


def _panel(parameter: inspect.Parameter) -> str | None:
    return getattr(parameter.annotation.__metadata__[0], "rich_help_panel", None)


def _plan(provider: Provider, values: Mapping[str, Any]) -> None:
    output.set_up(quiet=values["quiet"], verbose=values["verbose"], log_file=values["log_file"])
    from ..building.request import Request
    from ..cache.store import Store
    from ..memory.build_need import build_need
    from ..memory.choose import machine_of, planned

    spec, row = spec_of(provider, values)
    machine = machine_of(spec.device, spec.placement.device_memory)
    store = Store()
    request = Request(spec, row, store, values["offline"], check_classes=False)
    found, task, made = planned(spec, row, store, values["offline"], machine, lambda: request.pinned, values)
    traced = _traced(request, found, task, made, store) if values["trace"] else ()
    need = build_need(found.parts, made.chosen.placement, task, loras=bool(spec.loras))
    for notice in made.notices:
        output.warn(notice)
    if made.unknown:
        output.warn(
            f"the size of {', '.join(made.unknown)} is not known: every figure leaves it out, and more will be needed"
        )
    if values["json"]:
        shown = _as_json(found, task, machine, made, need)
        output.result_json({**shown, "trace": _trace_json(traced)} if traced else shown)
    else:
        _show(found, task, machine, made, need, spec.model, traced)


def _traced(request: Request, found: Table, task: Task, made: Plan, store: Store) -> tuple[Beside, ...]:
    """What lives in each stage of the chosen placement, by running the pipeline's classes without weights."""
    from ..engine.tracing.trace import trace
    from ..memory.recipes import recipe
    from ..memory.traced import beside

    spec, row, placement = request.spec, request.row, made.chosen.placement
    made_of = recipe(spec, row, found.pipeline, store, request.offline, lambda: request.pinned)
    return beside(found.parts, placement, task, trace(made_of, task, row, placement))


def _trace_json(traced: Sequence[Beside]) -> list[dict[str, Any]]:
    return [{**asdict(one), "agrees": one.agrees} for one in traced]


def _show(
    found: Table,
    task: Task,
    machine: Machine,
    made: Plan,
    need: BuildNeed | None,
    model: str,
    traced: Sequence[Beside] = (),
) -> None:
    from ..memory.knobs import describe
    from ..memory.plan import gib, places

    frames = f", {task.frames} frames" if task.frames > 1 else ""
    where = "memory of this machine" if machine.device == "cpu" else "a GPU"
    output.result(f"{found.pipeline} from {model} ({found.origin})")
    output.result(
        f"{task.width} x {task.height}{frames}, {task.batch} at once, {task.steps} steps, {task.dtype}; "
        f"{gib(machine.memory)} of {where}"
    )
    output.result("")
    lives = places(found.parts, made.chosen.placement, task)
    rows = [
        (p.name, p.class_name or "?", _count(p.parameters),
            *((gib(lives[p.name][1]), lives[p.name][0]) if p.name in lives else ("unknown", "unknown")))
        for p in found.parts
    ]  # fmt: skip
    output.table(("component", "class", "parameters", "weights", "where it lives"), rows)
    output.result("")
    device = "memory" if machine.device == "cpu" else "device"
    stages = [(p.stage, gib(p.device), gib(p.host), gib(p.mapped), p.component) for p in made.chosen.peaks]
    output.table(("stage", device, "host", "of it mapped files", "largest part at work"), stages)
    if traced:
        _show_trace(traced, device)
    guessed = [p.class_name for p in found.parts if p.kind in ("denoiser", "decoder") and not p.recorded]
    if guessed:
        output.result(f"by the general formula: nothing is recorded of {', '.join(dict.fromkeys(guessed))}")
    download = "unknown" if found.download is None else readable(found.download)
    disk = "unknown" if found.disk is None else readable(found.disk)
    stored = _stored(found, made, task)
    more = f", and {readable(stored)} of quantized weights" if stored else ""
    output.result("")
    output.result(f"to download: {download}; on disk: {disk}{more}")
    if need:
        output.result(f"to build: {gib(need.host)} of host memory, of it mapped files {gib(need.mapped)}")
    output.result(f"strategy: {describe(made.chosen.placement)}")
    output.result(f"reason: {made.reason}")
    output.result("")
    output.table(
        ("alternative", device, "host", "slow-down", "verdict"), [_row(one, made) for one in made.alternatives]
    )


def _show_trace(traced: Sequence[Beside], device: str) -> None:
    """Trace beside estimate: what each stage holds besides weights, and the peak with them."""
    from ..memory.plan import gib

    output.result("")
    rows = [
        (one.stage, gib(one.estimated), gib(one.traced), f"{one.off:+.0%}", gib(one.device), one.component)
        for one in traced
    ]
    output.table(("besides weights", "estimated", "traced", "", f"{device} by trace", "at work"), rows)


def _stored(found: Table, made: Plan, task: Task) -> int:
    """Bytes of the quantized weights that a build would store."""
    from ..memory.estimate import quantized_names, weights

    names = quantized_names(found.parts, made.chosen.placement)
    return sum(size for name, size in weights(found.parts, made.chosen.placement, task.dtype).items() if name in names)


def _row(one: Option, made: Plan) -> tuple[str, str, str, str, str]:
    from ..memory.knobs import describe
    from ..memory.plan import gib

    fits = f"fits without {', '.join(made.unknown)}" if made.unknown else "fits"
    same = one.placement.to_json() | {"memory": ""} == made.chosen.placement.to_json() | {"memory": ""}
    verdict = ("chosen, " if same else "") + (fits if one.fits else "does not fit")
    return describe(one.placement), gib(one.peak), gib(one.host), f"{one.slow_down:.2f} x", verdict


def _count(number: int | None) -> str:
    return "unknown" if number is None else f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"


def _as_json(found: Table, task: Task, machine: Machine, made: Plan, need: BuildNeed | None) -> dict[str, Any]:
    """All of it in bytes; `null` for what is not known."""
    from ..memory.plan import UNLIMITED, places

    lives = places(found.parts, made.chosen.placement, task)
    return {
        "pipeline": found.pipeline,
        "origin": found.origin,
        "task": {**asdict(task), "device": WRITTEN_KIND[task.device]},
        "machine": {
            **asdict(machine),
            "device": WRITTEN_KIND[machine.device],
            "host": None if machine.host == UNLIMITED else machine.host,
        },
        "components": [
            {
                "name": part.name,
                "class": part.class_name,
                "parameters": part.parameters,
                "stored": part.stored,
                "recorded": part.recorded,
                "weights": lives[part.name][1] if part.name in lives else None,
                "on_device": lives[part.name][2] if part.name in lives else None,
                "lives": lives[part.name][0] if part.name in lives else None,
            }
            for part in found.parts
        ],
        "download": found.download,
        "disk": found.disk,
        "stored": _stored(found, made, task),
        "build": asdict(need) if need else None,
        "strategy": _option_json(made.chosen),
        "reason": made.reason,
        "needed": made.needed,
        "unknown": made.unknown,
        "notices": made.notices,
        "alternatives": [_option_json(one) for one in made.alternatives],
    }


def _option_json(one: Option) -> dict[str, Any]:
    return {
        "placement": one.placement.to_json(),
        "peaks": [asdict(peak) for peak in one.peaks],
        "peak": one.peak,
        "slow_down": round(one.slow_down, 3),
        "fits": one.fits,
    }
