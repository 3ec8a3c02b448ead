"""Predicted memory of every stage, on the device and on the host, for a placement and what is to be made.

The model, stage by stage (bytes; sizes in `Sizes`, each component in the dtype that it is loaded in, see `loaded`):

- weights: elements x bytes of the dtype, and 4 for those that the libraries keep in float32 (see loaded_dtypes).
  Quantized: fp8 and int8 one byte for each weight of a Linear and one scale for
  each of its outputs; int4 half a byte, and a scale and a shift for each group of 128 (optimum-quanto 0.2.7,
  nn/qmodule.py). Layerwise casting: one byte for what it casts (diffusers/hooks/layerwise_casting.py).
- encode: what the largest text encoder holds for its longest prompt; T5's kind, attention matrices too (sizes._t5).
- denoise: tokens x elements for each token, which are linear in the tokens as SDPA's fused kernels never hold the
  attention matrix (github.com/Dao-AILab/flash-attention); twice where the two halves of guidance run as one batch.
- decode: pixels x elements for each pixel: three feature maps of the upper levels at full size, and what convolutions
  take besides. With tiling the pixels of one tile, and the whole picture in RGB. Autoencoders that pipelines turn into
  float32 for it weigh twice as much meanwhile.
- host: weights that files hold as they are loaded are mapped, and count once they are used; others are converted, and
  the process's own.

`live` and `besides` were read off traces of the real pipelines (tools/record_components.py); see traced.APART.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from ..cache.measured import Measured
from ..core.build_spec import Placement
from ..core.components import Kind, Stage
from ..core.device_names import DeviceKind
from ..core.quantization import GROUP, quantized_by_default
from .loaded_dtypes import UPCASTING
from .sizes import Sizes

# What works in each stage after loading, one component after the other.
AT_WORK: Mapping[Stage, tuple[Kind, ...]] = {
    "encode": ("encoder",),
    "denoise": ("denoiser",),
    "decode": ("decoder", "other"),
}
# What has not worked before the end of a stage.
UNUSED: Mapping[Stage, tuple[Kind, ...]] = {
    "load": (),
    "encode": ("denoiser", "decoder", "other"),
    "denoise": ("decoder", "other"),
    "decode": (),
}
BESIDE: tuple[Kind, ...] = ("guide",)  # on the device while the denoiser works
# How a component's weights are kept: as they come, in a quantized format, stored in 8 bits by layerwise casting, or as
# they were quantized before they came.
Form = Literal["plain", "fp8", "int8", "int4", "cast", "stored"]
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# What files hold -> what loads it as it is, "" for none. Whole numbers are never converted.
FLOATS = {"F64": "", "F32": "float32", "BF16": "bfloat16", "F16": "float16", "F8_E4M3": "", "F8_E5M2": ""}

# What cuDNN takes besides the living tensors: copies in its own layout and workspaces. For 2-D convolutions 2178
# elements for each pixel where 768 live (memory_used_decode of AutoencoderKL in ComfyUI, comfy/sd.py); the public peaks
# of FLUX.1 say 2.9. For 3-D ones 7000 (the same for Wan) where 5061 live. On the CPU: oneDNN, measured with FLUX.1's
# VAE at 512 x 512 (1.7 in float32, 2.0 in bfloat16).
CONVOLUTION: Mapping[DeviceKind, Mapping[str, float]] = {
    "accelerator": {"2d": 2178 / 768, "3d": 7000 / 5061},
    "cpu": {"2d": 2.0, "3d": 2.0},
}

# Host memory of a process before it loads anything (torch 2.13 and diffusers 0.42 on Linux, with a pipeline's classes
# imported: 0.40 to 0.44 GB measured, of it 0.09 to 0.13 mapped files of libraries), and what a CUDA context adds.
PROCESS, LIBRARIES, CONTEXT = 450_000_000, 110_000_000, 1_000_000_000
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
    device: DeviceKind = "accelerator"

    @property
    def halves(self) -> int:
        return 1 if self.pipeline.startswith(ONE_HALF) else 2


@dataclass(frozen=True)
class Peak:
    """Bytes at a stage's worst moment: on the device, and in host memory (the same on the CPU).

    `moving`: of the device's, what is no weight (what measured peaks correct). `component`: the one that decides.
    `mapped`: of the host's, mapped files: where memory is short the system drops them, and reads them again.
    """

    stage: Stage
    device: int
    host: int
    moving: int = 0
    component: str = ""
    mapped: int = 0

    @property
    def own(self) -> int:
        """Of the host's, what only swap can hold in place of memory."""
        return self.host - self.mapped


