"""Pictures, video and sound: written, read back by independent readers; what is said of files that cannot be read."""

from __future__ import annotations

import json
import logging
import os
import struct
import tempfile
import wave
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.GifImagePlugin import GifImageFile

from diffpipe.core.errors import DiffpipeError, UsageError
from diffpipe.engine.media import (
    Sound,
    finite,
    read_audio,
    read_image,
    read_text,
    read_video,
    resample,
    write_audio,
    write_image,
    write_video,
)
from diffpipe.engine.media.formats import PICTURES as PICTURES_READ

TEXT = {
    "parameters": "a cat 😀, مرحبا بالعالم <b>&amp;\nNegative prompt: blurry\nSteps: 4, Seed: 1",
    "diffpipe": json.dumps({"prompt": "a cat 😀", "seed": 1, "base": "x" * 3000}, ensure_ascii=False),
}
PICTURES, FILMS, SOUNDS = ("png", "jpg", "webp"), ("mp4", "webm", "gif", "frames"), ("wav", "flac")


def moving(count: int = 9, height: int = 48, width: int = 64) -> np.ndarray[Any, Any]:
    """Frames (count, height, width, 3) of uint8: a smooth ground that brightens, and a white square moving right."""
    y, x = np.mgrid[:height, :width]
    ground = [np.stack([x * 2, y * 2, np.full_like(x, 20 * i)], -1) for i in range(count)]
    frames = np.stack(ground).clip(0, 255).astype(np.uint8)
    for i in range(count):
        frames[i, 8:24, 4 * i : 4 * i + 16] = 255
    return frames


def tone(seconds: float = 0.5, rate: int = 44_100, channels: int = 2) -> Sound:
    """A rising tone with a different loudness in each channel."""
    t = np.arange(round(seconds * rate)) / rate
    wave_ = np.sin(2 * np.pi * (300 * t + 400 * t * t))
    return Sound(np.stack([wave_ * 0.8 / (c + 1) for c in range(channels)]).astype(np.float32), rate)


def write(kind: str, path: Path, text: dict[str, str]) -> Path:
    """A small file of any kind that holds `text`."""
    if kind in PICTURES:
        return write_image(moving(1, 16, 16)[0], path / f"x.{kind}", text=text)
    if kind in FILMS:
        return write_video(moving(2, 16, 16), path / f"x.{kind}", fps=8, text=text)
    return write_audio(tone(0.02, 8000, 1), path / f"x.{kind}", text=text)


def content(path: Path) -> dict[str, bytes]:
    """Every file under a path by its name."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {str(file.relative_to(path)): file.read_bytes() for file in files if file.is_file()}


def decoded(path: Path) -> tuple[np.ndarray[Any, Any], float, str]:
    """Frames, frames a second and pixel format of a video file, by PyAV alone."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        return frames, float(stream.average_rate), stream.codec_context.pix_fmt


def error_between(one: Any, other: Any) -> float:
    return float(np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean())


# Films


@pytest.mark.parametrize("fps", [8, 16, 24, 23.976, 29.97, 12.5])
@pytest.mark.parametrize("kind", ["mp4", "webm"])
def test_a_film_keeps_its_frames_size_and_rate(tmp_path: Path, kind: str, fps: float) -> None:
    frames = moving()
    path = write_video(frames, tmp_path / f"x.{kind}", fps=fps)
    back, rate, pixels = decoded(path)
    assert back.shape == frames.shape
    assert error_between(back, frames) < 4
    assert (rate, pixels) == (pytest.approx(fps, abs=0.0005), "yuv420p")


@pytest.mark.parametrize("kind", ["mp4", "webm"])
@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 40), (255, 255, 255), (0, 0, 0)])
def test_colours_of_a_film_are_true_and_marked(tmp_path: Path, kind: str, colour: tuple[int, int, int]) -> None:
    path = write_video([Image.new("RGB", (32, 32), colour)] * 2, tmp_path / f"x.{kind}", fps=8)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        marks = (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc)
    assert marks == (1, 1, 1, 1)  # BT.709, range of television
    assert np.abs(np.asarray(read_video(path).frames[0]).astype(int) - colour).max() <= 3


def test_floats_lists_and_bytes_make_the_same_film(tmp_path: Path) -> None:
    frames = moving(3)
    ways = [frames, frames.astype(np.float32) / 255, frames / 255.0, [Image.fromarray(frame) for frame in frames]]
    made = [write_video(way, tmp_path / f"{i}.mp4", fps=8).read_bytes() for i, way in enumerate(ways)]
    assert made == [made[0]] * 4


def test_grey_frames_and_masks_keep_their_values(tmp_path: Path) -> None:
    masks = [Image.new("L", (32, 32), value) for value in (0, 255, 128)]
    path = write_video(masks, tmp_path / "mask.mp4", fps=8)
    clip = read_video(path, mask=True)
    assert [frame.mode for frame in clip.frames] == ["L"] * 3
    assert [abs(frame.getpixel((16, 16)) - value) <= 2 for frame, value in zip(clip.frames, (0, 255, 128), strict=True)]
    assert error_between(decoded(path)[0][2], 128) < 2


