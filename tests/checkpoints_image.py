"""Tiny checkpoints of the families that make pictures: see checkpoints.py, which writes these too.

Each function makes one pipeline or ControlNet, in the proportions of the released models: as many levels in the
autoencoder (8 x 8 pixels a latent, or what the family has), the same patches, a few blocks of each kind, width 16 to
32. Text is read a character, or a byte, at a time.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers.pipelines
import torch
from checkpoints import (
    FLUX_WIDTH,
    TEXT_WIDTH,
    Maker,
    autoencoder,
    clip_text_encoder,
    clip_tokenizer,
    flux_pipeline,
    flux_transformer,
    stable_diffusion_pipeline,
    t5_text_encoder,
    t5_tokenizer,
    vary,
)
from diffusers import (
    AmusedPipeline,
    AmusedScheduler,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ControlNetModel,
    DDPMPipeline,
    DDPMScheduler,
    DDPMWuerstchenScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxControlNetModel,
    FluxFillPipeline,
    FluxKontextPipeline,
    QwenImageControlNetModel,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageLayeredPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    UVit2DModel,
    VQModel,
    WuerstchenCombinedPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextModelWithProjection,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

LATENT_CHANNELS = 4
#: One message after another, whether its content is text or a list of parts, as Qwen's and Mistral's templates put it.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def byte_tokenizer() -> Qwen2Tokenizer:
    """One token for each byte, and Qwen's special ones.

    It stands for the processors too: those need torchvision, and a tokenizer takes, and ignores, their `images`.
    """
    vocab = {token: i for i, token in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[], extra_special_tokens=list(CHAT_TOKENS))
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


# --- Flux ------------------------------------------------------------------------------------------------------------


def flux_fill() -> FluxFillPipeline:
    """The transformer sees noise, masked picture and mask: (4 + 4 + 64) channels, packed 2 x 2."""
    parts = flux_pipeline().components
    parts["transformer"] = flux_transformer(in_channels=288, out_channels=16, guidance_embeds=True)
    return FluxFillPipeline(**_taken(FluxFillPipeline, parts))


def flux_kontext() -> FluxKontextPipeline:
    """Without attention in the autoencoder: Kontext scales its picture to a million pixels, whatever is asked for."""
    parts = flux_pipeline().components
    parts["transformer"] = flux_transformer(guidance_embeds=True)
    parts["vae"] = autoencoder(scaling_factor=0.3611, shift_factor=0.1159, mid_block_add_attention=False)
    return FluxKontextPipeline(**parts)


def flux_controlnet() -> FluxControlNetModel:
    """A union ControlNet: `control_mode` 0 to 6 says what the picture shows."""
    model = FluxControlNetModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=FLUX_WIDTH // 2,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        axes_dims_rope=[4, 6, 6],
        num_mode=7,
    )
    return _awake(model)


# --- Flux 2 ----------------------------------------------------------------------------------------------------------


def flux2_autoencoder() -> AutoencoderKLFlux2:
    model = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4, latent_channels=4, sample_size=32
    )
    return vary(model)


def flux2_transformer(guidance: bool) -> Flux2Transformer2DModel:
    model = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * 16,  # three layers of the text encoder
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    )
    return vary(model)


def flux2() -> Flux2Pipeline:
    """The text encoder has 31 layers, because the pipeline reads the 10th, 20th and 30th."""
    tokenizer = byte_tokenizer()
    text = MistralConfig(vocab_size=len(tokenizer), head_dim=8, num_key_value_heads=1, **_narrow(31))
    vision = PixtralVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = Mistral3Config(text_config=text, vision_config=vision, image_token_index=len(tokenizer) - 1)
    return Flux2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=flux2_autoencoder(),
        text_encoder=vary(Mistral3ForConditionalGeneration(config)),
        tokenizer=tokenizer,
        transformer=flux2_transformer(guidance=True),
    )


def flux2_klein() -> Flux2KleinPipeline:
    """The text encoder has 28 layers, because the pipeline reads the 9th, 18th and 27th."""
    tokenizer = byte_tokenizer()
    config = Qwen3Config(vocab_size=len(tokenizer), head_dim=8, num_key_value_heads=1, **_narrow(28))
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=flux2_autoencoder(),
        text_encoder=vary(Qwen3ForCausalLM(config)),
        tokenizer=tokenizer,
        transformer=flux2_transformer(guidance=False),
    )


# --- Qwen Image ------------------------------------------------------------------------------------------------------


def qwen_text_encoder(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    text = {
        **_narrow(2),
        "vocab_size": len(tokenizer),
        "num_key_value_heads": 1,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2], "rope_type": "default"},
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    special = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in {
            "image": "image_pad",
            "video": "video_pad",
            "vision_start": "vision_start",
            "vision_end": "vision_end",
        }.items()
    }
    return vary(Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **special)))


#: Not 4, which would make an RGBA picture pass for latents.
QWEN_LATENTS = 8


def qwen_autoencoder(levels: int, channels: int) -> AutoencoderKLQwenImage:
    model = AutoencoderKLQwenImage(
        base_dim=8 if levels == 4 else 2,
        z_dim=QWEN_LATENTS,
        dim_mult=[1, 1, 2, 2, 2][:levels],
        num_res_blocks=1,
        temperal_downsample=[False, True, True, True][: levels - 1],
        input_channels=channels,
        latents_mean=[0.0] * QWEN_LATENTS,
        latents_std=[1.0] * QWEN_LATENTS,
    )
    return vary(model)


QWEN_TRANSFORMER: dict[str, Any] = {
    "in_channels": 4 * QWEN_LATENTS,  # packed 2 x 2
    "out_channels": QWEN_LATENTS,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "axes_dims_rope": (4, 6, 6),
}


def qwen(
    pipeline: Callable[..., Any] = QwenImagePipeline, levels: int = 4, channels: int = 3, **transformer: Any
) -> Any:
    """A pipeline of Qwen's; `transformer` are further settings of its transformer.

    With five levels 16 x 16 pixels make a latent: four times as fast for pipelines that work on a million pixels
    whatever is asked for.
    """
    tokenizer = byte_tokenizer()
    parts = {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02),
        "vae": qwen_autoencoder(levels, channels),
        "text_encoder": qwen_text_encoder(tokenizer),
        "tokenizer": tokenizer,
        "processor": tokenizer,
        "transformer": vary(QwenImageTransformer2DModel(num_layers=2, **QWEN_TRANSFORMER, **transformer)),
    }
    return pipeline(**_taken(pipeline, parts))


def qwen_edit() -> QwenImageEditPipeline:
    return qwen(QwenImageEditPipeline, levels=5)


def qwen_edit_plus() -> QwenImageEditPlusPipeline:
    return qwen(QwenImageEditPlusPipeline, levels=5)


def qwen_layered() -> QwenImageLayeredPipeline:
    """RGBA pictures; the transformer tells the layers from one another and is told that they have alpha."""
    layered = {"use_additional_t_cond": True, "use_layer3d_rope": True}
    return qwen(QwenImageLayeredPipeline, levels=5, channels=4, **layered)


def qwen_controlnet() -> QwenImageControlNetModel:
    return _awake(QwenImageControlNetModel(num_layers=1, **QWEN_TRANSFORMER))


# --- Stable Diffusion ------------------------------------------------------------------------------------------------

UNET: dict[str, Any] = {
    "block_out_channels": (16, 24),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": 2,
}
UNET_XL: dict[str, Any] = {
    **UNET,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "cross_attention_dim": 2 * TEXT_WIDTH,  # two text encoders
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + TEXT_WIDTH,
}


def stable_diffusion_deep() -> Any:
    """With attention where 32 x 32 pixels are one position, which attend-and-excite looks at."""
    pipe = stable_diffusion_pipeline()
    model = UNet2DConditionModel(
        **UNET
        | {
            "sample_size": 8,  # latents: the default picture is 64 x 64
            "block_out_channels": (8, 16, 16),
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        }
    )
    pipe.unet = vary(model)
    return pipe


def sd_controlnet() -> ControlNetModel:
    return _awake(ControlNetModel(**UNET, conditioning_embedding_out_channels=(8, 8, 16, 16)))


def sdxl() -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline(
        vae=autoencoder(),
        text_encoder=clip_text_encoder(clip_tokenizer()),
        text_encoder_2=clip_text_encoder(clip_tokenizer(), CLIPTextModelWithProjection),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=vary(UNet2DConditionModel(sample_size=4, up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **UNET_XL)),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        ),
    )


def sdxl_controlnet() -> ControlNetModel:
    return _awake(ControlNetModel(**UNET_XL, conditioning_embedding_out_channels=(8, 8, 16, 16)))


def sd3() -> StableDiffusion3Pipeline:
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=2 * TEXT_WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=32,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    t5 = t5_tokenizer()
    return StableDiffusion3Pipeline(
        transformer=vary(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip_text_encoder(clip_tokenizer(), CLIPTextModelWithProjection),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text_encoder(clip_tokenizer(), CLIPTextModelWithProjection),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_text_encoder(t5, width=2 * TEXT_WIDTH),
        tokenizer_3=t5,
    )


# --- Others ----------------------------------------------------------------------------------------------------------


def amused() -> AmusedPipeline:
    transformer = UVit2DModel(
        hidden_size=16,
        cond_embed_dim=TEXT_WIDTH,
        micro_cond_encode_dim=2,
        micro_cond_embed_dim=10,
        encoder_hidden_size=TEXT_WIDTH,
        vocab_size=40,
        codebook_size=32,
        in_channels=16,
        block_out_channels=16,
        num_res_blocks=1,
        block_num_heads=2,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        sample_size=4,
    )
    vqvae = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 5,
        up_block_types=("UpDecoderBlock2D",) * 5,
        block_out_channels=(8, 8, 8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=8,
        num_vq_embeddings=32,
        lookup_from_codebook=True,
        mid_block_add_attention=False,
        force_upcast=True,
    )
    return AmusedPipeline(
        vqvae=vary(vqvae),
        tokenizer=clip_tokenizer(),
        text_encoder=clip_text_encoder(clip_tokenizer(), CLIPTextModelWithProjection),
        transformer=vary(transformer),
        scheduler=AmusedScheduler(mask_token_id=39),
    )


def wuerstchen() -> WuerstchenCombinedPipeline:
    """A folder that holds decoder and prior: on the hub they are two repositories."""
    module = importlib.import_module("diffusers.pipelines.deprecated.wuerstchen")
    diffusers.pipelines.wuerstchen = module  # where saving looks for the classes, before they were deprecated
    tokenizer = clip_tokenizer()
    decoder = module.WuerstchenDiffNeXt(
        c_cond=TEXT_WIDTH,
        c_hidden=[16, 16],
        nhead=[-1, 2],
        blocks=[1, 1],
        level_config=["CT", "CTA"],
        inject_effnet=[False, True],
        clip_embd=TEXT_WIDTH,
        c_r=8,
        dropout=0.0,
    )
    prior = module.WuerstchenPrior(c_in=16, c=16, c_cond=TEXT_WIDTH, c_r=8, depth=2, nhead=2, dropout=0.0)
    vqgan = module.PaellaVQModel(bottleneck_blocks=1, embed_dim=16, num_vq_embeddings=16)
    return WuerstchenCombinedPipeline(
        tokenizer=tokenizer,
        text_encoder=clip_text_encoder(tokenizer),
        decoder=_awake(decoder),
        scheduler=DDPMWuerstchenScheduler(),
        vqgan=_awake(vqgan),
        prior_tokenizer=tokenizer,
        prior_text_encoder=clip_text_encoder(tokenizer),
        prior_prior=_awake(prior),
        prior_scheduler=DDPMWuerstchenScheduler(),
    )


def z_image() -> ZImagePipeline:
    tokenizer = byte_tokenizer()
    config = Qwen3Config(vocab_size=len(tokenizer), head_dim=8, num_key_value_heads=1, **_narrow(2))
    transformer = ZImageTransformer2DModel(
        in_channels=LATENT_CHANNELS,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 64, 64],
    )
    for name in ("x_pad_token", "cap_pad_token"):  # torch.empty
        torch.nn.init.normal_(getattr(transformer, name))
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=vary(Qwen3Model(config)),
        tokenizer=tokenizer,
        transformer=vary(transformer),
    )


# --- What they share -------------------------------------------------------------------------------------------------


def _narrow(layers: int) -> dict[str, int]:
    """The width of a small language model."""
    return {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2}


def _taken(pipeline: Any, parts: dict[str, Any]) -> dict[str, Any]:
    """Those of the parts that the pipeline's constructor takes."""
    names = pipeline._get_signature_keys(pipeline)[0]
    return {name: part for name, part in parts.items() if name in names}


