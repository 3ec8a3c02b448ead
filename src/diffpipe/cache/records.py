"""The files of the cache as types: what an entry's summary, its record of sources and a set of weights say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ..core.canonical import JsonObject
from ..core.manifest import Manifest
from ..core.names import KEY
from ..core.parsing import Fields, Misfit
from ..core.source import Role, Source, file_of
from ..storage.digests import identity

Identity = tuple[int, ...]  # of a file: see storage.disk.identity
LATEST = 253_402_300_799  # seconds since the epoch: the last of the year 9999, which calendars end with
IMPORT = ("diffpipe", "pipelines", "import")  # how the command begins that brings a bundle
COMMANDS = (("diffpipe", "build"), IMPORT[:2])  # how those begin that are told to build an entry again


@dataclass(frozen=True)
class Summary:
    """What `pipelines list` shows of an entry. `bytes`: of its weights; `built`: seconds since the epoch.

    `model`: the base's label, with @ and the first digits of its commit. `weights` and `quantize`: the key of its
    stored weights and their format, "" without any. `imported`: whether it came by a bundle, and what its key does not
    prove was not confirmed yet.
    """

    provider: str
    type: str
    pipeline: str
    model: str
    dtype: str
    bytes: int
    built: int
    weights: str = ""
    quantize: str = ""
    imported: bool = False

    @classmethod
    def of(cls, manifest: Manifest, built: int) -> Summary:
        """The summary of a pipeline that was built at that time."""
        base, stored, how = manifest.sources[0], manifest.stored, manifest.config.quantization
        return cls(
            provider=manifest.provider,
            type=manifest.type,
            pipeline=manifest.pipeline,
            model=base.label + (f"@{base.commit[:7]}" if base.commit else ""),
            dtype=manifest.config.dtype,
            bytes=sum(component.bytes for component in manifest.components),
            built=built,
            weights=stored.key if stored else "",
            quantize=how.mode if how else "",
        )

    @classmethod
    def from_json(cls, data: Fields) -> Summary:
        """Raises Misfit for what is no summary."""
        return cls(
            provider=data.text("provider", most=200),
            type=data.text("type", most=200),
            pipeline=data.text("pipeline", "", most=500),
            model=data.text("model", most=5000),
            dtype=data.text("dtype", most=100),
            bytes=data.integer("bytes"),
            built=data.integer("built", most=LATEST),
            weights=data.matching("weights", KEY, ""),
            quantize=data.text("quantize", "", most=100),
            imported=data.truth("imported", False),
        )

    def to_json(self) -> JsonObject:
        stored: JsonObject = {"weights": self.weights, "quantize": self.quantize} if self.weights else {}
        return {
            "provider": self.provider,
            "type": self.type,
            "pipeline": self.pipeline,
            "model": self.model,
            "dtype": self.dtype,
            "bytes": self.bytes,
            "built": self.built,
            **stored,
            **({"imported": True} if self.imported else {}),
        }


@dataclass(frozen=True)
class SourcesRecord:
    """Where an entry's sources lie on this machine, each file's identity when it was last checked, and the command that
    builds it again."""

    locations: Mapping[Role, str]
    identities: Mapping[Role, Mapping[str, Identity]]
    command: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Fields) -> SourcesRecord:
        """Raises Misfit for what does not fit."""
        places, command = data.object("locations"), data.texts("command", ())
        if command and command[:2] not in COMMANDS:
            raise Misfit("command is none that builds a pipeline")
        return cls(
            locations={Role.parse(role): places.text(role, "") for role in places.names()},
            identities={
                Role.parse(role): {path: files.integers(path, most=10) for path in files.names()}
                for role, files in data.entries("identities")
            },
            command=command,
        )

    @property
    def imported(self) -> bool:
        """Whether it is of a bundle."""
        return self.command[:3] == IMPORT

    def to_json(self) -> JsonObject:
        seen: JsonObject = {
            str(role): {path: list(one) for path, one in files.items()} for role, files in self.identities.items()
        }
        places: JsonObject = {str(role): place for role, place in self.locations.items()}
        return {"locations": places, "identities": seen, "command": list(self.command)}

    def seen(self, role: Role, path: str) -> Identity | None:
        """A file's identity when it was last checked."""
        return self.identities.get(role, {}).get(path)

    def moved(self, place: Callable[[str], str]) -> SourcesRecord:
        """The record with each location as `place` gives it."""
        return replace(self, locations={role: place(at) for role, at in self.locations.items()})

    def with_seen(self, found: Mapping[Role, Mapping[str, Identity]]) -> SourcesRecord:
        """The record with other identities for some files."""
        merged = {role: {**self.identities.get(role, {}), **files} for role, files in found.items()}
        return replace(self, identities={**self.identities, **merged})


def record_sources(
    sources: tuple[Source, ...], locations: Mapping[Role, str], command: tuple[str, ...]
) -> SourcesRecord:
    """Where each source lies, each file's identity now, and how to build it again."""
    identities = {
        source.role: {path: tuple(identity(file_of(source, locations[source.role], path))) for path in source.files}
        for source in sources
    }
    return SourcesRecord(locations, identities, command)
