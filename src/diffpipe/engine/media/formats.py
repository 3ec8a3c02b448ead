"""Formats of pictures that Pillow cannot read by itself: known by their first bytes, read by a package, or named."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NamedTuple

BEGINNING = 64  # bytes that tell a format

# Pillow's names of the formats that it reads here, those that packages teach it among them. Left out on purpose: EPS,
# which runs ghostscript, WMF, QOI, which Pillow decodes in Python for minutes, and the formats of other trades, which
# nobody draws in and few have looked at.
PICTURES = frozenset(
    {
        "PNG", "JPEG", "WEBP", "AVIF", "HEIF", "JXL", "GIF", "BMP", "DIB", "TIFF", "PPM", "TGA", "ICO", "PSD",
        "JPEG2000",
    }
)  # fmt: skip


class Format(NamedTuple):
    """A format by its usual name. `modules`: those that teach Pillow to read it, with the function to call, if any.
    `hint`: what to do where that is not installed."""

    name: str
    hint: str
    modules: tuple[tuple[str, str], ...] = ()


PNG = "convert it to PNG"
HEIC = Format(
    "HEIC", "pip install pillow-heif, or convert it to PNG or JPEG", (("pillow_heif", "register_heif_opener"),)
)
AVIF = Format("AVIF", "pip install 'pillow>=11.3' or pillow-avif-plugin, or convert it to PNG", (("pillow_avif", ""),))
JPEG_XL = Format("JPEG XL", "pip install pillow-jxl-plugin, or convert it to PNG", (("pillow_jxl", ""),))
VIDEO = Format("a video", "give a picture: ffmpeg -i VIDEO -frames:v 1 picture.png takes the first of it")

# Brands of ISO media files (ISO 14496-12, ftyp): ISO 23008-12 annex B, AV1 Image File Format section 6.
AVIF_BRANDS = frozenset({b"avif", b"avis"})
HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})

STARTS: tuple[tuple[bytes, Format], ...] = (
    (b"\xff\x0a", JPEG_XL),  # ISO 18181-2: a bare codestream, and a container
    (b"\0\0\0\x0cJXL \r\n\x87\n", JPEG_XL),
    (b"%PDF-", Format("a PDF", PNG)),
    (b"%!PS", Format("PostScript", PNG)),
    (b"\x76\x2f\x31\x01", Format("OpenEXR", PNG)),
    (b"#?RADIANCE", Format("Radiance HDR", PNG)),
    (b"\x1a\x45\xdf\xa3", VIDEO),  # Matroska and WebM
    (b"qoif", Format("QOI", PNG)),
    (b"DDS ", Format("DDS", PNG)),
    (b"icns", Format("ICNS", PNG)),
    (b"\x01\xda", Format("SGI", PNG)),
    (b"\x0a\x05\x01", Format("PCX", PNG)),
    (b"gimp xcf", Format("a GIMP project", "export it as PNG")),
    (b"<svg", Format("SVG", "draw it as a PNG first")),
)


def format_of(beginning: bytes) -> Format | None:
    """The format of a file with these first bytes, where it is one that Pillow may not read."""
    if beginning[4:8] == b"ftyp":
        brands = {beginning[at : at + 4] for at in range(8, min(len(beginning), int.from_bytes(beginning[:4])), 4)}
        kinds: tuple[tuple[frozenset[bytes], Format], ...] = ((AVIF_BRANDS, AVIF), (HEIF_BRANDS, HEIC))
        return next((known for among, known in kinds if brands & among), VIDEO)
    text = beginning.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"<?xml") and b"<svg" in beginning:
        text = b"<svg"
    return next((known for start, known in STARTS if beginning.startswith(start) or text.startswith(start)), None)


def registered(names: Iterable[str]) -> list[str]:
    """Those of Pillow's formats that it knows here."""
    from PIL import Image

    Image.init()
    return sorted(set(names) & set(Image.OPEN))


def taught(known: Format) -> bool:
    """Whether one of the packages for a format is installed; Pillow reads it from then on."""
    for module, function in known.modules:
        with suppress(ImportError):
            package = importlib.import_module(module)
            teach: Callable[[], object] = getattr(package, function) if function else lambda: None
            teach()
            return True
    return False
