"""Adapter files that are damaged, hostile or odd are refused in words at the build, or mean what PEFT says they do."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from safetensors.torch import save_file  # noqa: E402
from test_adapter_formulas import fused  # noqa: E402
from test_adapters import settings_of  # noqa: E402

from diffpipe.core.errors import UsageError  # noqa: E402
from diffpipe.core.source import Role, Source  # noqa: E402
from diffpipe.engine.adapters import formulas  # noqa: E402
from diffpipe.engine.adapters.file import METADATA, AdapterFile  # noqa: E402
from diffpipe.engine.loading import adapter_fit, adapters  # noqa: E402

LINEAR = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
NORM = "unet.mid_block.attentions.0.transformer_blocks.0.norm1"
CONV = "unet.down_blocks.0.resnets.0.conv1"


def checked(folder: Path, checkpoints: Path, shapes: dict[str, tuple[int, ...]]) -> Any:
    path = folder / "odd.safetensors"
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, path)
    return adapter_fit.check(
        diffusers.StableDiffusionPipeline, path, "odd", settings_of(checkpoints, "stable-diffusion")
    )


def width(checkpoints: Path, layer: str) -> tuple[int, ...]:
    """The shape of a layer's weight in the tiny Stable Diffusion."""
    from diffusers import UNet2DConditionModel

    config = json.loads((checkpoints / "stable-diffusion/unet/config.json").read_text())
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    return tuple(unet.get_parameter(f"{layer.removeprefix('unet.')}.weight").shape)


def odd_shapes(out: int, ins: int, conv: tuple[int, ...]) -> dict[str, dict[str, tuple[int, ...]]]:
    pair = {f"{LINEAR}.lora_A.weight": (4, ins), f"{LINEAR}.lora_B.weight": (out, 4)}
    whole = {f"{LINEAR}.lora_down.weight": (4, ins), f"{LINEAR}.lora_up.weight": (out, 4)}
    hada = {f"{LINEAR}.hada_w{n}_{x}": ((out, 4) if x == "a" else (4, ins)) for n in (1, 2) for x in "ab"}
    kernel = {f"{CONV}.lora_down.weight": (4, conv[1], 3, 3), f"{CONV}.lora_up.weight": (conv[0], 4, 3, 3)}
    return {
        "magnitudes of another length": {**pair, f"{LINEAR}.lora_magnitude_vector": (out + 1,)},
        "magnitudes by column, which PEFT has not": {**pair, f"{LINEAR}.lora_magnitude_vector": (1, 2 * ins)},
        "DoRA on a norm": {
            f"{NORM}.lora_A.weight": (4, ins), f"{NORM}.lora_B.weight": (out, 4), f"{NORM}.dora_scale": (out, 1)
        },
        "alpha of two numbers": {**whole, f"{LINEAR}.alpha": (2,)},
        "alpha of none": {**whole, f"{LINEAR}.alpha": (0,)},
        "matrices without axes": {f"{LINEAR}.lora_A.weight": (), f"{LINEAR}.lora_B.weight": ()},
        "vectors for matrices": {f"{LINEAR}.lora_A.weight": (ins,), f"{LINEAR}.lora_B.weight": (out,)},
        "LoHa of vectors": dict.fromkeys(hada, (4,)),
        "LoHa without axes": dict.fromkeys(hada, ()),
        "LoHa of two shapes": {**hada, f"{LINEAR}.hada_w2_b": (4, ins + 1)},
        "LoKr without axes": {f"{LINEAR}.lokr_w1": (), f"{LINEAR}.lokr_w2": ()},
        "LoKr of vectors": {f"{LINEAR}.lokr_w1": (2,), f"{LINEAR}.lokr_w2": (2,)},
        "a second kernel": kernel,
        "IA3 without axes": {f"{LINEAR}.ia3_l": ()},
        "rank 0": {f"{LINEAR}.lora_A.weight": (0, ins), f"{LINEAR}.lora_B.weight": (out, 0), f"{LINEAR}.alpha": ()},
    }  # fmt: skip


NAMES = list(odd_shapes(1, 1, (1, 1, 3, 3)))


@pytest.mark.parametrize("name", NAMES)
def test_tensors_that_do_not_go_together_are_refused(checkpoints: Path, tmp_path: Path, name: str) -> None:
    out, ins = width(checkpoints, LINEAR)
    with pytest.raises(UsageError):
        checked(tmp_path, checkpoints, odd_shapes(out, ins, width(checkpoints, CONV))[name])


DAMAGED = ["[1]", "null", '"x"', "{", "[" * 100_000, '{"unet.lora_alpha": "big"}', '{"unet.alpha_pattern": {"(": 1}}',
           '{"unet.alpha_pattern": {"(a+)+b": 1}}', '{"unet.alpha_pattern": {"' + "a" * 2000 + '": 1}}']  # fmt: skip


