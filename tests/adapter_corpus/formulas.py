"""What each kind of adapter holds of a layer, and the weight that its formula makes of the layer's own, in float64.

Each function makes the tensors of one layer, under the suffixes they have in a file, of random values that bfloat16 can
hold, so that files of any dtype say the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

RANK = 4


@dataclass(frozen=True)
class Layer:
    """What a file has of a layer, by suffix, and the layer's weight and bias with it. `bias`: None where it stays."""

    tensors: Mapping[str, Tensor]
    weight: Tensor
    bias: Tensor | None = None


@dataclass
class Draw:
    """Random tensors of one layer. `number`: the layer's place in the file."""

    number: int
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.number)

    def __call__(self, *shape: int, std: float = 0.3) -> Tensor:
        return exact(torch.randn(*shape, generator=self.generator, dtype=torch.float64) * std)


Formula = Callable[[Draw, Tensor, Tensor | None], Layer]


def exact(tensor: Tensor) -> Tensor:
    """The nearest values that bfloat16 can hold."""
    return tensor.to(torch.bfloat16).to(torch.float64)


# --- LoRA (Hu et al., arXiv:2106.09685): W + alpha / rank * B A ------------------------------------------------------


def product(up: Tensor, down: Tensor, shape: torch.Size) -> Tensor:
    """B A; for a convolution A is (rank, in, *kernel) and B (out, rank, 1, ...)."""
    return (up.flatten(1) @ down.flatten(1)).reshape(shape)


def lora(down: str, up: str, alpha: float | None = None, rank: int = RANK) -> Formula:
    """LoRA under such suffixes. `alpha`: None for files without one, where it is the rank."""

    def make(draw: Draw, weight: Tensor, bias: Tensor | None) -> Layer:
        made = scaled(down, up, 1.0 if alpha is None else alpha / rank, rank)(draw, weight, bias)
        return made if alpha is None else replace(made, tensors={**made.tensors, "alpha": number(alpha)})

    return make


def scaled(down: str, up: str, scale: float, rank: int = RANK) -> Formula:
    """LoRA whose scale no tensor says: the file's header does, or it is 1."""

    def make(draw: Draw, weight: Tensor, bias: Tensor | None) -> Layer:
        out, *inside = weight.shape
        a, b = draw(rank, *inside), draw(out, rank, *[1] * (weight.ndim - 2))
        return Layer({f"{down}.weight": a, f"{up}.weight": b}, weight + scale * product(b, a, weight.shape))

    return make


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def by_layer(*formulas: Formula) -> Formula:
    """One formula after the other, by the layer's place in the file."""
    return lambda draw, weight, bias: formulas[draw.number % len(formulas)](draw, weight, bias)


def alphas(down: str, up: str) -> Formula:
    """LoRA with another alpha, and another rank, for each layer (dims and alphas by block)."""
    return by_layer(
        *(lora(down, up, alpha, rank) for alpha, rank in ((4.0, 4), (1.0, 4), (2.0, 2), (8.0, 4), (3.0, 6)))
    )


PEFT = lora("lora_A", "lora_B")
PEFT_DEFAULT = lora("lora_A.default", "lora_B.default")
KOHYA = alphas("lora_down", "lora_up")
PLAIN = lora("lora_down", "lora_up")  # no alpha


def peft_with_bias(draw: Draw, weight: Tensor, bias: Tensor | None) -> Layer:
    """LoRA whose second matrix has a bias, which is added to the layer's (Black Forest Labs' Control LoRAs)."""
    made = PEFT(draw, weight, bias)
    if bias is None:
        return made
    more = draw(*bias.shape)
    return Layer({**made.tensors, "lora_B.bias": more}, made.weight, bias + more)


def with_mid(draw: Draw, weight: Tensor, bias: Tensor | None) -> Layer:
    """LoCon with a third tensor for the kernel, 1 x 1 before and after (lycoris/modules/locon.py, use_tucker)."""
    if weight.ndim != 4 or weight.shape[2:] == (1, 1):
        return KOHYA(draw, weight, bias)
    out, inside, *kernel = weight.shape
    down, mid, up = draw(RANK, inside, 1, 1), draw(RANK, RANK, *kernel), draw(out, RANK, 1, 1)
    alpha = 1.0 + draw.number % 3
    change = torch.einsum("oi,ijxy,jc->ocxy", up[:, :, 0, 0], mid, down[:, :, 0, 0])
    tensors = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": number(alpha)}
    return Layer(tensors, weight + alpha / RANK * change)


def wider(draw: Draw, weight: Tensor, bias: Tensor | None) -> Layer:
    """LoRA of a layer that takes in a control picture too; its weight for that was 0 (BFL's Control LoRAs)."""
    return peft_with_bias(draw, torch.cat([weight, torch.zeros_like(weight)], dim=1), bias)


def as_convolution(inner: Formula) -> Formula:
    """The matrices of a linear layer as those of a convolution of one pixel, as files have them that were converted."""

    def make(draw: Draw, weight: Tensor, bias: Tensor | None) -> Layer:
        made = inner(draw, weight, bias)
        shaped = {
            name: tensor[..., None, None] if tensor.ndim == 2 else tensor for name, tensor in made.tensors.items()
        }
        return replace(made, tensors=shaped)

    return make


