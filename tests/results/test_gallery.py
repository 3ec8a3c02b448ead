"""The gallery page: its items survive, nothing in them becomes markup, links stay inside the folder."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from conftest import Warm
from hypothesis import given
from hypothesis import strategies as st
from manifests import manifest

from diffpipe.core.errors import UsageError
from diffpipe.core.flag import Flag
from diffpipe.core.request import Artifact, Request
from diffpipe.results import gallery, gallery_page
from diffpipe.results.gallery_page import Item, Settings, items_of

NASTY = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "\" onerror='alert(1)' & <b>bold</b>",
    "\u2028\u2029\0 \ud800 🐼 مرحبا",
    "]]> {items} {script-digest} \\u003c \\",
]
MANIFEST = manifest(
    pipeline="FluxPipeline",
    flags=[
        Flag("prompt", "text", default="").to_json(),
        Flag("image", "image").to_json(),
        Flag("steps", "integer", default=8).to_json(),
        Flag("tiles", "boolean", default=True).to_json(),
        Flag("sizes", "integer", many=True).to_json(),
        Flag("extra", "json").to_json(),
    ],
)


class Tags(HTMLParser):
    """The elements of a page, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts.append(data)


def make(folder: Path, name: str, seed: int = 1, content: bytes = b"picture", **arguments: Any) -> tuple[Any, Any]:
    """A finished file and what it was made with."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    request = Request(0, seed, {"prompt": "a panda", **arguments}, (str(path),), id=f"id-{seed}")
    return [Artifact(str(path), seed, 0, "image", 0.5, {"width": 8})], gallery.settings_of(request, MANIFEST, "demo")


def names_of(items: list[Item]) -> list[str]:
    return [item.name for item in items]


@pytest.mark.parametrize("text", NASTY)
def test_a_prompt_is_never_markup(tmp_path: Path, text: str) -> None:
    plain = Tags(gallery_page.page([]).decode())
    with gallery.opened(tmp_path) as page:
        page.add(*make(tmp_path, "a.png", prompt=text))
    written = Tags((tmp_path / "index.html").read_text())
    assert written.tags == plain.tags
    assert written.scripts[1:] == plain.scripts[1:]
    assert [item.settings.arguments["prompt"] for item in gallery_page.read(tmp_path)] == [text]


def item(key: str, arguments: dict[str, Any], **more: Any) -> Item:
    settings = Settings("id", 2**64 - 1, "demo", "FluxPipeline", arguments, "diffpipe generate demo")
    return Item(key, "image", "files/a.png", "a.png", 1796028456, 0.5, {"width": 8}, settings, **more)


@given(st.lists(st.dictionaries(st.text(max_size=9), st.text() | st.integers(), max_size=3), max_size=4))
def test_items_come_back_as_they_were(values: list[dict[str, Any]]) -> None:
    items = [item(str(number), value) for number, value in enumerate(values)]
    text = gallery_page.page(items)
    start = text.index(gallery_page.OPEN) + len(gallery_page.OPEN)
    inside = text[start : text.index(gallery_page.CLOSE, start)]
    assert items_of(text) == items
    assert json.loads(inside) == [one.to_json() for one in items]
    assert not set(b"<>&") & set(inside)


def test_the_page_asks_for_nothing_outside_its_folder(tmp_path: Path) -> None:
    text = gallery_page.page([]).decode()
    policy = next(attrs["content"] for tag, attrs in Tags(text).tags if attrs.get("http-equiv")) or ""
    assert policy.startswith("default-src 'none'; img-src 'self' file:; media-src 'self' file:; script-src 'sha256-")
    assert "unsafe" not in policy
    assert not re.search(r"https?:|//\w|url\(|@import|import\(|fetch\(|XMLHttp|innerHTML|\bsrc=|<link", text)


def test_files_inside_are_linked_and_others_placed_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "page"
    with gallery.opened(folder) as page:
        page.add(*make(folder, "in/a #1%.png"))
        page.add(*make(tmp_path / "elsewhere", "b?.png", content=b"other"))
    first, second = gallery_page.read(folder)
    assert unquote(first.file) == "in/a #1%.png"
    assert re.fullmatch(r"files/b%3F-[0-9a-f]{12}\.png", second.file)
    assert (folder / unquote(second.file)).read_bytes() == b"other"
    moved = folder.rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "elsewhere")
    assert all((moved / unquote(item.file)).is_file() for item in gallery_page.read(moved))
    assert str(tmp_path) not in (moved / "index.html").read_text()
    assert sorted(path.name for path in (moved / "files").iterdir()) == [unquote(second.file)[6:]]


def test_another_disk_gets_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    with gallery.opened(tmp_path / "page") as page:
        page.add(*make(tmp_path, "b.png", content=b"other"))
    (item,) = gallery_page.read(tmp_path / "page")
    assert (tmp_path / "page" / item.file).read_bytes() == b"other"


def test_running_again_adds_and_the_same_item_is_there_once(tmp_path: Path) -> None:
    for seeds in ((1, 2), (2, 3)):
        with gallery.opened(tmp_path / "page") as page:
            for seed in seeds:
                page.add(*make(tmp_path, f"{seed}.png", seed, content=bytes([seed, len(seeds)])))
    assert names_of(gallery_page.read(tmp_path / "page")) == ["1.png", "2.png", "3.png"]
    assert len(list((tmp_path / "page" / "files").iterdir())) == 3


def test_two_runs_at_once_lose_nothing(tmp_path: Path) -> None:
    with gallery.opened(tmp_path / "page") as one, gallery.opened(tmp_path / "page") as other:
        one.add(*make(tmp_path, "1.png", 1))
        other.add(*make(tmp_path, "2.png", 2))
    assert sorted(names_of(gallery_page.read(tmp_path / "page"))) == ["1.png", "2.png"]


def test_what_was_made_is_there_when_the_run_is_interrupted(tmp_path: Path) -> None:
    def interrupted() -> None:
        with gallery.opened(tmp_path / "page") as page:
            page.add(*make(tmp_path, "1.png", 1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names_of(gallery_page.read(tmp_path / "page")) == ["1.png"]


def test_the_newest_stay_where_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "MOST", 2)
    with gallery.opened(tmp_path / "page") as page:
        for seed in (1, 2, 3):
            page.add(*make(tmp_path, f"{seed}.png", seed))
    assert names_of(gallery_page.read(tmp_path / "page")) == ["2.png", "3.png"]


SAMPLE = Path(__file__).parent / "samples" / "gallery.html"  # written by diffpipe 0.1.0


def test_a_page_of_the_first_version_is_read_and_added_to(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_bytes(SAMPLE.read_bytes())
    before = gallery_page.read(tmp_path)
    assert [(one.key, one.file, one.settings.seed) for one in before] == [
        ("dabcd7aadb9d", "files/panda-dabcd7aadb9d.jpg", 9), ("5d1f2e5db50d", "files/panda-2-5d1f2e5db50d.jpg", 10),
        ("3009d6f478d8", "cat.png", 8),
    ]  # fmt: skip
    assert before[2].settings == Settings(
        "a9c8b6081cfb6e0e", 8, "demo-img2img", "FluxImg2ImgPipeline",
        {
            "prompt": "a cat", "true_cfg_scale": 1.0, "image": "fox.png", "height": 64, "width": 64, "strength": 1.0,
            "num_inference_steps": 2, "guidance_scale": 3.0, "num_images_per_prompt": 1, "max_sequence_length": 32,
        },
        "diffpipe generate demo-img2img '--prompt=a cat' --image=fox.png --height=64 --width=64 --strength=1.0 "
        "--num-inference-steps=2 --seed=8",
    )  # fmt: skip
    with gallery.opened(tmp_path) as page:
        page.add(*make(tmp_path, "new.png"))
        again = tmp_path / "cat.png"
        again.write_bytes(b"picture")
        page.add([Artifact(str(again), 8, 0, "image", 1.0)], before[2].settings)
    after = gallery_page.read(tmp_path)
    assert [one.key for one in after] == [before[0].key, before[1].key, after[2].key, before[2].key]  # once, the newest
    assert after[:2] == before[:2]


def test_what_a_newer_version_says_of_an_item_stays(tmp_path: Path) -> None:
    newer = item("a", {"prompt": "x"}, more={"stars": 5})
    (tmp_path / "index.html").write_bytes(gallery_page.page([newer]))
    with gallery.opened(tmp_path):
        pass
    assert gallery_page.read(tmp_path) == [newer]


ITEM = item("a", {"prompt": "x"}).to_json()


@pytest.mark.parametrize(
    "change",
    [
        {"key": 3}, {"key": None}, {"kind": "picture"}, {"file": None}, {"seed": -1}, {"seed": 2**64}, {"time": "now"},
        {"seconds": True}, {"arguments": []}, {"details": "none"}, {"thumb": 1}, {"command": {}},
    ],
)  # fmt: skip
def test_a_page_with_items_that_no_diffpipe_wrote_is_not_touched(tmp_path: Path, change: dict[str, Any]) -> None:
    text = gallery_page.OPEN.decode() + json.dumps([ITEM, {**ITEM, **change}]) + gallery_page.CLOSE.decode()
    (tmp_path / "index.html").write_text(text)
    with pytest.raises(UsageError, match="is no gallery of diffpipe"), gallery.opened(tmp_path):
        pass
    assert (tmp_path / "index.html").read_text() == text


def test_a_page_of_any_size_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery_page, "LARGEST_PAGE", 20_000)
    (tmp_path / "index.html").write_bytes(gallery_page.page([item("a", {"prompt": "x" * 20_000})]))
    with pytest.raises(UsageError, match="is no gallery of diffpipe"), gallery.opened(tmp_path):
        pass


DEEP = "[" * 200 + "]" * 200


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html></html>",
        '<script type="application/json" id="items">{}</script>',
        f'<script type="application/json" id="items">{DEEP}</script>',
        '<script type="application/json" id="items">[]',
    ],
)
def test_somebody_elses_page_is_not_touched(tmp_path: Path, text: str) -> None:
    (tmp_path / "index.html").write_text(text)
    with pytest.raises(UsageError, match="is no gallery of diffpipe"), gallery.opened(tmp_path):
        pass
    assert (tmp_path / "index.html").read_text() == text


def test_a_thumbnail_is_made_of_what_is_large_or_no_picture(tmp_path: Path) -> None:
    made: list[tuple[str, str]] = []

    def thumbnail(path: Path, kind: str, target: Path) -> None:
        made.append((path.name, kind))
        target.write_bytes(b"small")

    with gallery.opened(tmp_path, thumbnail) as page:
        page.add(*make(tmp_path, "small.png", 1))
        page.add(*make(tmp_path, "large.png", 2, content=bytes(gallery.LARGE + 1)))
        ((video,), settings) = make(tmp_path, "v.mp4", 3)
        page.add([Artifact(video.path, 3, 0, "video", 0.5)], settings)
    assert made == [("large.png", "image"), ("v.mp4", "video")]
    thumbs = [item.thumb for item in gallery_page.read(tmp_path)]
    assert thumbs[0] is None
    assert [(tmp_path / thumb).read_bytes() for thumb in thumbs if thumb] == [b"small", b"small"]


def test_the_command_says_what_is_not_as_by_default_and_no_folder() -> None:
    arguments = {
        "prompt": "it's $HOME",
        "image": "/somewhere/of mine/a.png",
        "steps": 8,
        "tiles": False,
        "sizes": [1, 2],
        "extra": {"a": 1},
        "clip_skip": 2,
    }
    settings = gallery.settings_of(Request(0, 5, arguments, fps=12.0), MANIFEST, "demo")
    assert shlex.split(settings.command) == [
        "diffpipe", "generate", "demo", "--prompt=it's $HOME", "--image=a.png", "--no-tiles", "--sizes=1", "--sizes=2",
        '--extra={"a": 1}', "--set", "clip_skip=2", "--fps=12", "--seed=5",
    ]  # fmt: skip
    assert "somewhere" not in json.dumps(settings.to_json())


def test_the_copied_command_makes_the_same_file(warm: Warm, tmp_path: Path) -> None:
    warm("build", "demo", check=True)
    prompt = 'a red apple on a blue background, it\'s "big" </script>'
    call = ("generate", "demo", "--prompt", prompt, "--seed", "7", "--guidance-scale", "2.5")
    warm(*call, "-o", "one.png", "--gallery", "page", cwd=tmp_path, check=True)
    (item,) = gallery_page.read(tmp_path / "page")
    words = shlex.split(item.settings.command)[1:]
    warm(*words, "-o", "two.png", cwd=tmp_path, check=True)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert item.details == {"width": 128, "height": 128}
    assert (item.settings.seed, item.settings.arguments["guidance_scale"]) == (7, 2.5)


def _can_browse() -> bool:
    import importlib.util

    from check_gallery import PROGRAMS

    return importlib.util.find_spec("playwright") is not None and any(map(shutil.which, PROGRAMS))


@pytest.mark.skipif(not _can_browse(), reason="needs playwright and a Chromium")
def test_a_browser_shows_it(warm: Warm, tmp_path: Path) -> None:
    warm("build", "demo", check=True)
    (tmp_path / "p.txt").write_text("a panda\n<img src=x onerror=alert(1)></script>\n")
    warm("generate", "demo", "--prompts-from", "p.txt", "--count", "2", "--gallery", "g", cwd=tmp_path, check=True)
    tool = Path(__file__).parents[2] / "tools" / "check_gallery.py"
    done = subprocess.run([sys.executable, str(tool), str(tmp_path / "g")], capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)["wrong"]) == (0, [])
