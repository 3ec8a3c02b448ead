"""Tiny pipelines that no other test has: diffpipe has no rows for their classes, `custom` loads them."""

from __future__ import annotations

from checkpoints import flux_pipeline, vary
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxControlPipeline,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)


def flux_control_pipeline() -> FluxControlPipeline:
    parts = flux_pipeline().components
    names = ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer")
    return FluxControlPipeline(**{name: parts[name] for name in names})


def hunyuan_pipeline() -> HunyuanVideoPipeline:
    """Of its parts only the transformer, which alone its adapters change."""
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 6, 6),
    )
    parts = dict.fromkeys(("text_encoder", "tokenizer", "vae", "text_encoder_2", "tokenizer_2"))
    return HunyuanVideoPipeline(transformer=vary(transformer), scheduler=FlowMatchEulerDiscreteScheduler(), **parts)
