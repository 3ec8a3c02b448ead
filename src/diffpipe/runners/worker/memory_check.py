"""Whether there is memory for one more worker: the idlest of the others end where there is not."""

from __future__ import annotations

from collections.abc import Iterator

from ...cache.entry import Entry
from ...cache.store import Store
from ...core.manifest import Manifest
from ...memory import machine
from ...memory.refuse import needed
from . import lifecycle
from .protocol import Status


def free_memory(store: Store, entry: Entry, manifest: Manifest) -> Iterator[Status]:
    """Stop idle workers, the idlest first, until what a pipeline needs is free or none is left; those that ended.

    What is needed is predicted (see memory.refuse), for the pipeline's usual size. Nothing ends where that is not
    known.
    """
    running = [(one.place, one.status) for one in lifecycle.running(store) if one.status]
    idle = [(place, status) for place, status in running if not (status.busy or status.clients)]
    if not idle:
        return
    host, device = needed(manifest, entry.locations())
    idle.sort(key=lambda one: one[1].idle)
    while idle and _short(manifest, host, device):
        place, status = idle.pop()
        if lifecycle.retire(place):
            yield status


def _short(manifest: Manifest, host: int, device: int) -> bool:
    """Whether less memory is free than is needed, here or on the pipeline's GPU."""
    free = machine.host_free()
    if free is not None and host > free:
        return True
    there = machine.accelerator(manifest.config.device) if device else None
    left = machine.free(there) if there else None
    return left is not None and device > left
