"""What a pipeline key hashes: the named sections that decide what the pipeline is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .build_spec import Placement, Speed
from .canonical import JsonObject, JsonValue, digest
from .choices import Quantize, QuantizeBackend
from .parsing import Fields, Misfit
from .source import BASE, CONFIG, Role


@dataclass(frozen=True)
class Quantization:
    """What is quantized, and how: all that changes the weights it makes.

    `version`: of the package that does it, None where that was not installed. `exclude`: layers left as they are, as
    patterns COMPONENT.LAYER.
    """

    mode: Quantize
    backend: QuantizeBackend
    version: str | None
    components: tuple[str, ...]
    exclude: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Fields) -> Quantization:
        """Raises Misfit for what does not fit."""
        return cls(
            mode=data.choice("mode", Quantize),
            backend=data.choice("backend", QuantizeBackend),
            version=data.maybe_text("version"),
            components=data.texts("components"),
            exclude=data.texts("exclude", ()),
        )

    def to_json(self) -> JsonObject:
        return {
            "mode": self.mode,
            "backend": self.backend,
            "version": self.version,
            "components": list(self.components),
            "exclude": list(self.exclude),
        }


@dataclass(frozen=True)
class SchedulerChoice:
    """The scheduler asked for in place of the model's, None for its own, and settings merged onto the shipped ones."""

    name: str | None
    settings: Mapping[str, JsonValue]

    def __bool__(self) -> bool:
        return bool(self.name or self.settings)


@dataclass(frozen=True)
class Trust:
    """What the user consented to: pickled weights, and code that comes with the model."""

    pickle: bool
    remote_code: bool


@dataclass(frozen=True)
class Section:
    """What decides the weights of one source: repository and commit on the hub, files by content elsewhere.

    `files`: the paths of those that are loaded, () where the commit decides. `scale`: of a LoRA; `into`: the
    denoiser that was named for it.
    """

    kind: Literal["hub", "local"]
    subfolder: str
    files: tuple[str, ...]
    repository: str = ""
    commit: str = ""
    variant: str | None = None
    scale: float = 1.0
    into: str = ""

    @classmethod
    def from_json(cls, data: Fields) -> Section:
        """Raises Misfit for what is no section."""
        named = data.object("files").names() if isinstance(data.value.get("files"), dict) else data.texts("files", ())
        kind: Literal["hub", "local"] = data.choice("kind", Literal["hub", "local"])
        return cls(
            kind=kind,
            subfolder=data.text("subfolder", ""),
            files=tuple(named),
            repository=data.text("repository") if kind == "hub" else "",
            commit=data.text("commit") if kind == "hub" else "",
            variant=data.maybe_text("variant"),
            scale=data.number("scale", 1.0),
            into=data.text("into", ""),
        )


@dataclass(frozen=True)
class Configuration:
    """The sections that a pipeline key hashes, read as types; `json` is what is hashed, to the letter.

    `sections`: of each source what decides its weights. `placement` holds the quantization too. `float32`: components
    that are loaded in that whatever `dtype` says. `lora_partial`: whether LoRAs may be applied in part.
    `without`: the model's components that are left out.
    """

    json: JsonObject
    provider: str
    type: str
    pipeline: str
    sections: Mapping[Role, JsonObject]
    scheduler: SchedulerChoice
    dtype: str
    device: str
    placement: Placement
    trust: Trust
    quantization: Quantization | None
    float32: tuple[str, ...]
    speed: Speed
    without: tuple[str, ...] = ()
    lora_partial: bool = False

    @property
    def key(self) -> str:
        """The pipeline key: 64 hex digits."""
        return digest(self.json)

    @property
    def loras(self) -> int:
        """How many LoRAs are fused."""
        return sum(role.kind == "lora" for role in self.sections)

    @classmethod
    def from_json(cls, data: Fields) -> Configuration:
        """Raises Misfit for what is no configuration."""
        quantized = Quantization.from_json(data.object("quantization")) if "quantization" in data else None
        placed, trust, scheduler = data.object("placement"), data.object("trust"), data.object("scheduler")
        return cls(
            json=data.value,
            provider=data.text("provider"),
            type=data.text("type"),
            pipeline=data.text("pipeline"),
            sections=_sections(data),
            scheduler=SchedulerChoice(scheduler.maybe_text("class"), scheduler.object("config").value),
            dtype=data.text("dtype"),
            device=placed.text("device"),
            placement=Placement.from_json(Fields({**placed.value, **_quantized(quantized)}, placed.where)),
            trust=Trust(trust.truth("pickle"), trust.truth("remote_code")),
            quantization=quantized,
            float32=data.texts("float32", ()),
            speed=Speed.from_json(data.object("speed")),
            without=data.texts("without", ()),
            lora_partial=data.truth("lora_partial", False),
        )


def _quantized(one: Quantization | None) -> JsonObject:
    if one is None:
        return {}
    names: list[JsonValue] = list(one.components)
    return {"quantize": one.mode, "quantize_backend": one.backend, "quantize_components": names}


def _sections(data: Fields) -> dict[Role, JsonObject]:
    """Role -> section of each source, in the order in which sources are pinned."""
    found = {BASE: data.object("base").value}
    if not found[BASE]:
        raise Misfit("base is missing")
    if "config" in data:
        found[CONFIG] = data.object("config").value
    for name, section in data.entries("components"):
        found[_component(name)] = section.value
    for number, section in enumerate(data.objects("loras")):
        found[Role.lora(number)] = section.value
    return found


def _component(name: str) -> Role:
    try:
        return Role.parse(f"component:{name}")
    except ValueError as error:
        raise Misfit("components has a name that no component has") from error
