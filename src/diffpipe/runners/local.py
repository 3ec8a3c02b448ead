"""Run requests in this process: load once, then one call a request."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..building.versions import versions
from ..cache import measured
from ..catalog import plugins
from ..core.build_spec import Placement
from ..core.errors import DiffpipeError, Exit
from ..core.flag import MEDIA_KINDS
from ..core.manifest import Located, Manifest
from ..core.request import Artifact, Outcome, Request
from ..results import metadata
from .inputs import Read
from .job import CHUNK, Ears, Job

log = logging.getLogger("diffpipe.run")

OnStep = Callable[[Request, int, int], None]
Note = Callable[[Sequence[measured.Measured]], None]
Make = Callable[[list[Request]], list[list[Artifact]]]  # the files of requests that go into one call
Call = Callable[[list[Request], Any, Placement], list[list[Artifact]]]  # the same, with a pipeline in a placement


def stay_offline() -> None:
    """Forbid the hub client and its users any connection: all that a cached pipeline needs is here.

    Must run before huggingface_hub is imported, which reads these once.
    """
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


@dataclass(frozen=True)
class Memory:
    """What happens when memory runs out (`step_down`: the item is tried again with less), and who is told: `tell` gets
    a line for each step, `note` the peaks that were measured (see measured.records). `chunk`: how many items are made
    side by side where components are offloaded one by one (see engine.placement.interleave); each is told when all are
    made.
    """

    step_down: bool = True
    chunk: int = 1
    tell: Callable[[str], None] = lambda text: None
    note: Note | None = None


STEPPING = Memory()


@dataclass(frozen=True)
class How:
    """How requests are made, and who is told of it. `read` gives a request's call arguments with media read.

    `batch_size`: how many requests that differ in seed and prompts alone go into one call. `about`: what the files say
    of the run, None for files that say nothing. `previews`: how what is being made is shown (see engine.preview), None
    for not at all. `before_writing` raises where nobody wants the results any more.
    """

    read: Read
    on_step: OnStep
    batch_size: int = 1
    about: metadata.About | None = None
    memory: Memory = STEPPING
    previews: Any = None
    before_writing: Callable[[], None] = lambda: None


def how_of(job: Job, ears: Ears, read: Read, note: Note) -> How:
    """A job as this process does it. `note` is given the peaks of memory that were measured."""
    memory = Memory(job.step_down, CHUNK if job.several else 1, ears.tell, note)
    previews = None
    if ears.show and job.previews:
        from ..engine.running.preview import Preview

        previews = Preview(ears.show, job.previews.every, job.previews.decode)
    return How(read, ears.on_step, job.batch_size, job.about, memory, previews)


def run(manifest: Manifest, located: Located, requests: Iterable[Request], how: How) -> Iterator[Outcome]:
    """What becomes of each request, in order; one that fails does not stop the others, a full disk does."""
    session = Session(manifest, located)
    for outcome in session.outcomes(requests, how):
        log.info("%s; %s", told(outcome), session.memory_now())
        yield outcome


class Session:
    """A pipeline that is loaded once, and all that is needed to make requests with it, by one thread."""

    def __init__(self, manifest: Manifest, located: Located) -> None:
        stay_offline()
        started = time.perf_counter()
        from ..engine.loading import load, start
        from ..engine.placement import devices, interleave, meter
        from ..engine.placement.step_down import LoadedPipeline
        from ..engine.running import prompt_cache

        start.start(manifest, located)
        self.manifest = manifest
        self.device = devices.choose_device(manifest.config.device)
        log.info("imports took %.2f s; device %s", time.perf_counter() - started, self.device)
        started = time.perf_counter()
        quirks, unquantized = plugins.quirks(manifest), plugins.unquantized(manifest)
        self.call = load.hook(quirks["call"]) if "call" in quirks else None
        self.watch = meter.Meter(self.device)

        def loaded(placed: Placement) -> Any:
            pipe = load.load(manifest, located, self.device, quirks, placed, unquantized)
            prompt_cache.install(pipe)
            return self.watch.watch(pipe)

        built = manifest.config.placement
        self.holder = LoadedPipeline(loaded, built, self.device, stored=located.weights is not None)
        self._side_by_side = self.call is None and interleave.possible(self.holder.pipe)
        self.versions, self.kind = versions(), devices.kind(self.device)
        took = time.perf_counter() - started
        log.info("%s loaded in %.2f s (%s)", manifest.pipeline, took, manifest.config.dtype)

    def outcomes(self, requests: Iterable[Request], how: How) -> Iterator[Outcome]:
        """What becomes of each request, in order."""
        call = functools.partial(self._call, how, self._said(how.about))
        if how.memory.chunk > 1 and how.batch_size == 1 and self.side_by_side():
            waiting = iter(requests)
            while several := list(itertools.islice(waiting, how.memory.chunk)):
                yield from self._chunk(several, how.memory, call)
        else:
            for group in groups(requests, self.manifest, how.batch_size):
                yield from _outcomes(group, functools.partial(self._make, how.memory, call))

    def side_by_side(self) -> bool:
        """Whether requests are faster made side by side, as components are offloaded one by one."""
        return self._side_by_side

    def _said(self, about: metadata.About | None) -> metadata.Run | None:
        """What the files of a run say, None for nothing."""
        return metadata.Run(self.manifest, about, self.versions, self.kind) if about else None

    def device_memory(self) -> int | None:
        """Bytes of the GPU's memory that torch holds; None without a GPU."""
        from ..engine.placement import devices

        return devices.device_memory(self.device)

    def memory_now(self) -> str:
        """Peak memory so far, for the log."""
        from ..engine.placement import devices

        return devices.memory_now(self.device)

    def _call(
        self, how: How, run: metadata.Run | None, group: list[Request], pipe: Any, placed: Placement
    ) -> list[list[Artifact]]:
        """One call of the pipeline for requests that go together."""
        from ..engine.running import run as engine_run

        arguments = [how.read(request) for request in group]
        stepped_down = placed if placed != self.holder.built else None
        said = replace(run, stepped_down=stepped_down) if run else None
        texts = [metadata.texts(said, request) for request in group] if said else []
        report = functools.partial(how.on_step, group[0])
        own = self.manifest
        return engine_run.run(
            pipe,
            engine_run.PipelineCall(
                own.kind, group, arguments, report, own.fps, self.call, texts, how.previews, how.before_writing
            ),
        )

    def _make(self, memory: Memory, call: Call, group: list[Request]) -> list[list[Artifact]]:
        """The files of a group; a single request steps down where memory runs out."""

        def work(pipe: Any, placed: Placement) -> list[list[Artifact]]:
            self.watch.start()
            made = call(group, pipe, placed)
            if memory.note and (peaks := self.watch.stop()):
                dtype = self.manifest.config.dtype
                memory.note(measured.records(peaks, dtype, self.device, placed, made))
            return made

        def tell(text: str) -> None:
            log.warning("%s", text)
            memory.tell(f"{group[0].id or f'seed {group[0].seed}'}: {text}")

        return self.holder.make(work, tell, step_down=memory.step_down and len(group) == 1)

    def _chunk(self, requests: list[Request], memory: Memory, call: Call) -> Iterator[Outcome]:
        """The outcomes of requests that are made side by side; what ran out of memory there is made by itself."""
        from ..engine.placement import devices, interleave

        started = time.perf_counter()

        def alone(request: Request, pipe: Any) -> Outcome | None:
            """None if memory ran out: the error would hold the tensors of the call."""
            (outcome,) = _outcomes([request], lambda group: call(group, pipe, self.holder.built))
            return None if outcome.error and outcome.error.exit_code == Exit.OUT_OF_MEMORY else outcome

        found = interleave.run(self.holder.as_built(), [functools.partial(alone, request) for request in requests])
        seconds = (time.perf_counter() - started) / len(requests)
        if None in found:
            devices.release(self.device)
        for request, outcome in zip(requests, found, strict=True):
            if outcome is None:
                yield from _outcomes([request], functools.partial(self._make, memory, call))
            else:
                yield replace(outcome, artifacts=tuple(replace(file, seconds=seconds) for file in outcome.artifacts))


