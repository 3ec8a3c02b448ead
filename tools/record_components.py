"""Record what the components of well-known models weigh and how much memory their stages hold, without their weights.

    python tools/record_components.py             writes src/diffpipe/memory/recorded.json (two minutes, 4 GB)
    python tools/record_components.py --check     builds everything again and exits 1 if the file is not current

Each model is built on the meta device from the values of its public configuration (the config.json files of the named
repository), which are data here because the hub need not be reachable. Nothing is allocated or computed. Sizes come
from the names and shapes of its tensors by the same code that reads safetensors headers (`memory.sizes`), and are
compared with torch's own modules. The memory that a stage holds is the largest sum of living tensors while the real
forward runs on meta tensors of the real size, with attention as SDPA's fused kernels hold it: the output alone.
"""

from __future__ import annotations

import json
import re
import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.hooks._common import _GO_LC_SUPPORTED_PYTORCH_LAYERS
from diffusers.hooks.layerwise_casting import DEFAULT_SKIP_MODULES_PATTERN
from diffusers.pipelines.audioldm2 import modeling_audioldm2
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from diffpipe.core.quantization import left
from diffpipe.memory.loaded_dtypes import kept
from diffpipe.memory.sizes import Sizes, read_sizes, set_steps

FILE = Path(__file__).resolve().parents[1] / "src/diffpipe/memory/recorded.json"
BF16 = torch.bfloat16

# Values of the public config.json files that differ from the class's own defaults.
CLIP_L: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "projection_dim": 768, "vocab_size": 49408, "max_position_embeddings": 77}  # fmt: skip
CLIP_G: dict[str, Any] = {**CLIP_L, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
    "num_attention_heads": 20, "projection_dim": 1280}  # fmt: skip
T5_XXL: dict[str, Any] = {"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_layers": 24, "num_heads": 64,
    "vocab_size": 32128, "feed_forward_proj": "gated-gelu", "is_encoder_decoder": False,
    "use_cache": False}  # fmt: skip
KL: dict[str, Any] = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "sample_size": 1024,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}  # fmt: skip
KL_16: dict[str, Any] = {**KL, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False,
    "scaling_factor": 0.3611, "shift_factor": 0.1159}  # fmt: skip
QWEN_VISION: dict[str, Any] = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
    "out_hidden_size": 3584, "patch_size": 14, "spatial_merge_size": 2, "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31], "in_channels": 3}  # fmt: skip
QWEN_TEXT: dict[str, Any] = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
    "tie_word_embeddings": False}  # fmt: skip

