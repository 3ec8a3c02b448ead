"""Frames and samples into video and audio files through FFmpeg (PyAV): the same bytes for the same content."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, cast

from ...core.errors import DiffpipeError, UsageError
from .read import Sound, resample
from .text import NONE, comment_gif, for_container

if TYPE_CHECKING:
    from av import AudioStream, Packet, VideoFrame, VideoStream
    from av.container import OutputContainer
    from PIL.Image import Image

    Packets: TypeAlias = list[Packet[VideoStream] | Packet[AudioStream]]

log = logging.getLogger("diffpipe.engine")


class Film(NamedTuple):
    """How a video file is encoded: FFmpeg's names, and the smallest step of its sizes."""

    codec: str
    options: dict[str, str]
    sound: str
    step: int


# 4:2:0 is what every browser, telephone and editor plays (H.264 in 4:4:4 plays in few), so an MP4's sizes are even.
# Quality: x264 calls a crf of 17 or 18 visually lossless; 24 is about as good in VP9. Both encoders count threads into
# what they make: a fixed number, and not the machine's, keeps the bytes the same. x264 also picks its code by processor
# unless it is asked not to.
THREADS = 4
FILMS = {
    "mp4": Film("libx264", {"crf": "17", "preset": "medium", "x264-params": "cpu-independent=1"}, "aac", 2),
    "webm": Film(
        "libvpx-vp9", {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "3", "row-mt": "1"}, "libopus", 1
    ),
}
AUDIO = {"wav": "pcm_s16le", "flac": "flac"}

BITEXACT = {"fflags": "+bitexact"}  # FFmpeg writes no version, no time and no random number then
SOUND_BITS = {"aac": 192_000, "libopus": 160_000}  # bits a second: transparent for stereo
GIF_FPS = 50  # browsers play a delay under 2/100 s as 10/100 s


def exact_rate(fps: float) -> Fraction:
    """Frames a second as a fraction: 23.976, 29.97 and 59.94 are the television rates n * 1000 / 1001.

    Raises UsageError unless it is a number above 0 and no more than 1000.
    """
    if not (math.isfinite(fps) and 0 < fps <= 1000):
        raise UsageError(f"{fps} frames a second cannot be written", "give a number above 0, such as 24")
    television = Fraction(math.ceil(fps) * 1000, 1001)
    return television if abs(television - Fraction(fps)) < 0.005 else Fraction(fps).limit_denominator(1000)


def encode_film(
    pictures: Sequence[Image], file: Path, kind: str, rate: Fraction, sound: Sound | None, text: Mapping[str, str]
) -> None:
    film = FILMS[kind]
    movflags = {"movflags": "+faststart+use_metadata_tags"} if kind == "mp4" else {}
    with _container(file, kind, for_container(kind, text), movflags) as container:
        packets = _video_packets(container, film, pictures, rate)
        if sound is not None:
            packets += _sound_packets(container, film.sound, sound)
        # In the order of time, so that a player finds both streams wherever it starts.
        container.mux(sorted(packets, key=lambda packet: (packet.dts or 0) * packet.time_base))


def _video_packets(container: OutputContainer, film: Film, pictures: Sequence[Image], rate: Fraction) -> Packets:
    stream = cast("VideoStream", container.add_stream(film.codec, rate=rate, options=film.options))
    coded = stream.codec_context
    coded.width, coded.height = (side + -side % film.step for side in pictures[0].size)
    coded.pix_fmt, coded.thread_count = "yuv420p", THREADS
    # Without these marks a player guesses the colours by the height: 1 is BT.709, and the range of television.
    coded.colorspace = coded.color_primaries = coded.color_trc = coded.color_range = 1
    packets: Packets = []
    for number, picture in enumerate(pictures):
        frame = _yuv(picture, film.step)
        frame.pts, frame.time_base = number, 1 / rate
        packets += stream.encode(frame)
    return [*packets, *stream.encode(None)]


