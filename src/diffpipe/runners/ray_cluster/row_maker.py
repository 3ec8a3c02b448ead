"""A worker of a cluster: an actor that has the pipeline loaded and makes rows of requests."""

from __future__ import annotations

import functools
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...cache import measured
from ...cache.entry import Entry
from ...cache.store import Store
from ...cache.verify import locate
from ...core.errors import DiffpipeError
from ...core.request import Artifact, Outcome, Request
from ...storage import stores, urls
from ...storage.disk import remove_leftovers
from ..inputs import media_of, reader
from ..job import Callbacks
from ..local import Session
from ..settings import RunSettings, settings_of
from ..wire import Answer
from .input_files import Files, State, content, lay_out
from .made_row import MadeRequest, MadeRow, Sizes
from .node_pipeline import entry_of, on_this_node
from .node_versions import differing, installed, refusal
from .request_queue import TakenRow
from .scratch import scratch_folder
from .worker_spec import Load, WorkerSpec

if TYPE_CHECKING:
    from ray.actor import ActorHandle

log = logging.getLogger("diffpipe.ray")

MOST_DEATHS = 4  # workers that may die with one request: chance kills one or two, a request that is too large kills all
MOST_FETCHED = 256  # input files of the driver's machine that a worker keeps from one row to the next