def _awake(model: Any) -> Any:
    """Random values for weights that start at zero (a ControlNet's, residual gates), so that they have an effect."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return vary(model)


def ddpm() -> DDPMPipeline:
    """Without text, and so the quickest to build."""
    small = {"sample_size": 8, "layers_per_block": 1, "block_out_channels": (4, 4), "norm_num_groups": 2}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return DDPMPipeline(UNet2DModel(**small, **blocks), DDPMScheduler())


def saved(make: Callable[[], Any]) -> Callable[[Path], Path]:
    """Saves what `make` makes from seed 0."""

    def save(path: Path) -> Path:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            make().save_pretrained(path)
        return path

    return save


#: Rows for `checkpoints.write_all`.
MAKERS: tuple[Maker, ...] = tuple(
    (name, saved(make), what)
    for name, make, what in (
        ("flux-fill", flux_fill, "FluxFillPipeline folder"),
        ("flux-kontext", flux_kontext, "FluxKontextPipeline folder"),
        ("flux-controlnet", flux_controlnet, "union ControlNet for Flux"),
        ("flux2", flux2, "Flux2Pipeline folder"),
        ("flux2-klein", flux2_klein, "Flux2KleinPipeline folder"),
        ("qwen", qwen, "QwenImagePipeline folder"),
        ("qwen-edit", qwen_edit, "QwenImageEditPipeline folder"),
        ("qwen-edit-plus", qwen_edit_plus, "QwenImageEditPlusPipeline folder"),
        ("qwen-layered", qwen_layered, "QwenImageLayeredPipeline folder"),
        ("qwen-controlnet", qwen_controlnet, "ControlNet for Qwen Image"),
        ("stable-diffusion-deep", stable_diffusion_deep, "StableDiffusionPipeline folder with a deeper UNet"),
        ("sd-controlnet", sd_controlnet, "ControlNet for Stable Diffusion"),
        ("sdxl", sdxl, "StableDiffusionXLPipeline folder"),
        ("sdxl-controlnet", sdxl_controlnet, "ControlNet for SDXL"),
        ("sd3", sd3, "StableDiffusion3Pipeline folder"),
        ("amused", amused, "AmusedPipeline folder"),
        ("wuerstchen", wuerstchen, "WuerstchenCombinedPipeline folder"),
        ("z-image", z_image, "ZImagePipeline folder"),
        ("ddpm", ddpm, "DDPMPipeline folder"),
    )
)
