"""What of an adapter's file goes where in a pipeline, and what of it goes nowhere: by names and shapes alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from . import rows, upstream
from .file import AdapterFile
from .formulas import shape_of, weight_change
from .places import Names, Place, Shapes
from .rows import Row

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Widths = tuple[int, int]  # what a layer of the adapter takes in, and what the model's layer of that name does
BIASES = ("diff_b", "up_bias")


@dataclass(frozen=True)
class Misfit:
    """A row whose layer the pipeline has in another shape; `widths` where the layer takes in something else."""

    place: Place
    widths: Widths | None


@dataclass(frozen=True)
class Plan:
    """What is applied (`places`), and what is not.

    `unknown`: rows for modules that the pipeline has not. `misfits`: for those it has in other shapes. `strange`:
    tensors that no formula takes. `doubled`: rows for layers that another row of the file is for; files that name a
    layer both in diffusers' way and in its makers' say the same twice.
    """

    places: tuple[Place, ...]
    unknown: tuple[Row, ...]
    misfits: tuple[Misfit, ...]
    strange: tuple[str, ...]
    doubled: tuple[Row, ...]

    @property
    def layers(self) -> int:
        """How many layers the file is for."""
        return len(self.places) + len(self.unknown) + len(self.misfits)

    @property
    def left(self) -> tuple[str, ...]:
        """The layers and tensors that are not applied, as the file names them."""
        return (
            *(row.module for row in self.unknown),
            *(misfit.place.row.module for misfit in self.misfits),
            *self.strange,
        )


def plan(file: AdapterFile, names: Names, pipeline: type[DiffusionPipeline]) -> Plan:
    """Where the rows of a file go in a pipeline of a class."""
    read = rows.read(file.shapes)
    placed = {row.module: place for row in read.rows if (place := names.place(row))}
    rest = [row for row in read.rows if row.module not in placed]
    if rest:
        found = upstream.places(pipeline, rest, file.shapes)
        placed |= {module: place for module, place in found.items() if names.has(place)}
    unknown = tuple(row for row in read.rows if row.module not in placed)
    once, doubled = _once([placed[row.module] for row in read.rows if row.module in placed])
    strange, misfits, places = list(read.strange), [], []
    for place in once:
        fitting, without = _fitted(place, file.shapes, names.shapes(place.component))
        strange += without
        if isinstance(fitting, Misfit):
            misfits.append(fitting)
        else:
            places.append(fitting)
    return Plan(tuple(places), unknown, tuple(misfits), tuple(strange), doubled)


def proven(planned: Plan, file: AdapterFile, names: Names) -> Plan:
    """A plan of whose rows each was tried by its formula, on tensors without data: what it cannot do is a misfit."""
    works = [_works(place, file, names.shapes(place.component)) for place in planned.places]
    good = tuple(place for place, fine in zip(planned.places, works, strict=True) if fine)
    bad = (Misfit(place, None) for place, fine in zip(planned.places, works, strict=True) if not fine)
    return replace(planned, places=good, misfits=(*planned.misfits, *bad))


def _works(place: Place, file: AdapterFile, model: Shapes) -> bool:
    """Whether a row's formula makes a change of the shape of its layers."""
    import torch

    parts = dict(place.row.parts)
    alpha, side = parts.pop("alpha", None), parts.pop("on_input", None)
    if any(math.prod(file.shapes[name]) != 1 for name in (alpha, side) if name):
        return False
    tensors = {part: torch.empty(file.shapes[name], device="meta") for part, name in parts.items()}
    if side:
        tensors["on_input"] = file.tensor(side)
    found = [model[name] for name in place.parameters(model) or ()]
    whole = torch.empty((sum(shape[0] for shape in found), *found[0][1:]) if found else (0,), device="meta")
    try:
        change = weight_change(place.row.kind, tensors, 1.0, None, lambda: whole)
    except (RuntimeError, IndexError, ValueError):  # of shapes that do not go together
        return False
    return change is None or (change.numel() == whole.numel() and change.shape[0] in (len(whole), whole.numel()))


def _once(places: Sequence[Place]) -> tuple[list[Place], tuple[Row, ...]]:
    """Places for layers that none of the others is for, and the rows of those others. Of two, the narrower is taken."""
    taken: set[tuple[str, str]] = set()
    chosen: set[int] = set()
    for index, place in sorted(enumerate(places), key=lambda one: len(one[1].modules)):
        layers = {(place.component, module) for module in place.modules}
        if not layers & taken:
            taken |= layers
            chosen.add(index)
    kept = [place for index, place in enumerate(places) if index in chosen]
    return kept, tuple(place.row for index, place in enumerate(places) if index not in chosen)


def _fitted(place: Place, shapes: Shapes, model: Shapes) -> tuple[Place | Misfit, list[str]]:
    """A place with the parts that its layers can take, and the tensors that they cannot; a misfit where none fits."""
    parts = dict(place.row.parts)
    biases = [part for part in BIASES if part in parts]
    without = [parts.pop(part) for part in biases if not _bias_fits(place, shapes[parts[part]], model)]
    place = replace(place, row=replace(place.row, parts=parts))
    if place.row.kind == "diff" and "diff" not in parts:
        return (place, without) if "diff_b" in parts else (Misfit(place, None), [])
    found = place.parameters(model)
    if found is None:
        return Misfit(place, None), without
    have = [model[name] for name in found]
    mine = {part: shapes[name] for part, name in parts.items()}
    try:
        fits = _weight_fits(place.row, mine, have)
        return (place if fits else Misfit(place, _widths(place.row, mine, have))), without
    except (IndexError, KeyError):  # of tensors with fewer axes than their formula takes
        return Misfit(place, None), without


def _bias_fits(place: Place, shape: tuple[int, ...], model: Shapes) -> bool:
    found = place.parameters(model, "bias")
    return found is not None and math.prod(shape) == sum(math.prod(model[name]) for name in found)


def _weight_fits(row: Row, mine: Mapping[str, tuple[int, ...]], have: Sequence[tuple[int, ...]]) -> bool:
    outs, ins = sum(shape[0] for shape in have), math.prod(have[0][1:])
    if row.kind in ("ia3", "ia3 of lycoris"):
        return math.prod(mine["ia3_l" if row.kind == "ia3" else "weight"]) in (outs, have[0][1] if ins > 1 else 1)
    made = shape_of(row.kind, mine)
    if made is None or any(math.prod(shape[1:]) != ins for shape in have):
        return False
    if row.kind in ("diff", "weights"):
        return math.prod(made) == outs * ins
    if not _magnitude_fits(mine, outs, have[0]):
        return False
    return len(have[0]) > 1 and made[0] == outs and math.prod(made[1:]) == ins


def _magnitude_fits(mine: Mapping[str, tuple[int, ...]], outs: int, have: tuple[int, ...]) -> bool:
    magnitude = mine.get("magnitude") or mine.get("dora_scale")
    return magnitude is None or math.prod(magnitude) in (outs, have[1])


def _widths(row: Row, mine: Mapping[str, tuple[int, ...]], have: Sequence[tuple[int, ...]]) -> Widths | None:
    """What a row's layer and the model's take in, where that differs."""
    made = shape_of(row.kind, mine) if row.kind in ("lora", "loha", "lokr") else None
    if made is None or len(have[0]) < 2 or made[1] == have[0][1]:
        return None
    return made[1], have[0][1]


def in_short(names: Iterable[str], most: int = 3) -> str:
    """The first few of names, and how many there are besides."""
    found = list(names)
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more
