"""What a picture or video looks like while it is made: from the latents of a step, with no part in the result."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import latents as latent_space

log = logging.getLogger("diffpipe.engine")

Observer = Callable[[int, int, Any], None]  # steps done, steps in all, latents (None where the pipeline tells none)

PARTS = 5  # previews of a picture unless told otherwise
SHOWN = 4  # of the results of one call, side by side
LARGEST = 512  # pixels of a preview's longer side
# Samplers that add fresh noise at each step: where two steps lead cannot be told from them.
STOCHASTIC = ("Ancestral", "SDE", "LCM", "TCD", "DDPM")


@dataclass
class Preview:
    """How previews of a run are made: every so many steps (None: about five times), by the full decoder if `decode`,
    each given to `show` as a PIL picture."""

    show: Callable[[Any], None]
    every: int | None = None
    decode: bool = False
    _maps: dict[int, latent_space.Colours | None] = field(default_factory=dict)
    _told: bool = False

    def colours(self, pipe: Any, decoder: latent_space.Decoder) -> latent_space.Colours | None:
        """The map from latents to colours of a pipeline's decoder, fitted when it is asked for first."""
        if id(decoder.vae) not in self._maps:
            self._maps[id(decoder.vae)] = latent_space.fitted(decoder, pipe._execution_device)
            if getattr(pipe, "_all_hooks", None):
                pipe.maybe_free_model_hooks()  # the decoder would stay on the device else
        return self._maps[id(decoder.vae)]

    def excuse(self, reason: str) -> None:
        """Tell once why there is no preview."""
        if not self._told:
            log.warning("no preview: %s", reason)
            self._told = True


def picture_of(data: bytes) -> Any:
    """The picture in a PNG that another process sent."""
    import io

    from PIL import Image

    return Image.open(io.BytesIO(data), formats=["PNG"])


def observer(pipe: Any, arguments: Mapping[str, Any], preview: Preview) -> Observer:
    """What a callback tells each step to. It changes nothing; where it fails, it warns once, and the call goes on.

    `arguments`: those of the call, media read.
    """
    try:
        drawn = _drawer(pipe, arguments, preview)
    except Exception as error:  # a decoder of a kind that is not known
        preview.excuse(f"{type(error).__name__}: {error}")
        return lambda done, total, latents: None
    before: list[Any] = [None]

    def observe(done: int, total: int, latents: Any) -> None:
        every = preview.every or max(1, total // PARTS)
        try:
            if latents is None:
                preview.excuse(f"{type(pipe).__name__} does not show its latents")
            elif done < total and done % every == 0:
                preview.show(drawn(denoised(pipe.scheduler, before[0], latents)))
        except Exception as error:
            preview.excuse(f"{type(error).__name__}: {error}")
        before[0] = latents

    return observe


def _drawer(pipe: Any, arguments: Mapping[str, Any], preview: Preview) -> Callable[[Any], Any]:
    """What draws the latents of a step as a PIL picture. Raises ValueError for latents that are not understood."""
    decoder = latent_space.decoder_of(pipe)
    if decoder is None:
        raise ValueError("the pipeline has no decoder of a known kind")
    colours = None if preview.decode else preview.colours(pipe, decoder)
    if colours is None and not preview.decode:
        raise ValueError("its encoder makes numbers that are not finite; --preview-decode needs none")

    def drawn(latents: Any) -> Any:
        whole = latent_space.unpacked(latents, decoder, arguments, pipe)
        if whole is None:
            raise ValueError(f"latents of shape {tuple(latents.shape)} are not understood")
        first = whole[:SHOWN, :, 0]
        if colours is None:
            return _picture(latent_space.decode(decoder, first), 1)
        return _picture(colours(first), colours.pixels)

    return drawn


def denoised(scheduler: Any, before: Any, after: Any) -> Any:
    """Where the last step leads: the latents without their noise, from those before and after it.

    A sample is x = a * x0 + s * noise, with (a, s) known for each time. Between two samples of one deterministic step,
    x0 and the noise are the same, so x0 = (s1 * x2 - s2 * x1) / (s1 * a2 - s2 * a1). Without a sample before, or where
    the sampler adds noise of its own, the latents after, at the scale of clean ones.
    """
    now = _levels(scheduler)
    if now is None:
        return after
    (a1, s1), (a2, s2) = now
    if before is None or before.shape != after.shape or any(name in type(scheduler).__name__ for name in STOCHASTIC):
        return after / math.hypot(a2, s2)
    slope = s1 * a2 - s2 * a1
    return after if abs(slope) < 1e-6 else (s1 * after.float() - s2 * before.float()) / slope


def _levels(scheduler: Any) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """(a, s) before and after a scheduler's last step; None where it does not tell."""
    step, sigmas = getattr(scheduler, "step_index", None), getattr(scheduler, "sigmas", None)
    if step is None or sigmas is None or not 0 < step < len(sigmas):
        return None
    first, second = float(sigmas[step - 1]), float(sigmas[step])
    name, config = type(scheduler).__name__, scheduler.config
    if name.startswith("FlowMatch") or config.get("use_flow_sigmas"):
        return (1 - first, first), (1 - second, second)
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):  # the multistep solvers keep samples at unit variance
        parts = [[float(part) for part in scheduler._sigma_to_alpha_sigma_t(sigmas[at])] for at in (step - 1, step)]
        return (parts[0][0], parts[0][1]), (parts[1][0], parts[1][1])
    return ((1.0, first), (1.0, second)) if name.startswith(("Euler", "LMS")) else None


def _picture(values: Any, factor: int) -> Any:
    """Pictures (n, 3, height, width) in 0..1 side by side, as one PIL picture, enlarged as far as LARGEST allows."""
    import numpy as np
    from PIL import Image

    row = np.concatenate([value.permute(1, 2, 0).numpy() for value in values], axis=1)
    picture = Image.fromarray((row * 255).round().astype(np.uint8))
    scale = min(factor, LARGEST / max(picture.size))
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.BICUBIC)
