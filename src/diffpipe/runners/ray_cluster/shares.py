"""How the nodes of a cluster are shared out to workers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...core.errors import UsageError
from .cluster import Cluster
from .nodes import Node

ROUNDING = 1e-6  # shares of a GPU that Ray adds up to a whole one


@dataclass(frozen=True)
class Shares:
    """How many workers there are, what each has of a node, and the nodes that can have one."""

    workers: int
    cpus: float
    gpus: float
    nodes: tuple[Node, ...]


def shares_of(nodes: Sequence[Node], cluster: Cluster) -> Shares:
    """A GPU a worker where there are any, else all of a node's CPUs, unless something else was asked for.

    Raises UsageError where no node has as much.
    """
    gpus = float(any(node.gpus for node in nodes)) if cluster.gpus is None else cluster.gpus
    return _of_gpus(nodes, gpus, cluster) if gpus else _of_cpus(nodes, cluster.workers)


def _of_gpus(nodes: Sequence[Node], gpus: float, cluster: Cluster) -> Shares:
    """So many GPUs a worker, and a CPU."""
    fitting = {node: int(min(node.cpus, node.gpus / gpus) + ROUNDING) for node in nodes}
    most = sum(fitting.values())
    if not most:
        has = max((node.gpus for node in nodes), default=0.0)
        raise UsageError(f"no node has {gpus:g} GPUs for a worker: {has:g} at most", "lower --gpus-per-worker")
    workers = cluster.workers or most
    if workers > most:
        cluster.say(f"{most} of {workers} workers fit on the nodes there are; the others wait for more")
    return Shares(workers, 1.0, gpus, tuple(node for node in nodes if fitting[node]))


def _of_cpus(nodes: Sequence[Node], wanted: int | None) -> Shares:
    """As many workers on each node; the smallest one's CPUs in equal shares, whole ones where they are at least one."""
    useful = tuple(node for node in nodes if node.cpus)
    if not useful:
        raise UsageError("no node of the cluster has a CPU for a worker", "start nodes with ray start --num-cpus")
    workers = wanted or len(useful)
    on_a_node = math.ceil(workers / len(useful))
    share = min(node.cpus for node in useful) / on_a_node
    return Shares(workers, float(math.floor(share)) if share >= 1 else share, 0.0, useful)
