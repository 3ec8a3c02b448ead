"""Pictures, films and sounds that are damaged, lie about their sizes, name other files, or unpack to gigabytes."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from diffpipe.engine import media
from hostile.runner import Case

CASES = 350
READERS: dict[str, Callable[[Path], object]] = {
    "image": lambda path: media.read_image(path, option="--image"),
    "mask": lambda path: media.read_image(path, mask=True, option="--mask-image"),
    "video": lambda path: media.read_video(path, option="--video"),
    "text": media.read_text,
    "audio": lambda path: media.resample(media.read_audio(path, option="--audio"), 16_000),
}
EXTREMES = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\x00\x00", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x01")


def cases(rng: random.Random, folder: Path) -> Iterator[Case]:
    for name, data in by_hand():
        yield from (case(folder, f"{name} as {reader}", name, data, reader) for reader in fitting(name))
    real = list(samples(folder))
    while True:
        name, data = rng.choice(real)
        how = rng.choice(MUTATIONS)
        yield case(folder, f"{name}, {how.__name__}", name, how(rng, data), rng.choice(fitting(name)))


def fitting(name: str) -> tuple[str, ...]:
    if name.endswith((".wav", ".flac", ".mp3", ".ogg")):
        return ("audio", "text")
    return ("video", "text", "audio") if name.endswith((".mp4", ".webm", ".avi", ".mov")) else tuple(READERS)[:4]


def case(folder: Path, what: str, name: str, data: bytes, reader: str) -> Case:
    def call() -> object:
        path = folder / name
        path.write_bytes(data)
        return READERS[reader](path)

    return Case(what, call)


# Real files


def samples(folder: Path) -> Iterator[tuple[str, bytes]]:
    """A small file of each format that is written by us, Pillow and FFmpeg."""
    text = {"parameters": "a fox", "diffpipe": '{"format": 1}'}
    frames = np.random.default_rng(1).integers(0, 255, (3, 32, 48, 3), np.uint8)
    tone = media.Sound(np.sin(np.arange(4000) / 20)[None].astype(np.float32), 8000)
    written = [
        *(media.write_image(frames[0], folder / f"x.{kind}", text=text) for kind in ("png", "jpg", "webp")),
        *(media.write_video(frames, folder / f"x.{kind}", fps=8, text=text) for kind in ("mp4", "webm", "gif")),
        *(media.write_audio(tone, folder / f"x.{kind}", text=text) for kind in ("wav", "flac")),
        media.write_video(frames, folder / "sound.mp4", fps=8, sound=tone),
    ]
    yield from ((path.name, path.read_bytes()) for path in written)
    pictures = [Image.fromarray(frame) for frame in frames]
    for kind in ("bmp", "tiff", "ppm", "tga", "ico", "avif", "jp2", "apng", "webp", "gif"):
        several = {"save_all": True, "append_images": pictures[1:]} if kind in ("tiff", "apng", "webp", "gif") else {}
        with BytesIO() as out:
            try:
                pictures[0].save(out, {"jp2": "JPEG2000", "apng": "PNG"}.get(kind, kind), **several)
            except (KeyError, OSError):  # this Pillow has no such codec
                continue
            yield f"pillow.{kind}", out.getvalue()
    grey = Image.fromarray(frames[0, ..., 0].astype(np.int32) * 200)
    with BytesIO() as out:
        grey.save(out, "TIFF")
        yield "grey.tiff", out.getvalue()


# What is done to them


def flipped(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 8, 64))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def flipped_at_the_head(rng: random.Random, data: bytes) -> bytes:
    return flipped(rng, data[:200]) + data[200:]


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def cut_out(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randrange(1, 200) :]


def extreme(rng: random.Random, data: bytes) -> bytes:
    """A number of four bytes is as large, or small, as it can be."""
    at = rng.randrange(min(len(data), rng.choice((64, 400, 1_000_000))))
    return data[:at] + rng.choice(EXTREMES) + data[at + 4 :]


def repeated(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start : start + rng.randrange(1, 100)] * rng.choice((2, 50, 1000)) + data[start:]


MUTATIONS = (flipped, flipped_at_the_head, cut, cut_out, extreme, repeated)


# By hand


def by_hand() -> Iterator[tuple[str, bytes]]:
    yield from chain(pictures_by_hand(), lists_by_hand(), sounds_by_hand())


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *more: bytes, packed: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def pictures_by_hand() -> Iterator[tuple[str, bytes]]:
    row = zlib.compress(bytes(1 + 3))
    bomb = zlib.compress(bytes(100_000_000), 9)
    yield "vast.png", png(2**31 - 1, 2**31 - 1, packed=row)
    yield "large.png", png(65_535, 65_535, packed=row)
    yield "none.png", png(0, 0, packed=row)
    yield "bomb.png", png(1, 1, chunk(b"zTXt", b"diffpipe\0\0" + bomb), packed=row)
    yield "bomb-i.png", png(1, 1, chunk(b"iTXt", b"diffpipe\0\1\0\0\0" + bomb), packed=row)
    yield "pixels.png", png(1, 1, packed=bomb)
    yield "deep.png", png(1, 1, chunk(b"tEXt", b"diffpipe\0" + b"[" * 100_000), packed=row)
    yield "frames.png", png(1, 1, chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)), packed=row)
    yield "text.png", b"\x1b[2J hello"
    yield "empty.png", b""
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(%pipe%touch /tmp/was-run) (w) file\n%%EOF\n"
    yield "script.png", script
    yield "script.eps", b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, len(script)) + bytes(20) + script
    yield "drawing.wmf", b"\xd7\xcd\xc6\x9a" + bytes(100)
    frame = b"\x21\xf9\x04\0\0\0\0\0\x2c\0\0\0\0\1\0\1\0\0\2\2\x4c\1\0"
    yield "frames.gif", b"GIF89a\1\0\1\0\x80\0\0\xff\xff\xff\0\0\0" + frame * 2_000 + b";"
    yield "entities.webp", webp_with(ENTITIES)
    yield "deep.webp", webp_with(b"<a>" * 100_000)
    yield (
        "chain.tiff",
        b"II*\0\x08\0\0\0"
        + b"".join(struct.pack("<HHHIII", 1, 256, 4, 1, 1, 8 + 18 * (number + 1)) for number in range(20_000)),
    )
    yield "circle.tiff", b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 256, 4, 1, 1, 8)
    yield "strips.tiff", tiff_of(2**30)


ENTITIES = b"""<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">%s]><x>&j;</x>""" % b"".join(
    b'<!ENTITY %c "%s">' % (letter, b"&%c;" % (letter - 1) * 30) for letter in range(ord("b"), ord("k"))
)


