"""What a picture or video looks like while it is made: from the latents of a step, with no part in the result."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from ...core.flag import Arguments
from ..seams import diffusers_seam
from . import latents as latent_space
from .colours import Colours, fitted
from .finite import unwatched

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline, SchedulerMixin
    from PIL.Image import Image

log = logging.getLogger("diffpipe.preview")

PARTS = 5  # previews of a picture unless asked for otherwise
SHOWN = 4  # of the results of one call, side by side
LARGEST = 512  # pixels of a preview's longer side
# Samplers that add fresh noise at each step: two steps do not show where they lead.
STOCHASTIC = ("Ancestral", "SDE", "LCM", "TCD", "DDPM")


@dataclass
class Preview:
    """How previews of a run are made: every so many steps (None: about five times), by the full decoder if `decode`,
    each given to `show`."""

    show: Callable[[Image], None]
    every: int | None = None
    decode: bool = False
    _maps: dict[int, Colours | None] = field(default_factory=dict)
    _excused: bool = False

    def colours(self, pipe: DiffusionPipeline, decoder: latent_space.Decoder) -> Colours | None:
        """The map from latents to colours of a pipeline's decoder, fitted when it is asked for first."""
        if id(decoder.vae) not in self._maps:
            self._maps[id(decoder.vae)] = fitted(decoder, diffusers_seam.device_of(pipe))
            if diffusers_seam.is_offloaded_by_model(pipe):
                pipe.maybe_free_model_hooks()  # the decoder would stay on the device else
        return self._maps[id(decoder.vae)]

    def excuse(self, reason: str) -> None:
        """Say once why there is no preview."""
        if not self._excused:
            log.warning("no preview: %s", reason)
            self._excused = True


def picture_of(data: bytes) -> Image:
    """The picture in a PNG that another process sent."""
    from PIL import Image

    return Image.open(io.BytesIO(data), formats=["PNG"])


class Observer:
    """Shows previews of one call as its steps are reported. It changes nothing; where it fails, it warns once, and the
    call goes on.

    `arguments`: those of the call, media read.
    """

    def __init__(self, pipe: DiffusionPipeline, arguments: Arguments, preview: Preview) -> None:
        self.pipe, self.preview = pipe, preview
        self.before: torch.Tensor | None = None
        self.artist: _Artist | None = None
        try:
            self.artist = _artist(pipe, arguments, preview)
        except Exception as error:  # a decoder of a kind that is not known
            preview.excuse(f"{type(error).__name__}: {error}")

    def step(self, done: int, total: int, latents: torch.Tensor | None) -> None:
        """After `done` of `total` steps; `latents` are None where the pipeline does not show them."""
        if self.artist is None:
            return
        every = self.preview.every or max(1, total // PARTS)
        try:
            if latents is None:
                self.preview.excuse(f"{type(self.pipe).__name__} does not show its latents")
            elif done < total and done % every == 0:
                self.preview.show(self.artist.draw(denoised(self.pipe.scheduler, self.before, latents)))
        except Exception as error:
            self.preview.excuse(f"{type(error).__name__}: {error}")
        self.before = latents


class _Artist(NamedTuple):
    """Draws the latents of one call: by a map to `colours`, or by the decoder where that is None."""

    pipe: DiffusionPipeline
    arguments: Arguments
    decoder: latent_space.Decoder
    colours: Colours | None

    def draw(self, latents: torch.Tensor) -> Image:
        """The results of the call side by side. Raises ValueError for latents that are not understood."""
        whole = latent_space.unpacked(latents, self.decoder, self.arguments, self.pipe)
        if whole is None:
            raise ValueError(f"latents of shape {tuple(latents.shape)} are not understood")
        first = whole[:SHOWN, :, 0]
        if not first.isfinite().all():
            raise ValueError("the latents are not finite")
        if self.colours is None:
            with unwatched():
                return _picture(latent_space.decode(self.decoder, first), 1)
        return _picture(self.colours(first), self.colours.pixels)


def _artist(pipe: DiffusionPipeline, arguments: Arguments, preview: Preview) -> _Artist:
    """What draws a call's latents. Raises ValueError where nothing can."""
    decoder = latent_space.decoder_of(pipe)
    if decoder is None:
        raise ValueError("the pipeline has no decoder of a known kind")
    colours = None if preview.decode else preview.colours(pipe, decoder)
    if colours is None and not preview.decode:
        raise ValueError("its encoder makes numbers that are not finite; --preview-decode needs none")
    return _Artist(pipe, arguments, decoder, colours)


class Level(NamedTuple):
    """How much of a sample is the clean one and how much is noise: sample = signal * clean + noise * noise of unit
    variance."""

    signal: float
    noise: float


def denoised(scheduler: SchedulerMixin, before: torch.Tensor | None, after: torch.Tensor) -> torch.Tensor:
    """Where the last step leads: the latents without their noise, from those before and after it.

    A sample is x = a * x0 + s * noise, with (a, s) known for each time. Between two samples of one deterministic step,
    x0 and the noise are the same, so x0 = (s1 * x2 - s2 * x1) / (s1 * a2 - s2 * a1). Without a sample before, or where
    the sampler adds noise of its own, the latents after, at the scale of clean ones.
    """
    levels = _levels(scheduler)
    if levels is None:
        return after
    (a1, s1), (a2, s2) = levels
    if before is None or before.shape != after.shape or any(name in type(scheduler).__name__ for name in STOCHASTIC):
        return after / math.hypot(a2, s2)
    slope = s1 * a2 - s2 * a1
    return after if abs(slope) < 1e-6 else (s1 * after.float() - s2 * before.float()) / slope


def _levels(scheduler: SchedulerMixin) -> tuple[Level, Level] | None:
    """Those before and after a scheduler's last step; None where it does not show them."""
    step, sigmas = getattr(scheduler, "step_index", None), getattr(scheduler, "sigmas", None)
    if step is None or sigmas is None or not 0 < step < len(sigmas):
        return None
    before, after = (_level(scheduler, sigmas[at]) for at in (step - 1, step))
    return (before, after) if before and after else None


def _level(scheduler: SchedulerMixin, sigma: torch.Tensor) -> Level | None:
    """The level of noise that a scheduler means by a sigma; None for one of a kind that is not known."""
    name = type(scheduler).__name__
    if name.startswith("FlowMatch") or scheduler.config.get("use_flow_sigmas"):
        return Level(1 - float(sigma), float(sigma))
    if unit := diffusers_seam.alpha_and_sigma(scheduler, sigma):  # the multistep solvers keep samples at unit variance
        return Level(*unit)
    return Level(1.0, float(sigma)) if name.startswith(("Euler", "LMS")) else None


def _picture(values: torch.Tensor, factor: int) -> Image:
    """Pictures (n, 3, height, width) in 0..1 side by side, enlarged by `factor` as far as LARGEST allows.

    Raises ValueError for numbers that are not finite.
    """
    import numpy as np
    from PIL import Image

    if not values.isfinite().all():
        raise ValueError("its decoder made numbers that are not finite")

    row = np.concatenate([value.permute(1, 2, 0).numpy() for value in values], axis=1)
    picture = Image.fromarray((row * 255).round().astype(np.uint8))
    scale = min(factor, LARGEST / max(picture.size))
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.BICUBIC)
