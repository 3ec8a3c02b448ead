"""Run requests on a Ray cluster, or on all GPUs of this machine: Ray Data moves the items, Ray keeps the workers alive.

The dataset is a stream of row numbers, each for a few requests that wait in an actor beside the driver (see feed.py).
A pool of stateful actors (node.Maker), one a GPU, maps them to what became of them, in any order. Ray Data reads its
sources in processes of its own, and as far ahead as memory allows; numbers that are given out one by one make it draw
the next request when a worker is about to be free. An actor that dies is started again by Ray, and its rows are given
to it, or to another, again.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...cache.entry import Entry
from ...core.errors import DiffpipeError
from ...core.manifest import Manifest
from ...core.parsing import Fields
from ...core.request import Outcome, Request
from ...storage import urls
from ...storage.disk import temporary_folder, unwritable
from ..job import Ears, Job
from ..local import Session, told
from ..wire import Answer, error_of
from . import input_files as feeds
from . import node
from .cluster import (
    Cluster,
    Shares,
    alive,
    check_nodes,
    connected,
    counted,
    on_node,
    plan_of,
    shares_of,
)
from .dispatch import Flow

log = logging.getLogger("diffpipe.ray")

LAG = 10.0  # seconds in which a shared folder must show what another node wrote
MOST_LOADS = 5  # workers that may die one after the other while they load


def run(
    entry: Entry,
    manifest: Manifest,
    requests: Iterator[Request],
    job: Job,
    ears: Ears,
    cluster: Cluster,
    session: Any = Session,
) -> Iterator[Outcome]:
    """What becomes of each request, in any order. Requests are drawn by a thread, a few more than are in work.

    Raises UsageError without the extra, for an address that nobody answers at and for shares that no node can give;
    DiffpipeError for a node with other versions, all before the first request is drawn; what stops a local run, too.
    `session`: what workers load, for measurements without an engine.
    """
    with connected(cluster.address) as (ray, own):
        shares = shares_of(alive(ray), cluster)
        plan = plan_of(ray, entry, manifest, job, cluster, shares.gpus)
        check_nodes(ray, shares, plan, manifest, entry, cluster)
        where = f"{counted(shares.workers, 'worker')} on {counted(len(shares.nodes), 'node')}"
        cluster.say(f"Ray{', started here' if own else ''}: {where}")
        flow = Flow(_feed(ray, plan), requests, job, shares.workers, manifest)
        with flow.started(ray, cluster.watch):
            yield from _outcomes(ray, flow, plan, shares, ears, session)


def _feed(ray: Any, plan: node.Plan) -> Any:
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "max_concurrency": 10_000}
    here = on_node(plan.driver)
    return ray.remote(feeds.Feed).options(**options, scheduling_strategy=here).remote(plan.folder)


# The dataset


def _outcomes(ray: Any, flow: Flow, plan: node.Plan, shares: Shares, ears: Ears, session: Any) -> Iterator[Outcome]:
    """What became of each request, as its row comes back."""
    for row in _rows(_dataset(ray, flow.feed, plan, shares, session)):
        yield from _of_row(flow, row["row"], json.loads(row["told"]), memoryview(row["files"]), ears)
    if flow.error:
        raise flow.error


def _rows(dataset: Any) -> Iterator[Mapping[str, Any]]:
    """The rows of a dataset as they are finished. Raises DiffpipeError for what ends it before it is whole."""
    tables = iter(dataset.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"))
    while True:
        try:
            table = next(tables, None)
        except Exception as error:  # Ray's own, and whatever Ray Data lets through
            raise _stopped(error) from error
        if table is None:
            return
        yield from table.to_pylist()


def _of_row(flow: Flow, number: int, row: Mapping[str, Any], files: memoryview, ears: Ears) -> Iterator[Outcome]:
    seconds = [a["seconds"] for answer in row["answers"] if answer for a in answer["artifacts"]]
    drawn = flow.back(number, sum(seconds) / max(1, len(row["answers"])))
    if row["stopped"] and not row["answers"]:
        raise error_of(Fields(row["stopped"]))
    if not drawn:
        return
    for line in row.get("lines", ()):
        ears.tell(line)
    start = 0
    for request, answer in zip(drawn, row["answers"], strict=True):
        if answer is None:
            continue
        artifacts = []
        for artifact in answer["artifacts"]:
            sizes = artifact.pop("sizes", None)
            if sizes is not None:
                artifact, start = _received(artifact, sizes, files, start, request)
            else:
                _check_seen(artifact["path"], row["node"])
            artifacts.append(artifact)
        outcome = Answer.from_json(Fields({**answer, "artifacts": artifacts})).outcome(request)
        log.info("%s; %s, %s", told(outcome), row["memory"], row["node"])
        yield outcome
    if row["stopped"]:
        raise error_of(Fields(row["stopped"]))


def _check_seen(path: str, node_name: str) -> None:
    """Raises DiffpipeError for a file:// URL that another machine wrote on a disk of its own."""
    place = urls.on_disk(path) if urls.is_url(path) else None
    ends = time.monotonic() + LAG
    while place and not os.path.exists(place):
        if time.monotonic() > ends:
            hint = "name a folder that all nodes share, or a path without file://, to which results are sent"
            raise DiffpipeError(f"{path} was written by {node_name}, and is not here", hint)
        time.sleep(0.1)


