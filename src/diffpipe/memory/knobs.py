"""What each memory switch costs and needs, as rows: they drive the plan, the refusals and the docs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

from ..core.build_spec import Placement
from ..core.choices import CpuOffload, Quantize
from ..core.device_names import DeviceKind
from ..core.errors import UsageError
from ..core.quantization import quantized_by_default
from .sizes import Sizes


class Switches(TypedDict, total=False):
    """Fields of a Placement with new values."""

    vae_slicing: bool
    vae_tiling: bool
    attention_slicing: bool
    layerwise_casting: bool
    cpu_offload: CpuOffload
    quantize: Quantize


Value = bool | str  # of a switch


@dataclass(frozen=True)
class Cost:
    """How much longer a run takes with a switch on: a factor on the whole run's time by kind of device."""

    knob: str
    value: Value
    accelerator: float
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
    does; `seen`: the packages it was last seen to fail with, and their versions.
    """

    title: str
    where: Mapping[str, tuple[Value, ...]]
    result: str
    instead: Switches
    seen: Mapping[str, str]
    pipelines: tuple[str, ...] = ()
    devices: tuple[DeviceKind, ...] = ()

    @property
    def versions(self) -> str:
        """What it was seen with, in words: "diffusers 0.42.1, torchao 0.18.0"."""
        return ", ".join(f"{package} {version}" for package, version in self.seen.items())


# A test tries each row for real, and fails where one works after all (tests/paper/test_combinations.py).
COMBINATIONS = (
    Combination(
        "quanto + layerwise casting",
        {"quantize": ("fp8", "int8", "int4"), "quantize_backend": ("quanto",), "layerwise_casting": (True,)},
        "fails in both orders: weights that quanto quantized cannot be cast",
        {"layerwise_casting": False},
        {"optimum-quanto": "0.2.7", "diffusers": "0.42.1"},
    ),
    Combination(
        "torchao int4",
        {"quantize": ("int4",), "quantize_backend": ("torchao",)},
        "each of its int4 formats is for one kind of accelerator",
        {"quantize": "int8"},
        {"torchao": "0.18.0"},
    ),
    Combination(
        "sequential offload on the CPU",
        {"cpu_offload": ("sequential",)},
        "sets up, then fails: it needs an accelerator",
        {"cpu_offload": "none"},
        {"accelerate": "1.15.0"},
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


def describe(placement: Placement) -> str:
    """A placement in words: "int8, model offload, VAE tiling"."""
    words: list[str] = [] if placement.quantize == "none" else [placement.quantize]
    words += ["layerwise casting"] * placement.layerwise_casting
    words += [] if placement.cpu_offload == "none" else [f"{placement.cpu_offload} offload"]
    words += ["VAE tiling"] * placement.vae_tiling + ["VAE slicing"] * placement.vae_slicing
    words += ["attention slicing"] * placement.attention_slicing
    return ", ".join(words) or "as it is"


def options(fields: Mapping[str, object]) -> str:
    """Placement fields as the command line's options."""
    words = []
    for name, value in fields.items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(option if value else f"no {option}")
        else:
            words.append(f"{option} {value}")
    return " and ".join(words)


def refused(placement: Placement, pipeline: str = "", device: DeviceKind = "accelerator") -> Combination | None:
    """The first combination known not to work that a placement makes on a kind of device, None where all do."""
    for row in COMBINATIONS:
        here = (not row.devices or device in row.devices) and (not row.pipelines or pipeline.startswith(row.pipelines))
        if here and all(getattr(placement, name) in values for name, values in row.where.items()):
            return row
    return None


def check(placement: Placement, pipeline: str = "", device: DeviceKind = "accelerator") -> None:
    """Raises UsageError for a combination known not to work, naming one that does."""
    row = refused(placement, pipeline, device)
    if row:
        fields = working(placement, pipeline, device)
        raise UsageError(f"{row.title} does not work: {row.result} ({row.versions})", f"use {options(fields)}")


def working(placement: Placement, pipeline: str = "", device: DeviceKind = "accelerator") -> Switches:
    """The fields to change for a placement that works, by each combination's own way out; {} for one that does."""
    fields: Switches = {}
    while row := refused(replace(placement, **fields), pipeline, device):
        fields |= row.instead
    return fields


def takable(placement: Placement, parts: Sequence[Sizes]) -> tuple[Placement, tuple[str, ...]]:
    """The placement without the switches these components cannot take, and a notice for each switch left out."""
    blank = Placement()
    reasons = {
        "vae_slicing": _why_without(parts, UNSLICED),
        "vae_tiling": _why_without(parts, UNTILED),
        "layerwise_casting": _why_uncast(parts),
        "quantize": _why_unquantized(parts, placement.quantize_components),
    }
    left_out = {f: why for f, why in reasons.items() if why and getattr(placement, f) != getattr(blank, f)}
    notices = (f"--{field.replace('_', '-')} is left out: {why}" for field, why in left_out.items())
    return replace(placement, **{field: getattr(blank, field) for field in left_out}), tuple(notices)


def _why_without(parts: Sequence[Sizes], classes: Collection[str]) -> str:
    """Why no autoencoder has a switch that these classes lack; "" if one has it."""
    decoders = [part.class_name for part in parts if part.kind == "decoder"]
    if not decoders:
        return "this pipeline has no VAE"
    return f"{decoders[0]} has none" if all(name in classes for name in decoders) else ""


def _why_uncast(parts: Sequence[Sizes]) -> str:
    """Why not every denoiser's layers can be stored in 8 bits; "" if they can."""
    denoisers = [part for part in parts if part.kind == "denoiser"]
    if not denoisers:
        return "this pipeline has no transformer or U-Net"
    for part in reversed(denoisers):
        if part.quantized:
            return f"the {part.name} is quantized already ({part.quantized})"
        if part.class_name in UNCASTABLE:
            return f"{part.class_name}: {UNCASTABLE[part.class_name]}"
    return ""


def _why_unquantized(parts: Sequence[Sizes], named: Collection[str]) -> str:
    """Why there is nothing to quantize, of the components named or of those taken by default; "" if there is."""
    default = quantized_by_default(part.name for part in parts)
    wanted = [part for part in parts if part.name in named] or [part for part in parts if part.name in default]
    if not parts or any(not part.quantized for part in wanted):
        return ""
    return "what it would quantize is quantized already" if wanted else "it has nothing to quantize"
