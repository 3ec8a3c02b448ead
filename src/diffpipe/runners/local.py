"""Run requests in this process: load once, then one call a request."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import plugins
from ..specs import Artifact, Request

log = logging.getLogger("diffpipe.run")

OnStep = Callable[[Request, int, int], None]


def stay_offline() -> None:
    """Forbid the hub client and its users any connection: all that a cached pipeline needs is here.

    Must run before huggingface_hub is imported, which reads these once.
    """
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def run(
    manifest: Mapping[str, Any],
    locations: Mapping[str, Path],
    requests: Iterable[Request],
    media: Mapping[str, Any],
    on_step: OnStep,
) -> Iterator[list[Artifact]]:
    """The finished files of each request, in order. `media` are the call arguments with pictures read."""
    stay_offline()
    started = time.perf_counter()
    from ..engine import load, place
    from ..engine import run as engine_run

    place.quiet_libraries()
    device = place.choose_device(manifest["config"]["placement"]["device"])
    log.info("imports took %.2f s; device %s", time.perf_counter() - started, device)
    started = time.perf_counter()
    quirks = plugins.quirks(manifest)
    pipe = load.load(manifest, locations, device, quirks)
    call = load.hook(quirks["call"]) if "call" in quirks else None
    log.info(
        "%s loaded in %.2f s (%s)", manifest["pipeline"], time.perf_counter() - started, manifest["config"]["dtype"]
    )
    for request in requests:
        report = functools.partial(on_step, request)
        artifacts = engine_run.run(pipe, manifest, request, media, report, call)
        log.info(
            "seed %d: %.2f s -> %s; %s", request.seed, artifacts[0].seconds, artifacts[0].path, place.memory_now(device)
        )
        yield artifacts
