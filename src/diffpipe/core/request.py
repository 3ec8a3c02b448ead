"""One item to generate, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .canonical import JsonValue
from .errors import DiffpipeError
from .flag import Arguments, OutputKind


@dataclass(frozen=True)
class Request:
    """One item to generate: call arguments by name (media as paths), a seed, and where its results go.

    `index` is how many results the items before it have. `overwrite`: whether files there may be replaced. `fps`:
    frames a second of a video, None for the pipeline's own. `id` is the item's own among those of its run; `item` the
    digest of pipeline, arguments and seed.
    """

    index: int
    seed: int
    arguments: Arguments
    paths: tuple[str, ...] = ()
    overwrite: bool = False
    fps: float | None = None
    id: str = ""
    item: str = ""


@dataclass(frozen=True)
class Artifact:
    """A finished output file. `stored`: of one at a URL what a journal notes: size, digest, and its store's tag."""

    path: str
    seed: int
    index: int
    kind: OutputKind
    seconds: float
    details: Mapping[str, JsonValue] = field(default_factory=dict)
    stored: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a request: its files, or why there are none."""

    request: Request
    artifacts: tuple[Artifact, ...] = ()
    warnings: tuple[str, ...] = ()
    error: DiffpipeError | None = None
