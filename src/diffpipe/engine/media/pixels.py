"""What the pixels of a file mean: bits, alpha, and the grey of masks, whatever mode Pillow opens them in."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray
    from PIL.Image import Image

    Levels = NDArray[float64]

Note = Callable[[str], None]  # is given what should be known of a file that was read

BACKGROUND = (255, 255, 255)  # what is behind transparent parts of a picture: the paper that most viewers show
NEARLY = 8  # levels by which colours may differ that are one colour: lossy files blur edges
VISIBLE = 127  # of alpha: what is fainter says little of its colour
MOSTLY = 0.9  # of a picture's values
DIM = 128  # of a mask: pipelines take what is darker for black


# Modes that Pillow converts to any other, and premultiplied ones with what they are unmultiplied.
PLAIN = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"})
PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}


class Unfit(ValueError):
    """What of a picture cannot be taken, in words that begin with "it"."""


def plain(picture: Image, note: Note) -> Image:
    """A picture in 8 bits a channel, in a mode that can be converted to any other. Raises Unfit for one that cannot."""
    if picture.mode in PREMULTIPLIED:
        return picture.convert(PREMULTIPLIED[picture.mode])
    eight = _eight_bit(picture, note)
    if eight.mode not in PLAIN:
        raise Unfit(f"it has colours of the kind {eight.mode}: convert it to RGB")
    return eight


def _eight_bit(picture: Image, note: Note) -> Image:
    """A grey picture of 16 or 32 bits, whole numbers or floats, in 8 bits by its range; any other as it is.

    The brightest value says what white is: up to 2 it is 1 (floats alone, where brighter than white is clipped), up to
    255 it is 255, up to 65535 it is 65535, above that the brightest value itself. Of floats that are mostly up to 1 and
    no whole numbers it is 1, too: the others are highlights. What is below 0 is black. Raises Unfit for numbers that
    are not finite.
    """
    if not picture.mode.startswith(("I", "F")):
        return picture
    import numpy as np
    from PIL import Image

    values = np.asarray(picture, dtype=np.float64)
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if not (np.isfinite(low) and np.isfinite(high)):
        raise Unfit("it has numbers that are not finite")
    floats = picture.mode == "F"
    white = 1.0 if floats and _has_highlights(values) else white_of(high, floats=floats)
    if low < 0:
        note(f"has values below 0 (to {low:g}): they are black")
    if white == 1.0 and high > 2.0:
        note(f"has highlights up to {high:g}, brighter than white (1): they are white")
    if white not in (1.0, 255.0, 65535.0):
        note(f"has values up to {high:g}, which is taken for white")
    elif white == 255.0 and picture.mode.startswith("I;16"):
        note(f"has 16 bits but no value above {high:g}: 255 is taken for white")
    return Image.fromarray((values.clip(0, white) * (255 / white)).round().astype(np.uint8))


def _has_highlights(values: Levels) -> bool:
    """Whether most of a float picture is at most 1, as light is measured, and not whole numbers, as levels are."""
    return bool((values <= 1).mean() > MOSTLY and (values != values.round()).any())


def white_of(brightest: float, *, floats: bool) -> float:
    """The value that is white in a picture whose brightest value this is."""
    steps = (2.0, 255.0, 65535.0) if floats else (255.0, 65535.0)
    meant = next((step for step in steps if brightest <= step), brightest)
    return 1.0 if meant == 2.0 else meant


def has_alpha(picture: Image) -> bool:
    """Whether some of it can be seen through."""
    if not picture.has_transparency_data:
        return False
    low, _ = _with_alpha(picture).getchannel("A").getextrema()
    return isinstance(low, int | float) and low < 255


def in_mode(picture: Image, mode: str, note: Note) -> Image:
    """A picture in RGB, transparent parts laid on the background; or in RGBA."""
    if mode == "RGBA" or not has_alpha(picture):
        return _with_alpha(picture) if mode == "RGBA" else picture.convert(mode)
    note("is transparent in places: laid on white")
    return _laid_on(picture, BACKGROUND).convert(mode)


def as_mask(picture: Image) -> Image:
    """A mask in L, white where it is painted: its grey, laid on black; of one colour, its alpha, whatever colour that
    is (paint programs keep the strokes of a mask as a layer of one colour)."""
    if not has_alpha(picture):
        return picture.convert("L")
    whole = _with_alpha(picture)
    return whole.getchannel("A") if _of_one_colour(whole) else _laid_on(whole, (0, 0, 0)).convert("L")


def _with_alpha(picture: Image) -> Image:
    """A picture in RGBA. A palette's single transparent colour, a PNG's, and premultiplied alpha become alpha."""
    return picture if picture.mode == "RGBA" else picture.convert("RGBA")


def _laid_on(picture: Image, colour: tuple[int, int, int]) -> Image:
    from PIL import Image

    return Image.alpha_composite(Image.new("RGBA", picture.size, (*colour, 255)), _with_alpha(picture))


def _of_one_colour(picture: Image) -> bool:
    """Whether all that can be seen of an RGBA picture has one colour, of those parts that can be seen well if any."""
    import numpy as np

    values = np.asarray(picture)
    alpha = values[..., 3]
    seen = values[alpha > (VISIBLE if alpha.max(initial=0) > VISIBLE else 0)][:, :3].astype(int)
    return bool(len(seen)) and bool((seen.max(0) - seen.min(0)).max() <= NEARLY)
