"""What diffpipe uses of transformers beyond its documentation. Tried with transformers 5.23.0.

transformers 5 looks through all of its 3,300 files, at import, for the `__all__` of each; it reads whole files for it.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .seam import Seam

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

SCANNING = "transformers.utils.import_utils"
SCANNED = ("5.23.",)  # versions whose fetch__all__ heeds nothing before the last line that starts with __all__

SCAN = Seam(
    "transformers",
    "utils.import_utils.fetch__all__",
    buys="0.4 s of a cold start: what a file exports is read from its end",
    without="transformers reads its files whole, which takes 0.4 s more at each start",
    file="transformers/utils/import_utils.py",
    text="def fetch__all__(",
    versions=SCANNED,
)
FROM_CONFIG = Seam(
    "transformers",
    "PreTrainedModel._from_config",
    buys="a model of a class without weights, in the dtype it was loaded in",
    without="stored text encoders, quantized ones that is, cannot be loaded",
    file="transformers/modeling_utils.py",
    text="def _from_config(",
)
QUESTION = Seam(
    "transformers",
    "dynamic_module_utils.input",
    buys="a model's own code is refused at once where nobody consented to it",
    without="transformers asks at the terminal for 15 seconds, and finds an empty standard input",
    file="transformers/dynamic_module_utils.py",
    text="answer = input(",
)
SEAMS = (SCAN, FROM_CONFIG, QUESTION)


def scan_ends(loader: importlib.machinery.SourceFileLoader, module: ModuleType) -> None:
    """Load the module that reads all files (SCANNING), and have it look at their ends only.

    In place of the loader's own `exec_module`. In other versions than SCANNED the module is loaded as it is.
    """
    type(loader).exec_module(loader, module)
    if importlib.metadata.version("transformers").startswith(SCANNED):
        whole = module.fetch__all__
        module.fetch__all__ = lambda text: whole(exports(text))  # type: ignore[attr-defined]


def exports(text: str) -> str:
    """A file from the last line that starts with __all__, all of it if there is none: all that fetch__all__ heeds."""
    return text[text.rfind("\n__all__") + 1 :]


def from_config(cls: type[PreTrainedModel], settings: Mapping[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    """A model of a class by its config.json, as `from_pretrained` makes it before it loads weights."""
    made: PreTrainedModel = cls._from_config(cls.config_class.from_dict(dict(settings)), dtype=dtype)
    return made


def answer(consented: bool) -> None:
    """Have transformers' question whether a model's own code may run answered so, and never shown.

    It asks where `trust_remote_code` was not said, as in diffusers' calls for a component. Its module finds a name of
    its own before the builtin `input`.
    """
    from transformers import dynamic_module_utils

    dynamic_module_utils.input = lambda _question="": "y" if consented else "n"  # type: ignore[attr-defined]
