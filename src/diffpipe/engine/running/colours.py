"""Colours of latents without a decoder: a linear map that is fitted to the pipeline's own encoder."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, NamedTuple

from .latents import Decoder, encode

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

# The fit: cells of latents per unknown of a colour, the side of the pictures that are encoded, and a ridge for channels
# that pictures do not use.
CELLS, SIDE, MOST_PICTURES = 24, 256, 32
RIDGE = 1e-3
LEAVES, SMALLEST = 1500, 6  # discs of a picture, and pixels of the radius of the smallest


class Colours(NamedTuple):
    """red, green, blue in -1..1 = `weights` (3, channels) * latents as the decoder takes them + `bias` (3,).

    `pixels`: how many a latent has a side.
    """

    weights: torch.Tensor
    bias: torch.Tensor
    pixels: int

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """(batch, channels, height, width) -> (batch, 3, height, width) in 0..1, float32 on the CPU."""
        import torch

        weights = self.weights.to(latents.device)
        coloured = torch.einsum("rc,bchw->brhw", weights, latents.float()).cpu()
        return ((coloured + self.bias.reshape(1, 3, 1, 1)) / 2 + 0.5).clamp(0, 1)


def fitted(decoder: Decoder, device: torch.device) -> Colours | None:
    """The linear map that gives best the colours of pictures from their latents, by least squares.

    The pictures are encoded by the pipeline's own encoder, so the map suits whatever it was trained on or replaced by.
    They are dead leaves: overlapping discs of any size and colour, whose statistics are those of photographs (Lee,
    Mumford and Huang 2001, "Occlusion models for natural images"). None where the encoder gives numbers that are not
    finite.
    """
    latents, colours, rows = _samples(decoder, device)
    if not latents.isfinite().all():
        return None
    mean, middle = latents.mean(1, keepdim=True), colours.mean(1, keepdim=True)
    weights = _ridge_regression(latents - mean, colours - middle)
    return Colours(weights.float(), (middle - weights @ mean).flatten().float(), SIDE // rows)


def _samples(decoder: Decoder, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Latents (channels, n) of pictures, the colours (3, n) in their places, and the rows of one picture's latents."""
    import torch

    latents: list[torch.Tensor] = []
    colours: list[torch.Tensor] = []
    count = 1
    while len(latents) < count:
        picture = _as_tensor(dead_leaves(len(latents)))
        encoded = encode(decoder, picture, device)
        rows, columns = encoded.shape[-2:]
        latents.append(encoded.permute(1, 0, 2, 3).reshape(decoder.channels, -1).double().cpu())
        small = torch.nn.functional.interpolate(picture, (rows, columns), mode="area")
        colours.append(small.permute(1, 0, 2, 3).reshape(3, -1).double())
        count = min(MOST_PICTURES, math.ceil(CELLS * (decoder.channels + 1) / (rows * columns)))
    return torch.cat(latents, dim=1), torch.cat(colours, dim=1), rows


def _ridge_regression(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The W that makes |y - W x|² + RIDGE |W|² least, in the scale of x (channels, n) and y (3, n), both centred."""
    import torch

    spread = x @ x.T
    ridge = RIDGE * spread.diagonal().mean() * torch.eye(len(x), dtype=torch.float64)
    solved: torch.Tensor = torch.linalg.solve(spread + ridge, x @ y.T)
    return solved.T


def dead_leaves(seed: int) -> Image:
    """A picture of discs whose radii have density r ** -3: the same for every scale."""
    from PIL import Image, ImageDraw

    draw = random.Random(seed)
    picture = Image.new("RGB", (SIDE, SIDE), "grey")
    canvas = ImageDraw.Draw(picture)
    for _ in range(LEAVES):
        radius = min(SMALLEST / math.sqrt(1 - draw.random()), SIDE / 3)
        x, y = (draw.uniform(-radius, SIDE + radius) for _ in range(2))
        colour = draw.randrange(256), draw.randrange(256), draw.randrange(256)
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return picture


def _as_tensor(picture: Image) -> torch.Tensor:
    """(1, 3, height, width) in -1..1."""
    import numpy as np
    import torch

    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
