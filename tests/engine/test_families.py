"""Every provider and type, built and run through the real command line on its tiny checkpoint: one Case a row."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cases_image
import cases_video
import numpy as np
import pytest
from cases import Case
from conftest import Cli, Warm
from hub_server import serve
from PIL import Image

from diffpipe.catalog import BUILTIN
from diffpipe.core.components import kind_of

CASES: tuple[Case, ...] = (*cases_image.CASES, *cases_video.CASES)
SEED = 5
HEARD = Path(__file__).with_name("heard.txt")
# Every type works in float32. How a model rounds in 16 bits is its denoiser's: one case for each class of those.
IN_BFLOAT16 = (
    "flux-text2image",
    "flux2-text2image",
    "qwen-text2image",
    "stable-diffusion-text2image",
    "stable-diffusion-sd3",
    "amused-text2image",
    "wuerstchen-text2image",
    "z-image-text2image",
    "wan-text2video",
    "wan-vace",
    "ltx-text2video",
    "ltx-ltx2",
    "allegro-text2video",
    "audioldm-audioldm2",
)


def case_of(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


@dataclass(frozen=True)
class Made:
    """A built pipeline of a case: its name, the files of one call with SEED, and the log of both."""

    name: str
    files: tuple[Path, ...]
    log: str


class Family:
    """The two commands for one case."""

    def __init__(self, case: Case, warm: Warm, checkpoints: Path, inputs: Path) -> None:
        self.case, self.warm = case, warm
        self.places = {"checkpoints": checkpoints, "inputs": inputs}

    def build(self, dtype: str, *more: object) -> str:
        case, name = self.case, f"{self.case.name}-{dtype}"
        words = [word.format(**self.places) for word in case.build]
        model = self.places["checkpoints"] / case.checkpoint
        self.warm(
            *("build", case.provider, "--type", case.type, "--model", model, *words, "--dtype", dtype, "--name", name),
            *more,
            check=True,
        )
        return name

    def generate(self, name: str, folder: Path, *words: object) -> tuple[Path, ...]:
        flags = [word.format(**self.places) for word in self.case.flags]
        done = self.warm("generate", name, *flags, "--output", f"{folder}/", *words, check=True)
        return tuple(map(Path, done.stdout.splitlines()))


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def family(request: pytest.FixtureRequest, warm: Warm, checkpoints: Path, inputs: Path) -> Family:
    return Family(request.param, warm, checkpoints, inputs)


@pytest.fixture(scope="module")
def made(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The family's pipeline in float32, and what it made."""
    folder = tmp_path_factory.mktemp("made")
    logs = folder / "build.log", folder / "generate.log"
    name = family.build("float32", "--log-file", logs[0])
    files = family.generate(name, folder, "--seed", SEED, "--log-file", logs[1])
    return Made(name, files, "".join(log.read_text(encoding="utf-8") for log in logs))


def check_files(case: Case, files: tuple[Path, ...]) -> None:
    """The files are what the case says, as independent readers see them."""
    assert len(files) == case.files
    for file in files:
        {"image": check_image, "video": check_video, "audio": check_audio}[case.kind](case, file)


def check_image(case: Case, file: Path) -> None:
    with Image.open(file) as picture:
        assert (picture.format, picture.size) == ("PNG", case.size)
        assert varies(np.asarray(picture))


def check_video(case: Case, file: Path) -> None:
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        assert float(stream.average_rate or 0) == case.fps
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert (len(frames), frames[0].shape) == (case.frames, (*reversed(case.size or ()), 3))
        assert all(varies(frame) for frame in frames)
        assert bool(container.streams.audio) == bool(case.rate)
    if case.rate:
        check_audio(case, file)


def check_audio(case: Case, file: Path) -> None:
    with av.open(str(file)) as container:
        stream = container.streams.audio[0]
        assert stream.rate == case.rate
        heard = np.concatenate([block for frame in container.decode(stream) for block in samples(frame)])
    # Codecs of videos pad the sound to whole blocks.
    assert len(heard) / stream.rate / stream.channels == pytest.approx(case.seconds, abs=0.1)
    assert np.isfinite(heard).all()
    assert varies(heard)


