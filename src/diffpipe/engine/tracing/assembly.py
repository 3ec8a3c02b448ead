"""A pipeline without weights: each component made from its settings, its parameters on the meta device."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ...core.errors import UsageError
from ...core.tracing import Recipe
from ..classes.hollow import hollow
from ..classes.lookup import component_class, pipeline_class, pipeline_parts
from ..seams import diffusers_seam
from .stand_ins import PREPROCESSOR, tokenizer

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

TEXT = re.compile("Tokenizer|Processor$")


def assemble(recipe: Recipe) -> DiffusionPipeline:
    """The pipeline of a recipe, to be called like one with weights.

    Raises UsageError for settings that a component's class cannot be made with.
    """
    cls = pipeline_class(recipe.pipeline)
    taken, optional = pipeline_parts(cls)
    parts: dict[str, object] = dict.fromkeys(optional & taken)
    for name in recipe.layout.keys() & taken:
        parts[name] = component(recipe, name)
    if missing := sorted(taken - parts.keys() - set(SWITCHES)):
        raise UsageError(f"nothing says what {recipe.pipeline} has for {missing[0]}", "plan it without --trace")
    pipe: DiffusionPipeline = cls(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


SWITCHES = ("requires_safety_checker", "force_zeros_for_empty_prompt", "add_watermarker", "is_distilled")


def component(recipe: Recipe, name: str) -> object:
    """One component: a model, a scheduler, or what stands for a tokenizer or processor."""
    library, class_name = recipe.layout[name]
    settings, cls = recipe.configs.get(name, {}), component_class(library, class_name)
    if PREPROCESSOR.search(class_name):
        return cls.from_dict(dict(settings))
    if TEXT.search(class_name):
        return tokenizer(cls, settings)
    if is_model(cls):
        wide = name in recipe.float32
        return in_dtype(hollow(cls, settings), "float32" if wide else recipe.dtype)
    return cls.from_config(dict(settings)) if hasattr(cls, "from_config") else cls()


def is_model(cls: type) -> bool:
    import torch

    return issubclass(cls, torch.nn.Module)


def in_dtype(model: torch.nn.Module, dtype: str) -> torch.nn.Module:
    """A model as it is loaded in a dtype: but for what its class keeps in float32."""
    import torch

    wide = diffusers_seam.kept_in_float32(model, dtype)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            kept = not wide.isdisjoint(name.split("."))
            tensor.data = tensor.data.to(torch.float32 if kept else getattr(torch, dtype))
    return model.eval().requires_grad_(False)
