"""Models whose components were measured: recorded.json, which tools/record_components.py writes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files as package_files

from ..core.parsing import Fields, parse_json
from .sizes import Settings, Sizes, levels

LARGEST = 1 << 20  # bytes of the file
SIZES = ("width", "height", "frames", "steps")


@dataclass(frozen=True)
class RecordedModel:
    """A model: what people call it, its repositories, its pipeline class, its components.

    `sizes`: the width, height, frames and steps of what it makes by default, as far as it has such.
    """

    title: str
    repositories: tuple[str, ...]
    pipeline: str
    sizes: Mapping[str, int]
    components: tuple[Sizes, ...]

    @classmethod
    def from_json(cls, data: Fields) -> RecordedModel:
        """Raises Misfit for what does not fit."""
        return cls(
            title=data.text("title"),
            repositories=(data.text("repository"), *data.texts("also")),
            pipeline=data.text("pipeline"),
            sizes={name: data.integer(name) for name in SIZES if name in data},
            components=tuple(map(Sizes.from_json, data.objects("components"))),
        )


@functools.cache
def recorded() -> Mapping[str, RecordedModel]:
    """The recorded models by the short names of the tool."""
    text = (package_files("diffpipe") / "memory" / "recorded.json").read_text(encoding="utf-8")
    models = Fields(parse_json(text, LARGEST, "recorded.json"))
    return {name: RecordedModel.from_json(models.object(name)) for name in models.names()}


@functools.cache
def _by_class() -> Mapping[str, Sizes]:
    return {part.class_name: part for model in recorded().values() for part in model.components}


def of_repository(name: str) -> RecordedModel | None:
    return next((model for model in recorded().values() if name in model.repositories), None)


def as_recorded(part: Sizes) -> Sizes:
    """A component with what it holds as it was measured, where it is one of the recorded ones (the same tensors)."""
    known = _by_class().get(part.class_name)
    if known is None or known.parameters != part.parameters:
        return part
    held = {name: getattr(known, name) for name in ("live", "live_video", "live_frame", "besides", "recorded")}
    return replace(part, **held)


def default_sizes(pipeline: str, configs: Mapping[str, Settings]) -> dict[str, int]:
    """The size a pipeline makes by default: a recorded one's, or the U-Net's sample size."""
    if pipeline.startswith("AudioLDM"):  # a spectrogram: 64 bands, 100 frames a second
        return dict(recorded()["audioldm2"].sizes)
    same = next((dict(model.sizes) for model in recorded().values() if model.pipeline == pipeline), {})
    sample = configs.get("unet", {}).get("sample_size")
    doublings = len(levels(configs.get("vae", {}))) - 1
    if isinstance(sample, int) and doublings >= 0:
        return {**same, "width": sample << doublings, "height": sample << doublings}
    return same
