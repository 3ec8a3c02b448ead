"""Rows of an adapter's file -> the layers of a pipeline that they are for."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...core.components import is_text_encoder, kind_of
from ...core.errors import UsageError
from .rows import Row
from .schemes import names_of

if TYPE_CHECKING:
    import torch

Shapes = Mapping[str, tuple[int, ...]]  # a component's parameters

# What the names of a file begin with -> the components that may be meant, the first that the pipeline has. "denoiser"
# stands for its first denoiser. Longer ones first.
PREFIXES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("model.diffusion_model.", ("denoiser",)),
    ("diffusion_model.", ("denoiser",)),
    ("lora_unet__", ("denoiser",)),
    ("lora_unet_", ("denoiser",)),
    ("lora_transformer_", ("denoiser",)),
    ("lora_prior_unet_", ("prior", "denoiser")),
    ("lora_prior_", ("prior", "denoiser")),
    ("lycoris_", ("denoiser", "text_encoder")),
    ("lora_te1_", ("text_encoder",)),
    ("lora_te2_", ("text_encoder_2",)),
    ("lora_te3_", ("text_encoder_3", "text_encoder_2")),
    ("lora_te_", ("text_encoder",)),
    ("text_encoders.clip_l.transformer.", ("text_encoder",)),
    ("text_encoders.clip_g.transformer.", ("text_encoder_2",)),
    ("text_encoders.t5xxl.transformer.", ("text_encoder_3", "text_encoder_2")),
    ("clip_l.transformer.", ("text_encoder",)),
    ("clip_g.transformer.", ("text_encoder_2",)),
    ("t5xxl.transformer.", ("text_encoder_3", "text_encoder_2")),
    ("clip_l.", ("text_encoder",)),
    ("clip_g.", ("text_encoder_2",)),
    ("t5xxl.", ("text_encoder_3", "text_encoder_2")),
    ("text_embedding_projection.", ("connectors",)),
    ("transformer.", ("denoiser",)),
    ("unet.", ("denoiser",)),
)
TEXT = ("lora_te", "text_encoder", "clip_l.", "clip_g.", "t5xxl.")


@dataclass(frozen=True)
class Place:
    """The layers that a row is for: modules of a component, their rows one after another, as in the file.

    `swapped`: in the file the halves of the rows are the other way round.
    """

    row: Row
    component: str
    modules: tuple[str, ...]
    swapped: bool = False

    def parameters(self, shapes: Shapes, ending: str = "weight") -> tuple[str, ...] | None:
        """The modules' weights or biases; a name may be a parameter's own. None where one has none."""
        found = []
        for module in self.modules:
            name = f"{module}.{ending}"
            if name in shapes:
                found.append(name)
            elif ending == "weight" and module in shapes:
                found.append(module)
            else:
                return None
        return tuple(found)


class Names:
    """The modules of a pipeline's components under every name that a file may have for them.

    `shapes` is called for a component when a name of the file speaks of it. `denoiser`: which one a file means that
    does not say, where there are several.
    """

    def __init__(self, components: Collection[str], shapes: Callable[[str], Shapes], denoiser: str = "") -> None:
        self.components = components
        denoisers = (name for name in components if kind_of(name) == "denoiser")
        self.denoiser = denoiser or next(denoisers, "")
        self._shapes, self._known = shapes, dict[str, tuple[Shapes, Mapping[str, tuple[str, ...]]]]()

    def place(self, row: Row) -> Place | None:
        """Where a row belongs; None where the pipeline has no such module."""
        for component, name in self._candidates(row.module):
            if found := self._read(component)[1].get(name):
                plain = tuple(module.lstrip("~") for module in found)
                return Place(row, component, plain, plain != found)
        return None

    def component_of(self, module: str) -> str:
        """The component that a module's name speaks of; "" where the pipeline has none such."""
        return next((component for component, _ in self._candidates(module)), "")

    def shapes(self, component: str) -> Shapes:
        """The shapes of a component's parameters."""
        return self._read(component)[0]

    def has(self, place: Place) -> bool:
        """Whether the pipeline has the modules of a place."""
        return place.component in self.components and place.parameters(self.shapes(place.component)) is not None

    def is_for_text(self, module: str) -> bool:
        """Whether a name of the file speaks of a text encoder."""
        return all(is_text_encoder(component) for component, _ in self._candidates(module)) or module.startswith(TEXT)

    def knows_beginning(self, module: str) -> bool:
        """Whether the pipeline has anything that a module's name begins with, once its prefix is off."""
        for component, name in self._candidates(module):
            beginnings = {known.partition(".")[0] for known in self._read(component)[1]}
            if any(name == known or name.startswith((f"{known}.", f"{known}_")) for known in beginnings):
                return True
        return False

    def _candidates(self, module: str) -> Iterable[tuple[str, str]]:
        """Components and what the module would be called in them."""
        for component in self.components:
            if module.startswith(f"{component}.") and component not in ("transformer", "unet"):
                yield component, module[len(component) + 1 :]
        for prefix, components in PREFIXES:
            if module.startswith(prefix):
                named = (self.denoiser if one == "denoiser" else one for one in components)
                yield from ((one, module.removeprefix(prefix)) for one in named if one in self.components)
                return
        yield from ((one, module) for one in (self.denoiser, "text_encoder") if one in self.components)

    def _read(self, component: str) -> tuple[Shapes, Mapping[str, tuple[str, ...]]]:
        if component not in self._known:
            shapes = self._shapes(component)
            self._known[component] = shapes, _index(component, shapes)
        return self._known[component]


