"""A model of a class by its settings, without weights: its parameters are on the meta device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...core.canonical import JsonValue

if TYPE_CHECKING:
    import torch

    from .lookup import ComponentClass


def hollow(cls: ComponentClass, settings: Mapping[str, JsonValue]) -> torch.nn.Module:
    """A model of diffusers or transformers that has the shapes of its layers and nothing in them."""
    import transformers
    from accelerate import init_empty_weights

    with init_empty_weights():
        if issubclass(cls, transformers.PreTrainedModel):
            made: torch.nn.Module = cls(cls.config_class.from_dict(dict(settings)))
        else:
            made = cls.from_config(dict(settings))
    return made
