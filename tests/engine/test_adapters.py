"""diffpipe.engine.loading.adapters: what a LoRA is told to be for, and what fusing makes of the weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from checkpoints import flux_pipeline, stable_diffusion_pipeline  # noqa: E402
from checkpoints_video import wan22_pipeline  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from diffpipe.core.errors import UsageError  # noqa: E402
from diffpipe.core.source import FileInfo, Role, Source  # noqa: E402
from diffpipe.engine.classes import lookup  # noqa: E402
from diffpipe.engine.loading import (  # noqa: E402
    adapter_fit,
    adapters,
    library_logs,
)

CLASSES = {"flux": "FluxPipeline", "stable-diffusion": "StableDiffusionPipeline"}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    library_logs.listen()


def settings_of(checkpoints: Path, model: str) -> adapter_fit.Settings:
    """The settings of a folder's components; nothing else of it is read."""
    index = json.loads((checkpoints / model / "model_index.json").read_text())

    def settings(name: str) -> tuple[Any, dict[str, Any]] | None:
        if not index.get(name, [None])[0]:
            return None
        configuration = json.loads((checkpoints / model / name / "config.json").read_text())
        return lookup.component_class(*index[name]), configuration

    return settings


def check(checkpoints: Path, model: str, lora: Path) -> adapter_fit.Fit | None:
    """Check a LoRA against a folder, of which only the settings are read."""
    index = json.loads((checkpoints / model / "model_index.json").read_text())
    pipeline = lookup.pipeline_class(index["_class_name"])
    return adapter_fit.check(pipeline, lora, lora.name, settings_of(checkpoints, model))


@pytest.mark.parametrize(
    ("model", "lora", "fit"),
    [
        ("flux", "flux-lora", (10, 10)),
        ("flux", "flux-lora-kohya", (1, 1)),
        ("flux", "flux-lora-as-kohya", (3, 3)),
        ("flux-fill", "flux-lora", (10, 10)),
        ("stable-diffusion", "sd-lora", (40, 40)),
        ("stable-diffusion", "sd-lora-kohya", (40, 40)),
        ("stable-diffusion", "sd-lora-text", (8, 8)),
    ],
)
def test_how_much_of_it_fits(checkpoints: Path, model: str, lora: str, fit: tuple[int, int]) -> None:
    found = check(checkpoints, model, checkpoints / f"{lora}.safetensors")
    assert found
    assert (found.fitting, found.layers) == fit


FOREIGN = {
    ("flux", "sd-lora"): "is for another model: of its 40 layers this FluxPipeline has none",
    ("flux", "sd-lora-kohya"): "is for another model: of its 40 layers this FluxPipeline has none",
    ("flux", "flux-lora-wide"): "is for another model: it was made for width 3072, this FluxPipeline has 32 there",
    ("flux", "flux-lora-narrow"): "is for another model: it was made for width 8, this FluxPipeline has 32 there",
    ("flux", "flux-lora-zero"): "changes no layer: its weights are all zero",
    ("stable-diffusion", "flux-lora"): "is for another model: of its 10 layers this StableDiffusionPipeline has none",
    ("stable-diffusion-deep", "sd-lora"): (
        "is for another model: it was made for width 16, this StableDiffusionPipeline has 8 there"
    ),
    ("sd3", "flux-lora"): "is for another model: of its 10 layers this StableDiffusion3Pipeline has 4",
    ("qwen", "flux-lora"): "is for another model: of its 10 layers this QwenImagePipeline has 4",
    ("wan", "sd-lora"): "is for another model: of its 40 layers this WanPipeline has none",
    ("amused", "flux-lora"): "AmusedPipeline takes no LoRA",
}


@pytest.mark.parametrize(("model", "lora"), FOREIGN)
def test_a_lora_for_another_model(checkpoints: Path, model: str, lora: str) -> None:
    with pytest.raises(UsageError) as raised:
        check(checkpoints, model, checkpoints / f"{lora}.safetensors")
    said = FOREIGN[model, lora]
    assert raised.value.message == (f"the LoRA {lora}.safetensors {said}" if "takes" not in said else said)
    assert raised.value.hint


