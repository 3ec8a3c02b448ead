"""Components of a model that a request leaves out: they are neither fetched nor loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.build_spec import BuildSpec
from ..core.errors import UsageError
from . import model_files


def without_parts(index: Mapping[str, Any], spec: BuildSpec) -> dict[str, Any]:
    """A model_index.json but for the components that are left out. Raises UsageError where there is no such one."""
    for name in spec.without:
        option = f"--no-{name.replace('_', '-')}"
        if name in spec.components:
            raise UsageError(f"{option} and --component {name}= are both given", "leave one of them out")
        if name not in model_files.components_of(index):
            raise UsageError(f"{option}: this model has no {name.replace('_', ' ')}", f"leave {option} out")
    return {name: value for name, value in index.items() if name not in spec.without}