def groups(requests: Iterable[Request], manifest: Manifest, size: int) -> Iterator[list[Request]]:
    """Requests in order, up to `size` of them together where they differ in seed and prompts alone."""
    texts = {flag.name for flag in manifest.flags if flag.kind == "text" and "prompt" in flag.name}
    alone = {flag.name for flag in manifest.flags if flag.kind in MEDIA_KINDS}

    def shared(request: Request) -> Any:
        """What must be equal within a group; the request itself where it must be alone."""
        plain = all(isinstance(request.arguments[name], str) for name in texts & request.arguments.keys())
        if size == 1 or not plain or len(request.paths) > 1 or alone & request.arguments.keys():
            return request
        same = {name: None if name in texts else value for name, value in request.arguments.items()}
        return same, request.fps

    for _, alike in itertools.groupby(requests, key=shared):
        while group := list(itertools.islice(alike, size)):
            yield group


def _outcomes(group: list[Request], make: Make) -> list[Outcome]:
    """The outcomes of requests that are made together; where that fails, each is made by itself."""
    told = _Warnings()
    try:
        with told:
            made = make(group)
    except Exception as error:  # whatever happens to one item must not cost the others
        if getattr(error, "exit_code", None) in (Exit.CACHE, Exit.ACCESS):  # nor could the others be written
            raise
        if len(group) > 1:
            log.info("a call of %d failed (%s): one by one", len(group), error)
            return [one for request in group for one in _outcomes([request], make)]
        return [Outcome(group[0], warnings=tuple(told.texts), error=as_ours(error))]
    return [
        Outcome(request, tuple(artifacts), tuple(told.texts)) for request, artifacts in zip(group, made, strict=True)
    ]


def as_ours(error: Exception) -> DiffpipeError:
    """An error as the user is told of it."""
    if isinstance(error, DiffpipeError):
        return error
    ours = DiffpipeError(f"{type(error).__name__}: {error}", "this is a bug: run again with --traceback and report it")
    ours.__cause__ = error
    return ours


class _Warnings(logging.Handler):
    """Collects the warnings that diffpipe logs in this thread while it is entered."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self.thread:
            self.texts.append(record.getMessage())

    def __enter__(self) -> None:
        self.thread = threading.get_ident()
        logging.getLogger("diffpipe").addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("diffpipe").removeHandler(self)


def told(outcome: Outcome) -> str:
    """An outcome as a line of the log."""
    if outcome.error:
        return f"seed {outcome.request.seed}: {outcome.error.message}"
    first = outcome.artifacts[0]
    return f"seed {outcome.request.seed}: {first.seconds:.2f} s -> {first.path}"
