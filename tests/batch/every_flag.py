"""Flags of every kind, as a pipeline has them."""

from __future__ import annotations

from diffpipe.core.flag import Flag

FLAGS = {
    "prompt": Flag("prompt", "text"),
    "negative_prompt": Flag("negative_prompt", "text", many=True),
    "width": Flag("width", "integer"),
    "guidance_scale": Flag("guidance_scale", "number"),
    "sigmas": Flag("sigmas", "number", many=True, scalar=False),
    "use_mask": Flag("use_mask", "boolean"),
    "mode": Flag("mode", "choice", choices=("fast", "fine")),
    "image": Flag("image", "image", many=True),
    "extra": Flag("extra", "json"),
}
NAMES = frozenset(FLAGS) | {"unflagged"}
