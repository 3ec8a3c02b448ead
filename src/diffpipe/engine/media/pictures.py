"""Opening pictures, still and animated. What cannot be read is a UsageError that names the option."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...core.errors import DiffpipeError, NotFoundError, UsageError
from .formats import Format, beginning_of, format_of, taught
from .pixels import Note, Unfit, plain

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

# Files of one picture that say how many frames they have, of which no second is another time: telephones' depth and
# gain maps, layers.
NOT_FRAMES = frozenset({"MPO", "PSD", "ICO", "ICNS"})
ANIMATED = frozenset({"WEBP", "AVIF", "PNG", "GIF"})


def missing(path: Path, option: str) -> NotFoundError:
    """That there is no such file, in the words of every option that takes one."""
    problem = f"there is no file {path.name}"
    return NotFoundError(f"{option}: {problem}" if option else problem, "check the path")


def read_picture(path: Path, option: str, note: Note) -> Image:
    """A picture in 8 bits a channel, upright as its EXIF orientation says; of an animated one, the first frame.

    Raises UsageError for what Pillow cannot read.
    """
    from PIL import ImageOps

    with _opened(path, option) as opened:
        frames = getattr(opened, "n_frames", 1)
        opened.load()
        if frames > 1 and opened.format not in NOT_FRAMES:
            note(f"has {frames} {'pages' if opened.format == 'TIFF' else 'frames'}: the first is taken")
        return plain(ImageOps.exif_transpose(opened) or opened, note)


class Timed(NamedTuple):
    """A frame, and for how many seconds it is shown (0 where the file does not say)."""

    picture: Image
    seconds: float


def frames_of(path: Path, option: str) -> Iterator[Timed]:
    """The frames of an animated picture, one at a time, each as it is seen. Raises UsageError as `read_picture`."""
    with _opened(path, option) as opened:
        for number in range(getattr(opened, "n_frames", 1)):
            opened.seek(number)
            opened.load()
            yield Timed(opened.convert("RGBA"), float(opened.info.get("duration") or 0) / 1000)


def is_animated(path: Path) -> bool:
    """Whether a file is a picture of several frames, in a format that only Pillow plays."""
    from PIL import Image

    try:
        with Image.open(path, formats=[name for name in ("WEBP", "AVIF") if name in _registered()]) as opened:
            return getattr(opened, "n_frames", 1) > 1
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


def _registered() -> set[str]:
    from PIL import Image

    Image.init()
    return set(Image.OPEN)


@contextmanager
def _opened(path: Path, option: str) -> Iterator[ImageFile]:
    """An open picture; what Pillow cannot open, or decode while it is open, becomes a UsageError."""
    from PIL import Image

    what = option or "the picture"
    known = format_of(beginning_of(path))
    try:
        if known and known.modules:
            taught(known)
        with Image.open(path) as opened:
            yield opened
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        problem = f"{what}: {path.name} has more than {most} million pixels"
        raise UsageError(problem, "make it smaller first") from error
    except FileNotFoundError as error:
        raise missing(path, option) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise _unreadable(what, path, known, error) from error


def _unreadable(what: str, path: Path, known: Format | None, error: Exception) -> DiffpipeError:
    if known:
        return UsageError(f"{what}: cannot read {path.name}: it is {known.name}", known.hint)
    said = str(error) if isinstance(error, Unfit) else getattr(error, "strerror", None)
    reason = said or "it is no picture, or it is damaged"
    return UsageError(f"{what}: cannot read {path.name}: {reason}", "give a PNG, JPEG or WebP file")
