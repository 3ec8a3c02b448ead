"""Tiny random-weight diffusers checkpoints for tests: seeded, fp32, a MB or less each, made without a network.

``python tests/checkpoints.py FOLDER`` writes one of each under FOLDER, to try diffpipe on. The modules named in `MORE`
hold those of the other families.

The makers take a target path and return it. The helpers that spoil or reshape a folder (`sharded`, `with_variant`,
`with_pickle`, `with_custom_pipeline`) change it in place: give them a copy.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shutil
import string
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

Tensors = dict[str, torch.Tensor]
Model = TypeVar("Model", bound=torch.nn.Module)

#: Number of attention heads times their size: the width of the tiny Flux transformer (Flux itself: 24 x 128 = 3072).
FLUX_WIDTH = 32
#: Width of every text encoder here.
TEXT_WIDTH = 32


def clip_tokenizer() -> CLIPTokenizer:
    """One token for each character, once inside a word and once at its end, as in CLIP's own byte-pair vocabulary."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)


def t5_tokenizer() -> T5Tokenizer:
    """A unigram vocabulary of printable characters."""
    letters = string.ascii_letters + string.digits + string.punctuation
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -1.0) for letter in f"▁{letters}")]
    return T5Tokenizer(vocab=vocab, extra_ids=10, model_max_length=512)


def vary(model: Model) -> Model:
    """Move norms and biases off the ones and zeros they start at, so that two of them taken for each other show."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def clip_text_encoder(tokenizer: CLIPTokenizer, kind: type = CLIPTextModel) -> Any:
    """`kind`: CLIPTextModel or CLIPTextModelWithProjection."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=64,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return vary(kind(config))


def t5_text_encoder(tokenizer: T5Tokenizer, width: int = TEXT_WIDTH) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    return vary(T5EncoderModel(config))


def autoencoder(**config: object) -> AutoencoderKL:
    """Four levels, so that 8 x 8 pixels make one latent of 4 channels, as in the real ones."""
    model = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[8, 8, 16, 16],
        norm_num_groups=4,
        layers_per_block=1,
        latent_channels=4,
        sample_size=32,
        **config,
    )
    return vary(model)


def flux_transformer(**config: object) -> FluxTransformer2DModel:
    """Without embedded guidance, unless `config` says otherwise."""
    small = {
        "in_channels": 16,  # 4 latent channels, packed 2 x 2
        "num_layers": 1,
        "num_single_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": FLUX_WIDTH // 2,
        "joint_attention_dim": TEXT_WIDTH,
        "pooled_projection_dim": TEXT_WIDTH,
        "guidance_embeds": False,
        "axes_dims_rope": (4, 6, 6),
    }
    return vary(FluxTransformer2DModel(**{**small, **config}))


