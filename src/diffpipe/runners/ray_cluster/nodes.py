"""The nodes of a cluster: which there are, and whether they would make the same as this one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...cache.bundle import transfer
from ...cache.entry import Entry
from ...cache.store import Store
from ...core.errors import DiffpipeError
from ...core.manifest import Manifest
from ...core.parsing import Fields, Misfit
from .cluster import Cluster
from .node_versions import NodeReport, deciding, differing, refusal, report
from .worker_spec import WorkerSpec

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

log = logging.getLogger("diffpipe.ray")

ANSWER_TIMEOUT = 60.0  # seconds in which a node must answer


@dataclass(frozen=True)
class Node:
    """A machine of a cluster that lives, and what Ray may give away of it."""

    id: str
    host: str
    address: str
    cpus: float
    gpus: float

    @property
    def label(self) -> str:
        return f"the node {self.host} ({self.address})"


def living_nodes() -> list[Node]:
    """Those of the cluster that is connected."""
    import ray

    with understood():
        rows = [Fields(row, "a node of Ray") for row in ray.nodes()]
        return [node_of(fields) for fields in rows if fields.truth("Alive")]


@contextmanager
def understood() -> Iterator[None]:
    """What is parsed within the block comes from Ray. Raises DiffpipeError for what does not fit."""
    try:
        yield
    except Misfit as error:
        raise DiffpipeError(
            f"Ray gave what is not understood: {error}", "use Ray 2.60 or newer on all nodes"
        ) from error


def node_of(fields: Fields) -> Node:
    """Raises Misfit."""
    resources = fields.object("Resources")
    cpus, gpus = resources.number("CPU", 0.0), resources.number("GPU", 0.0)
    if cpus < 0 or gpus < 0:
        raise Misfit("a node of Ray has less than nothing")
    host, address = fields.text("NodeManagerHostname", ""), fields.text("NodeManagerAddress", "")
    return Node(fields.text("NodeID"), host, address, cpus, gpus)


def on_node(node_id: str) -> NodeAffinitySchedulingStrategy:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def check_nodes(nodes: Sequence[Node], spec: WorkerSpec, manifest: Manifest, entry: Entry, cluster: Cluster) -> None:
    """Ask each node that may get a worker for its versions. Raises DiffpipeError that names all that differ.

    Where a node lacks the pipeline and bundles have a place, the bundle is put there.
    """
    import ray

    packages = deciding(manifest)
    asked = [
        ray.remote(num_cpus=0)(report).options(scheduling_strategy=on_node(node.id)).remote(packages, entry.key)
        for node in nodes
    ]
    different: dict[str, list[str]] = {}
    lacking = False
    for node, reference in zip(nodes, asked, strict=True):
        answer = _answer(node, reference)
        if lines := differing(spec.versions, answer.versions):
            different[node.label] = lines
        lacking |= not answer.has_pipeline and node.id != spec.driver
        log.info("%s: %s", node.label, answer.all_versions)
    if different:
        raise refusal(different)
    if lacking and spec.bundle:
        transfer.export(Store(Path(spec.root)), entry, spec.bundle, say=cluster.say)


def _answer(node: Node, reference: ObjectRef[NodeReport]) -> NodeReport:
    import ray

    try:
        answer: NodeReport = ray.get(reference, timeout=ANSWER_TIMEOUT)
    except ray.exceptions.GetTimeoutError as error:
        raise DiffpipeError(f"{node.label} does not answer", "see ray status; leave that node out") from error
    except ray.exceptions.RayError as error:
        raise DiffpipeError(
            f"{node.label} has no diffpipe, or an older one", "install the same version there"
        ) from error
    return answer