def _index(component: str, shapes: Shapes) -> Mapping[str, tuple[str, ...]]:
    """Every name of a component's modules -> the modules, with dots and with underscores; its own names come first."""
    own = {re.sub(r"\.(weight|bias)$", "", name): None for name in shapes}
    names: dict[str, tuple[str, ...]] = {name: (name,) for name in own}
    if is_text_encoder(component):
        # transformers' CLIPTextModel has had its layers in `text_model` until version 5; files have them there.
        for name in own:
            names.setdefault(f"text_model.{name}", (name,))
            names.setdefault(name.removeprefix("text_model."), (name,))
        # Until diffusers 0.20: `self_attn.to_q_lora`.
        for name in list(names):
            if found := re.fullmatch(r"(.*\.self_attn)\.(q|k|v|out)_proj", name):
                names.setdefault(f"{found[1]}.to_{found[2]}", names[name])
    else:
        for makers, modules in names_of(own):
            names.setdefault(makers, modules)
        for name in own:  # attention's processors had the layers, in diffusers' files until 2023
            start, _, last = name.rpartition(".")
            names.setdefault(f"{start}.processor.{last}", (name,))
            if name.endswith(".to_out.0"):
                names.setdefault(f"{name[: -len('.to_out.0')]}.processor.to_out", (name,))
    flat = {name.replace(".", "_"): modules for name, modules in reversed(names.items())}
    return flat | names


def shapes_of(part: torch.nn.Module) -> Shapes:
    """The shapes of a component's parameters as they are without quantization, under the names without adapters."""
    import torch

    found: dict[str, tuple[int, ...]] = {name: tuple(tensor.shape) for name, tensor in part.named_parameters()}
    for name, module in part.named_modules():
        if isinstance(module, torch.nn.Linear) and name:  # quantized weights are stored in shapes of their own
            found[f"{name}.weight"] = (module.out_features, module.in_features)
    return {name.replace(".base_layer.", "."): shape for name, shape in found.items() if ".lora_" not in name}


SECOND = "transformer_2"  # the denoiser for little noise, of pipelines with two
# Of a pair's files the one for much noise, and the one for little, by their names.
HIGH = re.compile(r"high[-_. ]?noise|(?<![a-z])(high|hn)(?![a-z])(?![-_. ]?(res|detail|quality|key|contrast))", re.I)
LOW = re.compile(
    r"low[-_. ]?noise|(?<![a-z])(low|ln)(?![a-z])(?![-_. ]?(res|poly|quality|key|contrast|light(ing)?(?![a-z])))", re.I
)


def wanted_denoiser(asked: str, file: str, denoisers: Sequence[str], tensors: Iterable[str] = ()) -> tuple[str, str]:
    """The denoiser that an adapter is for, and why: as asked, by the file's own name, else the first.

    Wan 2.2 has `transformer` for much noise and `transformer_2` for little; its adapters are pairs of files, of which
    the names say which is which, or one file whose `tensors` have names for both. The reason is "" where there is
    nothing to choose. Raises UsageError for a file for both that was asked for one.
    """
    first = denoisers[0] if denoisers else ""
    if SECOND not in denoisers:
        return asked or first, ""
    if any(name.startswith(f"{SECOND}.") for name in tensors):
        if asked:
            raise UsageError(f"{file} has layers for both denoisers", f"leave out {asked}=: its own names say which")
        return first, ", and for the other, as its layers say"
    if asked:
        return asked, ", as asked"
    high, low = bool(HIGH.search(file)), bool(LOW.search(file))
    if high != low:
        return (first if high else SECOND), f", as its name says {'high' if high else 'low'} noise"
    return first, f" alone; for the other: --lora {SECOND}=SOURCE"