def _received(
    artifact: dict[str, Any], sizes: Mapping[str, int], files: memoryview, start: int, request: Request
) -> tuple[dict[str, Any], int]:
    """Write an artifact that another node made; the artifact as it lies here, and where the next one's bytes begin."""
    from ...engine.media import write

    path = Path(artifact["path"])
    carried = {}
    for name, size in sizes.items():
        carried[name] = bytes(files[start : start + size])
        start += size
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(path) as folder:
            feeds.lay_out(carried, folder / path.name)
            written = write.publish(folder / path.name, path, overwrite=request.overwrite)
    except OSError as error:
        raise unwritable(str(path), error, "choose another --output, then go on with --resume") from error
    return {**artifact, "path": str(written)}, start


def _dataset(ray: Any, feed: Any, plan: node.Plan, shares: Shares, session: Any) -> Any:
    """Row numbers as the feed gives them out -> rows of answers."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    context.target_max_block_size = 1  # a row a block, so that each goes on by itself
    context.execution_no_progress_timeout_s = -1  # one video may take hours
    context.max_consecutive_actor_init_deaths = MOST_LOADS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        numbers = ray.data.read_datasource(
            _source(feed), override_num_blocks=1, num_cpus=0, label_selector={"ray.io/node-id": plan.driver}
        )
        pool = ray.data.ActorPoolStrategy(size=shares.workers, max_tasks_in_flight_per_actor=2)
        return numbers.map(
            node.Maker,
            fn_constructor_kwargs={"feed": feed, "plan": plan, "session": session},
            compute=pool,
            num_cpus=shares.cpus,
            num_gpus=shares.gpus or None,
        )


def _source(feed: Any) -> Any:
    """The numbers of rows as a source of Ray Data, read by one task that waits for each."""
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    def read() -> Iterator[Any]:
        import pyarrow
        import ray

        for number in itertools.count():
            if not ray.get(feed.more.remote(number)):
                return
            yield pyarrow.table({"row": [number]})

    class Numbers(Datasource):  # type: ignore[misc]
        def estimate_inmemory_data_size(self) -> None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
            unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(read, unknown)]

    return Numbers()  # type: ignore[no-untyped-call]


def _stopped(error: Exception) -> DiffpipeError:
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return DiffpipeError(
        f"Ray stopped the run: {said[-1] if said else type(error).__name__}",
        "go on with --resume; -v and ray status tell more",
    )