def as_matrix(inner: Formula) -> Formula:
    """The other way round: a convolution of one pixel as a linear layer."""

    def make(draw: Draw, weight: Tensor, bias: Tensor | None) -> Layer:
        made = inner(draw, weight, bias)
        shaped = {
            name: t.flatten(1) if t.ndim == 4 and t.shape[2:] == (1, 1) else t for name, t in made.tensors.items()
        }
        return replace(made, tensors=shaped)

    return make


# --- DoRA (Liu et al., arXiv:2402.09353): m * V / |V|, V = W + alpha / rank * B A ------------------------------------


def norms(weight: Tensor, axis: int) -> Tensor:
    """The length of a weight's rows (axis 0) or columns (axis 1), in a shape that multiplies with it."""
    others = [dimension for dimension in range(weight.ndim) if dimension != axis]
    return weight.pow(2).sum(others, keepdim=True).sqrt()


def dora(axis: int, inner: Formula, suffix: str = "dora_scale") -> Formula:
    """A magnitude for each output (`axis` 0: the paper, peft, LyCORIS' wd_on_out) or for each input (1: LyCORIS)."""

    def make(draw: Draw, weight: Tensor, bias: Tensor | None) -> Layer:
        made = inner(draw, weight, bias)
        old = norms(weight, axis)
        magnitude = exact(old * (1.0 + 0.5 * draw(*old.shape).abs()))
        return Layer({**made.tensors, suffix: magnitude}, made.weight * magnitude / norms(made.weight, axis))

    return make


def peft_dora(draw: Draw, weight: Tensor, bias: Tensor | None) -> Layer:
    """peft/utils/save_and_load.py: `lora_magnitude_vector`, (out,), or (1, out, 1, 1) of a convolution."""
    made = dora(0, PEFT, "lora_magnitude_vector")(draw, weight, bias)
    vector = made.tensors["lora_magnitude_vector"].flatten()
    shaped = vector if weight.ndim == 2 else vector.reshape(1, -1, *[1] * (weight.ndim - 2))
    return replace(made, tensors={**made.tensors, "lora_magnitude_vector": shaped})


# --- LoHa (Nam et al., arXiv:2108.06098): W + alpha / rank * (A1 B1) o (A2 B2) ---------------------------------------


def loha(draw: Draw, weight: Tensor, bias: Tensor | None) -> Layer:
    """lycoris/modules/loha.py; of a convolution the second matrices are (rank, in * kernel)."""
    out, inside = weight.shape[0], math.prod(weight.shape[1:])
    tensors = {f"hada_w{n}_{side}": draw(*shape) for n in (1, 2) for side, shape in _sides(out, inside)}
    change = (tensors["hada_w1_a"] @ tensors["hada_w1_b"]) * (tensors["hada_w2_a"] @ tensors["hada_w2_b"])
    alpha = 1.0 + draw.number % 3
    return Layer({**tensors, "alpha": number(alpha)}, weight + alpha / RANK * change.reshape(weight.shape))


def _sides(out: int, inside: int) -> tuple[tuple[str, tuple[int, int]], ...]:
    return ("a", (out, RANK)), ("b", (RANK, inside))


def loha_tucker(draw: Draw, weight: Tensor, bias: Tensor | None) -> Layer:
    """With a core for the kernel: sum over ranks of t[i, j] * w_a[i, out] * w_b[j, in]; (rank, out) and (rank, in)."""
    if weight.ndim != 4 or weight.shape[2:] == (1, 1):
        return loha(draw, weight, bias)
    out, inside, *kernel = weight.shape
    tensors, change = {}, torch.ones_like(weight)
    for n in (1, 2):
        core, a, b = draw(RANK, RANK, *kernel), draw(RANK, out), draw(RANK, inside)
        tensors |= {f"hada_t{n}": core, f"hada_w{n}_a": a, f"hada_w{n}_b": b}
        change = change * torch.einsum("ijxy,io,jc->ocxy", core, a, b)
    alpha = 1.0 + draw.number % 3
    return Layer({**tensors, "alpha": number(alpha)}, weight + alpha / RANK * change)


# --- LoKr (Yeh et al., arXiv:2309.14859): W + alpha / rank * kron(W1, W2) --------------------------------------------


def parts(width: int) -> tuple[int, int]:
    """A width as two factors, the smaller at most 4, as lycoris.functional.factorization(width, 4) has it."""
    small = next(factor for factor in (4, 2, 1) if width % factor == 0)
    return small, width // small


