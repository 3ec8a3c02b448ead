"""A model of a class by its settings, without weights: its parameters are on the meta device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ...core.canonical import JsonValue
from ...core.errors import UsageError
from .lookup import first_line

if TYPE_CHECKING:
    import torch

    from .lookup import ComponentClass


def hollow(cls: ComponentClass, settings: Mapping[str, JsonValue]) -> torch.nn.Module:
    """A model of diffusers or transformers that has the shapes of its layers and nothing in them.

    Raises UsageError for settings that the class cannot be made with.
    """
    import transformers
    from accelerate import init_empty_weights

    with usable(cls), init_empty_weights():
        if issubclass(cls, transformers.PreTrainedModel):
            made: torch.nn.Module = cls(cls.config_class.from_dict(dict(settings)))
        else:
            made = cls.from_config(dict(settings))
    return made


@contextmanager
def usable(cls: ComponentClass) -> Iterator[None]:
    """Raises UsageError for whatever a class raises that is made with the settings of somebody's config.json."""
    try:
        yield
    except Exception as error:  # constructors take numbers for granted, and fail in any way without
        raise UsageError(
            f"the settings of a {cls.__name__} cannot be used: {first_line(error)}", "copy or fetch the model again"
        ) from error
