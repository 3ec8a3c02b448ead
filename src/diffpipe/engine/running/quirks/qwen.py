"""Qwen-Image-Layered: its resolution is a choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ....core.flag import Arguments

if TYPE_CHECKING:
    from diffusers import QwenImageLayeredPipeline
    from diffusers.utils import BaseOutput


def call_layered(pipe: QwenImageLayeredPipeline, arguments: Arguments) -> BaseOutput:
    """The resolution is one of two numbers: a choice among texts on the command line."""
    return pipe(**{**arguments, "resolution": int(arguments.get("resolution") or 640)})
