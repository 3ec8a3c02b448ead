"""Names that diffusers' own conversions know and no table of ours: its names are taken, the values are by formula."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from safetensors.torch import save_file  # noqa: E402

from diffpipe.core.errors import UsageError  # noqa: E402
from diffpipe.core.source import FileInfo, Role, Source  # noqa: E402
from diffpipe.engine.classes.lookup import pipeline_parts  # noqa: E402
from diffpipe.engine.loading import adapters  # noqa: E402

RANK = 2


def krea2() -> torch.nn.Module:
    return diffusers.Krea2Transformer2DModel(
        in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=16, timestep_embed_dim=8, text_hidden_dim=16, num_text_layers=2, text_num_attention_heads=2,
        text_num_key_value_heads=2, text_intermediate_size=16, num_layerwise_text_blocks=1, num_refiner_text_blocks=1,
        axes_dims_rope=(4, 2, 2),
    )  # fmt: skip


def ace_step() -> torch.nn.Module:
    return diffusers.AceStepTransformer1DModel(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, in_channels=12, audio_acoustic_hidden_dim=4,
    )  # fmt: skip


# The pipeline, its transformer, the names of a file's layers and diffusers' names of them (rows one after another).
KNOWN = {
    "Krea 2 of ComfyUI": (
        "Krea2Pipeline",
        krea2,
        {
            "diffusion_model.blocks.0.attn.wq": ("transformer_blocks.0.attn.to_q",),
            "diffusion_model.blocks.0.mlp.down": ("transformer_blocks.0.ff.down",),
            "diffusion_model.txtfusion.refiner_blocks.0.attn.wo": ("text_fusion.refiner_blocks.0.attn.to_out.0",),
        },
    ),
    "Krea 2 of ai-toolkit": (
        "Krea2Pipeline",
        krea2,
        {"base_model.model.blocks.0.attn.gate": ("transformer_blocks.0.attn.to_gate",)},
    ),
    "ACE-Step": (
        "AceStepPipeline",
        ace_step,
        {
            "base_model.model.layers.0.self_attn.q_proj": ("layers.0.self_attn.to_q",),
            "base_model.model.layers.0.cross_attn.o_proj": ("layers.0.cross_attn.to_out.0",),
        },
    ),
}


@pytest.mark.parametrize("case", KNOWN)
@pytest.mark.parametrize("dora", [False, True])
def test_names_that_only_diffusers_knows(case: str, dora: bool, tmp_path: Path) -> None:
    cls, make, layers = KNOWN[case]
    model = make()
    generator = torch.Generator().manual_seed(0)
    tensors, wanted = {}, {}
    for name, modules in layers.items():
        whole = torch.cat([model.get_submodule(module).weight.detach() for module in modules])
        a = torch.randn(RANK, whole.shape[1], generator=generator)
        b = torch.randn(whole.shape[0], RANK, generator=generator)
        tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b, f"{name}.alpha": torch.tensor(1.0)}
        wanted[modules] = whole + b @ a / RANK
        if dora:
            tensors[f"{name}.lora_magnitude_vector"] = torch.full((whole.shape[0],), 2.0)
            wanted[modules] *= 2 / wanted[modules].norm(dim=1, keepdim=True)
    fused(cls, model, tensors, tmp_path)
    for modules, weight in wanted.items():
        got = torch.cat([model.get_submodule(module).weight.detach() for module in modules])
        torch.testing.assert_close(got, weight, rtol=1e-5, atol=1e-5)


def fused(cls: str, model: torch.nn.Module, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    pipeline = getattr(diffusers, cls)
    pipe = pipeline.__new__(pipeline)  # __init__ would want the other parts
    pipe.register_modules(**dict.fromkeys(pipeline_parts(pipeline)[0]) | {"transformer": model})
    path = folder / "adapter.safetensors"
    save_file(tensors, path)
    adapters.fuse(pipe, [(path, Source(Role.lora(0), "file", path.name, {path.name: FileInfo(0, "")}))])


def test_names_that_nobody_knows(tmp_path: Path) -> None:
    tensors = {f"lora_unet_blocks_0_attn_what.lora_{side}.weight": torch.ones(16, 16) for side in ("down", "up")}
    with pytest.raises(UsageError, match="changes no layer of this pipeline"):
        fused("Krea2Pipeline", krea2(), tensors, tmp_path)
