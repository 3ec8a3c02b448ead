"""What the tensors of an adapter make of a weight, by the formula of each kind, in float32.

LoRA        W + s (alpha / rank) B A                            Hu et al. 2021, arXiv:2106.09685
LoCon       the same for convolutions, with or without a core   LyCORIS, lycoris/functional/locon.py
DoRA        m V / |V|, V = W + s (alpha / rank) B A             Liu et al. 2024, arXiv:2402.09353
LoHa        W + s (alpha / rank) (A1 B1) * (A2 B2)              LyCORIS, lycoris/functional/loha.py
LoKr        W + s (alpha / rank) W1 (x) W2                      LyCORIS, lycoris/functional/lokr.py
IA3         W (1 + s (l - 1))                                   Liu et al. 2022, arXiv:2205.05638; peft/tuners/ia3
diff        W + s D                                             LyCORIS, lycoris/modules/full.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from .rows import Kind

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]  # part of the formula -> tensor in float32
    Base = Callable[[], torch.Tensor]  # the weight as it is, in float32 and in the file's order of rows


def weight_change(kind: Kind, parts: Tensors, scale: float, alpha: float | None, base: Base) -> torch.Tensor | None:
    """What is added to a module's weight at a scale; None where only its bias changes.

    `alpha`: of the file's metadata, for tensors that have none of their own. `base` is called where a formula needs
    the weight itself.
    """
    if kind == "weights":
        return parts["weight"] - base()
    if kind == "diff":
        return parts["diff"] * scale if "diff" in parts else None
    if kind == "ia3":
        return base() * _along(parts["ia3_l"] - 1, base(), out=_is_out(parts["ia3_l"])) * scale
    if kind == "ia3 of lycoris":
        return base() * _along(parts["weight"], base(), out=not bool(parts["on_input"])) * scale
    change = DELTAS[kind](parts)
    factor = strength(parts, alpha)
    if "magnitude" in parts:
        return _dora_of_peft(base(), _shaped(change, base()) * (factor * scale), parts["magnitude"])
    if "dora_scale" in parts:
        return _dora_of_lycoris(base(), _shaped(change, base()) * factor, parts["dora_scale"], scale)
    return change * (factor * scale)


def is_product(kind: Kind, parts: Tensors) -> bool:
    """Whether the change is B A and no more, which may be computed row by row."""
    return kind == "lora" and not {"mid", "magnitude", "dora_scale"} & set(parts)


def bias_change(parts: Tensors, scale: float, alpha: float | None) -> torch.Tensor | None:
    """What is added to a module's bias; None where nothing is."""
    if "diff_b" in parts:
        return parts["diff_b"] * scale
    return parts["up_bias"] * (strength(parts, alpha) * scale) if "up_bias" in parts else None


def bias_factor(kind: Kind, parts: Tensors, scale: float) -> torch.Tensor | None:
    """What a module's bias is multiplied by: IA3 of PEFT scales what comes out of a layer, its bias too."""
    if kind != "ia3" or not _is_out(parts["ia3_l"]):
        return None
    return (parts["ia3_l"].flatten() - 1) * scale + 1


def strength(parts: Tensors, alpha: float | None) -> float:
    """alpha / rank. Without an alpha, and for a LoKr of two whole factors, it is 1."""
    rank = rank_of({part: tuple(tensor.shape) for part, tensor in parts.items()})
    own = float(parts["alpha"]) if "alpha" in parts else alpha
    return 1.0 if own is None or not rank else own / rank


