"""Latents as a pipeline's decoder takes them: their layout, their scale, encoded and decoded."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from ...core.flag import Arguments

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline, ModelMixin

# Where pipelines keep the decoder of their latents.
DECODERS = ("vae", "movq", "vqvae", "vqgan")
PATCH = 2  # pixels of latents a side that Flux, Qwen-Image, Chroma and their kin pack into one token
ELONGATED = 1.3  # a grid of tokens whose sides fit what was asked for worse than by this factor is not understood


class Scale(NamedTuple):
    """The decoder's latents are `std` * the denoiser's + `mean`; (channels,) each, or numbers."""

    std: torch.Tensor | float
    mean: torch.Tensor | float


class Decoder(NamedTuple):
    """A pipeline's decoder. `channels` of its latents; `frames` where they have a time axis."""

    vae: ModelMixin
    channels: int
    frames: bool
    scale: Scale


def decoder_of(pipe: DiffusionPipeline) -> Decoder | None:
    """The decoder of a pipeline's latents; None where it has none, or one of tokens."""
    name = next((name for name in DECODERS if hasattr(getattr(pipe, name, None), "decode")), None)
    if name is None:
        return None
    vae = getattr(pipe, name)
    config = dict(vae.config)
    channels = next((config[key] for key in ("latent_channels", "z_dim") if config.get(key)), None)
    if channels is None or hasattr(pipe, "vqvae") or not hasattr(vae, "encode"):
        return None
    frames = any(type(part).__name__.endswith("Conv3d") for part in vae.modules())
    # Kandinsky's decoder takes what its denoiser makes.
    return Decoder(vae, int(channels), frames, Scale(1.0, 0.0) if name == "movq" else _scale(vae, config))


def _scale(vae: ModelMixin, config: Arguments) -> Scale:
    """As the pipelines of diffusers 0.42 undo it before they decode: latents * std / scaling_factor + mean or shift."""
    import torch

    std, mean = (getattr(vae, name, None) for name in ("latents_std", "latents_mean"))
    std = config.get("latents_std") if std is None else std
    mean = config.get("latents_mean") if mean is None else mean
    factor = float(config.get("scaling_factor") or 1.0)
    if std is None or mean is None:
        return Scale(1 / factor, float(config.get("shift_factor") or 0.0))
    return Scale(torch.as_tensor(std).float().flatten() / factor, torch.as_tensor(mean).float().flatten())


# --- Layout ----------------------------------------------------------------------------------------------------------


def unpacked(
    latents: torch.Tensor, decoder: Decoder, arguments: Arguments, pipe: DiffusionPipeline
) -> torch.Tensor | None:
    """Latents of a callback -> (batch, channels, frames, height, width), as the decoder takes them.

    Understood are (batch, channels, height, width), (batch, channels, frames, height, width), the latter with frames
    first, and tokens (batch, n, channels * patch * patch) whose grid follows from the size of what is made. None for
    anything else.
    """
    channels, patched = decoder.channels, decoder.channels * PATCH**2
    whole = _five_axes(latents, decoder, arguments, pipe)
    if whole is None:
        return None
    if whole.shape[1] not in (channels, patched) and whole.shape[2] == channels:
        whole = whole.transpose(1, 2)
    if whole.shape[1] == patched:
        whole = _unpatched(_whitened(whole, decoder.vae))
    if whole.shape[1] != channels:
        return None
    return whole.float() * _column(decoder.scale.std, whole) + _column(decoder.scale.mean, whole)


def _five_axes(
    latents: torch.Tensor, decoder: Decoder, arguments: Arguments, pipe: DiffusionPipeline
) -> torch.Tensor | None:
    """Latents with axes for batch, channels, frames, rows and columns; the second and third may be swapped."""
    if latents.ndim == 3:
        return _grid(latents, _frames(decoder, arguments, pipe), _ratio(arguments))
    if latents.ndim == 4:
        return latents[:, :, None]
    return latents if latents.ndim == 5 else None