STRANGE = {
    "Krea 2 of kohya": ("wan", "lora_unet_{}", ("blocks_0_attn_wk", "blocks_0_attn_gate", "tproj_1")),
    "Anima of kohya": ("wan", "lora_unet_{}", ("blocks_0_self_attn_q_proj", "llm_adapter_blocks_0_mlp_0")),
    "Flux by Black Forest Labs": ("wan", "{}", ("double_blocks.0.img_attn.qkv", "single_blocks.0.linear1")),
    "Stability's names": ("flux", "lora_unet_{}", ("input_blocks_4_1_proj_in", "middle_block_1_proj_in")),
    "Wan of ComfyUI": ("flux", "diffusion_model.{}", ("blocks.0.self_attn.q", "blocks.0.ffn.0", "head.head")),
    "HunyuanVideo of ComfyUI": ("flux", "diffusion_model.{}", ("double_blocks.0.img_attn_qkv", "txt_in.c_embedder")),
    "a language model of PEFT": ("z-image", "base_model.model.{}", ("model.layers.0.self_attn.q_proj", "lm_head")),
    "nothing but numbers": ("sdxl", "{}", ("0", "1.2.3", "blocks_")),
}


@pytest.mark.parametrize("case", STRANGE)
@pytest.mark.parametrize("ending", ["lora_down lora_up", "lora_A lora_B", "hada_w1_a hada_w1_b hada_w2_a hada_w2_b"])
def test_whatever_its_layout_one_of_another_family_is_refused(
    checkpoints: Path, tmp_path: Path, case: str, ending: str
) -> None:
    model, prefix, modules = STRANGE[case]
    weight = ".weight" if "lora" in ending else ""
    names = [f"{prefix.format(module)}.{part}{weight}" for module in modules for part in ending.split()]
    names += [f"{prefix.format(module)}.alpha" for module in modules]
    save_file({name: torch.ones(() if "alpha" in name else (4, 4)) for name in names}, tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match=r"the LoRA x\.safetensors is for another model: ") as raised:
        check(checkpoints, model, tmp_path / "x.safetensors")
    assert raised.value.hint


OWN = (
    "flux2",
    "flux-kontext",
    "qwen",
    "qwen-edit",
    "sdxl",
    "sd3",
    "z-image",
    "wan",
    "wan22",
    "wan-vace",
    "ltx",
    "ltx2",
)


@pytest.mark.parametrize("model", OWN)
def test_every_family_takes_its_own(checkpoints: Path, tmp_path: Path, model: str) -> None:
    index = json.loads((checkpoints / model / "model_index.json").read_text())
    part = next(name for name in ("transformer", "unet") if name in index)
    weights = load_file(next((checkpoints / model / part).glob("*.safetensors")))
    layers = {
        f"{part}.{name.removesuffix('.weight')}": tensor.shape
        for name, tensor in weights.items()
        if name.endswith((".to_q.weight", ".to_k.weight"))
    }
    lora = {f"{name}.lora_A.weight": torch.ones(2, shape[1]) for name, shape in layers.items()}
    lora |= {f"{name}.lora_B.weight": torch.ones(shape[0], 2) for name, shape in layers.items()}
    save_file(lora, tmp_path / "own.safetensors")
    found = check(checkpoints, model, tmp_path / "own.safetensors")
    assert found
    assert (found.fitting, found.layers) == (len(layers), len(layers))


def part_of_file(checkpoints: Path, folder: Path, model: str, more: dict[str, Any]) -> Path:
    """The model's own LoRA with more tensors in it."""
    path = folder / "more.safetensors"
    own = {"flux": "flux-lora", "stable-diffusion": "sd-lora"}[model]
    save_file({**load_file(checkpoints / f"{own}.safetensors"), **more}, path)
    return path