def rank_of(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The rank of a row's matrices by their shapes; 0 where they have none."""
    for part, axis in RANKS:
        if part in shapes:
            return shapes[part][axis]
    return 0


# Where the rank is read. Of a LoKr with both factors taken apart it is the second's, as LyCORIS has one for both.
RANKS = (("down", 0), ("hada_w1_b", 0), ("lokr_w2_b", 0), ("lokr_w1_b", 0))


def shape_of(kind: Kind, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """The shape of the weight that a row was made for; None where it does not say, or its parts do not fit."""
    if kind == "lora":
        down, up, mid = shapes["down"], shapes["up"], shapes.get("mid", ())
        if len(down) < 2 or len(up) < 2 or up[1] != (mid[0] if mid else down[0]):
            return None
        return (up[0], down[1], *(mid[2:] or down[2:]))
    if kind == "loha":
        return _shape_of_loha(shapes)
    if kind == "lokr":
        return _shape_of_lokr(shapes)
    return shapes.get("diff") or (shapes["weight"] if kind == "weights" else None)


def _shape_of_loha(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    if "hada_t1" in shapes:
        return (shapes["hada_w1_a"][1], shapes["hada_w1_b"][1], *shapes["hada_t1"][2:])
    return (shapes["hada_w1_a"][0], *shapes["hada_w1_b"][1:])


def _shape_of_lokr(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    first = shapes.get("lokr_w1") or (shapes["lokr_w1_a"][0], shapes["lokr_w1_b"][1])
    if "lokr_t2" in shapes:
        second = (shapes["lokr_w2_a"][1], shapes["lokr_w2_b"][1], *shapes["lokr_t2"][2:])
    else:
        second = shapes.get("lokr_w2") or (shapes["lokr_w2_a"][0], *shapes["lokr_w2_b"][1:])
    return (first[0] * second[0], first[1] * second[1], *second[2:])


def _lora(parts: Tensors) -> torch.Tensor:
    import torch

    down, up = parts["down"], parts["up"]
    if "mid" in parts:
        whole: torch.Tensor = torch.einsum("op,pq...,qi->oi...", up.flatten(1), parts["mid"], down.flatten(1))
        return whole
    made = up.flatten(1) @ down.flatten(1)
    return made.reshape(up.shape[0], *down.shape[1:])


def _loha(parts: Tensors) -> torch.Tensor:
    return _product(parts, "hada_w1", "hada_t1") * _product(parts, "hada_w2", "hada_t2")


def _lokr(parts: Tensors) -> torch.Tensor:
    import torch

    first = parts.get("lokr_w1")
    first = _product(parts, "lokr_w1", "") if first is None else first
    second = parts.get("lokr_w2")
    second = _product(parts, "lokr_w2", "lokr_t2") if second is None else second
    first = first.reshape(*first.shape, *[1] * (second.dim() - first.dim()))
    return torch.kron(first, second.contiguous())


def _product(parts: Tensors, name: str, core: str) -> torch.Tensor:
    """The product of a factor's two matrices, around its core where it is of Tucker's form."""
    import torch

    a, b = parts[f"{name}_a"], parts[f"{name}_b"]
    if core in parts:
        whole: torch.Tensor = torch.einsum("ij...,jr,ip->pr...", parts[core], b, a)
        return whole
    return (a @ b.flatten(1)).reshape(a.shape[0], *b.shape[1:])


DELTAS: Mapping[Kind, Callable[[Tensors], torch.Tensor]] = {"lora": _lora, "loha": _loha, "lokr": _lokr}


LEAST = 2.0**-23  # of a norm: a row of zeros stays one (lycoris adds float32's epsilon for that)


def _shaped(change: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    return change.reshape(base.shape)  # a linear layer and a convolution of one pixel are the same


def _dora_of_peft(base: torch.Tensor, change: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """peft/tuners/lora/dora.py: the scale is within the direction V = W + s BA; magnitudes are those of rows."""
    made = base + change
    norms: torch.Tensor = made.flatten(1).norm(dim=1)
    factor = magnitude.flatten() / norms.clamp_min(LEAST)
    return made * factor.reshape(-1, *[1] * (made.dim() - 1)) - base


def _dora_of_lycoris(base: torch.Tensor, change: torch.Tensor, magnitude: torch.Tensor, scale: float) -> torch.Tensor:
    """lycoris/modules/locon.py, apply_weight_decompose: at a scale s it is V (1 + s (m / |V| - 1)).

    The shape of the magnitudes says whether they are those of rows, (out, 1), or of columns, (1, in).
    """
    import torch

    made = base + change * scale
    out = _is_out(magnitude) and magnitude.numel() == base.shape[0]
    rest = [axis for axis in range(base.dim()) if axis != (0 if out else 1)]
    norms: torch.Tensor = torch.linalg.vector_norm(made, dim=rest, keepdim=True)
    factor = magnitude.reshape(norms.shape) / norms.clamp_min(LEAST)
    return made * ((factor - 1) * scale + 1) - base


def _is_out(vector: torch.Tensor) -> bool:
    """Whether a vector has a number for each row of a weight: (out,) or (out, 1). (1, in) has one for each column."""
    return vector.dim() < 2 or vector.shape[0] == vector.numel()


def _along(vector: torch.Tensor, weight: torch.Tensor, *, out: bool) -> torch.Tensor:
    rest = [1] * (weight.dim() - 2)
    return vector.reshape(-1, 1, *rest) if out else vector.reshape(1, -1, *rest)