def quantized_names(parts: Sequence[Sizes], placement: Placement) -> frozenset[str]:
    """The components that a placement quantizes: those named, else denoisers and text encoders, never the VAE."""
    if placement.quantize == "none":
        return frozenset()
    if placement.quantize_components:
        return frozenset(placement.quantize_components)
    taken = quantized_by_default(part.name for part in parts)
    return frozenset(part.name for part in parts if part.name in taken and not part.quantized)


def form(part: Sizes, placement: Placement, quantized: frozenset[str]) -> Form:
    """How a placement keeps a component's weights. `quantized`: see `quantized_names`."""
    if part.quantized:
        return "stored"
    if part.name in quantized and placement.quantize != "none":
        return placement.quantize
    return "cast" if placement.layerwise_casting and part.kind == "denoiser" else "plain"


def loaded(part: Sizes, dtype: str) -> str:
    """The dtype of most of a component's weights, and that computes, in a pipeline of a dtype."""
    return part.dtype or dtype


def weight_bytes(part: Sizes, kept: Form, dtype: str) -> int:
    """Bytes of a component's weights in a form. Raises ValueError where its size is unknown."""
    if part.parameters is None:
        raise ValueError(part.name)
    if kept == "stored":
        return part.stored or 0
    width = BYTES[loaded(part, dtype)]
    wide, linear, rows = wide_elements(part, dtype), part.linear, part.rows
    if loaded(part, dtype) == "float16":  # what is float32 among others is not quantized
        linear, rows = linear - part.wide_half, rows - part.rows_half
    more = wide * (4 - width)
    if kept == "cast":
        return part.cast + (part.parameters - part.cast) * width + more
    if kept in ("fp8", "int8"):
        return linear + rows * width + (part.parameters - linear) * width + more
    if kept == "int4":
        return linear // 2 + linear // GROUP * 2 * width + (part.parameters - linear) * width + more
    return part.parameters * width + more


def wide_elements(part: Sizes, dtype: str) -> int:
    """How many weights of a component are float32 in a pipeline of a dtype whatever the others are."""
    return part.wide + (part.wide_half if loaded(part, dtype) == "float16" else 0)


def converted(part: Sizes, dtype: str) -> bool:
    """Whether a component's files are in another format than it is loaded in: its weights are no mapped files then."""
    return not part.quantized and any(
        FLOATS.get(stored, loaded(part, dtype)) != loaded(part, dtype) for stored in part.dtypes
    )


def upcast(part: Sizes, task: Task) -> bool:
    """Whether a pipeline decodes with an autoencoder in float32 though it is float16."""
    half = loaded(part, task.dtype) == "float16"
    return part.upcast and half and UPCASTING.search(task.pipeline) is not None


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
    width = BYTES[loaded(part, task.dtype)]
    if part.kind == "denoiser":
        return (tokens(part, task) * part.live + part.besides) * width * task.batch * task.halves
    if part.kind == "decoder":
        return _decoding(part, placement, task)
    return part.besides * width * task.batch


