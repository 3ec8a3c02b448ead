"""The public settings of well-known models, one of each family, as data: the hub need not be reachable.

    python tools/model_configs.py             writes src/diffpipe/memory/recorded_configs.json
    python tools/model_configs.py --check     exits 1 if the file is not current

Values of the config.json files of the named repository that differ from the class's own defaults; {} where the class's
defaults are the model's. `plan --trace` makes a recorded model's classes from them where the hub cannot be asked.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffpipe.memory.recorded import recorded

FILE = Path(__file__).resolve().parents[1] / "src/diffpipe/memory/recorded_configs.json"

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

QWEN3_4B: dict[str, Any] = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}  # fmt: skip
CLIP_H: dict[str, Any] = {**CLIP_L, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "projection_dim": 1024}  # fmt: skip
DIFFUSION: dict[str, Any] = {"steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False}
MEL: dict[str, Any] = {"block_out_channels": [128, 256, 512], "layers_per_block": 2, "in_channels": 1,
    "out_channels": 1, "latent_channels": 8, "sample_size": 1024,
    "down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}  # fmt: skip
VOCODER: dict[str, Any] = {"model_in_dim": 64, "sampling_rate": 16000, "upsample_initial_channel": 1024,
    "upsample_rates": [5, 4, 2, 2, 2], "upsample_kernel_sizes": [16, 16, 8, 4, 4],
    "resblock_kernel_sizes": [3, 7, 11], "resblock_dilation_sizes": [[1, 3, 5]] * 3,
    "normalize_before": False}  # fmt: skip

MODELS: dict[str, dict[str, Any]] = {
    "flux-dev": {
        "title": "FLUX.1-dev", "repository": "black-forest-labs/FLUX.1-dev",
        "also": ["black-forest-labs/FLUX.1-schnell", "black-forest-labs/FLUX.1-Krea-dev"],
        "pipeline": "FluxPipeline", "width": 1024, "height": 1024, "steps": 28,
        "components": {
            "scheduler": ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "shift": 3.0}),
            "tokenizer": ("CLIPTokenizer", {}),
            "tokenizer_2": ("T5Tokenizer", {}),
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
            "scheduler": ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
            "tokenizer": ("Qwen2Tokenizer", {}),
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
            "scheduler": ("EulerDiscreteScheduler", {}),
            "tokenizer": ("CLIPTokenizer", {}),
            "tokenizer_2": ("CLIPTokenizer", {}),
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
            "scheduler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
            "tokenizer": ("CLIPTokenizer", {}),
            "tokenizer_2": ("CLIPTokenizer", {}),
            "tokenizer_3": ("T5Tokenizer", {}),
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
            "scheduler": ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction",
                "use_flow_sigmas": True, "flow_shift": 3.0}),
            "tokenizer": ("T5Tokenizer", {}),
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
        "pipeline": "AudioLDM2Pipeline", "other": {"width": 64}, "width": 64, "height": 1024, "steps": 200,
        "components": {
            "scheduler": ("DDIMScheduler", DIFFUSION),
            "tokenizer": ("RobertaTokenizer", {}),
            "tokenizer_2": ("T5Tokenizer", {}),
            "feature_extractor": ("ClapFeatureExtractor", {}),
            "text_encoder": ("ClapModel", {}),
            "text_encoder_2": ("T5EncoderModel", {"d_model": 1024, "d_ff": 2816, "d_kv": 64, "num_layers": 24,
                "num_heads": 16, "vocab_size": 32128, "feed_forward_proj": "gated-gelu", "is_encoder_decoder": False,
                "use_cache": False}),
            "projection_model": ("AudioLDM2ProjectionModel", {"text_encoder_dim": 512, "text_encoder_1_dim": 1024,
                "langauge_model_dim": 768}),
            "language_model": ("GPT2LMHeadModel", {"max_new_tokens": 8}),
            "unet": ("AudioLDM2UNet2DConditionModel", {"sample_size": 64, "in_channels": 8, "out_channels": 8,
                "block_out_channels": [128, 256, 384, 640], "attention_head_dim": 32,
                "cross_attention_dim": [[None, 768, 1024]] * 4,
                "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 3,
                "up_block_types": ["CrossAttnUpBlock2D"] * 3 + ["UpBlock2D"]}),
            "vae": ("AutoencoderKL", MEL),
            "vocoder": ("SpeechT5HifiGan", VOCODER),
        },
    },
    "sd1.4": {
        "title": "Stable Diffusion 1.4", "repository": "CompVis/stable-diffusion-v1-4", "also": [],
        "pipeline": "StableDiffusionPipeline", "width": 512, "height": 512, "steps": 50,
        "components": {
            "scheduler": ("DDIMScheduler", DIFFUSION),
            "tokenizer": ("CLIPTokenizer", {}),
            "text_encoder": ("CLIPTextModel", CLIP_L),
            "unet": ("UNet2DConditionModel", {"sample_size": 64, "cross_attention_dim": 768}),
            "vae": ("AutoencoderKL", {**KL, "latent_channels": 4, "sample_size": 512}),
        },
    },
    "z-image": {
        "title": "Z-Image Turbo", "repository": "Tongyi-MAI/Z-Image-Turbo", "also": [],
        "pipeline": "ZImagePipeline", "width": 1024, "height": 1024, "steps": 8,
        "components": {
            "scheduler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
            "tokenizer": ("Qwen2Tokenizer", {}),
            "text_encoder": ("Qwen3Model", QWEN3_4B),
            "transformer": ("ZImageTransformer2DModel", {}),
            "vae": ("AutoencoderKL", KL_16),
        },
    },
    "flux2-dev": {
        "title": "FLUX.2-dev", "repository": "black-forest-labs/FLUX.2-dev", "also": [],
        "pipeline": "Flux2Pipeline", "width": 1024, "height": 1024, "steps": 50,
        "components": {
            "scheduler": ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
            "tokenizer": ("PixtralProcessor", {}),
            "text_encoder": ("Mistral3ForConditionalGeneration", {"tie_word_embeddings": False,
                "text_config": {"model_type": "mistral", "tie_word_embeddings": False,
                "hidden_size": 5120, "intermediate_size": 32768, "num_hidden_layers": 40, "num_attention_heads": 32,
                "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 131072}, "vision_config": {
                "model_type": "pixtral", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                "num_attention_heads": 16, "head_dim": 64, "image_size": 1540, "patch_size": 14}}),
            "transformer": ("Flux2Transformer2DModel", {}),
            "vae": ("AutoencoderKLFlux2", {}),
        },
    },
    "amused-512": {
        "title": "aMUSEd 512", "repository": "amused/amused-512", "also": [],
        "pipeline": "AmusedPipeline", "width": 512, "height": 512, "steps": 12,
        "components": {
            "scheduler": ("AmusedScheduler", {"mask_token_id": 8255}),
            "tokenizer": ("CLIPTokenizer", {}),
            "text_encoder": ("CLIPTextModelWithProjection", CLIP_L),
            "transformer": ("UVit2DModel", {"downsample": True, "upsample": True, "sample_size": 32}),
            "vqvae": ("VQModel", {"block_out_channels": [128, 256, 256, 512, 768], "latent_channels": 64,
                "layers_per_block": 2, "num_vq_embeddings": 8192, "lookup_from_codebook": True,
                "down_block_types": ["DownEncoderBlock2D"] * 5, "up_block_types": ["UpDecoderBlock2D"] * 5,
                "mid_block_add_attention": False, "force_upcast": True}),
        },
    },
    "wuerstchen": {
        "title": "Würstchen 2", "repository": "warp-ai/wuerstchen", "also": [],
        "pipeline": "WuerstchenCombinedPipeline", "samples": 1, "width": 1024, "height": 1024, "steps": 60,
        "components": {
            "scheduler": ("DDPMWuerstchenScheduler", {}),
            "tokenizer": ("CLIPTokenizer", {}),
            "text_encoder": ("CLIPTextModel", CLIP_H),
            "decoder": ("WuerstchenDiffNeXt", {}),
            "vqgan": ("PaellaVQModel", {}),
            "prior_scheduler": ("DDPMWuerstchenScheduler", {}),
            "prior_tokenizer": ("CLIPTokenizer", {}),
            "prior_text_encoder": ("CLIPTextModel", CLIP_G),
            "prior_prior": ("WuerstchenPrior", {"c": 1536, "c_cond": 1280, "depth": 32, "nhead": 24}),
        },
    },
    "audioldm": {
        "title": "AudioLDM", "repository": "cvssp/audioldm-s-full-v2", "also": ["cvssp/audioldm-s-full"],
        # 5.12 seconds: a spectrogram of 512 frames of 64 bands.
        "pipeline": "AudioLDMPipeline", "other": {"width": 64}, "width": 64, "height": 512, "steps": 10,
        "components": {
            "scheduler": ("DDIMScheduler", DIFFUSION),
            "tokenizer": ("RobertaTokenizer", {}),
            "text_encoder": ("ClapTextModelWithProjection", {}),
            "unet": ("UNet2DConditionModel", {"sample_size": 128, "in_channels": 8, "out_channels": 8,
                "block_out_channels": [128, 256, 384, 640], "attention_head_dim": 8,
                "cross_attention_dim": [128, 256, 384, 640], "class_embed_type": "simple_projection",
                "projection_class_embeddings_input_dim": 512, "class_embeddings_concat": True,
                "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 3,
                "up_block_types": ["CrossAttnUpBlock2D"] * 3 + ["UpBlock2D"]}),
            "vae": ("AutoencoderKL", MEL),
            "vocoder": ("SpeechT5HifiGan", VOCODER),
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
    ("sd1.4", "unet"): 860e6, ("z-image", "transformer"): 6.15e9, ("z-image", "text_encoder"): 4.02e9,
    ("flux2-dev", "transformer"): 32.2e9, ("flux2-dev", "text_encoder"): 24.0e9,
    ("amused-512", "transformer"): 608e6,
    ("wuerstchen", "prior_prior"): 993e6, ("wuerstchen", "decoder"): 1.05e9,
    ("audioldm", "unet"): 185e6,
}  # fmt: skip


def library_of(class_name: str, pipeline: str) -> str:
    """Where a class is, as model_index.json names it: a library, or the pipeline's own module in diffusers."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        if hasattr(library, class_name):
            return library.__name__
    return str(getattr(diffusers, pipeline).__module__.split(".")[-2])


def layout_of(model: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Component -> library and class."""
    return {name: (library_of(cls, model["pipeline"]), cls) for name, (cls, _) in model["components"].items()}


def configs_of(model: Mapping[str, Any]) -> dict[str, Any]:
    """Component -> its settings, of those that have any."""
    return {name: settings for name, (_, settings) in model["components"].items() if settings}


def main() -> None:
    found = {name: {"layout": layout_of(MODELS[name]), "configs": configs_of(MODELS[name])} for name in recorded()}
    text = json.dumps(found, indent=1) + "\n"
    if "--check" in sys.argv[1:]:
        if FILE.read_text("utf-8") != text:
            sys.exit("recorded_configs.json is not current\n  run: python tools/model_configs.py")
        return
    FILE.write_text(text, "utf-8", newline="\n")


if __name__ == "__main__":
    main()
