"""What is said of results that are files, and yet nothing that anybody asked for: flagged, of one colour, silent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from .. import media
from .results import PictureResult, Result, SoundResult, VideoResult

if TYPE_CHECKING:
    from PIL.Image import Image

Colour: TypeAlias = "tuple[int, ...]"

SILENCE = 0.5 / 32768  # of full scale: 16 bits hold no smaller sample
FLAGGED = "another seed may do, or a build with --no-safety-checker"
UNUSUAL = "the model, its dtype or its settings may be at fault"


def remarks(results: Sequence[Result]) -> Iterator[str]:
    """What should be said of a request's results, in order; nothing of most."""
    main = [result for result in results if not result.role]
    for number, result in enumerate(main, 1):
        which = f"{number} of {len(main)}: " if len(main) > 1 else ""
        yield from (which + text for text in _of(result))


def _of(result: Result) -> Iterator[str]:
    if isinstance(result, SoundResult):
        yield from _of_sound(result.sound)
        return
    pictures, what = _pictures(result)
    colour = one_colour(pictures)
    if result.flagged:
        black = " and made it black" if colour and not any(colour[:3]) else ""
        yield f"the safety checker took the {what} for {result.flagged}{black}: {FLAGGED}"
    elif colour:
        yield f"the {what} is of one single colour, {_shown(colour)}: {UNUSUAL}"
    if isinstance(result, VideoResult) and result.sound:
        yield from _of_sound(result.sound)


def _pictures(result: PictureResult | VideoResult) -> tuple[Sequence[Image], str]:
    return (
        ([result.drawn or result.picture], "picture") if isinstance(result, PictureResult) else (result.frames, "video")
    )


def one_colour(pictures: Sequence[Image]) -> Colour | None:
    """The colour that all pixels of all pictures have, levels of each channel; None where there are two."""
    first: Colour | None = None
    for picture in pictures:
        found = _one_colour(picture)
        if found is None or first not in (None, found):
            return None
        first = found
    return first


def _one_colour(picture: Image) -> Colour | None:
    width, height = picture.size
    few = {picture.getpixel((x, y)) for x in (0, width // 2, width - 1) for y in (0, height // 3, height - 1)}
    if len(few) > 1:  # nearly always: the other way reads every pixel
        return None
    bands = [band.getextrema() for band in picture.split()]
    lows = [low for low, high in bands if low == high and not isinstance(low, tuple)]
    return tuple(int(low) for low in lows) if len(lows) == len(bands) else None


def _shown(colour: Colour) -> str:
    """ "#8040ff", of grey "#808080"."""
    return "#" + "".join(f"{level:02x}" for level in (colour * 3 if len(colour) == 1 else colour))


def _of_sound(sound: media.Sound) -> Iterator[str]:
    if sound.samples.size and abs(sound.samples).max() < SILENCE:
        yield f"the sound is silent: {UNUSUAL}"