@pytest.mark.parametrize(
    ("kind", "size"), [("mp4", (34, 18)), ("webm", (33, 17)), ("gif", (33, 17)), ("frames", (33, 17))]
)
def test_odd_sizes(tmp_path: Path, kind: str, size: tuple[int, int]) -> None:
    frames = moving(2, 17, 33)
    clip = read_video(write_video(frames, tmp_path / f"x.{kind}", fps=8))
    assert [frame.size for frame in clip.frames] == [size] * 2
    kept = np.stack([np.asarray(frame)[:17, :33] for frame in clip.frames])
    assert error_between(kept, frames) < 6


def test_an_mp4_begins_with_its_index_so_that_it_streams(tmp_path: Path) -> None:
    data = write_video(moving(), tmp_path / "x.mp4", fps=8, sound=tone()).read_bytes()
    boxes, at = [], 0
    while at < len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        boxes.append(name)
        at += size
    assert boxes.index(b"moov") < boxes.index(b"mdat")


@pytest.mark.parametrize(
    ("kind", "rate", "kept"), [("mp4", 24_000, 24_000), ("mp4", 11_000, 48_000), ("webm", 44_100, 48_000)]
)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_film_carries_its_sound(tmp_path: Path, kind: str, rate: int, kept: int, channels: int) -> None:
    sound = tone(0.75, rate, channels)
    path = write_video(moving(6), tmp_path / f"x.{kind}", fps=8, sound=sound)
    back, fps, _ = decoded(path)
    heard = read_audio(path)
    assert (len(back), fps) == (6, 8)
    assert (heard.rate, len(heard.samples)) == (kept, channels)
    wanted = resample(sound, kept).samples
    length = wanted.shape[1]
    assert length <= heard.samples.shape[1] <= length + 2 * 1024  # the last block of an encoder is filled up
    # Lossy, but the same wave at the same time: a shift by one sample would already show.
    likeness = [np.corrcoef(one, other)[0, 1] for one, other in zip(heard.samples[:, :length], wanted, strict=True)]
    assert min(likeness) > 0.98


