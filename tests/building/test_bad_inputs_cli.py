"""What cannot be made is said in one line, with a remedy and an exit code, before torch is imported.

The wrong LoRA is refused at build, which needs diffusers to know (test_lora_cli.py has more of them).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Cli, Warm
from PIL import Image

PROMPT = ("--prompt", "a cat")
TYPES = {
    "flux": ("flux", "text2image", "flux"),
    "img2img": ("flux", "img2img", "flux"),
    "inpaint": ("flux", "inpaint", "flux"),
    "controlnet": ("flux", "controlnet", "flux", "--controlnet", "{checkpoints}/flux-controlnet"),
    "edit-plus": ("qwen", "edit-plus", "qwen-edit-plus"),
    "wuerstchen": ("wuerstchen", "text2image", "wuerstchen"),
    "wan": ("wan", "text2video", "wan"),
    "video2video": ("wan", "video2video", "wan"),
    "ltx": ("ltx", "text2video", "ltx"),
}


@pytest.fixture(scope="module")
def build(warm: Warm, checkpoints: Path) -> Callable[[str], str]:
    """Builds one of TYPES once; its name."""
    built = set()

    def once(name: str) -> str:
        if name not in built:
            provider, kind, folder, *words = TYPES[name]
            model = ("--type", kind, "--model", checkpoints / folder, "--name", name)
            warm("build", provider, *model, *(word.format(checkpoints=checkpoints) for word in words), check=True)
            built.add(name)
        return name

    return once


@pytest.fixture(scope="module")
def folder(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The inputs, and some that are wrong."""
    folder = tmp_path_factory.mktemp("bad") / "inputs"
    shutil.copytree(inputs, folder)
    (folder / "broken.png").write_bytes((inputs / "photo.png").read_bytes()[:100])
    (folder / "text.png").write_text("no picture")
    Image.open(inputs / "mask.png").resize((32, 32)).save(folder / "small-mask.png")
    (folder / "empty").mkdir()
    return folder


PHOTO, CLIP = ("--image", "photo.png"), ("--video", "clip.mp4")
# What may be imported to tell, besides what every command needs.
NOTHING: set[str] = set()
PICTURES = {"PIL", "numpy"}
VIDEO = PICTURES | {"av"}

# Pipeline, flags, error, remedy, what may be imported.
BAD: dict[str, tuple[str, tuple[str, ...], str, str, set[str]]] = {
    "an unreadable image": (
        "img2img",
        ("--image", "broken.png"),
        "--image: cannot read broken.png: it is no picture, or it is damaged",
        "give a PNG, JPEG or WebP file",
        PICTURES,
    ),
    "a text for an image": (
        "img2img",
        ("--image", "text.png"),
        "--image: cannot read text.png: it is no picture, or it is damaged",
        "give a PNG, JPEG or WebP file",
        PICTURES,
    ),
    "a video for an image": (
        "img2img",
        ("--image", "clip.mp4"),
        "--image: cannot read clip.mp4: it is a video",
        "give a picture: ffmpeg -i VIDEO -frames:v 1 picture.png takes the first of it",
        PICTURES,
    ),
    "a mask of another size": (
        "inpaint",
        (*PHOTO, "--mask-image", "small-mask.png"),
        "--mask-image is 32 x 32 but --image is 96 x 64",
        "make the mask the size of the picture",
        PICTURES,
    ),
    "zero frames": (
        "wan",
        ("--num-frames", "0"),
        "--num-frames 0 is out of range",
        "give at least 1",
        NOTHING,
    ),
    "frames between two latents": (
        "ltx",
        ("--num-frames", "12"),
        "--num-frames 12 is not 8n + 1",
        "the nearest: 9 or 17; --fit takes it by itself",
        NOTHING,
    ),
    "text for a number": (
        "flux",
        ("--width", "wide"),
        "Invalid value for '--width': it must be a whole number",
        "diffpipe generate flux --help",
        NOTHING,
    ),
    "four images where three are the most": (
        "edit-plus",
        PHOTO * 4,
        "--image is given 4 times",
        "this pipeline takes 3 at most",
        NOTHING,
    ),
    "a video with no video stream": (
        "video2video",
        ("--video", "sound.wav"),
        "--video: sound.wav has no video stream",
        "give a video, or a folder of pictures",
        VIDEO,
    ),
    "a picture for a video": (
        "video2video",
        ("--video", "text.png"),
        "--video: cannot read text.png",
        "give an MP4, WebM or GIF file, or a folder of pictures",
        VIDEO,
    ),
    "a folder without frames": (
        "video2video",
        ("--video", "empty"),
        "--video: empty has no frames",
        "",
        VIDEO,
    ),
    "a control image missing": ("controlnet", (), "--control-image is missing", "this pipeline needs it: ", NOTHING),
    "a width the family cannot make": (
        "wuerstchen",
        ("--width", "200"),
        "--width 200 is no multiple of 128",
        "the nearest: 128 or 256; --fit takes it by itself",
        NOTHING,
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_refused_before_loading(cli: Cli, build: Callable[[str], str], folder: Path, case: str) -> None:
    name, flags, message, hint, allowed = BAD[case]
    before = sorted(folder.rglob("*"))
    build(name)
    done = cli("generate", name, *PROMPT, *flags, cwd=folder, env={"PYTHONPROFILEIMPORTTIME": "1"})
    error, remedy = told(done.stderr)
    assert (done.returncode, done.stdout) == (2, "")
    assert (error[: len(message)], remedy[: len(hint)]) == (message, hint)
    assert imported(done.stderr) & HEAVY <= allowed
    assert sorted(folder.rglob("*")) == before


HEAVY = {"torch", "diffusers", "transformers", "PIL", "numpy", "av"}


def told(stderr: str) -> tuple[str, str]:
    """The two lines that a user reads: what is wrong, and what to do."""
    error, remedy = (line for line in stderr.splitlines() if not line.startswith("import time:"))
    assert error.startswith("error: ")
    assert remedy.startswith("  try: ")
    return error.removeprefix("error: "), remedy.removeprefix("  try: ")


def imported(stderr: str) -> set[str]:
    found = set(re.findall(r"^import time:.*\| +(\w+)", stderr, re.MULTILINE))
    assert "diffpipe" in found  # else the profile is not what this reads
    return found


def test_a_folder_that_is_no_diffusers_folder(cli: Cli, folder: Path) -> None:
    done = cli.light("build", "flux", "--model", folder)
    message = f"{folder} is no diffusers folder: it has no model_index.json"
    assert (done.returncode, told(done.stderr)[0]) == (2, message)


def test_a_lora_for_another_family(warm: Warm, checkpoints: Path) -> None:
    lora = checkpoints / "sd-lora.safetensors"
    done = warm("build", "flux", "--model", checkpoints / "flux", "--lora", lora, "--name", "foreign")
    message = "the LoRA sd-lora.safetensors is for another model: of its 40 layers this FluxPipeline has none"
    assert (done.returncode, told(done.stderr)[0]) == (2, message)
    assert warm("pipelines", "show", "foreign").returncode == 3
