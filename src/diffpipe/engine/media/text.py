"""Settings inside finished files: where each format keeps text, written and read back.

`parameters` is the plain text that other image tools read, kept where they look for it; `diffpipe` is a JSON document.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from ...core.errors import UsageError
from ...storage.disk import of_the_system
from ...storage.opening import open_regular
from .formats import PICTURES, registered
from .pictures import silent, small
from .pixels import Unfit
from .read import natural, opened

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.PngImagePlugin import PngInfo

log = logging.getLogger("diffpipe.engine")

KEYS = ("parameters", "diffpipe")
NONE: Mapping[str, str] = MappingProxyType({})

# Characters that XML 1.0 lacks (section 2.2, Char): NUL and other controls, lone surrogates. Most formats lack some.
UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

EXIF, USER_COMMENT = 0x8769, 0x9286  # Exif 3.0, tables 4 and 8
UNICODE = b"UNICODE\0"  # the comment's character code; big-endian UTF-16 follows, as piexif and the tools on it have it
SEGMENT = 65_533  # a JPEG segment's most bytes, its length not counted (ITU T.81, B.1.1.4)
XMP_HEADER = len(b"http://ns.adobe.com/xap/1.0/\0")
NAMESPACE = "urn:diffpipe:"
LARGEST_XMP = 1 << 24  # bytes of an XMP packet: what a WebP holds of a document of `results.document.LARGEST`
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:diffpipe="{namespace}">{fields}</rdf:Description></rdf:RDF></x:xmpmeta>'
)


def clean(text: Mapping[str, str]) -> dict[str, str]:
    """`text` without what files cannot hold: empty values, NUL and other control characters, lone surrogates.

    Raises ValueError for a key that is not one of KEYS.
    """
    if unknown := set(text) - set(KEYS):
        raise ValueError(f"no place for {sorted(unknown)}")
    return {key: kept for key in KEYS if (kept := UNWRITABLE.sub("", text.get(key, "")))}


def for_picture(name: str, text: Mapping[str, str]) -> dict[str, PngInfo | bytes]:
    """The arguments of Pillow's save that put `text` into a PNG, JPEG or WEBP.

    A JPEG holds 64 kB in each place: text that is longer is left out with a warning, for the picture matters more.
    """
    kept = clean(text)
    if name == "PNG":
        return {"pnginfo": _chunks(kept)} if kept else {}
    places = {"exif": _exif(kept.get("parameters", "")), "xmp": _xmp(kept.get("diffpipe", ""))}
    if name == "JPEG":
        for place, most in (("exif", SEGMENT), ("xmp", SEGMENT - XMP_HEADER)):
            if len(places[place]) > most:
                log.warning("the settings are too long for a JPEG and were left out of it; PNG and WebP hold them")
                places[place] = b""
    return {place: data for place, data in places.items() if data}


def for_container(kind: str, text: Mapping[str, str]) -> dict[str, str]:
    """The metadata of an FFmpeg container. WAV has a fixed set of fields, so there it is one JSON comment."""
    kept = clean(text)
    return {"comment": json.dumps(kept, ensure_ascii=False)} if kept and kind == "wav" else kept


def comment_gif(path: Path, text: Mapping[str, str]) -> None:
    """Put a comment extension (GIF89a, section 24), one JSON document in ASCII, before a GIF file's first frame."""
    kept = clean(text)
    if not kept:
        return
    gif, comment = path.read_bytes(), json.dumps(kept).encode()
    colours = 3 * 2 ** ((gif[10] & 7) + 1) if gif[10] & 0x80 else 0
    start = 13 + colours  # header, screen descriptor, global colour table
    blocks = b"".join(bytes([len(part := comment[i : i + 255])]) + part for i in range(0, len(comment), 255))
    path.write_bytes(gif[:start] + b"\x21\xfe" + blocks + b"\0" + gif[start:])


def read_text(path: Path) -> dict[str, str]:
    """The text that a finished file (or the first frame of a folder of frames) carries, by key; nothing if it has none.

    Raises UsageError if the file is no picture, video or sound.
    """
    from PIL import Image, UnidentifiedImageError

    if path.is_dir():
        frames = sorted(path.glob("*.png"), key=natural)
        return read_text(frames[0]) if frames else {}
    try:
        with silent(), open_regular(path) as stream, Image.open(small(stream), formats=registered(PICTURES)) as image:
            return _of_picture(image)
    except (UnidentifiedImageError, Unfit):
        return _of_container(path)
    except Exception as error:  # what decoders raise for damaged files is of any kind
        raise of_the_system(error) or UsageError(
            f"cannot read {path.name}: {getattr(error, 'strerror', None) or _fault(error)}",
            "give a picture, video or sound",
        ) from error


def _fault(error: Exception) -> str:
    from PIL import Image

    bomb = isinstance(error, Image.DecompressionBombError) or "too large" in str(error)  # of a PNG's packed texts
    return "what is in it is packed, and too large" if bomb else "it is damaged"


def _chunks(text: Mapping[str, str]) -> PngInfo:
    """PNG text chunks: tEXt where Latin-1 has the characters, iTXt otherwise."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for key, value in text.items():
        chunks.add_text(key, value)
    return chunks


def _exif(comment: str) -> bytes:
    from PIL import Image

    if not comment:
        return b""
    exif = Image.Exif()
    exif.endian = ">"
    exif.get_ifd(EXIF)[USER_COMMENT] = UNICODE + comment.encode("utf-16-be")
    return exif.tobytes()


def _xmp(document: str) -> bytes:
    if not document:
        return b""
    field = f"<diffpipe:document>{escape(document, {chr(13): '&#13;'})}</diffpipe:document>"
    return XMP.format(namespace=NAMESPACE, fields=field).encode()


def _of_picture(image: Image) -> dict[str, str]:
    if image.format == "PNG":
        return {key: str(image.info[key]) for key in KEYS if isinstance(image.info.get(key), str)}
    if image.format == "GIF":
        return _unpacked(image.info.get("comment", b""))
    places = {"parameters": _of_exif(image), "diffpipe": _of_xmp(image.info.get("xmp", b""))}
    return {key: value for key, value in places.items() if value}


def _of_exif(image: Image) -> str:
    comment = image.getexif().get_ifd(EXIF).get(USER_COMMENT, b"")
    if isinstance(comment, bytes) and comment.startswith(UNICODE):
        return comment[len(UNICODE) :].decode("utf-16-be", "replace")
    return ""


def _of_xmp(packet: object) -> str:
    if not isinstance(packet, bytes | str) or len(packet) > LARGEST_XMP:
        return ""
    try:
        return ElementTree.fromstring(packet).findtext(f".//{{{NAMESPACE}}}document", "")
    except (ElementTree.ParseError, LookupError, ValueError):  # the latter two for encodings that Python lacks
        return ""


def _of_container(path: Path) -> dict[str, str]:
    with opened(path, "", "picture, video or sound") as container:
        found = {key.lower(): value for key, value in container.metadata.items()}
    return {key: found[key] for key in KEYS if key in found} or _unpacked(found.get("comment", ""))


def _unpacked(comment: bytes | str) -> dict[str, str]:
    """The texts of a comment that holds them as one JSON document; nothing for somebody else's comment."""
    try:
        found = json.loads(comment)
    except (ValueError, RecursionError):
        return {}
    return {key: found[key] for key in KEYS if isinstance(found.get(key), str)} if isinstance(found, dict) else {}
