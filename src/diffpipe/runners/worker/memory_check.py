"""Room in memory for one more worker: the idlest of the others end first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...cache.store import Entry, Store
from ...memory.machine import gpus, host_free
from ...memory.refuse import needed
from . import lifecycle


def make(store: Store, entry: Entry, manifest: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Stop idle workers, the idlest first, until what a pipeline needs is free or none is left; those that ended.

    What is needed is predicted (see forecast), for the pipeline's usual size. Nothing ends where that is not known.
    """
    others = [one for one in lifecycle.running(store) if one["status"] and not _used(one["status"])]
    if not others:
        return
    host, device = needed(manifest, entry.sources())
    others.sort(key=lambda one: -one["status"]["idle"])
    while others and _short(manifest, host, device):
        idlest = others.pop(0)
        if lifecycle.retire(idlest["place"]):
            yield idlest


def _used(status: Mapping[str, Any]) -> bool:
    """Whether a worker has clients, who may want something next."""
    return bool(status["busy"] or status["clients"])


def _short(manifest: Mapping[str, Any], host: int, device: int) -> bool:
    """Whether less memory is free than is needed, here or on the pipeline's GPU."""
    free = host_free()
    if free is not None and host > free:
        return True
    number = int(manifest["config"]["placement"]["device"].partition(":")[2] or 0)
    there = next((gpu.free for gpu in gpus() if gpu.index == number), None)
    return there is not None and device > there
