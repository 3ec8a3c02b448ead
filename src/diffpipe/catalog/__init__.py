"""The families diffpipe knows, as rows of data. Adding a family is adding a row (CONTRIBUTING shows one)."""

from __future__ import annotations

from .families import PROVIDERS
from .rows import Provider

BUILTIN: dict[str, Provider] = {provider.name: provider for provider in PROVIDERS}
