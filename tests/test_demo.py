"""The embedded demo model, through the command line and through plain diffusers."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Warm
from PIL import Image, ImageChops, ImageStat

DEMO = Path(__file__).parent.parent / "src" / "diffpipe" / "demo"
PINK, BLUE = (250, 163, 199), (66, 124, 222)
PANDA = ("--prompt", "a panda on a pink background", "--seed", "11")


@pytest.fixture(scope="module")
def demo(warm: Warm) -> Warm:
    """The command line with the demo model's pipelines built."""
    for options in ((), ("--type", "img2img"), ("--type", "inpaint")):
        warm("build", "demo", *options, check=True)
    return warm


def draw(cli: Warm, name: str, *options: object) -> Image.Image:
    made = cli("generate", name, *options, "--overwrite", "-o", f"{name}.png", check=True)
    with Image.open(cli.cwd / made.stdout.strip()) as picture:
        return picture.convert("RGB")


def border(picture: Image.Image) -> list[float]:
    """The median colour of the outermost pixels."""
    edges = [(0, 0, 128, 4), (0, 124, 128, 128), (0, 0, 4, 128), (124, 0, 128, 128)]
    strips = [ImageStat.Stat(picture.crop(edge)).median for edge in edges]
    return [sorted(strip[channel] for strip in strips)[1] for channel in range(3)]


def far(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def colourfulness(picture: Image.Image) -> float:
    return ImageStat.Stat(picture.convert("HSV")).mean[1]


def test_it_weighs_at_most_12_mb() -> None:
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) <= 12_000_000


def test_the_background_is_the_one_asked_for(demo: Warm) -> None:
    picture = draw(demo, "demo", *PANDA)
    assert picture.size == (128, 128)
    assert far(border(picture), PINK) < 40
    blue = draw(demo, "demo", "--prompt", "a panda on a blue background", "--seed", "11")
    assert far(border(blue), BLUE) < 40


def test_plain_diffusers_gives_the_same_bytes(demo: Warm, tmp_path: Path) -> None:
    flags = {f["name"]: f for f in json.loads(demo("pipelines", "show", "demo", "--json").stdout)["manifest"]["flags"]}
    names = ("width", "height", "num_inference_steps", "guidance_scale", "true_cfg_scale", "max_sequence_length")
    arguments: dict[str, Any] = {name: flags[name]["default"] for name in names}
    arguments |= {"negative_prompt": flags["negative_prompt"].get("default")}
    script = f"""
import sys, torch
from diffusers import FluxPipeline
pipe = FluxPipeline.from_pretrained({str(DEMO)!r}, dtype=torch.bfloat16)
made = pipe("a panda on a pink background", generator=torch.Generator("cpu").manual_seed(11), **{arguments!r})
made.images[0].save({str(tmp_path / "plain.png")!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    words = [*PANDA, "--no-metadata", "-o", tmp_path / "ours.png"]
    ours = demo("generate", "demo", *words, check=True).stdout.strip()
    assert Path(ours).read_bytes() == (tmp_path / "plain.png").read_bytes()


def test_img2img_changes_the_background_and_keeps_the_subject(demo: Warm) -> None:
    before = draw(demo, "demo", *PANDA)
    before.save(demo.cwd / "panda.png")
    after = draw(
        demo, "demo-img2img", "--image", "panda.png", "--prompt", "a panda on a blue background", "--seed", "3"
    )
    assert far(border(after), BLUE) < 60
    assert far(border(before), border(after)) > 60


def test_inpaint_leaves_what_is_not_masked(demo: Warm) -> None:
    before = draw(demo, "demo", *PANDA)
    before.save(demo.cwd / "panda.png")
    mask = Image.new("L", (128, 128), 0)
    mask.paste(255, (32, 32, 96, 96))
    mask.save(demo.cwd / "mask.png")
    media = ("--image", "panda.png", "--mask-image", "mask.png")
    after = draw(demo, "demo-inpaint", *media, "--prompt", "a pizza on a pink background", "--seed", "1")
    change = ImageChops.difference(before, after)
    change.paste((0, 0, 0), (28, 28, 100, 100))
    assert max(high for _, high in change.getextrema()) <= 2  # type: ignore[misc]
    assert ImageStat.Stat(ImageChops.difference(before, after).crop((32, 32, 96, 96))).mean[0] > 5


def test_a_lora_changes_the_style_with_its_scale(demo: Warm) -> None:
    pictures = []
    for scale in ("0", "0.5", "1"):
        demo("build", "demo", "--lora", f"demo:pencil@{scale}", "--name", f"pencil-{scale}", check=True)
        pictures.append(draw(demo, f"pencil-{scale}", *PANDA))
    plain = draw(demo, "demo", *PANDA)
    assert pictures[0].tobytes() == plain.tobytes()
    colour = [colourfulness(picture) for picture in pictures]
    assert colour[0] > colour[1] > colour[2]


def test_unknown_words_warn_and_name_near_ones(demo: Warm) -> None:
    prompt = "a pandda on a pink background"
    made = demo("generate", "demo", "--prompt", prompt, "--seed", "1", "--overwrite", check=True)
    (warning,) = made.stderr.splitlines()
    assert warning.startswith("warning: the model does not know 'pandda'; did you mean panda")


def test_its_words_are_listed(demo: Warm) -> None:
    shown = demo("providers", "show", "demo", check=True).stdout
    listed = json.loads(demo("providers", "show", "demo", "--json", check=True).stdout)["vocabulary"]
    assert len(listed["subjects"]) >= 96
    assert len(listed["colours"]) == 10
    assert "panda" in listed["subjects"]
    assert ", ".join(listed["colours"]) in shown


def test_formats_are_told_from_the_ending(demo: Warm) -> None:
    for ending, name in (("jpg", "JPEG"), ("webp", "WEBP")):
        options = ("--num-inference-steps", "1", "-o", f"x.{ending}", "--overwrite")
        made = demo("generate", "demo", *PANDA, *options, check=True)
        data = (demo.cwd / made.stdout.strip()).read_bytes()
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.format == name
