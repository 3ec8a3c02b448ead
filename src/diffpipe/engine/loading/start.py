"""A pipeline's start: what it needs is imported while the system reads its weights."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ...core.errors import DiffpipeError
from ...core.manifest import Located, Manifest
from ...core.source import CHECKPOINTS
from ...memory import machine
from ...storage.opening import LARGEST_TEXT, open_regular, read_regular
from ..classes import lookup
from . import imports, library_logs, quantize

log = logging.getLogger("diffpipe.engine")

SHARE = 0.5  # of the machine's memory, up to which weights are read ahead: more would push out what was read first


def start(manifest: Manifest, located: Located) -> None:
    """Import the libraries and a pipeline's own classes, and no others.

    What cannot be imported is reported when the pipeline is loaded.
    """
    threading.Thread(target=read_ahead, args=(list(weights(manifest, located)),), daemon=True).start()
    with imports.lean(compiled=manifest.config.speed.compile, absent=absent(manifest, located)):
        library_logs.listen()
        for part in manifest.components:
            _import(lookup.component_class, part.library, part.class_name)
        _import(lookup.pipeline_class, manifest.pipeline)
        if manifest.stored:
            _import(quantize.backend_for, manifest.stored.how.backend, manifest.stored.how.mode)


def _import(find: Callable[..., object], *names: str) -> None:
    try:
        find(*names)
    except (DiffpipeError, ImportError, RuntimeError, AttributeError) as error:  # diffusers raises RuntimeError for one
        log.info("%s: %s", names[-1], lookup.first_line(error))


def absent(manifest: Manifest, located: Located) -> list[str]:
    """The packages that the libraries import wherever they find them, and that this pipeline does without."""
    if "torchao" in json.dumps(manifest.config.json):
        return []
    settings = (lies for path, lies in files(manifest, located) if path.endswith("config.json"))
    quantized = any(b'"quantization_config"' in read_regular(lies, LARGEST_TEXT) for lies in settings if lies.is_file())
    return [] if quantized else ["torchao"]


def files(manifest: Manifest, located: Located) -> Iterator[tuple[str, Path]]:
    """Every file of a pipeline's sources: its path in the source, and where it lies."""
    for source in manifest.sources:
        at = located.sources[source.role]
        yield from ((path, at if at.is_file() else at / path) for path in source.files)


def weights(manifest: Manifest, located: Located) -> Iterator[Path]:
    """The files of weights that are going to be loaded: those stored quantized in the place of their sources'."""
    stored = manifest.stored.components if manifest.stored and located.weights else ()
    if located.weights:
        yield from (located.weights / f"{name}.safetensors" for name in stored)
    replaced = {*stored, *(role.name for role in located.sources if role.kind == "component")}
    for path, lies in files(manifest, located):
        if path.endswith(CHECKPOINTS) and path.partition("/")[0] not in replaced:
            yield lies


def read_ahead(paths: Iterable[Path]) -> None:
    """Have the system read files into its cache (Linux; elsewhere nothing), unless they would fill the memory."""
    if not hasattr(os, "posix_fadvise"):
        return
    try:
        sizes = {path: path.stat().st_size for path in paths}
        if sum(sizes.values()) > SHARE * (machine.host_memory() or 0):
            return
        for path, size in sizes.items():
            with open_regular(path) as file:
                os.posix_fadvise(file.fileno(), 0, size, os.POSIX_FADV_WILLNEED)
    except OSError as error:  # loading says it better
        log.info("%s cannot be read ahead: %s", error.filename, error.strerror)
