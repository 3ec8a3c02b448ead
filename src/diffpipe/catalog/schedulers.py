"""The schedulers that fit each pipeline class, written down by tools/signature_coverage.py: no torch, no diffusers."""

from __future__ import annotations

import functools
import json
from importlib.resources import files
from typing import Any


@functools.cache
def _table() -> Any:
    return json.loads((files(__package__) / "schedulers.json").read_text(encoding="utf-8"))


def schedulers_of(pipeline: str) -> tuple[str, ...]:
    """The scheduler classes that a pipeline class of diffusers runs with; () for one with none, or of a plug-in."""
    number = _table()["pipelines"].get(pipeline)
    return () if number is None else tuple(_table()["groups"][number])


def every_scheduler() -> tuple[str, ...]:
    """Every scheduler class that fits some pipeline."""
    return tuple(sorted({name for group in _table()["groups"] for name in group}))