def _column(value: torch.Tensor | float, latents: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.as_tensor(value, dtype=torch.float32, device=latents.device).reshape(1, -1, 1, 1, 1)


def _grid(tokens: torch.Tensor, frames: int, ratio: float) -> torch.Tensor | None:
    """Tokens (batch, n, d) -> (batch, d, frames, rows, columns), about `ratio` times as high as wide; None where no
    grid of n tokens has the right shape."""
    batch, count, size = tokens.shape
    if count % frames:
        frames = 1
    cells = count // frames
    pairs = [(rows, cells // rows) for rows in range(1, cells + 1) if cells % rows == 0]
    rows, columns = min(pairs, key=lambda pair: abs(math.log(pair[0] / pair[1] / ratio)))
    if abs(math.log(rows / columns / ratio)) > math.log(ELONGATED):
        return None
    return tokens.reshape(batch, frames, rows, columns, size).permute(0, 4, 1, 2, 3)


def _ratio(arguments: Arguments) -> float:
    """Height / width of what is made: as asked for, else of the picture it is made from, else 1."""
    if arguments.get("height") and arguments.get("width"):
        return float(arguments["height"] / arguments["width"])
    for value in arguments.values():
        picture = value[0] if isinstance(value, list) and value else value
        if hasattr(picture, "height") and hasattr(picture, "width"):
            return float(picture.height / picture.width)
    return 1.0


def _frames(decoder: Decoder, arguments: Arguments, pipe: DiffusionPipeline) -> int:
    """Frames of latents of a video, from the frames of the video."""
    if not decoder.frames:
        return 1
    default = inspect.signature(type(pipe).__call__).parameters.get("num_frames")
    frames = arguments.get("num_frames") or getattr(default, "default", 1)
    ratio = getattr(decoder.vae, "temporal_compression_ratio", None) or decoder.vae.config.get("scale_factor_temporal")
    return (frames - 1) // int(ratio) + 1 if isinstance(frames, int) and ratio else 1


def _whitened(latents: torch.Tensor, vae: ModelMixin) -> torch.Tensor:
    """FLUX.2 normalises each place of a patch by the running statistics of a batch normalisation in its VAE."""
    norm: torch.nn.BatchNorm2d | None = getattr(vae, "bn", None)
    if norm is None or norm.running_var is None or norm.running_mean is None:
        return latents
    std = (norm.running_var + vae.config.get("batch_norm_eps", norm.eps)).sqrt()
    return latents * _column(std, latents) + _column(norm.running_mean, latents)


def _unpatched(latents: torch.Tensor) -> torch.Tensor:
    """(batch, channels * 2 * 2, frames, rows, columns) -> (batch, channels, frames, 2 rows, 2 columns)."""
    batch, size, frames, rows, columns = latents.shape
    parts = latents.reshape(batch, size // PATCH**2, PATCH, PATCH, frames, rows, columns)
    return parts.permute(0, 1, 4, 5, 2, 6, 3).reshape(batch, -1, frames, rows * PATCH, columns * PATCH)


# --- The decoder and its encoder -------------------------------------------------------------------------------------


def encode(decoder: Decoder, pictures: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Pictures (n, 3, height, width) in -1..1 -> latents (n, channels, height', width') as the decoder takes them."""
    import torch

    with torch.no_grad(), _precise(decoder.vae) as vae:
        if (vae.config.get("in_channels") or vae.config.get("input_channels")) == 4:  # with an opacity: opaque
            pictures = torch.cat([pictures, torch.ones_like(pictures[:, :1])], dim=1)
        given = pictures.to(device, next(vae.parameters()).dtype)
        made = vae.encode(given[:, :, None] if decoder.frames else given)
    if hasattr(made, "latent_dist"):
        latents: torch.Tensor = made.latent_dist.mode()
    else:
        latents = made.latents if hasattr(made, "latents") else made.latent
    return latents[:, :, 0] if latents.ndim == 5 else latents


def decode(decoder: Decoder, latents: torch.Tensor) -> torch.Tensor:
    """Latents (batch, channels, height, width) as the decoder takes them -> pictures (batch, 3, …) in 0..1, on the CPU.

    Of a video, one frame of latents is decoded, and its first frame returned.
    """
    import torch

    with torch.no_grad(), _precise(decoder.vae) as vae:
        given = latents.to(next(vae.parameters()).dtype)
        more = {"num_frames": 1} if "num_frames" in inspect.signature(vae.decode).parameters else {}
        made: torch.Tensor = vae.decode(given[:, :, None] if decoder.frames else given, return_dict=False, **more)[0]
    picture = made[:, :, 0] if made.ndim == 5 else made
    return (picture[:, :3].float().cpu() / 2 + 0.5).clamp(0, 1)


@contextmanager
def _precise(vae: ModelMixin) -> Iterator[ModelMixin]:
    """The VAE in float32 where its own 16 bits overflow (SDXL's), as pipelines do it around a decode."""
    import torch

    dtype = next(vae.parameters()).dtype
    if dtype != torch.float16 or not vae.config.get("force_upcast"):
        yield vae
        return
    try:
        yield vae.to(torch.float32)
    finally:
        vae.to(dtype)
