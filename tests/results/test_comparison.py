"""What differs between a file and the one made again, and when both count as the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from documents import SHA, made

from diffpipe.engine import media
from diffpipe.engine.running import compare
from diffpipe.results.comparison import EQUAL, changes, differences, in_short, verdict
from diffpipe.results.document import Document


def test_what_differs_is_told_by_its_path() -> None:
    recorded = {"a": {"b": 1, "f": SHA}, "c": [{"d": "x"}], "e": 1}
    found = {"a": {"b": 2, "f": SHA.replace("1", "2")}, "c": [{"d": "y"}]}
    assert list(differences(recorded, found)) == [
        "a.b: 1 then, 2 now", "a.f is another file", "c.0.d: x then, y now", "e: 1 then, nothing now"
    ]  # fmt: skip
    assert list(differences(recorded, recorded)) == []


def test_verdicts() -> None:
    inf = float("inf")
    assert [verdict(True, {})[0], *(verdict(False, one)[0] for one in (
        {"picture": inf}, {"picture": 40.0}, {"picture": 39.9}, {"picture": None}, {"frames": 50.0, "sound": 59.0},
        {"frames": 50.0, "sound": None}, {"sound": 60.0},
    ))] == [True, True, True, False, False, False, False, True]  # fmt: skip
    assert verdict(False, {"picture": 45.25}) == (True, "visually equal, picture PSNR 45.2 dB")
    assert verdict(False, {"sound": 70.0}) == (True, "audibly equal, sound PSNR 70.0 dB")
    assert verdict(False, {"frames": 20.0, "sound": inf})[1] == "differs, frames PSNR 20.0 dB, sound PSNR inf dB"
    assert set(EQUAL) == {"picture", "frames", "sound"}


def test_a_batch_can_explain_a_difference() -> None:
    found = made({"prompt": "x"})
    assert changes(found, found) == []
    grouped = Document.from_json({**found.json, "batch_size": 4})
    assert changes(grouped, found) == ["it was made up to 4 in a call, and now alone"]
    elsewhere = Document.from_json({**found.json, "device": "cuda: X"})
    assert changes(elsewhere, found) == ["device: cuda: X then, cpu: AVX2 now"]


def test_psnr_of_pictures_videos_and_sounds(tmp_path: Path) -> None:
    import math

    import numpy as np
    from PIL import Image

    dark, light = (Image.new("RGB", (16, 16), (level,) * 3) for level in (100, 110))
    clear = Image.new("RGBA", (16, 16), (100, 100, 100, 128))
    for name, picture in {"dark": dark, "light": light, "clear": clear, "small": dark.resize((8, 8))}.items():
        picture.save(tmp_path / f"{name}.png")
    tone = np.sin(np.arange(1600, dtype=np.float32) / 10)[None] / 2
    media.write_audio(media.Sound(tone, 16000), tmp_path / "tone.wav")
    media.write_audio(media.Sound(tone + np.float32(0.125), 16000), tmp_path / "up.flac")
    media.write_video([dark] * 3, tmp_path / "dark.frames", fps=8)
    media.write_video([dark, dark, light], tmp_path / "light.frames", fps=8)
    media.write_video([dark] * 2, tmp_path / "short.frames", fps=8)

    def of(one: str, other: str, kind: Any) -> dict[str, float | None]:
        return compare.measured(tmp_path / one, tmp_path / other, kind)

    tenth = 20 * math.log10(255 / 10)
    assert of("dark.png", "light.png", "image") == {"picture": pytest.approx(tenth)}
    assert of("dark.png", "dark.png", "image") == {"picture": math.inf}
    assert of("dark.png", "clear.png", "image") == {"picture": None}
    assert of("dark.png", "small.png", "image") == {"picture": None}
    assert of("tone.wav", "up.flac", "audio") == {"sound": pytest.approx(20 * math.log10(8), abs=0.01)}
    assert of("dark.frames", "light.frames", "video") == {"frames": pytest.approx(tenth + 10 * math.log10(3))}
    assert of("dark.frames", "short.frames", "video") == {"frames": None}
    assert compare.identical(tmp_path / "dark.frames", tmp_path / "dark.frames")
    assert not compare.identical(tmp_path / "dark.frames", tmp_path / "light.frames")
    assert not compare.identical(tmp_path / "dark.frames", tmp_path / "short.frames")
    assert not compare.identical(tmp_path / "dark.png", tmp_path / "light.png")


def test_many_differences_are_in_short() -> None:
    assert in_short(map(str, range(7))) == "0; 1; 2; 3; 4; and 2 more"
