"""Among all placements predicted to fit, the fastest; and what every other one would take."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..core.build_spec import Placement
from ..core.components import Stage
from ..core.device_names import DeviceKind
from .estimate import (
    FRAGMENTS,
    HOST_RESERVE,
    RESERVE,
    Peak,
    Task,
    peaks,
    quantized_names,
    shown_at_once,
    tokens,
    unknown,
    usable,
    weights,
)
from .knobs import (
    COSTS,
    FLOPS,
    PAGEABLE,
    PINNED,
    STREAMING,
    UNET_SHARE,
    Switches,
    Value,
    describe,
    refused,
    takable,
)
from .sizes import Sizes

UNLIMITED = 1 << 62
# What offloading costs depends on a machine's bus and speed, which a plan does not know: it must be faster by this than
# the fastest resident way that fits.
MARGIN = 1.1


@dataclass(frozen=True)
class Machine:
    """Free bytes to plan for: of the device, and of the host, which are the same on the CPU.

    `shared`: whether an accelerator's memory is the host's, so that what is in either counts for both.
    """

    device: DeviceKind
    memory: int
    host: int = UNLIMITED
    shared: bool = False


@dataclass(frozen=True)
class Option:
    """A placement with what is predicted of it. `slow_down` is relative to everything resident as it is."""

    placement: Placement
    peaks: tuple[Peak, ...]
    slow_down: float
    fits: bool

    @property
    def peak(self) -> int:
        """Bytes on the device at the worst moment of all stages."""
        return max(peak.device for peak in self.peaks)

    @property
    def host(self) -> int:
        return max(peak.host for peak in self.peaks)

    @property
    def host_held(self) -> int:
        """Bytes of host memory that must be free: without files that are read once, on their way to a device."""
        return max(peak.own if peak.stage == "load" else peak.host for peak in self.peaks)


@dataclass(frozen=True)
class Plan:
    """What was chosen, why, and the alternatives in order of speed. `needed`: bytes free on a device it would fit."""

    chosen: Option
    reason: str
    alternatives: tuple[Option, ...]
    needed: int
    unknown: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


def option(
    placement: Placement,
    parts: Sequence[Sizes],
    task: Task,
    machine: Machine,
    factors: Mapping[Stage, float] | None = None,
) -> Option:
    """A placement weighed against a machine."""
    found = peaks(parts, placement, task, factors)
    slow = slow_down(parts, placement, task)
    fits = taken(found, machine) <= usable(machine.memory, machine.device)
    one = Option(placement, found, slow, fits)
    return replace(one, fits=fits and (one.host_held <= machine.host - HOST_RESERVE))


def taken(found: Sequence[Peak], machine: Machine) -> int:
    """Bytes of the machine's device memory at the worst moment of all stages."""
    return max(peak.device + (peak.host if machine.shared else 0) for peak in found)


def needed(peak: int, device: DeviceKind) -> int:
    """Free bytes a device must have for a peak: the inverse of `usable`."""
    return peak + HOST_RESERVE if device == "cpu" else round((peak + RESERVE) / (1 - FRAGMENTS))


def slow_down(parts: Sequence[Sizes], placement: Placement, task: Task) -> float:
    """How many times as long a run takes as with everything resident, by COSTS and the bytes that offloading moves."""
    factor = 1.0
    for cost in COSTS:
        if getattr(placement, cost.knob) == cost.value:
            factor *= cost.cpu if task.device == "cpu" else cost.accelerator
    if placement.cpu_offload == "none" or task.device == "cpu":
        return factor
    computing = max(seconds(parts, task), 1e-3)
    kept = weights(parts, placement, task.dtype)
    denoising = max((kept[part.name] for part in parts if part.kind == "denoiser" and part.name in kept), default=0)
    rest = sum(kept.values()) - denoising
    if placement.cpu_offload == "model":  # there, and back after use
        return factor + 2 * sum(kept.values()) / PAGEABLE / computing
    if placement.cpu_offload == "group":  # copied from pinned memory while the block before computes
        copying = denoising * task.steps / PINNED
        return max(factor, copying / computing) * STREAMING + rest / PINNED / computing
    return factor + (denoising * task.steps + rest) / PAGEABLE / computing


def seconds(parts: Sequence[Sizes], task: Task) -> float:
    """What denoising takes on the reference card: 2 operations for each parameter and token (arXiv:2001.08361)."""
    work = 0.0
    for part in parts:
        if part.kind == "denoiser" and part.parameters:
            share = UNET_SHARE if "UNet" in part.class_name else 1.0
            work = max(work, 2.0 * part.parameters * share * tokens(part, task))
    return work * task.steps * task.halves * task.batch / FLOPS


def candidates(parts: Sequence[Sizes], task: Task, asked: Placement) -> Iterator[Placement]:
    """Every placement that works for these components and keeps the switches that were asked for.

    Attention slicing is not among them: with SDPA attention it saves nothing and slows down (diffusers#4487).
    """
    axes: dict[str, tuple[Value, ...]] = {
        "quantize": ("none", "int8", "fp8", "int4"),
        "layerwise_casting": (False, True),
        "cpu_offload": ("none",) if task.device == "cpu" else ("none", "model", "group", "sequential"),
        "vae_tiling": (False, True),
        "vae_slicing": (False, True) if task.batch > 1 else (False,),
    }
    given = asked.to_json().keys()
    axes = {name: (getattr(asked, name),) if name in given else values for name, values in axes.items()}
    for values in itertools.product(*axes.values()):
        fields: Switches = dict(zip(axes, values, strict=True))  # type: ignore[assignment]
        placement = replace(asked, **fields)
        if takable(placement, parts)[0] == placement and not refused(placement, task.pipeline, task.device):
            yield placement


