"""Whether a single file's weights are those of a model class and its settings, by their names and shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from ...core.canonical import JsonValue
from ..classes.hollow import hollow
from ..classes.input_widths import INPUT_LAYER
from ..seams import diffusers_files_seam
from . import text_encoder_file

if TYPE_CHECKING:
    import torch

    from ..classes.lookup import ComponentClass

Shapes = Mapping[str, tuple[int, ...]]


class Fit(NamedTuple):
    """What does not fit, in words; the tensors that the model has no place for; the channels that the file takes."""

    faults: list[str]
    idle: list[str]
    channels: int | None = None


def fit(cls: ComponentClass, settings: Mapping[str, JsonValue], shapes: Shapes) -> Fit:
    """How a file's tensors fit a model of diffusers or a text encoder that is loaded from it."""
    import transformers

    if issubclass(cls, transformers.PreTrainedModel):
        return Fit(text_encoder_file.unfitting(cls, settings, shapes), [])
    if not hasattr(cls, "from_single_file"):
        return Fit([f"{cls.__name__} cannot be loaded from a single file"], [])
    model = hollow(cls, settings, len(shapes))
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    own = 2 * len(shapes.keys() & wanted.keys()) > len(wanted)  # under the model's own names, if not all of them
    has = dict(shapes) if own else _converted(cls, settings, shapes)
    if not has:
        return Fit([f"its tensors are not those of a {cls.__name__}"], [])
    missing = [f"{name} is missing" for name, _ in model.named_parameters() if name not in has]
    other = sorted(name for name in wanted if name in has and has[name] != wanted[name])
    faults = [f"{name} is {_by(has[name])}, not {_by(wanted[name])}" for name in other]
    shape = has.get(INPUT_LAYER.get(cls.__name__, ""), ())
    channels = shape[1] if len(shape) > 1 else None
    idle = sorted(set(has) - set(wanted))
    # diffusers takes its own names only where they are all there is.
    more = [f"it has {name}, for which there is no place" for name in idle] if own else []
    return Fit([*faults, *missing, *more], [] if own else idle, channels)


def fit_folder(cls: ComponentClass, settings: Mapping[str, JsonValue], shapes: Shapes) -> list[str]:
    """What of a folder's weights is missing or of another shape than its settings say, in words.

    Both libraries would make up what is missing.
    """
    import transformers

    if issubclass(cls, transformers.PreTrainedModel):
        return text_encoder_file.lacking(cls, settings, shapes)
    if not hasattr(cls, "load_config"):
        return []
    model = hollow(cls, settings, len(shapes))
    has = {n: tuple(one.shape) for n, one in diffusers_files_seam.with_current_names(model, _empty(shapes)).items()}
    missing = [f"{name} is missing" for name, _ in model.named_parameters() if name not in has]
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    other = sorted(name for name in wanted if name in has and has[name] != wanted[name])
    return [*(f"{name} is {_by(has[name])}, not {_by(wanted[name])}" for name in other), *missing]


def repository_for(shapes: Shapes) -> str:
    """The repository that has the settings of a file's kind, as diffusers knows it; "" for a file it does not know."""
    return diffusers_files_seam.repository_of(_empty(shapes))


def _converted(cls: ComponentClass, settings: Mapping[str, JsonValue], shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """The shapes by the model's own names; {} for a file that diffusers cannot convert."""
    try:
        made = diffusers_files_seam.converted(cls, settings, _empty(shapes))
    except Exception:  # a conversion fails in any way it likes on names that it does not expect
        return {}
    return {name: tuple(tensor.shape) for name, tensor in made.items()}


def _empty(shapes: Shapes) -> dict[str, torch.Tensor]:
    import torch

    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"
