"""What a build that quantizes needs of host memory, and whether the machine has it.

It works on the CPU, in one process (engine.loading.prepare), and has two moments that may be its worst:

- loading: weights whose files are in another format than they are loaded in are converted, the whole pipeline at once
  (from_pretrained); the file that is read is mapped meanwhile. Weights that are in the files as they are loaded stay
  there.
- comparing: the pipeline is called once, up to the first step of its denoisers, which uses the weights of encoders and
  denoisers; then each component is quantized, layer by layer, read back from its file and called again. C's allocator
  keeps what both took.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..core.build_spec import Placement
from ..core.choices import Quantize
from ..core.errors import DiffpipeError, Exit
from ..core.quantization import SAMPLE_FRAMES, SAMPLE_SIDE
from .estimate import BYTES, LIBRARIES, PROCESS, Task, loaded, moving, quantized_names, run_of, weights
from .machine import host_free, host_total
from .plan import gib
from .sizes import Sizes

# How many times the largest layer that is quantized takes, as it computes: the kernels' own copies of it when it is
# called, and what quanto makes on the way from a weight to a quantized one. Measured on the CPU with a Flux of 0.5
# billion parameters: 3.1 for int8 and 6.4 for int4, which makes groups, too.
COPIES: Mapping[Quantize, int] = {"fp8": 4, "int8": 4, "int4": 7}
SURE = 1.25  # times the memory there is in all: predictions are that much too high at most


@dataclass(frozen=True)
class BuildNeed:
    """Bytes of host memory at the worst moment of a build, and how many of them are mapped files, which the system may
    drop. `own`: the most at any moment that are the process's own; `least`: those of them that are sure, which the
    weights that LoRAs change are not: how many those are, only the LoRAs say. `converted`: those of weights that are in
    none of the files as they are loaded."""

    host: int
    mapped: int
    own: int
    converted: int
    least: int


def build_need(parts: Sequence[Sizes], placement: Placement, task: Task, *, loras: bool = False) -> BuildNeed | None:
    """What a build in a placement needs; None where it quantizes nothing, and so loads nothing.

    `loras`: whether LoRAs are fused, which makes the weights they change the process's own: denoisers' at most, where a
    few change text encoders, too. Components of unknown size count as nothing.
    """
    parts = [part for part in parts if part.parameters is not None]
    names = quantized_names(parts, placement) & {part.name for part in parts}
    if not names:
        return None
    small = replace(task, width=SAMPLE_SIDE, height=SAMPLE_SIDE, frames=min(task.frames, SAMPLE_FRAMES), batch=1)
    run = run_of(parts, Placement(), replace(small, device="cpu"))
    used = [part for part in parts if part.kind not in ("decoder", "other")]
    files = sum(run.kept[part.name] - run.own(part) for part in used)
    converted = sum(map(run.own, parts))
    changed = sum(run.kept[part.name] - run.own(part) for part in used if part.kind == "denoiser") if loras else 0
    own = PROCESS - LIBRARIES + converted + changed
    loading = run.loading()
    making = max((moving(part, Placement(), small) for part in used), default=0)
    layers = (part.largest * BYTES[loaded(part, task.dtype)] for part in parts if part.name in names)
    comparing = own + making + COPIES[placement.quantize] * max(layers, default=0)
    made = weights(parts, placement, task.dtype)
    more = (made[part.name] - (run.kept[part.name] - run.own(part)) for part in parts if part.name in names)
    mapped = LIBRARIES + files - changed + max(0, *more)
    worst = max((loading.host, loading.mapped), (comparing + mapped, mapped))
    least = max(loading.own, comparing - changed)
    return BuildNeed(*worst, max(loading.own, comparing), converted, least)


def check(need: BuildNeed, force: bool = False) -> str:
    """A warning where more is needed than is free, else "". Raises DiffpipeError with exit code 5 where it is more than
    there is in all, and so would end in the middle; not with `force`."""
    total, free = host_total(), host_free()
    grows = sys.platform == "darwin"  # its swap, of which it says what it has now
    if total and need.least > SURE * total and not force and not grows:
        less = "weights that are in their files as --dtype has them need less (see --variant)"
        elsewhere = "build it on a machine with more, and import its bundle here"
        raise DiffpipeError(
            f"quantizing needs some {gib(need.least)} of memory, and this machine has {gib(total)} in all",
            f"{less if 2 * need.converted > need.least else elsewhere}; --force tries it as it is",
            Exit.OUT_OF_MEMORY,
        )
    if free and need.own > free:
        return f"quantizing needs some {gib(need.own)} of memory, and {gib(free)} are free: the system may end it"
    return ""
