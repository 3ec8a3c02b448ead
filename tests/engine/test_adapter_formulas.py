"""What adapters of every kind make of weights: files as other tools write them, the weights by formula beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from checkpoints import Tensors, flux_pipeline, stable_diffusion_pipeline  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from diffpipe.core.source import FileInfo, Role, Source  # noqa: E402
from diffpipe.engine.loading import adapters, library_logs  # noqa: E402

RANK, ALPHA = 4, 2.0
Tensor = torch.Tensor


@pytest.fixture(autouse=True)
def _quiet() -> None:
    library_logs.listen()


class Random:
    """Matrices of a seed of their own."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(5)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator) * 0.5


def fused(
    pipe: object, tensors: Tensors, folder: Path, scale: float = 1.0, metadata: dict[str, str] | None = None
) -> None:
    path = folder / "adapter.safetensors"
    save_file({name: one.contiguous() for name, one in tensors.items()}, path, metadata=metadata)
    source = Source(Role.lora(0), "file", path.name, {path.name: FileInfo(0, "")}, scale=scale)
    adapters.fuse(pipe, [(path, source)])  # type: ignore[arg-type]


def compare(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got.detach(), wanted, rtol=1e-5, atol=1e-5)


# --- One layer, every kind -------------------------------------------------------------------------------------------

LINEAR = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.0.resnets.0.conv1"
NORM = "mid_block.attentions.0.transformer_blocks.0.norm1"
Made = tuple[Tensors, Tensor]  # the file's tensors of a layer, without its name; the weight that they make


def lora(w: Tensor, r: Random, s: float) -> Made:
    a, b = r(RANK, w.shape[1]), r(w.shape[0], RANK)
    parts = {"lora_down.weight": a, "lora_up.weight": b, "alpha": torch.tensor(ALPHA)}
    return parts, w + s * ALPHA / RANK * b @ a


def lora_without_alpha(w: Tensor, r: Random, s: float) -> Made:
    a, b = r(RANK, w.shape[1]), r(w.shape[0], RANK)
    return {"lora_A.default.weight": a, "lora_B.default.weight": b}, w + s * b @ a


def lora_of_conv(w: Tensor, r: Random, s: float) -> Made:
    a, b = r(RANK, *w.shape[1:]), r(w.shape[0], RANK, 1, 1)
    made = torch.einsum("or,rikl->oikl", b[:, :, 0, 0], a)
    return {"lora_down.weight": a, "lora_up.weight": b, "alpha": torch.tensor(ALPHA)}, w + s * ALPHA / RANK * made


def lora_with_a_core(w: Tensor, r: Random, s: float) -> Made:
    a, b, core = r(RANK, w.shape[1], 1, 1), r(w.shape[0], RANK, 1, 1), r(RANK, RANK, 3, 3)
    made = torch.zeros_like(w)
    for p in range(RANK):
        for q in range(RANK):
            made += b[:, p, 0, 0].reshape(-1, 1, 1, 1) * a[q, :, 0, 0].reshape(1, -1, 1, 1) * core[p, q]
    parts = {"lora_down.weight": a, "lora_up.weight": b, "lora_mid.weight": core}
    return parts | {"alpha": torch.tensor(ALPHA)}, w + s * ALPHA / RANK * made


def dora_of_rows(w: Tensor, r: Random, s: float) -> Made:
    a, b = r(RANK, w.shape[1]), r(w.shape[0], RANK)
    m = r(w.shape[0], 1).abs() + 0.5
    v = w + s * ALPHA / RANK * b @ a
    parts = {"lora_down.weight": a, "lora_up.weight": b, "alpha": torch.tensor(ALPHA), "dora_scale": m}
    return parts, v * (1 + s * (m / v.norm(dim=1, keepdim=True) - 1))


def dora_of_columns(w: Tensor, r: Random, s: float) -> Made:
    a, b = r(RANK, w.shape[1]), r(w.shape[0], RANK)
    m = r(1, w.shape[1]).abs() + 0.5
    v = w + s * b @ a
    parts = {"lora_down.weight": a, "lora_up.weight": b, "dora_scale": m}
    return parts, v * (1 + s * (m / v.norm(dim=0, keepdim=True) - 1))


def dora_of_peft(w: Tensor, r: Random, s: float) -> Made:
    a, b = r(RANK, w.shape[1]), r(w.shape[0], RANK)
    m = r(w.shape[0]).abs() + 0.5
    v = w + s * b @ a
    parts = {"lora_A.weight": a, "lora_B.weight": b, "lora_magnitude_vector": m}
    return parts, m[:, None] * v / v.norm(dim=1, keepdim=True)


def loha(w: Tensor, r: Random, s: float) -> Made:
    (a1, a2), (b1, b2) = (r(w.shape[0], RANK), r(w.shape[0], RANK)), (r(RANK, w.shape[1]), r(RANK, w.shape[1]))
    parts = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2, "alpha": torch.tensor(ALPHA)}
    return parts, w + s * ALPHA / RANK * (a1 @ b1) * (a2 @ b2)


