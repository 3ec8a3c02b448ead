"""Reading pictures, masks, video and sound. What cannot be read is a UsageError that names the option."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...core.errors import DiffpipeError, UsageError
from ...memory import machine
from ...storage.disk import of_the_system
from ...storage.opening import open_regular
from .pictures import frames_of, is_animated, missing, read_picture
from .pixels import DIM, Note, as_mask, in_mode
from .timing import steady

if TYPE_CHECKING:
    import numpy as np
    from av import AudioFrame, AudioResampler, VideoFrame, VideoStream
    from av.container import InputContainer
    from numpy.typing import NDArray
    from PIL.Image import Image

PICTURES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jxl", ".jfif"}
)

# FFmpeg's names of the formats that hold their streams themselves. Left out on purpose: playlists (hls, dash, concat),
# which open other files and addresses, and tty, which draws any text file as a video.
CONTAINERS = (
    "mov,matroska,avi,gif,apng,webp,mpeg,mpegts,mpegvideo,m4v,h264,hevc,ivf,flv,asf,ogg,nut,rm,dv,mxf,"
    "wav,w64,aiff,au,caf,flac,mp3,aac,ac3,eac3,amr,ape,wv,tta,tak,opus"
)

# Decoded frames are kept whole; a film longer than this would take the machine's memory before a model is loaded.
MOST_BYTES = 8 * 2**30
SHARE = 0.5  # of the host's memory that frames may take, where that is less
MOST_FRAMES = 100_000  # an hour at 28 a second; each is an object of a kilobyte, however small the picture
MOST_PIXELS = 178_956_970  # of a frame: what Pillow refuses for a picture (twice its MAX_IMAGE_PIXELS)
MOST_SOUND = 2**31  # bytes of decoded sound, 4 a sample: more than an hour of two channels at 48 kHz


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


def _nothing(_text: str) -> None:
    """Where nobody wants to know."""


def read_image(path: Path, *, mask: bool = False, mode: str = "RGB", option: str = "", note: Note = _nothing) -> Image:
    """A picture as PIL RGB or RGBA (masks: L, white is what changes), upright as its EXIF orientation says.

    Transparent parts are laid on white where RGB is wanted; of masks see `pixels.as_mask`. `note` gets what should be
    known of how the file was taken. Raises UsageError if the file is no picture Pillow can read, or a mask without any
    white.
    """
    tell = _named(path, note)
    picture = read_picture(path, option, tell)
    if not mask:
        return in_mode(picture, mode, tell)
    grey = as_mask(picture)
    _check_white([grey], option, tell)
    return grey


def read_video(path: Path, *, mask: bool = False, option: str = "", note: Note = _nothing) -> Clip:
    """The frames of a video file, upright, or of a folder of pictures in natural order (2.png before 10.png); of a mask
    that is one picture, that one.

    A video of a variable frame rate has as many frames at its average rate, each for as long as it is shown. Raises
    UsageError where there is no video stream, no frame, a damaged file, or frames of different sizes.
    """
    tell = _named(path, note)
    if mask and path.suffix.lower() in PICTURES and not is_animated(path):
        return Clip([read_image(path, mask=True, option=option, note=note)])
    once = _Once(tell)
    clip = _folder(path, mask, option, once) if path.is_dir() else _film(path, mask, option, once)
    where = f"{option or 'the video'}: {path.name}"
    if not clip.frames:
        raise UsageError(f"{where} has no frames", "give a video, or a folder of pictures")
    sizes = sorted({frame.size for frame in clip.frames})
    if len(sizes) > 1:
        (a, b), (c, d) = sizes[0], sizes[-1]
        raise UsageError(f"{where} has frames of different sizes ({a} x {b}, {c} x {d})", "make them of one size")
    if mask:
        _check_white(clip.frames, option, tell)
    return clip


def _named(path: Path, note: Note) -> Note:
    """Notes that begin with a file's name."""
    return lambda text: note(f"{path.name} {text}")


