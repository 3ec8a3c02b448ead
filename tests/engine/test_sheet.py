"""Contact sheets: every kind of file, captions of any text, pages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Warm
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFont

from diffpipe.batch.items import Batch
from diffpipe.batch.output_paths import Outputs
from diffpipe.cli import previews
from diffpipe.core.flag import Flag
from diffpipe.core.request import Artifact, Request
from diffpipe.engine import media
from diffpipe.engine.running import sheet


def artifact(path: Path, kind: str = "image") -> Artifact:
    return Artifact(str(path), 1, 0, kind, 0.0)  # type: ignore[arg-type]


def picture(path: Path, colour: str, size: tuple[int, int] = (128, 128)) -> Artifact:
    return artifact(media.write_image(Image.new("RGB", size, colour), path))


def test_pictures_stand_in_rows_with_captions_below(tmp_path: Path) -> None:
    made = sheet.Sheet(tmp_path / "sheet.png")
    colours = ["red", "lime", "blue", "black", "cyan"]
    for colour in colours:
        made.add([picture(tmp_path / f"{colour}.png", colour)], f"a {colour} square\nseed 1")
    made.write()
    with Image.open(tmp_path / "sheet.png") as page:
        found = page.convert("RGB")
    middles = [(12 + at % 3 * 172 + 80, 12 + at // 3 * 212 + 64) for at in range(5)]
    assert [found.getpixel(at) for at in middles] == [Image.new("RGB", (1, 1), c).getpixel((0, 0)) for c in colours]
    below = found.crop((12, 12 + 132, 172, 12 + 200)).convert("L")
    assert below.getextrema()[0] < 60  # the caption's ink
    assert found.crop((360, 230, 528, 420)).getcolors() == [(168 * 190, (255, 255, 255))]  # no sixth picture


def test_videos_are_shown_by_a_still_and_sounds_by_their_waveform(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "lime", "blue")]
    for name in ("v.mp4", "v.webm", "v.gif", "v"):
        path = media.write_video(frames, tmp_path / name, fps=5)
        red, green, blue = sheet.thumbnail(path, "video", 100).getpixel((30, 20))
        assert green > 200
        assert max(red, blue) < 60
    samples = np.concatenate([np.zeros(800), np.tile([1.0, -1.0], 400)]).astype(np.float32)[None]
    sound = media.write_audio(media.Sound(samples, 8000), tmp_path / "s.wav")
    wave = sheet.thumbnail(sound, "audio", 200)
    drawn = [sum(wave.getpixel((x, y)) == (40, 90, 160) for y in range(100)) for x in (50, 150)]
    assert wave.size == (200, 100)
    assert drawn[0] <= 2
    assert drawn[1] >= 98


def test_more_than_a_page_goes_on_in_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "MOST", 4)
    made = sheet.Sheet(tmp_path / "sheet.jpg")
    small = picture(tmp_path / "a.png", "red", (8, 8))
    for _ in range(9):
        made.add([small], "x\ny")
        assert len(made._cells) < 4
    made.write()
    assert sorted(path.name for path in tmp_path.glob("sheet*")) == ["sheet-2.jpg", "sheet-3.jpg", "sheet.jpg"]
    sizes = [Image.open(tmp_path / f"sheet{number}.jpg").size for number in ("", "-2", "-3")]
    assert sizes[0] == sizes[1]
    assert sizes[2][0] < sizes[0][0]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_page_replaces_a_file_only_where_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    monkeypatch.setattr(sheet, "MOST", 1)
    small = picture(tmp_path / "a.png", "red", (8, 8))
    (tmp_path / "sheet-2.png").write_bytes(b"mine")
    made = sheet.Sheet(tmp_path / "sheet.png", overwrite=overwrite)
    made.add([small, small], "x\ny")
    assert ((tmp_path / "sheet-2.png").read_bytes() == b"mine") is not overwrite


def test_a_caption_tells_no_folder(tmp_path: Path) -> None:
    flags = {"image": Flag("image", "image")}
    place = str(tmp_path / "a.png")
    batch = Batch(flags, frozenset(flags), {}, Outputs(), "d", "k", 1, swept={"image": [place], "steps": [4]})
    request = Request(0, 5, {"prompt": "x", "image": place, "steps": 4})
    assert previews.caption(request, batch) == "x\nimage=a.png, steps=4"


def test_no_pictures_make_no_sheet(tmp_path: Path) -> None:
    sheet.Sheet(tmp_path / "sheet.png").write()
    assert list(tmp_path.iterdir()) == []


TEXTS = ["", "\n", "🐼🏳️‍🌈 é́ مرحبا שלום 漢字", "a\0b\x1b[31m", "\ud800", "w" * 10_000, "word " * 2000, "\n" * 50 + "x"]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_is_a_caption(text: str) -> None:
    sheet.composed([(Image.new("RGB", (20, 20)), f"{text}\nseed 1")])


@given(st.text(max_size=200), st.integers(40, 300), st.integers(1, 3))
def test_lines_fit_the_width(text: str, width: int, most: int) -> None:
    font = ImageFont.load_default(sheet.SIZE)
    lines = sheet._wrapped(sheet._drawable(text), font, width, most)
    assert len(lines) <= most
    assert all(font.getlength(line) <= width or len(line) <= 2 for line in lines)


def test_a_run_with_a_failure_still_has_its_sheet_and_resuming_has_all(warm: Warm, tmp_path: Path) -> None:
    warm("build", "demo", check=True)
    rows = ['{"prompt": "a panda", "id": "a"}', '{"prompt": "an apple", "id": "b"}']
    (tmp_path / "p.jsonl").write_text("\n".join(rows))
    call = ("generate", "demo", "--prompts-from", "p.jsonl", "--seed", "1", "-o", "out/")
    warm(*call, "--width", 96, "--height", 96, "--gallery", "g", cwd=tmp_path, check=True)
    (tmp_path / "p.jsonl").write_text("\n".join([*rows, '{"prompt": "a rocket", "id": "c"}']))
    with (tmp_path / "p.jsonl").open("a") as more:
        more.write('\n{"prompt": "a moon", "id": "d", "width": 31}')
    looks = ("--contact-sheet", "s.png", "--gallery", "g")
    done = warm(*call, "--width", 96, "--height", 96, "--resume", "--keep-going", *looks, cwd=tmp_path)
    assert (done.returncode, "1 made, 1 failed, 2 done before" in done.stderr) == (7, True), done.stderr
    with Image.open(tmp_path / "s.png") as page:
        assert page.size == (2 * 172 + 12, 2 * 180 + 12)  # three pictures in two rows
    from diffpipe.results import gallery_page

    items = gallery_page.read(tmp_path / "g")
    assert [item.settings.arguments["prompt"] for item in items] == ["a panda", "an apple", "a rocket"]  # each once
    assert [item.details for item in items] == [{"width": 96, "height": 96}] * 3
