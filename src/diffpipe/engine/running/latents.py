"""Latents as pictures: their layout, their scale, and a linear map to colours fitted to the pipeline's own decoder."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

# Where pipelines keep the decoder of their latents.
DECODERS = ("vae", "movq", "vqvae", "vqgan")
PATCH = 2  # pixels of latents a side that Flux, Qwen-Image, Chroma and their kin pack into one token
ELONGATED = 1.3  # a grid of tokens whose sides fit what was asked for worse than by this factor is not understood

# The fit: cells of latents per unknown of a colour, the side of the pictures that are encoded, and a ridge for channels
# that pictures do not use.
CELLS, SIDE, MOST_PICTURES = 24, 256, 32
RIDGE = 1e-3


class Scale(NamedTuple):
    """The decoder's latents are `std` * the denoiser's + `mean`; (channels,) each, or numbers."""

    std: Any
    mean: Any


class Decoder(NamedTuple):
    """A pipeline's decoder. `channels` of its latents; `frames` where they have a time axis; `packed` in 2 x 2."""

    vae: Any
    channels: int
    frames: bool
    scale: Scale


def decoder_of(pipe: Any) -> Decoder | None:
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


def _scale(vae: Any, config: Mapping[str, Any]) -> Scale:
    """As the pipelines of diffusers 0.42 undo it before they decode: latents * std / scaling_factor + mean or shift."""
    import torch

    std, mean = (getattr(vae, name, None) for name in ("latents_std", "latents_mean"))
    std = config.get("latents_std") if std is None else std
    mean = config.get("latents_mean") if mean is None else mean
    factor = float(config.get("scaling_factor") or 1.0)
    if std is None or mean is None:
        return Scale(1 / factor, float(config.get("shift_factor") or 0.0))
    return Scale(torch.as_tensor(std).float().flatten() / factor, torch.as_tensor(mean).float().flatten())


def unpacked(latents: Any, decoder: Decoder, arguments: Mapping[str, Any], pipe: Any) -> Any:
    """Latents of a callback -> (batch, channels, frames, height, width), as the decoder takes them.

    Understood are (batch, channels, height, width), (batch, channels, frames, height, width), the latter with frames
    first, and tokens (batch, n, channels * patch * patch) whose grid follows from the size of what is made. None for
    anything else.
    """
    channels = decoder.channels
    if latents.ndim == 3:
        latents = _grid(latents, decoder, arguments, pipe)
        if latents is None:
            return None
    if latents.ndim == 4:
        latents = latents[:, :, None]
    if latents.ndim != 5:
        return None
    if latents.shape[1] not in (channels, channels * PATCH**2) and latents.shape[2] == channels:
        latents = latents.transpose(1, 2)
    if latents.shape[1] == channels * PATCH**2:
        latents = _unpatched(_whitened(latents, decoder.vae))
    if latents.shape[1] != channels:
        return None
    std, mean = (_column(value, latents) for value in decoder.scale)
    return latents.float() * std + mean


def _column(value: Any, latents: Any) -> Any:
    import torch

    return torch.as_tensor(value, dtype=torch.float32, device=latents.device).reshape(1, -1, 1, 1, 1)