def _rank(one: Option) -> tuple[float, bool, int, int]:
    """Faster first; of equals the resident, then the one nearer to the original, then with fewer switches."""
    placement = one.placement
    precision = ("none", "int8", "fp8", "int4").index(placement.quantize) + placement.layerwise_casting
    return round(one.slow_down, 2), placement.cpu_offload != "none", precision, len(placement.to_json())


def plan(
    parts: Sequence[Sizes],
    task: Task,
    machine: Machine,
    asked: Placement,
    factors: Mapping[Stage, float] | None = None,
) -> Plan:
    """The placement to use: exactly the switches asked for (manual), or the fastest that is predicted to fit (auto).

    Where nothing fits, the one that needs least is chosen and the reason says how much it needs. Raises UsageError only
    through `knobs.check`, which is the caller's to ask first.
    """
    asked, notices = takable(asked, parts)
    manual = asked.memory == "manual"
    kept = Placement(memory="auto", quantize_backend=asked.quantize_backend) if manual else asked
    weighed = (option(one, parts, task, machine, factors) for one in candidates(parts, task, kept))
    options = sorted(weighed, key=_rank)
    fitting = [one for one in options if one.fits]
    smallest = min(options, key=lambda one: (taken(one.peaks, machine), one.host))
    if manual:
        chosen = option(asked, parts, task, machine, factors)
        reason = "the switches asked for" if chosen.fits else f"it does not fit into {gib(machine.memory)}"
        if not chosen.fits and fitting:
            reason += f"; {describe(fitting[0].placement)} would (--memory auto)"
    else:
        chosen = _fastest(fitting) if fitting else smallest
        reason = _reason(chosen, len(fitting), option(Placement(), parts, task, machine, factors), machine)
    if not fitting:
        reason = f"nothing fits: the smallest, {describe(smallest.placement)}, needs {_needs(smallest, machine)}"
    return Plan(
        chosen, reason, _shown(options), needed(taken(chosen.peaks, machine), machine.device), unknown(parts), notices
    )


def _fastest(fitting: Sequence[Option]) -> Option:
    """The first of what fits, in order of speed; a resident one where offloading gains less than MARGIN."""
    resident = next((one for one in fitting if one.placement.cpu_offload == "none"), None)
    return resident if resident and resident.slow_down <= MARGIN * fitting[0].slow_down else fitting[0]


def _reason(chosen: Option, count: int, plain: Option, machine: Machine) -> str:
    if chosen.slow_down == 1.0:
        return "everything fits as it is"
    return f"the fastest of {count} ways that fit; as it is, it needs {_needs(plain, machine)}"


def _needs(one: Option, machine: Machine) -> str:
    """What a placement needs and what there is, of whichever memory is short."""
    words = f"{gib(needed(taken(one.peaks, machine), machine.device))} of {gib(machine.memory)}"
    if machine.device != "cpu" and one.host_held > machine.host - HOST_RESERVE:
        words += f" and {gib(one.host_held + HOST_RESERVE)} of {gib(machine.host)} of host memory"
    return words


def _shown(options: Sequence[Option]) -> tuple[Option, ...]:
    """One option for each way of keeping the weights: the fastest that fits, else the smallest."""
    ways: dict[tuple[str, bool, str], list[Option]] = {}
    for one in options:
        placement = one.placement
        ways.setdefault((placement.quantize, placement.layerwise_casting, placement.cpu_offload), []).append(one)
    best = [next((one for one in group if one.fits), min(group, key=lambda one: one.peak)) for group in ways.values()]
    return tuple(sorted(best, key=_rank))


def places(parts: Sequence[Sizes], placement: Placement, task: Task) -> dict[str, tuple[str, int, int]]:
    """Component -> (where it lives, in words, bytes of its weights, bytes of them on the device while it works)."""
    kept = weights(parts, placement, task.dtype)
    names = quantized_names(parts, placement)
    device = "memory" if task.device == "cpu" else "device"
    whole, layers = f"host; on the {device} while it works", f"host; layer after layer on the {device}"
    group = {"denoiser": f"host; block after block on the {device}", "encoder": layers}
    found = {}
    for part in parts:
        if part.name not in kept:
            continue
        form = f", {placement.quantize}" if part.name in names else ""
        form = ", layerwise fp8" if placement.layerwise_casting and part.kind == "denoiser" else form
        size = kept[part.name]
        at_once = size if placement.cpu_offload == "none" else shown_at_once(part, size, placement.cpu_offload)
        words = {"none": device, "model": whole, "sequential": layers, "group": group.get(part.kind, whole)}
        found[part.name] = (words[placement.cpu_offload] + form, size, at_once)
    return found


def gib(count: float) -> str:
    """Bytes in GiB, the unit of GPU memory; in MiB below a tenth."""
    return f"{count / (1 << 30):.1f} GiB" if count >= (1 << 30) / 10 or not count else f"{count / (1 << 20):.0f} MiB"
