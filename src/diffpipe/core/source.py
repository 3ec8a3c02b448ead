"""Pinned sources: the exact files that a pipeline is loaded from, and the components in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, Literal

CHECKPOINTS = (".safetensors", ".gguf", ".ckpt", ".pt", ".pth", ".bin")  # the endings of single-file weights


@dataclass(frozen=True)
class FileInfo:
    """A file of a source: bytes, and its content digest ("sha256:…", or "git:…" for small files on the hub)."""

    size: int
    digest: str


@dataclass(frozen=True)
class Source:
    """A pinned source: the exact files that will be loaded, wherever they lie.

    `label` is what the user knows it by (repository id, or the last part of a path); `commit` is set for hub
    repositories. `role` is "base", "config", "component:NAME" or "lora:N". `subfolder` is "" at the source's root.
    `pipeline` and `components` (name -> library, class) are what a diffusers folder's model_index.json says.
    """

    role: str
    kind: Literal["hub", "folder", "file", "embedded"]
    label: str
    files: Mapping[str, FileInfo]
    commit: str | None = None
    variant: str | None = None
    subfolder: str = ""
    scale: float = 1.0
    pipeline: str = ""
    components: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def single(self) -> bool:
        """Whether it is one file that is loaded by itself: a checkpoint or an adapter."""
        return len(self.files) == 1 and next(iter(self.files)).endswith(CHECKPOINTS)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Source:
        files = {path: FileInfo(**info) for path, info in data["files"].items()}
        components = {name: (value[0], value[1]) for name, value in data["components"].items()}
        return cls(**{**data, "files": files, "components": components})


@dataclass(frozen=True)
class Component:
    """A part of a pipeline; sizes are of its stored weights (parameters is the number of tensor elements)."""

    name: str
    library: str
    class_name: str
    source: str
    parameters: int = 0
    bytes: int = 0
    dtypes: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Component:
        return cls(**{**data, "dtypes": tuple(data.get("dtypes", ()))})


PICKLES = (".ckpt", ".pt", ".pth", ".bin")


EMBEDDED = "embedded:"


def place_of(location: str) -> Path:
    """Where a source lies: embedded ones follow the installed package."""
    if location.startswith(EMBEDDED):
        return Path(str(package_files("diffpipe"))) / location.removeprefix(EMBEDDED)
    return Path(location)


def file_of(source: Source, location: str, path: str) -> Path:
    """The place of one of a source's files: the location itself where the source is a single file."""
    place = place_of(location)
    whole = place.is_file() or (source.single and place.suffix in CHECKPOINTS and not place.is_dir())
    return place if whole else place / path
