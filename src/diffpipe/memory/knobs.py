"""What each memory switch costs and needs, as rows: they drive the plan, the refusals, the step-down and the docs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..core.build_spec import Placement
from ..core.errors import UsageError
from ..core.quantization import quantized_by_default
from .sizes import Sizes


@dataclass(frozen=True)
class Cost:
    """How much longer a run takes with a switch on: a factor on the whole run's time by kind of device."""

    knob: str
    value: Any
    cuda: float
    cpu: float
    source: str


BLOG = "FLUX.1-dev on an H100, 50 steps (huggingface.co/blog/diffusers-quantization): {} s against 12 s"
FORWARD = "; CPU: one forward of a 1.02 B parameter Flux against 2.4 s"
COSTS = (
    Cost("quantize", "fp8", 16 / 12, 6.8 / 2.4, BLOG.format(16) + FORWARD),
    Cost("quantize", "int8", 15 / 12, 2.7 / 2.4, BLOG.format(15) + FORWARD),
    Cost("quantize", "int4", 109 / 12, 4.8 / 2.4, BLOG.format(109) + FORWARD),
    Cost("layerwise_casting", True, 13 / 12, 5.7 / 2.4, BLOG.format(13) + FORWARD),
    Cost("vae_tiling", True, 1.03, 1.03, "a quarter of each tile is decoded twice, of a decode that is 5% of a run"),
    Cost("vae_slicing", True, 1.01, 1.01, "the decode alone runs sample after sample"),
    Cost("attention_slicing", True, 3.0, 3.0, "with SDPA attention, serious slow-downs (diffusers#4487)"),
)
# Offloading costs time by the bytes it moves, against the time the denoiser computes.
PAGEABLE, PINNED = 1.8e9, 20e9  # bytes a second to a GPU (vllm-omni#4896: pageable 1.8 GB/s, pinned 20 to 50)
FLOPS = 1.5e14  # a second, of a consumer card: FLUX.1-dev, 28 steps in 20 s; the H100 of the figures above does 4.6e14
# A streamed run takes a little longer than the slower of copying and computing: Wan 14B on an H100, 4.92 s a forward
# against 4.60 (diffusers#11605). FLUX.1 at 30 steps and 31.8 s says the same of PINNED: 22 GB/s (diffusers#11081).
STREAMING = 4.918 / 4.602
UNET_SHARE = 1 / 16  # of a U-Net's parameters for each latent: most of them work on a quarter of the side (SDXL)


@dataclass(frozen=True)
class Combination:
    """Switches that do not work together. `where`: field -> values, all of which must hold; `pipelines`: prefixes of
    pipeline classes, () for all; `devices`: kinds of device, () for all; `instead`: the fields to change for one that
    does.
    """

    title: str
    where: Mapping[str, tuple[Any, ...]]
    result: str
    instead: Mapping[str, Any]
    source: str
    pipelines: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()


QUANTO: dict[str, tuple[Any, ...]] = {"quantize": ("fp8", "int8", "int4"), "quantize_backend": ("quanto",)}
COMBINATIONS = (
    Combination(
        "quantization + layerwise casting",
        {"quantize": ("fp8", "int8", "int4"), "layerwise_casting": (True,)},
        "fails in both orders: quantized weights cannot be cast",
        {"layerwise_casting": False},
        "measured with optimum-quanto 0.2.7 and diffusers 0.42",
    ),
    Combination(
        "quanto + sequential offload",
        {**QUANTO, "cpu_offload": ("sequential",)},
        "TypeError when a quantized tensor is moved by itself",
        {"cpu_offload": "model", "quantize": "int8"},
        "diffusers#10526",
    ),
    Combination(
        "quanto + group offload on a GPU",
        {**QUANTO, "cpu_offload": ("group",)},
        "tensors end up on two devices",
        {"cpu_offload": "model", "quantize": "int8"},
        "diffusers#12610, diffusers#14038",
        devices=("cuda",),
    ),
    Combination(
        "quanto int4 + model offload",
        {**QUANTO, "quantize": ("int4",), "cpu_offload": ("model",)},
        "fails: packed 4-bit weights cannot be moved",
        {"quantize": "int8"},
        "measured with optimum-quanto 0.2.7",
    ),
    Combination(
        "sequential offload of Flux",
        {"cpu_offload": ("sequential",)},
        "meta tensor errors",
        {"cpu_offload": "group"},
        "diffusers#10869, diffusers#10958",
        pipelines=("Flux",),
    ),
    Combination(
        "torchao + group offload",
        {"quantize": ("fp8", "int8", "int4"), "quantize_backend": ("torchao",), "cpu_offload": ("group",)},
        "tensors end up on two devices when groups are streamed",
        {"cpu_offload": "model"},
        "diffusers#13281",
    ),
    Combination(
        "torchao int4",
        {"quantize": ("int4",), "quantize_backend": ("torchao",)},
        "each of its int4 formats is for one kind of accelerator",
        {"quantize": "int8"},
        "torchao 0.18",
    ),
    Combination(
        "sequential offload on the CPU",
        {"cpu_offload": ("sequential",)},
        "sets up, then fails: it needs an accelerator",
        {"cpu_offload": "none"},
        "measured with accelerate 1.15",
        devices=("cpu",),
    ),
)

