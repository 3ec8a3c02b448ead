"""All providers: the built-in ones and those that other packages register under "diffpipe.providers"."""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import EntryPoint, distributions

from ..core.errors import UsageError
from ..core.manifest import Manifest
from ..core.printable import printable
from . import BUILTIN
from .row_checks import problem_of
from .rows import PipelineType, Provider

GROUP = "diffpipe.providers"


@functools.cache
def providers() -> dict[str, Provider]:
    """Every provider by name, built-in first. A plug-in that fails is named on stderr and left out."""
    found = dict(BUILTIN)
    for package, entry in _registered():
        provider, problem = _loaded(entry)
        if provider and provider.name in found:
            problem = f"the name {provider.name!r} is taken"
        if problem:
            _warn(f"provider {entry.name!r} from package {package} was skipped: {problem}")
        elif provider:
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


def float32_of_class(pipeline: str) -> tuple[str, ...]:
    """The components that work in float32 in pipelines of a class that have no row of their own: what loads them for
    any row does so for these, too."""
    rows = (row for provider in BUILTIN.values() for row in provider.types if row.pipeline == pipeline)
    return next((row.float32 for row in rows if row.float32), ())


def _registered() -> Iterator[tuple[str, EntryPoint]]:
    """What packages register, with each package's name. One whose metadata is damaged is told on stderr and skipped."""
    seen = set()
    for package in distributions():
        try:
            entries = package.entry_points.select(group=GROUP)
            name = package.name if entries else ""  # which takes longer to read
        except Exception as error:  # metadata may be damaged in any way, and of a package that has no plug-in
            _warn(f"a package in {package.locate_file('')} was not asked for providers: {_said(error)}")
            continue
        if name not in seen:  # the first on the path counts, as for imports
            yield from ((name, entry) for entry in entries)
        seen.add(name)


def _loaded(entry: EntryPoint) -> tuple[Provider | None, str]:
    """A plug-in's provider, or why it has none. What its code prints goes to stderr: stdout is for results."""
    said = io.StringIO()
    value: object = None
    try:
        with redirect_stdout(said), redirect_stderr(said):
            value = entry.load()
            if callable(value) and not isinstance(value, Provider):
                value = value()
            problem = problem_of(value)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plug-in's code may fail in any way; the tool must go on without it
        problem = _said(error)
    for line in said.getvalue().splitlines():
        _tell(f"{entry.name}: {line}")
    return (None if problem or not isinstance(value, Provider) else value), problem


def _said(error: BaseException) -> str:
    """An error in one line, also where its own words cannot be had."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def _warn(text: str) -> None:
    _tell(f"warning: {' '.join(text.split())}")


def _tell(line: str) -> None:
    print(printable(line), file=sys.stderr)
