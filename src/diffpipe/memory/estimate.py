"""Predicted memory of every stage, on the device and on the host, for a placement and what is to be made.

The model, stage by stage (bytes; sizes in `Sizes`, all counted for the compute dtype):

- weights: elements x bytes of the dtype. Quantized: fp8 and int8 one byte for each weight of a Linear and one scale for
  each of its outputs; int4 half a byte, and a scale and a shift for each group of 128 (optimum-quanto 0.2.7,
  nn/qmodule.py). Layerwise casting: one byte for what it casts (diffusers/hooks/layerwise_casting.py).
- encode: what the largest text encoder holds for its longest prompt.
- denoise: tokens x elements for each token, which are linear in the tokens as SDPA's fused kernels never hold the
  attention matrix (github.com/Dao-AILab/flash-attention); twice where the two halves of guidance run as one batch.
- decode: pixels x elements for each pixel: three feature maps of the upper levels at full size, and what convolutions
  take besides. With tiling the pixels of one tile, and the whole picture in RGB.

`live` and `besides` were read off the real forward of the real classes on meta tensors (tools/record_components.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..core.build_spec import Placement
from ..core.parsing import Fields
from ..core.quantization import GROUP, quantized_by_default
from .sizes import Sizes

STAGES = ("load", "encode", "denoise", "decode")
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
STORED = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1}

# What cuDNN takes besides the living tensors: copies in its own layout and workspaces. For 2-D convolutions 2178
# elements for each pixel where 768 live (memory_used_decode of AutoencoderKL in ComfyUI, comfy/sd.py); the public peaks
# of FLUX.1 say 2.9. For 3-D ones 7000 (the same for Wan) where 5061 live. On the CPU: oneDNN, measured with FLUX.1's
# VAE at 512 x 512 (1.7 in float32, 2.0 in bfloat16).
CONVOLUTION = {"cuda": {"2d": 2178 / 768, "3d": 7000 / 5061}, "cpu": {"2d": 2.0, "3d": 2.0}}

# Host memory of a process before it loads anything (resident, torch 2.13 and diffusers 0.42 on Linux, with the classes
# of a pipeline imported: 0.40 to 0.44 GB measured), and what a CUDA context adds.
PROCESS, CONTEXT = 450_000_000, 1_000_000_000
# Device memory that no prediction may use: the CUDA context and kernels (300 to 600 MB), and a share of the whole for
# the allocator's fragments (it rounds blocks up to 2 MB, and splits larger ones).
RESERVE, FRAGMENTS = 600_000_000, 0.03
HOST_RESERVE = 500_000_000

# Pipelines that run the two halves of guidance one after the other, or have it distilled into one (their __call__ in
# diffusers 0.42): the others double the batch.
ONE_HALF = ("Flux", "QwenImage", "Wan", "ZImage")


@dataclass(frozen=True)
class Task:
    """What is to be made: pixels, frames (1 for a picture), samples at once, steps, on what kind of device."""

    pipeline: str = ""
    width: int = 1024
    height: int = 1024
    frames: int = 1
    batch: int = 1
    steps: int = 28
    dtype: str = "bfloat16"
    device: str = "cuda"

    @property
    def halves(self) -> int:
        return 1 if self.pipeline.startswith(ONE_HALF) else 2


@dataclass(frozen=True)
class Peak:
    """Bytes at a stage's worst moment: on the device, and in host memory (the same on the CPU).

    `moving`: of the device's, what is no weight (what measured peaks correct). `component`: the one that decides.
    """

    stage: str
    device: int
    host: int
    moving: int = 0
    component: str = ""


def quantized_names(parts: Sequence[Sizes], placement: Placement) -> frozenset[str]:
    """The components that a placement quantizes: those named, else denoisers and text encoders, never the VAE."""
    if placement.quantize == "none":
        return frozenset()
    if placement.quantize_components:
        return frozenset(placement.quantize_components)
    taken = quantized_by_default(part.name for part in parts)
    return frozenset(part.name for part in parts if part.name in taken and not part.quantized)


def form(part: Sizes, placement: Placement, quantized: frozenset[str]) -> str:
    """ "plain", "fp8", "int8", "int4" or "cast": how a component's weights are kept."""
    if part.quantized:
        return "stored"
    if part.name in quantized:
        return placement.quantize
    return "cast" if placement.layerwise_casting and part.kind == "denoiser" else "plain"