# Classes that a switch does nothing for, or fails on (read in diffusers 0.42; a test compares these with the classes).
UNSLICED = frozenset({
    "AsymmetricAutoencoderKL", "AutoencoderKLMiniMaxH3Audio", "AutoencoderKLTemporalDecoder", "AutoencoderSAME",
    "Cosmos3AVAEAudioTokenizer", "Kandinsky6SRVAE", "LTX2VideoDiffusionDecoderModel", "LongCatAudioDiTVae",
    "MMAudioVAE", "MMAudioVocoder", "MiniMaxMusic3Vocoder", "RFD4ProteinaAutoencoder", "VQModel",
})  # fmt: skip
UNTILED = frozenset({
    "AsymmetricAutoencoderKL", "AutoencoderKLKVAEAudio", "AutoencoderKLLTX2Audio", "AutoencoderKLMiniMaxH3Audio",
    "AutoencoderKLTemporalDecoder", "AutoencoderRAE", "AutoencoderSAME", "Cosmos3AVAEAudioTokenizer",
    "Kandinsky6SRVAE", "LongCatAudioDiTVae", "MMAudioVAE", "MMAudioVocoder", "MiniMaxMusic3Vocoder",
    "RFD4ProteinaAutoencoder", "VQModel",
})  # fmt: skip
UNCASTABLE = {"ZImageTransformer2DModel": "it reads a weight's number format before it calls the layer"}

# The order in which a run that ran out of memory steps down; a step is taken whole, and only if its combination works.
# int8 comes before int4 and fp8 is left out: it is as large as int8, slower, and has made noise on some GPUs
# (optimum-quanto#343).
STEPS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("VAE slicing and tiling", {"vae_slicing": True, "vae_tiling": True}),
    ("attention slicing", {"attention_slicing": True}),
    ("model offload", {"cpu_offload": "model"}),
    ("layerwise casting", {"layerwise_casting": True}),
    ("quantization to int8", {"quantize": "int8", "layerwise_casting": False}),
    ("quantization to int4", {"quantize": "int4", "layerwise_casting": False, "cpu_offload": "none"}),
    ("sequential offload", {"cpu_offload": "sequential", "quantize": "none", "layerwise_casting": False}),
    ("group offload", {"cpu_offload": "group", "quantize": "none", "layerwise_casting": False}),
)
RANKS = {
    "quantize": ("none", "fp8", "int8", "int4"),
    "cpu_offload": ("none", "model", "group", "sequential"),
}


def describe(placement: Placement) -> str:
    """A placement in words: "int8, model offload, VAE tiling"."""
    words: list[str] = [] if placement.quantize == "none" else [placement.quantize]
    words += ["layerwise casting"] * placement.layerwise_casting
    words += [] if placement.cpu_offload == "none" else [f"{placement.cpu_offload} offload"]
    words += ["VAE tiling"] * placement.vae_tiling + ["VAE slicing"] * placement.vae_slicing
    words += ["attention slicing"] * placement.attention_slicing
    return ", ".join(words) or "as it is"


def options(fields: Mapping[str, Any]) -> str:
    """Placement fields as the command line's options."""
    words = []
    for name, value in fields.items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(option if value else f"no {option}")
        else:
            words.append(f"{option} {value}")
    return " and ".join(words)


