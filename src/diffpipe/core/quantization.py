"""What quantization does to a model, whichever library does it: formats, libraries, and the layers it leaves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import translate

from .choices import QuantizeBackend

# Backend -> the package that decides what it makes.
PACKAGES: Mapping[QuantizeBackend, str] = {"quanto": "optimum-quanto", "torchao": "torchao"}

# Names of layers that keep their own format everywhere: the last projection, whose errors nothing averages out (as the
# diffusers guide to quanto leaves it), and vocabulary heads, which no pipeline uses.
LEFT = ("proj_out", "*final_layer*", "lm_head", "*.lm_head")
_LEFT = re.compile("|".join(map(translate, LEFT)))

GROUP = 128  # weights of a row that share a scale in int4: quanto's default, and what tinygemm on CUDA takes
GROUPS = (128, 96, 64, 32)
INT4_ROWS = 16  # out_features must be a multiple of it for tinygemm, which quanto takes on CUDA for groups of 128

# The call that a quantized component is compared with the original on: the smallest picture that the released families
# make, in pixels to a side, and frames of a video.
SAMPLE_SIDE, SAMPLE_FRAMES = 256, 9

# The components that are quantized where none are named.
BY_DEFAULT = re.compile(r"(prior_)?(transformer|unet|prior|text_encoder)(_\d+)?")


def left(layer: str) -> bool:
    """Whether a layer keeps its own format whatever is quantized, by its name in its component."""
    return _LEFT.match(layer) is not None


def group_size(columns: int) -> int | None:
    """The int4 group of a row: the largest of GROUPS that divides it; None up to GROUP, where a row is one group."""
    if columns <= GROUP:
        return None
    return next((size for size in GROUPS if columns % size == 0), None)


def quantized_by_default(components: Iterable[str]) -> list[str]:
    """The denoisers and text encoders among a pipeline's components, sorted: never the autoencoder."""
    return sorted(name for name in components if BY_DEFAULT.fullmatch(name))