def weight_bytes(part: Sizes, kept: str, dtype: str) -> int:
    """Bytes of a component's weights in a form (see `form`). Raises ValueError where its size is unknown."""
    if part.parameters is None:
        raise ValueError(part.name)
    if kept == "stored":
        return part.stored or 0
    width = BYTES[dtype]
    if kept == "cast":
        return part.cast + (part.parameters - part.cast) * width
    if kept in ("fp8", "int8"):
        return part.linear + part.rows * width + (part.parameters - part.linear) * width
    if kept == "int4":
        return part.linear // 2 + part.linear // GROUP * 2 * width + (part.parameters - part.linear) * width
    return part.parameters * width


def weights(parts: Sequence[Sizes], placement: Placement, dtype: str) -> dict[str, int]:
    """Component -> bytes of its weights as the placement keeps them; components of unknown size are left out."""
    names = quantized_names(parts, placement)
    return {p.name: weight_bytes(p, form(p, placement, names), dtype) for p in parts if p.parameters is not None}


def shown_at_once(part: Sizes, kept: int, offload: str) -> int:
    """Bytes of one component on the device while it works, under an offload strategy.

    model: all of it. group: a denoiser's block, the next one on its way, and what is in no block; of other models two
    layers. sequential: one layer.
    """
    share = kept / part.parameters if part.parameters else 0.0
    if offload == "sequential":
        return round(part.layer * share)
    if offload == "group" and part.kind == "denoiser":
        return min(kept, round((2 * part.block + part.outside) * share))
    if offload == "group" and part.kind == "encoder":
        return min(kept, round(2 * part.layer * share))
    return kept


