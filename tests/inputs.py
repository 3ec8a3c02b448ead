"""Small pictures, a video and a sound to give to pipelines, written with Pillow, PyAV and wave alone."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

#: Of every picture and frame, in pixels: multiples of 32, and the smallest that Flux 2 takes is 64 x 64.
WIDTH, HEIGHT = 96, 64
#: Of the video: 8n + 1, as LTX needs.
FRAMES, FPS = 9, 8
#: Of the sound: one second.
RATE = 16_000


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photo.png, mask.png, control.png, layers.png (RGBA), clip.mp4, frames/, masks/ and sound.wav."""
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def write_inputs(folder: Path) -> Path:
    import numpy as np
    from PIL import Image

    frames = [_photo(shift) for shift in range(FRAMES)]
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    middle = Image.fromarray((((x - WIDTH // 2) ** 2 + (y - HEIGHT // 2) ** 2) < 24**2).astype(np.uint8) * 255)
    lines = Image.fromarray((((x + y) % 16) < 2).astype(np.uint8) * 255).convert("RGB")
    layers = frames[0].copy()
    layers.putalpha(middle)
    for name, picture in {"photo": frames[0], "mask": middle, "control": lines, "layers": layers}.items():
        picture.save(folder / f"{name}.png")
    for name, pictures in {"frames": frames, "masks": [middle] * FRAMES}.items():
        (folder / name).mkdir()
        for number, picture in enumerate(pictures):
            picture.save(folder / name / f"{number:03}.png")
    _write_clip(folder / "clip.mp4", frames)
    _write_sound(folder / "sound.wav")
    return folder


def _photo(shift: int) -> Any:
    """Colours that change along both sides and over time, with a light square in them."""
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    colours = np.stack([(x + 4 * shift) % WIDTH * 2, y * 3, (x + y) * 1.5], axis=-1)
    colours[16:32, 24 + 2 * shift : 48 + 2 * shift] = 230
    return Image.fromarray(colours.astype(np.uint8))


def _write_clip(path: Path, frames: list[Any]) -> None:
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=Fraction(FPS))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_image(frame)))
        file.mux(stream.encode())


def _write_sound(path: Path) -> None:
    """A tone of 440 Hz in 16 bits, one channel."""
    import numpy as np

    tone = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE) * 0.5
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((tone * 32767).astype("<i2").tobytes())
