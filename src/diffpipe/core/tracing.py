"""What a trace of a pipeline is asked for, and what it answers (see engine.tracing)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from .canonical import JsonValue
from .components import Stage

Settings = Mapping[str, JsonValue]  # a component's config.json


@dataclass(frozen=True)
class Recipe:
    """What a pipeline is made of: `layout` has each component's library and class, `configs` its settings.

    `dtype`: that of the computation; `float32`: the components that are loaded in that whatever it says.
    """

    pipeline: str
    layout: Mapping[str, tuple[str, str]]
    configs: Mapping[str, Settings]
    dtype: str = "bfloat16"
    float32: tuple[str, ...] = ()


class Held(NamedTuple):
    """The most bytes that live in a stage while a component works, its pipeline's weights aside."""

    stage: Stage
    component: str
    living: int