def lokr(w: Tensor, r: Random, s: float) -> Made:
    one, (a, b) = r(2, 4), (r(w.shape[0] // 2, RANK), r(RANK, w.shape[1] // 4))
    parts = {"lokr_w1": one, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": torch.tensor(ALPHA)}
    return parts, w + s * ALPHA / RANK * torch.kron(one, a @ b)


def lokr_of_whole_factors(w: Tensor, r: Random, s: float) -> Made:
    """Without matrices of a rank there is nothing to divide an alpha by: LyCORIS sets it to the rank."""
    one, two = r(2, 4), r(w.shape[0] // 2, w.shape[1] // 4)
    return {"lokr_w1": one, "lokr_w2": two, "alpha": torch.tensor(1e10)}, w + s * torch.kron(one, two)


def lokr_of_conv(w: Tensor, r: Random, s: float) -> Made:
    one, two = r(2, 2), r(w.shape[0] // 2, w.shape[1] // 2, 3, 3)
    made = torch.zeros_like(w)
    rows, columns = two.shape[:2]
    for i in range(2):
        for j in range(2):
            made[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns] = one[i, j] * two
    return {"lokr_w1": one, "lokr_w2": two}, w + s * made


def ia3_of_rows(w: Tensor, r: Random, s: float) -> Made:
    scales = r(w.shape[0], 1)
    return {"ia3_l": scales}, w * (1 + s * (scales - 1))


def ia3_of_lycoris(w: Tensor, r: Random, s: float) -> Made:
    scales = r(1, w.shape[1])
    return {"weight": scales, "on_input": torch.tensor(True)}, w * (1 + s * scales)


def difference(w: Tensor, r: Random, s: float) -> Made:
    more = r(*w.shape)
    return {"diff": more}, w + s * more


def difference_of_norm(w: Tensor, r: Random, s: float) -> Made:
    more = r(*w.shape)
    return {"w_norm": more}, w + s * more


KINDS: list[tuple[Callable[[Tensor, Random, float], Made], str]] = [
    (lora, LINEAR),
    (lora_without_alpha, LINEAR),
    (lora_of_conv, CONV),
    (lora_with_a_core, CONV),
    (dora_of_rows, LINEAR),
    (dora_of_columns, LINEAR),
    (dora_of_peft, LINEAR),
    (loha, LINEAR),
    (lokr, LINEAR),
    (lokr_of_whole_factors, LINEAR),
    (lokr_of_conv, CONV),
    (ia3_of_rows, LINEAR),
    (ia3_of_lycoris, LINEAR),
    (difference, CONV),
    (difference_of_norm, NORM),
]


@pytest.mark.parametrize("scale", [1.0, 0.6])
@pytest.mark.parametrize(("kind", "layer"), KINDS, ids=[kind.__name__ for kind, _ in KINDS])
def test_a_layer_by_its_formula(
    kind: Callable[[Tensor, Random, float], Made], layer: str, scale: float, tmp_path: Path
) -> None:
    pipe = stable_diffusion_pipeline()
    before = {name: one.clone() for name, one in pipe.unet.state_dict().items()}
    parts, wanted = kind(before[f"{layer}.weight"], Random(), scale)
    name = f"lora_unet_{layer.replace('.', '_')}"
    fused(pipe, {f"{name}.{part}": one for part, one in parts.items()}, tmp_path, scale)
    after = pipe.unet.state_dict()
    compare(after.pop(f"{layer}.weight"), wanted)
    assert all(torch.equal(one, before[name]) for name, one in after.items())


@pytest.mark.parametrize("ending", ["diff_b", "b_norm"])
def test_a_bias(ending: str, tmp_path: Path) -> None:
    pipe = stable_diffusion_pipeline()
    before, more = pipe.unet.get_submodule(NORM).bias.clone(), Random()(pipe.unet.get_submodule(NORM).bias.numel())
    fused(pipe, {f"diffusion_model.{NORM}.{ending}": more}, tmp_path, 0.5)
    compare(pipe.unet.get_submodule(NORM).bias, before + 0.5 * more)


def test_a_bias_of_peft_has_the_matrices_strength(tmp_path: Path) -> None:
    pipe, r, layer = flux_pipeline(), Random(), "transformer_blocks.0.attn.to_q"
    one = pipe.transformer.get_submodule(layer)
    weight, bias = one.weight.clone(), one.bias.clone()
    a, b, more = r(RANK, weight.shape[1]), r(weight.shape[0], RANK), r(weight.shape[0])
    tensors = {"lora_A.weight": a, "lora_B.weight": b, "lora_B.bias": more, "alpha": torch.tensor(ALPHA)}
    fused(pipe, {f"transformer.{layer}.{part}": tensor for part, tensor in tensors.items()}, tmp_path)
    compare(one.weight, weight + ALPHA / RANK * b @ a)
    compare(one.bias, bias + ALPHA / RANK * more)


def test_a_sum_is_rounded_once(tmp_path: Path) -> None:
    """In bfloat16 a change that is rounded before it is added loses bits that the sum would keep."""
    pipe = stable_diffusion_pipeline()
    pipe.unet.to(torch.bfloat16)
    before = pipe.unet.get_submodule(LINEAR).weight.clone()
    parts, wanted = lora(before.float(), Random(), 1.0)
    fused(pipe, {f"unet.{LINEAR}.{part}": one for part, one in parts.items()}, tmp_path)
    assert torch.equal(pipe.unet.get_submodule(LINEAR).weight, wanted.to(torch.bfloat16))


# --- Whole files -----------------------------------------------------------------------------------------------------


def test_alpha_that_differs_by_layer(tmp_path: Path) -> None:
    pipe, r = stable_diffusion_pipeline(), Random()
    layers = [name for name, _ in pipe.unet.named_modules() if name.endswith(("to_q", "to_v"))]
    before = {name: pipe.unet.get_submodule(name).weight.detach().clone() for name in layers}
    tensors: Tensors = {}
    wanted = {}
    for number, (name, weight) in enumerate(before.items()):
        a, b, alpha = r(RANK, weight.shape[1]), r(weight.shape[0], RANK), 1.0 + number % 3
        key = f"lora_unet_{name.replace('.', '_')}"
        tensors |= {f"{key}.lora_down.weight": a, f"{key}.lora_up.weight": b, f"{key}.alpha": torch.tensor(alpha)}
        wanted[name] = weight + alpha / RANK * b @ a
    fused(pipe, tensors, tmp_path)
    assert len(wanted) >= 8
    for name, weight in wanted.items():
        compare(pipe.unet.get_submodule(name).weight, weight)


@pytest.mark.parametrize("stabilized", [False, True])
def test_alpha_in_the_metadata_of_diffusers(stabilized: bool, tmp_path: Path) -> None:
    pipe, r = stable_diffusion_pipeline(), Random()
    other = LINEAR.replace("to_q", "to_k")
    noted = {"r": RANK, "lora_alpha": 6, "alpha_pattern": {other: 12}, "use_rslora": stabilized}
    settings = {"lora_adapter_metadata": json.dumps({f"unet.{name}": value for name, value in noted.items()})}
    tensors: Tensors = {}
    wanted = {}
    for name, alpha in ((LINEAR, 6), (other, 12)):
        weight = pipe.unet.get_submodule(name).weight.detach().clone()
        a, b = r(RANK, weight.shape[1]), r(weight.shape[0], RANK)
        tensors |= {f"unet.{name}.lora_A.weight": a, f"unet.{name}.lora_B.weight": b}
        wanted[name] = weight + alpha / (RANK**0.5 if stabilized else RANK) * b @ a
    fused(pipe, tensors, tmp_path, metadata=settings)
    for name, weight in wanted.items():
        compare(pipe.unet.get_submodule(name).weight, weight)


T5 = "encoder.block.0.layer.0.SelfAttention.q"


@pytest.mark.parametrize("prefix", ["lora_te3_", "lora_te2_", "text_encoder_2.", "text_encoders.t5xxl.transformer."])
def test_the_part_of_flux_s_second_text_encoder(prefix: str, tmp_path: Path) -> None:
    pipe = flux_pipeline()
    layer = pipe.text_encoder_2.get_submodule(T5)
    parts, wanted = lora(layer.weight.detach().clone(), Random(), 1.0)
    name = prefix + (T5.replace(".", "_") if prefix.endswith("_") else T5)
    fused(pipe, {f"{name}.{part}": one for part, one in parts.items()}, tmp_path)
    compare(layer.weight, wanted)


def test_one_layer_of_the_makers_is_four_of_diffusers(tmp_path: Path) -> None:
    """Of Flux's single blocks, with DoRA by columns, whose norms are those of all four together."""
    pipe = flux_pipeline()
    block = pipe.transformer.single_transformer_blocks[0]
    four = [block.attn.to_q, block.attn.to_k, block.attn.to_v, block.proj_mlp]
    whole = torch.cat([layer.weight.detach() for layer in four])
    parts, wanted = dora_of_columns(whole, Random(), 1.0)
    fused(pipe, {f"lora_unet_single_blocks_0_linear1.{part}": one for part, one in parts.items()}, tmp_path)
    compare(torch.cat([layer.weight for layer in four]), wanted)


def test_the_last_norm_of_flux_has_its_halves_the_other_way_round(tmp_path: Path) -> None:
    pipe = flux_pipeline()
    layer = pipe.transformer.norm_out.linear
    before, r = layer.weight.detach().clone(), Random()
    a, b = r(RANK, before.shape[1]), r(before.shape[0], RANK)
    name = "diffusion_model.final_layer.adaLN_modulation.1"
    fused(pipe, {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b}, tmp_path)
    shift, scale = (b @ a).chunk(2)
    compare(layer.weight, before + torch.cat([scale, shift]))
