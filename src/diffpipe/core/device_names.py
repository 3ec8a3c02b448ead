"""Torch's names of devices, as options, records and torch itself have them. What a device can do is asked of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

# Those that torch comes with; "auto" is the fastest there is. AMD's devices (ROCm) go by CUDA's name.
DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")
# A kind and an index. Other kinds come with packages of their own (Python entry points "torch.backends").
DEVICE = re.compile(r"auto|cpu|mps|(?!(auto|cpu|mps|meta)\b)[a-z][a-z0-9_]{0,31}(:\d{1,3})?")
DeviceKind = Literal["cpu", "accelerator"]  # what plans, costs and refusals tell apart
# How records of runs and the plan's JSON say it: they are older than any accelerator here but CUDA's.
WRITTEN_KIND: Mapping[DeviceKind, str] = {"cpu": "cpu", "accelerator": "cuda"}


def family(device: str) -> str:
    """The kind of a device: "cuda" of "cuda:1"."""
    return device.partition(":")[0]
