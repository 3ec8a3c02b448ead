"""Reading pictures, masks, video and sound. What cannot be read is a UsageError that names the option."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from av import VideoFrame
    from av.container import InputContainer
    from numpy.typing import NDArray
    from PIL.Image import Image

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})

# FFmpeg's names of the formats that hold their streams themselves. Left out on purpose: playlists (hls, dash, concat),
# which open other files and addresses, and tty, which draws any text file as a video.
CONTAINERS = (
    "mov,matroska,avi,gif,apng,webp,mpeg,mpegts,mpegvideo,m4v,h264,hevc,ivf,flv,asf,ogg,nut,rm,dv,mxf,"
    "wav,w64,aiff,au,caf,flac,mp3,aac,ac3,eac3,amr,ape,wv,tta,tak,opus"
)

# Decoded frames are kept whole; a film longer than this would take the machine's memory before a model is loaded.
MOST_BYTES = 8 * 2**30


@dataclass(frozen=True)
class Clip:
    """Frames in order, PIL pictures of one size (RGB; masks: L), and frames a second where the file says so."""

    frames: list[Image]
    fps: float | None = None


@dataclass(frozen=True)
class Sound:
    """`samples`: a float32 array (channels, samples), full scale -1 to 1; `rate`: samples a second."""

    samples: NDArray[np.float32]
    rate: int


def read_image(path: Path, *, mask: bool = False, mode: str = "RGB", option: str = "") -> Image:
    """A picture as PIL RGB or RGBA (masks: L, white is what changes), upright as its EXIF orientation says.

    Raises UsageError if the file is no picture Pillow can read, or a mask without any white.
    """
    picture = _picture(path, "L" if mask else mode, option)
    if mask:
        _check_white([picture], option)
    return picture


def read_video(path: Path, *, mask: bool = False, option: str = "") -> Clip:
    """The frames of a video file, upright, or of a folder of pictures in natural order (2.png before 10.png); of a mask
    that is one picture, that one.

    Raises UsageError where there is no video stream, no frame, a damaged file, or frames of different sizes.
    """
    mode = "L" if mask else "RGB"
    if mask and path.suffix.lower() in PICTURES:
        return Clip([read_image(path, mask=True, option=option)])
    clip = _folder(path, mode, option) if path.is_dir() else _film(path, mode, option)
    where = f"{option or 'the video'}: {path.name}"
    if not clip.frames:
        raise UsageError(f"{where} has no frames", "give a video, or a folder of pictures")
    sizes = sorted({frame.size for frame in clip.frames})
    if len(sizes) > 1:
        (a, b), (c, d) = sizes[0], sizes[-1]
        raise UsageError(f"{where} has frames of different sizes ({a} x {b}, {c} x {d})", "make them of one size")
    if mask:
        _check_white(clip.frames, option)
    return clip


def read_audio(path: Path, *, option: str = "") -> Sound:
    """The first sound of an audio or video file. Raises UsageError where there is none, or the file is damaged."""
    import numpy as np
    from av import AudioResampler

    name = option or "the sound"
    with opened(path, option, "sound") as container:
        if not container.streams.audio:
            raise UsageError(f"{name}: {path.name} has no sound", "give a WAV, FLAC, MP3 or another audio file")
        stream = container.streams.audio[0]
        floats = AudioResampler(format="fltp")
        parts = [part.to_ndarray() for frame in (*container.decode(stream), None) for part in floats.resample(frame)]
        rate = stream.rate
    if not parts:
        raise UsageError(f"{name}: {path.name} has no sound in it", "give a longer file")
    return Sound(np.concatenate(parts, axis=1), rate)


def resample(sound: Sound, rate: int) -> Sound:
    """The same sound at another rate, by FFmpeg's resampler; length changes by rate / sound.rate."""
    import numpy as np
    from av import AudioFrame, AudioResampler

    if rate == sound.rate:
        return sound
    layout = f"{len(sound.samples)}c"  # FFmpeg's name of the usual layout of so many channels
    whole = AudioFrame.from_ndarray(np.ascontiguousarray(sound.samples, np.float32), "fltp", layout)
    whole.sample_rate = sound.rate
    converter = AudioResampler("fltp", layout, rate)
    parts = [part.to_ndarray() for part in (*converter.resample(whole), *converter.resample(None))]
    return Sound(np.concatenate(parts, axis=1), rate)


