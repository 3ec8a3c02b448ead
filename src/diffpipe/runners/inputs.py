"""A request's call arguments with its pictures, videos and sounds read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeAlias

from ..core.flag import MEDIA_KINDS, Arguments, Flag
from ..core.request import Request

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger("diffpipe.inputs")

Read = Callable[[Request], Arguments]
Media: TypeAlias = Mapping[str, "str | list[str]"]  # call arguments that name files: a path, or several


def reader(flags: Mapping[str, Flag], fit: bool, warn: Callable[[str], None]) -> Read:
    """Reads a request's media; those of the request before are not read again.

    `fit`: crop pictures to what is made. `warn` gets a line for each file that is not taken as it is, and each picture
    that will be stretched; they are warnings of every item that the file is for.
    """
    last: tuple[Arguments | None, Arguments] = (None, {})
    notes: list[str] = []

    def read(request: Request) -> Arguments:
        nonlocal last
        if not media_of(request.arguments, flags):
            return request.arguments
        if request.arguments is not last[0]:
            from ..engine.running.media_arguments import read_media

            notes.clear()
            last = request.arguments, read_media(flags, request.arguments, fit=fit, note=notes.append)
            _warn_of_stretching(flags, last[1], notes.append)
        for text in notes:
            warn(text)
            log.warning("%s", text)
        return last[1]

    return read


def media_of(arguments: Arguments, flags: Mapping[str, Flag]) -> Media:
    """The call arguments that name files."""
    return {name: value for name, value in arguments.items() if name in flags and flags[name].kind in MEDIA_KINDS}


def paths(media: Media) -> Iterator[str]:
    for value in media.values():
        yield from value if isinstance(value, list) else [value]


def frames_of(arguments: Arguments) -> Iterator[Image]:
    """The pictures, and frames of videos, among call arguments with media read."""
    for value in arguments.values():
        yield from (one for one in (value if isinstance(value, list) else [value]) if hasattr(one, "getbbox"))


def _warn_of_stretching(flags: Mapping[str, Flag], arguments: Arguments, warn: Callable[[str], None]) -> None:
    """Say when a starting picture has other proportions than the result: image-to-image pipelines stretch it to those
    (VaeImageProcessor.preprocess, resize_mode "default")."""
    width, height = (
        arguments.get(side) or (flags[side].default if side in flags else None) for side in ("width", "height")
    )
    picture = next(frames_of({"image": arguments.get("image")}), None)
    if not (picture and width and height and "strength" in flags):
        return
    if abs(picture.width * height - picture.height * width) > max(width, height) * max(picture.size) / 100:
        warn(f"--image is {picture.width} x {picture.height}: it is stretched to {width} x {height}; --fit crops it")
