"""What the trainers call the layers of transformers: the tables of their original code."""

from __future__ import annotations

from .names import JOINT, Block, Scheme, Site, Span, original, own, renamed, together

# --- Black Forest Labs' and Stability AI's transformers --------------------------------------------------------------

FLUX_DOUBLE: Block = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "txt_mod.lin": ("norm1_context.linear",),
}
FLUX_SINGLE: Block = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}
FLUX_BLOCKS = {
    ("double_blocks", "transformer_blocks"): FLUX_DOUBLE,
    ("single_blocks", "single_transformer_blocks"): FLUX_SINGLE,
}
FLUX_OUTER = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
}
FLUX_NORMS: Block = {
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
}
FLUX_SINGLE_NORMS: Block = {"norm.query_norm": ("attn.norm_q",), "norm.key_norm": ("attn.norm_k",)}


def modulated(component: str, there: str, here: str) -> Scheme:
    """A last layer's modulation: (shift, scale) there, (scale, shift) in diffusers' AdaLayerNormContinuous."""
    return lambda model: [Site(there, (Span(f"{component}.{here}", 1), Span(f"{component}.{here}", 0)))]


FLUX = original("transformer", FLUX_BLOCKS)
FLUX_WHOLE = together(
    original("transformer", FLUX_BLOCKS, FLUX_OUTER),
    modulated("transformer", "final_layer.adaLN_modulation.1", "norm_out.linear"),
)
FLUX_CONTROL = original(
    "transformer",
    {
        ("double_blocks", "transformer_blocks"): FLUX_DOUBLE | FLUX_NORMS,
        ("single_blocks", "single_transformer_blocks"): FLUX_SINGLE | FLUX_SINGLE_NORMS,
    },
    FLUX_OUTER,
)
# x-flux's processors (src/flux/modules/layers.py): 1 is the picture's half, 2 the text's. `qkv_lora` of a single block
# has no rows for the perceptron, which is one layer with it in the original.
XLABS = original(
    "transformer",
    {
        ("double_blocks", "transformer_blocks"): {
            "processor.qkv_lora1": FLUX_DOUBLE["img_attn.qkv"],
            "processor.proj_lora1": FLUX_DOUBLE["img_attn.proj"],
            "processor.qkv_lora2": FLUX_DOUBLE["txt_attn.qkv"],
            "processor.proj_lora2": FLUX_DOUBLE["txt_attn.proj"],
        },
        ("single_blocks", "single_transformer_blocks"): {
            "processor.qkv_lora": FLUX_SINGLE["linear1"][:3],
            "processor.proj_lora": FLUX_SINGLE["linear2"],
        },
    },
)
FLUX_OWN = own(
    "transformer",
    rf"blocks\.\d+\.({JOINT}|ff(_context)?\.net\.(0\.proj|2)|proj_(mlp|out)|norm(1|1_context)?\.linear)$",
)

FLUX2_DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.linear_in",),
    "img_mlp.2": ("ff.linear_out",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.linear_in",),
    "txt_mlp.2": ("ff_context.linear_out",),
}
FLUX2_BLOCKS = {
    ("double_blocks", "transformer_blocks"): FLUX2_DOUBLE,
    ("single_blocks", "single_transformer_blocks"): {"linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",)},
}
FLUX2 = original("transformer", FLUX2_BLOCKS)
FLUX2_WHOLE = together(
    original(
        "transformer",
        FLUX2_BLOCKS,
        {
            "img_in": "x_embedder",
            "txt_in": "context_embedder",
            "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
            "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
            "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
            "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
            "single_stream_modulation.lin": "single_stream_modulation.linear",
            "final_layer.linear": "proj_out",
        },
    ),
    modulated("transformer", "final_layer.adaLN_modulation.1", "norm_out.linear"),
)
FLUX2_OWN = own(
    "transformer",
    rf"blocks\.\d+\.({JOINT}|attn\.to_(out|qkv_mlp_proj)|ff(_context)?\.linear_(in|out))$",
)

