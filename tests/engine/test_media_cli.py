"""Inputs as other programs write them, through the real command line: what is said of them, and what is made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Cli
from PIL import Image

STEPS = ("--seed", "7", "--num-inference-steps", "2")
NOTE = "--image: logo.png is transparent in places: laid on white"


@pytest.fixture(scope="module")
def painter(cli: Cli, checkpoints: Path) -> Cli:
    model = ("--model", checkpoints / "stable-diffusion", "--dtype", "float32", "--device", "cpu")
    for kind in ("img2img", "inpaint"):
        cli("build", "stable-diffusion", "--type", kind, *model, "--name", kind, check=True)
    return cli


def ramp(alpha: int | None = None) -> Image.Image:
    values = np.add.outer(np.arange(32) * 3, np.arange(32) * 2)[..., None] * np.array([1.0, 0.7, 1.3]) % 256
    picture = Image.fromarray(values.astype(np.uint8))
    if alpha is not None:
        picture.putalpha(alpha)
        picture.putpixel((3, 3), (1, 2, 3, 255))
    return picture


def test_a_transparent_source_is_laid_on_white_said_once_and_made_again(painter: Cli, tmp_path: Path) -> None:
    see_through = ramp(90)
    see_through.save(tmp_path / "logo.png")
    paper = Image.new("RGBA", (32, 32), "white")
    paper.alpha_composite(see_through)
    paper.convert("RGB").save(tmp_path / "paper.png")
    (tmp_path / "p.txt").write_text("a fox\na cat\n")
    run = ("generate", "img2img", "--prompts-from", "p.txt", *STEPS, "--json")
    done = painter(*run, "--image", "logo.png", "-o", "a-{index}.png", cwd=tmp_path, check=True)
    assert [json.loads(line)["warnings"] for line in done.stdout.splitlines()] == [[NOTE], [NOTE]]
    assert done.stderr.count(NOTE) == 1
    plain = painter(*run, "--image", "paper.png", "-o", "b-{index}.png", cwd=tmp_path, check=True)
    assert NOTE not in plain.stderr
    for number in (1, 2):
        with Image.open(tmp_path / f"a-{number}.png") as one, Image.open(tmp_path / f"b-{number}.png") as other:
            assert one.tobytes() == other.tobytes()
    again = painter("reproduce", "a-2.png", "--verify", "-o", "c.png", cwd=tmp_path, check=True)
    assert "identical, byte for byte" in again.stdout
    assert again.stderr.count(NOTE) == 1


def test_a_mask_of_strokes_on_a_transparent_layer_paints_those_alone(painter: Cli, tmp_path: Path) -> None:
    ramp().save(tmp_path / "source.png")
    strokes = np.zeros((32, 32, 4), np.uint8)
    strokes[..., :3] = 255
    strokes[:, :12, 3] = 255
    Image.fromarray(strokes).save(tmp_path / "layer.png")
    Image.fromarray(strokes[..., 3]).save(tmp_path / "plain.png")
    size = ("--width", "32", "--height", "32", "--image", "source.png", "--strength", "1.0")
    made = []
    for name in ("layer", "plain"):
        run = ("generate", "inpaint", "--prompt", "a fox", *STEPS, *size, "--mask-image", f"{name}.png")
        painter(*run, "-o", f"{name}-made.png", cwd=tmp_path, check=True)
        with Image.open(tmp_path / f"{name}-made.png") as picture:
            made.append(np.asarray(picture))
    assert (made[0] == made[1]).all()
    assert (made[0][:, 12:] == np.asarray(ramp())[:, 12:]).all()
    assert (made[0][:, :12] != np.asarray(ramp())[:, :12]).any()
