"""diffpipe: build diffusers pipelines once, generate with them many times.

What plug-in authors and Python users import; everything else may change between versions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import DiffpipeError
    from .specs import Flag, PipelineType, Provider

__version__ = "0.1.0"
__all__ = ["DiffpipeError", "Flag", "PipelineType", "Provider", "__version__"]


def __getattr__(name: str) -> Any:
    """Imported at use: `diffpipe.__main__` must be reached at once, for it ends an interrupted start quietly."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import errors, specs

    return getattr(errors if name == "DiffpipeError" else specs, name)