def lokr(kind: str, alpha: float, rank: int = 2) -> Formula:
    """`kind`: "full" (both whole: alpha counts for nothing), "w2" or "w1" (that one of two matrices), "both", "tucker".

    lycoris/modules/lokr.py, comfy/weight_adapter/lokr.py.
    """

    def make(draw: Draw, weight: Tensor, bias: Tensor | None) -> Layer:
        (out_small, out_large), (in_small, in_large) = parts(weight.shape[0]), parts(weight.shape[1])
        kernel = weight.shape[2:]
        first, w1 = _factor(draw, "lokr_w1", out_small, (in_small,), rank if kind in ("w1", "both") else None)
        if kind == "tucker" and math.prod(kernel) > 1:
            second, w2 = _tucker(draw, out_large, in_large, kernel, rank)
        else:
            low = rank if kind in ("w2", "both", "tucker") else None
            second, w2 = _factor(draw, "lokr_w2", out_large, (in_large, *kernel), low)
        change = torch.kron(w1.reshape(*w1.shape, *[1] * (w2.ndim - 2)), w2.contiguous())
        tensors = {**first, **second, "alpha": number(alpha)}
        return Layer(tensors, weight + (1.0 if kind == "full" else alpha / rank) * change)

    return make


def _factor(
    draw: Draw, name: str, out: int, inside: tuple[int, ...], rank: int | None
) -> tuple[dict[str, Tensor], Tensor]:
    """One factor of the product, whole or as two matrices, and its value."""
    if rank is None:
        whole = draw(out, *inside)
        return {name: whole}, whole
    a, b = draw(out, rank), draw(rank, math.prod(inside))
    return {f"{name}_a": a, f"{name}_b": b}, (a @ b).reshape(out, *inside)


def _tucker(draw: Draw, out: int, inside: int, kernel: torch.Size, rank: int) -> tuple[dict[str, Tensor], Tensor]:
    core, a, b = draw(rank, rank, *kernel), draw(rank, out), draw(rank, inside)
    return {"lokr_t2": core, "lokr_w2_a": a, "lokr_w2_b": b}, torch.einsum("ijxy,io,jc->ocxy", core, a, b)


# --- Differences, norms and (IA)^3 -----------------------------------------------------------------------------------


def difference(draw: Draw, weight: Tensor, bias: Tensor | None) -> Layer:
    """`.diff` and `.diff_b`, added as they are (comfy/lora.py; lycoris/modules/full.py)."""
    change = draw(*weight.shape)
    if bias is None:
        return Layer({"diff": change}, weight + change)
    more = draw(*bias.shape)
    return Layer({"diff": change, "diff_b": more}, weight + change, bias + more)


def modulation(draw: Draw, weight: Tensor, bias: Tensor | None) -> Layer:
    """`.diff_m`, the difference of a block's table, under the block's own name (lightx2v's LoRAs of Wan)."""
    change = draw(*weight.shape)
    return Layer({"diff_m": change}, weight + change)


def norm(draw: Draw, weight: Tensor, bias: Tensor | None) -> Layer:
    """`.w_norm` and `.b_norm`, added as they are (lycoris/modules/norms.py)."""
    made = difference(draw, weight, bias)
    names = {"diff": "w_norm", "diff_b": "b_norm"}
    return replace(made, tensors={names[suffix]: tensor for suffix, tensor in made.tensors.items()})


def with_bias(inner: Formula) -> Formula:
    """LoRA with `.diff_b` for the bias beside it; of a norm or a table, `.diff` alone, as extracted LoRAs have them."""

    def make(draw: Draw, weight: Tensor, bias: Tensor | None) -> Layer:
        if weight.ndim < 2 or weight.shape[0] == 1:
            return difference(draw, weight, bias)
        made = inner(draw, weight, bias)
        if bias is None:
            return made
        more = draw(*bias.shape)
        return Layer({**made.tensors, "diff_b": more}, made.weight, bias + more)

    return make


def instead(suffix: str, inner: Formula) -> Formula:
    """A norm's new value, in place of the old one; other layers by another formula."""

    def make(draw: Draw, weight: Tensor, bias: Tensor | None) -> Layer:
        if weight.ndim > 1:
            return inner(draw, weight, bias)
        value = exact(1.0 + draw(*weight.shape))
        return Layer({suffix: value}, value)

    return make


def ia3(draw: Draw, weight: Tensor, bias: Tensor | None) -> Layer:
    """lycoris/modules/ia3.py: W * (1 + w), w for each output, or for each input where `on_input` is 1.

    (width,); of a convolution (1, width, 1, 1). The bias stays.
    """
    on_input = draw.number % 2
    width = weight.shape[on_input]
    scales = draw(width)
    shaped = scales if weight.ndim == 2 else scales.reshape(1, width, *[1] * (weight.ndim - 2))
    spread = scales.reshape([width if dimension == on_input else 1 for dimension in range(weight.ndim)])
    return Layer({"weight": shaped, "on_input": torch.tensor(on_input)}, weight * (1.0 + spread))


def peft_ia3(draw: Draw, weight: Tensor, bias: Tensor | None) -> Layer:
    """peft/tuners/ia3/layer.py: W * l, l of shape (1, in) for feed-forward layers, else (out, 1), with the bias too."""
    feed_forward = draw.number % 2
    scales = exact(1.0 + draw(1, weight.shape[1]) if feed_forward else 1.0 + draw(weight.shape[0], 1))
    other = bias * scales[:, 0] if bias is not None and not feed_forward else None
    return Layer({"ia3_l": scales}, weight * scales, other)
