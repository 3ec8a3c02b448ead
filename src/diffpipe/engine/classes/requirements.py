"""What a pipeline class needs that a model, or this machine, may not have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...core.errors import UsageError
from .lookup import check_names, component_class, missing_packages, pipeline_parts

if TYPE_CHECKING:
    from .lookup import Pipeline


def check(pipeline: Pipeline, layout: Mapping[str, tuple[str, str]], components: Mapping[str, str], hint: str) -> None:
    """Raises UsageError for parts that are missing, unknown or of no known class, and packages not installed.

    `layout`: component -> (library, class) of the folder. `components`: the sources given for some by name. `hint`:
    what fits the model, where it lacks a part.
    """
    expected, optional = pipeline_parts(pipeline)
    missing = expected - optional - layout.keys() - components.keys()
    if missing:
        raise UsageError(
            f"{pipeline.__name__} needs {', '.join(sorted(missing))}, which this model does not have", hint
        )
    check_names(pipeline, components)
    for name in components.keys() - layout.keys():
        raise UsageError(f"{components[name]} does not say the class of {name}", "name a folder that has it")
    for library, name in layout.values():
        if absent := missing_packages(component_class(library, name)):
            raise UsageError(f"{name} needs {' and '.join(absent)}", "install it, in the version that fits your torch")
