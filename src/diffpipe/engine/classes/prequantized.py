"""Models that were saved quantized: whether the package that reads their weights is here, and works on this machine."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping

from ...core.canonical import JsonObject, JsonValue
from ...core.errors import UsageError
from .lookup import first_line

# quant_method -> the module that the libraries import for it, and what pip calls its package.
PACKAGES: Mapping[str, tuple[str, str]] = {
    "bitsandbytes": ("bitsandbytes", "bitsandbytes"),
    "quanto": ("optimum.quanto", "optimum-quanto"),
    "torchao": ("torchao", "torchao"),
    "sdnq": ("sdnq", "sdnq"),
    "gptq": ("gptqmodel", "gptqmodel"),
    "awq": ("gptqmodel", "gptqmodel"),
    "auto-round": ("auto_round", "auto-round"),
    "modelopt": ("modelopt", "nvidia-modelopt"),
    "compressed-tensors": ("compressed_tensors", "compressed-tensors"),
    "hqq": ("hqq", "hqq"),
    "aqlm": ("aqlm", "aqlm"),
    "vptq": ("vptq", "vptq"),
    "quark": ("quark", "amd-quark"),
    "gguf": ("gguf", "gguf"),
}


def check(name: str, library: str, label: str, settings: Mapping[str, JsonValue]) -> None:
    """Whether a component can be loaded as its config.json says it was quantized; at once where it was not.

    `library`: that of its class. `label`: what the user calls its source. Raises UsageError.
    """
    asked = settings.get("quantization_config")
    if not isinstance(asked, dict):
        return
    method = method_of(asked)
    what = f"the {name} of {label} is quantized with {method}"
    if method in PACKAGES and not _found(PACKAGES[method][0]):
        raise UsageError(f"{what}, whose package is not installed", f"pip install {PACKAGES[method][1]}")
    try:
        _validate(library, copy.deepcopy(asked))
    except Exception as error:  # the libraries' quantizers refuse in any way they like
        raise UsageError(
            f"{what}, which cannot be used here: {first_line(error)}",
            "mend that, or choose a model whose weights are not quantized",
        ) from error


def method_of(asked: JsonObject) -> str:
    """The name of a way to quantize; older files of bitsandbytes say it by their switches alone."""
    method = asked.get("quant_method")
    switched = asked.get("load_in_4bit") or asked.get("load_in_8bit")
    return str(method) if method else "bitsandbytes" if switched else "an unknown method"


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _validate(library: str, asked: JsonObject) -> None:
    """Have the library's own quantizer look whether its packages and devices are there; it raises what it likes."""
    if library == "transformers":
        from transformers.quantizers import AutoHfQuantizer

        if not AutoHfQuantizer.supports_quant_method(dict(asked)):
            raise ValueError("transformers knows no such method")
        AutoHfQuantizer.from_config(asked, pre_quantized=True).validate_environment()
    else:
        from diffusers.quantizers import DiffusersAutoQuantizer

        DiffusersAutoQuantizer.from_config(asked, pre_quantized=True).validate_environment()