LEFT = {
    "a layer that is not there": ({"transformer.nowhere.lora_A.weight": 4, "transformer.nowhere.lora_B.weight": 4}, 1),
    "one of two matrices": ({"transformer.transformer_blocks.0.ff.net.2.lora_A.weight": 4}, 1),
    "a formula that nobody knows": ({"transformer.transformer_blocks.0.ff.net.2.oft_blocks": 4}, 1),
    "an embedding": ({"bundle_emb.style.string_to_param": 4, "bundle_emb.other.string_to_param": 4}, 2),
    "a bias for a layer without one": ({"text_encoder_2.encoder.block.0.layer.0.SelfAttention.q.diff_b": 4}, 1),
    "a third text encoder": ({"lora_te4_x.lora_down.weight": 4, "lora_te4_x.lora_up.weight": 4}, 1),
}


@pytest.mark.parametrize(("more", "count"), LEFT.values(), ids=LEFT)
def test_what_is_not_applied_is_named(
    checkpoints: Path, tmp_path: Path, more: dict[str, int], count: int, caplog: pytest.LogCaptureFixture
) -> None:
    file = part_of_file(checkpoints, tmp_path, "flux", {name: torch.ones(size, size) for name, size in more.items()})
    with pytest.raises(UsageError, match="fits in part") as raised:
        check(checkpoints, "flux", file)
    named = raised.value.message.partition("left out: ")[2].split(", ")
    assert len(named) == count
    assert all(any(tensor.startswith(name) for tensor in more) for name in named)
    assert raised.value.hint.startswith("--lora-partial takes the rest")
    before, pipe = flux_pipeline().transformer.state_dict(), flux_pipeline()
    adapters.fuse(pipe, [source(file, 1.0)])  # as of a pipeline that was built before this was checked
    assert named[0] in caplog.text
    adapted = {f"{layer}.weight" for layer in change(checkpoints / "flux-lora.safetensors", "transformer.")}
    assert adapted == {
        name for name, one in pipe.transformer.state_dict().items() if not torch.equal(one, before[name])
    }


def test_an_unknown_configuration_is_no_refusal(checkpoints: Path) -> None:
    lora = checkpoints / "sd-lora.safetensors"
    settings = lambda name: (diffusers.FluxTransformer2DModel, {})  # noqa: E731
    assert adapter_fit.check(diffusers.FluxPipeline, lora, "x", settings) is None


# --- Fusing ----------------------------------------------------------------------------------------------------------


def source(path: Path, scale: float) -> tuple[Path, Source]:
    return path, Source(Role.lora(0), "file", path.name, {path.name: FileInfo(0, "")}, scale=scale)


def change(path: Path, prefix: str) -> dict[str, Any]:
    """Layer -> B A of an adapter in peft's layout."""
    tensors = load_file(path)
    downs = {n.removesuffix(".lora_A.weight"): t for n, t in tensors.items() if n.endswith("lora_A.weight")}
    return {
        name.removeprefix(prefix): tensors[f"{name}.lora_B.weight"] @ down
        for name, down in downs.items()
        if name.startswith(prefix)
    }


def test_scales_and_several_add_up(checkpoints: Path) -> None:
    first, second = checkpoints / "flux-lora.safetensors", checkpoints / "flux-lora-2.safetensors"
    before = flux_pipeline().transformer.state_dict()
    pipe = flux_pipeline()
    adapters.fuse(pipe, [source(first, 0.5), source(second, -2.0)])
    changes = [change(path, "transformer.") for path in (first, second)]
    assert set(changes[0]) == set(changes[1])
    for name, weight in pipe.transformer.state_dict().items():
        layer = name.removesuffix(".weight")
        expected = before[name]
        if layer in changes[0]:
            expected = expected + 0.5 * changes[0][layer] - 2.0 * changes[1][layer]
        torch.testing.assert_close(weight, expected, rtol=1e-4, atol=1e-5)


