"""What every worker of a run is given. Nothing of it is weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from ...core.manifest import Located, Manifest
from ...core.request import Outcome, Request
from ...core.source import Role
from ..job import Job
from ..settings import RunSettings


@dataclass(frozen=True)
class WorkerSpec:
    """`name`: the pipeline's. `places`: where its local sources lie on the driver's machine. `versions`: of the
    packages that decide, here. `driver`: the id of the driver's node; `root`, `folder`, `umask`: its cache, its working
    folder and how it makes files, which workers on that node share. `gpus`: of each worker. `bundle`: where bundles
    lie, "" for nowhere.
    """

    manifest: Manifest
    name: str
    places: Mapping[Role, str]
    versions: Mapping[str, str]
    job: Job
    driver: str
    root: str
    folder: str
    umask: int
    gpus: float = 0.0
    bundle: str = ""

    @property
    def key(self) -> str:
        return self.manifest.key


class RequestMaker(Protocol):
    """What makes requests: local.Session, or what takes its place in measurements without an engine."""

    def outcomes(self, requests: Iterable[Request], settings: RunSettings) -> Iterator[Outcome]: ...

    def memory_now(self) -> str: ...


Load: TypeAlias = Callable[[Manifest, Located], RequestMaker]
