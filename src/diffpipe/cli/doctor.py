"""diffpipe doctor: what this machine has, in one look."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from ..building.versions import versions
from ..cache.store import Store
from ..core.bounds import Misfit, misfits
from ..core.canonical import JsonObject
from ..memory import machine
from ..sources import hub_client
from ..storage.disk import free_bytes, readable
from . import output, tree

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..engine.seams import Seam
    from ..memory.device_facts import Device

TEXT = "Show versions, devices, memory, cache, token and hub."


@dataclass(frozen=True)
class DeviceShown:
    """A device; bytes of its memory in all and free now, None where nothing says.

    `shared`: whether its memory is the host's.
    """

    name: str
    description: str
    memory: int | None
    free: int | None
    shared: bool

    def __str__(self) -> str:
        words = [self.description]
        words += [] if self.memory is None else [f"{readable(self.memory)}{self._shared()}"]
        words += [] if self.free is None else [f"{readable(self.free)} free"]
        return ", ".join(words)

    def _shared(self) -> str:
        return " of the host's memory" if self.shared and self.name != "cpu" else ""


@dataclass(frozen=True)
class SeamMissing:
    """Something private of a library that diffpipe does without, as what is installed has no such thing."""

    library: str
    name: str
    without: str


@dataclass(frozen=True)
class CacheShown:
    """Where the cache lies, how many pipelines and bytes are in it, and the bytes its disk has left."""

    folder: str
    pipelines: int
    bytes: int
    free: int


@dataclass(frozen=True)
class Facts:
    """What this machine has. `token`: whether there is one, never the token itself."""

    python: str
    versions: Mapping[str, str]
    outside_bounds: tuple[Misfit, ...]
    devices: tuple[DeviceShown, ...]
    cache: CacheShown
    token: bool
    hub: str
    not_used: tuple[SeamMissing, ...]

    def to_json(self) -> JsonObject:
        return {**asdict(self), "outside_bounds": [one.to_json() for one in self.outside_bounds]}

    def rows(self) -> Iterable[tuple[str, str]]:
        """Titles and texts for a reader."""
        yield "python", self.python
        yield from self.versions.items()
        yield from ((f"device {device.name}", str(device)) for device in self.devices)
        cache = self.cache
        yield "cache", f"{cache.pipelines} pipelines, {readable(cache.bytes)}; {readable(cache.free)} free"
        yield "cache folder", cache.folder
        yield "token", "present" if self.token else "none (HF_TOKEN)"
        yield "hub", self.hub
        yield from (("not used", f"{one.name} of {one.library}: {one.without}") for one in self.not_used)


def make() -> object:
    return tree.command("doctor", doctor, TEXT)


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask the hub.")] = False,
) -> None:
    outside = misfits()
    for one in outside:  # before anything is imported that may fail for it
        output.warn(one.problem, one.remedy)
    facts = examine(offline, tuple(outside))
    if json:
        output.result_json(facts.to_json())
    else:
        output.table(("", ""), list(facts.rows()))


def examine(offline: bool, outside: tuple[Misfit, ...] = ()) -> Facts:
    """What this machine has, and whether the hub answers; `outside`: what diffpipe needs in other versions."""
    from ..engine.placement.devices import devices
    from ..engine.seams import seams

    return Facts(
        python=platform.python_version(),
        versions=versions(),
        outside_bounds=outside,
        devices=tuple(map(_device, devices())),
        cache=_cache(Store()),
        token=hub_client.token() is not None,
        hub=_hub(offline),
        not_used=missing(seams()),
    )


def _device(device: Device) -> DeviceShown:
    return DeviceShown(device.name, device.description, device.total, machine.free(device), device.shared)


def _cache(store: Store) -> CacheShown:
    paths = (os.path.join(where, name) for where, _, files in os.walk(store.root) for name in files)
    return CacheShown(str(store.root), len(store.keys()), sum(map(_size, paths)), free_bytes(store.root))


def _size(path: str) -> int:
    """Bytes of a file, or of the link itself; none of what may not be looked at, or went meanwhile."""
    with suppress(OSError):
        return os.lstat(path).st_size
    return 0


def _hub(offline: bool) -> str:
    if hub_client.is_offline(offline):
        return "not asked (offline)"
    return "reachable" if hub_client.reachable() else "not reachable"


def missing(seams: Iterable[Seam]) -> tuple[SeamMissing, ...]:
    """Those that do not apply to what is installed."""
    return tuple(SeamMissing(one.library, one.name, one.without) for one in seams if not one.applies)