MODELS: dict[str, dict[str, Any]] = {
    "flux-dev": {
        "title": "FLUX.1-dev", "repository": "black-forest-labs/FLUX.1-dev",
        "also": ["black-forest-labs/FLUX.1-schnell", "black-forest-labs/FLUX.1-Krea-dev"],
        "pipeline": "FluxPipeline", "width": 1024, "height": 1024, "steps": 28,
        "components": {
            "text_encoder": ("CLIPTextModel", CLIP_L),
            "text_encoder_2": ("T5EncoderModel", T5_XXL),
            "transformer": ("FluxTransformer2DModel", {"attention_head_dim": 128, "guidance_embeds": True,
                "in_channels": 64, "joint_attention_dim": 4096, "num_attention_heads": 24, "num_layers": 19,
                "num_single_layers": 38, "patch_size": 1, "pooled_projection_dim": 768}),
            "vae": ("AutoencoderKL", KL_16),
        },
    },
    "qwen-image": {
        "title": "Qwen-Image", "repository": "Qwen/Qwen-Image", "also": [],
        "pipeline": "QwenImagePipeline", "width": 1024, "height": 1024, "steps": 50,
        "components": {
            "text_encoder": ("Qwen2_5_VLForConditionalGeneration", {"text_config": QWEN_TEXT,
                "vision_config": QWEN_VISION, "tie_word_embeddings": False}),
            "transformer": ("QwenImageTransformer2DModel", {"attention_head_dim": 128, "in_channels": 64,
                "joint_attention_dim": 3584, "num_attention_heads": 24, "num_layers": 60, "out_channels": 16,
                "patch_size": 2, "axes_dims_rope": [16, 56, 56]}),
            "vae": ("AutoencoderKLQwenImage", {"base_dim": 96, "z_dim": 16}),
        },
    },
    "sdxl": {
        "title": "SDXL base 1.0", "repository": "stabilityai/stable-diffusion-xl-base-1.0", "also": [],
        "pipeline": "StableDiffusionXLPipeline", "width": 1024, "height": 1024, "steps": 50,
        "components": {
            "text_encoder": ("CLIPTextModel", CLIP_L),
            "text_encoder_2": ("CLIPTextModelWithProjection", CLIP_G),
            "unet": ("UNet2DConditionModel", {"sample_size": 128, "block_out_channels": [320, 640, 1280],
                "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
                "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048, "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
                "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": True}),
            "vae": ("AutoencoderKL", {**KL, "latent_channels": 4, "force_upcast": True}),
        },
    },
    "sd3.5-large": {
        "title": "SD 3.5 large", "repository": "stabilityai/stable-diffusion-3.5-large",
        "also": ["stabilityai/stable-diffusion-3.5-large-turbo"],
        "pipeline": "StableDiffusion3Pipeline", "width": 1024, "height": 1024, "steps": 28,
        "components": {
            "text_encoder": ("CLIPTextModelWithProjection", CLIP_L),
            "text_encoder_2": ("CLIPTextModelWithProjection", CLIP_G),
            "text_encoder_3": ("T5EncoderModel", T5_XXL),
            "transformer": ("SD3Transformer2DModel", {"attention_head_dim": 64, "caption_projection_dim": 2432,
                "in_channels": 16, "joint_attention_dim": 4096, "num_attention_heads": 38, "num_layers": 38,
                "out_channels": 16, "patch_size": 2, "pooled_projection_dim": 2048, "pos_embed_max_size": 192,
                "qk_norm": "rms_norm", "sample_size": 128}),
            "vae": ("AutoencoderKL", KL_16),
        },
    },
    "wan2.1-14b": {
        "title": "Wan 2.1 T2V 14B", "repository": "Wan-AI/Wan2.1-T2V-14B-Diffusers", "also": [],
        "pipeline": "WanPipeline", "width": 832, "height": 480, "frames": 81, "steps": 50,
        "components": {
            "text_encoder": ("UMT5EncoderModel", {**T5_XXL, "vocab_size": 256384, "model_type": "umt5"}),
            "transformer": ("WanTransformer3DModel", {"attention_head_dim": 128, "ffn_dim": 13824,
                "num_attention_heads": 40, "num_layers": 40, "text_dim": 4096, "cross_attn_norm": True,
                "qk_norm": "rms_norm_across_heads", "patch_size": [1, 2, 2], "in_channels": 16, "out_channels": 16}),
            "vae": ("AutoencoderKLWan", {"base_dim": 96, "z_dim": 16}),
        },
    },
    "audioldm2": {
        "title": "AudioLDM 2", "repository": "cvssp/audioldm2", "also": ["cvssp/audioldm2-music"],
        # 10.24 seconds: a spectrogram of 1024 frames of 64 bands.
        "pipeline": "AudioLDM2Pipeline", "width": 64, "height": 1024, "steps": 200,
        "components": {
            "text_encoder": ("ClapModel", {}),
            "text_encoder_2": ("T5EncoderModel", {"d_model": 1024, "d_ff": 2816, "d_kv": 64, "num_layers": 24,
                "num_heads": 16, "vocab_size": 32128, "feed_forward_proj": "gated-gelu", "is_encoder_decoder": False,
                "use_cache": False}),
            "projection_model": ("AudioLDM2ProjectionModel", {"text_encoder_dim": 512, "text_encoder_1_dim": 1024,
                "langauge_model_dim": 768}),
            "language_model": ("GPT2Model", {"max_new_tokens": 8}),
            "unet": ("AudioLDM2UNet2DConditionModel", {"sample_size": 64, "in_channels": 8, "out_channels": 8,
                "block_out_channels": [128, 256, 384, 640], "attention_head_dim": 32,
                "cross_attention_dim": [[None, 768, 1024]] * 4,
                "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 3,
                "up_block_types": ["CrossAttnUpBlock2D"] * 3 + ["UpBlock2D"]}),
            "vae": ("AutoencoderKL", {"block_out_channels": [128, 256, 512], "layers_per_block": 2, "in_channels": 1,
                "out_channels": 1, "latent_channels": 8, "sample_size": 1024,
                "down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}),
            "vocoder": ("SpeechT5HifiGan", {"model_in_dim": 64, "sampling_rate": 16000,
                "upsample_initial_channel": 1024, "upsample_rates": [5, 4, 2, 2, 2],
                "upsample_kernel_sizes": [16, 16, 8, 4, 4],
                "resblock_kernel_sizes": [3, 7, 11], "resblock_dilation_sizes": [[1, 3, 5]] * 3,
                "normalize_before": False}),
        },
    },
}  # fmt: skip

# What the model cards and the papers say these hold (parameters): a wrong configuration shows here.
KNOWN = {
    ("flux-dev", "transformer"): 11.9e9, ("flux-dev", "text_encoder"): 123e6, ("flux-dev", "text_encoder_2"): 4.76e9,
    ("flux-dev", "vae"): 84e6, ("qwen-image", "transformer"): 20.4e9, ("qwen-image", "text_encoder"): 8.29e9,
    ("qwen-image", "vae"): 127e6, ("sdxl", "unet"): 2.57e9, ("sdxl", "text_encoder_2"): 695e6,
    ("sd3.5-large", "transformer"): 8.06e9, ("wan2.1-14b", "transformer"): 14.3e9,
    ("wan2.1-14b", "text_encoder"): 5.68e9, ("wan2.1-14b", "vae"): 127e6, ("audioldm2", "unet"): 350e6,
}  # fmt: skip


class Peak(TorchDispatchMode):
    """The largest sum of bytes of the tensors alive that were made under it."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.live and key not in self.known:
                    self.live[key] = storage.nbytes()
                    weakref.finalize(storage, self.live.pop, key, None)
        self.peak = max(self.peak, sum(self.live.values()))
        return out

    def watch(self, model: torch.nn.Module, call: Callable[[], Any]) -> int:
        self.known = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
        with torch.no_grad(), self:
            call()
        return self.peak


def build(name: str, config: Mapping[str, Any]) -> torch.nn.Module:
    """A model on the meta device, in bfloat16 but for what its class keeps in float32."""
    cls = getattr(diffusers, name, None) or getattr(transformers, name, None) or getattr(modeling_audioldm2, name)
    with torch.device("meta"):
        own = issubclass(cls, transformers.PreTrainedModel)
        model = cls(cls.config_class(**config)) if own else cls(**config)
    return model.to(BF16).eval().requires_grad_(False)


def fused_attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
    """What a fused attention kernel holds: its output, of as much as the query."""
    return torch.empty(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device=query.device)


def meta(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def denoiser_call(key: str, model: Any, side: int, frames: int) -> tuple[Callable[[], Any], int]:
    """A forward of one sample on `side` x `side` latents (8 pixels each), and its number of picture tokens."""
    if key == "flux-dev":
        tokens = (side // 2) ** 2
        ids = torch.zeros(tokens, 3), torch.zeros(512, 3)
        return lambda: model(meta(1, tokens, 64), meta(1, 512, 4096), meta(1, 768), meta(1), ids[0].to("meta"),
            ids[1].to("meta"), meta(1)), tokens  # fmt: skip
    if key == "qwen-image":
        tokens = (side // 2) ** 2
        shapes = [[(1, side // 2, side // 2)]]
        return lambda: model(meta(1, tokens, 64), meta(1, 512, 3584), None, meta(1), img_shapes=shapes
            ), tokens  # fmt: skip
    if key == "sd3.5-large":
        return lambda: model(meta(1, 16, side, side), meta(1, 333, 4096), meta(1, 2048), meta(1)), (side // 2) ** 2
    if key == "wan2.1-14b":
        return lambda: model(meta(1, 16, frames, side, side), meta(1), meta(1, 512, 4096)), frames * (side // 2) ** 2
    if key == "sdxl":
        added = {"text_embeds": meta(1, 1280), "time_ids": meta(1, 6)}
        return lambda: model(meta(1, 4, side, side), meta(1), meta(1, 77, 2048), added_cond_kwargs=added), side**2
    return lambda: model(meta(1, 8, side * 4, side // 4), meta(1), encoder_hidden_states=meta(1, 8, 768),
        encoder_hidden_states_1=meta(1, 128, 1024)), side**2  # fmt: skip


PADDED = ("wan2.1-14b", "audioldm2")  # whose pipelines pad the prompt, and have T5 leave the padding out


def encoder_call(key: str, name: str, model: Any) -> Callable[[], Any]:
    lengths = {"CLIPTextModel": 77, "CLIPTextModelWithProjection": 77, "ClapModel": 77, "GPT2Model": 600}
    length = lengths.get(type(model).__name__, 1024 if key == "qwen-image" else 512)
    ids = meta(1, length, dtype=torch.long)
    if type(model).__name__ == "ClapModel":
        return lambda: model.text_model.encoder(meta(1, length, 768))
    if type(model).__name__ == "AudioLDM2ProjectionModel":
        return lambda: model(meta(1, 1, 512), meta(1, 128, 1024))
    if type(model).__name__ == "GPT2Model":
        return lambda: model(inputs_embeds=meta(1, length, 768))
    if key in PADDED and "T5" in type(model).__name__:
        return lambda: model(input_ids=ids, attention_mask=meta(1, 1, 1, length, dtype=torch.bool))
    return lambda: model(input_ids=ids)


def record(key: str, model: Mapping[str, Any]) -> dict[str, Any]:
    parts, configs = [], {}
    for name, (cls, settings) in model["components"].items():
        module = build(cls, settings)
        stored = {id(t): (n, t) for n, t in reversed(module.state_dict(keep_vars=True).items())}  # tied ones once
        configs[name] = dict(module.config) if issubclass(type(module), diffusers.ModelMixin) else dict(settings)
        tensors = {n: list(t.shape) for n, t in reversed(stored.values())}
        sizes = read_sizes(name, cls, tensors, configs[name])
        compare(key, sizes, module)
        sizes = replace(sizes, **held(key, name, module, sizes), recorded=True, dtypes=("BF16",))
        parts.append(replace(sizes, stored=2 * (sizes.parameters or 0)))
        print(f"{key} {name}: {sizes.parameters} parameters, {sizes.live} {sizes.live_video}", file=sys.stderr)
    return {**{k: v for k, v in model.items() if k != "components"},
        "components": [part.to_json() for part in set_steps(parts, configs)]}  # fmt: skip


def compare(key: str, sizes: Sizes, module: torch.nn.Module) -> None:
    """What was read from names and shapes against torch's own modules. Raises ValueError where they differ."""
    layers = {id(m.weight): m for n, m in module.named_modules()
        if isinstance(m, torch.nn.Linear)
        and not left(n) and not kept(type(module).__name__, n)}.values()  # fmt: skip
    patterns = (*DEFAULT_SKIP_MODULES_PATTERN, *(getattr(module, "_skip_layerwise_casting_patterns", None) or ()),
        *(getattr(module, "_keep_in_fp32_modules", None) or ()))  # fmt: skip
    cast = {n: m for n, m in module.named_modules() if isinstance(m, _GO_LC_SUPPORTED_PYTORCH_LAYERS)
        and not any(re.search(pattern, n) for pattern in patterns)}  # fmt: skip
    true = {
        "parameters": sum(p.numel() for p in module.parameters())
        + sum(b.numel() for n, b in module.named_buffers() if n in module.state_dict()),
        "linear": sum(layer.weight.numel() for layer in layers),
        "rows": sum(layer.out_features for layer in layers),
        "cast": sum(p.numel() for m in cast.values() for p in m.parameters(recurse=False)),
    }
    checked = true if sizes.kind == "denoiser" else {k: v for k, v in true.items() if k != "cast"}
    wrong = {name: (getattr(sizes, name), value) for name, value in checked.items() if getattr(sizes, name) != value}
    known = KNOWN.get((key, sizes.name))
    if wrong or (known and abs(true["parameters"] / known - 1) > 0.015):
        raise ValueError(f"{key} {sizes.name}: read and true {wrong}; {true['parameters']} parameters, known {known}")


def held(key: str, name: str, module: Any, sizes: Sizes) -> dict[str, Any]:
    """Elements that a stage holds: for each token or pixel, and besides (bytes / 2, as everything here is bfloat16)."""
    if sizes.kind == "denoiser":
        (low, few), (high, many) = (measure(denoiser_call(key, module, side, 4), module) for side in (64, 128))
        live = (high - low) / (many - few)
        return {"live": round(live / 2), "besides": max(0, round((high - live * many) / 2))}
    if sizes.kind == "decoder" and sizes.temporal > 1:
        pixels = (64 * sizes.step) ** 2
        one, some, more = (
            Peak().watch(module, lambda f=frames: module.decode(meta(1, 16, f, 64, 64))) / pixels / 2
            for frames in (1, 4, 8)
        )
        frame = (more - some) / (4 * sizes.temporal)
        return {"live": round(one), "live_video": round(some - 13 * frame), "live_frame": round(frame)}
    if sizes.kind == "decoder":
        channels = module.config.latent_channels
        low, high = (Peak().watch(module, lambda s=side: module.decode(meta(1, channels, s, s))) for side in (64, 128))
        return {"live": round((high - low) / (128**2 - 64**2) / sizes.step**2 / 2)}
    if name == "vocoder":
        return {"besides": round(Peak().watch(module, lambda: module(meta(1, 1024, 64))) / 2)}
    return {"besides": round(Peak().watch(module, encoder_call(key, name, module)) / 2)}


def measure(call: tuple[Callable[[], Any], int], module: Any) -> tuple[int, int]:
    return Peak().watch(module, call[0]), call[1]


def main() -> None:
    torch.nn.functional.scaled_dot_product_attention = fused_attention
    chosen = [name for name in sys.argv[1:] if name in MODELS] or list(MODELS)
    tables = {name: record(name, MODELS[name]) for name in chosen}
    text = json.dumps(tables, indent=1) + "\n"
    if "--check" in sys.argv[1:]:
        if FILE.read_text("utf-8") != text:
            sys.exit("recorded.json is not current\n  run: python tools/record_components.py")
        return
    FILE.write_text(text, "utf-8", newline="\n")


if __name__ == "__main__":
    main()
