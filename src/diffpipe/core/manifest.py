"""What a built pipeline is: all that generating, planning and listing need to know without loading it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from .. import __version__
from .canonical import JsonObject, JsonValue
from .configuration import Configuration, Quantization
from .flag import Flag, OutputKind
from .names import DIGEST, IDENTIFIER, KEY
from .parsing import Fields, Misfit, OtherVersion
from .source import Component, FileInfo, Role, Source

FORMAT = 1  # of the manifest: raise it when readers of older ones would misread newer ones
FASTEST = 1000.0  # frames a second; the fastest models make 60
LONGEST_VERSION = 200  # characters
VERSION = re.compile(r"\d[\w.+!-]{0,49}")
Comparison = Mapping[str, float]  # of a quantized component with the original: "relative_error", "cosine"


@dataclass(frozen=True)
class QuantizedComponent:
    """What is said of a stored component: how many of its layers are quantized, which Linear layers are not and why,
    and how far what it makes is from the original's ({} where the pipeline did not call it)."""

    layers: int
    left: Mapping[str, str] = field(default_factory=dict)
    comparison: Comparison = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Fields) -> QuantizedComponent:
        """Raises Misfit for what does not fit."""
        left, compared = data.object("left"), data.object("comparison")
        return cls(
            layers=data.integer("layers", 0),
            left={name: left.text(name) for name in left.names()},
            comparison={name: compared.number(name) for name in compared.names()},
        )

    def to_json(self) -> JsonObject:
        compared: JsonObject = {"comparison": dict(self.comparison)} if self.comparison else {}
        return {"layers": self.layers, "left": dict(self.left), **compared}


@dataclass(frozen=True)
class StoredComponent:
    """A component's file of quantized weights: what is in it, what was measured, and its identity on this disk."""

    bytes: int
    digest: str
    parameters: int
    dtypes: tuple[str, ...]
    quality: QuantizedComponent
    identity: tuple[int, ...] = ()

    @classmethod
    def from_json(cls, data: Fields) -> StoredComponent:
        """Raises Misfit for what does not fit."""
        return cls(
            bytes=data.integer("bytes"),
            digest=data.matching("digest", DIGEST),
            parameters=data.integer("parameters"),
            dtypes=data.texts("dtypes"),
            quality=QuantizedComponent.from_json(data),
            identity=data.integers("identity") if "identity" in data else (),
        )

    def to_json(self) -> JsonObject:
        seen: JsonObject = {"identity": list(self.identity)} if self.identity else {}
        return {
            "bytes": self.bytes,
            "digest": self.digest,
            "parameters": self.parameters,
            "dtypes": list(self.dtypes),
            **self.quality.to_json(),
            **seen,
        }

    @property
    def info(self) -> FileInfo:
        return FileInfo(self.bytes, self.digest)


@dataclass(frozen=True)
class WeightsSummary:
    """A folder of quantized weights: its components, how they were made, and whether they came by a bundle."""

    components: Mapping[str, StoredComponent]
    mode: str = ""
    backend: str = ""
    imported: bool = False

    @classmethod
    def from_json(cls, data: Fields) -> WeightsSummary:
        """Raises Misfit for what does not fit."""
        parts = {name: StoredComponent.from_json(part) for name, part in data.entries("components")}
        if not all(map(IDENTIFIER.fullmatch, parts)):
            raise Misfit("components has a name that no component has")
        return cls(parts, data.text("mode", ""), data.text("backend", ""), data.truth("imported", False))

    def to_json(self) -> JsonObject:
        how: JsonObject = {"mode": self.mode, "backend": self.backend} if self.mode else {}
        parts: JsonObject = {name: part.to_json() for name, part in self.components.items()}
        return {"components": parts, **how, **({"imported": True} if self.imported else {})}

    def with_identity(self, name: str, identity: Iterable[int]) -> WeightsSummary:
        """With the identity of one component's file as it is on this disk."""
        part = replace(self.components[name], identity=tuple(identity))
        return replace(self, components={**self.components, name: part})

    @property
    def qualities(self) -> dict[str, QuantizedComponent]:
        return {name: part.quality for name, part in self.components.items()}

    def portable(self) -> WeightsSummary:
        """Without what is true on this disk alone."""
        parts = {name: replace(part, identity=()) for name, part in self.components.items()}
        return replace(self, components=parts, imported=False)


@dataclass(frozen=True)
class StoredWeights:
    """The stored quantized weights that a pipeline loads: how they were made, their key, and what is in them."""

    how: Quantization
    key: str
    components: Mapping[str, QuantizedComponent]

    @classmethod
    def from_json(cls, data: Fields) -> StoredWeights:
        """Raises Misfit for what does not fit."""
        parts = {name: QuantizedComponent.from_json(part) for name, part in data.entries("components")}
        names: list[JsonValue] = list(parts)
        how = Quantization.from_json(Fields({**data.value, "components": names}, data.where))
        return cls(how, data.matching("key", KEY), parts)

    def to_json(self) -> JsonObject:
        parts: JsonObject = {name: part.to_json() for name, part in self.components.items()}
        return {**self.how.to_json(), "key": self.key, "components": parts}


