"""What the user asked `build` for, before anything is resolved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from .canonical import JsonObject, JsonValue
from .choices import AttentionBackend, CpuOffload, Memory, Quantize, QuantizeBackend, StepCache
from .names import IDENTIFIER
from .parsing import Fields

SAFETY_CHECKER = "safety_checker"  # the name that every pipeline of diffusers has for it


@dataclass(frozen=True)
class Placement:
    """How a pipeline is kept in memory, and in which form. The defaults are: all of it on the device, as it is.

    `memory` is what was asked for: these switches ("manual"), or the fastest that fits ("auto", where the switches say
    what was chosen). Offload strategies: model moves one component to the device at a time; group one block of the
    denoiser (copied while the one before it works) and one layer of the rest; sequential one layer at a time.
    `quantize_components`: names, () for the denoisers and text encoders. `device_memory`: bytes to plan for, None for
    what is free.
    """

    memory: Memory = "manual"
    attention_slicing: bool = False
    vae_slicing: bool = False
    vae_tiling: bool = False
    layerwise_casting: bool = False
    cpu_offload: CpuOffload = "none"
    quantize: Quantize = "none"
    quantize_backend: QuantizeBackend = "quanto"
    quantize_components: tuple[str, ...] = ()
    device_memory: int | None = None

    @classmethod
    def from_json(cls, data: Fields) -> Placement:
        """The inverse of `to_json`; fields that are not known are passed over. Raises Misfit for what does not fit."""
        return cls(
            memory=data.choice("memory", Memory, "manual"),
            attention_slicing=data.truth("attention_slicing", False),
            vae_slicing=data.truth("vae_slicing", False),
            vae_tiling=data.truth("vae_tiling", False),
            layerwise_casting=data.truth("layerwise_casting", False),
            cpu_offload=data.choice("cpu_offload", CpuOffload, "none"),
            quantize=data.choice("quantize", Quantize, "none"),
            quantize_backend=data.choice("quantize_backend", QuantizeBackend, "quanto"),
            quantize_components=data.all_matching("quantize_components", IDENTIFIER, ()),
            device_memory=data.maybe_integer("device_memory"),
        )

    def to_json(self) -> JsonObject:
        """The fields that differ from their defaults: {} for a pipeline as it comes, whose key must not change."""
        blank = asdict(Placement())
        given = {name: value for name, value in asdict(self).items() if value != blank[name]}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


@dataclass(frozen=True)
class Speed:
    """What makes the denoisers faster, at the price of the last bits (or more: `step_cache`) of the results.

    `compile`: the repeated blocks, at their first use. `attention_backend`: the name of what computes attention, "" for
    torch's own choice. `step_cache`: "" for none, else the way in which steps reuse what earlier ones computed.
    """

    compile: bool = False
    attention_backend: str = ""
    step_cache: str = ""

    @classmethod
    def from_json(cls, data: Fields) -> Speed:
        """Raises Misfit for what does not fit."""
        return cls(
            compile=data.truth("compile", False),
            attention_backend=data.choice("attention_backend", AttentionBackend) if "attention_backend" in data else "",
            step_cache=data.choice("step_cache", StepCache) if "step_cache" in data else "",
        )

    def to_json(self) -> JsonObject:
        """The fields that differ from their defaults."""
        return {name: value for name, value in asdict(self).items() if value}


@dataclass(frozen=True)
class BuildSpec:
    """What the user asked `build` for, before anything is resolved. Sources are repositories, folders or files."""

    provider: str
    type: str
    model: str
    pipeline: str = ""
    revision: str | None = None
    variant: str | None = None
    config: str | None = None
    components: Mapping[str, str] = field(default_factory=dict)
    loras: tuple[str, ...] = ()
    lora_partial: bool = False
    scheduler: str | None = None
    scheduler_config: Mapping[str, JsonValue] = field(default_factory=dict)
    dtype: str = "bfloat16"
    device: str = "auto"
    placement: Placement = field(default_factory=Placement)
    speed: Speed = field(default_factory=Speed)
    no_safety_checker: bool = False
    allow_pickle: bool = False
    trust_remote_code: bool = False

    @property
    def without(self) -> tuple[str, ...]:
        """The components of the model that are left out."""
        return (SAFETY_CHECKER,) if self.no_safety_checker else ()
