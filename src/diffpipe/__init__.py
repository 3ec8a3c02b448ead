"""diffpipe: build diffusers pipelines once, generate with them many times.

What plug-in authors and Python users import; everything else may change between versions.
"""

from __future__ import annotations

from .errors import DiffpipeError
from .specs import Flag, PipelineType, Provider

__version__ = "0.1.0"
__all__ = ["DiffpipeError", "Flag", "PipelineType", "Provider", "__version__"]
