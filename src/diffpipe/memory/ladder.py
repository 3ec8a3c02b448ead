"""The steps that a run takes down where memory runs out: each is taken, or left out for a reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..core.build_spec import Placement
from ..core.device_names import DeviceKind
from .knobs import Switches, refused, takable
from .sizes import Sizes

# In the order in which they are tried. A step is taken whole, and only if its combination works; each but the CPU's
# last ones needs less memory than the one before. What leaves every bit of a result as it is comes before what does
# not, but for two: tiling and slicing cost next to nothing, and casting a tenth of the time, where moving every layer
# by itself costs several times the run. What quantizes does that anew, which takes minutes and changes results most,
# and helps only where nothing can be offloaded. int8 comes before int4, and fp8 is left out: it is as large as int8,
# slower, and has made noise on some GPUs (optimum-quanto#343).
STEPS: tuple[tuple[str, Switches], ...] = (
    ("VAE slicing and tiling", {"vae_slicing": True, "vae_tiling": True}),
    ("attention slicing", {"attention_slicing": True}),
    ("model offload", {"cpu_offload": "model"}),
    ("group offload", {"cpu_offload": "group"}),
    ("layerwise casting", {"layerwise_casting": True}),
    ("sequential offload", {"cpu_offload": "sequential", "layerwise_casting": False}),
    ("quantization to int8", {"quantize": "int8", "layerwise_casting": False}),
    ("quantization to int4", {"quantize": "int4", "layerwise_casting": False}),
)
RANKS = {
    "quantize": ("none", "fp8", "int8", "int4"),
    "cpu_offload": ("none", "model", "group", "sequential"),
}
ON = "it is on already"  # or a further one
IN_PLACE = ("attention_slicing", "vae_slicing", "vae_tiling")  # switches of a loaded pipeline


@dataclass(frozen=True)
class Known:
    """What decides which steps a pipeline can take: its class and components (`parts`, sizes are not needed), the
    `device` that it runs on, whether its class says in which order its components work (`ordered`), whether any of
    them computes attention in slices (`slices`), whether its weights are `stored` as they are to be, whether its
    denoisers are `compiled`, and whether the device has `float8`.
    """

    pipeline: str
    parts: tuple[Sizes, ...]
    device: DeviceKind = "accelerator"
    ordered: bool = True
    slices: bool = True
    stored: bool = False
    compiled: bool = False
    float8: bool = True


class Step(NamedTuple):
    """A step of STEPS from a placement: what that becomes, or why it is left out."""

    name: str
    placement: Placement | None
    why: str = ""


def steps_from(placement: Placement, known: Known, *, loading: bool = False) -> Iterator[Step]:
    """Every step of STEPS, in order, as it would be from a placement.

    `loading`: memory ran out while the pipeline was loaded, where switches of a loaded one help nothing.
    """
    for name, fields in STEPS:
        why = _why_not(placement, fields, known, loading=loading)
        if why:
            yield Step(name, None, why)
            continue
        tried, notices = takable(replace(placement, **fields), known.parts)
        left_out = "; ".join(dict.fromkeys(notice.partition(": ")[2] for notice in notices))
        combination = refused(tried, known.pipeline, known.device)
        if tried == placement or (left_out and "vae_slicing" not in fields):  # of slicing and tiling either will do
            yield Step(name, None, left_out or ON)
        elif combination:
            yield Step(name, None, f"{combination.title} does not work: {combination.result}")
        else:
            yield Step(name, tried)


def next_step(placement: Placement, known: Known, *, loading: bool = False) -> Placement | None:
    """The placement to try after memory ran out under this one, None when there is nothing left to try.

    Repeated from any placement it ends: every step raises a switch that no later one lowers below it.
    """
    return next((step.placement for step in steps_from(placement, known, loading=loading) if step.placement), None)


def _why_not(placement: Placement, fields: Switches, known: Known, *, loading: bool) -> str:
    """Why a step is not open from a placement, "" if it is."""
    first = next(iter(fields))
    if not _raises(placement, fields, first):
        return ON
    if loading and first in IN_PLACE:
        return "loading takes the same memory with it"
    if first == "attention_slicing" and not known.slices:
        return f"no component of {known.pipeline} computes attention in slices"
    if first == "layerwise_casting" and not known.float8:
        return "the device has no float8"
    if known.compiled and _quantized_in_groups(replace(placement, **fields), known):
        return "compiled code pins quantized weights"
    if first == "cpu_offload":
        if known.device == "cpu":
            return "it needs another device than the CPU"
        if fields["cpu_offload"] == "model" and not known.ordered:
            return f"{known.pipeline} does not say in which order its components work"
        return ""
    if first in ("quantize", "layerwise_casting") and placement.cpu_offload == "sequential":
        return "with sequential offload no more than a layer is on the device"
    return "the weights are stored as they are" if first == "quantize" and known.stored else ""


def _quantized_in_groups(placement: Placement, known: Known) -> bool:
    return placement.cpu_offload == "group" and (placement.quantize != "none" or known.stored)


def _raises(placement: Placement, fields: Mapping[str, object], first: str) -> bool:
    """Whether a step goes further than the placement in its first switch (or any, for switches that are on or off)."""
    if first in RANKS:
        ranks = RANKS[first]
        return ranks.index(str(fields[first])) > ranks.index(getattr(placement, first))
    return any(value is True and not getattr(placement, field) for field, value in fields.items())