def webp_with(packet: bytes) -> bytes:
    with BytesIO() as out:
        Image.new("RGB", (4, 4)).save(out, "WEBP", xmp=packet)
        return out.getvalue()


def tiff_of(count: int) -> bytes:
    """A picture of one pixel with an entry that says it has so many strips."""
    entries = [(256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 1)]
    packed = b"".join(struct.pack("<HHII", tag, 4, count if tag == 273 else 1, value) for tag, value in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + bytes(4)


def lists_by_hand() -> Iterator[tuple[str, bytes]]:
    """Files that name other files and addresses in the place of a film."""
    yield "list.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
    yield "away.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n"
    yield "joined.mp4", b"ffconcat version 1.0\nfile /etc/passwd\n"
    yield "session.mp4", b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n"
    yield "dash.mp4", b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period/></MPD>'
    yield "frames.ts", bytes(188) * 100
    yield "image.mp4", png(1, 1, packed=zlib.compress(bytes(4)))


def sounds_by_hand() -> Iterator[tuple[str, bytes]]:
    for name, channels, rate, bits in (
        ("slow", 1, 1, 16), ("still", 1, 0, 16), ("fast", 1, 10**9, 16), ("crowd", 10_000, 8000, 16),
        ("nobody", 0, 8000, 16), ("fine", 1, 8000, 64), ("coarse", 1, 8000, 0),
    ):  # fmt: skip
        block = channels * bits // 8
        head = struct.pack("<HHIIHH", 1, channels, rate, rate * block % 2**32, block % 2**16, bits)
        for length in (0xFFFFFFFF, 800):
            data = b"WAVEfmt " + struct.pack("<I", 16) + head + b"data" + struct.pack("<I", length) + bytes(800)
            yield f"{name}.wav", b"RIFF" + struct.pack("<I", length) + data
    facts = b"\x10\0\x10\0" + bytes(6) + b"\x0a\xc4\x42\xff\xff\xff\xff\xff" + bytes(16)
    yield "long.flac", b"fLaC\x80\0\0\x22" + facts
