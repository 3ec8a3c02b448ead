"""Opening pictures, still and animated. What cannot be read is a UsageError that names the option."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from ...core.errors import DiffpipeError, NotFoundError, UsageError
from ...storage.disk import of_the_system
from ...storage.opening import open_regular
from .formats import BEGINNING, PICTURES, Format, format_of, registered, taught
from .pixels import Note, Unfit, plain

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

# Files of one picture that say how many frames they have, of which no second is another time: telephones' depth and
# gain maps, layers.
NOT_FRAMES = frozenset({"MPO", "PSD", "ICO"})
HELD = ("WEBP", "AVIF")  # that Pillow alone plays
UNCOUNTED = frozenset({"GIF", "TIFF"})  # that do not say how many frames they have: each would be read for it
LARGEST = 1 << 31  # bytes of a picture's file, which some decoders read whole: more than MOST_PIXELS take


def silent() -> AbstractContextManager[object]:
    """Without what Pillow warns of that it mends itself, as tags that are damaged."""
    return warnings.catch_warnings(action="ignore")


def small(stream: IO[bytes]) -> IO[bytes]:
    """A file that may be a picture. Raises Unfit for one that is larger than any."""
    if os.fstat(stream.fileno()).st_size > LARGEST:
        raise Unfit("it is larger than a picture can be")
    return stream


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
        animated = opened.format not in NOT_FRAMES and getattr(opened, "is_animated", False)
        opened.load()
        if animated:
            number = "several" if opened.format in UNCOUNTED else getattr(opened, "n_frames", 1)
            note(f"has {number} {'pages' if opened.format == 'TIFF' else 'frames'}: the first is taken")
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
        with silent(), open_regular(path) as stream, Image.open(small(stream), formats=registered(HELD)) as opened:
            return getattr(opened, "n_frames", 1) > 1
    except Exception:  # which decoders raise is theirs to say; who reads it tells what is wrong
        return False


@contextmanager
def _opened(path: Path, option: str) -> Iterator[ImageFile]:
    """An open picture; what Pillow cannot open, or decode while it is open, becomes a UsageError."""
    from PIL import Image

    what = option or "the picture"
    known: Format | None = None
    try:
        with silent(), open_regular(path) as stream:
            known = format_of(stream.read(BEGINNING))
            stream.seek(0)
            if known and known.modules:
                taught(known)
            with Image.open(small(stream), formats=registered(PICTURES)) as opened:
                yield opened
    except DiffpipeError:
        raise
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        problem = f"{what}: {path.name} has more than {most} million pixels"
        raise UsageError(problem, "make it smaller first") from error
    except FileNotFoundError as error:
        raise missing(path, option) from error
    except Exception as error:  # what decoders raise for damaged files is of any kind
        raise of_the_system(error) or _unreadable(what, path, known, error) from error


def _unreadable(what: str, path: Path, known: Format | None, error: Exception) -> DiffpipeError:
    if known:
        return UsageError(f"{what}: cannot read {path.name}: it is {known.name}", known.hint)
    said = str(error) if isinstance(error, Unfit) else getattr(error, "strerror", None)
    reason = said or "it is no picture, or it is damaged"
    return UsageError(f"{what}: cannot read {path.name}: {reason}", "give a PNG, JPEG or WebP file")
