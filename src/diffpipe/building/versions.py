"""The installed versions that decide what a pipeline makes."""

from __future__ import annotations

import importlib.metadata

PACKAGES = (
    "diffpipe",
    "diffusers",
    "transformers",
    "torch",
    "accelerate",
    "peft",
    "optimum-quanto",
    "safetensors",
    "pillow",
    "av",
)


def versions() -> dict[str, str]:
    """The installed version of each package that decides what a pipeline makes, without importing any."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