def test_scale_zero_leaves_every_weight(checkpoints: Path) -> None:
    before, pipe = flux_pipeline().transformer.state_dict(), flux_pipeline()
    adapters.fuse(pipe, [source(checkpoints / "flux-lora.safetensors", 0)])
    after = pipe.transformer.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_text_encoders_part_is_fused_too(checkpoints: Path) -> None:
    before, pipe = stable_diffusion_pipeline(), stable_diffusion_pipeline()
    lora = checkpoints / "sd-lora.safetensors"
    adapters.fuse(pipe, [source(lora, 1.0)])
    for part, prefix in (("unet", "unet."), ("text_encoder", "text_encoder.text_model.")):
        weights, was = getattr(pipe, part).state_dict(), getattr(before, part).state_dict()
        layers = change(lora, prefix)
        assert len(layers) == {"unet": 32, "text_encoder": 8}[part]
        for layer, difference in layers.items():
            torch.testing.assert_close(
                weights[f"{layer}.weight"] - was[f"{layer}.weight"], difference, rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize(
    ("name", "asked", "denoiser", "said"),
    [
        ("wan2.2_t2v_high_noise.safetensors", "", "transformer", "as its name says high noise"),
        ("Wan22_A14B_T2V_LOW_Lightning_4steps.safetensors", "", "transformer_2", "as its name says low noise"),
        ("low_noise_model.safetensors", "", "transformer_2", "as its name says low noise"),
        ("style-LN.safetensors", "", "transformer_2", "as its name says low noise"),
        ("i2v_low_lightx2v.safetensors", "", "transformer_2", "as its name says low noise"),
        ("low_noise_model.safetensors", "transformer", "transformer", "as asked"),
        ("style.safetensors", "transformer_2", "transformer_2", "as asked"),
        ("low-poly.safetensors", "", "transformer", "alone; for the other: --lora transformer_2=SOURCE"),
        ("style.safetensors", "", "transformer", "alone; for the other: --lora transformer_2=SOURCE"),
    ],
)
def test_one_of_a_pair(checkpoints: Path, tmp_path: Path, name: str, asked: str, denoiser: str, said: str) -> None:
    """Wan 2.2 has a denoiser for much noise and one for little."""
    tensors = {f"diffusion_model.blocks.0.self_attn.q.lora_{side}.weight": torch.ones(24, 24) for side in "AB"}
    path = tmp_path / name
    save_file(tensors, path)
    told: list[str] = []
    request = adapter_fit.Request(path, name, denoiser=asked)
    adapter_fit.check_request(diffusers.WanPipeline, request, settings_of(checkpoints, "wan22"), told.append)
    assert told == [f"the LoRA {name} goes into {denoiser}{'' if said.startswith('alone') else ','} {said}"]
    pipe = wan22_pipeline()
    layers = {part: getattr(pipe, part).blocks[0].attn1.to_q.weight for part in ("transformer", "transformer_2")}
    before = {part: weight.clone() for part, weight in layers.items()}
    adapters.fuse(pipe, [(path, replace(source(path, 1.0)[1], into=asked))])
    assert [part for part, weight in layers.items() if not torch.equal(weight, before[part])] == [denoiser]


def test_a_denoiser_that_is_not_there(checkpoints: Path) -> None:
    request = adapter_fit.Request(checkpoints / "flux-lora.safetensors", "x", denoiser="transformer_2")
    with pytest.raises(UsageError, match="--lora transformer_2=: FluxPipeline has no denoiser of that name") as raised:
        adapter_fit.check_request(diffusers.FluxPipeline, request, settings_of(checkpoints, "flux"), print)
    assert raised.value.hint == "it has transformer"


def test_one_that_changes_no_layer_is_refused(checkpoints: Path) -> None:
    with pytest.raises(UsageError, match=r"the LoRA flux-lora\.safetensors changes no layer of this pipeline"):
        adapters.fuse(stable_diffusion_pipeline(), [source(checkpoints / "flux-lora.safetensors", 1.0)])
