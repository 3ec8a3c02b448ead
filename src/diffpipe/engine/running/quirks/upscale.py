"""Enlarging a picture: an image-to-image pipeline redraws it tile by tile, blended where the tiles overlap."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from ....core.flag import Arguments
from ...seams import diffusers_seam
from .area import SIDES, size_step

if TYPE_CHECKING:
    import numpy as np
    import torch
    from diffusers import DiffusionPipeline
    from PIL.Image import Image

P = ParamSpec("P")
T = TypeVar("T")
Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels

OWN = frozenset({"image", "generator", "scale", "resample", "tile_size", "tile_overlap"})


@dataclass(frozen=True)
class Tiles:
    """How a picture of `size` pixels lies under tiles of `side` pixels that overlap by `overlap`."""

    size: tuple[int, int]
    side: int
    overlap: int

    def boxes(self) -> list[Box]:
        """Every tile, row by row; a side of the picture that is shorter than a tile is one tile."""
        width, height = self.size
        return [
            (left, top, min(left + self.side, width), min(top + self.side, height))
            for top in tile_starts(height, self.side, self.overlap)
            for left in tile_starts(width, self.side, self.overlap)
        ]

    def blend(self, pictures: Sequence[Image]) -> Image:
        """One picture from one a box: a weighted mean, the weights falling off towards inner edges over the overlap, so
        that no seam shows."""
        import numpy as np
        from PIL import Image

        width, height = self.size
        total, weights = np.zeros((height, width, 3)), np.zeros((height, width, 1))
        for box, picture in zip(self.boxes(), pictures, strict=True):
            left, top, right, bottom = box
            weight = self._weights(box)[..., None]
            total[top:bottom, left:right] += weight * np.asarray(picture.convert("RGB"), dtype=float)
            weights[top:bottom, left:right] += weight
        return Image.fromarray((total / weights).round().astype(np.uint8))

    def _weights(self, box: Box) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        """(height, width) of a box: 1 inside, less towards the edges that other tiles overlap."""
        left, top, right, bottom = box
        width, height = self.size
        across = ramp(right - left, self.overlap if left > 0 else 0, self.overlap if right < width else 0)
        down = ramp(bottom - top, self.overlap if top > 0 else 0, self.overlap if bottom < height else 0)
        return down[:, None] * across[None, :]


def call_upscale(pipe: DiffusionPipeline, arguments: Arguments) -> SimpleNamespace:
    """Enlarge the picture, then let an image-to-image pipeline redraw it tile by tile, blended where tiles overlap.

    `arguments` are those of the pipeline but for width and height, and `scale`, `resample` (the name of a filter of
    Pillow's), `tile_size` and `tile_overlap` in pixels. The result has exactly round(side * scale) pixels to a side.
    Every tile has a generator of its own, seeded by the run's.
    """
    large = enlarged(arguments["image"], arguments["scale"], arguments["resample"])
    padded = pad(large, size_step(pipe), arguments["tile_size"])
    tiles = Tiles(padded.size, arguments["tile_size"], arguments["tile_overlap"])
    pieces = [padded.crop(box) for box in tiles.boxes()]
    call = {name: value for name, value in arguments.items() if name not in OWN}
    if callback := call.get("callback_on_step_end"):
        call["callback_on_step_end"] = steps_of_all(callback, len(pieces))
    redrawn = [_redraw(pipe, piece, call, arguments["generator"]) for piece in pieces]
    whole = [tiles.blend(pictures) for pictures in zip(*redrawn, strict=True)]
    return SimpleNamespace(images=[picture.crop((0, 0, *large.size)) for picture in whole])


def _redraw(pipe: DiffusionPipeline, piece: Image, call: Arguments, generator: torch.Generator) -> list[Image]:
    """What the pipeline makes of a tile, at the tile's size where the pipeline takes one."""
    import torch

    seed = int(torch.randint(2**62, (), generator=generator))
    parameters = inspect.signature(type(pipe).__call__).parameters
    size = dict(zip(SIDES, piece.size, strict=True)) if set(SIDES) <= parameters.keys() else {}
    made = pipe(**call, **size, image=piece, generator=torch.Generator("cpu").manual_seed(seed))
    return list(made.images)


def steps_of_all(
    callback: Callable[Concatenate[DiffusionPipeline, int, P], T], calls: int
) -> Callable[Concatenate[DiffusionPipeline, int, P], T]:
    """The step callback of one of several calls, for which the steps of all together are the pipeline's own."""

    def counting(pipe: DiffusionPipeline, index: int, /, *args: P.args, **kwargs: P.kwargs) -> T:
        if index == 0:  # each call sets it anew
            diffusers_seam.set_step_count(pipe, calls * diffusers_seam.step_count(pipe))
        return callback(pipe, index, *args, **kwargs)

    return counting


def enlarged(image: Image, scale: float, resample: str) -> Image:
    """The picture `scale` times as large, by the filter of Pillow's that is named so."""
    from PIL import Image

    size = round(image.width * scale), round(image.height * scale)
    return image.resize(size, Image.Resampling[resample.upper()])


def pad(image: Image, step: int, tile: int) -> Image:
    """The picture with its last rows and columns repeated, so that every side below `tile` is a multiple of `step`."""
    import numpy as np
    from PIL import Image

    right, bottom = (-side % step if side < tile else 0 for side in image.size)
    return Image.fromarray(np.pad(np.asarray(image), ((0, bottom), (0, right), (0, 0)), mode="edge"))


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along a side: each overlaps the one before by `overlap`, the last one by as much as it must."""
    return [*range(0, max(length - tile, 0), tile - overlap), max(length - tile, 0)]


def ramp(length: int, rising: int, falling: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Weights in (0, 1] along a side: up from its start over `rising` pixels, down to its end over `falling`."""
    import numpy as np

    place = np.arange(length)
    up, down = (place + 1) / (rising + 1), (length - place) / (falling + 1)
    return np.minimum(np.minimum(up, down), 1.0)
