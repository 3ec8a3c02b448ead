"""The words that options of `build` take, each list in one place: command line, plan and engine agree on them."""

from __future__ import annotations

from typing import Literal, get_args

Dtype = Literal["bfloat16", "float16", "float32"]
DTYPES: tuple[str, ...] = get_args(Dtype)

Memory = Literal["manual", "auto"]
CpuOffload = Literal["none", "model", "sequential", "group"]
Quantize = Literal["none", "fp8", "int8", "int4"]
QuantizeBackend = Literal["quanto", "torchao"]

# As diffusers' AttentionBackendName has them, without those that fetch code from the hub.
AttentionBackend = Literal[
    "native", "native-math", "native-efficient", "native-flash", "native-cudnn", "flex", "flash", "flash-3", "sage",
    "xformers",
]  # fmt: skip
StepCache = Literal["first-block", "taylorseer", "pyramid"]
