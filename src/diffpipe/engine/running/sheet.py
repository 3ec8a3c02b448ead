"""Contact sheets: thumbnails of what a run made, with captions, in a grid; videos by a still, sounds by their waveform.

A page holds MOST pictures; larger runs go on in sheet-2.png, sheet-3.png, … Only one page is in memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...core.request import Artifact
from ...storage import fetching
from .. import media
from ..media.read import PICTURES, natural, opened

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

MOST = 100  # pictures of a page
LARGEST, SMALLEST = 256, 160  # pixels of a cell's side: the first that fits the largest picture of the page
MARGIN, SIZE, LEADING = 12, 14, 18  # pixels: around cells, of the font, from line to line
GAP = 4  # pixels between a picture and its caption
LINES = 2  # of a caption, for the prompt and for the settings each
BACK, INK, SOFT = (255, 255, 255), (30, 30, 30), (110, 110, 110)
SILENCE, WAVE = (238, 238, 236), (40, 90, 160)  # of a waveform: its ground and itself


Colour = tuple[int, int, int]  # red, green, blue


class Cell(NamedTuple):
    """A picture of a sheet and the text under it."""

    picture: Image
    caption: str


class Sheet:
    """A contact sheet at a path, page by page as pictures come. `pages` is how many were written. Without `overwrite`,
    a page goes beside the file that has its name."""

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self.path, self.overwrite, self.pages = path, overwrite, 0
        self._cells: list[Cell] = []

    def add(self, artifacts: Sequence[Artifact], caption: str) -> None:
        """Add an item's files. Raises OSError if a page that is full cannot be written."""
        for artifact in artifacts:
            self._cells.append(Cell(thumbnail(fetching.local(artifact.path), artifact.kind, LARGEST), caption))
            if len(self._cells) == MOST:
                self.write()

    def write(self) -> None:
        """Write what is on the page that is not full, if anything is."""
        if not self._cells:
            return
        self.pages += 1
        path = self.path if self.pages == 1 else self.path.with_name(f"{self.path.stem}-{self.pages}{self.path.suffix}")
        media.write_image(composed(self._cells), path, overwrite=self.overwrite)
        self._cells = []


def write_thumbnail(path: Path, kind: str, target: Path) -> None:
    """A thumbnail of twice a cell's size, for a gallery."""
    media.write_image(thumbnail(path, kind, 2 * LARGEST), target, overwrite=True)


def thumbnail(path: Path, kind: str, side: int) -> Image:
    """A PIL picture of at most `side` pixels a side of a finished file. Raises UsageError if it cannot be read."""
    if kind == "audio":
        return waveform(media.read_audio(path), side)
    picture = still(path) if kind == "video" else media.read_image(path)
    picture.thumbnail((side, side))
    return picture


def still(path: Path) -> Image:
    """The middle frame of a video file or a folder of frames. One frame is in memory at a time."""
    from PIL import Image

    if path.is_dir():
        frames = sorted((file for file in path.iterdir() if file.suffix in PICTURES), key=natural)
        return media.read_image(frames[len(frames) // 2])
    if path.suffix in PICTURES:
        return media.read_image(path)
    with opened(path, "", "video") as container:
        count = sum(1 for packet in container.demux(video=0) if packet.size)
        container.seek(0)
        for number, frame in enumerate(container.decode(video=0)):
            middle = frame  # the last one where fewer are decoded than there are packets
            if number == count // 2:
                break
        return Image.fromarray(middle.to_ndarray(format="rgb24"))


def waveform(sound: media.Sound, side: int) -> Image:
    """A sound's loudest and quietest samples, column by column, all channels together; full scale is the height."""
    import numpy as np
    from PIL import Image, ImageDraw

    height = side // 2
    picture = Image.new("RGB", (side, height), SILENCE)
    canvas = ImageDraw.Draw(picture)
    for column, part in enumerate(np.array_split(sound.samples, side, axis=1)):
        low, high = (float(part.min()), float(part.max())) if part.size else (0.0, 0.0)
        top, bottom = ((1 - min(max(level, -1), 1)) / 2 * (height - 1) for level in (high, low))
        canvas.line((column, top, column, bottom), fill=WAVE)
    return picture


def composed(cells: Sequence[Cell]) -> Image:
    """Pictures with captions under them, in rows, on a page that is about as wide as high."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(SIZE)
    side = min(LARGEST, max(SMALLEST, *(max(picture.size) for picture, _ in cells)))
    columns = math.ceil(math.sqrt(len(cells)))
    tall = max(picture.height for picture, _ in cells)
    width, height = side + MARGIN, tall + MARGIN + 2 * LINES * LEADING
    page = Image.new("RGB", (columns * width + MARGIN, math.ceil(len(cells) / columns) * height + MARGIN), BACK)
    canvas = ImageDraw.Draw(page)
    for place, (picture, caption) in enumerate(cells):
        left, top = MARGIN + place % columns * width, MARGIN + place // columns * height
        page.paste(picture, (left + (side - picture.width) // 2, top + tall - picture.height))
        for line, (text, colour) in enumerate(_lines(caption, font, side)):
            canvas.text((left, top + tall + GAP + line * LEADING), text, colour, font)
    return page


def _lines(caption: str, font: FreeTypeFont | ImageFont, width: int) -> list[tuple[str, Colour]]:
    """A caption's lines, the last of its text the settings, each cut to the width; the prompt has the other lines."""
    prompt, _, settings = caption.rpartition("\n")
    return [
        *((line, INK) for line in _wrapped(_drawable(prompt), font, width, LINES)),
        *((line, SOFT) for line in _wrapped(_drawable(settings), font, width, 1)),
    ]


def _drawable(text: str) -> str:
    """Text as one line of characters that fonts may have: no controls, no lone surrogates."""
    whole = text.encode("utf-8", "replace").decode()
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\ufeff]", " ", whole[:1000]).split())


def _wrapped(text: str, font: FreeTypeFont | ImageFont, width: int, most: int) -> list[str]:
    lines: list[str] = []
    while text and len(lines) < most:
        last = len(lines) == most - 1
        line = text
        if font.getlength(line) > width:
            end = _fitting(text, font, width, "…" if last else "")
            space = text.rfind(" ", 0, end + 1)
            line = text[: end if last or space < 1 else space]
        text = text[len(line) :].lstrip()
        lines.append(line.rstrip() + ("…" if last and text else ""))
    return lines


def _fitting(text: str, font: FreeTypeFont | ImageFont, width: int, ending: str) -> int:
    """How many characters of a text, one at least, fit the width with an ending."""
    low, high = 1, min(len(text), width)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle] + ending) <= width else (low, middle - 1)
    return low
