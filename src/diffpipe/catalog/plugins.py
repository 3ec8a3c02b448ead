"""All providers: the built-in ones and those that other packages register under "diffpipe.providers"."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points

from ..core.errors import UsageError
from ..core.manifest import Manifest
from ..core.printable import printable
from . import BUILTIN
from .rows import PipelineType, Provider

GROUP = "diffpipe.providers"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


@functools.cache
def providers() -> dict[str, Provider]:
    """Every provider by name, built-in first. A plug-in that fails is named on stderr and left out."""
    found = dict(BUILTIN)
    for entry in entry_points(group=GROUP):
        try:
            provider = _load(entry)
        except (Exception, SystemExit) as error:  # a plug-in's code may fail in any way; the tool must go on without it
            _warn(entry, f"{type(error).__name__}: {error}")
            continue
        if provider.name in found:
            _warn(entry, f"the name {provider.name!r} is taken")
            continue
        found[provider.name] = provider
    return found


def quirks(manifest: Manifest) -> Mapping[str, str]:
    """The quirks of a pipeline's row, by hook. They are looked up here, since a manifest must not name code to run.

    Raises UsageError where the row is gone that the pipeline was built with.
    """
    row = _row(manifest)
    if row is None and manifest.quirks:
        raise UsageError(
            f"the provider {manifest.provider} ({manifest.type}) is not installed any more",
            "install the package that it came with",
        )
    if row is None:
        return {}
    return row.quirks if row.pipeline else _quirks_of_class(manifest.pipeline)


def unquantized(manifest: Manifest) -> tuple[str, ...]:
    """The layers of a pipeline that quantization leaves alone (see PipelineType.unquantized)."""
    row = _row(manifest)
    return row.unquantized if row else ()


def _row(manifest: Manifest) -> PipelineType | None:
    provider = providers().get(manifest.provider)
    return provider.type(manifest.type) if provider else None


def _quirks_of_class(pipeline: str) -> Mapping[str, str]:
    """What any row says must happen before that class can be called, for pipelines that have no row of their own."""
    rows = (row for provider in BUILTIN.values() for row in provider.types if row.pipeline == pipeline)
    hooks = next((row.quirks for row in rows if row.quirks), {})
    return {name: function for name, function in hooks.items() if name != "call"}


def _load(entry: EntryPoint) -> Provider:
    value = entry.load()
    provider = value() if callable(value) and not isinstance(value, Provider) else value
    if not isinstance(provider, Provider) or not provider.types:
        raise TypeError(f"{entry.value} is no diffpipe.Provider with at least one type")
    if not all(isinstance(row, PipelineType) for row in provider.types):
        raise TypeError(f"a type of {entry.value} is no diffpipe.PipelineType")
    if not isinstance(provider.name, str) or not NAME.fullmatch(provider.name):
        raise ValueError(f"{provider.name!r} is no name: use lower-case letters, digits, dots and dashes")
    return provider


def _warn(entry: EntryPoint, reason: str) -> None:
    package = entry.dist.name if entry.dist else entry.value
    reason = " ".join(reason.split())
    line = f"warning: provider {entry.name!r} from package {package} was skipped: {reason}"
    print(printable(line), file=sys.stderr)