def test_sound_and_pictures_lie_side_by_side_in_a_long_film(tmp_path: Path) -> None:
    path = write_video(moving(30, 16, 16), tmp_path / "x.mp4", fps=1, sound=tone(30, 8000, 1))
    with av.open(str(path)) as container:
        places = {"video": [], "audio": []}
        for packet in container.demux():
            if packet.size:
                places[packet.stream.type].append(packet.pos)
    assert max(places["video"][:15]) < places["audio"][-1]
    assert max(places["audio"][: len(places["audio"]) // 3]) < places["video"][-1]


def gif_blocks(data: bytes) -> tuple[list[int], list[bytes], list[bytes]]:
    """Delays in 1/100 s, comments and application extensions of a GIF, read by the specification (GIF89a)."""
    at = 13 + (3 * 2 ** ((data[10] & 7) + 1) if data[10] & 0x80 else 0)
    delays, comments, applications = [], [], []

    def sub_blocks(at: int) -> tuple[bytes, int]:
        whole = b""
        while data[at]:
            whole += data[at + 1 : at + 1 + data[at]]
            at += 1 + data[at]
        return whole, at + 1

    while data[at] != 0x3B:
        if data[at] == 0x21:
            label = data[at + 1]
            block, at = sub_blocks(at + 2)
            if label == 0xF9:
                delays.append(int.from_bytes(block[1:3], "little"))
            elif label == 0xFE:
                comments.append(block)
            elif label == 0xFF:
                applications.append(block)
        else:
            assert data[at] == 0x2C
            colours = 3 * 2 ** ((data[at + 9] & 7) + 1) if data[at + 9] & 0x80 else 0
            _, at = sub_blocks(at + 10 + colours + 1)
    return delays, comments, applications


@pytest.mark.parametrize(
    ("fps", "delays"),
    [(8, [12, 13, 13, 12, 12, 13, 13, 12, 12]), (24, [4, 4, 4, 5, 4, 4, 4, 4, 5]), (50, [2] * 9), (60, [2] * 9)],
)
def test_a_gif_keeps_time_and_repeats(tmp_path: Path, fps: float, delays: list[int]) -> None:
    path = write_video(moving(9), tmp_path / "x.gif", fps=fps)
    found, comments, applications = gif_blocks(path.read_bytes())
    assert sorted(found) == sorted(delays)
    assert abs(sum(found) - 900 / min(fps, 50)) <= 1
    assert comments == []
    assert [block[:11] for block in applications] == [b"NETSCAPE2.0"]
    assert applications[0][12:] == b"\0\0"  # without end


def test_equal_frames_of_a_gif_are_all_there(tmp_path: Path) -> None:
    path = write_video([Image.new("RGB", (20, 20), "red")] * 5, tmp_path / "x.gif", fps=10)
    assert [path.suffix, gif_blocks(path.read_bytes())[0]] == [".gif", [10] * 5]
    assert write_video([Image.new("RGB", (20, 20), "red")], tmp_path / "one.gif", fps=4).exists()
    assert gif_blocks((tmp_path / "one.gif").read_bytes())[0] == [25]


def test_a_gif_of_few_colours_is_exact(tmp_path: Path) -> None:
    colours = [(255, 0, 0), (12, 200, 99), (0, 0, 0), (255, 255, 255), (90, 90, 91)]
    path = write_video([Image.new("RGB", (20, 20), colour) for colour in colours], tmp_path / "x.gif", fps=10)
    with Image.open(path) as gif:
        found = []
        for number in range(gif.n_frames):
            gif.seek(number)
            found.append(gif.convert("RGB").getpixel((10, 10)))
    assert found == colours


def test_a_folder_of_frames_is_numbered_and_exact(tmp_path: Path) -> None:
    frames = moving(11)
    path = write_video(frames, tmp_path / "clip", fps=8)
    assert [file.name for file in sorted(path.iterdir())] == [f"{n:05}.png" for n in range(1, 12)]
    back = [np.asarray(Image.open(file)) for file in sorted(path.iterdir())]
    assert (np.stack(back) == frames).all()
    assert (path.stat().st_mode & 0o777) == (0o777 & ~umask())


def umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


@pytest.mark.parametrize("kind", ["gif", "frames"])
def test_sound_that_has_no_place_is_said(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        path = write_video(moving(2), tmp_path / f"x.{kind}", fps=8, sound=tone())
    assert path.exists()
    assert [record.getMessage() for record in caplog.records] == [
        f"{'a GIF' if kind == 'gif' else 'a folder of frames'} holds no sound; it was left out"
    ]


# Sound


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate", [8000, 16_000, 44_100, 48_000])
def test_wav_is_what_the_standard_library_reads(tmp_path: Path, rate: int, channels: int) -> None:
    sound = tone(0.25, rate, channels)
    path = write_audio(sound, tmp_path / "x.wav", text=TEXT)
    data = path.read_bytes()
    at = data.index(b"fmt ") + 8  # more than two channels are written as WAVE_FORMAT_EXTENSIBLE, which `wave` refuses
    assert struct.unpack("<HI", data[at + 2 : at + 8]) == (channels, rate)
    if channels <= 2:
        with wave.open(str(path)) as opened:
            assert (opened.getsampwidth(), opened.getnframes()) == (2, sound.samples.shape[1])
            raw = np.frombuffer(opened.readframes(10**6), "<i2").reshape(-1, channels).T
        assert np.abs(raw / 32768 - sound.samples).max() <= 0.5 / 32768 + 1e-7
    assert np.abs(read_audio(path).samples - sound.samples).max() <= 0.5 / 32768 + 1e-7


@pytest.mark.parametrize("channels", [1, 2])
def test_flac_keeps_every_sample(tmp_path: Path, channels: int) -> None:
    sound = tone(0.25, 32_000, channels)
    path = write_audio(sound, tmp_path / "x.flac")
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray().reshape(-1, channels).T for frame in container.decode(audio=0)]
        rate = container.streams.audio[0].rate
    assert rate == 32_000
    assert np.abs(np.concatenate(frames, 1) / 32768 - sound.samples).max() <= 0.5 / 32768 + 1e-7
    heard = read_audio(path)
    assert (heard.rate, heard.samples.dtype, heard.samples.shape) == (32_000, np.float32, sound.samples.shape)


def test_sound_above_full_scale_is_clipped_not_wrapped(tmp_path: Path) -> None:
    loud = Sound(np.array([[2.0, -2.0, 1.0, -1.0, 0.0]] * 2, np.float32), 8000)
    heard = read_audio(write_audio(loud, tmp_path / "x.wav")).samples
    assert heard == pytest.approx(np.array([[1, -1, 1, -1, 0]] * 2), abs=1 / 32768)


@pytest.mark.parametrize("rate", [8000, 24_000, 48_000])
def test_resampling_keeps_the_wave_and_its_length(rate: int) -> None:
    t, n = np.arange(rate) / rate, np.arange(16_000) / 16_000
    wave_ = np.stack([np.sin(2 * np.pi * 440 * n), np.zeros(16_000)]).astype(np.float32)
    there = resample(Sound(wave_, 16_000), rate)
    assert (there.rate, there.samples.dtype) == (rate, np.float32)
    assert abs(there.samples.shape[1] - rate) <= 32
    wanted = np.sin(2 * np.pi * 440 * t)
    middle = slice(500, min(rate, there.samples.shape[1]) - 500)  # a filter rings at both ends
    assert np.abs(there.samples[0][middle] - wanted[middle]).max() < 0.01
    assert not there.samples[1].any()
    same = Sound(wave_, 16_000)
    assert resample(same, 16_000) is same


# The same bytes, whole or not at all


@contextmanager
def one_processor() -> Iterator[None]:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system binds no process to a processor")
    every = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(every)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, every)


@pytest.mark.parametrize("kind", ["mp4", "webm", "gif", "frames", "wav", "flac", "png", "jpg", "webp"])
def test_the_same_content_makes_the_same_bytes_on_one_processor_or_two(tmp_path: Path, kind: str) -> None:
    def make(name: str) -> Path:
        path = tmp_path / f"{name}.{kind}"
        if kind in PICTURES:
            return write_image(moving(1)[0], path, text=TEXT)
        if kind in SOUNDS:
            return write_audio(tone(), path, text=TEXT)
        sound = tone() if kind in ("mp4", "webm") else None
        return write_video(moving(12, 160, 256), path, fps=23.976, sound=sound, text=TEXT)

    first, second = make("a"), make("b")
    with one_processor():
        third = make("c")
    assert content(first) == content(second) == content(third)


@contextmanager
def full_disk(most: int) -> Iterator[None]:
    """Files of this process cannot grow beyond `most` bytes."""
    import resource  # Windows has none

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def noisy(kind: str, path: Path, *, overwrite: bool = True) -> Path:
    rng = np.random.default_rng(0)
    if kind in PICTURES:
        return write_image(rng.random((64, 64, 3)), path, overwrite=overwrite)
    if kind in SOUNDS:
        return write_audio(Sound(rng.random((1, 9000)), 8000), path, overwrite=overwrite)
    return write_video(rng.random((4, 64, 64, 3)), path, fps=8, overwrite=overwrite)


@pytest.mark.parametrize("kind", [*PICTURES, *FILMS, *SOUNDS])
def test_a_full_disk_leaves_nothing_and_the_old_file_as_it_was(tmp_path: Path, kind: str) -> None:
    old = write(kind, tmp_path, {})
    before = content(tmp_path)
    with full_disk(1000), pytest.raises(OSError, match=r"large|EFBIG"):
        noisy(kind, tmp_path / f"new.{kind}")
    with full_disk(1000), pytest.raises(OSError, match=r"large|EFBIG"):
        noisy(kind, old)
    assert content(tmp_path) == before


def test_an_encoder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    wide = [Image.new("RGB", (70_000, 2))]  # VP9 holds 65,536 columns
    with pytest.raises(DiffpipeError, match=r"cannot encode \.webm"):
        write_video(wide, tmp_path / "x.webm", fps=8)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [*PICTURES, *FILMS, *SOUNDS])
