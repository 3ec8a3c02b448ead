"""What the trainers call the layers: for each scheme a tiny pipeline's layers, and whose rows each name stands for.

The tables are of the original code of each model, where a name may stand for several of diffusers' layers one below the
other: Black Forest Labs' `qkv` for query, key and value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import checkpoints
from torch import Tensor
from torch.nn import Module


@dataclass(frozen=True)
class Span:
    """Rows of a weight: all of them, or the first or second half."""

    module: str  # COMPONENT.MODULE, or COMPONENT.PARAMETER for a parameter that is no layer's weight
    half: int | None = None

    def rows(self, height: int) -> slice:
        return slice(0, height) if self.half is None else slice(height // 2 * self.half, height // 2 * (self.half + 1))


@dataclass(frozen=True)
class Site:
    """A layer of the file: its name there, and what it changes, from the first row to the last."""

    key: str
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Model:
    """A pipeline's weights by COMPONENT.PARAMETER."""

    components: Mapping[str, Module]
    parameters: Mapping[str, Tensor]

    def modules(self, component: str, pattern: str) -> list[str]:
        """The modules of a component that have a weight and such a name, without the component's."""
        start = f"{component}."
        names = (name.removeprefix(start).removesuffix(".weight") for name in self.parameters if name.startswith(start))
        return [name for name in names if f"{start}{name}.weight" in self.parameters and re.search(pattern, name)]


Scheme = Callable[[Model], list[Site]]


def together(*schemes: Scheme) -> Scheme:
    return lambda model: [site for scheme in schemes for site in scheme(model)]


def under(prefix: str, scheme: Scheme) -> Scheme:
    """The same names after a prefix."""
    return lambda model: [replace(site, key=prefix + site.key) for site in scheme(model)]


def flat(prefix: str, scheme: Scheme) -> Scheme:
    """kohya's: dots become underscores (networks/lora.py of sd-scripts)."""
    return lambda model: [replace(site, key=f"{prefix}_{site.key.replace('.', '_')}") for site in scheme(model)]


def own(component: str, pattern: str) -> Scheme:
    """diffusers' own names of a component's layers."""
    return lambda model: [Site(name, (Span(f"{component}.{name}"),)) for name in model.modules(component, pattern)]


def renamed(scheme: Scheme, *changes: tuple[str, str]) -> Scheme:
    def rename(model: Model) -> list[Site]:
        found = []
        for site in scheme(model):
            key = site.key
            for pattern, new in changes:
                key = re.sub(pattern, new, key)
            found.append(replace(site, key=key))
        return found

    return rename


def first(count: int, scheme: Scheme) -> Scheme:
    return lambda model: scheme(model)[:count]


Block = Mapping[str, tuple[str, ...]]


def original(component: str, blocks: Mapping[tuple[str, str], Block], outer: Mapping[str, str | Span] = {}) -> Scheme:
    """The names of a model's original code. `blocks`: (block there, block here) -> name there -> modules here.

    Only what the model has: the last block of some lacks layers.
    """

    def find(model: Model) -> list[Site]:
        found = []
        for (there, here), block in blocks.items():
            for number in range(_count(model, component, here)):
                for name, modules in block.items():
                    spans = tuple(Span(f"{component}.{here}.{number}.{module}") for module in modules)
                    found.append(Site(f"{there}.{number}.{name}", spans))
        for name, span in outer.items():
            span = Span(span) if isinstance(span, str) else span
            found.append(Site(name, (replace(span, module=f"{component}.{span.module}"),)))
        return [site for site in found if all(_has(model, span.module) for span in site.spans)]

    return find


def _count(model: Model, component: str, blocks: str) -> int:
    numbers = (re.match(rf"{component}\.{blocks}\.(\d+)\.", name) for name in model.parameters)
    return max((int(found[1]) + 1 for found in numbers if found), default=0)


def _has(model: Model, name: str) -> bool:
    return name in model.parameters or f"{name}.weight" in model.parameters


def only(pattern: str, scheme: Scheme) -> Scheme:
    """Those of a scheme's layers whose names there match."""
    return lambda model: [site for site in scheme(model) if re.search(pattern, site.key)]


# --- Stable Diffusion and SDXL ---------------------------------------------------------------------------------------

JOINT = r"attn2?\.(to_(q|k|v|out\.0|add_out)|add_[qkv]_proj)"  # of blocks for pictures and text
ATTENTION = r"attn\d?\.to_(q|k|v|out\.0)$"
# What kohya-ss/sd-scripts trains: all linear layers and 1 x 1 convolutions of Transformer2DModel.
TRANSFORMER_2D = (
    r"attentions\.\d+\.(proj_in|proj_out|transformer_blocks\.\d+\.(attn\d\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2)))$"
)
# With conv_dim, or as LoCon: those of ResnetBlock2D, Downsample2D and Upsample2D too.
RESNETS = r"(resnets\.\d+\.(conv1|conv2|time_emb_proj|conv_shortcut)|samplers\.0\.conv)$"
# LyCORIS' preset "full" goes on to the rest.
REST = r"^(conv_in|conv_out|time_embedding\.linear_[12])$"
NORMS = r"(\.norm\d?|^conv_norm_out)$"


def clip(component: str) -> Scheme:
    """CLIP's layers as the files name them: with `text_model.`, which transformers 5 dropped from some classes."""

    def find(model: Model) -> list[Site]:
        names = model.modules(component, r"(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])$")
        return [Site(f"text_model.{n.removeprefix('text_model.')}", (Span(f"{component}.{n}"),)) for n in names]

    return find


def t5(component: str) -> Scheme:
    return own(component, r"(SelfAttention\.[qkvo]|DenseReluDense\.(wi_0|wi_1|wo))$")


def ldm(pattern: str) -> Scheme:
    """The UNet's layers as Stability AI's code and sd-scripts' SDXL name them (library/sdxl_original_unet.py)."""

    def find(model: Model) -> list[Site]:
        unet = model.components["unet"]
        wanted = set(model.modules("unet", pattern))
        pairs = zip(unet.state_dict(), checkpoints.ldm_unet(unet), strict=True)
        modules = ((new.removesuffix(".weight"), old.removesuffix(".weight")) for old, new in pairs)
        return [Site(new, (Span(f"unet.{old}"),)) for new, old in modules if old in wanted]

    return find


def processors(component: str = "unet") -> Scheme:
    """Attention processors of diffusers until 0.20: `attn1.processor.to_q_lora`, `to_out_lora` without a number."""
    names = own(component, ATTENTION)
    return renamed(names, (r"\.to_(q|k|v|out)(\.0)?$", r".processor.to_\1_lora"))


def clip_processors(component: str) -> Scheme:
    """Of the text encoder then: `self_attn.to_q_lora` (loaders.py of diffusers 0.17 to 0.20)."""
    return renamed(only(r"self_attn", clip(component)), (r"self_attn\.(q|k|v|out)_proj$", r"self_attn.to_\1_lora"))