def flux_pipeline(seed: int = 0) -> FluxPipeline:
    """A FluxPipeline without embedded guidance, like Flux schnell; sizes are multiples of 16 pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer, tokenizer_2 = clip_tokenizer(), t5_tokenizer()
        return FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
            text_encoder=clip_text_encoder(tokenizer),
            tokenizer=tokenizer,
            text_encoder_2=t5_text_encoder(tokenizer_2),
            tokenizer_2=tokenizer_2,
            transformer=flux_transformer(),
            vae=autoencoder(
                scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False
            ),
        )


def unet() -> UNet2DConditionModel:
    model = UNet2DConditionModel(
        sample_size=4,  # latents: the default picture is 32 x 32
        block_out_channels=[16, 24],
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,
    )
    return vary(model)


def stable_diffusion_pipeline(seed: int = 0) -> StableDiffusionPipeline:
    """A StableDiffusionPipeline as of version 1, without safety checker; sizes are multiples of 8 pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = clip_tokenizer()
        return StableDiffusionPipeline(
            vae=autoencoder(),
            text_encoder=clip_text_encoder(tokenizer),
            tokenizer=tokenizer,
            unet=unet(),
            scheduler=DDIMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                clip_sample=False,
                set_alpha_to_one=False,
                steps_offset=1,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def flux(path: Path, seed: int = 0) -> Path:
    """A FluxPipeline folder; FluxImg2ImgPipeline and FluxInpaintPipeline load from it too."""
    flux_pipeline(seed).save_pretrained(path)
    return path


def stable_diffusion(path: Path, seed: int = 0) -> Path:
    """A StableDiffusionPipeline folder; the image-to-image and inpainting pipelines load from it too."""
    stable_diffusion_pipeline(seed).save_pretrained(path)
    return path


def stable_diffusion_single_file(path: Path, seed: int = 0) -> Path:
    """The weights of ``stable_diffusion(seed=seed)`` in one file with the tensor names of the original LDM code."""
    pipe = stable_diffusion_pipeline(seed)
    clip = {f"text_model.{key.removeprefix('text_model.')}": t for key, t in pipe.text_encoder.state_dict().items()}
    return _save(
        path,
        {
            **_prefixed("model.diffusion_model.", ldm_unet(pipe.unet)),
            **_prefixed("first_stage_model.", ldm_vae(pipe.vae)),
            **_prefixed("cond_stage_model.transformer.", clip),
        },
    )


def flux_transformer_single_file(path: Path, seed: int = 0) -> Path:
    """The transformer of ``flux(seed=seed)`` in one file with the tensor names of Black Forest Labs' code.

    diffusers' converter takes only the width of the released models: load it inside `bfl_converter_width`.
    """
    return _save(path, bfl_transformer(flux_pipeline(seed).transformer))


def flux_transformer_diffusers_file(path: Path, seed: int = 0) -> Path:
    """The transformer of ``flux(seed=seed)`` in one file with diffusers' own tensor names."""
    return _save(path, flux_pipeline(seed).transformer.state_dict())


def flux_transformer_gguf(path: Path, seed: int = 0) -> Path:
    """The transformer of ``flux(seed=seed)`` in a GGUF file: its matrices in 8 bits (Q8_0), the rest in 32."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    writer = GGUFWriter(path, "flux")
    for name, tensor in flux_pipeline(seed).transformer.state_dict().items():
        blocks = tensor.ndim == 2 and tensor.shape[1] % 32 == 0  # Q8_0 scales 32 values together
        kind = GGMLQuantizationType.Q8_0 if blocks else GGMLQuantizationType.F32
        writer.add_tensor(name, quants.quantize(tensor.numpy(), kind), raw_dtype=kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def flux_lora(path: Path, seed: int = 0, rank: int = 4) -> Path:
    """A LoRA for `flux` in diffusers' format, strong enough to change the picture.

    It adapts the attention projections of every block: ``lora_A`` is (rank, in), ``lora_B`` is (out, rank).
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):  # only the shapes matter
        transformer = flux_transformer()
    layers: Tensors = {}
    for name, module in transformer.named_modules():
        if re.search(r"attn\.to_(q|k|v|out\.0)$", name):
            layers[f"{name}.lora_A.weight"] = torch.randn(rank, module.in_features, generator=generator)
            layers[f"{name}.lora_B.weight"] = torch.randn(module.out_features, rank, generator=generator) * 0.5
    path.parent.mkdir(parents=True, exist_ok=True)
    FluxPipeline.save_lora_weights(path.parent, transformer_lora_layers=layers, weight_name=path.name)
    return path


def sharded(folder: Path, component: str, max_shard_size: str = "50KB") -> Path:
    """Save one component of a pipeline folder again, in shards of at most `max_shard_size` with an index."""
    library, class_name = json.loads((folder / "model_index.json").read_text())[component]
    model_class = getattr({"diffusers": diffusers, "transformers": transformers}[library], class_name)
    model = model_class.from_pretrained(folder / component)
    for file in (folder / component).glob("*.safetensors"):
        file.unlink()
    model.save_pretrained(folder / component, max_shard_size=max_shard_size)
    return folder