def test_a_taken_name_is_kept_unless_told_to_overwrite(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "deep" / f"x.{kind}"
    first = noisy(kind, path)
    written = [noisy(kind, path, overwrite=False) for _ in range(2)]
    assert first == path
    assert [file.name for file in written] == [f"x-2.{kind}", f"x-3.{kind}"]
    assert noisy(kind, path) == path
    assert sorted(file.name for file in path.parent.iterdir()) == [f"x-2.{kind}", f"x-3.{kind}", f"x.{kind}"]
    assert len({str(content(file)) for file in path.parent.iterdir()}) == 1


def test_overwriting_takes_no_folder_of_other_things(tmp_path: Path) -> None:
    path = write_video(moving(5), tmp_path / "clip", fps=8)
    assert write_video(moving(2), tmp_path / "clip", fps=8) == path
    assert len(list(path.iterdir())) == 2  # no frame of the longer one is left
    (path / "notes.txt").write_text("mine", encoding="utf-8")
    assert write_video(moving(3), tmp_path / "clip", fps=8).name == "clip-2"
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    assert write_video(moving(3), tmp_path / "file", fps=8).name == "file-2"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["clip", "clip-2", "file", "file-2"]


NOT_FINITE = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("bad", NOT_FINITE)
@pytest.mark.parametrize("kind", ["png", "mp4", "gif", "frames", "wav", "film with sound", "PIL"])
def test_numbers_that_are_not_finite_are_an_error(tmp_path: Path, kind: str, bad: float) -> None:
    frames = np.zeros((3, 16, 16, 3), np.float32)
    frames[2, 5, 5, 1] = bad
    noise = Sound(np.array([[0.0, bad]], np.float32), 8000)
    make: dict[str, Callable[[], object]] = {
        "png": lambda: write_image(frames[2], tmp_path / "x.png"),
        "wav": lambda: write_audio(noise, tmp_path / "x.wav"),
        "film with sound": lambda: write_video(moving(2), tmp_path / "x.mp4", fps=8, sound=noise),
        "PIL": lambda: write_image(Image.fromarray(frames[2, :, :, 1]), tmp_path / "x.png"),
    }
    with pytest.raises(DiffpipeError, match="not finite") as caught:
        make.get(kind, lambda: write_video(frames, tmp_path / f"x.{kind}", fps=8))()
    assert "--dtype float32" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_finite_gives_back_what_it_was_given() -> None:
    values = np.array([0.0, -1e30, 1e30])
    assert finite(values) is values


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: write_video([], path / "x.mp4", fps=8), "no frames"),
        (lambda path: write_video([Image.new("L", (8, n)) for n in (8, 9)], path / "x.mp4", fps=8), "2 sizes"),
        (lambda path: write_video(moving(1), path / "x.mp4", fps=0), "0 frames a second"),
        (lambda path: write_video(moving(1), path / "x.mp4", fps=float("nan")), "nan frames a second"),
        (lambda path: write_video(moving(1), path / "x.avi", fps=8), "cannot write .avi"),
        (lambda path: write_image(moving(1)[0], path / "x.mp4"), "cannot write .mp4"),
        (lambda path: write_audio(tone(), path / "x.mp3"), "cannot write .mp3"),
        (lambda path: write_audio(Sound(np.zeros((1, 0), np.float32), 8000), path / "x.wav"), "no sound"),
        (lambda path: write_audio(Sound(np.zeros((9, 5), np.float32), 8000), path / "x.wav"), "9 channels"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(DiffpipeError, match=message):
        make(tmp_path)
    assert list(tmp_path.iterdir()) == []


# Reading


def test_a_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"Frame{number}.png")
    (tmp_path / "notes.txt").write_text("not a frame", encoding="utf-8")
    (tmp_path / ".hidden.png").write_text("not a frame", encoding="utf-8")
    clip = read_video(tmp_path)
    assert [frame.getpixel((0, 0)) for frame in clip.frames] == [(1, 0, 0), (2, 0, 0), (10, 0, 0)]
    assert clip.fps is None


