"""Whether an adapter is for a pipeline, and all of it, seen before any weight of the model is fetched."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...core.canonical import JsonValue
from ...core.components import kind_of
from ...core.errors import UsageError
from ..adapters.file import AdapterFile
from ..adapters.places import Names, Shapes, shapes_of, wanted_denoiser
from ..adapters.plan import Plan, in_short, plan, proven
from ..classes.hollow import hollow
from ..classes.lookup import pipeline_parts
from ..seams import diffusers_seam
from . import control_adapter
from .adapters import adaptable
from .adapters_beside import not_plain

if TYPE_CHECKING:
    from ..classes.lookup import ComponentClass, Pipeline

log = logging.getLogger("diffpipe.engine")

HINT = "choose a LoRA made for this model, or leave it out"
PARTIAL = "--lora-partial takes the rest; or choose a LoRA made for this model"
# The least share of an adapter's layers that must be in the model. Pruned models have half of the original's and take
# its LoRAs (SSD-1B those of SDXL). Models that share some names and widths differ in what they lack altogether: of a
# Flux LoRA 57% are in Qwen Image, which has no single blocks; of a Qwen LoRA a third are in Flux.
LEAST, LEAST_WITH_STRANGE_PARTS = 0.4, 0.75

LAST = ("up", "hada_w2_a", "lokr_w2", "lokr_w2_b")  # of a row's tensors one that is zero where nothing was trained

# A component's class and configuration (config.json, {} where that is not known); None for no such component.
Settings = Callable[[str], "tuple[ComponentClass, Mapping[str, JsonValue]] | None"]


class Fit(NamedTuple):
    """How many of an adapter's layers the pipeline takes, of how many."""

    fitting: int
    layers: int
    widened: bool = False  # by a Control LoRA, the denoiser's first layer


class Request(NamedTuple):
    """An adapter to check. `label`: what the user knows it by. `partial`: what does not fit may be left out.

    `denoiser`: which it is for, "" where that is not said. `quantized`: the components whose weights come
    quantized.
    """

    path: Path
    label: str
    pickle: bool = False
    partial: bool = False
    denoiser: str = ""
    quantized: Collection[str] = ()


class _UnknownError(Exception):
    """The settings of a component are not known before it is fetched."""


def check(pipeline: Pipeline, path: Path, label: str, settings: Settings, *, pickle: bool = False) -> Fit | None:
    """Compare an adapter's file with a pipeline's class, all of it: see `check_request`."""
    return check_request(pipeline, Request(path, label, pickle), settings, lambda _: None)


def check_request(pipeline: Pipeline, asked: Request, settings: Settings, say: Callable[[str], None]) -> Fit | None:
    """Compare an adapter's file with a pipeline's class, by the names and shapes of their layers.

    `say` gets what is left out where that was asked for, and which denoiser is meant where there are two. None where
    settings of a component are not known yet. Raises UsageError where the adapter is for another model, or where a part
    of it would not be applied and that was not asked for.
    """
    _check_kinds(pipeline, asked)
    file = AdapterFile(asked.path, pickle=asked.pickle)
    try:
        found = _Found.of(pipeline, asked, file, settings)
    except _UnknownError as error:
        log.debug("the LoRA %s is checked when it is loaded: %s", asked.label, error)
        return None
    found.check_that_it_does_something()
    found.check_control()
    found.check_share()
    found.check_all_is_taken()
    for note in found.notes():
        say(f"the LoRA {asked.label} {note}")
    return Fit(len(found.plan.places), found.plan.layers, bool(found.widened))


def _check_kinds(pipeline: Pipeline, asked: Request) -> None:
    if not hasattr(pipeline, "load_lora_weights"):
        raise UsageError(f"{pipeline.__name__} takes no LoRA", "build it without --lora")
    if asked.path.suffix == ".gguf":
        raise UsageError(
            f"{asked.label} is a GGUF file, which holds a model's weights", "a LoRA is a .safetensors file"
        )


