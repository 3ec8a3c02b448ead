"""A request's call arguments with its pictures, videos and sounds read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..core.flag import MEDIA_KINDS, Flag
from ..core.request import Request

Read = Callable[[Request], Mapping[str, Any]]


def reader(flags: Mapping[str, Flag], fit: bool, tell: Callable[[str], None]) -> Read:
    """Reads a request's media; those of the request before are not read again.

    `fit`: crop pictures to what is made. `tell` hears of pictures that will be stretched.
    """
    last: tuple[Mapping[str, Any] | None, dict[str, Any]] = (None, {})
    media = {name for name, flag in flags.items() if flag.kind in MEDIA_KINDS}

    def read(request: Request) -> Mapping[str, Any]:
        nonlocal last
        if not media & request.arguments.keys():
            return request.arguments
        if request.arguments is not last[0]:
            from ..engine.running.run import read_media

            last = request.arguments, read_media(flags, request.arguments, fit=fit)
            _tell_of_stretching(flags, last[1], tell)
        return last[1]

    return read


def once(path: str) -> bool:
    """Whether what is at a path, or URL, can be read only once, as a pipe: nobody may look into it before its turn."""
    return os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))


def piped(request: Request, flags: Mapping[str, Flag]) -> bool:
    """Whether any of a request's media can be read only once."""
    media = [name for name, flag in flags.items() if flag.kind in MEDIA_KINDS and name in request.arguments]
    given = [request.arguments[name] for name in media]
    return any(once(path) for value in given for path in (value if isinstance(value, list) else [value]))


def frames_of(arguments: Mapping[str, Any]) -> Iterator[Any]:
    """The pictures, and frames of videos, among call arguments with media read."""
    for value in arguments.values():
        yield from (one for one in (value if isinstance(value, list) else [value]) if hasattr(one, "getbbox"))


def _tell_of_stretching(flags: Mapping[str, Flag], arguments: Mapping[str, Any], tell: Callable[[str], None]) -> None:
    """Say when a starting picture has other proportions than the result: image-to-image pipelines stretch it to those
    (VaeImageProcessor.preprocess, resize_mode "default")."""
    width, height = (
        arguments.get(side) or (flags[side].default if side in flags else None) for side in ("width", "height")
    )
    picture = next(frames_of({"image": arguments.get("image")}), None)
    if not (picture and width and height and "strength" in flags):
        return
    if abs(picture.width * height - picture.height * width) > max(width, height) * max(picture.size) / 100:
        tell(f"--image is {picture.width} x {picture.height}: it is stretched to {width} x {height}; --fit crops it")
