"""Models whose components were measured: recorded.json, which tools/record_components.py writes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files as package_files

from ..catalog.pipelines import Size, sizes_of
from ..core.components import Stage
from ..core.parsing import Fields, parse_json
from ..core.tracing import Held
from .sizes import Settings, Sizes, levels

LARGEST = 1 << 20  # bytes of the file
SIZES = ("width", "height", "frames", "steps")
# What was measured of a component, and what follows from the names of its tensors, which a manifest does not keep.
MEASURED = ("live", "live_video", "live_frame", "besides", "recorded")
NAMED = ("linear", "rows", "cast", "block", "outside", "layer", "wide", "wide_half", "rows_half", "largest")
MADE = ("width", "height", "frames", "batch")
STAGES: tuple[Stage, ...] = ("encode", "denoise", "decode")


@dataclass(frozen=True)
class RecordedModel:
    """A model: what people call it, its repositories, its pipeline class, its components.

    `sizes`: the width, height, frames and steps of what it makes by default, as far as it has such. `traces`: what
    lived in each stage when it was traced in bfloat16: with these sizes, and with smaller ones and two samples.
    """

    title: str
    repositories: tuple[str, ...]
    pipeline: str
    sizes: Mapping[str, int]
    components: tuple[Sizes, ...]
    traces: tuple[RecordedTrace, ...] = ()

    @classmethod
    def from_json(cls, data: Fields) -> RecordedModel:
        """Raises Misfit for what does not fit."""
        return cls(
            title=data.text("title"),
            repositories=(data.text("repository"), *data.texts("also")),
            pipeline=data.text("pipeline"),
            sizes={name: data.integer(name) for name in SIZES if name in data},
            components=tuple(map(Sizes.from_json, data.objects("components"))),
            traces=tuple(map(RecordedTrace.from_json, data.objects("traced"))),
        )


@dataclass(frozen=True)
class RecordedTrace:
    """A trace: the width, height, frames and batch of what was made, and what lived (see engine.tracing)."""

    made: Mapping[str, int]
    held: tuple[Held, ...]

    @classmethod
    def from_json(cls, data: Fields) -> RecordedTrace:
        """Raises Misfit for what does not fit."""
        stages = {stage: data.object("held").object(stage) for stage in STAGES if stage in data.object("held")}
        return cls(
            made={name: data.integer(name) for name in MADE},
            held=tuple(Held(s, name, found.integer(name)) for s, found in stages.items() for name in found.names()),
        )


@functools.cache
def recorded() -> Mapping[str, RecordedModel]:
    """The recorded models by the short names of the tool."""
    text = (package_files("diffpipe") / "memory" / "recorded.json").read_text(encoding="utf-8")
    models = Fields(parse_json(text, LARGEST, "recorded.json"))
    return {name: RecordedModel.from_json(models.object(name)) for name in models.names()}


@functools.cache
def _by_class() -> Mapping[tuple[str, int | None], Sizes]:
    """By class and number of parameters. Where several pipelines have such a component (T5 reads prompts of 128 to 512
    tokens), that of the one in which it holds most."""
    known = [part for model in recorded().values() for part in model.components]
    return {(part.class_name, part.parameters): part for part in sorted(known, key=lambda part: part.besides)}


def of_repository(name: str) -> RecordedModel | None:
    return next((model for model in recorded().values() if name in model.repositories), None)


def as_recorded(part: Sizes) -> Sizes:
    """A component with what it holds as it was measured, where it is one of the recorded ones (the same tensors)."""
    known = _by_class().get((part.class_name, part.parameters))
    if known is None:
        return part
    names = MEASURED if part.layer else (*MEASURED, *NAMED)
    held = {name: getattr(known, name) for name in names}
    return replace(part, **held)


def default_sizes(pipeline: str, configs: Mapping[str, Settings]) -> dict[str, int]:
    """The size a pipeline makes by default: its class's, derived from the settings of its components as it does itself,
    else that of a recorded one."""
    if pipeline.startswith("AudioLDM"):  # a spectrogram: 64 bands, 100 frames a second
        return dict(recorded()["audioldm2"].sizes)
    same = next((dict(model.sizes) for model in recorded().values() if model.pipeline == pipeline), {})
    sides = {"width": 1, "height": 0}
    found = {name: _value(size, configs, sides.get(name, 0)) for name, size in sizes_of(pipeline).items()}
    return {**same, **{name: value for name, value in found.items() if value}}


def _value(size: Size, configs: Mapping[str, Settings], side: int) -> int | None:
    """A default size as a number. `side`: which of (height, width), where a model's setting is a pair."""
    if isinstance(size, int):
        return size
    setting = configs.get(size.component, {}).get(size.setting)
    if isinstance(setting, list) and len(setting) == 2:
        setting = setting[side]
    value = setting if type(setting) is int else size.number
    if value is None:
        return None
    return value * _vae_scale(configs, "frames" in size.setting) if size.scaled else value


def _vae_scale(configs: Mapping[str, Settings], temporal: bool) -> int:
    """Pixels, or frames, for each of a latent: `vae_scale_factor` of diffusers' pipelines, 8 where there is no VAE."""
    vae = next((configs[name] for name in ("vae", "vqvae", "movq") if name in configs), None)
    if vae is None:
        return 8
    if temporal:
        ratio = vae.get("temporal_compression_ratio")
        return ratio if type(ratio) is int else 4
    halvings = vae.get("temperal_downsample") or vae.get("encoder_block_out_channels")
    count = len(halvings) if isinstance(halvings, list) else len(levels(vae))
    return 1 << max(count - (0 if vae.get("temperal_downsample") else 1), 0)
