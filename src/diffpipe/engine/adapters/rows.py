"""The names of an adapter's tensors -> rows: for each module, which tensor is which part of a formula."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["lora", "loha", "lokr", "ia3", "ia3 of lycoris", "diff", "weights"]

# What a name ends in -> which part of a formula the tensor is. Where a group is named "part", its text is the part.
# Layouts: PEFT (with and without the adapter's name), diffusers old and new, kohya's sd-scripts, LyCORIS, ComfyUI.
NAME = r"(?:\.(?!weight$|bias$)[^.]+)?"  # of an adapter within a file of PEFT, "default" mostly
ENDINGS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern + "$"), part)
    for pattern, part in (
        (rf"\.lora_(?:A|down){NAME}(?:\.weight)?", "down"),
        (rf"\.lora_(?:B|up){NAME}(?:\.weight)?", "up"),
        (rf"\.lora_(?:B|up){NAME}\.bias", "up_bias"),
        (r"\.lora_mid\.weight", "mid"),
        (r"(?:\.lora|\.lora_linear_layer|_lora)?\.down\.weight", "down"),
        (r"(?:\.lora|\.lora_linear_layer|_lora)?\.up\.weight", "up"),
        (r"\.lora_magnitude_vector(?:\.[^.]+){0,2}", "magnitude"),
        (r"\.dora_scale", "dora_scale"),
        (r"(?:\.lora|\.lora_linear_layer|_lora)?\.alpha", "alpha"),
        (r"\.hada_(?P<part>w[12]_[ab]|t[12])(?:\.[^.]+)?", "hada_"),
        (r"\.lokr_(?P<part>w[12](?:_[ab])?|t2)(?:\.[^.]+)?", "lokr_"),
        (r"\.ia3_l(?:\.[^.]+)?", "ia3_l"),
        (r"\.on_input", "on_input"),
        (r"\.(?:diff|w_norm)", "diff"),
        (r"\.(?:diff_b|b_norm)", "diff_b"),
        (r"\.(?:weight|scale)", "weight"),
    )
)
LABELS: Mapping[Kind, str] = {
    "lora": "LoRA",
    "loha": "LoHa",
    "lokr": "LoKr",
    "ia3": "IA3",
    "ia3 of lycoris": "IA3",
    "diff": "differences",
    "weights": "whole weights",
}
TABLE = re.compile(r"\.diff_m$")  # lightx2v's name for the difference of a block's modulation, which is no layer
WRAPPER = re.compile(r"^(?:base_model\.model\.)+")
# What of a pair is missing makes the other worth nothing.
NEEDED: Mapping[Kind, tuple[tuple[str, ...], ...]] = {
    "lora": (("down", "up"),),
    "loha": (("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),),
    "lokr": (
        ("lokr_w1", "lokr_w2"),
        ("lokr_w1", "lokr_w2_a", "lokr_w2_b"),
        ("lokr_w1_a", "lokr_w1_b", "lokr_w2"),
        ("lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"),
    ),
    "ia3": (("ia3_l",),),
    "ia3 of lycoris": (("weight", "on_input"),),
    "diff": (("diff",), ("diff_b",)),
    "weights": (("weight",),),
}
ALLOWED: Mapping[Kind, frozenset[str]] = {
    "lora": frozenset({"down", "up", "mid", "up_bias", "diff_b", "alpha", "dora_scale", "magnitude"}),
    "loha": frozenset({f"hada_{x}" for x in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")} | {"alpha", "dora_scale"}),
    "lokr": frozenset(
        {f"lokr_{x}" for x in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")} | {"alpha", "dora_scale"}
    ),
    "ia3": frozenset({"ia3_l"}),
    "ia3 of lycoris": frozenset({"weight", "on_input"}),
    "diff": frozenset({"diff", "diff_b", "alpha"}),
    "weights": frozenset({"weight"}),
}
# Whole weights that a Control LoRA of Flux replaces: those of the norms of queries and keys (diffusers calls them the
# transformer's norm layers). Any other whole weight in a file is no part of an adapter.
REPLACED = re.compile(r"(?:^|\.)(?:norm_(?:added_)?[qk]|(?:query|key)_norm)$")


@dataclass(frozen=True)
class Row:
    """What a file has for one module. `module`: as the file names it; `parts`: part of the formula -> tensor's name."""

    module: str
    kind: Kind
    parts: Mapping[str, str]

    @property
    def label(self) -> str:
        """What its kind is called."""
        return "DoRA" if {"magnitude", "dora_scale"} & set(self.parts) else LABELS[self.kind]


@dataclass(frozen=True)
class Rows:
    """The rows of a file, and the names of the tensors that belong to none: no formula takes them."""

    rows: tuple[Row, ...]
    strange: tuple[str, ...]


def read(names: Iterable[str]) -> Rows:
    """The rows of a file by its tensors' names, in the order in which it has them."""
    modules: dict[str, dict[str, str]] = {}
    strange: list[str] = []
    for name in names:
        if (found := part_of(name)) is None:
            strange.append(name)
            continue
        module, part = found
        if part in modules.setdefault(module, {}):
            strange.append(name)  # two adapters in one file
        else:
            modules[module][part] = name
    rows: list[Row] = []
    for module, parts in modules.items():
        if set(parts) == {"alpha"}:  # of matrices that were left out when the file was written: it says nothing
            continue
        kind = _kind_of(module, parts)
        if kind is None:
            strange += parts.values()
            continue
        rows.append(Row(module, kind, {part: name for part, name in parts.items() if part in ALLOWED[kind]}))
        strange += (name for part, name in parts.items() if part not in ALLOWED[kind])
    return Rows(tuple(rows), tuple(strange))


def part_of(name: str) -> tuple[str, str] | None:
    """The module and the part of a tensor by its name; None where it ends in nothing known."""
    name = TABLE.sub(".modulation.diff", name)
    for pattern, part in ENDINGS:
        if found := pattern.search(name):
            return WRAPPER.sub("", name[: found.start()]), part + (found.groupdict().get("part") or "")
    return None


def _kind_of(module: str, parts: Collection[str]) -> Kind | None:
    """What a module's parts are together; None where they make nothing whole."""
    for kind, ways in NEEDED.items():
        if any(all(part in parts for part in way) for way in ways):
            return None if kind == "weights" and not REPLACED.search(module) else kind
    return None
