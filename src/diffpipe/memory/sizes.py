"""What a component weighs in every form, from the names and shapes of its tensors and its configuration."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TypeAlias

from ..core.canonical import JsonObject, JsonValue
from ..core.components import Kind, kind_of
from ..core.parsing import Fields
from ..core.quantization import left
from . import loaded_dtypes

# Tables of vectors, which are 2-D and no Linear: the names transformers and diffusers give to nn.Embedding.
EMBEDDING = re.compile(
    r"(^|\.)(shared|wte|wpe|embed_tokens|\w+_embeddings?|class_embedding|relative_attention_bias|"
    r"relative_position_bias_table|logit_scale\w*)(\.weight)?$"
)
# transformers' Conv1D (GPT-2): 2-D weights that no quantization converts.
CONV1D = re.compile(r"(^|\.)(c_attn|c_proj|c_fc)\.weight$")
# Modules that layerwise casting leaves alone: DEFAULT_SKIP_MODULES_PATTERN of diffusers/hooks/layerwise_casting.py, and
# what the transformers' own _skip_layerwise_casting_patterns and _keep_in_fp32_modules add.
UNCAST = re.compile(
    r"pos_embed|patch_embed|norm|^proj_in$|^proj_out$|condition_embedder|rope|time_embedder|scale_shift"
)
# A block is an item of the outermost list in a tensor's name, as block-level group offloading groups them.
BLOCK = re.compile(r"^(?:[^.]+\.)*?[^.]+\.\d+\.")

# Elements that stay alive where nothing was recorded for the class, as multiples of a width. Of the hidden size, for
# each token of a transformer: the most of those recorded is FLUX.1's 17.2 (residual, norm, query, key, value, MLP
# before and after its activation, and the concatenation of both). Of the first width, for each latent of a U-Net
# (SDXL: 15.8) and each pixel of a decoder (three maps of twice that width: SDXL, FLUX.1, SD 3.5) or of a 3-D one
# (Qwen-Image: 18 for a picture, Wan: 52.7 for a video, whose frames are cached between its chunks). Of the hidden size,
# for each of at most 512 tokens of a text encoder (CLIP: 16; T5: see `_t5`).
LIVE = {"transformer": 17, "unet": 16, "decoder": 6, "decoder3d": 18, "video": 53, "encoder": 24}
PROMPT = 512  # tokens


Settings: TypeAlias = Mapping[str, JsonValue]  # a component's config.json


@dataclass(frozen=True)
class Sizes:
    """A component's numbers. Counts are of tensor elements; `parameters` is None where nothing is known of it, which is
    never taken for 0.

    `linear`: weights that quantization converts, `rows` their outputs. `cast`: what layerwise casting stores in 8 bits.
    `block`: the largest repeated block, `outside`: what is in none. `layer`: the largest tensor. `step`: pixels to a
    side of a token (denoiser) or latent (decoder), `temporal`: frames to a latent frame; 0 where size is no choice.
    `tile`: pixels to a side of a tile of the decoder. `live`: elements held for each token (denoiser) or pixel
    (decoder) of one sample, `live_video`: for each pixel of a video, `live_frame`: for each pixel of each frame
    besides, `besides`: in any case. `stored`: bytes in the files, `dtypes` theirs. `recorded`: whether `live` was
    measured (tools/record_components.py) or follows from LIVE. `quantized`: by which method the files are already.
    `wide`: elements that are float32 beside 16-bit ones, in none of `linear`; `wide_half`: weights in `linear` that are
    so beside float16 alone, `rows_half` their outputs. `largest`: the largest weight in `linear`. `dtype`: what its row
    loads it in, whatever --dtype says; "" for that.
    """

    name: str
    class_name: str
    kind: Kind = "other"
    parameters: int | None = None
    linear: int = 0
    rows: int = 0
    cast: int = 0
    block: int = 0
    outside: int = 0
    layer: int = 0
    step: int = 0
    temporal: int = 1
    tile: int = 0
    upcast: bool = False
    live: int = 0
    live_video: int = 0
    live_frame: int = 0
    besides: int = 0
    stored: int | None = None
    dtypes: tuple[str, ...] = ()
    recorded: bool = False
    quantized: str = ""
    wide: int = 0
    wide_half: int = 0
    rows_half: int = 0
    largest: int = 0
    dtype: str = ""

    @classmethod
    def from_json(cls, data: Fields) -> Sizes:
        """The inverse of `to_json`. Raises Misfit for what does not fit."""
        return cls(
            name=data.text("name", most=200),
            class_name=data.text("class_name", most=200),
            kind=data.choice("kind", Kind, "other"),
            parameters=data.maybe_integer("parameters"),
            upcast=data.truth("upcast", False),
            stored=data.maybe_integer("stored"),
            dtypes=data.texts("dtypes", ()),
            recorded=data.truth("recorded", False),
            quantized=data.text("quantized", "", most=200),
            dtype=data.text("dtype", "", most=200),
            temporal=data.integer("temporal", 1, least=1),
            **{name: data.integer(name, 0) for name in COUNTS},
        )

    def to_json(self) -> JsonObject:
        """The fields that differ from their defaults."""
        blank = asdict(Sizes(name="", class_name=""))
        given = {k: v for k, v in asdict(self).items() if k in ("name", "class_name") or v != blank[k]}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


COUNTS = (
    "linear", "rows", "cast", "block", "outside", "layer", "step", "tile", "live", "live_video", "live_frame",
    "besides", "wide", "wide_half", "rows_half", "largest",
)  # fmt: skip


def is_linear(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor is the weight of a Linear that quantization converts: 2-D, and of no embedding."""
    if len(shape) != 2 or not name.endswith(".weight"):
        return False
    return not (EMBEDDING.search(name) or CONV1D.search(name) or left(name.removesuffix(".weight")))