def refused(placement: Placement, pipeline: str = "", device: str = "cuda") -> Combination | None:
    """The first combination known not to work that a placement makes on a kind of device, None where all do."""
    for row in COMBINATIONS:
        here = (not row.devices or device in row.devices) and (not row.pipelines or pipeline.startswith(row.pipelines))
        if here and all(getattr(placement, name) in values for name, values in row.where.items()):
            return row
    return None


def check(placement: Placement, pipeline: str = "", device: str = "cuda") -> None:
    """Raises UsageError for a combination known not to work, naming one that does."""
    row = refused(placement, pipeline, device)
    if row:
        fields = working(placement, pipeline, device)
        raise UsageError(f"{row.title} does not work: {row.result} ({row.source})", f"use {options(fields)}")


def working(placement: Placement, pipeline: str = "", device: str = "cuda") -> dict[str, Any]:
    """The fields to change for a placement that works, by each combination's own way out; {} for one that does."""
    fields: dict[str, Any] = {}
    while row := refused(replace(placement, **fields), pipeline, device):
        fields |= row.instead
    return fields


def takable(placement: Placement, parts: Sequence[Sizes]) -> tuple[Placement, tuple[str, ...]]:
    """The placement without the switches these components cannot take, and a notice for each switch left out."""
    notices: dict[str, str] = {}
    decoders = [part for part in parts if part.kind == "decoder"]
    denoisers = [part for part in parts if part.kind == "denoiser"]
    named = [part for part in parts if part.name in placement.quantize_components]
    for field, classes in (("vae_slicing", UNSLICED), ("vae_tiling", UNTILED)):
        if not decoders:
            notices[field] = "this pipeline has no VAE"
        elif all(part.class_name in classes for part in decoders):
            notices[field] = f"{decoders[0].class_name} has none"
    for part in denoisers:
        if part.class_name in UNCASTABLE:
            notices["layerwise_casting"] = f"{part.class_name}: {UNCASTABLE[part.class_name]}"
        if part.quantized:
            notices["layerwise_casting"] = f"the {part.name} is quantized already ({part.quantized})"
    if not denoisers:
        notices["layerwise_casting"] = "this pipeline has no transformer or U-Net"
    taken = quantized_by_default(part.name for part in parts)
    wanted = named or [part for part in parts if part.name in taken]
    if parts and all(part.quantized for part in wanted):
        notices["quantize"] = "what it would quantize is quantized already" if wanted else "it has nothing to quantize"
    blank = Placement()
    told = {name: why for name, why in notices.items() if getattr(placement, name) != getattr(blank, name)}
    without: dict[str, Any] = {name: getattr(blank, name) for name in told}
    return replace(placement, **without), tuple(
        f"--{name.replace('_', '-')} is left out: {why}" for name, why in told.items()
    )


def next_step(
    placement: Placement,
    parts: Sequence[Sizes],
    pipeline: str = "",
    device: str = "cuda",
    fixed: Collection[str] = (),
) -> Placement | None:
    """The placement to try after memory ran out under this one, None when there is nothing left to try.

    Repeated from any placement it ends: every step raises a switch that no later one lowers below it.
    `fixed`: fields that no step may change.
    """
    for _, fields in STEPS:
        name = next(iter(fields))
        moved = placement.cpu_offload in ("group", "sequential")  # the last steps: nothing else combines with them
        if moved and name in ("cpu_offload", "quantize", "layerwise_casting"):
            continue
        if device == "cpu" and fields.get("cpu_offload", "none") != "none":
            continue
        if any(fields.get(name, getattr(placement, name)) != getattr(placement, name) for name in fixed):
            continue
        if not _raises(placement, fields, name):
            continue
        tried, left_out = takable(replace(placement, **fields), parts)
        if tried != placement and not (left_out and name != "vae_slicing") and not refused(tried, pipeline, device):
            return tried
    return None


def _raises(placement: Placement, fields: Mapping[str, Any], name: str) -> bool:
    """Whether a step goes further than the placement in its first switch (or any, for switches that are on or off)."""
    if name in RANKS:
        ranks = RANKS[name]
        return ranks.index(fields[name]) > ranks.index(getattr(placement, name))
    return any(value is True and not getattr(placement, field) for field, value in fields.items())
