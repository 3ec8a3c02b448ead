"""Call arguments with pictures, videos and sounds in the place of their paths."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ...core.errors import UsageError
from ...core.flag import MEDIA_KINDS, Arguments, Flag, nearest
from ...storage import fetching
from .. import media

if TYPE_CHECKING:
    from PIL.Image import Image

    Medium: TypeAlias = Image | list[Image] | media.Sound  # what one file holds

log = logging.getLogger("diffpipe.engine")

Flags = Mapping[str, Flag]

SEEN = frozenset({"image", "mask", "video"})  # kinds of what is pictures


def _warn(text: str) -> None:
    log.warning("%s", text)


def read_media(flags: Flags, arguments: Arguments, *, fit: bool = False, note: media.Note = _warn) -> Arguments:
    """Arguments with paths of media replaced by what is in the files: pictures, lists of frames, sounds.

    `fit`: crop pictures to the width and height that are asked for, or to the nearest the pipeline can make. `note`
    gets what should be known of how a file was taken. Raises UsageError for what cannot be read, or does not go
    together.
    """
    given = [name for name, flag in flags.items() if flag.kind in MEDIA_KINDS and name in arguments]
    read = {**arguments, **{name: _read_all(flags[name], arguments[name], note) for name in given}}
    whole = _with_masks_repeated(flags, read)
    fitted = _fitted(flags, whole) if fit else whole
    _check_masks(flags, fitted)
    return fitted


def _read_all(flag: Flag, value: str | list[str], note: media.Note) -> Medium | list[Medium]:
    option = _option(flag.name)
    named: media.Note = lambda text: note(f"{option}: {text}")  # noqa: E731
    many = [_read(flag, fetching.local(path), named) for path in (value if isinstance(value, list) else [value])]
    return many if isinstance(value, list) else many[0]


def _read(flag: Flag, path: Path, note: media.Note) -> Medium:
    option = _option(flag.name)
    if flag.kind == "audio":
        return media.read_audio(path, option=option)
    if flag.kind == "video":
        frames = media.read_video(path, mask=_is_mask(flag), option=option, note=note).frames
        if flag.most and len(frames) > flag.most:
            raise UsageError(f"{option} has {len(frames)} frames", f"this pipeline takes {flag.most} at most: cut it")
        return frames
    return media.read_image(path, mask=flag.kind == "mask", mode=flag.mode or "RGB", option=option, note=note)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _is_mask(flag: Flag) -> bool:
    """Whether it takes the mask of a picture, or of a video's frames."""
    return "mask" in flag.name and flag.kind in ("mask", "video")


# --- Cropping --------------------------------------------------------------------------------------------------------


def _fitted(flags: Flags, arguments: Arguments) -> Arguments:
    """Every picture cropped about its middle to the size that is made: what is asked for, else near the first's."""
    from PIL import Image, ImageOps

    first = next(_pictures(flags, arguments), None)
    if first is None:
        return arguments
    size = _side(flags, arguments, "width", first.width), _side(flags, arguments, "height", first.height)

    def cropped(value: Image.Image | list[Image.Image]) -> Image.Image | list[Image.Image]:
        pictures = [
            ImageOps.fit(one, size, Image.Resampling.LANCZOS) for one in (value if isinstance(value, list) else [value])
        ]
        return pictures if isinstance(value, list) else pictures[0]

    return {name: cropped(value) if _is_seen(flags, name) else value for name, value in arguments.items()}


def _side(flags: Flags, arguments: Arguments, side: str, pixels: int) -> int:
    """The pixels of a side: those asked for, else the nearest to `pixels` that the pipeline can make."""
    fitting = nearest(flags[side], pixels)[0] if side in flags else pixels // 8 * 8
    return int(arguments.get(side) or fitting)


def _is_seen(flags: Flags, name: str) -> bool:
    return name in flags and flags[name].kind in SEEN


def _pictures(flags: Flags, arguments: Arguments) -> Iterator[Image]:
    """Every picture and frame among the arguments."""
    for name, value in arguments.items():
        if _is_seen(flags, name):
            yield from value if isinstance(value, list) else [value]


# --- Masks -----------------------------------------------------------------------------------------------------------


def _with_masks_repeated(flags: Flags, arguments: Arguments) -> Arguments:
    """A single picture as the mask of every frame of the video."""
    frames = len(arguments.get("video") or ())
    masks = [name for name in _masks(flags, arguments) if flags[name].kind == "video"]
    single = {name: arguments[name] for name in masks if frames and len(arguments[name]) == 1}
    return {**arguments, **{name: value * frames for name, value in single.items()}}


def _masks(flags: Flags, arguments: Arguments) -> list[str]:
    return [name for name in arguments if name in flags and _is_mask(flags[name])]


def _check_masks(flags: Flags, arguments: Arguments) -> None:
    """A mask must be as large as its picture, and as long as its video: pipelines stretch or cut it silently."""
    for name in _masks(flags, arguments):
        of = "video" if isinstance(arguments[name], list) else "image"
        if arguments.get(of):
            _check_mask(_option(name), arguments[name], of, arguments[of])
        elif of in flags and flags[name].kind == "video":
            raise UsageError(f"{_option(name)} needs a --{of}", f"give the {of} that it is the mask of")


def _check_mask(option: str, mask: Image | list[Image], of: str, whole: Image | list[Image]) -> None:
    if isinstance(mask, list) and isinstance(whole, list) and len(mask) != len(whole):
        raise UsageError(f"{option} has {len(mask)} frames but --{of} has {len(whole)}", "make them equally long")
    (width, height), (wide, high) = ((one[0] if isinstance(one, list) else one).size for one in (mask, whole))
    if (width, height) != (wide, high):
        raise UsageError(
            f"{option} is {width} x {height} but --{of} is {wide} x {high}",
            f"make the mask the size of the {'video' if of == 'video' else 'picture'}, or pass --fit",
        )
