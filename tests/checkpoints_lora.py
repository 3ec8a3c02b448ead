"""LoRAs for the tiny checkpoints, in the layouts found in the wild: see checkpoints.py, which writes these too.

The kohya files hold the same matrices as the peft ones beside them, so both must make the same picture.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from checkpoints import (
    Maker,
    Tensors,
    clip_text_encoder,
    clip_tokenizer,
    flux_lora,
    flux_transformer,
    unet,
)
from safetensors.torch import load_file, save_file

RANK = 4
ATTENTION = r"attn\d?\.to_(q|k|v|out\.0)$"


def matrices(make: Callable[[], torch.nn.Module], pattern: str, width: int | None = None) -> Tensors:
    """lora_A (rank, in) and lora_B (out, rank) of a model's layers of such names; `width` in place of in and out."""
    with torch.device("meta"):  # only the shapes matter
        model = make()
    generator = torch.Generator().manual_seed(0)
    found: Tensors = {}
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and re.search(pattern, name):
            inside, outside = width or layer.in_features, width or layer.out_features
            found[f"{name}.lora_A.weight"] = torch.randn(RANK, inside, generator=generator)
            found[f"{name}.lora_B.weight"] = torch.randn(outside, RANK, generator=generator) * 0.5
    return found


def save(path: Path, tensors: Tensors) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    return path


def sd_unet() -> Tensors:
    return matrices(unet, ATTENTION)


def sd_text_encoder() -> Tensors:
    """Under the names of the files in the wild, which transformers' CLIPTextModel had until version 5."""
    found = matrices(lambda: clip_text_encoder(clip_tokenizer()), r"self_attn\.(q|k|v|out)_proj$")
    return {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in found.items()}


def prefixed(part: str, tensors: Tensors) -> Tensors:
    return {f"{part}.{name}": tensor for name, tensor in tensors.items()}


def kohya(part: str, tensors: Tensors) -> Tensors:
    """As kohya's sd-scripts write them: dots become underscores, and alpha / rank is the layer's own scale."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        layer, _, side = name.removesuffix(".weight").rpartition(".")
        key = f"{part}_{layer.replace('.', '_')}"
        found[f"{key}.{'lora_down' if side == 'lora_A' else 'lora_up'}.weight"] = tensor
        found[f"{key}.alpha"] = torch.tensor(float(RANK))
    return found


def sd_lora(path: Path) -> Path:
    return save(path, {**prefixed("unet", sd_unet()), **prefixed("text_encoder", sd_text_encoder())})


def sd_lora_kohya(path: Path) -> Path:
    return save(path, {**kohya("lora_unet", sd_unet()), **kohya("lora_te", sd_text_encoder())})


def sd_lora_of_text(path: Path) -> Path:
    return save(path, prefixed("text_encoder", sd_text_encoder()))


def flux_lora_kohya(path: Path) -> Path:
    """The image half of the first double block, whose query, key and value are one layer in Black Forest Labs' code."""
    generator = torch.Generator().manual_seed(0)
    down, width = torch.randn(RANK, 32, generator=generator), 32
    ups = torch.randn(3 * width, RANK, generator=generator) * 0.5
    block = {"img_attn.qkv.lora_A.weight": down, "img_attn.qkv.lora_B.weight": ups}
    return save(path, kohya("lora_unet", prefixed("double_blocks.0", block)))


def flux_lora_as_kohya(path: Path) -> Path:
    """The matrices of `flux_lora_kohya` under diffusers' names."""
    joined = load_file(flux_lora_kohya(path))
    down = joined["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"]
    ups = joined["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"].chunk(3)
    layers = {
        f"to_{letter}.{side}.weight": tensor.clone()
        for letter, up in zip("qkv", ups, strict=True)
        for side, tensor in (("lora_A", down), ("lora_B", up))
    }
    return save(path, prefixed("transformer.transformer_blocks.0.attn", layers))


def flux_lora_in_part(path: Path) -> Path:
    """Half of the layers of `flux_lora`, as many for blocks that the tiny model has not."""
    found = load_file(flux_lora(path))
    return save(path, {re.sub(r"blocks\.0(.*to_[kv])", r"blocks.7\1", name): tensor for name, tensor in found.items()})


def flux_lora_of_width(width: int) -> Callable[[Path], Path]:
    return lambda path: save(path, prefixed("transformer", matrices(flux_transformer, ATTENTION, width)))


def flux_lora_of_zeros(path: Path) -> Path:
    """As training starts: lora_B is zero everywhere."""
    found = load_file(flux_lora(path))
    return save(path, {name: tensor * (".lora_A" in name) for name, tensor in found.items()})


def flux_control_lora(path: Path) -> Path:
    """Takes the latents of a control picture beside its own: the first layer has twice the 16 channels."""
    wide = {"x_embedder.lora_A.weight": torch.ones(RANK, 32), "x_embedder.lora_B.weight": torch.ones(32, RANK)}
    return save(path, prefixed("transformer", wide))


MAKERS: Iterable[Maker] = (
    ("sd-lora.safetensors", sd_lora, "LoRA for Stable Diffusion, UNet and text encoder"),
    ("sd-lora-kohya.safetensors", sd_lora_kohya, "the same in kohya's layout"),
    ("sd-lora-text.safetensors", sd_lora_of_text, "the text encoder's part of it"),
    ("flux-lora-2.safetensors", lambda path: flux_lora(path, seed=1), "a second LoRA for the Flux folder"),
    ("flux-lora-kohya.safetensors", flux_lora_kohya, "LoRA for Flux in kohya's layout"),
    ("flux-lora-as-kohya.safetensors", flux_lora_as_kohya, "the same in diffusers' layout"),
    ("flux-lora-part.safetensors", flux_lora_in_part, "LoRA of which half the layers are in the Flux folder"),
    ("flux-lora-wide.safetensors", flux_lora_of_width(3072), "LoRA for a Flux of the released width"),
    ("flux-lora-narrow.safetensors", flux_lora_of_width(8), "LoRA for a Flux narrower than the tiny one"),
    ("flux-lora-zero.safetensors", flux_lora_of_zeros, "LoRA that changes nothing"),
    ("flux-lora-control.safetensors", flux_control_lora, "Control LoRA for Flux"),
)