def _decoding(part: Sizes, placement: Placement, task: Task) -> int:
    width = 4 if upcast(part, task) else BYTES[loaded(part, task.dtype)]
    video = part.temporal > 1 and task.frames > 1
    samples = 1 if placement.vae_slicing else task.batch
    pixels = task.width * task.height
    at_once = min(pixels, part.tile**2) if placement.vae_tiling and part.tile else pixels
    live = part.live_video if video else part.live
    taken = CONVOLUTION[task.device]["3d" if part.temporal > 1 else "2d"]
    # The whole result in RGB: twice, as it is put together from parts or copied to the host as float32.
    whole = max(3, part.live_frame) * 2 * pixels * task.frames * task.batch
    return round(at_once * live * taken * samples * width) + whole * width


def peaks(
    parts: Sequence[Sizes], placement: Placement, task: Task, factors: Mapping[Stage, float] | None = None
) -> tuple[Peak, ...]:
    """The predicted peak of each stage. `factors`: stage -> what to multiply its moving bytes by (see `correction`).

    Components of unknown size count as nothing here: `unknown` names them, and whoever shows a prediction must say so.
    """
    run = run_of(parts, placement, task, factors)
    found = (run.loading(), *map(run.at, AT_WORK))
    return tuple(map(run.in_one_memory, found)) if task.device == "cpu" else found


def run_of(
    parts: Sequence[Sizes], placement: Placement, task: Task, factors: Mapping[Stage, float] | None = None
) -> Run:
    """A run of the components whose size is known."""
    kept = weights(parts, placement, task.dtype)
    return Run(tuple(part for part in parts if part.name in kept), kept, placement, task, factors or {})


@dataclass(frozen=True)
class Run:
    """A run in a placement: the components of known size, and what their weights take as they are kept."""

    parts: tuple[Sizes, ...]
    kept: Mapping[str, int]
    placement: Placement
    task: Task
    factors: Mapping[Stage, float]

    @property
    def offloaded(self) -> bool:
        return self.placement.cpu_offload != "none"

    @property
    def process(self) -> int:
        """Bytes of host memory before anything is loaded."""
        return PROCESS if self.task.device == "cpu" else PROCESS + CONTEXT

    @property
    def resident(self) -> int:
        """Bytes of weights that stay on the device."""
        return 0 if self.offloaded else self.whole

    @property
    def whole(self) -> int:
        """Bytes of all weights."""
        return sum(self.kept.values())

    def weights(self, kinds: Collection[Kind]) -> int:
        """Bytes of the weights of these kinds of components."""
        return sum(self.kept[part.name] for part in self.parts if part.kind in kinds)

    @cached_property
    def stored(self) -> frozenset[str]:
        """The components whose weights the build wrote anew, as they are needed."""
        return quantized_names(self.parts, self.placement)

    def own(self, part: Sizes) -> int:
        """Bytes of a component's weights that are in no mapped file: what was converted."""
        if part.name in self.stored:
            return 0
        dtype = self.task.dtype
        if converted(part, dtype):
            return self.kept[part.name]
        wide = 4 * wide_elements(part, dtype) if BYTES[loaded(part, dtype)] < 4 else 0
        return wide + (part.cast if form(part, self.placement, self.stored) == "cast" else 0)

    def unpacked(self, part: Sizes) -> int:
        """Bytes of a quantized component's largest layer as it computes, twice (measured on the CPU with int8)."""
        return 2 * part.largest * BYTES[loaded(part, self.task.dtype)] if part.name in self.stored else 0

    def mapped(self, leaving_out: Collection[Kind] = ()) -> int:
        """Bytes of weights that are mapped files, of all but some kinds of components."""
        return sum(self.kept[part.name] - self.own(part) for part in self.parts if part.kind not in leaving_out)

    def loading(self) -> Peak:
        """Files are mapped, and copied to a GPU one after the other, or read and converted."""
        own = sum(map(self.own, self.parts))
        loose = [part for part in self.parts if part.name not in self.stored]
        read = (p for p in loose if converted(p, self.task.dtype) or form(p, self.placement, self.stored) == "cast")
        files = max((part.stored or 0 for part in read), default=0)
        if self.task.device != "cpu":
            each = max((self.kept[part.name] - self.own(part) for part in self.parts), default=0)
            files = max(files, self.mapped() if self.offloaded else each)
        return Peak("load", self.resident, self.process + own + files, mapped=LIBRARIES + files)

    def at(self, stage: Stage) -> Peak:
        """A stage's worst moment: that of the component at work which needs most."""
        worst = Peak(stage, self.resident, self.process + (self.whole if self.offloaded else 0), mapped=self.behind)
        beside = self.weights(BESIDE) if stage == "denoise" else 0
        for part in self.parts:
            if part.kind in AT_WORK[stage]:
                held = moving(part, self.placement, self.task) + self.unpacked(part)
                alive = round(held * self.factors.get(stage, 1.0))
                there, more = self.resident, self.kept[part.name] if upcast(part, self.task) else 0
                if self.offloaded:
                    there = shown_at_once(part, self.kept[part.name], self.placement.cpu_offload) + beside
                if there + more + alive > worst.device:
                    worst = replace(worst, device=there + more + alive, moving=alive, component=part.name)
        return worst

    @property
    def behind(self) -> int:
        """Bytes of mapped files behind a GPU. Sequential offload copies from the files; model and group offload keep
        copies, as they bring weights back or pin them."""
        return LIBRARIES + (self.mapped() if self.placement.cpu_offload == "sequential" else 0)

    def in_one_memory(self, peak: Peak) -> Peak:
        """A peak on the CPU, where what is on the device is in the process. Mapped files are not, until their weights
        are used."""
        host, mapped = peak.host, peak.mapped
        if peak.stage != "load":
            mapped = LIBRARIES + self.mapped(UNUSED[peak.stage])
            host = self.process + peak.device - (self.mapped() + LIBRARIES - mapped)
        return replace(peak, host=host, device=host, mapped=mapped)


