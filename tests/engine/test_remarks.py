"""What is said of results that are files and yet suspicious, and where it is said."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from documents import BASE, manifest_of, run_of
from PIL import Image

from diffpipe.core.request import Request
from diffpipe.engine import media
from diffpipe.engine.classes.outputs import flags_of
from diffpipe.engine.running.remarks import remarks
from diffpipe.engine.running.results import PictureResult, SoundResult, VideoResult
from diffpipe.engine.running.run import PipelineCall, run
from diffpipe.results.document import parsed
from diffpipe.results.metadata import texts
from diffpipe.runners.outcomes import outcomes_of


def plain(colour: Any = 0, mode: str = "RGB") -> Any:
    return Image.new(mode, (6, 4), colour)


def dotted() -> Any:
    picture = plain((0, 0, 0))
    picture.putpixel((3, 2), (0, 0, 1))
    return picture


def silent(peak: float = 0.0) -> media.Sound:
    return media.Sound(np.array([[0, peak, 0]], np.float32), 8000)


def picture(image: Any, **more: Any) -> PictureResult:
    return PictureResult(image, **more)


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (picture(plain()), "the picture is of one single colour, #000000"),
        (picture(plain((128, 64, 255))), "of one single colour, #8040ff"),
        (picture(plain(7, "L")), "of one single colour, #070707"),
        (picture(plain((1, 2, 3, 0), "RGBA")), "of one single colour, #01020300"),
        (VideoResult([plain()] * 3, 8), "the video is of one single colour, #000000"),
        (SoundResult(silent()), "the sound is silent"),
        (SoundResult(silent(1e-5)), "the sound is silent"),
        (VideoResult([dotted()], 8, silent()), "the sound is silent"),
        (picture(plain(), flagged="not safe for work"), "took the picture for not safe for work and made it black"),
        (picture(dotted(), flagged="watermarked"), "took the picture for watermarked: another seed"),
        (picture(dotted(), drawn=plain("red")), "the picture is of one single colour, #ff0000"),  # inpainted
        (picture(dotted()), ""),
        (VideoResult([plain(), plain("red")], 8), ""),
        (VideoResult([plain(), dotted()], 8, silent(0.5)), ""),
        (SoundResult(silent(0.001)), ""),
        (picture(plain("white", "L"), role="mask"), ""),
    ],
)
def test_what_is_suspicious_is_said(result: Any, says: str) -> None:
    said = list(remarks([result]))
    assert len(said) == bool(says)
    assert says in "".join(said)


def test_of_several_results_it_is_said_which() -> None:
    assert [text[:20] for text in remarks([picture(dotted()), picture(plain()), picture(plain(), role="mask")])] == [
        "2 of 2: the picture "
    ]


@pytest.mark.parametrize(
    ("fields", "count", "flagged"),
    [
        ({"nsfw_content_detected": [False, True]}, 2, ["", "not safe for work"]),
        ({"nsfw_content_detected": None}, 2, ["", ""]),
        ({"nsfw_detected": [True], "watermark_detected": [True]}, 1, ["not safe for work and watermarked"]),
        ({"nsfw_detected": [False, False], "watermark_detected": np.array([True, False])}, 2, ["watermarked", ""]),
        ({"nsfw_content_detected": [False, True, False, False]}, 1, ["not safe for work"]),  # of each frame
        ({"nsfw_content_detected": True}, 2, ["not safe for work"] * 2),
        ({}, 1, [""]),
    ],
)
def test_what_checkers_say_in_every_form(fields: dict[str, Any], count: int, flagged: list[str]) -> None:
    assert flags_of(SimpleNamespace(**fields), count) == flagged


class Checked:
    """A pipeline whose checker makes the pictures of some seeds black, and whose library warns while it works."""

    def __init__(self, unsafe: set[int], warning: str = "") -> None:
        self.unsafe, self.warning = unsafe, warning

    def __call__(self, prompt: Any, generator: Any = None) -> Any:
        if self.warning:
            logging.getLogger("diffpipe.libraries").warning("%s", self.warning)
        seeds = [one.initial_seed() for one in (generator if isinstance(prompt, list) else [generator])]
        flags = [seed in self.unsafe for seed in seeds]
        return SimpleNamespace(images=[plain() if flag else dotted() for flag in flags], nsfw_content_detected=flags)


def requests(folder: Path, *seeds: int, ending: str = "png") -> list[Request]:
    return [Request(0, seed, {}, (str(folder / f"{seed}.{ending}"),)) for seed in seeds]


def make(pipe: Any, group: list[Request], kind: Any = "image") -> Any:
    about = run_of(manifest_of((BASE,)))
    says = [texts(about, request) for request in group]
    arguments = [{"prompt": f"a fox {request.seed}"} for request in group]
    return run(pipe, PipelineCall(kind, group, arguments, lambda *_: None, texts=says))


def warnings_in(path: str | Path) -> tuple[str, ...]:
    return parsed(media.read_text(Path(path))["diffpipe"]).warnings


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_a_flagged_picture_of_a_batch_is_its_own_warning_and_its_file_has_it(tmp_path: Path, ending: str) -> None:
    group = requests(tmp_path, 5, 6, 7, ending=ending)
    outcomes = outcomes_of(group, lambda group: make(Checked({6}), group))
    assert [len(one.warnings) for one in outcomes] == [0, 1, 0]
    assert "not safe for work" in outcomes[1].warnings[0]
    files = [one.artifacts[0].path for one in outcomes]
    assert [warnings_in(path) for path in files] == [(), outcomes[1].warnings, ()]
    assert "warnings" not in json.loads(media.read_text(Path(files[0]))["diffpipe"])


def test_what_a_library_said_of_the_call_is_in_every_file_of_it_once(tmp_path: Path) -> None:
    group = requests(tmp_path, 5, 6)
    outcomes = outcomes_of(group, lambda group: make(Checked(set(), "the prompt was cut"), group))
    assert [one.warnings for one in outcomes] == [("the prompt was cut",)] * 2
    assert [warnings_in(one.artifacts[0].path) for one in outcomes] == [("the prompt was cut",)] * 2
    quiet = outcomes_of(requests(tmp_path / "quiet", 5), lambda group: make(Checked(set()), group))
    assert warnings_in(quiet[0].artifacts[0].path) == ()


def test_what_the_writer_of_a_file_warns_of_is_in_it(tmp_path: Path) -> None:
    def pipe(prompt: str, generator: Any = None) -> Any:
        return SimpleNamespace(frames=[[dotted(), plain("red")]], audio=np.ones((1, 1, 80)), sample_rate=8000)

    pipe.sample_rate = 8000  # type: ignore[attr-defined]
    fast = Request(0, 1, {}, (str(tmp_path / "x.gif"),), fps=60.0)
    (outcome,) = outcomes_of([fast], lambda group: make(pipe, group, "video"))
    assert outcome.error is None
    assert [text[:24] for text in warnings_in(tmp_path / "x.gif")] == [
        "a GIF holds no sound; it", "a GIF shows 50 frames a "
    ]  # fmt: skip
    assert warnings_in(tmp_path / "x.gif") == outcome.warnings


def test_what_is_true_of_the_run_alone_is_in_no_file(tmp_path: Path) -> None:
    def stepping_down(group: list[Request]) -> Any:
        logging.getLogger("diffpipe.run").warning("memory ran out: trying again")
        logging.getLogger("diffpipe.preview").warning("no preview: no decoder")
        return make(Checked(set()), group)

    (outcome,) = outcomes_of(requests(tmp_path, 5), stepping_down)
    assert len(outcome.warnings) == 2
    assert warnings_in(outcome.artifacts[0].path) == ()
