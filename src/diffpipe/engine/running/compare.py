"""How far two finished files are from each other, decoded: the peak signal-to-noise ratio (PSNR)."""

from __future__ import annotations

import filecmp
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ...core.errors import UsageError
from ...core.flag import OutputKind
from .. import media

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Samples: TypeAlias = NDArray[np.uint8] | NDArray[np.float32]


def identical(one: Path, other: Path) -> bool:
    """Whether two files, or two folders of files, hold the same bytes."""
    if not one.is_dir():
        return other.is_file() and filecmp.cmp(one, other, shallow=False)
    names = {path.name for path in one.iterdir()}
    if not other.is_dir() or names != {path.name for path in other.iterdir()}:
        return False
    return not any(filecmp.cmpfiles(one, other, names, shallow=False)[1:])


def measured(one: Path, other: Path, kind: OutputKind) -> dict[str, float | None]:
    """PSNR in dB of the "picture", or of "frames" and "sound" as far as either file has them.

    Infinite where every sample is equal, None where sizes or lengths differ. Raises UsageError for a file that cannot
    be read.
    """
    import numpy as np

    if kind == "image":
        return {"picture": psnr([_pixels(one)], [_pixels(other)], 255)}
    if kind == "audio":
        return {"sound": _of_sounds(media.read_audio(one), media.read_audio(other))}
    frames, others = (list(map(np.asarray, media.read_video(path).frames)) for path in (one, other))
    sounds = [_sound(path) for path in (one, other)]
    heard = {"sound": _of_sounds(*sounds)} if any(sounds) else {}
    return {"frames": psnr(frames, others, 255), **heard}


def psnr(some: Sequence[Samples], others: Sequence[Samples], peak: float) -> float | None:
    """10 log10(peak² / mean squared error) over arrays in pairs; None unless they have the same shapes.

    `peak` is full scale: 255 for bytes, 1 for samples from -1 to 1.
    """
    import numpy as np

    if [one.shape for one in some] != [other.shape for other in others]:
        return None
    pairs = zip(some, others, strict=True)
    total = sum(float(np.square(one.astype(np.float64) - other).sum()) for one, other in pairs)
    return 10 * math.log10(peak**2 * sum(one.size for one in some) / total) if total else math.inf


def _pixels(path: Path) -> NDArray[np.uint8]:
    """A picture's pixels; those that are opaque everywhere without their alpha, which would hide an error."""
    import numpy as np

    pixels = np.asarray(media.read_image(path, mode="RGBA"))
    return pixels if (pixels[..., 3] < 255).any() else pixels[..., :3]


def _sound(path: Path) -> media.Sound | None:
    """A video's sound, None where it has none."""
    try:
        return media.read_audio(path)
    except UsageError:
        return None


def _of_sounds(one: media.Sound | None, other: media.Sound | None) -> float | None:
    if one is None or other is None or one.rate != other.rate:
        return None
    return psnr([one.samples], [other.samples], 1.0)
