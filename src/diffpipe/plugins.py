"""All providers: the built-in ones and those that other packages register under "diffpipe.providers"."""

from __future__ import annotations

import functools
import sys
from importlib.metadata import EntryPoint, entry_points

from .catalog import BUILTIN
from .specs import Provider

GROUP = "diffpipe.providers"


@functools.cache
def providers() -> dict[str, Provider]:
    """Every provider by name, built-in first. A plug-in that fails is named on stderr and left out."""
    found = dict(BUILTIN)
    for entry in entry_points(group=GROUP):
        try:
            provider = _load(entry)
        except Exception as error:  # a plug-in's code may fail in any way; the tool must go on without it
            _warn(entry, f"{type(error).__name__}: {error}")
            continue
        if provider.name in found:
            _warn(entry, f"the name {provider.name!r} is taken")
            continue
        found[provider.name] = provider
    return found


def _load(entry: EntryPoint) -> Provider:
    value = entry.load()
    provider = value() if callable(value) and not isinstance(value, Provider) else value
    if not isinstance(provider, Provider) or not provider.types:
        raise TypeError(f"{entry.value} is no diffpipe.Provider with at least one type")
    return provider


def _warn(entry: EntryPoint, reason: str) -> None:
    package = entry.dist.name if entry.dist else entry.value
    sys.stderr.write(f"warning: provider {entry.name!r} from package {package} was skipped: {reason}\n")
