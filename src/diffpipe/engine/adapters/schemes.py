"""What the modules of a denoiser are called in the code of its makers, and so in most trainers' files.

A row is the makers' name and diffusers' names; "{}" stands for a block's number. Several names: the makers have one
layer where diffusers has these, their rows one after another. A name that begins with "~": the halves of its rows are
the other way round (scale and shift of a last norm); with "+": it must be there, and is not meant. A row applies to
every model of its table that has all of its modules. Sources: the conversions of
diffusers/loaders/single_file_utils.py and diffusers/loaders/lora_conversion_utils.py, and the makers' repositories.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

# Black Forest Labs' Flux, and what was made of it (Chroma, Kontext); xlabs trains its attention's processors.
FLUX = """
double_blocks.{}.img_attn.qkv = transformer_blocks.{}.attn.to_q transformer_blocks.{}.attn.to_k \
transformer_blocks.{}.attn.to_v
double_blocks.{}.txt_attn.qkv = transformer_blocks.{}.attn.add_q_proj transformer_blocks.{}.attn.add_k_proj \
transformer_blocks.{}.attn.add_v_proj
double_blocks.{}.processor.qkv_lora1 = transformer_blocks.{}.attn.to_q transformer_blocks.{}.attn.to_k \
transformer_blocks.{}.attn.to_v
double_blocks.{}.processor.qkv_lora2 = transformer_blocks.{}.attn.add_q_proj transformer_blocks.{}.attn.add_k_proj \
transformer_blocks.{}.attn.add_v_proj
double_blocks.{}.processor.proj_lora1 = transformer_blocks.{}.attn.to_out.0
double_blocks.{}.processor.proj_lora2 = transformer_blocks.{}.attn.to_add_out
double_blocks.{}.img_attn.proj = transformer_blocks.{}.attn.to_out.0
double_blocks.{}.txt_attn.proj = transformer_blocks.{}.attn.to_add_out
double_blocks.{}.img_attn.norm.query_norm = transformer_blocks.{}.attn.norm_q
double_blocks.{}.img_attn.norm.key_norm = transformer_blocks.{}.attn.norm_k
double_blocks.{}.txt_attn.norm.query_norm = transformer_blocks.{}.attn.norm_added_q
double_blocks.{}.txt_attn.norm.key_norm = transformer_blocks.{}.attn.norm_added_k
double_blocks.{}.img_mlp.0 = transformer_blocks.{}.ff.net.0.proj
double_blocks.{}.img_mlp.2 = transformer_blocks.{}.ff.net.2
double_blocks.{}.txt_mlp.0 = transformer_blocks.{}.ff_context.net.0.proj
double_blocks.{}.txt_mlp.2 = transformer_blocks.{}.ff_context.net.2
double_blocks.{}.img_mod.lin = transformer_blocks.{}.norm1.linear
double_blocks.{}.txt_mod.lin = transformer_blocks.{}.norm1_context.linear
single_blocks.{}.linear1 = single_transformer_blocks.{}.attn.to_q single_transformer_blocks.{}.attn.to_k \
single_transformer_blocks.{}.attn.to_v single_transformer_blocks.{}.proj_mlp
single_blocks.{}.processor.qkv = single_transformer_blocks.{}.attn.to_q single_transformer_blocks.{}.attn.to_k \
single_transformer_blocks.{}.attn.to_v
single_blocks.{}.processor.proj = single_transformer_blocks.{}.proj_out
single_blocks.{}.linear2 = single_transformer_blocks.{}.proj_out
single_blocks.{}.modulation.lin = single_transformer_blocks.{}.norm.linear
single_blocks.{}.norm.query_norm = single_transformer_blocks.{}.attn.norm_q
single_blocks.{}.norm.key_norm = single_transformer_blocks.{}.attn.norm_k
img_in = x_embedder
txt_in = context_embedder
time_in.in_layer = time_text_embed.timestep_embedder.linear_1
time_in.out_layer = time_text_embed.timestep_embedder.linear_2
vector_in.in_layer = time_text_embed.text_embedder.linear_1
vector_in.out_layer = time_text_embed.text_embedder.linear_2
guidance_in.in_layer = time_text_embed.guidance_embedder.linear_1
guidance_in.out_layer = time_text_embed.guidance_embedder.linear_2
final_layer.linear = proj_out
final_layer.adaLN_modulation.1 = ~norm_out.linear
distilled_guidance_layer.layers.{}.in_layer = distilled_guidance_layer.layers.{}.linear_1
distilled_guidance_layer.layers.{}.out_layer = distilled_guidance_layer.layers.{}.linear_2
"""
FLUX_2 = """
double_blocks.{}.img_mlp.0 = transformer_blocks.{}.ff.linear_in
double_blocks.{}.img_mlp.2 = transformer_blocks.{}.ff.linear_out
double_blocks.{}.txt_mlp.0 = transformer_blocks.{}.ff_context.linear_in
double_blocks.{}.txt_mlp.2 = transformer_blocks.{}.ff_context.linear_out
single_blocks.{}.linear1 = single_transformer_blocks.{}.attn.to_qkv_mlp_proj
single_blocks.{}.linear2 = single_transformer_blocks.{}.attn.to_out
time_in.in_layer = time_guidance_embed.timestep_embedder.linear_1
time_in.out_layer = time_guidance_embed.timestep_embedder.linear_2
guidance_in.in_layer = time_guidance_embed.guidance_embedder.linear_1
guidance_in.out_layer = time_guidance_embed.guidance_embedder.linear_2
single_stream_modulation.lin = single_stream_modulation.linear
double_stream_modulation_img.lin = double_stream_modulation_img.linear
double_stream_modulation_txt.lin = double_stream_modulation_txt.linear
"""
WAN = """
blocks.{}.self_attn.q = blocks.{}.attn1.to_q
blocks.{}.self_attn.k = blocks.{}.attn1.to_k
blocks.{}.self_attn.v = blocks.{}.attn1.to_v
blocks.{}.self_attn.o = blocks.{}.attn1.to_out.0
blocks.{}.self_attn.norm_q = blocks.{}.attn1.norm_q
blocks.{}.self_attn.norm_k = blocks.{}.attn1.norm_k
blocks.{}.cross_attn.q = blocks.{}.attn2.to_q
blocks.{}.cross_attn.k = blocks.{}.attn2.to_k
blocks.{}.cross_attn.v = blocks.{}.attn2.to_v
blocks.{}.cross_attn.o = blocks.{}.attn2.to_out.0
blocks.{}.cross_attn.norm_q = blocks.{}.attn2.norm_q
blocks.{}.cross_attn.norm_k = blocks.{}.attn2.norm_k
blocks.{}.cross_attn.k_img = blocks.{}.attn2.add_k_proj
blocks.{}.cross_attn.v_img = blocks.{}.attn2.add_v_proj
blocks.{}.cross_attn.norm_k_img = blocks.{}.attn2.norm_added_k
blocks.{}.ffn.0 = blocks.{}.ffn.net.0.proj
blocks.{}.ffn.2 = blocks.{}.ffn.net.2
blocks.{}.norm3 = blocks.{}.norm2
blocks.{}.modulation = blocks.{}.scale_shift_table
vace_blocks.{}.self_attn.q = vace_blocks.{}.attn1.to_q
vace_blocks.{}.self_attn.k = vace_blocks.{}.attn1.to_k
vace_blocks.{}.self_attn.v = vace_blocks.{}.attn1.to_v
vace_blocks.{}.self_attn.o = vace_blocks.{}.attn1.to_out.0
vace_blocks.{}.cross_attn.q = vace_blocks.{}.attn2.to_q
vace_blocks.{}.cross_attn.k = vace_blocks.{}.attn2.to_k
vace_blocks.{}.cross_attn.v = vace_blocks.{}.attn2.to_v
vace_blocks.{}.cross_attn.o = vace_blocks.{}.attn2.to_out.0
vace_blocks.{}.ffn.0 = vace_blocks.{}.ffn.net.0.proj
vace_blocks.{}.ffn.2 = vace_blocks.{}.ffn.net.2
vace_blocks.{}.before_proj = vace_blocks.{}.proj_in
vace_blocks.{}.after_proj = vace_blocks.{}.proj_out
text_embedding.0 = condition_embedder.text_embedder.linear_1
text_embedding.2 = condition_embedder.text_embedder.linear_2
time_embedding.0 = condition_embedder.time_embedder.linear_1
time_embedding.2 = condition_embedder.time_embedder.linear_2
time_projection.1 = condition_embedder.time_proj
img_emb.proj.0 = condition_embedder.image_embedder.norm1
img_emb.proj.1 = condition_embedder.image_embedder.ff.net.0.proj
img_emb.proj.3 = condition_embedder.image_embedder.ff.net.2
img_emb.proj.4 = condition_embedder.image_embedder.norm2
head.head = proj_out
head.modulation = scale_shift_table
"""
HUNYUAN_VIDEO = """
double_blocks.{}.img_attn_qkv = transformer_blocks.{}.attn.to_q transformer_blocks.{}.attn.to_k \
transformer_blocks.{}.attn.to_v
double_blocks.{}.txt_attn_qkv = transformer_blocks.{}.attn.add_q_proj transformer_blocks.{}.attn.add_k_proj \
transformer_blocks.{}.attn.add_v_proj
double_blocks.{}.img_attn_q = transformer_blocks.{}.attn.to_q
double_blocks.{}.img_attn_k = transformer_blocks.{}.attn.to_k
double_blocks.{}.img_attn_v = transformer_blocks.{}.attn.to_v
double_blocks.{}.txt_attn_q = transformer_blocks.{}.attn.add_q_proj
double_blocks.{}.txt_attn_k = transformer_blocks.{}.attn.add_k_proj
double_blocks.{}.txt_attn_v = transformer_blocks.{}.attn.add_v_proj
double_blocks.{}.img_attn_proj = transformer_blocks.{}.attn.to_out.0
double_blocks.{}.txt_attn_proj = transformer_blocks.{}.attn.to_add_out
double_blocks.{}.img_mlp.fc1 = transformer_blocks.{}.ff.net.0.proj
double_blocks.{}.img_mlp.fc2 = transformer_blocks.{}.ff.net.2
double_blocks.{}.txt_mlp.fc1 = transformer_blocks.{}.ff_context.net.0.proj
double_blocks.{}.txt_mlp.fc2 = transformer_blocks.{}.ff_context.net.2
double_blocks.{}.img_mod.linear = transformer_blocks.{}.norm1.linear
double_blocks.{}.txt_mod.linear = transformer_blocks.{}.norm1_context.linear
double_blocks.{}.img_attn_q_norm = transformer_blocks.{}.attn.norm_q
double_blocks.{}.img_attn_k_norm = transformer_blocks.{}.attn.norm_k
double_blocks.{}.txt_attn_q_norm = transformer_blocks.{}.attn.norm_added_q
double_blocks.{}.txt_attn_k_norm = transformer_blocks.{}.attn.norm_added_k
single_blocks.{}.linear1 = single_transformer_blocks.{}.attn.to_q single_transformer_blocks.{}.attn.to_k \
single_transformer_blocks.{}.attn.to_v single_transformer_blocks.{}.proj_mlp
single_blocks.{}.linear2 = single_transformer_blocks.{}.proj_out
single_blocks.{}.modulation.linear = single_transformer_blocks.{}.norm.linear
single_blocks.{}.q_norm = single_transformer_blocks.{}.attn.norm_q
single_blocks.{}.k_norm = single_transformer_blocks.{}.attn.norm_k
txt_in.individual_token_refiner.blocks.{}.self_attn_qkv = \
context_embedder.token_refiner.refiner_blocks.{}.attn.to_q context_embedder.token_refiner.refiner_blocks.{}.attn.to_k \
context_embedder.token_refiner.refiner_blocks.{}.attn.to_v
txt_in.individual_token_refiner.blocks.{}.self_attn_proj = \
context_embedder.token_refiner.refiner_blocks.{}.attn.to_out.0
txt_in.individual_token_refiner.blocks.{}.mlp.fc1 = context_embedder.token_refiner.refiner_blocks.{}.ff.net.0.proj
txt_in.individual_token_refiner.blocks.{}.mlp.fc2 = context_embedder.token_refiner.refiner_blocks.{}.ff.net.2
txt_in.individual_token_refiner.blocks.{}.adaLN_modulation.1 = \
context_embedder.token_refiner.refiner_blocks.{}.norm_out.linear
txt_in.input_embedder = context_embedder.proj_in
txt_in.t_embedder.mlp.0 = context_embedder.time_text_embed.timestep_embedder.linear_1
txt_in.t_embedder.mlp.2 = context_embedder.time_text_embed.timestep_embedder.linear_2
txt_in.c_embedder.linear_1 = context_embedder.time_text_embed.text_embedder.linear_1
txt_in.c_embedder.linear_2 = context_embedder.time_text_embed.text_embedder.linear_2
img_in.proj = x_embedder.proj
time_in.mlp.0 = time_text_embed.timestep_embedder.linear_1
time_in.mlp.2 = time_text_embed.timestep_embedder.linear_2
guidance_in.mlp.0 = time_text_embed.guidance_embedder.linear_1
guidance_in.mlp.2 = time_text_embed.guidance_embedder.linear_2
vector_in.in_layer = time_text_embed.text_embedder.linear_1
vector_in.out_layer = time_text_embed.text_embedder.linear_2
final_layer.linear = proj_out
final_layer.adaLN_modulation.1 = ~norm_out.linear
"""
# Stability's SD 3: diffusers has the same halves, except in the last block's context and the last norm.
SD_3 = """
joint_blocks.{}.x_block.attn.qkv = transformer_blocks.{}.attn.to_q transformer_blocks.{}.attn.to_k \
transformer_blocks.{}.attn.to_v
joint_blocks.{}.context_block.attn.qkv = transformer_blocks.{}.attn.add_q_proj transformer_blocks.{}.attn.add_k_proj \
transformer_blocks.{}.attn.add_v_proj
joint_blocks.{}.x_block.attn2.qkv = transformer_blocks.{}.attn2.to_q transformer_blocks.{}.attn2.to_k \
transformer_blocks.{}.attn2.to_v
joint_blocks.{}.x_block.attn.proj = transformer_blocks.{}.attn.to_out.0
joint_blocks.{}.x_block.attn2.proj = transformer_blocks.{}.attn2.to_out.0
joint_blocks.{}.context_block.attn.proj = transformer_blocks.{}.attn.to_add_out
joint_blocks.{}.x_block.mlp.fc1 = transformer_blocks.{}.ff.net.0.proj
joint_blocks.{}.x_block.mlp.fc2 = transformer_blocks.{}.ff.net.2
joint_blocks.{}.context_block.mlp.fc1 = transformer_blocks.{}.ff_context.net.0.proj
joint_blocks.{}.context_block.mlp.fc2 = transformer_blocks.{}.ff_context.net.2
joint_blocks.{}.x_block.adaLN_modulation.1 = transformer_blocks.{}.norm1.linear
joint_blocks.{}.context_block.adaLN_modulation.1 = transformer_blocks.{}.norm1_context.linear \
+transformer_blocks.{}.ff_context.net.2
joint_blocks.{}.context_block.adaLN_modulation.1 = ~transformer_blocks.{}.norm1_context.linear
final_layer.adaLN_modulation.1 = ~norm_out.linear
final_layer.linear = proj_out
x_embedder.proj = pos_embed.proj
t_embedder.mlp.0 = time_text_embed.timestep_embedder.linear_1
t_embedder.mlp.2 = time_text_embed.timestep_embedder.linear_2
y_embedder.mlp.0 = time_text_embed.text_embedder.linear_1
y_embedder.mlp.2 = time_text_embed.text_embedder.linear_2
"""
# Lumina 2 has its heads for keys and values apart; Z-Image has Lumina's names, of which diffusers kept most.
LUMINA = """
layers.{}.attention.qkv = layers.{}.attn.to_q layers.{}.attn.to_k layers.{}.attn.to_v
layers.{}.attention.out = layers.{}.attn.to_out.0
layers.{}.feed_forward.w1 = layers.{}.feed_forward.linear_1
layers.{}.feed_forward.w2 = layers.{}.feed_forward.linear_2
layers.{}.feed_forward.w3 = layers.{}.feed_forward.linear_3
layers.{}.adaLN_modulation.1 = layers.{}.norm1.linear
noise_refiner.{}.attention.qkv = noise_refiner.{}.attn.to_q noise_refiner.{}.attn.to_k noise_refiner.{}.attn.to_v
noise_refiner.{}.attention.out = noise_refiner.{}.attn.to_out.0
noise_refiner.{}.feed_forward.w1 = noise_refiner.{}.feed_forward.linear_1
noise_refiner.{}.feed_forward.w2 = noise_refiner.{}.feed_forward.linear_2
noise_refiner.{}.feed_forward.w3 = noise_refiner.{}.feed_forward.linear_3
noise_refiner.{}.adaLN_modulation.1 = noise_refiner.{}.norm1.linear
context_refiner.{}.attention.qkv = context_refiner.{}.attn.to_q context_refiner.{}.attn.to_k \
context_refiner.{}.attn.to_v
context_refiner.{}.attention.out = context_refiner.{}.attn.to_out.0
context_refiner.{}.feed_forward.w1 = context_refiner.{}.feed_forward.linear_1
context_refiner.{}.feed_forward.w2 = context_refiner.{}.feed_forward.linear_2
context_refiner.{}.feed_forward.w3 = context_refiner.{}.feed_forward.linear_3
final_layer.linear = norm_out.linear_2
final_layer.adaLN_modulation.1 = norm_out.linear_1
cap_embedder.1 = time_caption_embed.caption_embedder.1
t_embedder.mlp.0 = time_caption_embed.timestep_embedder.linear_1
t_embedder.mlp.2 = time_caption_embed.timestep_embedder.linear_2
"""
Z_IMAGE = """
layers.{}.attention.qkv = layers.{}.attention.to_q layers.{}.attention.to_k layers.{}.attention.to_v
layers.{}.attention.out = layers.{}.attention.to_out.0
noise_refiner.{}.attention.qkv = noise_refiner.{}.attention.to_q noise_refiner.{}.attention.to_k \
noise_refiner.{}.attention.to_v
noise_refiner.{}.attention.out = noise_refiner.{}.attention.to_out.0
context_refiner.{}.attention.qkv = context_refiner.{}.attention.to_q context_refiner.{}.attention.to_k \
context_refiner.{}.attention.to_v
context_refiner.{}.attention.out = context_refiner.{}.attention.to_out.0
layers.{}.attention.q_norm = layers.{}.attention.norm_q
layers.{}.attention.k_norm = layers.{}.attention.norm_k
x_embedder = all_x_embedder.2-1
final_layer.linear = all_final_layer.2-1.linear
final_layer.adaLN_modulation.1 = all_final_layer.2-1.adaLN_modulation.1
"""
LTX = """
aggregate_embed = text_proj_in
patchify_proj = proj_in
audio_patchify_proj = audio_proj_in
adaln_single.emb.timestep_embedder.linear_1 = time_embed.emb.timestep_embedder.linear_1
adaln_single.emb.timestep_embedder.linear_2 = time_embed.emb.timestep_embedder.linear_2
adaln_single.linear = time_embed.linear
audio_adaln_single.emb.timestep_embedder.linear_1 = audio_time_embed.emb.timestep_embedder.linear_1
audio_adaln_single.emb.timestep_embedder.linear_2 = audio_time_embed.emb.timestep_embedder.linear_2
audio_adaln_single.linear = audio_time_embed.linear
av_ca_video_scale_shift_adaln_single.emb.timestep_embedder.linear_1 = \
av_cross_attn_video_scale_shift.emb.timestep_embedder.linear_1
av_ca_video_scale_shift_adaln_single.emb.timestep_embedder.linear_2 = \
av_cross_attn_video_scale_shift.emb.timestep_embedder.linear_2
av_ca_video_scale_shift_adaln_single.linear = av_cross_attn_video_scale_shift.linear
av_ca_a2v_gate_adaln_single.emb.timestep_embedder.linear_1 = \
av_cross_attn_video_a2v_gate.emb.timestep_embedder.linear_1
av_ca_a2v_gate_adaln_single.emb.timestep_embedder.linear_2 = \
av_cross_attn_video_a2v_gate.emb.timestep_embedder.linear_2
av_ca_a2v_gate_adaln_single.linear = av_cross_attn_video_a2v_gate.linear
av_ca_audio_scale_shift_adaln_single.emb.timestep_embedder.linear_1 = \
av_cross_attn_audio_scale_shift.emb.timestep_embedder.linear_1
av_ca_audio_scale_shift_adaln_single.emb.timestep_embedder.linear_2 = \
av_cross_attn_audio_scale_shift.emb.timestep_embedder.linear_2
av_ca_audio_scale_shift_adaln_single.linear = av_cross_attn_audio_scale_shift.linear
av_ca_v2a_gate_adaln_single.emb.timestep_embedder.linear_1 = \
av_cross_attn_audio_v2a_gate.emb.timestep_embedder.linear_1
av_ca_v2a_gate_adaln_single.emb.timestep_embedder.linear_2 = \
av_cross_attn_audio_v2a_gate.emb.timestep_embedder.linear_2
av_ca_v2a_gate_adaln_single.linear = av_cross_attn_audio_v2a_gate.linear
transformer_blocks.{}.attn1.q_norm = transformer_blocks.{}.attn1.norm_q
transformer_blocks.{}.attn1.k_norm = transformer_blocks.{}.attn1.norm_k
transformer_blocks.{}.attn2.q_norm = transformer_blocks.{}.attn2.norm_q
transformer_blocks.{}.attn2.k_norm = transformer_blocks.{}.attn2.norm_k
"""
# Modules by which a family is known -> its table. Without them names of one family would be read for another whose
# layers have diffusers' same names, and sometimes the same shapes: Flux and HunyuanVideo are 3072 wide, both.
TABLES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("x_embedder", "context_embedder"), FLUX),
    (("x_embedder", "context_embedder"), FLUX_2),
    (("condition_embedder.time_proj",), WAN),
    (("context_embedder.proj_in",), HUNYUAN_VIDEO),
    (("pos_embed.proj", "context_embedder"), SD_3),
    ((), LUMINA),
    ((), Z_IMAGE),
    (("proj_in", "proj_out"), LTX),
    (("text_proj_in",), LTX),
)

# A block of Stable Diffusion's UNet: the makers' names of its layers.
RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
UNET = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}

Names = Iterator[tuple[str, tuple[str, ...]]]  # a maker's name of a module, diffusers' names


def names_of(modules: Collection[str]) -> Names:
    """The names that the makers of a denoiser have for its modules, with diffusers' own."""
    for makers, targets in _rules(modules):
        first = targets[0].lstrip("~").partition("{}")
        numbers = [""] if not first[1] else _numbers(first[0], modules)
        for number in numbers:
            found = tuple(target.replace("{}", number) for target in targets)
            if all(target.lstrip("~+") in modules for target in found):
                yield makers.replace("{}", number), tuple(target for target in found if target[0] != "+")
    if "conv_in" in modules and any(name.startswith("down_blocks.0.") for name in modules):
        yield from _unet(modules)


