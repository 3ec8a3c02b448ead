"""What a call made: pictures, videos and sounds, each to become a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from ...core.canonical import JsonObject
from ...core.errors import DiffpipeError
from ...core.flag import FRAME_RATES, Arguments, OutputKind
from ...core.request import Request
from .. import media
from ..classes import outputs

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from diffusers.utils import BaseOutput
    from PIL.Image import Image

DEFAULT_FPS = 10.0  # diffusers' export_to_video


@dataclass(frozen=True)
class PictureResult:
    """A picture. `role`: "mask" for one that comes beside the main results. `flagged`: what a checker says of it.
    `drawn`: what the pipeline drew, where the source's own pixels were put into it."""

    picture: Image
    role: str = ""
    flagged: str = ""
    drawn: Image | None = None
    kind: ClassVar[OutputKind] = "image"

    def write(self, path: Path, *, overwrite: bool, text: Mapping[str, str]) -> Path:
        return media.write_image(self.picture, path, overwrite=overwrite, text=text)

    def details(self) -> JsonObject:
        size: JsonObject = {"width": self.picture.width, "height": self.picture.height}
        return {**size, "role": self.role} if self.role else size


@dataclass(frozen=True)
class VideoResult:
    """A video's frames, one or more, and its sound. `flagged`: what a checker says of it."""

    frames: Sequence[Image]
    fps: float
    sound: media.Sound | None = None
    flagged: str = ""
    role: ClassVar[str] = ""
    kind: ClassVar[OutputKind] = "video"

    def write(self, path: Path, *, overwrite: bool, text: Mapping[str, str]) -> Path:
        return media.write_video(self.frames, path, fps=self.fps, sound=self.sound, overwrite=overwrite, text=text)

    def details(self) -> JsonObject:
        first, count = self.frames[0], len(self.frames)
        size: JsonObject = {"width": first.width, "height": first.height, "frames": count, "fps": self.fps}
        return size | {"duration": round(count / self.fps, 3)} | (_of_sound(self.sound) if self.sound else {})


@dataclass(frozen=True)
class SoundResult:
    """A sound by itself."""

    sound: media.Sound
    role: ClassVar[str] = ""
    flagged: ClassVar[str] = ""
    kind: ClassVar[OutputKind] = "audio"

    def write(self, path: Path, *, overwrite: bool, text: Mapping[str, str]) -> Path:
        return media.write_audio(self.sound, path, overwrite=overwrite, text=text)

    def details(self) -> JsonObject:
        return {"duration": round(self.sound.samples.shape[1] / self.sound.rate, 3)} | _of_sound(self.sound)


def _of_sound(sound: media.Sound) -> JsonObject:
    return {"rate": sound.rate, "channels": sound.samples.shape[0]}


# Each has what --json says of it as `details`: pixels, frames and frames a second, seconds and samples a second.
Result: TypeAlias = PictureResult | VideoResult | SoundResult


def results_of(
    pipe: DiffusionPipeline, output: BaseOutput, kind: OutputKind, fps: float, arguments: Arguments
) -> list[Result]:
    """Everything a call made, the main results first. Raises DiffpipeError where there is nothing."""
    if kind == "audio":
        return [SoundResult(sound) for sound in outputs.sound_of(pipe, output)]
    if kind == "video":
        videos, sounds = outputs.frames_of(output), outputs.sound_of(pipe, output)
        flags = outputs.flags_of(output, len(videos))
        with_sounds = zip_longest(videos, sounds[: len(videos)], flags)
        return [VideoResult(frames, fps, sound, flag) for frames, sound, flag in with_sounds]
    drawn = outputs.images_of(pipe, output)
    flags = outputs.flags_of(output, len(drawn))
    # A picture that a checker took away has nothing of the source in it either.
    pictures = [one if flag else keep_unmasked(one, arguments) for one, flag in zip(drawn, flags, strict=True)]
    masks = getattr(output, "mask_image", None) or []
    made = zip(pictures, flags, drawn, strict=True)
    main = [PictureResult(picture, "", flag, None if one is picture else one) for picture, flag, one in made]
    return [*main, *(PictureResult(mask, role="mask") for mask in masks)]


def frame_rate(request: Request, arguments: Arguments, own: float | None) -> float:
    """Frames a second of a video: what was asked for, else what the call was given, else the pipeline's own."""
    rates = [request.fps, *(arguments.get(name) for name in FRAME_RATES), own]
    return float(next((rate for rate in rates if rate), DEFAULT_FPS))


def keep_unmasked(picture: Image, arguments: Arguments) -> Image:
    """An inpainted picture with the source's own pixels where the mask is black.

    Pipelines decode the whole picture anew, so what was not to change comes back slightly blurred.
    """
    from PIL import Image

    source, mask = arguments.get("image"), arguments.get("mask_image")
    if not isinstance(source, Image.Image) or not isinstance(mask, Image.Image):
        return picture
    size = picture.size
    return Image.composite(picture.convert("RGB"), source.resize(size, Image.Resampling.LANCZOS), mask.resize(size))


def shared(results: Sequence[Result], requests: int) -> list[list[Result]]:
    """The results of each of so many requests: all of them where there is one request, else one each.

    Raises DiffpipeError where that does not come out even.
    """
    shares = [list(results)] if requests == 1 else [[result] for result in results]
    if len(shares) != requests:
        raise DiffpipeError(f"{requests} prompts made {len(results)} results", "leave --batch-size out")
    return shares
