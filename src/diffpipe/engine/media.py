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
            upright = eight_bit(ImageOps.exif_transpose(opened) or opened)
            picture = upright.convert("L" if mask else "RGB")
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise UsageError(
            f"{option or 'the picture'}: {path.name} has more than {most} million pixels", "make it smaller first"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no picture, or it is damaged"
        raise UsageError(
            f"{option or 'the picture'}: cannot read {path.name}: {reason}", "give a PNG, JPEG or WebP file"
        ) from error
    if mask and picture.getbbox() is None:
        raise UsageError(f"{option or 'the mask'} is all black: nothing would be painted", "white is what is painted")
    return picture


def eight_bit(image: Any) -> Any:
    """A picture of 16 or 32 bits a channel scaled to 8 (Pillow would clip it); any other as it is."""
    if not image.mode.startswith(("I", "F")):
        return image
    import numpy as np
    from PIL import Image

    values = np.asarray(image, dtype=np.float64)
    high = 1.0 if image.mode == "F" and values.max(initial=0) <= 1 else 65535.0
    return Image.fromarray((values.clip(0, high) * (255 / high)).round().astype(np.uint8))


def write_image(image: Any, path: Path, *, overwrite: bool = True) -> Path:
    """Write a PIL image by the path's ending; the file appears whole or not at all. Makes missing folders.

    Returns where it lies: without `overwrite`, beside a file that another process wrote there meanwhile. Raises OSError
    if it cannot be written.
    """
    name, options = FORMATS[path.suffix[1:].lower()]
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            (image.convert("RGB") if name == "JPEG" else image).save(stream, name, **options)
        os.chmod(temporary, 0o666 & ~_umask())
        return _publish(Path(temporary), path, overwrite)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _publish(temporary: Path, path: Path, overwrite: bool) -> Path:
    """Give a finished file its name. A hard link fails where the name is taken, which a rename would not."""
    free, number = path, 1
    while not overwrite:
        try:
            os.link(temporary, free)
        except FileExistsError:
            number += 1
            free = path.with_name(f"{path.stem}-{number}{path.suffix}")
        except OSError:  # a file system without hard links
            break
        else:
            temporary.unlink()
            return free
    os.replace(temporary, free)
    return free


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
