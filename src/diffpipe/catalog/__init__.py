"""The families diffpipe knows, as rows of data. Adding a family is adding a row (CONTRIBUTING shows one)."""

from __future__ import annotations

from ..specs import Provider
from . import demo, image

BUILTIN: dict[str, Provider] = {provider.name: provider for provider in (*demo.PROVIDERS, *image.PROVIDERS)}