def _grid(tokens: Any, decoder: Decoder, arguments: Mapping[str, Any], pipe: Any) -> Any:
    """Tokens (batch, n, d) -> (batch, d, frames, rows, columns); None where no grid of n tokens has the right shape."""
    frames = _frames(decoder, arguments, pipe)
    batch, count, size = tokens.shape
    if count % frames:
        frames = 1
    cells = count // frames
    ratio = _ratio(arguments)
    pairs = [(rows, cells // rows) for rows in range(1, cells + 1) if cells % rows == 0]
    rows, columns = min(pairs, key=lambda pair: abs(math.log(pair[0] / pair[1] / ratio)))
    if abs(math.log(rows / columns / ratio)) > math.log(ELONGATED):
        return None
    return tokens.reshape(batch, frames, rows, columns, size).permute(0, 4, 1, 2, 3)


def _ratio(arguments: Mapping[str, Any]) -> float:
    """Height / width of what is made: as asked for, else of the picture it is made from, else 1."""
    if arguments.get("height") and arguments.get("width"):
        return float(arguments["height"] / arguments["width"])
    for value in arguments.values():
        picture = value[0] if isinstance(value, list) and value else value
        if hasattr(picture, "height") and hasattr(picture, "width"):
            return float(picture.height / picture.width)
    return 1.0


def _frames(decoder: Decoder, arguments: Mapping[str, Any], pipe: Any) -> int:
    """Frames of latents of a video, from the frames of the video."""
    if not decoder.frames:
        return 1
    default = inspect.signature(type(pipe).__call__).parameters.get("num_frames")
    frames = arguments.get("num_frames") or getattr(default, "default", 1)
    ratio = getattr(decoder.vae, "temporal_compression_ratio", None) or decoder.vae.config.get("scale_factor_temporal")
    return (frames - 1) // int(ratio) + 1 if isinstance(frames, int) and ratio else 1


def _whitened(latents: Any, vae: Any) -> Any:
    """FLUX.2 normalises each place of a patch by the running statistics of a batch normalisation in its VAE."""
    norm = getattr(vae, "bn", None)
    if norm is None:
        return latents
    std = (norm.running_var + vae.config.get("batch_norm_eps", norm.eps)).sqrt()
    return latents * _column(std, latents) + _column(norm.running_mean, latents)


def _unpatched(latents: Any) -> Any:
    """(batch, channels * 2 * 2, frames, rows, columns) -> (batch, channels, frames, 2 rows, 2 columns)."""
    batch, size, frames, rows, columns = latents.shape
    parts = latents.reshape(batch, size // PATCH**2, PATCH, PATCH, frames, rows, columns)
    return parts.permute(0, 1, 4, 5, 2, 6, 3).reshape(batch, -1, frames, rows * PATCH, columns * PATCH)


class Colours(NamedTuple):
    """red, green, blue in -1..1 = `weights` (3, channels) * latents as the decoder takes them + `bias` (3,).

    `pixels`: how many a latent has a side.
    """

    weights: Any
    bias: Any
    pixels: int

    def __call__(self, latents: Any) -> Any:
        """(batch, channels, height, width) -> (batch, 3, height, width) in 0..1, float32 on the CPU."""
        import torch

        weights = self.weights.to(latents.device)
        coloured = torch.einsum("rc,bchw->brhw", weights, latents.float()).cpu()
        return ((coloured + self.bias.reshape(1, 3, 1, 1)) / 2 + 0.5).clamp(0, 1)


def fitted(decoder: Decoder, device: Any) -> Colours | None:
    """The linear map that tells best the colours of pictures from their latents, by least squares.

    The pictures are encoded by the pipeline's own encoder, so the map suits whatever it was trained on or replaced by.
    They are dead leaves: overlapping discs of any size and colour, whose statistics are those of photographs (Lee,
    Mumford and Huang 2001, "Occlusion models for natural images"). None where the encoder gives numbers that are not
    finite.
    """
    import torch

    latents: list[Any] = []
    colours: list[Any] = []
    count = 1
    while len(latents) < count:
        picture = _leaves(len(latents))
        encoded = encode(decoder, picture, device)
        rows, columns = encoded.shape[-2:]
        latents.append(encoded.permute(1, 0, 2, 3).reshape(decoder.channels, -1).double().cpu())
        small = torch.nn.functional.interpolate(picture, (rows, columns), mode="area")
        colours.append(small.permute(1, 0, 2, 3).reshape(3, -1).double())
        count = min(MOST_PICTURES, math.ceil(CELLS * (decoder.channels + 1) / (rows * columns)))
    x, y = torch.cat(latents, dim=1), torch.cat(colours, dim=1)
    if not x.isfinite().all():
        return None
    mean, middle = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    x, y = x - mean, y - middle
    spread = x @ x.T
    ridge = RIDGE * spread.diagonal().mean() * torch.eye(decoder.channels, dtype=torch.float64)
    weights = torch.linalg.solve(spread + ridge, x @ y.T).T
    return Colours(weights.float(), (middle - weights @ mean).flatten().float(), SIDE // rows)


def _leaves(seed: int) -> Any:
    """A picture (1, 3, SIDE, SIDE) in -1..1 of discs whose radii have density r ** -3: the same for every scale."""
    import random

    import numpy as np
    import torch
    from PIL import Image, ImageDraw

    draw = random.Random(seed)
    picture = Image.new("RGB", (SIDE, SIDE), "grey")
    canvas = ImageDraw.Draw(picture)
    smallest = 6
    for _ in range(1500):
        radius = min(smallest / math.sqrt(1 - draw.random()), SIDE / 3)
        x, y = (draw.uniform(-radius, SIDE + radius) for _ in range(2))
        colour = tuple(draw.randrange(256) for _ in range(3))
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    values = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 127.5 - 1)
    return values.permute(2, 0, 1)[None]


def encode(decoder: Decoder, pictures: Any, device: Any) -> Any:
    """Pictures (n, 3, height, width) in -1..1 -> latents (n, channels, height', width') as the decoder takes them."""
    import torch

    with torch.no_grad(), _precise(decoder.vae) as vae:
        if (vae.config.get("in_channels") or vae.config.get("input_channels")) == 4:  # with an opacity: opaque
            pictures = torch.cat([pictures, torch.ones_like(pictures[:, :1])], dim=1)
        given = pictures.to(device, next(vae.parameters()).dtype)
        made = vae.encode(given[:, :, None] if decoder.frames else given)
    if hasattr(made, "latent_dist"):
        latents = made.latent_dist.mode()
    else:
        latents = made.latents if hasattr(made, "latents") else made.latent
    return latents[:, :, 0] if latents.ndim == 5 else latents


def decode(decoder: Decoder, latents: Any) -> Any:
    """Latents (batch, channels, height, width) as the decoder takes them -> pictures (batch, 3, …) in 0..1, on the CPU.

    Of a video, one frame of latents is decoded, and its first frame returned.
    """
    import torch

    with torch.no_grad(), _precise(decoder.vae) as vae:
        given = latents.to(next(vae.parameters()).dtype)
        more = {"num_frames": 1} if "num_frames" in inspect.signature(vae.decode).parameters else {}
        made = vae.decode(given[:, :, None] if decoder.frames else given, return_dict=False, **more)[0]
    picture = made[:, :, 0] if made.ndim == 5 else made
    return (picture[:, :3].float().cpu() / 2 + 0.5).clamp(0, 1)


class _precise:
    """The VAE in float32 where its own 16 bits overflow (SDXL's), as pipelines do it around a decode."""

    def __init__(self, vae: Any) -> None:
        import torch

        self.vae, self.dtype = vae, next(vae.parameters()).dtype
        self.raised = self.dtype == torch.float16 and bool(vae.config.get("force_upcast"))

    def __enter__(self) -> Any:
        import torch

        return self.vae.to(torch.float32) if self.raised else self.vae

    def __exit__(self, *_: object) -> None:
        if self.raised:
            self.vae.to(self.dtype)