def test_a_gif_by_pillow_is_read_with_its_rate(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (24, 16), colour) for colour in ("red", "green", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:], duration=100)
    clip = read_video(tmp_path / "x.gif")
    assert [frame.getpixel((3, 3)) for frame in clip.frames] == [(255, 0, 0), (0, 128, 0), (0, 0, 255)]
    assert (clip.frames[0].size, clip.fps) == ((24, 16), pytest.approx(10))


# Where a telephone films upright, the file says: turn by 90 degrees clockwise (ISO 14496-12, matrix of tkhd).
TURNS = {
    90: ((0, 1, -1, 0), (0, 2, 1, 3)),  # what is at the top left comes to the top right
    180: ((-1, 0, 0, -1), (3, 2, 1, 0)),
    270: ((0, -1, 1, 0), (1, 3, 0, 2)),
}


@pytest.mark.parametrize("degrees", TURNS)
def test_a_film_that_lies_on_its_side_is_turned_upright(tmp_path: Path, degrees: int) -> None:
    corners = np.zeros((32, 64), np.uint8)
    values = (0, 80, 160, 240)  # top left, top right, bottom left, bottom right
    corners[:16, 32:], corners[16:, :32], corners[16:, 32:] = values[1:]
    path = write_video([Image.fromarray(corners)] * 2, tmp_path / "x.mp4", fps=8)
    (a, b, c, d), _ = TURNS[degrees]
    one = 1 << 16
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    frame = read_video(path, mask=True).frames[0]
    width, height = frame.size
    found = [frame.getpixel((x, y)) for y in (4, height - 5) for x in (4, width - 5)]
    turned = np.rot90(np.array(values).reshape(2, 2), -degrees // 90).ravel()
    assert frame.size == ((64, 32) if degrees == 180 else (32, 64))
    assert np.abs(np.array(found) - turned).max() <= 4


def bad_files(path: Path) -> None:
    (path / "text.txt").write_text("hello\n" * 50, encoding="utf-8")
    (path / "text.mp4").write_text("hello\n" * 50, encoding="utf-8")
    (path / "empty.mp4").write_bytes(b"")
    (path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfilm.mp4\n", encoding="utf-8")
    (path / "list.ffconcat").write_text("ffconcat version 1.0\nfile film.mp4\n", encoding="utf-8")
    (path / "nothing").mkdir()
    write_video(moving(3), path / "film.mp4", fps=8)
    write_audio(tone(), path / "tone.wav")
    (path / "cut.mp4").write_bytes((path / "film.mp4").read_bytes()[:900])
    mixed = path / "mixed"
    mixed.mkdir()
    Image.new("RGB", (8, 8)).save(mixed / "1.png")
    Image.new("RGB", (16, 8)).save(mixed / "2.png")
    broken = path / "broken"
    broken.mkdir()
    (broken / "1.png").write_bytes(b"no picture")
    write_video([Image.new("RGB", (8, 8))] * 2, path / "black.mp4", fps=8)


@pytest.mark.parametrize(
    ("read", "name", "message"),
    [
        (read_video, "text.txt", "--video: cannot read text.txt: it is no video, or it is damaged"),
        (read_video, "text.mp4", "--video: cannot read text.mp4: it is no video, or it is damaged"),
        (read_video, "empty.mp4", "--video: cannot read empty.mp4: it is no video, or it is damaged"),
        (read_video, "cut.mp4", "--video: cannot read cut.mp4: it is no video, or it is damaged"),
        (read_video, "list.m3u8", "--video: cannot read list.m3u8: it is no video, or it is damaged"),
        (read_video, "list.ffconcat", "--video: cannot read list.ffconcat: it is no video, or it is damaged"),
        (read_video, "missing.mp4", "--video: there is no file missing.mp4"),
        (read_video, "tone.wav", "--video: tone.wav has no video stream"),
        (read_video, "nothing", "--video: nothing has no frames"),
        (read_video, "mixed", "--video: mixed has frames of different sizes (8 x 8, 16 x 8)"),
        (read_video, "broken", "--video: cannot read 1.png: it is no picture, or it is damaged"),
        (read_audio, "text.txt", "--video: cannot read text.txt: it is no sound, or it is damaged"),
        (read_audio, "film.mp4", "--video: film.mp4 has no sound"),
        (read_audio, "missing.wav", "--video: there is no file missing.wav"),
        (read_image, "film.mp4", "--video: cannot read film.mp4: it is a video"),
    ],
)
def test_what_cannot_be_read_is_one_line_that_names_the_option(
    tmp_path: Path, read: Callable[..., object], name: str, message: str
) -> None:
    bad_files(tmp_path)
    with pytest.raises(DiffpipeError) as caught:
        read(tmp_path / name, option="--video")
    assert caught.value.message == message
    assert caught.value.hint


def test_a_mask_film_without_white_is_refused_one_with_some_is_not(tmp_path: Path) -> None:
    bad_files(tmp_path)
    with pytest.raises(UsageError, match="--mask is all black"):
        read_video(tmp_path / "black.mp4", mask=True, option="--mask")
    Image.new("L", (8, 8)).save(tmp_path / "nothing" / "1.png")
    Image.new("L", (8, 8), 255).save(tmp_path / "nothing" / "2.png")
    assert len(read_video(tmp_path / "nothing", mask=True).frames) == 2


def test_a_film_too_long_for_memory_is_refused_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffpipe.engine.media.read.MOST_BYTES", 64 * 48 * 3 * 4)
    write_video(moving(9), tmp_path / "x.mp4", fps=8)
    with pytest.raises(UsageError, match=r"x\.mp4 is too long"):
        read_video(tmp_path / "x.mp4")


def test_a_folder_of_pictures_too_many_for_memory_is_refused_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    (tmp_path / "9.png").write_bytes(b"is not read any more")
    monkeypatch.setattr("diffpipe.engine.media.read.MOST_FRAMES", 2)
    with pytest.raises(UsageError, match=r"is too long"):
        read_video(tmp_path)


def test_a_frame_of_too_many_pixels_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffpipe.engine.media.read.MOST_PIXELS", 64 * 48 - 1)
    write_video(moving(2), tmp_path / "x.mp4", fps=8)
    with pytest.raises(UsageError, match=r"--video: x\.mp4 has more than 0 million pixels"):
        read_video(tmp_path / "x.mp4", option="--video")


def test_a_sound_too_long_for_memory_is_refused_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffpipe.engine.media.read.MOST_SOUND", 4 * 1000)
    write_audio(tone(0.5, 8000, 1), tmp_path / "x.wav")
    with pytest.raises(UsageError, match=r"--audio: x\.wav is too long"):
        read_audio(tmp_path / "x.wav", option="--audio")


def test_a_slow_sound_is_not_blown_up() -> None:
    with pytest.raises(UsageError, match="1 samples a second: at 48000 it is too long"):
        resample(Sound(np.zeros((1, 100_000), np.float32), 1), 48_000)
    with pytest.raises(UsageError, match="nothing is left"):
        resample(Sound(np.zeros((1, 100), np.float32), 10**9), 8000)


def test_what_would_run_a_program_is_no_picture(tmp_path: Path) -> None:
    """Pillow hands PostScript to ghostscript."""
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(x) run\n%%EOF\n")
    with pytest.raises(UsageError, match=r"cannot read x\.png: it is PostScript"):
        read_image(tmp_path / "x.png")
    assert not PICTURES_READ & {"EPS", "QOI", "WMF", "FITS", "GRIB", "HDF5", "BUFR", "MPEG"}


@pytest.mark.parametrize("form", ["DDS", "ICNS", "PCX", "QOI", "SGI"])
def test_a_format_that_is_not_read_is_named(tmp_path: Path, form: str) -> None:
    if form == "QOI":  # which Pillow writes from 12 on
        (tmp_path / "x.png").write_bytes(b"qoif" + struct.pack(">IIBB", 1, 1, 3, 0) + bytes(8) + b"\1")
    else:
        Image.new("RGB", (64, 64), "red").save(tmp_path / "x.png", form)
    with pytest.raises(UsageError, match=rf"cannot read x\.png: it is {form}$") as caught:
        read_image(tmp_path / "x.png")
    assert caught.value.hint == "convert it to PNG"


def test_frames_that_a_file_does_not_count_are_not_decoded_to_be_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [Image.new("L", (1, 1), number) for number in range(150)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    seen: list[int] = []
    seek = GifImageFile._seek
    monkeypatch.setattr(GifImageFile, "_seek", lambda self, at, *more: (seen.append(at), seek(self, at, *more))[1])
    notes: list[str] = []
    read_image(tmp_path / "x.gif", note=notes.append)
    assert notes == ["x.gif has several frames: the first is taken"]
    assert max(seen) == 1


def test_what_unpacks_to_too_much_is_told_as_such(tmp_path: Path) -> None:
    packed = zlib.compress(bytes(10_000_000), 9)
    chunk = b"zTXtdiffpipe\0\0" + packed
    path = write_image(moving(1, 8, 8)[0], tmp_path / "x.png")
    data = path.read_bytes()
    path.write_bytes(
        data[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]
    )
    with pytest.raises(UsageError, match=r"cannot read x\.png: what is in it is packed, and too large"):
        read_text(path)


def test_a_file_larger_than_any_picture_is_not_read_whole(tmp_path: Path) -> None:
    with open(tmp_path / "x.webp", "wb") as file:
        file.write(b"RIFF\xff\xff\xff\x7fWEBPVP8X" + bytes(100))
        file.truncate(1 << 33)  # takes no room
    with pytest.raises(UsageError, match=r"cannot read x\.webp: it is larger than a picture can be"):
        read_image(tmp_path / "x.webp")
    with pytest.raises(UsageError, match=r"cannot read x\.webp: it is no"):
        read_text(tmp_path / "x.webp")
    with pytest.raises(UsageError, match=r"cannot read x\.webp: it is no"):
        read_video(tmp_path / "x.webp")


def test_what_pillow_warns_of_is_not_shouted_about(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(moving(1, 8, 8)[0], tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # Pillow warns of more, and refuses twice as many
    assert read_image(tmp_path / "x.png").size == (8, 8)
    assert read_text(tmp_path / "x.png") == {}
    assert list(recwarn) == []


def test_transparency_is_kept_where_it_is_asked_for(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (10, 20, 30, 40)).save(tmp_path / "x.png")
    Image.new("RGB", (4, 4), (10, 20, 30)).save(tmp_path / "y.png")
    found = [read_image(tmp_path / name, mode="RGBA").getpixel((0, 0)) for name in ("x.png", "y.png")]
    assert found == [(10, 20, 30, 40), (10, 20, 30, 255)]
    written = write_image(read_image(tmp_path / "x.png", mode="RGBA"), tmp_path / "z.png")
    assert Image.open(written).getpixel((0, 0)) == (10, 20, 30, 40)


# Text inside


def independent(path: Path) -> dict[str, str]:
    """What other programs find in a finished file."""
    kind = path.suffix[1:]
    if kind == "frames":
        return independent(path / "00001.png")
    if kind == "png":
        return dict(Image.open(path).text)
    if kind in ("jpg", "webp"):
        comment = Image.open(path).getexif().get_ifd(0x8769)[0x9286]
        assert comment[:8] == b"UNICODE\0"
        return {"parameters": comment[8:].decode("utf-16-be")}
    if kind == "gif":
        return json.loads(gif_blocks(path.read_bytes())[1][0])
    with av.open(str(path)) as container:
        found = {key.lower(): value for key, value in container.metadata.items()}
    return json.loads(found["comment"]) if kind == "wav" else found


@pytest.mark.parametrize("kind", [*PICTURES, *FILMS, *SOUNDS])
def test_text_is_read_back_by_us_and_by_others(tmp_path: Path, kind: str) -> None:
    path = write(kind, tmp_path, TEXT)
    assert read_text(path) == TEXT
    found = independent(path)
    assert {key: found[key] for key in TEXT if key in found} == (
        {"parameters": TEXT["parameters"]} if kind in ("jpg", "webp") else TEXT
    )


@pytest.mark.parametrize("kind", [*PICTURES, *FILMS, *SOUNDS])
def test_no_text_leaves_nothing_of_ours(tmp_path: Path, kind: str) -> None:
    for name, text in (("a", {}), ("b", {"parameters": "", "diffpipe": "\0"})):
        (tmp_path / name).mkdir()
        path = write(kind, tmp_path / name, text)
        assert read_text(path) == {}
    whole = b"".join(content(tmp_path / "a").values()).lower()
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert not [word for word in (b"diffpipe", b"parameters", b"lavf6", str(tmp_path).encode()) if word in whole]


def test_a_new_picture_says_nothing_of_the_file_it_came_from(tmp_path: Path) -> None:
    source = Image.new("RGB", (8, 8), "red")
    exif = Image.Exif()
    exif[0x010F] = "SecretCam"
    source.save(tmp_path / "in.jpg", comment=b"SecretNote", exif=exif, xmp=b"<SecretXmp/>")
    picture = read_image(tmp_path / "in.jpg")
    for kind in PICTURES:
        assert b"Secret" not in write_image(picture, tmp_path / f"out.{kind}").read_bytes()


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], 8
    while at < len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        chunks.append((name, data[at + 8 : at + 8 + size]))
        at += size + 12
    return chunks


def test_parameters_are_where_other_image_tools_look(tmp_path: Path) -> None:
    latin, other = "a café\nSteps: 4", "a 猫\nSteps: 4"
    plain = png_chunks(write_image(moving(1)[0], tmp_path / "a.png", text={"parameters": latin}).read_bytes())
    wide = png_chunks(write_image(moving(1)[0], tmp_path / "b.png", text={"parameters": other}).read_bytes())
    assert (b"tEXt", b"parameters\0" + latin.encode("latin-1")) in plain
    assert (b"iTXt", b"parameters\0\0\0\0\0" + other.encode()) in wide
    for kind in ("jpg", "webp"):
        data = write_image(moving(1)[0], tmp_path / f"a.{kind}", text={"parameters": other}).read_bytes()
        assert b"UNICODE\0" + other.encode("utf-16-be") in data


@pytest.mark.parametrize("kind", [*PICTURES, *FILMS, *SOUNDS])
@pytest.mark.parametrize("letter", ["x", "😀", "م", "\n", "<", '"', "é"])
def test_ten_thousand_characters(tmp_path: Path, kind: str, letter: str) -> None:
    text = {"parameters": "a" + letter * 10_000 + "z", "diffpipe": json.dumps(letter * 10_000, ensure_ascii=False)}
    if kind == "jpg" and letter == "<":  # four bytes each as XML: still less than the 64 kB
        assert len(text["diffpipe"]) * 4 < 65_000
    assert read_text(write(kind, tmp_path, text)) == text


def test_text_too_long_for_a_jpeg_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = {"parameters": "ok", "diffpipe": "😀" * 17_000}
    path = write_image(moving(1)[0], tmp_path / "x.jpg", text=text)
    assert read_text(path) == {"parameters": "ok"}
    assert "too long for a JPEG" in caplog.text
    assert Image.open(path).size == (64, 48)
    assert read_text(write_image(moving(1)[0], tmp_path / "x.webp", text=text)) == text


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=80)


@pytest.mark.parametrize("kind", [*PICTURES, *FILMS, *SOUNDS])
@settings(max_examples=30, deadline=None)
@given(parameters=ANY_TEXT, document=ANY_TEXT)
def test_any_text_comes_back_without_what_no_file_holds(kind: str, parameters: str, document: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = read_text(write(kind, Path(folder), {"parameters": parameters, "diffpipe": document}))
    kept = {key: "".join(filter(allowed, value)) for key, value in (("parameters", parameters), ("diffpipe", document))}
    assert found == {key: value for key, value in kept.items() if value}


def allowed(letter: str) -> bool:
    """A character of XML 1.0."""
    number = ord(letter)
    return letter in "\t\n\r" or (number >= 32 and not 0xD800 <= number <= 0xDFFF and number not in (0xFFFE, 0xFFFF))


def test_somebody_elses_files_carry_no_text_of_ours(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8))
    picture.save(tmp_path / "a.gif", comment=b"made by me")
    picture.save(tmp_path / "b.jpg", xmp=b"<broken")
    for encoding in ("foo", "hex", "utf-7"):
        packet = f'<?xml version="1.0" encoding="{encoding}"?><a/>'.encode()
        picture.save(tmp_path / f"b-{encoding}.jpg", xmp=packet)
    picture.save(tmp_path / "c.png")
    picture.save(tmp_path / "d.gif", comment=b'["a", "list"]')
    (tmp_path / "folder").mkdir()
    assert [read_text(path) for path in sorted(tmp_path.iterdir())] == [{}] * 8
    (tmp_path / "e.txt").write_text("hello", encoding="utf-8")
    for name in ("e.txt", "missing.png"):
        with pytest.raises(UsageError, match="cannot read"):
            read_text(tmp_path / name)


def test_a_text_without_a_place_is_a_mistake_in_the_program(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no place"):
        write_image(moving(1)[0], tmp_path / "x.png", text={"prompt": "a cat"})
    assert list(tmp_path.iterdir()) == []