# Stability-AI/sd3.5, mmditx.py.
SD3 = original(
    "transformer",
    {
        ("joint_blocks", "transformer_blocks"): {
            "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
            "x_block.attn.proj": ("attn.to_out.0",),
            "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
            "x_block.attn2.proj": ("attn2.to_out.0",),
            "x_block.mlp.fc1": ("ff.net.0.proj",),
            "x_block.mlp.fc2": ("ff.net.2",),
            "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
            "context_block.attn.proj": ("attn.to_add_out",),
            "context_block.mlp.fc1": ("ff_context.net.0.proj",),
            "context_block.mlp.fc2": ("ff_context.net.2",),
        }
    },
)
SD3_WHOLE = together(
    SD3,
    original(
        "transformer",
        {("joint_blocks", "transformer_blocks"): {"x_block.adaLN_modulation.1": ("norm1.linear",)}},
        {
            "joint_blocks.0.context_block.adaLN_modulation.1": "transformer_blocks.0.norm1_context.linear",
            "x_embedder.proj": "pos_embed.proj",
            "context_embedder": "context_embedder",
            "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
            "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
            "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
            "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
            "final_layer.linear": "proj_out",
        },
    ),
    # The last block has no text left to make: its modulation is one of a last layer.
    modulated(
        "transformer", "joint_blocks.1.context_block.adaLN_modulation.1", "transformer_blocks.1.norm1_context.linear"
    ),
    modulated("transformer", "final_layer.adaLN_modulation.1", "norm_out.linear"),
)
SD3_OWN = own("transformer", rf"{JOINT}$")

# --- Wan, LTX, Qwen Image, Z-Image -----------------------------------------------------------------------------------

# Wan-Video/Wan2.1, wan/modules/model.py.
WAN_BLOCK: Block = {
    **{f"self_attn.{x}": (f"attn1.to_{x}",) for x in "qkv"},
    "self_attn.o": ("attn1.to_out.0",),
    **{f"cross_attn.{x}": (f"attn2.to_{x}",) for x in "qkv"},
    "cross_attn.o": ("attn2.to_out.0",),
    "cross_attn.k_img": ("attn2.add_k_proj",),
    "cross_attn.v_img": ("attn2.add_v_proj",),
    "ffn.0": ("ffn.net.0.proj",),
    "ffn.2": ("ffn.net.2",),
}
WAN_BLOCKS = {("blocks", "blocks"): WAN_BLOCK}
WAN_OUTER = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "head.head": "proj_out",
}
# Norms and tables: extracted LoRAs have their differences.
WAN_NORMS: Block = {
    "self_attn.norm_q": ("attn1.norm_q",),
    "self_attn.norm_k": ("attn1.norm_k",),
    "cross_attn.norm_q": ("attn2.norm_q",),
    "cross_attn.norm_k": ("attn2.norm_k",),
    "cross_attn.norm_k_img": ("attn2.norm_added_k",),
    "norm3": ("norm2",),
    "modulation": ("scale_shift_table",),
}
WAN_OUTER_NORMS = {
    "head.modulation": "scale_shift_table",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
}


def wan(component: str = "transformer") -> Scheme:
    return original(component, WAN_BLOCKS)


def wan_whole(component: str = "transformer") -> Scheme:
    return original(component, {("blocks", "blocks"): WAN_BLOCK | WAN_NORMS}, WAN_OUTER | WAN_OUTER_NORMS)


WAN_TABLES = renamed(
    original(
        "transformer",
        {("blocks", "blocks"): {"modulation": ("scale_shift_table",)}},
        {"head.modulation": "scale_shift_table"},
    ),
    (r"\.modulation$", ""),
)


def wan_own(component: str = "transformer") -> Scheme:
    return own(component, r"blocks\.\d+\.(attn\d\.to_(q|k|v|out\.0)|ffn\.net\.(0\.proj|2))$")