def samples(frame: av.AudioFrame) -> Iterator[Any]:
    yield from frame.to_ndarray()


def varies(values: Any) -> bool:
    """Not one value throughout: what is no number comes out black, or silent."""
    return bool(values.max() > values.min())


def test_what_it_makes_is_of_the_right_kind_and_size(family: Family, made: Made) -> None:
    check_files(family.case, made.files)


@pytest.mark.pinned
def test_what_the_libraries_say_is_listed(family: Family, made: Made) -> None:
    """heard.txt has it, for people to look at: a new line there is something that users are told, or that is kept."""
    assert heard_in(made.log) == {words for words, cases in heard_list() if family.case.name in cases}


def heard_in(log: str) -> set[str]:
    """What a log has of the libraries: "told WORDS" and "kept LIBRARY: WORDS"."""
    lines = re.findall(r"(WARNING|INFO) +diffpipe\.libraries: (?:heard: )?(.*)", log)
    return {("told " if level == "WARNING" else "kept ") + words for level, words in lines}


def heard_list() -> Iterator[tuple[str, list[str]]]:
    """Each line of heard.txt, and the names of its cases, which stand on the next one."""
    lines = [line for line in HEARD.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    yield from ((words, cases.split()) for words, cases in zip(lines[::2], lines[1::2], strict=True))


def test_a_seed_gives_the_same_bytes_in_another_process_and_place(family: Family, made: Made, tmp_path: Path) -> None:
    again = family.generate(made.name, tmp_path, "--seed", SEED - 1, "--count", 2)
    other, same = again[: family.case.files], again[family.case.files :]
    assert [file.read_bytes() for file in same] == [file.read_bytes() for file in made.files]
    assert other[0].read_bytes() != made.files[0].read_bytes()


@pytest.mark.parametrize("family", [case_of(name) for name in IN_BFLOAT16], indirect=True, ids=IN_BFLOAT16)
def test_it_works_in_bfloat16(family: Family, tmp_path: Path) -> None:
    check_files(family.case, family.generate(family.build("bfloat16"), tmp_path, "--seed", SEED))


def test_every_denoiser_works_in_bfloat16(checkpoints: Path) -> None:
    classes = {case.name: denoisers(checkpoints / case.checkpoint) for case in CASES}
    assert set().union(*classes.values()) == set().union(*(classes[name] for name in IN_BFLOAT16))


def denoisers(folder: Path) -> set[str]:
    """The classes of a checkpoint's denoisers."""
    index = json.loads((folder / "model_index.json").read_text())
    parts = {name: entry[1] for name, entry in index.items() if isinstance(entry, list)}
    return {cls for name, cls in parts.items() if cls and kind_of(name) == "denoiser"}


def test_its_help_shows_its_own_flags(family: Family, made: Made) -> None:
    shown = family.warm("generate", made.name, "--help", check=True).stdout
    assert [words for words in family.case.shows if not listed(words, shown)] == []
    assert [words for words in family.case.hides if listed(words, shown)] == []


def listed(words: str, shown: str) -> bool:
    return bool(re.search(re.escape(words) + r"(?![\w-])", shown))


@pytest.mark.parametrize("name", ["flux-upscale", "stable-diffusion-diffedit", "qwen-layered"])
def test_help_of_what_has_flags_of_its_own_is_light(
    cli: Cli, warm: Warm, checkpoints: Path, inputs: Path, name: str
) -> None:
    family = Family(case_of(name), warm, checkpoints, inputs)
    shown = cli.light("generate", family.build("bfloat16"), "--help").stdout
    assert [words for words in family.case.shows if not listed(words, shown)] == []


FOUR_PHOTOS = ("--image", "{inputs}/photo.png") * 4


@pytest.mark.parametrize(
    ("name", "words", "says", "hint"),
    [
        ("flux-text2image", ["--width", "60"], "--width 60 is no multiple of 16", "the nearest: 48 or 64"),
        ("wuerstchen-text2image", ["--width", "200"], "--width 200 is no multiple of 128", "the nearest: 128 or 256"),
        ("qwen-edit-plus", FOUR_PHOTOS, "--image is given 4 times", "takes 3 at most"),
        ("flux-controlnet", [], "--control-image is missing", "needs it"),
        ("flux-controlnet", ["--control-image", "{inputs}/control.png"], "--control-mode is missing", "canny, tile"),
        ("flux-upscale", ["--image", "{inputs}/photo.png", "--tile-size", "64"], "--tile-overlap 64", "smaller"),
        ("stable-diffusion-attend-excite", ["--words", "dog"], "--words dog: the prompt does not have it", "prompt"),
    ],
)  # fmt: skip
def test_what_a_family_cannot_take_is_said_in_two_lines(
    warm: Warm, checkpoints: Path, inputs: Path, name: str, words: Sequence[str], says: str, hint: str
) -> None:
    family = Family(case_of(name), warm, checkpoints, inputs)
    given = [word.format(**family.places) for word in words]
    done = warm("generate", family.build("bfloat16"), "--prompt", "a cat", "--seed", SEED, *given)
    assert (done.returncode, done.stdout) == (2, "")
    error, remedy = done.stderr.splitlines()
    assert error.startswith(f"error: {says}")
    assert hint in remedy


PRIOR = ("prior", "text_encoder", "tokenizer", "scheduler")


def test_wuerstchen_takes_its_prior_from_the_priors_repository(
    cli: Cli, warm: Warm, copy_of: Callable[..., Path], tmp_path: Path
) -> None:
    whole, decoder, prior = copy_of("wuerstchen"), copy_of("wuerstchen", "decoder"), tmp_path / "prior"
    index = json.loads((whole / "model_index.json").read_text())
    parted = {f"prior_{name}" for name in PRIOR}
    for name in PRIOR:
        shutil.move(decoder / f"prior_{name}", prior / name)
    own = {name: value for name, value in index.items() if name not in parted}
    names = {name: index[f"prior_{name}"] for name in PRIOR}
    write_index(decoder, own | {"_class_name": "WuerstchenDecoderPipeline"})
    write_index(prior, names | {"_class_name": "WuerstchenPriorPipeline"})
    with serve({"warp-ai/wuerstchen": decoder, "warp-ai/wuerstchen-prior": prior}) as hub:
        cli("build", "wuerstchen", "--name", "parted", env={"HF_ENDPOINT": hub.url}, check=True)
    warm("build", "wuerstchen", "--model", whole, "--name", "whole", check=True)
    made = []
    for name in ("parted", "whole"):
        words = ("--prompt", "a cat", "--width", 128, "--height", 128, "--prior-num-inference-steps", 2)
        warm(
            "generate",
            name,
            *words,
            "--num-inference-steps",
            2,
            "--seed",
            SEED,
            "--no-metadata",
            cwd=tmp_path,
            check=True,
        )
        made.append((tmp_path / f"{name}-{SEED}.png").read_bytes())
    assert made[0] == made[1]


def write_index(folder: Path, index: dict[str, Any]) -> None:
    (folder / "model_index.json").write_text(json.dumps(index))


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
@pytest.mark.parametrize("processor", ["Qwen2VLProcessor", "PixtralProcessor"])
def test_a_processor_that_needs_torchvision_is_named_at_build(
    warm: Warm, copy_of: Callable[..., Path], processor: str
) -> None:
    folder = copy_of("qwen-edit")
    index = json.loads((folder / "model_index.json").read_text())
    write_index(folder, index | {"processor": ["transformers", processor]})
    done = warm("build", "qwen", "--type", "edit", "--model", folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: {processor} needs torchvision" in done.stderr


def test_there_is_a_case_for_every_type() -> None:
    types = {(provider.name, row.name) for provider in BUILTIN.values() for row in provider.types}
    assert (
        types - {(case.provider, case.type) for case in CASES} - {("demo", row.name) for row in BUILTIN["demo"].types}
        == set()
    )