def with_variant(folder: Path, variant: str = "fp16", dtype: torch.dtype = torch.float16) -> Path:
    """Add weights of a lower precision beside the plain ones of every (unsharded) component."""
    for file in sorted(folder.glob("*/*.safetensors")):
        weights = {key: tensor.to(dtype) for key, tensor in load_file(file).items()}
        _save(file.with_suffix(f".{variant}.safetensors"), weights)
    return folder


def with_pickle(folder: Path, component: str) -> Path:
    """Replace a component's safetensors by the pickled .bin file that the libraries wrote before them."""
    for file in (folder / component).glob("*.safetensors"):
        stem = "pytorch_model" if file.stem == "model" else file.stem  # transformers renamed, diffusers did not
        torch.save(load_file(file), file.with_name(f"{stem}.bin"))
        file.unlink()
    return folder


CUSTOM_PIPELINE = """\
from pathlib import Path

from diffusers import {base}

Path({marker!r}).touch()


class CustomPipeline({base}):
    pass
"""


def with_custom_pipeline(folder: Path) -> Path:
    """Let model_index.json name a class in a Python file of the folder.

    Running that file leaves an empty file ``custom-code-ran`` in the folder, so that a test sees that it did not.
    """
    index_file = folder / "model_index.json"
    index = json.loads(index_file.read_text())
    marker = (folder / "custom-code-ran").resolve()
    (folder / "pipeline_custom.py").write_text(CUSTOM_PIPELINE.format(base=index["_class_name"], marker=str(marker)))
    index["_class_name"] = ["pipeline_custom", "CustomPipeline"]
    index_file.write_text(json.dumps(index, indent=2) + "\n")
    return folder


@contextmanager
def bfl_converter_width(width: int = FLUX_WIDTH) -> Iterator[None]:
    """Let diffusers convert a Flux transformer of another width from Black Forest Labs' tensor names.

    ``convert_flux_transformer_checkpoint_to_diffusers`` has the width of the released models, 3072, as a constant, and
    the smallest model of that width has half a billion parameters. All else in the converter runs as it is.
    """
    convert = convert_flux_transformer_checkpoint_to_diffusers
    code = convert.__code__
    if 3072 not in code.co_consts:
        raise RuntimeError("diffusers' Flux converter no longer fixes the width at 3072: drop bfl_converter_width")
    convert.__code__ = code.replace(co_consts=tuple(width if value == 3072 else value for value in code.co_consts))
    try:
        yield
    finally:
        convert.__code__ = code


# The inverses of the renames in diffusers.loaders.single_file_utils.

UNET_LAYERS = {
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
}
UNET_RESNET = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "time_emb_proj.": "emb_layers.1.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "conv_shortcut.": "skip_connection.",
}
VAE_LAYERS = {
    r"conv_norm_out\.": "norm_out.",
    r"conv_shortcut\.": "nin_shortcut.",
    r"mid_block\.resnets\.0\.": "mid.block_1.",
    r"mid_block\.resnets\.1\.": "mid.block_2.",
    r"mid_block\.attentions\.0\.": "mid.attn_1.",
    r"(down|up)_blocks\.(\d+)\.resnets\.": r"\1.\2.block.",
    r"(down|up)_blocks\.(\d+)\.(down|up)samplers\.0\.": r"\1.\2.\3sample.",
    r"attn_1\.group_norm\.": "attn_1.norm.",
    r"attn_1\.to_out\.0\.": "attn_1.proj_out.",
    r"attn_1\.to_([qkv])\.": r"attn_1.\1.",
}
BFL_LAYERS = {
    "time_text_embed.timestep_embedder.linear_1.": "time_in.in_layer.",
    "time_text_embed.timestep_embedder.linear_2.": "time_in.out_layer.",
    "time_text_embed.text_embedder.linear_1.": "vector_in.in_layer.",
    "time_text_embed.text_embedder.linear_2.": "vector_in.out_layer.",
    "context_embedder.": "txt_in.",
    "x_embedder.": "img_in.",
    "proj_out.": "final_layer.linear.",
}
BFL_DOUBLE_BLOCK = {
    "norm1.linear.": "img_mod.lin.",
    "norm1_context.linear.": "txt_mod.lin.",
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    "ff.net.0.proj.": "img_mlp.0.",
    "ff.net.2.": "img_mlp.2.",
    "ff_context.net.0.proj.": "txt_mlp.0.",
    "ff_context.net.2.": "txt_mlp.2.",
    "attn.to_out.0.": "img_attn.proj.",
    "attn.to_add_out.": "txt_attn.proj.",
}
BFL_SINGLE_BLOCK = {
    "norm.linear.": "modulation.lin.",
    "attn.norm_q.weight": "norm.query_norm.scale",
    "attn.norm_k.weight": "norm.key_norm.scale",
    "proj_out.": "linear2.",
}


