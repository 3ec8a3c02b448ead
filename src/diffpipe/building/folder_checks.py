"""Weights of a folder on this machine, compared by their headers with the settings beside them before they are loaded.

What lies on the hub under a commit is taken as its author uploaded it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

from ..core.canonical import JsonObject
from ..core.checkpoint_marks import SCALES
from ..core.errors import NotFoundError, UsageError
from ..core.parsing import Fields, Misfit, parse_json
from ..core.source import Source, file_of
from ..sources.key import Resolved
from ..sources.settings_files import LARGEST
from ..storage.opening import read_regular
from ..storage.tensor_headers import TensorInfo, read_safetensors
from .settings import place_of_settings, settings_of

Layout = Mapping[str, tuple[str, str]]  # component -> library, class


def check(resolved: Resolved, layout: Layout, offline: bool) -> None:
    """Refuse folders whose weights are not those of their settings. Where a single file has them, no folder is pinned
    with its own.

    Raises UsageError; NotFoundError for a shard that an index names and that is not there.
    """
    for name in sorted(layout):
        source, inside = place_of_settings(resolved.sources, name)
        location = resolved.locations[source.role]
        if source.kind == "hub" or not location:
            continue
        tensors = _tensors(source, location, inside)
        settings = settings_of(resolved, name, "config.json", offline)
        if tensors and settings and "quantization_config" not in settings:
            _check(name, source, layout[name], tensors, settings)


def _tensors(source: Source, location: str, inside: str) -> dict[str, TensorInfo]:
    """The tensors of a component's safetensors files. Raises NotFoundError where its index names a file that is not
    there."""
    paths = [path for path in source.files if str(PurePosixPath(path).parent) == (inside or ".")]
    found: dict[str, TensorInfo] = {}
    for path in paths:
        if path.endswith(".safetensors"):
            found |= read_safetensors(file_of(source, location, path)).tensors
    for path in (path for path in paths if path.endswith(".safetensors.index.json")):
        listed = _listed(source, location, path)
        names = {PurePosixPath(one).name for one in paths}
        if lost := sorted(set(listed.values()) - names):
            raise NotFoundError(
                f"{path} of {source.label} names {lost[0]}, which is not there", "fetch the model again"
            )
        if lost := sorted(set(listed) - set(found)):
            raise UsageError(
                f"{lost[0]} is in none of the files that {path} of {source.label} names", "fetch the model again"
            )
    return found


def _listed(source: Source, location: str, path: str) -> dict[str, str]:
    """Tensor -> the file it is in, as an index says."""
    try:
        text = read_regular(file_of(source, location, path), LARGEST)
        data = Fields(parse_json(text, LARGEST)).object("weight_map")
        return {name: data.text(name) for name in data.names()}
    except Misfit as error:
        raise UsageError(f"{path} of {source.label} is damaged: {error}", "copy or fetch the model again") from error


def _check(
    name: str, source: Source, pair: tuple[str, str], tensors: Mapping[str, TensorInfo], settings: JsonObject
) -> None:
    from ..engine.classes import lookup
    from ..engine.loading import file_fit, library_logs

    scale = next((one for one in tensors if one.endswith(SCALES)), None)
    if scale:
        raise UsageError(
            f"the weights of {name} in {source.label} are scaled ({scale}), which a folder's are not read with",
            f"name their file instead: --component {name}=FILE",
        )
    cls = lookup.component_class(*pair)
    with library_logs.unheard():
        faults = file_fit.fit_folder(cls, settings, {path: one.shape for path, one in tensors.items()})
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise UsageError(
            f"the weights of {name} in {source.label} are not those of the {cls.__name__} of its config.json: "
            f"{faults[0]}{more}",
            f"choose a {cls.__name__} for --component {name}"
            if source.role.kind == "component"
            else "copy or fetch the model again, its settings and weights together",
        )
