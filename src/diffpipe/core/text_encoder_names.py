"""The names that text encoders' weights have in single files, and those that transformers gives them."""

from __future__ import annotations

import re
from collections.abc import Collection

from .checkpoint_marks import is_mark

# Before each name: none in the files of Flux and SD 3 that ComfyUI takes, the part's place in whole checkpoints.
PREFIXES = (
    "",
    "transformer.",
    "text_encoder.",
    "cond_stage_model.transformer.",
    "conditioner.embedders.0.transformer.",
    "text_encoders.clip_l.transformer.",
    "text_encoders.clip_g.transformer.",
    "text_encoders.t5xxl.transformer.",
)
# What shows that names begin after a prefix: CLIP, CLIP as transformers 5.6 flattened it, T5, and T5 in GGUF.
SIGNS = (
    "text_model.embeddings.token_embedding.weight",
    "embeddings.token_embedding.weight",
    "shared.weight",
    "encoder.embed_tokens.weight",
    "token_embd.weight",
)
EMBEDDED, SHARED = "encoder.embed_tokens.weight", "shared.weight"  # T5's one table of tokens, under two names
# What such files hold besides, which the encoder of a pipeline does not use: positions that are counted anew, CLIP's
# temperature, the other half of a T5.
UNUSED = re.compile(r"(.*\.)?position_ids|logit_scale|decoder\..*|lm_head\..*|(.*\.)?logit_scale")
# llama.cpp's names (gguf-py/gguf/tensor_mapping.py, MODEL_ARCH.T5ENCODER) and T5's own.
GGUF_T5 = (
    (r"token_embd\.", "shared."),
    (r"enc\.output_norm\.", "encoder.final_layer_norm."),
    (r"enc\.blk\.(\d+)\.attn_(q|k|v|o)\.", r"encoder.block.\1.layer.0.SelfAttention.\2."),
    (r"enc\.blk\.(\d+)\.attn_rel_b\.", r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias."),
    (r"enc\.blk\.(\d+)\.attn_norm\.", r"encoder.block.\1.layer.0.layer_norm."),
    (r"enc\.blk\.(\d+)\.ffn_norm\.", r"encoder.block.\1.layer.1.layer_norm."),
    (r"enc\.blk\.(\d+)\.ffn_gate\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_0."),
    (r"enc\.blk\.(\d+)\.ffn_up\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_1."),
    (r"enc\.blk\.(\d+)\.ffn_down\.", r"encoder.block.\1.layer.1.DenseReluDense.wo."),
)


def own_names(names: Collection[str]) -> dict[str, str]:
    """Name in the file -> name in the model, of those that the model may have; scales and what is not used left out."""
    prefix = next((one for one in PREFIXES for sign in SIGNS if one + sign in names), "")
    found = {name: _own(name.removeprefix(prefix)) for name in names if name.startswith(prefix) and not is_mark(name)}
    kept = {name: own for name, own in found.items() if not UNUSED.fullmatch(own)}
    if SHARED not in kept.values():
        return {name: SHARED if own == EMBEDDED else own for name, own in kept.items()}
    return {name: own for name, own in kept.items() if own != EMBEDDED}


def _own(name: str) -> str:
    for pattern, own in GGUF_T5:
        renamed, count = re.subn(f"^{pattern}", own, name)
        if count:
            return renamed
    return name
