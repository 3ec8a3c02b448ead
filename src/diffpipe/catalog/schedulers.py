"""The schedulers that fit each pipeline class, written down by tools/signature_coverage.py: no torch, no diffusers."""

from __future__ import annotations

import functools
from importlib.resources import files

from ..core.parsing import Fields, parse_json

FILE = "schedulers.json"
LARGEST_FILE = 1_000_000  # bytes


@functools.cache
def _table() -> dict[str, tuple[str, ...]]:
    """Pipeline class -> scheduler classes. In the file, those with the same ones have the number of a group."""
    fields = Fields(parse_json((files(__package__) / FILE).read_bytes(), LARGEST_FILE, FILE))
    groups = [tuple(str(name) for name in group) for group in fields.values("groups") if isinstance(group, list)]
    numbers = fields.object("pipelines")
    return {pipeline: groups[numbers.integer(pipeline, most=len(groups) - 1)] for pipeline in numbers.names()}


def schedulers_of(pipeline: str) -> tuple[str, ...]:
    """The scheduler classes that a pipeline class of diffusers runs with; () for one with none, or of a plug-in."""
    return _table().get(pipeline, ())


def every_scheduler() -> tuple[str, ...]:
    """Every scheduler class that fits some pipeline."""
    return tuple(sorted({name for fitting in _table().values() for name in fitting}))