def is_cast(name: str) -> bool:
    """Whether layerwise casting stores a tensor in 8 bits: a Linear's or convolution's whose name it does not skip."""
    module, _, last = name.rpartition(".")
    return last in ("weight", "bias") and not UNCAST.search(module) and not EMBEDDING.search(name)


def read_sizes(name: str, class_name: str, tensors: Mapping[str, Sequence[int]], config: Settings) -> Sizes:
    """A component's sizes from tensor name -> shape and its config.json. Steps are in latents: see `set_steps`."""
    counts = {tensor: math.prod(shape) for tensor, shape in tensors.items()}
    wide = {tensor for tensor in tensors if loaded_dtypes.kept(class_name, tensor)}
    linear = [tensor for tensor, shape in tensors.items() if is_linear(tensor, shape) and tensor not in wide]
    half = [tensor for tensor in linear if loaded_dtypes.kept_beside_float16(class_name, tensor)]
    blocks: dict[str, int] = {}
    for tensor, count in counts.items():
        if found := BLOCK.match(tensor):
            blocks[found[0]] = blocks.get(found[0], 0) + count
    total = sum(counts.values())
    sizes = Sizes(
        name=name,
        class_name=class_name,
        kind=kind_of(name),
        parameters=total,
        linear=sum(counts[tensor] for tensor in linear),
        rows=sum(tensors[tensor][0] for tensor in linear),
        cast=sum(count for tensor, count in counts.items() if is_cast(tensor)),
        block=max(blocks.values(), default=0),
        outside=total - sum(blocks.values()),
        layer=max(counts.values(), default=0),
        quantized=_text(_object(config, "quantization_config"), "quant_method"),
        wide=sum(counts[tensor] for tensor in wide),
        wide_half=sum(counts[tensor] for tensor in half),
        rows_half=sum(tensors[tensor][0] for tensor in half),
        largest=max((counts[tensor] for tensor in linear), default=0),
    )
    held = HELD.get(sizes.kind)
    return held(sizes, config) if held else sizes


# Pixels to a side of a tile. AutoencoderKL takes sample_size, which is 1024 for SDXL, SD 3 and FLUX.1 and so saves
# nothing at 1024 x 1024: diffpipe sets at most 512. The classes for video have 256 of their own.
TILE, TILE_3D = 512, 256
# Pixels to a token of denoisers whose latents are not the autoencoder's (WuerstchenPriorPipeline: resolution_multiple).
OWN_STEPS = {"WuerstchenPrior": 42}


# What a stage holds, by the class's widths and LIVE.


def _denoiser(part: Sizes, config: Settings) -> Sizes:
    if widths := levels(config):
        return replace(part, live=LIVE["unet"] * widths[0])
    product = _number(config, "num_attention_heads") * _number(config, "attention_head_dim")
    width = product or _number(config, "inner_dim", "hidden_size", "dim", "d_model", "c") or 3072
    return replace(part, live=LIVE["transformer"] * width, besides=LIVE["transformer"] * width * PROMPT)


def _decoder(part: Sizes, config: Settings) -> Sizes:
    if tiny := _numbers(config, "decoder_block_out_channels"):  # AutoencoderTiny: three maps of the last width
        step = (_number(config, "upsampling_scaling_factor") or 2) ** (len(tiny) - 1)
        return replace(part, step=step, live=3 * tiny[-1], tile=TILE)
    channels, frames = levels(config), temporal(config)
    part = replace(part, step=spatial(config), temporal=frames, upcast=bool(config.get("force_upcast")))
    if channels and frames == 1:
        tile = (_numbers(config, "sample_size") or [_number(config, "sample_size") or TILE])[0]
        return replace(part, live=LIVE["decoder"] * channels[0], tile=min(tile, TILE))
    width = _number(config, "base_dim") or (channels or [128])[0]
    held = replace(part, live=LIVE["decoder3d"] * width, live_video=LIVE["video"] * width)
    return replace(held, live_frame=3, tile=TILE_3D)


def _encoder(part: Sizes, config: Settings) -> Sizes:
    if loaded_dtypes.T5.fullmatch(part.class_name):
        return replace(part, besides=_t5(config))
    inner = _object(config, "text_config") or config
    width = _number(inner, "d_model", "hidden_size", "n_embd") or 1024
    tokens = min(PROMPT, _number(inner, "max_position_embeddings") or PROMPT)  # CLIP: 77
    return replace(part, besides=LIVE["encoder"] * width * tokens)


