"""A family of models as rows of data. No logic beyond looking a row up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypedDict

from ..core.flag import Arguments, FlagKind


class FlagFields(TypedDict, total=False):
    """What a row may say of a flag: any field of Flag but its name."""

    kind: FlagKind
    many: bool
    scalar: bool
    required: bool
    default: object
    help: str
    minimum: float | None
    maximum: float | None
    multiple_of: int | None
    remainder: int
    most: int | None
    mode: str
    choices: tuple[str, ...]


@dataclass(frozen=True)
class PipelineType:
    """A row of the catalogue: one way to use a provider's models.

    `pipeline` is the diffusers class ("" for custom: the folder's own). `defaults` override the signature's; `flags`
    holds fields of Flag to override by argument name, e.g. {"width": {"multiple_of": 16}}, or None for an argument
    that gets no flag. `components`: where a part comes from that the model's own folder does not have (a ControlNet, a
    prior): a source as --component takes it. `fps`: frames a second of a video, where the call has no argument for
    them. `float32`: components that are loaded in that, whatever --dtype says (autoencoders of videos). `quirks`: what
    rows cannot say, as "module:function" by hook:

    - load(pipe): after loading, before the pipeline is placed on its device;
    - call(pipe, arguments) -> output: in place of pipe(**arguments).

    `unquantized`: linear layers that quantization leaves alone, as patterns COMPONENT.LAYER ("transformer.time_*").
    """

    name: str
    pipeline: str
    repositories: tuple[str, ...] = ()
    dtype: str = "bfloat16"
    defaults: Arguments = field(default_factory=dict)
    flags: Mapping[str, FlagFields | None] = field(default_factory=dict)
    components: Mapping[str, str] = field(default_factory=dict)
    fps: float | None = None
    float32: tuple[str, ...] = ()
    quirks: Mapping[str, str] = field(default_factory=dict)
    unquantized: tuple[str, ...] = ()
    legacy: bool = False
    notes: str = ""

    @property
    def title(self) -> str:
        """Its name, marked where diffusers keeps the class for old users only."""
        return self.name + " (legacy)" * self.legacy


@dataclass(frozen=True)
class Provider:
    """A family of models: its types are rows, the first one the default."""

    name: str
    title: str
    types: tuple[PipelineType, ...]
    legacy: bool = False
    homepage: str = ""
    vocabulary: str = ""

    def type(self, name: str | None) -> PipelineType | None:
        """The named type, the first one for None, None where there is no such type."""
        if name is None:
            return self.types[0]
        return next((row for row in self.types if row.name == name), None)