def ldm_unet(model: UNet2DConditionModel) -> Tensors:
    """The tensors of a UNet under their LDM names, without the ``model.diffusion_model.`` prefix."""
    return {_ldm_unet_name(model, key): tensor for key, tensor in model.state_dict().items()}


def _ldm_unet_name(model: UNet2DConditionModel, key: str) -> str:
    match = re.match(r"(down|mid|up)_block(?:s\.(\d+))?\.(\w+)\.(\d+)\.(.+)", key)
    if match is None:
        return _renamed(UNET_LAYERS, key)
    side, kind, layer = match[1], match[3], int(match[4])
    rest = _renamed(UNET_RESNET, match[5]) if kind == "resnets" else match[5]
    if side == "mid":  # a resnet, an attention, a resnet
        return f"middle_block.{2 * layer if kind == 'resnets' else 1}.{rest}"
    # LDM numbers the layers of all blocks in a row. Input block 0 is conv_in; the downsampler of a down block has a
    # number of its own; an up block has one layer more instead, and its upsampler shares the number of the last.
    block, per_block = int(match[2]), model.config.layers_per_block + 1
    first = block * per_block + (1 if side == "down" else 0)
    if kind == "downsamplers":
        return f"input_blocks.{first + per_block - 1}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        place = 2 if "CrossAttn" in model.config.up_block_types[block] else 1
        return f"output_blocks.{first + per_block - 1}.{place}.{rest}"
    return f"{'input' if side == 'down' else 'output'}_blocks.{first + layer}.{0 if kind == 'resnets' else 1}.{rest}"


def ldm_vae(model: AutoencoderKL) -> Tensors:
    """The tensors of an AutoencoderKL under their LDM names, without the ``first_stage_model.`` prefix.

    The projections of the attention in the middle are 1 x 1 convolutions there: (out, in) becomes (out, in, 1, 1).
    """
    last = len(model.config.up_block_types) - 1
    renamed: Tensors = {}
    for key, tensor in model.state_dict().items():
        for pattern, replacement in VAE_LAYERS.items():
            key = re.sub(pattern, replacement, key)
        key = re.sub(r"decoder\.up\.(\d+)", lambda match: f"decoder.up.{last - int(match[1])}", key)  # counts down
        renamed[key] = tensor[:, :, None, None] if "attn_1" in key and tensor.ndim == 2 else tensor
    return renamed


def bfl_transformer(model: FluxTransformer2DModel) -> Tensors:
    """The tensors of a Flux transformer under the names of Black Forest Labs' code, queries, keys and values joined."""
    weights = model.state_dict()
    # The final layer's modulation is (scale, shift) in diffusers, (shift, scale) in the original.
    renamed = {
        f"final_layer.adaLN_modulation.1.{kind}": torch.cat(weights.pop(f"norm_out.linear.{kind}").chunk(2)[::-1])
        for kind in ("weight", "bias")
    }
    for i in range(model.config.num_layers):
        block = _take(weights, f"transformer_blocks.{i}.")
        renamed |= _prefixed(f"double_blocks.{i}.", _bfl_double_block(block))
    for i in range(model.config.num_single_layers):
        block = _take(weights, f"single_transformer_blocks.{i}.")
        renamed |= _prefixed(f"single_blocks.{i}.", _bfl_single_block(block))
    return renamed | {_renamed(BFL_LAYERS, key): tensor for key, tensor in weights.items()}


