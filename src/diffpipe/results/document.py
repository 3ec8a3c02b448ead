"""The document that a file carries: what it was made with, parsed into types with limits.

It may come from anywhere: what does not fit is refused here, and nothing behind asks what JSON holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..core.build_spec import Placement
from ..core.canonical import JsonObject, JsonValue, canonical_json
from ..core.configuration import Configuration, Section
from ..core.errors import DiffpipeError
from ..core.flag import MAX_SEED, OutputKind
from ..core.parsing import WRAPPED, Fields, Misfit, parse_json
from ..core.source import CHECKPOINTS, Role, Source, SourceKind, label_in

FORMAT = 1  # of the document: raise it when readers of older ones would misread newer ones
LARGEST = 1 << 24  # characters of a document; ours have thousands
WHOLE, MEASURED = ("width", "height", "frames", "rate", "channels"), ("fps", "duration")  # the numbers of a result
REQUIRED = (
    "format", "pipeline", "config", "sources", "components", "arguments", "media", "seed", "result", "versions",
    "device",
)  # fmt: skip


@dataclass(frozen=True)
class PipelineFacts:
    """The pipeline that made a file: the name and key it had, its row in the catalogue, and its class."""

    name: str
    key: str
    provider: str
    type: str
    class_name: str

    @classmethod
    def from_json(cls, fields: Fields) -> PipelineFacts:
        """Raises Misfit."""
        return cls(*(fields.text(name) for name in ("name", "key", "provider", "type", "class")))


@dataclass(frozen=True)
class SourceFacts:
    """A source as the document has it: `files` by path with the digest of each. `label`: what the user knew it by."""

    role: Role
    kind: SourceKind
    label: str
    files: Mapping[str, str]
    commit: str | None = None
    variant: str | None = None
    pipeline: str = ""

    @property
    def single(self) -> bool:
        """Whether it is one file that is loaded by itself: a checkpoint or an adapter."""
        return len(self.files) == 1 and next(iter(self.files)).endswith(CHECKPOINTS)

    @classmethod
    def of(cls, source: Source) -> SourceFacts:
        """What a document says of a pinned source."""
        files = {path: info.digest for path, info in source.files.items()}
        return cls(source.role, source.kind, source.label, files, source.commit, source.variant, source.pipeline)

    def to_json(self) -> JsonObject:
        given = {"commit": self.commit, "variant": self.variant, "pipeline": self.pipeline}
        return {
            "role": str(self.role),
            "kind": self.kind,
            "label": self.label,
            **{name: value for name, value in given.items() if value},
            "files": dict(self.files),
        }

    @classmethod
    def from_json(cls, fields: Fields) -> SourceFacts:
        """Raises Misfit."""
        kind: SourceKind = fields.choice("kind", SourceKind)
        return cls(
            fields.parsed("role", Role.parse),
            kind,
            label_in(fields, kind),
            _texts(fields, "files"),
            fields.maybe_text("commit"),
            fields.maybe_text("variant"),
            fields.text("pipeline", ""),
        )


@dataclass(frozen=True)
class Recipe:
    """What a pipeline is built again from: the name and key it had, its configuration, and its sources.

    `sections`: what decides the weights of each source. `sources`: what is said of them; those of weights that were
    stored anew may be missing.
    """

    name: str
    key: str
    config: Configuration
    sections: Mapping[Role, Section]
    sources: Mapping[Role, SourceFacts]

    @classmethod
    def of(cls, name: str, key: str, config: Configuration, sources: Iterable[SourceFacts]) -> Recipe:
        """Raises Misfit for a configuration with sections that are none."""
        sections = {role: Section.from_json(Fields(own, f"config.{role}")) for role, own in config.sections.items()}
        return cls(name, key, config, sections, {source.role: source for source in sources})


@dataclass(frozen=True)
class InputFile:
    """An input file: its name, without the folders it lay in, and the digest of its content."""

    file: str
    digest: str

    @classmethod
    def from_json(cls, fields: Fields) -> InputFile:
        """Raises Misfit."""
        return cls(fields.text("file"), fields.text("digest"))


@dataclass(frozen=True)
class ResultFacts:
    """A file among those of its call: number `index`, from 0, `of` so many. `sizes`: width, height, frames, fps ..."""

    kind: OutputKind
    format: str
    index: int
    of: int
    sizes: JsonObject

    @classmethod
    def from_json(cls, fields: Fields) -> ResultFacts:
        """Raises Misfit."""
        kind: OutputKind = fields.choice("kind", OutputKind)
        for name in WHOLE:
            fields.maybe_integer(name)
        for name in MEASURED:
            fields.maybe_number(name)
        sizes = {name: value for name, value in fields.value.items() if name not in ("kind", "format", "index", "of")}
        return cls(kind, fields.text("format"), fields.integer("index"), fields.integer("of"), sizes)


@dataclass(frozen=True)
class Document:
    """All that makes a file. `json` is what it says to the letter, parts included that this version does not know.

    `media`: the input files of each argument, a list where it took one. `fps`: frames a second that were asked for.
    `fit`: whether pictures were cropped to fit. `batch_size`: items a call at most. `device`: its kind ("cpu: AVX2").
    `stepped_down`: how the pipeline was kept for an item that ran out of memory as it was built. `warnings`: what was
    said of it while it was made.
    """

    json: JsonObject
    pipeline: PipelineFacts
    recipe: Recipe
    components: Mapping[str, str]
    arguments: JsonObject
    media: Mapping[str, InputFile | list[InputFile]]
    seed: int
    fps: float | None
    fit: bool
    batch_size: int
    result: ResultFacts
    versions: Mapping[str, str]
    device: str
    stepped_down: Placement | None
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, value: JsonValue) -> Document:
        """Raises Misfit for what is no document."""
        fields = Fields(value)
        for name in REQUIRED:
            if name not in fields:
                raise Misfit(f"{name} is missing")
        fields.integer("format", most=FORMAT)
        pipeline = PipelineFacts.from_json(fields.object("pipeline"))
        config = Configuration.from_json(fields.object("config"))
        sources = map(SourceFacts.from_json, fields.objects("sources"))
        return cls(
            json=fields.value,
            pipeline=pipeline,
            recipe=Recipe.of(pipeline.name, pipeline.key, config, sources),
            components=_texts(fields, "components"),
            arguments=fields.object("arguments").value,
            media=_media(fields.object("media")),
            seed=fields.integer("seed", most=MAX_SEED),
            fps=fields.maybe_number("fps"),
            fit=fields.truth("fit", False),
            batch_size=fields.integer("batch_size", 1, least=1),
            result=ResultFacts.from_json(fields.object("result")),
            versions=_texts(fields, "versions"),
            device=fields.text("device"),
            stepped_down=Placement.from_json(fields.object("stepped_down")) if "stepped_down" in fields else None,
            warnings=fields.texts("warnings", ()),
        )


def _texts(fields: Fields, name: str) -> dict[str, str]:
    inside = fields.object(name)
    return {key: inside.text(key) for key in inside.names()}


def _media(fields: Fields) -> dict[str, InputFile | list[InputFile]]:
    return {
        name: [InputFile.from_json(one) for one in fields.objects(name)]
        if isinstance(fields.value[name], list)
        else InputFile.from_json(fields.object(name))
        for name in fields.names()
    }


def written(value: JsonObject) -> str:
    """A document as text that every format holds: what no XML may hold is escaped as JSON does."""
    text = canonical_json(value)
    return re.sub("[\ud800-\udfff\ufffe\uffff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def parsed(text: str) -> Document:
    """The document that `written` gave.

    Raises DiffpipeError for text that is none, or of a newer version.
    """
    try:
        value = parse_json(text, LARGEST, deepest=WRAPPED)
        if isinstance(value, dict) and isinstance(form := value.get("format"), int) and form > FORMAT:
            raise DiffpipeError("its settings were written by a newer diffpipe", "update diffpipe")
        return Document.from_json(value)
    except Misfit as error:
        raise damaged() from error


def damaged() -> DiffpipeError:
    """The error for a document that says what no diffpipe wrote."""
    return DiffpipeError("its settings are damaged", "use an untouched copy of the file")
