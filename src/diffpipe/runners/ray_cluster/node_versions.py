"""Whether another node would make the same: the versions of the packages that decide it."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ...building.versions import versions
from ...cache.store import Store
from ...core.errors import DiffpipeError
from ...core.flag import OutputKind
from ...core.manifest import Manifest
from ...core.quantization import PACKAGES

ALWAYS = ("diffpipe", "diffusers", "transformers", "torch")
ENCODERS: dict[OutputKind, str] = {"image": "pillow", "video": "av", "audio": "av"}


@dataclass(frozen=True)
class NodeReport:
    """What a node answers before a run: its deciding versions, all of them for the log, and whether it has the
    pipeline."""

    versions: Mapping[str, str]
    all_versions: Mapping[str, str]
    has_pipeline: bool


def report(packages: Sequence[str], key: str) -> NodeReport:
    """Of the node that this runs on."""
    return NodeReport(installed(packages), versions(), Store().sound(key) is not None)


def deciding(manifest: Manifest) -> tuple[str, ...]:
    """The packages that decide what a pipeline makes, bit by bit: those that compute it, and the one that encodes it.

    accelerate and safetensors only carry weights from disk to device; peft counts where LoRAs are loaded, quantizers
    where something is quantized, gguf where weights are.
    """
    config = manifest.config
    quantizer = PACKAGES[config.quantization.backend] if config.quantization else ""
    gguf = any(path.endswith(".gguf") for source in manifest.sources for path in source.files)
    more = [ENCODERS[manifest.kind], quantizer, "peft" if config.loras else "", "gguf" if gguf else ""]
    return (*ALWAYS, *(name for name in more if name))


def installed(packages: Sequence[str]) -> dict[str, str]:
    """The installed versions, and Python's. Of torch without the build's label (+cpu, +cu128): a driver without a GPU
    and nodes with one have different builds of the same."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for package in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package).partition("+")[0]
    return found


def differing(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """What another node has otherwise: "diffusers 0.41.0 (here 0.42.1)"."""
    names = [name for name in here if here[name] != there.get(name)]
    return [f"{name} {there.get(name, 'missing')} (here {here[name]})" for name in names]


def refusal(different: Mapping[str, Sequence[str]]) -> DiffpipeError:
    """The error for nodes, by their labels, that differ."""
    (label, first), *others = different.items()
    more = "".join(f"; {other} has {', '.join(lines)}" for other, lines in others)
    return DiffpipeError(
        f"{label} would make something else: it has {', '.join(first)}{more}",
        "install the same versions there, or leave that node out",
    )