@dataclass(frozen=True)
class Manifest:
    """A built pipeline. `flags`: its call arguments as flags; `arguments`: the names of all that --set may name.

    `own_class`: whether the pipeline class is a file of the model's own. `fps`: frames a second of its videos, None
    where nothing says. `quirks`: the hooks that its row in the catalogue has. `versions`: of the packages it was built
    with. `placement_reason`: why its placement was chosen, "" where it was named.
    """

    key: str
    config: Configuration
    sources: tuple[Source, ...]
    components: tuple[Component, ...]
    flags: tuple[Flag, ...]
    arguments: tuple[str, ...]
    kind: OutputKind
    fps: float | None
    quirks: tuple[str, ...]
    versions: Mapping[str, str]
    own_class: bool = False
    stored: StoredWeights | None = None
    placement_reason: str = ""

    @property
    def provider(self) -> str:
        return self.config.provider

    @property
    def type(self) -> str:
        return self.config.type

    @property
    def pipeline(self) -> str:
        """The name of its class."""
        return self.config.pipeline

    @property
    def flags_by_name(self) -> dict[str, Flag]:
        return {flag.name: flag for flag in self.flags}

    @property
    def classes(self) -> dict[str, tuple[str, str]]:
        """Component -> library, class."""
        return {part.name: (part.library, part.class_name) for part in self.components}

    def source(self, role: Role) -> Source | None:
        return next((source for source in self.sources if source.role == role), None)

    @classmethod
    def from_json(cls, value: object) -> Manifest:
        """The manifest of a JSON value.

        Raises Misfit for what is none, OtherVersion for what another diffpipe wrote and this one cannot read.
        """
        data = Fields(value)
        if data.integer("format") != FORMAT:
            raise OtherVersion(f"it is of format {data.integer('format')}, and this diffpipe reads {FORMAT}")
        try:
            return cls._read(data)
        except Misfit as error:
            writer = _writer(data)
            if writer == __version__ or isinstance(error, OtherVersion):
                raise
            raise OtherVersion(f"diffpipe {writer} wrote it ({error})") from error

    @classmethod
    def _read(cls, data: Fields) -> Manifest:
        versions = data.object("versions")
        found = cls(
            key=data.matching("key", KEY),
            config=Configuration.from_json(data.object("config")),
            sources=tuple(map(Source.from_json, data.objects("sources"))),
            components=tuple(map(Component.from_json, data.objects("components"))),
            flags=tuple(map(Flag.from_json, data.objects("flags"))),
            arguments=data.all_matching("arguments", IDENTIFIER),
            kind=data.choice("kind", OutputKind),
            fps=data.number("fps", None, 1 / FASTEST, FASTEST) if "fps" in data else None,
            quirks=data.all_matching("quirks", IDENTIFIER),
            versions={name: versions.text(name, most=LONGEST_VERSION) for name in versions.names()},
            own_class=data.truth("own_class", False),
            stored=StoredWeights.from_json(data.object("quantization")) if "quantization" in data else None,
            placement_reason=data.text("placement_reason", ""),
        )
        for name, own in (("provider", found.provider), ("type", found.type), ("pipeline", found.pipeline)):
            if data.text(name) != own:
                raise Misfit(f"{name} is not that of its configuration")
        for class_name in (found.pipeline, found.config.scheduler.name or "X"):
            if not IDENTIFIER.fullmatch(class_name):
                raise Misfit("config names a class that cannot be")
        for what, names in (
            ("flags", [flag.name for flag in found.flags]),
            ("components", [part.name for part in found.components]),
        ):
            if len(set(names)) < len(names):
                raise Misfit(f"{what} has a name twice")
        if len({source.role for source in found.sources}) < len(found.sources):
            raise Misfit("sources has a role twice")
        return found

    def to_json(self) -> JsonObject:
        """What `from_json` reads: the same value for the same manifest, whichever diffpipe wrote it."""
        reason: JsonObject = {"placement_reason": self.placement_reason} if self.placement_reason else {}
        stored: JsonObject = {"quantization": self.stored.to_json()} if self.stored else {}
        return {
            "format": FORMAT,
            "key": self.key,
            "provider": self.provider,
            "type": self.type,
            "pipeline": self.pipeline,
            "config": self.config.json,
            "sources": [source.to_json() for source in self.sources],
            "components": [component.to_json() for component in self.components],
            "own_class": self.own_class,
            "flags": [flag.to_json() for flag in self.flags],
            "arguments": list(self.arguments),
            "kind": self.kind,
            "fps": self.fps,
            "quirks": list(self.quirks),
            "versions": dict(self.versions),
            **reason,
            **stored,
        }

    def with_stored(
        self, stored: StoredWeights, components: tuple[Component, ...], sources: tuple[Source, ...]
    ) -> Manifest:
        """The manifest of a pipeline whose weights were stored: other sizes, and sources that are still needed."""
        return replace(self, stored=stored, components=components, sources=sources)


def _writer(data: Fields) -> str:
    """The version of diffpipe that wrote a manifest, this one's where it does not say."""
    versions = data.value.get("versions")
    found = versions.get("diffpipe") if isinstance(versions, dict) else None
    return found if isinstance(found, str) and VERSION.fullmatch(found) else __version__


@dataclass(frozen=True)
class Located:
    """Where what a pipeline loads lies, each checked: role -> folder or file, and the folder of its stored weights."""

    sources: Mapping[Role, Path]
    weights: Path | None = None
