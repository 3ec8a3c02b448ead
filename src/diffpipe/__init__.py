"""diffpipe: build diffusers pipelines once, generate with them many times.

What plug-in authors and Python users import; everything else may change between versions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .catalog.rows import PipelineType, Provider
    from .core.errors import DiffpipeError
    from .core.flag import Flag

__version__ = "0.1.0"
__all__ = ["DiffpipeError", "Flag", "PipelineType", "Provider", "__version__"]


_HOMES = {
    "DiffpipeError": "core.errors",
    "Flag": "core.flag",
    "PipelineType": "catalog.rows",
    "Provider": "catalog.rows",
}


def __getattr__(name: str) -> Any:
    """Imported at use: `diffpipe.__main__` must be reached at once, for it ends an interrupted start quietly."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