def _bfl_double_block(block: Tensors) -> Tensors:
    renamed: Tensors = {}
    for kind in ("weight", "bias"):
        renamed[f"img_attn.qkv.{kind}"] = torch.cat([block.pop(f"attn.to_{x}.{kind}") for x in "qkv"])
        renamed[f"txt_attn.qkv.{kind}"] = torch.cat([block.pop(f"attn.add_{x}_proj.{kind}") for x in "qkv"])
    return renamed | {_renamed(BFL_DOUBLE_BLOCK, key): tensor for key, tensor in block.items()}


def _bfl_single_block(block: Tensors) -> Tensors:
    renamed: Tensors = {}
    for kind in ("weight", "bias"):
        names = [f"attn.to_q.{kind}", f"attn.to_k.{kind}", f"attn.to_v.{kind}", f"proj_mlp.{kind}"]
        renamed[f"linear1.{kind}"] = torch.cat([block.pop(name) for name in names])
    return renamed | {_renamed(BFL_SINGLE_BLOCK, key): tensor for key, tensor in block.items()}


def _renamed(prefixes: dict[str, str], key: str) -> str:
    for old, new in prefixes.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def _take(weights: Tensors, prefix: str) -> Tensors:
    return {key.removeprefix(prefix): weights.pop(key) for key in list(weights) if key.startswith(prefix)}


def _prefixed(prefix: str, weights: Tensors) -> Tensors:
    return {prefix + key: tensor for key, tensor in weights.items()}


def _save(path: Path, weights: Tensors) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # transformers refuses a file whose header does not name the framework
    save_file({key: tensor.contiguous() for key, tensor in weights.items()}, path, metadata={"format": "pt"})
    return path


#: Modules beside this one whose MAKERS are more rows for `write_all`.
MORE = ("checkpoints_image", "checkpoints_video", "checkpoints_lora")

#: A checkpoint: its name in the folder, what writes it to a path, and what it is.
Maker = tuple[str, Callable[[Path], Path], str]


def write_all(folder: Path) -> Iterator[tuple[Path, str]]:
    """Write every checkpoint under `folder`; yield each path with what it is."""
    makers: list[Maker] = [
        ("flux", flux, "FluxPipeline folder"),
        ("stable-diffusion", stable_diffusion, "StableDiffusionPipeline folder"),
        ("stable-diffusion.safetensors", stable_diffusion_single_file, "the same, one file in the LDM layout"),
        ("flux-transformer-bfl.safetensors", flux_transformer_single_file, "Flux transformer, the original layout"),
        ("flux-transformer.safetensors", flux_transformer_diffusers_file, "Flux transformer, diffusers' layout"),
        ("flux-transformer.gguf", flux_transformer_gguf, "Flux transformer in 8 bits"),
        ("flux-lora.safetensors", flux_lora, "LoRA for the Flux folder"),
        ("flux-sharded", lambda path: sharded(flux(path), "transformer"), "Flux with its transformer in shards"),
        ("flux-fp16", lambda path: with_variant(flux(path)), "Flux with fp16 variants beside the plain weights"),
        ("flux-pickle", lambda path: with_pickle(flux(path), "transformer"), "Flux with a pickled transformer"),
        ("flux-custom", lambda path: with_custom_pipeline(flux(path)), "Flux with a pipeline class of its own"),
    ]
    makers += [maker for module in MORE for maker in importlib.import_module(module).MAKERS]
    for name, make, what in makers:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        yield make(folder / name), what


def main() -> None:
    parser = argparse.ArgumentParser(description="Write tiny random-weight checkpoints to try diffpipe on.")
    parser.add_argument("folder", type=Path, help="where to write them; folders of the same names are replaced")
    for path, what in write_all(parser.parse_args().folder):
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        print(f"{path}  {sum(file.stat().st_size for file in files) / 1e3:.0f} kB  {what}")


if __name__ == "__main__":
    main()
