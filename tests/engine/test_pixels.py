"""What pictures and masks mean that other programs wrote: alpha, depth, odd modes, formats by their own names."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from diffpipe.core.errors import UsageError
from diffpipe.core.flag import Flag
from diffpipe.core.request import Request
from diffpipe.engine.media import formats, read_image
from diffpipe.engine.running.media_arguments import read_media
from diffpipe.engine.running.results import keep_unmasked
from diffpipe.runners.inputs import reader
from diffpipe.runners.outcomes import outcomes_of

RAMP = np.tile(np.linspace(0, 255, 12).round().astype(np.uint8), (8, 1))  # 8 x 12
STROKE = np.zeros((8, 12), np.uint8)
STROKE[2:6, 3:9] = 255


def stacked(*channels: Any) -> Any:
    return np.stack([np.broadcast_to(np.uint8(one) if np.isscalar(one) else one, RAMP.shape) for one in channels], -1)


def taken(path: Path, **how: Any) -> tuple[Any, list[str]]:
    """The values of a picture as it is read, and what is said of it."""
    notes: list[str] = []
    return np.asarray(read_image(path, note=notes.append, **how)), notes


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(colour_type: int, depth: int, rows: Any, *more: bytes) -> bytes:
    """A PNG by its specification (section 11): rows (height, bytes) unfiltered, `more` chunks before them."""
    height, width = RAMP.shape
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    packed = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    whole = [chunk(b"IHDR", header), *more, chunk(b"IDAT", packed), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(whole)


def palette(indices: Any, colours: list[int], alphas: bytes = b"") -> bytes:
    """A PNG of 8-bit indices into colours, red, green, blue one after another, the first of which have alphas."""
    more = [chunk(b"tRNS", alphas)] if alphas else []
    return png(3, 8, indices, chunk(b"PLTE", bytes(colours)), *more)


COLUMNS = np.tile(np.arange(12, dtype=np.uint8), (8, 1))


# Masks


def over_black(grey: Any, alpha: Any) -> Any:
    return (np.asarray(grey, float) * alpha / 255).round()


HALF = (RAMP // 2 + 64).astype(np.uint8)
MASKS: dict[str, tuple[Callable[[Path], object], Any]] = {
    "rgba-white-strokes": (lambda p: Image.fromarray(stacked(255, 255, 255, STROKE)).save(p), STROKE),
    "rgba-black-strokes": (lambda p: Image.fromarray(stacked(0, 0, 0, STROKE)).save(p), STROKE),
    "rgba-red-soft-strokes": (lambda p: Image.fromarray(stacked(255, 0, 0, RAMP)).save(p), RAMP),
    "rgba-white-on-nothing": (lambda p: Image.fromarray(stacked(STROKE, STROKE, STROKE, STROKE)).save(p), STROKE),
    "la": (lambda p: Image.fromarray(stacked(255, STROKE), "LA").save(p), STROKE),
    "la-soft": (lambda p: Image.fromarray(stacked(7, HALF), "LA").save(p), HALF),
    "opaque-rgba": (lambda p: Image.fromarray(stacked(RAMP, RAMP, RAMP, 255)).save(p), RAMP),
    "grey-over-black": (
        lambda p: Image.fromarray(stacked(RAMP, RAMP, RAMP, HALF)).save(p), over_black(RAMP, HALF)
    ),
    "tiff-rgba": (lambda p: Image.fromarray(stacked(255, 255, 255, STROKE)).save(p, "TIFF"), STROKE),
    "webp-lossless": (
        lambda p: Image.fromarray(stacked(255, 255, 255, STROKE)).save(p, "WEBP", lossless=True), STROKE
    ),
    "palette-key": (lambda p: p.write_bytes(palette(STROKE // 255, [9, 9, 9, 255, 255, 255], b"\0")), STROKE),
    "palette-alphas": (lambda p: p.write_bytes(palette(COLUMNS, [255, 255, 255] * 12, bytes(RAMP[0]))), RAMP),
    "grey-key": (  # grey 0 is transparent
        lambda p: p.write_bytes(png(0, 8, STROKE, chunk(b"tRNS", b"\0\0"))), STROKE
    ),
    "gif-transparent": (
        lambda p: Image.fromarray(STROKE // 255).convert("P").save(p, "GIF", transparency=0), STROKE
    ),
    "one-bit": (lambda p: Image.fromarray(STROKE).convert("1").save(p), STROKE),
    "sixteen-bit-of-255": (lambda p: Image.fromarray(STROKE.astype(np.uint16)).save(p), STROKE),
    "float-of-1": (lambda p: Image.fromarray(STROKE.astype(np.float32) / 255).save(p, "TIFF"), STROKE),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_what_is_seen_of_it(tmp_path: Path, name: str) -> None:
    write, wanted = MASKS[name]
    write(tmp_path / "mask.png")
    found, _ = taken(tmp_path / "mask.png", mask=True)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (stacked(255, 255, 255, 0), "is all black"),
        (STROKE // 255, "is 0 and 1, of 255"),
        (stacked(RAMP, RAMP, RAMP, 0), "is all black"),
    ],
)
def test_a_mask_that_paints_nothing_is_refused(tmp_path: Path, values: Any, says: str) -> None:
    Image.fromarray(values).save(tmp_path / "mask.png")
    with pytest.raises(UsageError, match=f"--mask-image {says}"):
        read_image(tmp_path / "mask.png", mask=True, option="--mask-image")


@pytest.mark.parametrize("name", ["rgba-white-strokes", "la", "palette-key", "gif-transparent", "grey-key"])
def test_an_inpainted_picture_keeps_its_source_outside_of_what_is_seen_of_the_mask(tmp_path: Path, name: str) -> None:
    Image.fromarray(stacked(RAMP, 5, 9)).save(tmp_path / "source.png")
    MASKS[name][0](tmp_path / "mask.png")
    flags = {"image": Flag("image", "image"), "mask_image": Flag("mask_image", "mask")}
    given = {"image": str(tmp_path / "source.png"), "mask_image": str(tmp_path / "mask.png")}
    made = keep_unmasked(Image.new("RGB", (12, 8), (1, 2, 3)), read_media(flags, given))
    assert (np.asarray(made) == np.where(STROKE[..., None], [1, 2, 3], stacked(RAMP, 5, 9))).all()


def test_a_mask_too_dark_to_paint_with_is_noted(tmp_path: Path) -> None:
    Image.fromarray(STROKE // 4).save(tmp_path / "mask.png")
    assert taken(tmp_path / "mask.png", mask=True)[1] == [
        "mask.png is nowhere lighter than 63 of 255: most pipelines paint nothing that dark"
    ]


# Transparent pictures


def on_white(colour: Any, alpha: Any) -> Any:
    return np.stack(
        [(np.asarray(one, float) * alpha + 255.0 * (255 - alpha.astype(float))) / 255 for one in colour], -1
    )


SEEN: dict[str, tuple[Callable[[Path], object], Any]] = {
    "rgba": (
        lambda p: Image.fromarray(stacked(10, RAMP, 30, HALF)).save(p),
        on_white((stacked(10)[..., 0], RAMP, stacked(30)[..., 0]), HALF),
    ),
    "la": (lambda p: Image.fromarray(stacked(RAMP, HALF), "LA").save(p), on_white((RAMP,) * 3, HALF)),
    "rgb-key": (  # pure (0, 0, 0) is transparent
        lambda p: p.write_bytes(
            png(2, 8, stacked(STROKE, STROKE // 2, STROKE).reshape(8, -1), chunk(b"tRNS", bytes(6)))
        ),
        on_white((STROKE, STROKE // 2, STROKE), STROKE),
    ),
    "palette": (
        lambda p: p.write_bytes(palette(STROKE // 255, [200, 0, 0, 0, 90, 0], b"\x80")),
        on_white((200 * (STROKE == 0), 90 * (STROKE > 0), 0 * STROKE), np.where(STROKE, 255, 128).astype(np.uint8)),
    ),
    "gif": (
        lambda p: Image.fromarray(STROKE // 255).convert("P").save(p, "GIF", transparency=0),
        on_white((STROKE // 255,) * 3, STROKE),
    ),
}


@pytest.mark.parametrize("name", SEEN)
def test_a_transparent_picture_is_laid_on_white_and_that_is_noted(tmp_path: Path, name: str) -> None:
    write, wanted = SEEN[name]
    write(tmp_path / "photo.png")
    found, notes = taken(tmp_path / "photo.png")
    assert found.shape == (8, 12, 3)
    assert np.abs(found - wanted).max() <= 1
    assert notes == ["photo.png is transparent in places: laid on white"]


def test_an_opaque_picture_with_alpha_is_as_it_is_and_nothing_is_said(tmp_path: Path) -> None:
    Image.fromarray(stacked(1, RAMP, 3, 255)).save(tmp_path / "x.png")
    found, notes = taken(tmp_path / "x.png")
    assert ((found == stacked(1, RAMP, 3)).all(), notes) == (True, [])


def test_alpha_is_kept_where_the_family_takes_it(tmp_path: Path) -> None:
    Image.fromarray(stacked(1, RAMP, 3, HALF)).save(tmp_path / "x.png")
    Image.fromarray(stacked(RAMP, HALF), "LA").save(tmp_path / "y.png")
    flags = {name: Flag(name, "image", mode="RGBA") for name in "ab"}
    notes: list[str] = []
    read = read_media(flags, {"a": str(tmp_path / "x.png"), "b": str(tmp_path / "y.png")}, note=notes.append)
    assert (np.asarray(read["a"]) == stacked(1, RAMP, 3, HALF)).all()
    assert (np.asarray(read["b"]) == stacked(RAMP, RAMP, RAMP, HALF)).all()
    assert notes == []


# Depth

LIGHT = (RAMP / np.float32(255)).astype(np.float32)  # as rendered, with a lamp in it
LIGHT[0, 0] = 40


@pytest.mark.parametrize(
    ("values", "wanted", "says"),
    [
        (RAMP / np.float32(255), RAMP, ""),
        (RAMP.astype(np.float32), RAMP, ""),
        (RAMP.astype(np.float32) * 257, RAMP, ""),
        (RAMP / np.float32(255) * 1.6, (RAMP * 1.6).clip(0, 255), ""),  # brighter than white in places
        (RAMP.astype(np.float32) * 4000, RAMP, "has values up to 1.02e+06, which is taken for white"),
        (RAMP / np.float32(127.5) - 1, (RAMP * 2.0 - 255).clip(0), "has values below 0 (to -1): they are black"),
        (LIGHT, (LIGHT.clip(0, 1) * 255).round(), "has highlights up to 40, brighter than white (1): they are white"),
        (RAMP.astype(np.int32), RAMP, ""),
        (RAMP.astype(np.int32) * 257, RAMP, ""),
        (RAMP.astype(np.int32) * 2**20, RAMP, "has values up to 2.67387e+08, which is taken for white"),
        (RAMP.astype(np.uint16) * 257, RAMP, ""),
        (RAMP.astype(np.uint16) * 100, RAMP.astype(float) * 100 / 257, ""),
        (RAMP.astype(np.uint16), RAMP, "has 16 bits but no value above 255: 255 is taken for white"),
        (np.zeros((8, 12), np.float32), 0 * RAMP, ""),
        (np.ones((8, 12), np.float32), 0 * RAMP + 255, ""),
    ],
)  # fmt: skip
def test_the_range_of_a_deep_picture_says_what_is_white(tmp_path: Path, values: Any, wanted: Any, says: str) -> None:
    Image.fromarray(values.astype(np.float32) if values.dtype == np.float64 else values).save(tmp_path / "d.tiff")
    found, notes = taken(tmp_path / "d.tiff")
    assert np.abs(found - np.asarray(wanted, float)[..., None]).max() <= 1
    assert notes == ([f"d.tiff {says}"] if says else [])


def test_a_picture_of_numbers_that_are_none_is_refused(tmp_path: Path) -> None:
    values = RAMP.astype(np.float32)
    values[3, 3] = np.nan
    Image.fromarray(values).save(tmp_path / "depth.tiff")
    with pytest.raises(UsageError, match=r"--image: cannot read depth\.tiff: it has numbers that are not finite"):
        read_image(tmp_path / "depth.tiff", option="--image")


# As today


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


TURNS = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 6: lambda a: np.rot90(a, -1), 8: np.rot90}


@pytest.mark.parametrize("orientation", TURNS)
def test_a_picture_is_upright_as_its_exif_says(tmp_path: Path, orientation: int) -> None:
    """Exif 3.0, table 9: 6 is to be turned by 90 degrees clockwise, 8 anticlockwise."""
    Image.fromarray(stacked(RAMP, STROKE, 9)).save(tmp_path / "x.png", exif=turned(orientation))
    found, notes = taken(tmp_path / "x.png")
    assert ((found == TURNS[orientation](stacked(RAMP, STROKE, 9))).all(), notes) == (True, [])


def associated(path: Path, values: Any) -> None:
    """A TIFF whose colours are premultiplied with its alpha (TIFF 6.0, ExtraSamples 1), as compositing programs do."""
    data = io.BytesIO()
    premultiplied = (values[..., :3].astype(float) * values[..., 3:] / 255).round().astype(np.uint8)
    Image.fromarray(np.concatenate([premultiplied, values[..., 3:]], -1)).save(data, "TIFF")
    entry = struct.pack("<HHI", 338, 3, 1)
    assert data.getvalue().count(entry + b"\2\0") == 1
    path.write_bytes(data.getvalue().replace(entry + b"\2\0", entry + b"\1\0"))


def profiled(path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(stacked(RAMP, STROKE, 9)).save(path, icc_profile=profile)


@pytest.mark.parametrize(
    ("write", "wanted"),
    [
        (lambda p: Image.fromarray(stacked(RAMP, 0, 0, STROKE), "CMYK").save(p, "TIFF"),
         stacked(*((255 - RAMP) * (1 - STROKE // 255), 255 - STROKE, 255 - STROKE))),
        (lambda p: p.write_bytes(png(2, 16, np.repeat(stacked(RAMP, STROKE, 9), 2, -1).reshape(8, -1))),
         stacked(RAMP, STROKE, 9)),
        (lambda p: p.write_bytes(palette(STROKE // 255, [1, 2, 3, 4, 5, 6])),
         np.where(STROKE[..., None], [4, 5, 6], [1, 2, 3])),
        (lambda p: p.write_bytes(png(0, 1, np.packbits(STROKE // 255, axis=1))), stacked(STROKE, STROKE, STROKE)),
        (profiled, stacked(RAMP, STROKE, 9)),
        (lambda p: p.write_bytes(png(6, 16, np.repeat(stacked(RAMP, STROKE, 9, 255), 2, -1).reshape(8, -1))),
         stacked(RAMP, STROKE, 9)),
        (lambda p: p.write_bytes(png(4, 16, np.repeat(stacked(RAMP, 255), 2, -1).reshape(8, -1))),
         stacked(RAMP, RAMP, RAMP)),
        (lambda p: associated(p, stacked(RAMP, STROKE, 9, 255)), stacked(RAMP, STROKE, 9)),
        pytest.param(lambda p: Image.fromarray(stacked(RAMP, 128, 128), "YCbCr").save(p, "TIFF"),
                     stacked(RAMP, RAMP, RAMP), marks=pytest.mark.pinned),  # Pillow 11.1 cannot read what it wrote
    ],
    ids=["cmyk", "rgb-16", "palette", "one-bit", "profile", "rgba-16", "grey-alpha-16", "premultiplied", "ycbcr"],
)  # fmt: skip
def test_other_modes_are_read_as_ever(tmp_path: Path, write: Any, wanted: Any) -> None:
    write(tmp_path / "x.png")
    found, notes = taken(tmp_path / "x.png")
    assert (np.abs(found.astype(int) - wanted).max() <= 1, notes) == (True, [])


def test_colours_that_are_not_taken_are_named(tmp_path: Path) -> None:
    Image.fromarray(stacked(RAMP, 128, 128), "LAB").save(tmp_path / "x.tiff")
    with pytest.raises(UsageError, match=r"cannot read x\.tiff: it has colours of the kind LAB"):
        read_image(tmp_path / "x.tiff", option="--image")


def test_premultiplied_colours_are_unmultiplied(tmp_path: Path) -> None:
    associated(tmp_path / "x.png", stacked(200, 100, 50, np.where(STROKE, 255, 128).astype(np.uint8)))
    found, _ = taken(tmp_path / "x.png", mode="RGBA")
    assert np.abs(found.astype(int) - stacked(200, 100, 50, np.where(STROKE, 255, 128))).max() <= 2


# Formats


def iso(brand: bytes, *others: bytes) -> bytes:
    return struct.pack(">I", 16 + 4 * len(others)) + b"ftyp" + brand + bytes(4) + b"".join(others) + bytes(64)


@pytest.mark.parametrize(
    ("data", "says", "do"),
    [
        (iso(b"heic", b"mif1"), "it is HEIC", "pip install pillow-heif"),
        (iso(b"mif1", b"heic"), "it is HEIC", "pip install pillow-heif"),
        (iso(b"mif1", b"avif"), "it is AVIF", "pillow>=11.3"),
        (b"\xff\x0a" + bytes(40), "it is JPEG XL", "pillow-jxl-plugin"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), "it is JPEG XL", "pillow-jxl-plugin"),
        (iso(b"isom", b"mp42"), "it is a video", "-frames:v 1"),
        (b"\x1a\x45\xdf\xa3" + bytes(60), "it is a video", "-frames:v 1"),
        (b"%PDF-1.7\n" + bytes(60), "it is a PDF", "PNG"),
        (b"\x76\x2f\x31\x01" + bytes(60), "it is OpenEXR", "PNG"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x"/>', "it is SVG", "PNG"),
        (b"hello", "it is no picture, or it is damaged", "PNG"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, says: str, do: str
) -> None:
    monkeypatch.setattr(formats, "taught", lambda known: False)
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(UsageError) as refused:
        read_image(tmp_path / "x.png", option="--image")
    assert refused.value.message == f"--image: cannot read x.png: {says}"
    assert do in refused.value.hint


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_read(tmp_path: Path) -> None:
    smooth = stacked(RAMP, RAMP // 2, 90)
    Image.fromarray(smooth).save(tmp_path / "x.avif", quality=100)
    found, notes = taken(tmp_path / "x.avif")
    assert (np.abs(found.astype(int) - smooth).mean() < 4, notes) == (True, [])


def animated(path: Path, form: str) -> Path:
    frames = [Image.fromarray(stacked(value, 0, 255 - value)) for value in (0, 120, 250)]
    frames[0].save(path, form, save_all=True, append_images=frames[1:], duration=100)
    return path


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animated_picture_the_first_is_taken_and_that_is_noted(tmp_path: Path, form: str) -> None:
    found, notes = taken(animated(tmp_path / "x.png", form))
    assert np.abs(found.astype(int) - [0, 0, 255]).max() <= 3
    number = "several" if form in ("GIF", "TIFF") else 3
    assert notes == [f"x.png has {number} {'pages' if form == 'TIFF' else 'frames'}: the first is taken"]


def test_a_telephones_picture_with_a_gain_map_is_one_picture(tmp_path: Path) -> None:
    first, second = (Image.fromarray(stacked(v, v, v)) for v in (90, 200))
    data = io.BytesIO()
    first.save(data, "MPO", save_all=True, append_images=[second])
    (tmp_path / "x.jpg").write_bytes(data.getvalue())
    found, notes = taken(tmp_path / "x.jpg")
    assert (np.abs(found.astype(int) - 90).max() <= 2, notes) == (True, [])


# Where it is said


def test_what_is_noted_of_an_input_is_told_once_and_is_a_warning_of_each_item(tmp_path: Path) -> None:
    Image.fromarray(stacked(1, 2, 3, STROKE)).save(tmp_path / "logo.png")
    told: list[str] = []
    read = reader({"image": Flag("image", "image")}, False, lambda text: told.append(text))
    arguments = {"image": str(tmp_path / "logo.png")}
    outcomes = [one for n in range(2) for one in outcomes_of([Request(n, n, arguments)], lambda g: [read(g[0]) and []])]
    says = "--image: logo.png is transparent in places: laid on white"
    assert [outcome.warnings for outcome in outcomes] == [(says,)] * 2
    assert set(told) == {says}
