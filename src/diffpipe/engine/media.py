"""Reading pictures and masks, writing pictures."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from ..errors import UsageError

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    "jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    "webp": ("WEBP", {"quality": 95, "method": 4}),
}


def read_image(path: Path, *, mask: bool = False, option: str = "") -> Any:
    """A picture as PIL RGB (masks: L, white is what changes), upright as its EXIF orientation says.

    Raises UsageError if the file is no picture Pillow can read.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            opened.load()
            upright = ImageOps.exif_transpose(opened) or opened
            return upright.convert("L" if mask else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "it is no picture, or it is damaged"
        raise UsageError(
            f"{option or 'the picture'}: cannot read {path.name}: {reason}", "give a PNG, JPEG or WebP file"
        ) from error


def write_image(image: Any, path: Path) -> None:
    """Write a PIL image by the path's ending; the file appears whole or not at all. Makes missing folders.

    Raises OSError if it cannot be written.
    """
    name, options = FORMATS[path.suffix[1:].lower()]
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            (image.convert("RGB") if name == "JPEG" else image).save(stream, name, **options)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
