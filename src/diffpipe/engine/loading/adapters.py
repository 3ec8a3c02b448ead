"""LoRAs: loading them into a pipeline, and fusing them into its weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.errors import UsageError
from ...core.source import Source

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

log = logging.getLogger("diffpipe.engine")


def load_into(pipe: DiffusionPipeline, path: Path, adapter: str, *, pickle: bool = False) -> None:
    """Load an adapter's file beside the weights of a pipeline, under a name."""
    safe = None if pickle else True
    pipe.load_lora_weights(
        str(path.parent), weight_name=path.name, adapter_name=adapter, local_files_only=True, use_safetensors=safe
    )


def fuse(pipe: DiffusionPipeline, loras: Sequence[tuple[Path, Source]], *, pickle: bool = False) -> None:
    """Fuse adapters into the weights at their scales, in order. Scale 0 leaves the weights untouched.

    GGUF weights cannot be added to: there the adapters stay beside them. Raises UsageError if the pipeline takes no
    adapters or one changes no layer of it.
    """
    beside = any(_is_gguf(part) for part in pipe.components.values())
    scales = {}
    for number, (path, source) in enumerate(loras):
        if source.scale == 0:
            continue
        adapter = f"adapter_{number}"
        scales[adapter] = source.scale
        _load(pipe, path, source, adapter, pickle)
        if not beside:
            pipe.fuse_lora(components=list(pipe.get_list_adapters()), lora_scale=source.scale, adapter_names=[adapter])
            pipe.unload_lora_weights()
        log.info("%s LoRA %s at scale %g", "loaded" if beside else "fused", source.label, source.scale)
    if beside and scales:
        pipe.set_adapters(list(scales), adapter_weights=list(scales.values()))


def _load(pipe: DiffusionPipeline, path: Path, source: Source, adapter: str, pickle: bool) -> None:
    """Load an adapter beside the weights. Raises UsageError where that changes nothing."""
    if not hasattr(pipe, "load_lora_weights"):
        raise UsageError(f"{type(pipe).__name__} takes no LoRA", "build it without --lora")
    load_into(pipe, path / next(iter(source.files)) if path.is_dir() else path, adapter, pickle=pickle)
    if adapter not in {known for names in pipe.get_list_adapters().values() for known in names}:
        raise UsageError(f"the LoRA {source.label} changes no layer of this pipeline", "is it for another family?")


def _is_gguf(part: object) -> bool:
    return "gguf" in str(getattr(part, "quantization_method", "")).lower()
