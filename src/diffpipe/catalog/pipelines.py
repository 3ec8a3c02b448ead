"""What is known of each pipeline class of diffusers without importing it: why one cannot be built, and what size it
makes. Written down by tools/signature_coverage.py."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from typing import TypeAlias

from ..core.canonical import JsonValue
from ..core.errors import UsageError
from ..core.parsing import Fields, parse_json
from .rows import PipelineType

FILE = "pipelines.json"
LARGEST_FILE = 1_000_000  # bytes
# Packages that are imported by another name than diffusers calls them.
MODULES = {"opencv": "cv2", "onnx": "onnxruntime", "k-diffusion": "k_diffusion"}


@dataclass(frozen=True)
class Derived:
    """A size that a model's settings say: `setting` of a component, times the autoencoder's if `scaled`; `number` where
    there is no such component or setting."""

    component: str
    setting: str
    scaled: bool = False
    number: int | None = None


Size: TypeAlias = int | Derived


@dataclass(frozen=True)
class Known:
    """A class: what it makes besides pictures, video and sound if none of those (`returns`), why no command line can
    call it, the packages that it needs beyond diffpipe's own, and its default sizes."""

    returns: tuple[str, ...] = ()
    uncallable: str = ""
    packages: tuple[str, ...] = ()
    sizes: Mapping[str, Size] | None = None


def no_media(pipeline: str, returns: tuple[str, ...]) -> UsageError:
    made = ", ".join(returns) or "nothing diffpipe knows"
    return UsageError(f"{pipeline} makes no picture, video or sound", f"it returns {made}")


def uncallable(pipeline: str, reason: str) -> UsageError:
    return UsageError(f"no command line can call {pipeline}: it {reason}", "name another with --class")


def lacking(pipeline: str, packages: tuple[str, ...]) -> UsageError:
    return UsageError(f"{pipeline} needs a package that is not installed: {', '.join(packages)}", "install it first")


def check(pipeline: str, row: PipelineType) -> None:
    """Raises UsageError for a class that cannot be built. What was written down of another diffusers refuses none."""
    known = _table().get(pipeline) if _is_current() else None
    if known is None:
        return
    if missing := tuple(name for name in known.packages if importlib.util.find_spec(MODULES.get(name, name)) is None):
        raise lacking(pipeline, missing)
    if known.uncallable and "call" not in row.quirks:
        raise uncallable(pipeline, known.uncallable)
    if known.returns:
        raise no_media(pipeline, known.returns)


def sizes_of(pipeline: str) -> Mapping[str, Size]:
    """The default width, height, frames and steps of a class, as far as they are known."""
    known = _table().get(pipeline)
    return known.sizes or {} if known else {}


def _is_current() -> bool:
    try:
        return version("diffusers") == _file().text("diffusers")
    except PackageNotFoundError:
        return False


@functools.cache
def _file() -> Fields:
    return Fields(parse_json((files(__package__) / FILE).read_bytes(), LARGEST_FILE, FILE))


@functools.cache
def _table() -> Mapping[str, Known]:
    classes = _file().object("pipelines")
    return {name: _known(classes.object(name)) for name in classes.names()}


def _known(data: Fields) -> Known:
    sizes = data.object("sizes") if "sizes" in data else None
    return Known(
        returns=data.texts("returns", ()),
        uncallable=data.text("uncallable", ""),
        packages=data.texts("packages", ()),
        sizes={name: _size(sizes, name) for name in sizes.names()} if sizes else None,
    )


def _size(sizes: Fields, name: str) -> Size:
    value = sizes.value[name]
    if not isinstance(value, dict):
        return sizes.integer(name)
    derived = sizes.object(name)
    return Derived(
        derived.text("component", ""),
        derived.text("setting", ""),
        derived.truth("scaled", False),
        derived.maybe_integer("number"),
    )


def size_json(size: Size) -> JsonValue:
    """The inverse of how a size is read."""
    if isinstance(size, int):
        return size
    fields: dict[str, JsonValue] = {"component": size.component, "setting": size.setting, "scaled": size.scaled}
    return {name: value for name, value in {**fields, "number": size.number}.items() if value not in ("", False, None)}