def _yuv(picture: Image, step: int) -> VideoFrame:
    """A picture as a BT.709 yuv420p frame whose sizes are multiples of `step`, its last row and column repeated."""
    import numpy as np
    from av import VideoFrame
    from av.video.reformatter import ColorRange, Colorspace, Interpolation

    values = np.asarray(picture.convert("RGB"))
    height, width = values.shape[:2]
    whole = np.pad(values, ((0, -height % step), (0, -width % step), (0, 0)), mode="edge")
    return VideoFrame.from_ndarray(whole, format="rgb24").reformat(
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT,
    )


def _sound_packets(container: OutputContainer, codec: str, sound: Sound) -> Packets:
    from av import AudioFrame, Codec

    rates = Codec(codec, "w").audio_rates
    if rates and sound.rate not in rates:
        sound = resample(sound, 48_000)
    layout = f"{len(sound.samples)}c"
    stream = cast("AudioStream", container.add_stream(codec, rate=sound.rate, layout=layout))
    if codec in SOUND_BITS:
        stream.bit_rate = SOUND_BITS[codec]
    whole = AudioFrame.from_ndarray(sound.samples, "fltp", layout)
    whole.sample_rate, whole.pts, whole.time_base = sound.rate, 0, Fraction(1, sound.rate)
    return [*stream.encode(whole), *stream.encode(None)]


def encode_sound(sound: Sound, file: Path, kind: str, text: Mapping[str, str]) -> None:
    with _container(file, kind, for_container(kind, text)) as container:
        container.mux(_sound_packets(container, AUDIO[kind], sound))


def encode_gif(pictures: Sequence[Image], file: Path, rate: Fraction, text: Mapping[str, str]) -> None:
    """An endless GIF with one palette for all frames. Delays are whole 1/100 s and add up to the true time."""
    if rate > GIF_FPS:
        log.warning("a GIF shows %s frames a second at most: it will be slower than %s", GIF_FPS, float(rate))
        rate = Fraction(GIF_FPS)
    times = [round(number * 100 / rate) for number in range(len(pictures) + 1)]
    with _container(file, "gif", {}, {"loop": "0", "final_delay": str(times[-1] - times[-2])}) as container:
        stream = container.add_stream("gif", rate=100)
        coded = stream.codec_context
        (coded.width, coded.height), coded.pix_fmt = pictures[0].size, "pal8"
        for number, frame in enumerate(_paletted(pictures)):
            frame.pts, frame.time_base = times[number], Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    comment_gif(file, text)


def _paletted(pictures: Sequence[Image]) -> Iterator[VideoFrame]:
    """The pictures in the 256 colours that suit all of them, by FFmpeg's palettegen and paletteuse."""
    import av
    import numpy as np

    graph = av.filter.Graph()
    width, height = pictures[0].size
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=Fraction(1, 100))
    split, palette, used, sink = (graph.add(name) for name in ("split", "palettegen", "paletteuse", "buffersink"))
    for one, other, output, pad in (
        (source, split, 0, 0),
        (split, palette, 0, 0),
        (split, used, 1, 0),
        (palette, used, 0, 1),
    ):
        one.link_to(other, output, pad)
    used.link_to(sink)
    graph.configure()
    for number, picture in enumerate(pictures):
        frame = av.VideoFrame.from_ndarray(np.asarray(picture.convert("RGB")), format="rgb24")
        frame.pts, frame.time_base = number, Fraction(1, 100)
        source.push(frame)
    source.push(None)
    for _ in pictures:
        yield cast("VideoFrame", sink.pull())


@contextmanager
def _container(
    file: Path, kind: str, metadata: Mapping[str, str], options: Mapping[str, str] = NONE
) -> Iterator[OutputContainer]:
    """A PyAV container to write into. Raises DiffpipeError where an encoder fails, OSError where the disk does."""
    import av

    try:
        with av.open(str(file), "w", format=kind, container_options={**BITEXACT, **options}) as container:
            container.metadata.update(metadata)
            yield container
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        raise DiffpipeError(f"cannot encode .{kind}: {error.strerror}", "choose another --format") from error