def unknown(parts: Sequence[Sizes]) -> tuple[str, ...]:
    """The components whose size nothing tells."""
    return tuple(part.name for part in parts if part.parameters is None)


def usable(memory: int, device: DeviceKind) -> int:
    """Of a device's free memory in bytes, what a plan may use."""
    return max(0, memory - HOST_RESERVE if device == "cpu" else round(memory * (1 - FRAGMENTS)) - RESERVE)


LEAST_FACTOR, LARGEST_FACTOR = 0.25, 4.0


def correction(measured: Sequence[Measured], parts: Sequence[Sizes], task: Task) -> dict[Stage, float]:
    """stage -> factor on what it holds besides weights, from measured runs of the same pipeline.

    The measurement nearest in size decides, and of those equally near the largest. Those of another dtype or kind of
    device, and those of no use (a peak under the weights alone), are passed over.
    """
    chosen: dict[Stage, tuple[float, float]] = {}
    for one in measured:
        factor = _factor(one, parts, task)
        if factor is not None:
            distance = abs(1 - _amount(_then(one, task)) / _amount(task))
            known = chosen.get(one.case.stage)
            if known is None or (distance, -factor) < (known[0], -known[1]):
                chosen[one.case.stage] = (distance, factor)
    return {stage: factor for stage, (_, factor) in chosen.items()}


def _factor(one: Measured, parts: Sequence[Sizes], task: Task) -> float | None:
    """How many times what was predicted to move a measured stage held; None for a measurement of no use."""
    case = one.case
    if (case.dtype, case.device) != (task.dtype, task.device) or case.stage == "load":
        return None
    (peak,) = (peak for peak in peaks(parts, case.placement, _then(one, task)) if peak.stage == case.stage)
    seen = one.host if task.device == "cpu" else one.device
    still = peak.device - peak.moving
    if not seen or not peak.moving or seen <= still:
        return None
    return min(max((seen - still) / peak.moving, LEAST_FACTOR), LARGEST_FACTOR)


def _then(one: Measured, task: Task) -> Task:
    """What was made when it was measured."""
    case = one.case
    return replace(task, width=case.width, height=case.height, frames=case.frames, batch=case.batch)


def _amount(task: Task) -> int:
    return task.width * task.height * task.frames * task.batch
