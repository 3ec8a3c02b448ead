"""Files that came into a model's folder after the build: libraries are given the folder, and take what is there."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from ..core.errors import DiffpipeError
from ..core.source import Source, place_of
from ..sources import model_files
from ..sources.folders import files_in


def added(source: Source, location: str, *, pickle: bool, code: bool) -> str | None:
    """A file of a folder that a build would pin now, and did not; None where there is none.

    `pickle` and `code`: whether these are trusted. Raises UsageError for a folder that no model can be.
    """
    if source.kind != "folder" or source.single or source.role.kind == "lora":
        return None
    root = place_of(location)
    found = _component(source, root, pickle) if source.role.kind == "component" else _pipeline(source, root, pickle)
    if code:
        found |= {path for path in files_in(root) if path.endswith(".py")}
    return min(found - source.files.keys(), default=None)


def _pipeline(source: Source, root: Path, pickle: bool) -> set[str]:
    """What would be pinned of the components of a diffusers folder that some was pinned of."""
    found: set[str] = set()
    for name in {PurePosixPath(path).parts[0] for path in source.files if "/" in path}:
        inside = list(files_in(root, name))
        found |= {path for path in inside if model_files.is_setting(path)}
        if any(path.startswith(f"{name}/") and _is_weights(path) for path in source.files):
            library = source.components.get(name, ("", ""))[0]
            found |= set(_weights(inside, name, source.variant, pickle, library))
    return found


def _component(source: Source, root: Path, pickle: bool) -> set[str]:
    folder = f"{source.subfolder}/" if source.subfolder else ""
    inside = [f"component/{path.removeprefix(folder)}" for path in files_in(root, source.subfolder)]
    direct = [path for path in inside if path.count("/") == 1]
    found = {path for path in direct if model_files.is_setting(path)}
    if any(map(_is_weights, source.files)):
        found |= set(_weights(direct, "component", source.variant, pickle, ""))
    return {folder + path.removeprefix("component/") for path in found}


def _weights(inside: list[str], name: str, variant: str | None, pickle: bool, library: str) -> list[str]:
    try:
        return model_files.weights(inside, name, variant=variant, allow_pickle=pickle, library=library)
    except DiffpipeError:  # those that were pinned and are gone are found otherwise; of two sets, the new one
        return [path for path in inside if _is_weights(path)]


def _is_weights(path: str) -> bool:
    return bool(model_files.WEIGHTS.fullmatch(PurePosixPath(path).name))
