"""Run requests in this process: load once, then one call a request."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from ..building.versions import versions
from ..cache import measured
from ..catalog import plugins
from ..core.build_spec import Placement
from ..core.errors import DrawnTogether, Exit, let_go
from ..core.item_warnings import ItemWarnings
from ..core.manifest import Located, Manifest
from ..core.request import Artifact, Outcome, Request
from ..results import metadata
from .outcomes import groups, log_line, outcomes_of
from .settings import RunSettings

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

log = logging.getLogger("diffpipe.run")

# The files of requests that go into one call, made by a pipeline in a placement.
Call: TypeAlias = "Callable[[list[Request], DiffusionPipeline, Placement], list[list[Artifact]]]"


def stay_offline() -> None:
    """Forbid the hub client and its users any connection: all that a cached pipeline needs is here.

    Must run before huggingface_hub is imported, which reads these once.
    """
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def run_here(
    manifest: Manifest, located: Located, requests: Iterable[Request], settings: RunSettings
) -> Iterator[Outcome]:
    """What becomes of each request, in order; one that fails does not stop the others, a full disk does."""
    session = Session(manifest, located)
    for outcome in session.outcomes(requests, settings):
        log.info("%s; %s", log_line(outcome), session.memory_now())
        yield outcome


class Session:
    """A pipeline that is loaded once, and all that is needed to make requests with it, by one thread."""

    def __init__(self, manifest: Manifest, located: Located) -> None:
        stay_offline()
        started = time.perf_counter()
        from ..engine.loading import load, start
        from ..engine.placement import devices, host_memory, interleave, meter
        from ..engine.placement.step_down import LoadedPipeline
        from ..engine.running import prompt_cache

        start.start(manifest, located)
        self.manifest = manifest
        self.device = devices.choose_device(manifest.config.device)
        devices.use(self.device)
        log.info("imports took %.2f s; device %s", time.perf_counter() - started, self.device)
        started = time.perf_counter()
        quirks, unquantized = plugins.quirks(manifest), plugins.unquantized(manifest)
        self.quirk = load.hook(quirks["call"]) if "call" in quirks else None
        self.meter = watching = meter.Meter(self.device)
        device = self.device

        # It knows nothing of this session: a cycle of what `start` froze would keep the pipeline to the process's end.
        def loaded(placed: Placement, look: load.Look) -> DiffusionPipeline:
            pipe = load.load(manifest, located, device, quirks, placed, unquantized, look)
            prompt_cache.install(pipe)
            return watching.watch(pipe)

        built = manifest.config.placement
        self.host = host_memory.Watch()
        with self.host, ItemWarnings() as self.heard:
            self.pipeline = LoadedPipeline(
                loaded,
                built,
                self.device,
                stored=located.weights is not None,
                compiled=manifest.config.speed.compile,
            )
        pipe = self.pipeline.as_built()
        self._side_by_side = self.quirk is None and pipe is not None and interleave.possible(pipe)
        self.drawn_together = False
        self.versions, self.kind = versions(), devices.kind(self.device)
        took = time.perf_counter() - started
        log.info("%s loaded in %.2f s (%s)", manifest.pipeline, took, manifest.config.dtype)

    def outcomes(self, requests: Iterable[Request], settings: RunSettings) -> Iterator[Outcome]:
        """What becomes of each request, in order. What was heard as the pipeline was loaded is heard with each.

        Raises DiffpipeError with exit code 5 where the pipeline does not fit as it was built, and no step may be taken.
        """
        if not settings.step_down:
            self.pipeline.check_fits()
        call = functools.partial(self._call, settings, self._described(settings.about))
        if settings.side_by_side > 1 and settings.batch_size == 1 and self.side_by_side():
            waiting = iter(requests)
            while several := list(itertools.islice(waiting, settings.side_by_side)):
                yield from self._make_side_by_side(several, settings, call)
        else:
            for group in groups(requests, self.manifest, settings.batch_size):
                yield from outcomes_of(group, functools.partial(self._make, settings, call), self.heard)

    def side_by_side(self) -> bool:
        """Whether requests are faster made side by side, as components are offloaded one by one."""
        return self._side_by_side

    def device_memory(self) -> int | None:
        """Bytes of the GPU's memory that torch holds; None without a GPU."""
        from ..engine.placement import devices

        return devices.device_memory(self.device)

    def memory_now(self) -> str:
        """Peak memory so far, for the log."""
        from ..engine.placement import devices

        peak = devices.peak_memory(self.device)
        parts = (self.host.words(), "" if peak is None else f"peak device memory {peak / 1e6:.0f} MB")
        return "; ".join(filter(None, parts))

    def _described(self, about: metadata.About | None) -> metadata.Run | None:
        """What the files of a run say, None for nothing."""
        return metadata.Run(self.manifest, about, self.versions, self.kind) if about else None

    def _call(
        self,
        settings: RunSettings,
        described: metadata.Run | None,
        group: list[Request],
        pipe: DiffusionPipeline,
        placed: Placement,
    ) -> list[list[Artifact]]:
        """One call of the pipeline for requests that go together."""
        from ..engine.running import run

        stepped_down = placed if placed != self.pipeline.built else None
        described = described and replace(described, stepped_down=stepped_down)
        arguments = [settings.read(request) for request in group]
        call = run.PipelineCall(
            kind=self.manifest.kind,
            requests=group,
            arguments=arguments,
            on_step=functools.partial(settings.on_step, group[0]),
            fps=self.manifest.fps,
            quirk=self.quirk,
            texts=[metadata.texts(described, request) for request in group] if described else [],
            previews=settings.previews,
            before_writing=settings.before_writing,
            usual={flag.name: flag.default for flag in self.manifest.flags},
        )
        return run.run(pipe, call)

    def _make(self, settings: RunSettings, call: Call, group: list[Request]) -> list[list[Artifact]]:
        """The files of a group; a single request steps down where memory runs out.

        Raises DrawnTogether for several where they cannot have each its own noise, and for later ones at once.
        """
        if len(group) > 1 and self.drawn_together:
            raise DrawnTogether()

        def work(pipe: DiffusionPipeline, placed: Placement) -> list[list[Artifact]]:
            self.meter.start()
            made = call(group, pipe, placed)
            if settings.record and (peaks := self.meter.stop()):
                settings.record(measured.records(peaks, self.manifest.config.dtype, self.device, placed, made))
            return made

        def warn(text: str) -> None:
            log.warning("%s", text)
            settings.on_warning(f"{group[0].id or f'seed {group[0].seed}'}: {text}")

        try:
            with self.host:
                return self.pipeline.make(work, warn, step_down=settings.step_down and len(group) == 1)
        except DrawnTogether as error:
            self.drawn_together = True
            settings.on_warning(f"{error.message}: they are made one by one, as --batch-size 1 does")
            raise

    def _make_side_by_side(self, requests: list[Request], settings: RunSettings, call: Call) -> Iterator[Outcome]:
        """The outcomes of requests that are made side by side; what ran out of memory there is made by itself."""
        from ..engine.placement import devices, interleave

        started = time.perf_counter()

        def alone(request: Request, pipe: DiffusionPipeline) -> Outcome | None:
            """None if memory ran out: the error would hold the tensors of the call."""
            # No closure, which an error would hold.
            made = functools.partial(_called_with, call, pipe, self.pipeline.built)
            (outcome,) = outcomes_of([request], made, self.heard)
            return None if outcome.error and outcome.error.exit_code == Exit.OUT_OF_MEMORY else outcome

        pipe = self.pipeline.as_built()
        found: list[Outcome | None] = [None] * len(requests)
        if pipe is not None:
            with self.host:
                found = interleave.run(pipe, [functools.partial(alone, request) for request in requests])
        del pipe  # a step down must not find it on the device
        for outcome in found:
            if outcome and outcome.error:
                let_go(outcome.error)  # once more: the calls' own frames have ended by now
        seconds = (time.perf_counter() - started) / len(requests)
        if None in found:
            devices.release(self.device)
        for request, outcome in zip(requests, found, strict=True):
            if outcome is None:
                yield from outcomes_of([request], functools.partial(self._make, settings, call), self.heard)
            else:
                yield replace(outcome, artifacts=tuple(replace(file, seconds=seconds) for file in outcome.artifacts))


def _called_with(call: Call, pipe: DiffusionPipeline, placed: Placement, group: list[Request]) -> list[list[Artifact]]:
    return call(group, pipe, placed)