BUCKETS = 13  # elements of 4 bytes for each pair of tokens: six tables of int64 and what compares them


def _t5(config: Settings) -> int:
    """Elements that an encoder of T5's kind holds at its worst moment, for the longest prompt, padded.

    It adds a learned bias to attention, which the fused kernels take as a mask of every head: one matrix of tokens x
    tokens for each head as the layers share it, one with the padding masked, and one as it is laid out for the kernel
    (transformers 5.23, T5Attention.compute_bias and create_position_bias_mask of integrations/sdpa_attention.py);
    with them the queries, keys, values, the output, and four states. Softmax is the kernel's own: torch's fused kernels
    take such a mask on CUDA and on the CPU; the unfused one would hold five more. Between attentions: the shared
    matrix, four tensors of the feed-forward's width, and four states. Before the first: the table of distances.
    """
    width, heads = _number(config, "d_model") or 512, _number(config, "num_heads") or 8
    inner = heads * (_number(config, "d_kv") or 64)
    forward = _number(config, "d_ff") or 2048
    matrix = heads * PROMPT**2
    attending = 3 * matrix + 4 * (inner + width) * PROMPT
    return max(attending, matrix + 4 * (forward + width) * PROMPT, BUCKETS * PROMPT**2)


HELD: Mapping[Kind, Callable[[Sizes, Settings], Sizes]] = {
    "denoiser": _denoiser,
    "decoder": _decoder,
    "encoder": _encoder,
}


def _number(config: Settings, *names: str) -> int:
    """The first of these settings that is a whole number; 0 where none is."""
    return next((value for name in names if isinstance(value := config.get(name), int)), 0)


def _numbers(config: Settings, name: str) -> list[int]:
    """A list of whole numbers; [] where the setting is none."""
    found = config.get(name)
    return [value for value in found if isinstance(value, int)] if isinstance(found, list) else []


def _text(config: Settings, name: str) -> str:
    found = config.get(name)
    return found if isinstance(found, str) else ""


def _object(config: Settings, name: str) -> Settings:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def levels(config: Settings) -> list[int]:
    """The widths of a U-Net's or autoencoder's levels."""
    alone = _number(config, "block_out_channels")
    return [alone] if alone else _numbers(config, "block_out_channels")


def spatial(config: Settings) -> int:
    """Pixels to a side of one latent of an autoencoder, from whichever setting its class has."""
    if "spatio_temporal_scaling" in config:  # AutoencoderKLLTXVideo
        halvings = sum(_numbers(config, "spatio_temporal_scaling"))
        return int((_number(config, "patch_size") or 4) * 2**halvings)
    known = _number(config, "scale_factor_spatial", "spatial_compression_ratio")
    count = len(levels(config)) or 1 + len(_downsampled(config))
    return known or int(2 ** (count - 1))


def temporal(config: Settings) -> int:
    """Frames to one latent frame of an autoencoder; 1 for pictures."""
    if "spatio_temporal_scaling" in config:
        halvings = sum(_numbers(config, "spatio_temporal_scaling"))
        return int((_number(config, "patch_size_t") or 1) * 2**halvings)
    known = _number(config, "scale_factor_temporal", "temporal_compression_ratio")
    video = "base_dim" in config and "z_dim" in config  # AutoencoderKLWan and AutoencoderKLQwenImage
    return known or (int(2 ** sum(_downsampled(config))) if video else 1)


def _downsampled(config: Settings) -> list[int]:
    """Of the levels of AutoencoderKLWan: whether each halves the frames, too."""
    return _numbers(config, "temperal_downsample") if "temperal_downsample" in config else [0, 1, 1]


def set_steps(parts: Sequence[Sizes], configs: Mapping[str, Settings]) -> tuple[Sizes, ...]:
    """The denoisers' `step` and `temporal` in pixels and frames, which the autoencoder and the patches decide.

    A token is `patch_size` latents to a side, or as many as the channels say that were packed into it (FLUX.1).
    """
    decoder = next((part for part in parts if part.kind == "decoder"), None)
    if decoder is None:
        return tuple(parts)
    latent = _number(configs.get(decoder.name, {}), "latent_channels", "z_dim")

    def step(part: Sizes) -> Sizes:
        if part.kind != "denoiser":
            return part
        if part.class_name in OWN_STEPS:
            return replace(part, step=OWN_STEPS[part.class_name])
        config = configs.get(part.name, {})
        sizes = _numbers(config, "patch_size") or _numbers(config, "all_patch_size")  # Z-Image: of each of its kinds
        patch = (sizes or [_number(config, "patch_size")])[-1]
        channels = _number(config, "out_channels", "in_channels")
        packed = math.isqrt(channels // latent) if latent and channels else 1
        packed = packed if packed**2 * latent == channels else 1  # aMUSEd's 768 are no packed latents
        return replace(part, step=decoder.step * max(patch, packed, 1), temporal=decoder.temporal)

    return tuple(step(part) for part in parts)
