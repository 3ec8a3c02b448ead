"""What a pipeline key hashes: the named sections that decide what the pipeline is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .build_spec import Placement, Speed
from .canonical import JsonObject, JsonValue, digest
from .choices import Dtype, Quantize, QuantizeBackend
from .device_names import DEVICE
from .names import COMMIT, IDENTIFIER, REPOSITORY, stays_inside
from .parsing import Fields, Misfit, OtherVersion
from .source import BASE, CONFIG, LARGEST_SCALE, LONGEST_PART_NAME, Role

FORMAT = 1  # of the hashed configuration: raise it when the meaning of a section changes
ROW = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")  # the name of a provider or of one of its types
PATTERN = re.compile(r"[\w.*?\[\]!-]{1,500}")  # of layers, as fnmatch has them


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
            components=data.all_matching("components", IDENTIFIER),
            exclude=data.all_matching("exclude", PATTERN, ()),
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
        found = cls(
            kind=kind,
            subfolder=data.text("subfolder", ""),
            files=tuple(named),
            repository=data.matching("repository", REPOSITORY) if kind == "hub" else "",
            commit=data.matching("commit", COMMIT) if kind == "hub" else "",
            variant=data.maybe_text("variant"),
            scale=data.number("scale", 1.0, -LARGEST_SCALE, LARGEST_SCALE),
            into=data.matching("into", IDENTIFIER, ""),
        )
        if not all(map(stays_inside, filter(None, (*found.files, found.subfolder)))):
            raise Misfit(f"{data.where or 'it'} names a file outside its folder")
        return found


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
        """Raises Misfit for what is no configuration, OtherVersion for one that means something else."""
        if data.integer("format", FORMAT) != FORMAT:
            raise OtherVersion(f"its configuration is of format {data.integer('format')}, this diffpipe reads {FORMAT}")
        quantized = Quantization.from_json(data.object("quantization")) if "quantization" in data else None
        placed, trust, scheduler = data.object("placement"), data.object("trust"), data.object("scheduler")
        return cls(
            json=data.value,
            provider=data.matching("provider", ROW),
            type=data.matching("type", ROW),
            # A class that diffusers does not have is refused by what looks it up; a manifest's is held to a form.
            pipeline=data.text("pipeline", most=LONGEST_PART_NAME),
            sections=_sections(data),
            scheduler=SchedulerChoice(
                scheduler.text("class", most=LONGEST_PART_NAME) if "class" in scheduler else None,
                scheduler.object("config").value,
            ),
            dtype=data.choice("dtype", Dtype),
            device=placed.matching("device", DEVICE),
            placement=Placement.from_json(Fields({**placed.value, **_quantized(quantized)}, placed.where)),
            trust=Trust(trust.truth("pickle"), trust.truth("remote_code")),
            quantization=quantized,
            float32=data.all_matching("float32", IDENTIFIER, ()),
            speed=Speed.from_json(data.object("speed")),
            without=data.all_matching("without", IDENTIFIER, ()),
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
    for role, value in found.items():
        Section.from_json(Fields(value, str(role)))
    return found


def _component(name: str) -> Role:
    try:
        return Role.parse(f"component:{name}")
    except ValueError as error:
        raise Misfit("components has a name that no component has") from error