@pytest.mark.parametrize("metadata", DAMAGED, ids=lambda text: text[:30])
def test_metadata_that_is_damaged_is_refused(tmp_path: Path, metadata: str) -> None:
    path = tmp_path / "odd.safetensors"
    save_file({f"{LINEAR}.lora_A.weight": torch.ones(4, 8)}, path, {METADATA: metadata})
    with pytest.raises(UsageError, match="of its strength is damaged") as error:
        AdapterFile(path)
    assert "\n" not in error.value.message


def strength(folder: Path, module: str, component: str, **settings: object) -> float | None:
    """The alpha of a module by metadata as diffusers writes it, which begins each key with "transformer."."""
    path = folder / "x.safetensors"
    said = {f"transformer.{name}": value for name, value in settings.items()}
    save_file({f"{module}.lora_A.weight": torch.ones(4, 8)}, path, {METADATA: json.dumps(said)})
    return AdapterFile(path).alpha(module, component, 4)


def test_the_metadata_of_a_pair_counts_for_both_denoisers(tmp_path: Path) -> None:
    module = "transformer.blocks.0.attn1.to_q"
    assert strength(tmp_path, module, "transformer", r=4, lora_alpha=8) == 8
    assert strength(tmp_path, module, "transformer_2", r=4, lora_alpha=8) == 8


@pytest.mark.parametrize(
    ("pattern", "alpha"),
    [
        ("to_q", 16), ("attn1.to_q", 16), ("blocks.0.attn1.to_q", 16), (r"blocks\.\d+\.attn1\.to_q", 16),
        (r".*\.to_(q|k)", 16), ("o_q", 8), ("to_k", 8), ("attn1", 8),
    ],
)  # fmt: skip
def test_a_pattern_of_peft_is_a_regular_expression_for_the_end_of_a_name(
    tmp_path: Path, pattern: str, alpha: float
) -> None:
    """As peft.utils.other.get_pattern_key finds it, which is asked here."""
    from peft.utils.other import get_pattern_key

    module = "transformer.blocks.0.attn1.to_q"
    assert (get_pattern_key([pattern], module) == pattern) == (alpha == 16)
    assert strength(tmp_path, module, "transformer", lora_alpha=8, alpha_pattern={pattern: 16}) == alpha


@pytest.mark.parametrize("part", ["magnitude", "dora_scale"])
def test_a_row_of_zeros_stays_one(part: str) -> None:
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    parts = {"down": torch.ones(1, 2), "up": torch.zeros(2, 1), part: torch.tensor([[10.0], [1.0]])}
    change = formulas.weight_change("lora", parts, 1.0, None, lambda: weight)
    assert change is not None
    torch.testing.assert_close(weight + change, torch.tensor([[6.0, 8.0], [0.0, 0.0]]))
    assert math.isfinite(float(change.sum()))


def test_a_file_for_both_denoisers_says_which_layer_is_whose(tmp_path: Path) -> None:
    from checkpoints_video import wan22_pipeline

    pipe = wan22_pipeline()
    before = {
        name: getattr(pipe, name).blocks[0].attn1.to_q.weight.clone() for name in ("transformer", "transformer_2")
    }
    out, ins = before["transformer"].shape
    tensors = {}
    for number, name in enumerate(before, 1):
        tensors[f"{name}.blocks.0.attn1.to_q.lora_A.weight"] = torch.full((1, ins), float(number))
        tensors[f"{name}.blocks.0.attn1.to_q.lora_B.weight"] = torch.ones(out, 1)
    fused(pipe, tensors, tmp_path)
    for number, name in enumerate(before, 1):
        torch.testing.assert_close(
            getattr(pipe, name).blocks[0].attn1.to_q.weight, before[name] + number, rtol=1e-5, atol=1e-5
        )


def test_beside_quantized_weights_each_denoiser_of_a_pair_has_its_own(tmp_path: Path) -> None:
    """Weights that come as GGUF cannot be added to: what is added to what a layer makes is the same."""
    from checkpoints_video import wan22_pipeline

    pipe = wan22_pipeline()
    layers = {name: getattr(pipe, name).blocks[0].attn1 for name in ("transformer", "transformer_2")}
    for name in layers:
        getattr(pipe, name).quantization_method = "gguf"
    out, ins = layers["transformer"].to_q.weight.shape
    given = torch.randn(3, ins, generator=torch.Generator().manual_seed(1))
    before = {name: layer.to_q(given) for name, layer in layers.items()}
    paths = []
    for name, number in (("style_low_noise", 1.0), ("style_high_noise", 2.0)):
        tensors = {
            "diffusion_model.blocks.0.self_attn.q.lora_down.weight": torch.full((1, ins), number),
            "diffusion_model.blocks.0.self_attn.q.lora_up.weight": torch.ones(out, 1),
        }
        save_file(tensors, tmp_path / f"{name}.safetensors")
        paths.append(tmp_path / f"{name}.safetensors")
    adapters.fuse(pipe, [(path, Source(Role.lora(at), "file", path.name, {})) for at, path in enumerate(paths)])
    for name, number in (("transformer_2", 1.0), ("transformer", 2.0)):
        wanted = before[name] + number * given.sum(1, keepdim=True)
        torch.testing.assert_close(layers[name].to_q(given), wanted, rtol=1e-4, atol=1e-4)