class _Once:
    """Passes on each note once: what is true of one frame is true of most."""

    def __init__(self, note: Note) -> None:
        self.note = note
        self.told: set[str] = set()

    def __call__(self, text: str) -> None:
        if text not in self.told:
            self.told.add(text)
            self.note(text)


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
        decoded = _samples(chain(container.decode(stream), [None]), floats, f"{name}: {path.name}")
        parts = [part.to_ndarray() for part in decoded]
        rate = stream.rate
    if not parts:
        raise UsageError(f"{name}: {path.name} has no sound in it", "give a longer file")
    return Sound(np.concatenate(parts, axis=1), rate)


def _samples(frames: Iterable[AudioFrame | None], floats: AudioResampler, where: str) -> Iterator[AudioFrame]:
    """Decoded sound, piece by piece. Raises UsageError where they are more than fit."""
    size = 0
    for frame in frames:
        for part in floats.resample(frame):
            size += part.samples * part.layout.nb_channels * 4
            if size > MOST_SOUND:
                raise UsageError(f"{where} is too long", "cut out the part that is needed")
            yield part


def resample(sound: Sound, rate: int) -> Sound:
    """The same sound at another rate, by FFmpeg's resampler; length changes by rate / sound.rate.

    Raises UsageError where it would be too large.
    """
    import numpy as np
    from av import AudioFrame, AudioResampler

    if rate == sound.rate:
        return sound
    if sound.samples.nbytes * rate > MOST_SOUND * sound.rate:
        raise UsageError(f"the sound has {sound.rate} samples a second: at {rate} it is too long", "resample it first")
    layout = f"{len(sound.samples)}c"  # FFmpeg's name of the usual layout of so many channels
    whole = AudioFrame.from_ndarray(np.ascontiguousarray(sound.samples, np.float32), "fltp", layout)
    whole.sample_rate = sound.rate
    converter = AudioResampler("fltp", layout, rate)
    parts = [part.to_ndarray() for part in (*converter.resample(whole), *converter.resample(None))]
    if not parts:
        raise UsageError(f"of the sound, at {rate} samples a second, nothing is left", "give a longer one")
    return Sound(np.concatenate(parts, axis=1), rate)


@contextmanager
def opened(path: Path, option: str, kind: str) -> Iterator[InputContainer]:
    """An open PyAV container; what FFmpeg cannot open, or decode while it is open, becomes a UsageError."""
    import av

    # The file is open already; whatever it names is not opened: FFmpeg knows no protocol of this name.
    options = {"protocol_whitelist": "none", "format_whitelist": CONTAINERS}
    try:
        stream = open_regular(path)
    except FileNotFoundError as error:
        raise missing(path, option) from error
    except OSError as error:
        raise of_the_system(error) or _unreadable(path, option, kind, error.strerror or str(error)) from error
    try:
        with stream, av.open(stream, "r", options=options, metadata_errors="replace") as container:
            yield container
    except DiffpipeError:
        raise
    except Exception as error:  # FFmpeg's errors, and what its binding makes of damaged files
        limit = None if isinstance(error, OSError) and error.errno == errno.EIO else of_the_system(error)
        raise limit or _unreadable(path, option, kind, f"it is no {kind}, or it is damaged") from error


def _unreadable(path: Path, option: str, kind: str, why: str) -> UsageError:
    problem = f"cannot read {path.name}: {why}"
    hint = "give an MP4, WebM or GIF file, or a folder of pictures" if kind == "video" else f"give a {kind} file"
    return UsageError(f"{option}: {problem}" if option else problem, hint)


