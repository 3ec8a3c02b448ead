"""Run requests on a Ray cluster, or on all GPUs of this machine: Ray Data moves the items, Ray keeps the workers alive.

The dataset is a stream of row numbers, each for a few requests that wait in an actor beside the driver (see
request_queue). A pool of stateful actors (row_maker), one a GPU, maps them to what became of them, in any order. Ray
Data reads its sources in processes of its own, and as far ahead as memory allows; numbers that are given out one by one
make it draw the next request when a worker is about to be free. An actor that dies is started again by Ray, and its
rows are given to it, or to another, again.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...cache.entry import SHORT, Entry
from ...core.errors import DiffpipeError
from ...core.manifest import Manifest
from ...core.parsing import Misfit
from ...core.request import Artifact, Outcome, Request
from ...storage import urls
from ...storage.disk import temporary_folder, umask, unwritable
from ..job import Callbacks, Job
from ..local import Session
from ..outcomes import log_line
from . import ray_seam
from .cluster import Cluster
from .connection import connected
from .dispatch import Dispatcher
from .input_files import lay_out
from .made_row import MadeRow, Sizes
from .node_versions import deciding, installed
from .nodes import check_nodes, living_nodes, on_node, understood
from .request_queue import RequestQueue
from .row_maker import RowMaker
from .shares import Shares, shares_of
from .worker_spec import Load, WorkerSpec

if TYPE_CHECKING:
    import pyarrow
    from ray.actor import ActorHandle
    from ray.data import Dataset, Datasource
    from ray.data.datasource import ReadTask

log = logging.getLogger("diffpipe.ray")

SHARED_FOLDER_LAG = 10.0  # seconds in which a shared folder must show what another node wrote
MOST_LOADS = 5  # workers that may die one after the other while they load


def run_on_ray(
    entry: Entry,
    manifest: Manifest,
    requests: Iterator[Request],
    job: Job,
    callbacks: Callbacks,
    cluster: Cluster,
    load: Load = Session,
) -> Iterator[Outcome]:
    """What becomes of each request, in any order. Requests are drawn by a thread, a few more than are in work.

    Raises UsageError without the extra, for an address that nobody answers at and for shares that no node can give;
    DiffpipeError for a node with other versions, all before the first request is drawn; what stops a local run, too.
    `load`: what workers load, for measurements without an engine.
    """
    with connected(cluster.address, cluster.stores) as own:
        shares = shares_of(living_nodes(), cluster)
        spec = _spec(entry, manifest, job, cluster, shares.gpus)
        check_nodes(shares.nodes, spec, manifest, entry, cluster)
        where = f"{_counted(shares.workers, 'worker')} on {_counted(len(shares.nodes), 'node')}"
        cluster.say(f"Ray{', started here' if own else ''}: {where}")
        dispatcher = Dispatcher(_queue(spec), requests, job, shares.workers, manifest)
        with dispatcher.started(cluster.watch):
            yield from _outcomes(dispatcher, spec, shares, callbacks, load)


def _spec(entry: Entry, manifest: Manifest, job: Job, cluster: Cluster, gpus: float) -> WorkerSpec:
    import ray

    return WorkerSpec(
        manifest=manifest,
        name=job.about.name if job.about else f"{manifest.provider}-{entry.key[:SHORT]}",
        places=entry.locations(),
        versions=installed(deciding(manifest)),
        job=job,
        driver=ray.get_runtime_context().get_node_id(),
        root=str(entry.folder.parent.parent),
        folder=os.getcwd(),
        umask=umask(),
        gpus=gpus,
        bundle=cluster.bundle,
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


# The dataset: row numbers as the queue gives them out -> rows of answers


def _queue(spec: WorkerSpec) -> ActorHandle:
    import ray

    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "max_concurrency": 10_000}
    here = on_node(spec.driver)
    return ray.remote(RequestQueue).options(**options, scheduling_strategy=here).remote(spec.folder)


def _dataset(queue: ActorHandle, spec: WorkerSpec, shares: Shares, load: Load) -> Dataset:
    import ray.data

    ray_seam.set_up_data(MOST_LOADS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        numbers = ray.data.read_datasource(
            _source(queue), override_num_blocks=1, num_cpus=0, label_selector={"ray.io/node-id": spec.driver}
        )
        pool = ray.data.ActorPoolStrategy(size=shares.workers, max_tasks_in_flight_per_actor=2)
        return numbers.map(
            RowMaker,
            fn_constructor_kwargs={"queue": queue, "spec": spec, "load": load},
            compute=pool,
            num_cpus=shares.cpus,
            num_gpus=shares.gpus or None,
        )


def _source(queue: ActorHandle) -> Datasource:
    """The numbers of rows as a source of Ray Data, read by one task that waits for each."""
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    def read() -> Iterator[pyarrow.Table]:
        import pyarrow
        import ray

        for number in itertools.count():
            if not ray.get(queue.more.remote(number)):
                return
            yield pyarrow.table({"row": [number]})

    class Numbers(Datasource):  # type: ignore[misc]
        def estimate_inmemory_data_size(self) -> None:
            return None

        def get_read_tasks(self, parallelism: int, *_: object, **__: object) -> list[ReadTask]:
            unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(read, unknown)]

    return Numbers()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class _Row:
    """A row of the dataset. `files`: the bytes of files that it carries, one after the other."""

    number: int
    made: MadeRow
    files: memoryview


def _rows(dataset: Dataset) -> Iterator[_Row]:
    """The rows of a dataset as they are finished. Raises DiffpipeError for what ends it before it is whole."""
    batches = dataset.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow")
    with ray_seam.closed_after(iter(batches)) as tables:
        while True:
            try:
                table = next(tables, None)
            except Exception as error:  # Ray's own, and whatever Ray Data lets through
                raise _stopped(error) from error
            if table is None:
                return
            for row in table.to_pylist():
                with understood():
                    made = MadeRow.from_bytes(row["made"])
                yield _Row(int(row["row"]), made, memoryview(row["files"]))


def _stopped(error: Exception) -> DiffpipeError:
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return DiffpipeError(
        f"Ray stopped the run: {said[-1] if said else type(error).__name__}",
        "go on with --resume; -v and ray status tell more",
    )


# What comes back


def _outcomes(
    dispatcher: Dispatcher, spec: WorkerSpec, shares: Shares, callbacks: Callbacks, load: Load
) -> Iterator[Outcome]:
    """What became of each request, as its row comes back."""
    for row in _rows(_dataset(dispatcher.queue, spec, shares, load)):
        yield from _of_row(dispatcher, row, callbacks)
    if dispatcher.error:
        raise dispatcher.error


def _of_row(dispatcher: Dispatcher, row: _Row, callbacks: Callbacks) -> Iterator[Outcome]:
    made = row.made
    drawn = dispatcher.back(row.number, made.seconds())
    if made.stopped and not made.requests:
        raise made.stopped
    if not drawn:
        return
    for line in made.lines:
        callbacks.on_warning(line)
    left = row.files
    for request, one in zip(drawn, made.requests, strict=True):
        if one is None:
            continue
        artifacts = []
        for artifact, sizes in zip(one.answer.artifacts, one.carried, strict=True):
            if sizes is None:
                _check_seen(artifact.path, made.node)
                artifacts.append(artifact)
            else:
                with understood():
                    files, left = _split(left, sizes)
                artifacts.append(_received(artifact, files, request))
        outcome = replace(one.answer, artifacts=tuple(artifacts)).outcome(request)
        log.info("%s; %s, %s", log_line(outcome), made.memory, made.node)
        yield outcome
    if made.stopped:
        raise made.stopped


def _check_seen(path: str, node: str) -> None:
    """Raises DiffpipeError for a file:// URL that another machine wrote on a disk of its own."""
    place = urls.on_disk(path) if urls.is_url(path) else None
    ends = time.monotonic() + SHARED_FOLDER_LAG
    while place and not os.path.exists(place):
        if time.monotonic() > ends:
            hint = "name a folder that all nodes share, or a path without file://, to which results are sent"
            raise DiffpipeError(f"{path} was written by {node}, and is not here", hint)
        time.sleep(0.1)


def _split(data: memoryview, sizes: Sizes) -> tuple[dict[str, bytes], memoryview]:
    """The files that come first in a row's bytes, and the bytes of those behind them."""
    files = {}
    for name, size in sizes.items():
        files[name], data = bytes(data[:size]), data[size:]
        if len(files[name]) != size:
            raise Misfit("a row of Ray is cut short")
    return files, data


def _received(artifact: Artifact, files: dict[str, bytes], request: Request) -> Artifact:
    """Write an artifact that another node made; the artifact as it lies here."""
    from ...engine.media import write

    path = Path(artifact.path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(path) as folder:
            lay_out(files, folder / path.name)
            written = write.publish(folder / path.name, path, overwrite=request.overwrite)
    except OSError as error:
        raise unwritable(str(path), error, "choose another --output, then go on with --resume") from error
    return replace(artifact, path=str(written))