@contextmanager
def opened(path: Path, option: str, kind: str) -> Iterator[InputContainer]:
    """An open PyAV container; what FFmpeg cannot open, or decode while it is open, becomes a UsageError."""
    import av

    options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
    try:
        with av.open(f"file:{path}", options=options, metadata_errors="replace") as container:
            yield container
    except FileNotFoundError as error:
        raise missing(path, option) from error
    except av.FFmpegError as error:
        system = error.strerror if isinstance(error, OSError) else None
        problem = f"cannot read {path.name}: {system or f'it is no {kind}, or it is damaged'}"
        raise UsageError(
            f"{option}: {problem}" if option else problem,
            "give an MP4, WebM or GIF file, or a folder of pictures" if kind == "video" else f"give a {kind} file",
        ) from error


def missing(path: Path, option: str) -> NotFoundError:
    """That there is no such file, in the words of every option that takes one."""
    problem = f"there is no file {path.name}"
    return NotFoundError(f"{option}: {problem}" if option else problem, "check the path")


def natural(path: Path) -> list[tuple[int, str]]:
    """A sort key by which frame2.png comes before frame10.png."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name.lower())]


def _picture(path: Path, mode: str, option: str) -> Image:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            opened.load()
            return eight_bit(ImageOps.exif_transpose(opened) or opened).convert(mode)
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise UsageError(
            f"{option or 'the picture'}: {path.name} has more than {most} million pixels", "make it smaller first"
        ) from error
    except FileNotFoundError as error:
        raise missing(path, option) from error
    except (OSError, SyntaxError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no picture, or it is damaged"
        raise UsageError(
            f"{option or 'the picture'}: cannot read {path.name}: {reason}", "give a PNG, JPEG or WebP file"
        ) from error


def eight_bit(image: Image) -> Image:
    """A picture of 16 or 32 bits a channel scaled to 8 (Pillow would clip it); any other as it is."""
    if not image.mode.startswith(("I", "F")):
        return image
    import numpy as np
    from PIL import Image

    values = np.asarray(image, dtype=np.float64)
    high = 1.0 if image.mode == "F" and values.max(initial=0) <= 1 else 65535.0
    return Image.fromarray((values.clip(0, high) * (255 / high)).round().astype(np.uint8))


def _check_white(masks: Sequence[Image], option: str) -> None:
    if all(mask.getbbox() is None for mask in masks):
        raise UsageError(f"{option or 'the mask'} is all black: nothing would be painted", "white is what is painted")


def _folder(path: Path, mode: str, option: str) -> Clip:
    pictures = (file for file in path.iterdir() if file.suffix.lower() in PICTURES and not file.name.startswith("."))
    return Clip([_picture(file, mode, option) for file in sorted(pictures, key=natural)])


def _film(path: Path, mode: str, option: str) -> Clip:
    from av.stream import Disposition

    with opened(path, option, "video") as container:
        films = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
        if not films:
            raise UsageError(
                f"{option or 'the video'}: {path.name} has no video stream", "give a video, or a folder of pictures"
            )
        films[0].thread_type = "AUTO"
        frames: list[Image] = []
        for frame in container.decode(films[0]):
            frames.append(_upright(frame).convert(mode))
            if len(frames) * frame.width * frame.height * 3 > MOST_BYTES:
                raise UsageError(f"{option or 'the video'}: {path.name} is too long", "cut out the part that is needed")
        rate = films[0].average_rate or films[0].guessed_rate
    return Clip(frames, float(rate) if rate else None)


def _upright(frame: VideoFrame) -> Image:
    """A decoded frame as PIL RGB, turned as the file says: telephones store films lying on their side."""
    from av.video.reformatter import Interpolation
    from PIL import Image

    exact = Interpolation.BICUBIC | Interpolation.ACCURATE_RND
    picture = Image.fromarray(frame.to_ndarray(format="rgb24", interpolation=exact))
    return picture.rotate(frame.rotation, expand=True) if frame.rotation else picture