LTX = own("transformer", r"blocks\.\d+\.(\w+\.to_(q|k|v|out\.0)|(audio_)?ff\.net\.(0\.proj|2))$")
# Lightricks/LTX-Video, ltx_video/models/transformers/transformer3d.py: the layers that diffusers calls otherwise.
LTX_OUTER = original(
    "transformer",
    {},
    {
        "patchify_proj": "proj_in",
        "adaln_single.linear": "time_embed.linear",
        "adaln_single.emb.timestep_embedder.linear_1": "time_embed.emb.timestep_embedder.linear_1",
        "caption_projection.linear_1": "caption_projection.linear_1",
        "proj_out": "proj_out",
    },
)
LTX2_OUTER = original(
    "transformer",
    {},
    {
        "patchify_proj": "proj_in",
        "audio_patchify_proj": "audio_proj_in",
        "adaln_single.linear": "time_embed.linear",
        "audio_adaln_single.linear": "audio_time_embed.linear",
        "av_ca_video_scale_shift_adaln_single.linear": "av_cross_attn_video_scale_shift.linear",
        "av_ca_audio_scale_shift_adaln_single.linear": "av_cross_attn_audio_scale_shift.linear",
        "av_ca_a2v_gate_adaln_single.linear": "av_cross_attn_video_a2v_gate.linear",
        "av_ca_v2a_gate_adaln_single.linear": "av_cross_attn_audio_v2a_gate.linear",
        "av_ca_a2v_gate_adaln_single.emb.timestep_embedder.linear_1": (
            "av_cross_attn_video_a2v_gate.emb.timestep_embedder.linear_1"
        ),
        "caption_projection.linear_1": "caption_projection.linear_1",
        "proj_out": "proj_out",
        "audio_proj_out": "audio_proj_out",
    },
)
# What musubi-tuner and ai-toolkit train: diffusers' own names, as the model's code has them.
QWEN = own(
    "transformer",
    rf"blocks\.\d+\.({JOINT}|(img|txt)_(mlp\.net\.(0\.proj|2)|mod\.1))$",
)
Z_IMAGE = own(
    "transformer", r"(layers|refiner)\.\d+\.(attention\.to_(q|k|v|out\.0)|feed_forward\.w[123]|adaLN_modulation\.0)$"
)
# As Tongyi-MAI's single file and ComfyUI (comfy/ldm/lumina/model.py) have it.
Z_IMAGE_BLOCK: Block = {
    "attention.qkv": ("attention.to_q", "attention.to_k", "attention.to_v"),
    "attention.out": ("attention.to_out.0",),
    "feed_forward.w1": ("feed_forward.w1",),
    "feed_forward.w2": ("feed_forward.w2",),
    "feed_forward.w3": ("feed_forward.w3",),
    "adaLN_modulation.0": ("adaLN_modulation.0",),
}
Z_IMAGE_FUSED = original(
    "transformer", {(name, name): Z_IMAGE_BLOCK for name in ("layers", "noise_refiner", "context_refiner")}
)
Z_IMAGE_WHOLE = together(
    Z_IMAGE_FUSED,
    original(
        "transformer",
        {},
        {
            "x_embedder": "all_x_embedder.2-1",
            "cap_embedder.1": "cap_embedder.1",
            "t_embedder.mlp.0": "t_embedder.mlp.0",
            "final_layer.linear": "all_final_layer.2-1.linear",
            "final_layer.adaLN_modulation.1": "all_final_layer.2-1.adaLN_modulation.1",
        },
    ),
)

# Tencent/HunyuanVideo, hyvideo/modules/models.py.
HUNYUAN = original(
    "transformer",
    {
        ("double_blocks", "transformer_blocks"): {
            "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
            "img_attn_proj": ("attn.to_out.0",),
            "img_mlp.fc1": ("ff.net.0.proj",),
            "img_mlp.fc2": ("ff.net.2",),
            "img_mod.linear": ("norm1.linear",),
            "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
            "txt_attn_proj": ("attn.to_add_out",),
            "txt_mlp.fc1": ("ff_context.net.0.proj",),
            "txt_mlp.fc2": ("ff_context.net.2",),
            "txt_mod.linear": ("norm1_context.linear",),
        },
        ("single_blocks", "single_transformer_blocks"): {
            "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
            "linear2": ("proj_out",),
            "modulation.linear": ("norm.linear",),
        },
    },
)
HUNYUAN_WHOLE = together(
    HUNYUAN,
    original(
        "transformer",
        {
            ("txt_in.individual_token_refiner.blocks", "context_embedder.token_refiner.refiner_blocks"): {
                "self_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
                "self_attn_proj": ("attn.to_out.0",),
                "mlp.fc1": ("ff.net.0.proj",),
                "mlp.fc2": ("ff.net.2",),
                "adaLN_modulation.1": ("norm_out.linear",),
            }
        },
        {
            "img_in.proj": "x_embedder.proj",
            "time_in.mlp.0": "time_text_embed.timestep_embedder.linear_1",
            "time_in.mlp.2": "time_text_embed.timestep_embedder.linear_2",
            "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
            "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
            "txt_in.input_embedder": "context_embedder.proj_in",
            "final_layer.linear": "proj_out",
        },
    ),
    modulated("transformer", "final_layer.adaLN_modulation.1", "norm_out.linear"),
)
HUNYUAN_OWN = own(
    "transformer",
    rf"transformer_blocks\.\d+\.({JOINT}|ff(_context)?\.net\.(0\.proj|2)|proj_(mlp|out))$",
)