def tokens(part: Sizes, task: Task) -> int:
    """The number of tokens (or latents, for a U-Net) of one sample."""
    frames = 1 + (task.frames - 1) // part.temporal
    step = part.step or 8
    return -(-task.width // step) * -(-task.height // step) * frames


def moving(part: Sizes, placement: Placement, task: Task) -> int:
    """Bytes that a component holds while it works, besides its weights."""
    width = BYTES[task.dtype]
    if part.kind == "denoiser":
        return (tokens(part, task) * part.live + part.besides) * width * task.batch * task.halves
    if part.kind == "decoder":
        return _decoding(part, placement, task)
    return part.besides * width * task.batch


def _decoding(part: Sizes, placement: Placement, task: Task) -> int:
    width = 4 if part.upcast and task.dtype == "float16" else BYTES[task.dtype]
    video = part.temporal > 1 and task.frames > 1
    samples = 1 if placement.vae_slicing else task.batch
    pixels = task.width * task.height
    at_once = min(pixels, part.tile**2) if placement.vae_tiling and part.tile else pixels
    live = part.live_video if video else part.live
    taken = CONVOLUTION["cuda" if task.device != "cpu" else "cpu"]["3d" if part.temporal > 1 else "2d"]
    # The whole result in RGB: twice, as it is put together from parts or copied to the host as float32.
    whole = max(3, part.live_frame) * 2 * pixels * task.frames * task.batch
    return round(at_once * live * taken * samples * width) + whole * width


def peaks(
    parts: Sequence[Sizes], placement: Placement, task: Task, factors: Mapping[str, float] | None = None
) -> tuple[Peak, ...]:
    """The predicted peak of each stage. `factors`: stage -> what to multiply its moving bytes by (see `correction`).

    Components of unknown size count as nothing here: `unknown` names them, and whoever shows a prediction must say so.
    """
    kept = weights(parts, placement, task.dtype)
    known = [part for part in parts if part.name in kept]
    on_cpu = task.device == "cpu"
    offloaded = placement.cpu_offload != "none"
    resident = 0 if offloaded else sum(kept.values())
    process = PROCESS + (0 if on_cpu else CONTEXT)
    host = process + (sum(kept.values()) if offloaded else 0)
    beside = {"denoise": sum(kept[p.name] for p in known if p.kind == "guide")}
    found = [Peak("load", resident, process + _loading(known, kept, placement, task))]
    for stage, kinds in (("encode", ("encoder",)), ("denoise", ("denoiser",)), ("decode", ("decoder", "other"))):
        worst = Peak(stage, resident, host)
        for part in (part for part in known if part.kind in kinds):
            alive = round(moving(part, placement, task) * (factors or {}).get(stage, 1.0))
            at_once = shown_at_once(part, kept[part.name], placement.cpu_offload) + beside.get(stage, 0)
            there = at_once if offloaded else resident
            if there + alive > worst.device:
                worst = Peak(stage, there + alive, host, alive, part.name)
        found.append(worst)
    if on_cpu:  # one memory: what is on the device is in the process. Mapped files are not, until they are used
        late = {"encode": ("denoiser", "decoder", "other"), "denoise": ("decoder", "other")}
        unused = {stage: sum(kept[p.name] for p in known if p.kind in kinds) for stage, kinds in late.items()}
        unused = dict.fromkeys(late, 0) if _converted(known, task) else unused
        found = [replace(p, host=p.host if p.stage == "load" else process + p.device - unused.get(p.stage, 0))
            for p in found]  # fmt: skip
        found = [replace(p, device=p.host) for p in found]
    return tuple(found)


def _converted(parts: Sequence[Sizes], task: Task) -> list[Sizes]:
    """The components whose files are in another format than the compute dtype."""
    return [p for p in parts if p.dtypes and any(STORED.get(d) != BYTES[task.dtype] for d in p.dtypes)]


def _loading(parts: Sequence[Sizes], kept: Mapping[str, int], placement: Placement, task: Task) -> int:
    """Bytes of host memory while loading. Files that are as they are needed are mapped, and copied to a GPU one after
    the other; others are read and converted."""
    names = quantized_names(parts, placement)  # stored as they are needed, when the pipeline is built
    read = [part for part in _converted(parts, task) if part.name not in names]
    there = sum(kept[part.name] for part in read)
    if task.device != "cpu":
        there = max(there, max(kept.values(), default=0))
        there = sum(kept.values()) if placement.cpu_offload != "none" else there
    return there + max((part.stored or 0 for part in read), default=0)


def unknown(parts: Sequence[Sizes]) -> tuple[str, ...]:
    """The components whose size nothing tells."""
    return tuple(part.name for part in parts if part.parameters is None)


def usable(memory: int, device: str) -> int:
    """Of a device's free memory in bytes, what a plan may use."""
    return max(0, memory - HOST_RESERVE if device == "cpu" else round(memory * (1 - FRAGMENTS)) - RESERVE)


def correction(
    measured: Sequence[Mapping[str, Any]], parts: Sequence[Sizes], task: Task, limits: tuple[float, float] = (0.25, 4.0)
) -> dict[str, float]:
    """stage -> factor on what it holds besides weights, from measured runs of the same pipeline.

    A record: {"stage", "width", "height", "frames", "batch", "dtype", "device": "cuda" or "cpu", "placement": fields of
    Placement, "peak_device", "peak_host": bytes or None}. The record nearest in size decides, and of those equally near
    the largest. Records of another dtype or kind of device, and those of no use (a peak under the weights alone), are
    passed over.
    """
    chosen: dict[str, tuple[float, float]] = {}
    for record in measured:
        if record["dtype"] != task.dtype or record["device"] != task.device or record["stage"] not in STAGES[1:]:
            continue
        then = replace(task, **{name: record[name] for name in ("width", "height", "frames", "batch")})
        found = peaks(parts, Placement.from_json(Fields(record["placement"])), then)
        (peak,) = (p for p in found if p.stage == record["stage"])
        seen = record["peak_host" if task.device == "cpu" else "peak_device"]
        if not seen or not peak.moving or seen <= peak.device - peak.moving:
            continue
        factor = min(max((seen - peak.device + peak.moving) / peak.moving, limits[0]), limits[1])
        distance = abs(1 - _amount(then) / _amount(task))
        known = chosen.get(record["stage"])
        if known is None or (distance, -factor) < (known[0], -known[1]):
            chosen[record["stage"]] = (distance, factor)
    return {stage: factor for stage, (_, factor) in chosen.items()}


def _amount(task: Task) -> int:
    return task.width * task.height * task.frames * task.batch
