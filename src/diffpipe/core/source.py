"""Pinned sources: the exact files that a pipeline is loaded from, and the components in them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files as package_files
from pathlib import Path
from typing import Literal

from .canonical import JsonObject
from .names import COMMIT, DEMO, DIGEST, IDENTIFIER, MODULE, REPOSITORY, stays_inside
from .parsing import Fields, Misfit

CHECKPOINTS = (".safetensors", ".gguf", ".ckpt", ".pt", ".pth", ".bin")  # the endings of single-file weights
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
EMBEDDED = "embedded:"
LONGEST_LABEL = 4096  # characters: as long as a path
LARGEST_SCALE = 1e6  # of a LoRA, either way; useful ones are below 10
LONGEST_PART_NAME = 200  # characters of a library's or class's name

RoleKind = Literal["base", "config", "component", "lora"]
SourceKind = Literal["hub", "folder", "file", "embedded"]
ROLE = re.compile(r"(base|config)|(component):([A-Za-z_]\w{0,63})|(lora):(0|[1-9]\d{0,5})")


@dataclass(frozen=True, order=True)
class Role:
    """What a source is for: the model itself, the settings of a single file, one component, or a LoRA.

    `name`: the component's, or the LoRA's place among the LoRAs from 0 on; "" for the others. As text: "base",
    "config", "component:NAME", "lora:N".
    """

    kind: RoleKind
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> Role:
        """Raises ValueError for a text that is no role."""
        found = ROLE.fullmatch(text)
        if not found:
            raise ValueError("is no role of a source")
        alone, component, name, lora, number = found.groups()
        kind: RoleKind = alone or component or lora  # type: ignore[assignment]
        return cls(kind, name or number or "")

    @classmethod
    def component(cls, name: str) -> Role:
        return cls("component", name)

    @classmethod
    def lora(cls, number: int) -> Role:
        return cls("lora", str(number))

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind


BASE = Role("base")
CONFIG = Role("config")


@dataclass(frozen=True)
class FileInfo:
    """A file of a source: bytes, and its content digest ("sha256:…", or "git:…" for small files on the hub)."""

    size: int
    digest: str

    @classmethod
    def from_json(cls, data: Fields) -> FileInfo:
        """Raises Misfit for what does not fit."""
        return cls(data.integer("size"), data.matching("digest", DIGEST))


@dataclass(frozen=True)
class Source:
    """A pinned source: the exact files that will be loaded, wherever they lie.

    `label` is what the user knows it by (repository id, or the last part of a path); `commit` is set for hub
    repositories. `subfolder` is "" at the source's root. `into`: of a LoRA the denoiser that was named for it;
    `peft`: what the adapter_config.json beside it says of its strength.
    `pipeline` and `components` (name -> library, class) are what
    a diffusers folder's model_index.json says.
    """

    role: Role
    kind: SourceKind
    label: str
    files: Mapping[str, FileInfo]
    commit: str | None = None
    variant: str | None = None
    subfolder: str = ""
    scale: float = 1.0
    into: str = ""
    peft: JsonObject = field(default_factory=dict)
    pipeline: str = ""
    components: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def single(self) -> bool:
        """Whether it is one file that is loaded by itself: a checkpoint or an adapter."""
        return len(self.files) == 1 and next(iter(self.files)).endswith(CHECKPOINTS)

    @classmethod
    def from_json(cls, data: Fields) -> Source:
        """Raises Misfit for what is no source."""
        kind: SourceKind = data.choice("kind", SourceKind)
        found = cls(
            role=data.parsed("role", Role.parse),
            kind=kind,
            label=label_in(data, kind),
            files={path: FileInfo.from_json(info) for path, info in data.entries("files")},
            commit=data.matching("commit", COMMIT) if kind == "hub" or "commit" in data else None,
            variant=data.maybe_text("variant"),
            subfolder=data.text("subfolder", ""),
            scale=data.number("scale", 1.0, -LARGEST_SCALE, LARGEST_SCALE),
            into=data.matching("into", IDENTIFIER, ""),
            peft=data.object("peft").value if "peft" in data else {},
            pipeline=data.text("pipeline", "", most=LONGEST_PART_NAME),
            components={name: _class_of(data.object("components"), name) for name in data.object("components").names()},
        )
        if not all(map(stays_inside, filter(None, (*found.files, found.subfolder)))) or "" in found.files:
            raise Misfit(f"{data.where or 'it'} names a file outside its folder")
        return found

    def to_json(self) -> JsonObject:
        return {
            "role": str(self.role),
            "kind": self.kind,
            "label": self.label,
            "files": {path: {"size": info.size, "digest": info.digest} for path, info in self.files.items()},
            "commit": self.commit,
            "variant": self.variant,
            "subfolder": self.subfolder,
            "scale": self.scale,
            "pipeline": self.pipeline,
            "components": {name: list(pair) for name, pair in self.components.items()},
            **({"into": self.into} if self.into else {}),
            **({"peft": self.peft} if self.peft else {}),
        }


def label_in(data: Fields, kind: SourceKind) -> str:
    """What a source is known by, which says where it is to be found again: a repository, or what is in the package.

    Raises Misfit for what no source of its kind is known by.
    """
    label = data.text("label", most=LONGEST_LABEL)
    embedded = label.startswith(EMBEDDED) and stays_inside(label.removeprefix(EMBEDDED))
    if kind == "embedded" and not (embedded or DEMO.fullmatch(label)):
        raise Misfit(f"{data.where or 'it'} is known by what is not in the package")
    if kind == "hub" and not REPOSITORY.fullmatch(label):
        raise Misfit(f"{data.where or 'it'} is known by what is no repository")
    return label


def _class_of(components: Fields, name: str) -> tuple[str, str]:
    pair = components.texts(name)
    if len(pair) != 2 or not is_part(name, *pair):
        raise Misfit(f"{components.where} has an entry that is no library and class")
    return pair[0], pair[1]


def is_part(name: str, library: str, class_name: str) -> bool:
    """Whether these can be a component's name, and the library and class that it is loaded as."""
    return bool(IDENTIFIER.fullmatch(name) and MODULE.fullmatch(library) and IDENTIFIER.fullmatch(class_name))


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
    def from_json(cls, data: Fields) -> Component:
        """Raises Misfit for what is no component."""
        return cls(
            name=data.matching("name", IDENTIFIER),
            library=data.matching("library", MODULE),
            class_name=data.matching("class_name", IDENTIFIER),
            source=data.text("source", most=LONGEST_LABEL),
            parameters=data.integer("parameters", 0),
            bytes=data.integer("bytes", 0),
            dtypes=data.texts("dtypes", ()),
        )

    def to_json(self) -> JsonObject:
        return {
            "name": self.name,
            "library": self.library,
            "class_name": self.class_name,
            "source": self.source,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "dtypes": list(self.dtypes),
        }


def place_of(location: str) -> Path:
    """Where a source lies: embedded ones follow the installed package."""
    if location.startswith(EMBEDDED):
        return Path(str(package_files("diffpipe"))) / location.removeprefix(EMBEDDED)
    return Path(location)


def file_of(source: Source, location: str, path: str) -> Path:
    """The place of one of a source's files: the location itself where the source is a single file."""
    place = place_of(location)
    # Not Path's own: they raise for what may not be looked at.
    whole = os.path.isfile(place) or (source.single and place.suffix in CHECKPOINTS and not os.path.isdir(place))
    return place if whole else place / path


def layout_of(sources: Sequence[Source]) -> dict[str, tuple[str, str]]:
    """Component -> library, class, of a pipeline's sources in the order in which they are pinned.

    The first source to list any is the pipeline's own folder; a component adds itself where that does not list it.
    """
    return {name: pair for source in reversed(sources) for name, pair in source.components.items()}
