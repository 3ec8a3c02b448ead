"""The families diffpipe knows, as rows of data. Adding a family is adding a row (CONTRIBUTING shows one)."""

from __future__ import annotations

from . import audio, demo, image, video
from .rows import PipelineType, Provider

CUSTOM = Provider(
    name="custom",
    title="Any diffusers folder or repository",
    homepage="https://huggingface.co/models?library=diffusers",
    types=(PipelineType("any", ""),),
)

BUILTIN: dict[str, Provider] = {
    provider.name: provider
    for providers in (demo.PROVIDERS, image.PROVIDERS, video.PROVIDERS, audio.PROVIDERS, (CUSTOM,))
    for provider in providers
}
