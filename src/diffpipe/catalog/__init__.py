"""The families diffpipe knows, as rows of data. Adding a family is adding a row (CONTRIBUTING shows one)."""

from __future__ import annotations

from ..specs import Provider
from . import audio, demo, image, video

BUILTIN: dict[str, Provider] = {
    provider.name: provider for module in (demo, image, video, audio) for provider in module.PROVIDERS
}
