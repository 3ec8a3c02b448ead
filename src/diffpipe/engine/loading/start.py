"""A pipeline's start: what it needs is imported while the system reads its weights."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...core.errors import DiffpipeError
from ...core.source import Source
from ..classes import lookup
from ..placement import devices
from . import imports, quantize

log = logging.getLogger("diffpipe.engine")

WEIGHTS = (".safetensors", ".gguf", ".bin", ".ckpt", ".pt", ".pth")
SHARE = 0.5  # of the machine's memory, up to which weights are read ahead: more would push out what was read first


def start(manifest: Mapping[str, Any], locations: Mapping[str, Path]) -> None:
    """Import the libraries and a pipeline's own classes, and no others. `locations`: role -> folder or file.

    What cannot be imported is told when the pipeline is loaded.
    """
    threading.Thread(target=read_ahead, args=(list(weights(manifest, locations)),), daemon=True).start()
    compiled = bool(manifest["config"].get("speed", {}).get("compile"))
    with imports.lean(compiled=compiled, absent=absent(manifest, locations)):
        devices.quiet_libraries()
        for part in manifest["components"]:
            _import(lookup.component_class, part["library"], part["class_name"])
        _import(lookup.pipeline_class, manifest["pipeline"])
        if quantized := manifest.get("quantization"):
            _import(quantize.backend_for, quantized["backend"], quantized["mode"])


def _import(find: Any, *names: str) -> None:
    try:
        find(*names)
    except (DiffpipeError, ImportError, RuntimeError, AttributeError) as error:  # diffusers raises RuntimeError for one
        log.info("%s: %s", names[-1], lookup.first_line(error))


def absent(manifest: Mapping[str, Any], locations: Mapping[str, Path]) -> list[str]:
    """The packages that the libraries import wherever they find them, and that this pipeline does without."""
    if "torchao" in json.dumps(manifest["config"]):
        return []
    settings = (lies for path, lies in files(manifest, locations) if path.endswith("config.json"))
    quantized = any(b'"quantization_config"' in lies.read_bytes() for lies in settings if lies.is_file())
    return [] if quantized else ["torchao"]


def files(manifest: Mapping[str, Any], locations: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    """Every file of a pipeline's sources: its path in the source, and where it lies."""
    for source in map(Source.from_json, manifest["sources"]):
        at = locations[source.role]
        yield from ((path, at if at.is_file() else at / path) for path in source.files)


def weights(manifest: Mapping[str, Any], locations: Mapping[str, Path]) -> Iterator[Path]:
    """The files of weights that are going to be loaded: those stored quantized in the place of their sources'."""
    stored = manifest.get("quantization", {}).get("components", ()) if "weights" in locations else ()
    yield from (locations["weights"] / f"{name}.safetensors" for name in stored)
    replaced = {*stored, *(role.removeprefix("component:") for role in locations if role.startswith("component:"))}
    for path, lies in files(manifest, locations):
        if path.endswith(WEIGHTS) and path.partition("/")[0] not in replaced:
            yield lies


def read_ahead(paths: Iterable[Path]) -> None:
    """Have the system read files into its cache (Linux; elsewhere nothing), unless they would fill the memory."""
    if not hasattr(os, "posix_fadvise"):
        return
    try:
        sizes = {path: path.stat().st_size for path in paths}
        if sum(sizes.values()) > SHARE * (devices.host_memory() or 0):
            return
        for path, size in sizes.items():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, size, os.POSIX_FADV_WILLNEED)
    except OSError as error:  # loading tells it better
        log.info("%s cannot be read ahead: %s", error.filename, error.strerror)
