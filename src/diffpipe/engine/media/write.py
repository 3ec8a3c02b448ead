"""Writing pictures, video and sound: whole or not at all, the same bytes for the same content, settings inside."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from ...core.errors import DiffpipeError, UsageError
from ...storage.disk import folder_made, give_name, share, temporary_file, temporary_folder
from .encode import AUDIO, FILMS, encode_film, encode_gif, encode_sound, exact_rate
from .read import Sound
from .text import NONE, for_picture

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from PIL.Image import Image

    Frame: TypeAlias = Image | ArrayLike
    Array = TypeVar("Array", bound=NDArray[Any])

log = logging.getLogger("diffpipe.engine")


IMAGE: dict[str, tuple[str, dict[str, int]]] = {
    "png": ("PNG", {}),
    "jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    "jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    "webp": ("WEBP", {"quality": 95, "method": 4}),
}
VIDEO = (*FILMS, "gif", "frames")
SILENT = frozenset({"gif", "frames"})  # these hold no sound


def write_image(image: Frame, path: Path, *, overwrite: bool = True, text: Mapping[str, str] = NONE) -> Path:
    """Write a picture (see `to_image`) by the path's ending; it appears whole or not at all. Makes missing folders.

    Returns where it lies: without `overwrite`, beside a file that another process wrote there meanwhile. Raises OSError
    if it cannot be written, DiffpipeError for numbers that are not finite.
    """
    name, options = IMAGE[_ending(path, IMAGE)]
    picture = to_image(image)
    if name == "JPEG":
        picture = picture.convert("RGB")
    encoded = BytesIO()  # Pillow, given a file, takes a disk that fills up in the last block of a JPEG for success
    picture.save(encoded, name, **options, **for_picture(name, text))
    return _whole(path, overwrite, lambda file: file.write_bytes(encoded.getvalue()))


def write_video(
    frames: Iterable[Frame],
    path: Path,
    *,
    fps: float,
    sound: Sound | None = None,
    overwrite: bool = True,
    text: Mapping[str, str] = NONE,
) -> Path:
    """Write frames (PIL pictures, or an array (frames, height, width, channels); see `to_image`) as the ending says.

    mp4 is H.264 with AAC, webm is VP9 with Opus; gif and a folder of frames (00001.png …; a path without an ending, or
    ending in .frames) are silent: `sound` is left out of them with a warning. An mp4 of odd size gets one more row or
    column, a copy of the last. Returns where it lies, as `write_image` does. A folder is replaced only where it holds
    numbered frames alone. Raises OSError if it cannot be written, DiffpipeError for no frames, frames of different
    sizes or numbers that are not finite, UsageError for another ending.
    """
    kind = _ending(path, VIDEO, "frames")
    rate = exact_rate(fps)
    pictures = _of_one_size(frames)
    if sound is not None and kind in SILENT:
        what = "a GIF" if kind == "gif" else "a folder of frames"
        log.warning("%s holds no sound; it was left out", what)
    if kind == "frames":
        return _frames(pictures, path, overwrite, text)
    if kind == "gif":
        return _whole(path, overwrite, lambda file: encode_gif(pictures, file, rate, text))
    heard = None if sound is None else _checked(sound)
    return _whole(path, overwrite, lambda file: encode_film(pictures, file, kind, rate, heard, text))


def _of_one_size(frames: Iterable[Frame]) -> list[Image]:
    """The frames as pictures, one at least. Raises DiffpipeError for none, and for some of different sizes."""
    pictures = [to_image(frame) for frame in frames]
    if not pictures:
        raise DiffpipeError("the pipeline made no frames", "ask for one frame or more")
    if len(sizes := {picture.size for picture in pictures}) > 1:
        raise DiffpipeError(f"the pipeline made frames of {len(sizes)} sizes", "report this as a bug")
    return pictures


def write_audio(sound: Sound, path: Path, *, overwrite: bool = True, text: Mapping[str, str] = NONE) -> Path:
    """Write sound in 16 bits, clipped to full scale: WAV or FLAC by the path's ending. Returns where it lies.

    Raises OSError if it cannot be written, DiffpipeError for no samples or numbers that are not finite.
    """
    kind = _ending(path, AUDIO)
    heard = _checked(sound)
    return _whole(path, overwrite, lambda file: encode_sound(heard, file, kind, text))


def publish(made: Path, path: Path, *, overwrite: bool = False) -> Path:
    """Give a finished file, or folder of frames, its name, beside what is there. Returns where it lies."""
    return _publish_folder(made, path, overwrite) if made.is_dir() else _publish(made, path, overwrite)


def finite(values: Array) -> Array:
    """`values`, an array, if all its numbers are finite. Raises DiffpipeError otherwise."""
    import numpy as np

    if not np.isfinite(values).all():
        raise DiffpipeError(
            "the pipeline made nothing but noise: not finite numbers",
            "half precision overflowed somewhere: build it again with --dtype float32",
        )
    return values


def to_image(frame: Frame) -> Image:
    """A PIL picture of an array (height, width[, 1, 3 or 4 channels]) of uint8, or of floats from 0 to 1.

    A PIL picture is copied without what the file it came from said about it: that is not true of a new picture. Raises
    DiffpipeError for numbers that are not finite.
    """
    import numpy as np
    from PIL import Image

    if isinstance(frame, Image.Image):
        if frame.mode == "F":
            finite(np.asarray(frame))
        picture = frame.copy()
        picture.info = {}
        return picture
    values = np.asarray(frame)
    if values.dtype.kind == "f":
        values = (finite(values).clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(
        np.ascontiguousarray(values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values)
    )


def _ending(path: Path, known: Iterable[str], without: str = "") -> str:
    ending = path.suffix[1:].lower() or without
    if ending not in known:
        raise UsageError(f"{path.name}: cannot write .{ending}", f"end it in one of: {', '.join(known)}")
    return ending


def _checked(sound: Sound) -> Sound:
    """The sound with float32 samples in rows of channels. Raises DiffpipeError where it cannot be written."""
    import numpy as np

    samples = np.atleast_2d(np.asarray(sound.samples, dtype=np.float32))
    channels, length = samples.shape
    if not length:
        raise DiffpipeError("the pipeline made no sound", "ask for a longer one")
    if channels > 8:  # the most that FLAC and AAC hold
        raise DiffpipeError(f"the pipeline made a sound of {channels} channels", "8 are the most a file holds")
    return Sound(np.ascontiguousarray(finite(samples)), sound.rate)


def _frames(pictures: Sequence[Image], path: Path, overwrite: bool, text: Mapping[str, str]) -> Path:
    """Numbered PNG files in a folder that appears whole or not at all."""
    with folder_made(path), temporary_folder(path) as temporary:
        for number, picture in enumerate(pictures, start=1):
            about = for_picture("PNG", text) if number == 1 else {}
            picture.save(temporary / f"{number:05}.png", "PNG", **about)
        share(temporary)
        return _publish_folder(temporary, path, overwrite)


def _publish_folder(temporary: Path, path: Path, overwrite: bool) -> Path:
    """Give a finished folder its name. A rename takes an empty folder's place, and no other's."""
    if overwrite and _only_frames(path):
        with temporary_folder(path) as aside:
            os.replace(path, aside)
            os.rename(temporary, path)
        return path
    free, number = path, 1
    while True:
        try:
            os.rename(temporary, free)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            number += 1
            free = _beside(path, number)
        else:
            return free


def _only_frames(folder: Path) -> bool:
    return folder.is_dir() and all(re.fullmatch(r"\d{5,}\.png", file.name) for file in folder.iterdir())


def _whole(path: Path, overwrite: bool, fill: Callable[[Path], object]) -> Path:
    """Let `fill` write a temporary file in the same folder, then give it its name."""
    with folder_made(path), temporary_file(path) as temporary:
        fill(temporary)
        share(temporary)
        return _publish(temporary, path, overwrite)


def _publish(temporary: Path, path: Path, overwrite: bool) -> Path:
    """Give a finished file its name, or where that is taken the next one that is free."""
    free, number = path, 1
    while True:
        try:
            give_name(temporary, free, overwrite=overwrite)
            return free
        except FileExistsError:
            number += 1
            free = _beside(path, number)


def _beside(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")
