"""What the user asked `build` for, before anything is resolved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Placement:
    """How a pipeline is kept in memory, and in which form. The defaults are: all of it on the device, as it is.

    `memory` is what was asked for: these switches ("manual"), or the fastest that fits ("auto", where the switches say
    what was chosen). Offload strategies: model moves one component to the device at a time; group one block of the
    denoiser (copied while the one before it works) and one layer of the rest; sequential one layer at a time.
    `quantize_components`: names, () for the denoisers and text encoders. `device_memory`: bytes to plan for, None for
    what is free.
    """

    memory: Literal["manual", "auto"] = "manual"
    attention_slicing: bool = False
    vae_slicing: bool = False
    vae_tiling: bool = False
    layerwise_casting: bool = False
    cpu_offload: Literal["none", "model", "sequential", "group"] = "none"
    quantize: Literal["none", "fp8", "int8", "int4"] = "none"
    quantize_backend: Literal["quanto", "torchao"] = "quanto"
    quantize_components: tuple[str, ...] = ()
    device_memory: int | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Placement:
        return cls(**{**data, "quantize_components": tuple(data.get("quantize_components", ()))})

    def to_json(self) -> dict[str, Any]:
        """The fields that differ from their defaults: {} for a pipeline as it comes, whose key must not change."""
        blank = asdict(Placement())
        return {k: v for k, v in asdict(self).items() if v != blank[k]}


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
    def from_json(cls, data: Mapping[str, Any]) -> Speed:
        return cls(**data)

    def to_json(self) -> dict[str, Any]:
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
    scheduler: str | None = None
    scheduler_config: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "bfloat16"
    device: str = "auto"
    placement: Placement = field(default_factory=Placement)
    speed: Speed = field(default_factory=Speed)
    allow_pickle: bool = False
    trust_remote_code: bool = False
