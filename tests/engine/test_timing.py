"""Videos of a variable frame rate, and animated pictures, by the times at which their frames are shown."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from PIL import Image, features

from diffpipe.core.flag import Flag
from diffpipe.engine.media import read_video
from diffpipe.engine.media.timing import steady
from diffpipe.engine.running.media_arguments import read_media

LEVELS = (20, 70, 120, 170, 220)  # of red, a frame each


def picture(level: int, alpha: int = 255) -> Any:
    return Image.new("RGBA", (32, 32), (level, 0, 0, alpha))


def film(path: Path, milliseconds: list[int]) -> Path:
    """A video whose frames are shown so long, as telephones and screen recorders write it; by PyAV alone."""
    codec = {"mp4": "libx264", "mkv": "libx264", "webm": "libvpx-vp9"}[path.suffix[1:]]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        packets, start = [], 0
        for level, time in zip(LEVELS, milliseconds, strict=False):
            frame = av.VideoFrame.from_ndarray(np.asarray(picture(level).convert("RGB")), format="rgb24")
            frame.pts, frame.time_base, frame.duration = start, Fraction(1, 1000), time
            packets += stream.encode(frame)
            start += time
        packets += stream.encode(None)
        starts = [0, *np.cumsum(milliseconds)]
        for packet in packets:
            packet.duration = milliseconds[starts.index(packet.pts)]
            container.mux(packet)
    return path


def animation(path: Path, milliseconds: list[int]) -> Path:
    frames = [picture(level).convert("RGB") for level, _ in zip(LEVELS, milliseconds, strict=False)]
    lossless = {"lossless": True} if path.suffix == ".webp" else {"quality": 100} if path.suffix == ".avif" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=milliseconds, loop=0, **lossless)
    return path


def seen(clip: Any) -> list[int]:
    """Which of LEVELS each frame is."""
    reds = [int(np.asarray(frame)[16, 16, 0]) for frame in clip.frames]
    return [min(range(len(LEVELS)), key=lambda n: abs(LEVELS[n] - red)) for red in reds]


def by_the_middle(milliseconds: list[int]) -> list[int]:
    """The frame that is shown in the middle of each of n equal parts, by the cumulated times."""
    ends = np.cumsum(milliseconds)
    middles = (np.arange(len(milliseconds)) + 0.5) * ends[-1] / len(milliseconds)
    return [int(np.searchsorted(ends, middle, side="right")) for middle in middles]


VARIABLE = [100, 100, 800, 100, 100]
STEADY = [100] * 5


@pytest.mark.parametrize("kind", ["mp4", "mkv", "webm"])
@pytest.mark.parametrize("times", [VARIABLE, [40, 40, 640, 40, 40], STEADY, [33, 34, 33, 33, 34]])
def test_a_film_is_taken_by_time(tmp_path: Path, kind: str, times: list[int]) -> None:
    path = film(tmp_path / f"x.{kind}", times)
    notes: list[str] = []
    clip = read_video(path, note=notes.append)
    assert seen(clip) == by_the_middle(times)
    assert clip.fps == pytest.approx(5000 / sum(times), rel=0.02)
    varies = by_the_middle(times) != [0, 1, 2, 3, 4]
    assert notes == (
        [f"x.{kind} has a variable frame rate: taken at its average, {clip.fps:.4g} frames a second"] * varies
    )


def test_a_last_frame_that_a_writer_cuts_short_makes_no_variable_rate(tmp_path: Path) -> None:
    assert seen(read_video(film(tmp_path / "x.mp4", [100, 100, 100, 100, 1]))) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "avif"])
@pytest.mark.parametrize("times", [VARIABLE, [50, 50, 600, 50, 50], STEADY])
def test_an_animated_picture_is_a_video_of_all_its_frames_by_their_times(
    tmp_path: Path, kind: str, times: list[int]
) -> None:
    if kind == "avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    clip = read_video(animation(tmp_path / f"x.{kind}", times))
    assert seen(clip) == by_the_middle(times)
    assert clip.fps == pytest.approx(5000 / sum(times))


@pytest.mark.parametrize("kind", ["gif", "webp", "mkv"])
def test_a_rest_at_the_end_takes_no_frame_away(tmp_path: Path, kind: str) -> None:
    write = film if kind == "mkv" else animation
    notes: list[str] = []
    clip = read_video(write(tmp_path / f"x.{kind}", [100, 100, 100, 100, 2000]), note=notes.append)
    assert (seen(clip), clip.fps) == ([0, 1, 2, 3, 4], pytest.approx(10, rel=0.01))
    assert notes == [f"x.{kind} rests 1.9 s longer on its last frame than on the others, which is left out"]


def test_a_frame_that_is_long_is_there_as_often_as_it_is_seen(tmp_path: Path) -> None:
    assert by_the_middle(VARIABLE) == [1, 2, 2, 2, 3]  # 0.12, 0.36, 0.6, 0.84 and 1.08 s
    flags = {"video": Flag("video", "video")}
    notes: list[str] = []
    read = read_media(flags, {"video": str(film(tmp_path / "x.mp4", VARIABLE))}, note=notes.append)
    assert len(read["video"]) == 5
    assert notes == ["--video: x.mp4 has a variable frame rate: taken at its average, 4.167 frames a second"]


def test_transparent_frames_are_laid_on_white_and_masks_on_black(tmp_path: Path) -> None:
    frames = [picture(255, alpha) for alpha in (0, 255)]
    frames[0].save(tmp_path / "x.webp", save_all=True, append_images=frames[1:], duration=100, lossless=True)
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(frames):
        frame.save(tmp_path / "frames" / f"{number}.png")
    for path in (tmp_path / "x.webp", tmp_path / "frames"):
        notes: list[str] = []
        clip = read_video(path, note=notes.append)
        assert [frame.getpixel((3, 3)) for frame in clip.frames] == [(255, 255, 255), (255, 0, 0)]
        assert notes == [f"{path.name} is transparent in places: laid on white"]
        masks = read_video(path, mask=True)
        assert [mask.getpixel((3, 3)) for mask in masks.frames] == [0, 76]  # the grey of pure red (ITU-R BT.601)


def test_a_gif_with_a_hole_is_laid_on_white(tmp_path: Path) -> None:
    frames = []
    for level in (10, 200):
        frame = Image.new("P", (16, 16), 1)
        frame.putpalette([0, 0, 0, level, level, level])
        frame.paste(0, (0, 0, 8, 16))
        frames.append(frame)
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:], duration=80, transparency=0, disposal=2)
    clip = read_video(tmp_path / "x.gif")
    assert [(one.getpixel((2, 2)), one.getpixel((12, 2))) for one in clip.frames] == [
        ((255,) * 3, (10,) * 3), ((255,) * 3, (200,) * 3)
    ]  # fmt: skip


@given(some.lists(some.floats(0.001, 2.0), min_size=1, max_size=30))
def test_a_film_becomes_as_many_frames_in_order_at_its_average_rate(times: list[float]) -> None:
    starts = [0.0, *np.cumsum(times)[:-1]]
    found = steady(starts, times[-1])
    assert len(found.order) == len(times)
    assert found.order == sorted(found.order)
    if not found.as_filmed or len(times) < 3:  # else how long the last one stays says nothing
        assert found.rate == pytest.approx(len(times) / sum(times))


@given(some.integers(1, 40), some.floats(5, 60), some.data())
def test_times_rounded_to_ticks_are_no_variable_rate(count: int, rate: float, data: Any) -> None:
    tick = data.draw(some.sampled_from([1 / 1000, 1 / 100, 1 / 90_000]))
    starts = [round(number / rate / tick) * tick for number in range(count)]
    assert steady(starts, None).as_filmed
    assert steady([start + 3.2 for start in starts], 1 / rate).as_filmed


@pytest.mark.parametrize("starts", [[], [0.0], [0.0, 0.0, 0.0]])
def test_without_times_every_frame_is_taken(starts: list[float]) -> None:
    found = steady(starts, None)
    assert (found.as_filmed, found.rate) == (True, None)
