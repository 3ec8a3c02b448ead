"""The plain data that crosses every wall of diffpipe. No logic beyond validation and canonical JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from .errors import DiffpipeError

FlagKind = Literal["text", "integer", "number", "boolean", "choice", "image", "mask", "video", "audio", "json"]
OutputKind = Literal["image", "video", "audio"]
MEDIA_KINDS = frozenset({"image", "mask", "video", "audio"})
# By kind of output, the default first; "frames" is a folder of pictures.
FORMATS: Mapping[OutputKind, tuple[str, ...]] = {
    "image": ("png", "jpg", "jpeg", "webp"),
    "video": ("mp4", "webm", "gif", "frames"),
    "audio": ("wav", "flac"),
}
NOUNS: Mapping[OutputKind, str] = {"image": "picture", "video": "video", "audio": "sound"}
FRAME_RATES = ("frame_rate", "fps")  # call arguments that say how fast the video is meant to play
MAX_SEED = 2**64 - 1  # torch.Generator.manual_seed
CHECKPOINTS = (".safetensors", ".gguf", ".ckpt", ".pt", ".pth", ".bin")  # the endings of single-file weights


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, no NaN. Equal values always give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 (hex) of a value's canonical JSON."""
    # Text from the command line may hold bytes that were no UTF-8, as lone surrogates.
    return hashlib.sha256(canonical_json(value).encode(errors="surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Flag:
    """One call argument of a pipeline as a command-line flag.

    `many`: the flag may be repeated (the argument takes a list). `scalar`: a single value is passed bare, not in a list
    of one. `default` is None where the signature has None or nothing. `minimum`, `maximum` are inclusive;
    `multiple_of` is in the argument's own unit (pixels for width and height), and `remainder` what is left over (1 for
    8n + 1 frames). `most`: how many values, or frames of a video, are taken. `mode`: the Pillow mode that a picture is
    read in ("" for RGB, L for masks).
    """

    name: str
    kind: FlagKind
    many: bool = False
    scalar: bool = True
    required: bool = False
    default: Any = None
    help: str = ""
    minimum: float | None = None
    maximum: float | None = None
    multiple_of: int | None = None
    remainder: int = 0
    most: int | None = None
    mode: str = ""
    choices: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Flag:
        return cls(**{**data, "choices": tuple(data.get("choices", ()))})

    def to_json(self) -> dict[str, Any]:
        """The fields that differ from their defaults (a manifest holds dozens of flags)."""
        blank = Flag(name="", kind="text")
        return {k: v for k, v in asdict(self).items() if k in ("name", "kind") or v != getattr(blank, k)}


def nearest(flag: Flag, value: int) -> list[int]:
    """The one or two numbers nearest to a value that are in the flag's steps and range, the nearest first."""
    step = flag.multiple_of or 1
    below = (value - flag.remainder) // step * step + flag.remainder
    low = max(flag.minimum or 0, flag.remainder or step)
    fitting = {n for n in (below, below + step) if n >= low and (flag.maximum is None or n <= flag.maximum)}
    return sorted(fitting, key=lambda n: (abs(n - value), n)) or [int(low)]


@dataclass(frozen=True)
class PipelineType:
    """A row of the catalogue: one way to use a provider's models.

    `pipeline` is the diffusers class ("" for custom: the folder's own). `defaults` override the signature's; `flags`
    holds fields of Flag to override by argument name, e.g. {"width": {"multiple_of": 16}}, or None for an argument
    that gets no flag. `components`: where a part
    comes from that the model's own folder does not have (a ControlNet, a prior): a source as --component takes it.
    `fps`: frames a second of a video, where the call has no argument for them. `float32`: components that are loaded in
    that, whatever --dtype says (autoencoders of videos). `quirks`: what rows cannot say, as
    "module:function" by hook:

    - load(pipe): after loading, before the pipeline is placed on its device;
    - call(pipe, arguments) -> output: in place of pipe(**arguments).

    `unquantized`: linear layers that quantization leaves alone, as patterns COMPONENT.LAYER ("transformer.time_*").
    """

    name: str
    pipeline: str
    repositories: tuple[str, ...] = ()
    dtype: str = "bfloat16"
    defaults: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)
    components: Mapping[str, str] = field(default_factory=dict)
    fps: float | None = None
    float32: tuple[str, ...] = ()
    quirks: Mapping[str, str] = field(default_factory=dict)
    unquantized: tuple[str, ...] = ()
    legacy: bool = False
    notes: str = ""

    @property
    def title(self) -> str:
        """Its name, marked where diffusers keeps the class for old users only."""
        return self.name + " (legacy)" * self.legacy


@dataclass(frozen=True)
class Provider:
    """A family of models: its types are rows, the first one the default."""

    name: str
    title: str
    types: tuple[PipelineType, ...]
    legacy: bool = False
    homepage: str = ""
    vocabulary: str = ""

    def type(self, name: str | None) -> PipelineType | None:
        """The named type, the first one for None, None where there is no such type."""
        if name is None:
            return self.types[0]
        return next((row for row in self.types if row.name == name), None)


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


@dataclass(frozen=True)
class FileInfo:
    """A file of a source: bytes, and its content digest ("sha256:…", or "git:…" for small files on the hub)."""

    size: int
    digest: str


@dataclass(frozen=True)
class Source:
    """A pinned source: the exact files that will be loaded, wherever they lie.

    `label` is what the user knows it by (repository id, or the last part of a path); `commit` is set for hub
    repositories. `role` is "base", "config", "component:NAME" or "lora:N". `subfolder` is "" at the source's root.
    `pipeline` and `components` (name -> library, class) are what a diffusers folder's model_index.json says.
    """

    role: str
    kind: Literal["hub", "folder", "file", "embedded"]
    label: str
    files: Mapping[str, FileInfo]
    commit: str | None = None
    variant: str | None = None
    subfolder: str = ""
    scale: float = 1.0
    pipeline: str = ""
    components: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def single(self) -> bool:
        """Whether it is one file that is loaded by itself: a checkpoint or an adapter."""
        return len(self.files) == 1 and next(iter(self.files)).endswith(CHECKPOINTS)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Source:
        files = {path: FileInfo(**info) for path, info in data["files"].items()}
        components = {name: (value[0], value[1]) for name, value in data["components"].items()}
        return cls(**{**data, "files": files, "components": components})


@dataclass(frozen=True)
class Component:
    """A part of a pipeline; sizes are of its stored weights (parameters is the number of tensor elements)."""

    name: str
    library: str
    class_name: str
    source: str
    parameters: int = 0
    bytes: int = 0
    dtypes: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Component:
        return cls(**{**data, "dtypes": tuple(data.get("dtypes", ()))})


@dataclass(frozen=True)
class Request:
    """One item to generate: call arguments by name (media as paths), a seed, and where its results go.

    `index` is how many results the items before it have.

    `overwrite`: whether files there may be replaced. `fps`: frames a second of a video, None for the pipeline's own.
    `id` is the item's own among those of its run; `item` the digest of pipeline, arguments and seed.
    """

    index: int
    seed: int
    arguments: Mapping[str, Any]
    paths: tuple[str, ...] = ()
    overwrite: bool = False
    fps: float | None = None
    id: str = ""
    item: str = ""


@dataclass(frozen=True)
class Artifact:
    """A finished output file. `stored`: of one at a URL what a journal notes: size, digest, and its store's tag."""

    path: str
    seed: int
    index: int
    kind: OutputKind
    seconds: float
    details: Mapping[str, Any] = field(default_factory=dict)
    stored: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a request: its files, or why there are none."""

    request: Request
    artifacts: tuple[Artifact, ...] = ()
    warnings: tuple[str, ...] = ()
    error: DiffpipeError | None = None