def _rules(modules: Collection[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for table in (table for known_by, table in TABLES if all(module in modules for module in known_by)):
        for line in table.replace("\\\n", "").strip().splitlines():
            makers, _, targets = line.partition(" = ")
            yield makers, tuple(targets.split())


def _numbers(start: str, modules: Collection[str]) -> list[str]:
    """The numbers of the blocks whose names begin so."""
    found = {name[len(start) :].partition(".")[0] for name in modules if name.startswith(start)}
    return sorted((number for number in found if number.isdigit()), key=int)


def _unet(modules: Collection[str]) -> Names:
    """Stability's numbering of a UNet's blocks, which counts its layers, and down- and upsamplers as well.

    Source: diffusers/loaders/single_file_utils.py, convert_ldm_unet_checkpoint.
    """
    yield from ((makers, (own,)) for makers, own in UNET.items() if own in modules)
    for makers, own in _unet_blocks(modules):
        inner = {v: k for k, v in RESNET.items()} if ".resnets." in own else {}
        inner |= {"conv": "op"} if ".downsamplers." in own else {}
        for name in modules:
            if name.startswith(f"{own}."):
                rest = name[len(own) + 1 :]
                yield f"{makers}.{inner.get(rest, rest)}", (name,)


def _unet_blocks(modules: Collection[str]) -> Iterator[tuple[str, str]]:
    """The makers' names of the blocks of a UNet, with diffusers' own."""
    count = 1
    for block in _numbers("down_blocks.", modules):
        for layer in _numbers(f"down_blocks.{block}.resnets.", modules):
            yield f"input_blocks.{count}.0", f"down_blocks.{block}.resnets.{layer}"
            yield f"input_blocks.{count}.1", f"down_blocks.{block}.attentions.{layer}"
            count += 1
        if f"down_blocks.{block}.downsamplers.0.conv" in modules:
            yield f"input_blocks.{count}.0", f"down_blocks.{block}.downsamplers.0"
            count += 1
    yield "middle_block.0", "mid_block.resnets.0"
    yield "middle_block.1", "mid_block.attentions.0"
    yield "middle_block.2", "mid_block.resnets.1"
    count = 0
    for block in _numbers("up_blocks.", modules):
        layers = _numbers(f"up_blocks.{block}.resnets.", modules)
        attends = any(name.startswith(f"up_blocks.{block}.attentions.") for name in modules)
        for layer in layers:
            yield f"output_blocks.{count}.0", f"up_blocks.{block}.resnets.{layer}"
            yield f"output_blocks.{count}.1", f"up_blocks.{block}.attentions.{layer}"
            count += 1
        yield f"output_blocks.{count - 1}.{2 if attends else 1}", f"up_blocks.{block}.upsamplers.0"