class _Found(NamedTuple):
    """An adapter's file and what of it goes where."""

    pipeline: Pipeline
    asked: Request
    file: AdapterFile
    names: Names
    plan: Plan
    widened: int
    why: str

    @classmethod
    def of(cls, pipeline: Pipeline, asked: Request, file: AdapterFile, settings: Settings) -> _Found:
        """Raises _UnknownError where settings are needed that are not known."""
        components = [name for name in adaptable(pipeline, pipeline_parts(pipeline)[0]) if settings(name)]
        denoisers = [name for name in components if kind_of(name) == "denoiser"]
        if asked.denoiser and asked.denoiser not in denoisers:
            problem = f"--lora {asked.denoiser}=: {pipeline.__name__} has no denoiser of that name"
            raise UsageError(problem, f"it has {' and '.join(denoisers) or 'none'}")
        denoiser, why = wanted_denoiser(asked.denoiser, asked.path.name, denoisers, file.shapes)
        names = Names(components, lambda name: _shapes(name, settings), denoiser)
        widened = control_adapter.wider_input(file, names)
        if widened and control_adapter.takes_control(pipeline):
            names = Names(components, lambda name: _wide(_shapes(name, settings), name == denoiser, widened), denoiser)
        return cls(pipeline, asked, file, names, proven(plan(file, names, pipeline), file, names), widened, why)

    def check_that_it_does_something(self) -> None:
        """Training starts with one of two matrices at zero: so does the file of one that was not trained."""
        rows = [place.row for place in self.plan.places] + [misfit.place.row for misfit in self.plan.misfits]
        rows += self.plan.unknown
        last = [row.parts[part] for row in rows for part in LAST if part in row.parts]
        if last and len(last) == len(rows) and not any(bool(self.file.tensor(name).any()) for name in last):
            raise UsageError(f"the LoRA {self.asked.label} changes no layer: its weights are all zero", HINT)

    def check_control(self) -> None:
        """Raises UsageError for a Control LoRA where the pipeline takes no control picture."""
        label, control = self.asked.label, control_adapter.CONTROL
        alone = all(misfit.place.modules == (control_adapter.WIDENED,) for misfit in self.plan.misfits)
        if self.widened and alone and not control_adapter.takes_control(self.pipeline):
            raise UsageError(
                f"{label} is a Control LoRA, which needs a control picture; {self._class} takes none",
                f"build it for {control}: diffpipe build custom --class {control} --model SOURCE --lora {label}",
            )

    def check_share(self) -> None:
        """Raises UsageError where none of its layers is in the model, or too few, or where they have other widths.

        An adapter of the denoiser is foreign too where only its part for the text encoder fits: many families share
        CLIP.
        """
        found, layers, unknown = self.plan, self.plan.layers, self.plan.unknown
        denoising = [row for row in unknown if not self.names.is_for_text(row.module)]
        rest = [place.component for place in (*found.places, *(misfit.place for misfit in found.misfits))]
        idle = denoising and not any(kind_of(component) == "denoiser" for component in rest)
        strange = any(not self.names.knows_beginning(row.module) for row in denoising)
        enough = (LEAST_WITH_STRANGE_PARTS if strange else LEAST) * layers
        fitting = 0 if idle else len(found.places)
        wide = next((misfit.widths for misfit in found.misfits if misfit.widths), None)
        if wide and (not self.asked.partial or fitting < enough):
            raise self._other_model(f"it was made for width {wide[0]}, this {self._class} has {wide[1]} there")
        if fitting and fitting >= enough:
            return
        if not layers:
            raise UsageError(
                f"{self.asked.label} holds no layer that {self._class} takes: {in_short(found.strange)}", HINT
            )
        raise self._other_model(f"of its {layers} layers this {self._class} has {fitting or 'none'}")

    def check_all_is_taken(self) -> None:
        """Raises UsageError for what would be left out, unless that was asked for."""
        lost = not_plain(
            [place for place in self.plan.places if place.component in self.asked.quantized],
            diffusers_seam.lora_parts(self.pipeline),
        )
        if lost:
            raise UsageError(
                f"the LoRA {self.asked.label} cannot be applied to quantized weights: {in_short(lost)}",
                "take weights that are not quantized; --quantize makes them so after adapters were added",
            )
        if self.plan.left and not self.asked.partial:
            raise UsageError(f"the LoRA {self.asked.label} {self._in_part()}", PARTIAL)

    def notes(self) -> tuple[str, ...]:
        """What is left out, and what the file says twice."""
        said = [f"goes into {self.names.denoiser}{self.why}"] if self.why else []
        said += [f"is applied by the formula of its kind: {self._kinds()}"] if self._kinds() != "LoRA" else []
        said += [self._in_part()] if self.plan.left else []
        if doubled := self.plan.doubled:
            names = in_short(row.module for row in doubled)
            said.append(f"has layers twice, under two names; one of each is taken, not {names}")
        return tuple(said)

    def _kinds(self) -> str:
        """The kinds of its layers, the most frequent first."""
        counted = Counter(place.row.label for place in self.plan.places)
        if set(counted) <= {"LoRA", "differences"}:
            return "LoRA"
        return ", ".join(f"{kind} ({count} layers)" for kind, count in counted.most_common())

    def _in_part(self) -> str:
        fitting, layers = len(self.plan.places), self.plan.layers
        which = f"{fitting} of its {layers} layers are in this model; " if fitting < layers else ""
        return f"fits in part: {which}left out: {in_short(self.plan.left)}"

    def _other_model(self, reason: str) -> UsageError:
        return UsageError(f"the LoRA {self.asked.label} is for another model: {reason}", HINT)

    @property
    def _class(self) -> str:
        return self.pipeline.__name__


def _shapes(name: str, settings: Settings) -> Shapes:
    """The shapes of a component's parameters, from its settings."""
    known = settings(name)
    if known is None or not known[1]:
        raise _UnknownError(f"the settings of {name} are not known")
    try:
        return shapes_of(hollow(*known))
    except Exception as error:  # a class may want what its settings do not hold
        raise _UnknownError(f"{name}: {error}") from error


def _wide(shapes: Shapes, is_denoiser: bool, width: int) -> Shapes:
    """The shapes once a Control LoRA has widened the first layer."""
    name = f"{control_adapter.WIDENED}.weight"
    return {**shapes, name: (shapes[name][0], width)} if is_denoiser else shapes
