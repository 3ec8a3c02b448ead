"""Layouts that diffusers knows and our tables do not: its own conversion is asked what it calls their modules.

It converts a probe, whose tensors have the file's names and hold numbers that say which layer and row each is: so names
are taken from it, and no values.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .formulas import shape_of
from .places import Place
from .rows import Row, part_of

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

log = logging.getLogger("diffpipe.engine")

# How trainers call the matrices of a rank: some conversions know one pair of names only.
STYLES = (("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight"))
Sizes = Mapping[str, tuple[int, ...]]  # of a file's tensors


def places(pipeline: type[DiffusionPipeline], unknown: Sequence[Row], sizes: Sizes) -> dict[str, Place]:
    """Where diffusers puts rows of a file that we know no place for: the file's module -> place."""
    heights = {row.module: shape[:2] for row in unknown if (shape := _shape(row, sizes))}
    named = {row.module: row for row in unknown if row.module in heights}
    found: dict[str, Place] = {}
    for style in STYLES:
        rest = [row for module, row in named.items() if module not in found]
        if rest and not found:
            found = _asked(pipeline, rest, heights, style)
    return found


def _shape(row: Row, sizes: Sizes) -> tuple[int, ...] | None:
    shape = shape_of(row.kind, {part: sizes[name] for part, name in row.parts.items()})
    return shape if shape and len(shape) > 1 else None


def _asked(
    pipeline: type[DiffusionPipeline], rows: Sequence[Row], heights: Sizes, style: tuple[str, str]
) -> dict[str, Place]:
    """What the conversion of a pipeline's class makes of a probe; {} where it does not know the names."""
    probe: dict[str, torch.Tensor] = {}
    for number, row in enumerate(rows, 1):
        probe |= _probe(_spelled(row), number, heights[row.module], style)
    try:
        with _quiet():
            made = pipeline.lora_state_dict(probe)
    except Exception as error:  # conversions raise whatever a strange name leads to
        log.debug("%s does not know the adapter's names: %s", pipeline.__name__, error)
        return {}
    converted: Mapping[str, torch.Tensor] = made[0] if isinstance(made, tuple) else made
    return _read(converted, rows, heights)


@contextmanager
def _quiet() -> Iterator[None]:
    """What diffusers says of a probe is nothing that the user could do anything about."""
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _spelled(row: Row) -> str:
    """A row's module with what PEFT puts before it, by which conversions tell layouts apart."""
    name = next(iter(row.parts.values()))
    return name[: name.index(row.module)] + row.module if row.module in name else row.module


def _probe(module: str, number: int, shape: tuple[int, ...], style: tuple[str, str]) -> dict[str, torch.Tensor]:
    """A LoRA of rank 1, strength 1: the first matrix holds the layer's number, the second the rows' own."""
    import torch

    down, up = torch.full((1, shape[1]), float(number)), torch.arange(float(shape[0])).reshape(-1, 1)
    alpha = {f"{module}.alpha": torch.tensor(1.0)} if "down" in style[0] else {}
    return {f"{module}.{style[0]}": down, f"{module}.{style[1]}": up, **alpha}


def _read(converted: Mapping[str, torch.Tensor], rows: Sequence[Row], heights: Sizes) -> dict[str, Place]:
    """The places that a converted probe speaks of, as far as its numbers are all there."""
    parts: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, tensor in converted.items():
        if known := part_of(name):
            parts[known[0]][known[1]] = tensor
    pieces: dict[int, list[tuple[list[int], str]]] = defaultdict(list)
    for name, pair in parts.items():
        if {"down", "up"} <= set(pair):
            pieces[int(pair["down"].flatten()[0])].append((pair["up"].flatten().int().tolist(), name))
    found = {}
    for number, row in enumerate(rows, 1):
        if place := _place(row, sorted(pieces[number]), heights[row.module][0]):
            found[row.module] = place
    return found


def _place(row: Row, pieces: Sequence[tuple[list[int], str]], height: int) -> Place | None:
    """A row's place: of modules that together have its rows, in order or with the halves of one the other way round."""
    order = [index for indices, _ in pieces for index in indices]
    components = {name.partition(".")[0] for _, name in pieces}
    straight = list(range(height))
    swapped = straight[height // 2 :] + straight[: height // 2]
    if len(components) != 1 or order not in (straight, swapped):
        return None
    return Place(row, components.pop(), tuple(name.partition(".")[2] for _, name in pieces), order != straight)