class RowMaker:
    """The pipeline, loaded once. Called with rows of the dataset, it gives rows of what became of them.

    On the driver's node it writes results where they belong; on others it sends them back, unless they go to URLs.
    """

    def __init__(self, queue: ActorHandle, spec: WorkerSpec, load: Load = Session) -> None:
        import ray

        self.queue, self.spec, self.wait = queue, spec, ray.get
        about = ray.get_runtime_context()
        self.name, self.near = about.get_actor_id() or "", about.get_node_id() == spec.driver
        self.folder: Path | None = None
        self.fetched: dict[str, tuple[State, Path]] = {}  # input files of the driver's machine, the oldest first
        self.lines: list[str] = []  # for the user
        self.refused: DiffpipeError | None = None
        try:
            self._load(load, f"the node {platform.node()}")
        except DiffpipeError as error:  # goes with its first row: Ray would start one again that raises here
            self.refused = error

    def _load(self, load: Load, label: str) -> None:
        """Nodes may join at any time, so what was asked of those that were there is asked again."""
        spec = self.spec
        if different := differing(spec.versions, installed([name for name in spec.versions if name != "Python"])):
            raise refusal({label: different})
        if not spec.gpus:  # Ray leaves all GPUs visible to workers without a share of them, or none: by version
            os.environ |= {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
        if self.near:
            os.chdir(spec.folder)
            os.umask(spec.umask)
        try:
            entry = self._entry()
            manifest = entry.manifest()
            self.session = load(manifest, locate(entry, manifest))
        except DiffpipeError as error:
            raise type(error)(f"{label}: {error.message}", error.hint, error.exit_code) from error
        except Exception as error:
            raise DiffpipeError(f"{label}: {type(error).__name__}: {error}", "--traceback shows where") from error
        self.flags = manifest.flags_by_name
        callbacks = Callbacks(lambda request, done, steps: None, self.lines.append)
        read = reader(self.flags, spec.job.fit, callbacks.on_warning)
        self.settings = settings_of(spec.job, callbacks, read, functools.partial(measured.add, entry.folder))

    def _entry(self) -> Entry:
        """The pipeline in this node's cache; on the driver's own node the driver has looked at it."""
        if self.near:
            return entry_of(self.spec, Store(Path(self.spec.root)))
        return on_this_node(self.spec, Store())

    def __call__(self, row: Mapping[str, int]) -> dict[str, int | bytes]:
        """A row number of the dataset -> the same, a MadeRow as JSON, and the bytes of files that it carries."""
        number = int(row["row"])
        taken: TakenRow | None = self.wait(self.queue.take.remote(number, self.name))
        files: list[bytes] = []
        made = MadeRow(stopped=self.refused) if taken is None or self.refused else self._make(number, taken, files)
        return {"row": number, "made": made.to_bytes(), "files": b"".join(files)}

    def _make(self, number: int, taken: TakenRow, files: list[bytes]) -> MadeRow:
        """Make a row's requests; the content of files that are sent back is added to `files`."""
        self._forget_oldest()
        lost = {place for place, deaths in taken.deaths.items() if deaths >= MOST_DEATHS}
        made: list[MadeRequest | None] = [_lost() if place in lost else None for place in range(len(taken.requests))]
        left = [place for place in range(len(made)) if place not in lost]
        stopped = None
        try:
            ready = (self._begin(number, place, taken) for place in left)
            settings = one_by_one(self.settings) if taken.again else self.settings
            for place, outcome in zip(left, self.session.outcomes(ready, settings), strict=True):
                made[place] = self._sent(outcome, taken.requests[place], files)
        except DiffpipeError as error:  # as a full disk, which ends the whole run
            stopped = error
        if taken.again and not stopped:
            self.queue.begun.remote(number, None)
        lines = tuple(self.lines)
        self.lines.clear()
        return MadeRow(tuple(made), stopped, lines, self.session.memory_now(), platform.node())

    def _begin(self, number: int, place: int, taken: TakenRow) -> Request:
        """A request as this worker makes it. What another one left of it, finished or not, is replaced."""
        request = taken.requests[place]
        if taken.again:
            self.wait(self.queue.begun.remote(number, place))  # if it kills this worker, too, it must be known
            request = replace(request, overwrite=True)
            for path in request.paths:
                if own := urls.on_disk(path) if urls.is_url(path) else path if self.near else None:
                    remove_leftovers(Path(own))
        return request if self.near else self._brought(number, place, request)

    def _sent(self, outcome: Outcome, request: Request, files: list[bytes]) -> MadeRequest:
        """An outcome as it goes to the driver."""
        answer = Answer.of(outcome)
        if self.near:
            return MadeRequest(answer, (None,) * len(answer.artifacts))
        packed = [_pack(artifact, request, files) for artifact in answer.artifacts]
        moved = replace(answer, artifacts=tuple(artifact for artifact, _ in packed))
        return MadeRequest(moved, tuple(sizes for _, sizes in packed))

    def __del__(self) -> None:
        """Ray Data lets go of a worker before it ends it."""
        if folder := getattr(self, "folder", None):
            shutil.rmtree(folder, ignore_errors=True)

    # On another node than the driver's

    def _brought(self, number: int, place: int, request: Request) -> Request:
        """A request with its input files fetched, and local results in a folder of this worker."""
        self.folder = self.folder or scratch_folder("diffpipe-node", tempfile.gettempdir())
        media = {
            name: [self._here(number, path) for path in value] if isinstance(value, list) else self._here(number, value)
            for name, value in media_of(request.arguments, self.flags).items()
        }
        results = self.folder / f"results-{place}"
        shutil.rmtree(results, ignore_errors=True)
        paths = [
            path if urls.is_url(path) else str(results / str(at) / Path(path).name)
            for at, path in enumerate(request.paths)
        ]
        return replace(request, arguments={**request.arguments, **media}, paths=tuple(paths))

    def _here(self, number: int, path: str) -> str:
        return path if urls.is_url(path) else str(self._fetch(number, path))

    def _fetch(self, number: int, path: str) -> Path:
        """An input file of the driver's machine, here under its own name."""
        known, place = self.fetched.get(path, (None, None))
        try:
            found: tuple[State, Files | None] = self.wait(self.queue.read.remote(number, path, known))
        except OSError as error:  # of a file that is none, or cannot be read there; Ray has it as the cause of its own
            raise stores.in_words(path, getattr(error, "cause", error)) from None
        state, files = found
        if files is None and place is not None:
            return place
        place = Path(tempfile.mkdtemp(dir=self.folder, prefix="input-")) / Path(path).name
        lay_out(files or {}, place)
        self.fetched[path] = state, place
        return place

    def _forget_oldest(self) -> None:
        """Remove the input files that were fetched first, of many."""
        while len(self.fetched) > MOST_FETCHED:
            _, place = self.fetched.pop(next(iter(self.fetched)))
            shutil.rmtree(place.parent, ignore_errors=True)


def _pack(artifact: Artifact, request: Request, files: list[bytes]) -> tuple[Artifact, Sizes | None]:
    """An artifact as it will be on the driver's machine, and the sizes of its files, which are added to `files`."""
    if urls.is_url(artifact.path):
        return artifact, None
    made = Path(artifact.path)
    read = content(made)
    files += read.values()
    shutil.rmtree(made) if made.is_dir() else made.unlink()
    path = str(Path(request.paths[int(made.parent.name)]).with_name(made.name))
    return replace(artifact, path=path), {name: len(data) for name, data in read.items()}


def one_by_one(settings: RunSettings) -> RunSettings:
    """One request a call, so that one that kills its worker is known."""
    return replace(settings, batch_size=1, side_by_side=1)


def _lost() -> MadeRequest:
    error = DiffpipeError(
        f"{MOST_DEATHS} workers died while making it",
        "its memory may have run out: make it smaller, or run fewer --workers; the node's log tells more",
    )
    return MadeRequest(Answer(error=error), ())
