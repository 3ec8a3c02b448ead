"""The commands that build a pipeline class: the provider and type that have it."""

from __future__ import annotations

from ..catalog import plugins
from ..core.source import EMBEDDED


def way_to(pipeline: str) -> str:
    """The command that builds pipelines of a class, by its provider and type; by the class itself where none has it."""
    for provider in plugins.providers().values():
        for row in provider.types:
            if row.pipeline == pipeline and not any(one.startswith(EMBEDDED) for one in row.repositories):
                kind = "" if row is provider.types[0] else f" --type {row.name}"
                return f"diffpipe build {provider.name}{kind}"
    return f"diffpipe build custom --class {pipeline}"
