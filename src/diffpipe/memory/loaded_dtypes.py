"""In which number formats weights are loaded, whatever --dtype says: what the libraries keep in float32 of which class.

Read in diffusers 0.42 and transformers 5.23; a test compares these rows with the classes.
"""

from __future__ import annotations

import re
from collections.abc import Collection

# Parts of a parameter's dotted name that diffusers loads in float32 for every dtype (ModelMixin.from_pretrained with
# `_keep_in_fp32_modules`).
_WAN = ("rope", "time_embedder", "scale_shift_table", "norm1", "norm2", "norm3")
_TIMED = ("time_embedder", "scale_shift_table", "norm1", "norm2", "norm3")
_JOY = ("time_embedder", "norm1", "norm2", "norm_out")
KEPT: dict[str, tuple[str, ...]] = {
    "AnyFlowFARTransformer3DModel": _TIMED,
    "AnyFlowTransformer3DModel": _TIMED,
    "AutoencoderKLMiniMaxH3": ("encoder", "quant_conv", "norm1", "norm2", "norm_out", "scale1", "scale2"),
    "AutoencoderKLMiniMaxH3Audio": ("encoder", "decoder", "pre_block", "dec_in_proj", "mean_proj", "logs_proj"),
    "ChronoEditTransformer3DModel": _TIMED,
    "Cosmos3OmniTransformer": ("time_embedder",),
    "CosmosControlNetModel": ("learnable_pos_embed",),
    "CosmosTransformer3DModel": ("learnable_pos_embed",),
    "Flux3Transformer2DModel": ("norm_q", "norm_k"),
    "HeliosTransformer3DModel": (*_TIMED, "history_key_scale"),
    "JoyImageEditPlusTransformer3DModel": _JOY,
    "JoyImageEditTransformer3DModel": _JOY,
    "Kandinsky5Transformer3DModel": ("time_embeddings", "modulation", "visual_modulation", "text_modulation"),
    "Kandinsky6SRTransformer3DModel": ("time_embeddings", "pooled_bias", "modulation"),
    "Kandinsky6Transformer3DModel": ("time_embeddings", "modulation"),
    "Krea2Transformer2DModel": ("norm", "norm1", "norm2", "norm_q", "norm_k"),
    "MiniMaxH3Transformer3DModel": ("proj_in", "audio_proj_in", "time_embedder", "proj_out", "audio_proj_out", "rope"),
    "RFD4ProteinaAutoencoder": ("latent_decoder_mean_n_log_scale", "norm"),
    "RFD4ProteinaTransformer": ("cond_factory", "norm", "ln_out"),
    "SkyReelsV2Transformer3DModel": _WAN,
    "WanAnimate2Transformer3DModel": (
        "time_embedding", "time_projection", "scale_shift_table", "norm1", "norm2", "norm3", "modulation",
    ),
    "WanAnimateTransformer3DModel": (*_TIMED, "motion_synthesis_weight", "rope"),
    "WanTransformer3DModel": _WAN,
    "WanVACETransformer3DModel": _WAN,
}  # fmt: skip
# The same of transformers, for float16 alone (PreTrainedModel, `_keep_in_fp32_modules`): of T5 and its kin, whose last
# projections overflow in it.
T5 = re.compile(r"U?M?T5(EncoderModel|ForConditionalGeneration|Model)")
KEPT_BESIDE_FLOAT16 = ("wo",)

# Pipelines that decode in float32 where the weights are float16 and the autoencoder's settings say `force_upcast`. Of
# the other classes, those too decode in float16.
UPCASTING = re.compile(
    r"StableDiffusionXL|StableDiffusionUpscale|StableVideoDiffusion|AnimateDiffSDXL|AuraFlow|Kolors|"
    r"LEditsPPPipelineStableDiffusionXL|TextToVideoZeroSDXL"
)


def kept(class_name: str, tensor: str) -> bool:
    """Whether a tensor is loaded in float32, whichever 16 bits the rest of its component gets."""
    return _named(tensor, KEPT.get(class_name, ()))


def kept_beside_float16(class_name: str, tensor: str) -> bool:
    """Whether a tensor is loaded in float32 where the rest of its component gets float16, and there alone."""
    return T5.fullmatch(class_name) is not None and _named(tensor, KEPT_BESIDE_FLOAT16)


def _named(tensor: str, parts: Collection[str]) -> bool:
    return any(part in parts for part in tensor.split("."))