def natural(path: Path) -> list[tuple[int, str]]:
    """A sort key by which frame2.png comes before frame10.png."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name.lower())]


def _check_white(masks: Sequence[Image], option: str, note: Note) -> None:
    """Raises UsageError for masks that paint nothing: all black, or the zeros and ones of labels."""
    brightest = max(int(high) for mask in masks if not isinstance(high := mask.getextrema()[1], tuple))
    if brightest <= 1:
        what = "all black" if not brightest else "0 and 1, of 255"
        raise UsageError(f"{option or 'the mask'} is {what}: nothing would be painted", "white is what is painted")
    if brightest < DIM:
        note(f"is nowhere lighter than {brightest} of 255: most pipelines paint nothing that dark")


def _folder(path: Path, mask: bool, option: str, note: Note) -> Clip:
    pictures = (file for file in path.iterdir() if file.suffix.lower() in PICTURES and not file.name.startswith("."))
    read = (read_picture(file, option, note) for file in sorted(pictures, key=natural))
    return Clip([_as(picture, mask, note) for picture in _within(read, f"{option or 'the video'}: {path.name}")])


def _within(pictures: Iterable[Image], where: str) -> Iterator[Image]:
    """The pictures, as long as they fit into memory. Raises UsageError for more."""
    most = min(MOST_BYTES, int((machine.host_memory() or MOST_BYTES / SHARE) * SHARE))
    size = 0
    for number, picture in enumerate(pictures, 1):
        size += picture.width * picture.height * 3
        if size > most or number > MOST_FRAMES:
            raise UsageError(f"{where} is too long", "cut out the part that is needed")
        yield picture


def _as(picture: Image, mask: bool, note: Note) -> Image:
    """A frame as pipelines take it: RGB, of masks L."""
    return as_mask(picture) if mask else in_mode(picture, "RGB", note)


def _film(path: Path, mask: bool, option: str, note: Note) -> Clip:
    """The frames of a file at a constant rate."""
    starts: list[float] = []
    last: float | None = None
    where = f"{option or 'the video'}: {path.name}"

    def pictures() -> Iterator[Image]:
        nonlocal last
        for shown in _animation(path, option) if is_animated(path) else _decoded(path, option):
            starts.append(shown.start)
            last = shown.seconds
            yield shown.picture

    frames = [_as(picture, mask, note) for picture in _within(pictures(), where)]
    found = steady(starts, last)
    if not found.as_filmed and found.rate:
        note(f"has a variable frame rate: taken at its average, {found.rate:.4g} frames a second")
    if found.rest:
        note(f"rests {found.rest:.3g} s longer on its last frame than on the others, which is left out")
    return Clip([frames[number] for number in found.order], found.rate)


class _Shown(NamedTuple):
    """A frame, when it appears, and for how long it is shown (None where the file does not say): seconds."""

    picture: Image
    start: float
    seconds: float | None


def _animation(path: Path, option: str) -> Iterator[_Shown]:
    start = 0.0
    for frame in frames_of(path, option):
        yield _Shown(frame.picture, start, frame.seconds)
        start += frame.seconds


def _decoded(path: Path, option: str) -> Iterator[_Shown]:
    from av.stream import Disposition

    with opened(path, option, "video") as container:
        films = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
        if not films:
            raise UsageError(
                f"{option or 'the video'}: {path.name} has no video stream", "give a video, or a folder of pictures"
            )
        if films[0].width * films[0].height > MOST_PIXELS:
            problem = f"{option or 'the video'}: {path.name} has more than {MOST_PIXELS // 1_000_000} million pixels"
            raise UsageError(problem, "make it smaller first")
        films[0].codec_context.options = {"max_pixels": str(MOST_PIXELS)}  # of frames that say something else
        films[0].thread_type = "AUTO"
        rate = films[0].average_rate or films[0].guessed_rate
        yield from _timed(container, films[0], float(1 / rate) if rate else 0.0)


def _timed(container: InputContainer, stream: VideoStream, usual: float) -> Iterator[_Shown]:
    """The frames of a stream with their times; `usual` seconds after the one before where the file does not say."""
    following = 0.0
    for frame in container.decode(stream):
        start = following if frame.time is None else frame.time
        seconds = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else None
        following = start + (seconds or usual)
        yield _Shown(_upright(frame), start, seconds)


def _upright(frame: VideoFrame) -> Image:
    """A decoded frame as PIL RGB, or RGBA where it can be seen through, turned as the file says: telephones store films
    lying on their side."""
    from av.video.reformatter import Interpolation
    from PIL import Image

    exact = Interpolation.BICUBIC | Interpolation.ACCURATE_RND
    form = "rgba" if any(part.is_alpha for part in frame.format.components) else "rgb24"
    picture = Image.fromarray(frame.to_ndarray(format=form, interpolation=exact))
    return picture.rotate(frame.rotation, expand=True) if frame.rotation else picture
