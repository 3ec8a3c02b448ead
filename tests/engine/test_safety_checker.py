"""A safety checker: what it flags is said, and a pipeline may be built without it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import stable_diffusion_pipeline
from conftest import Cli
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor

CALL = ("--prompt", "a fox", "--seed", "7", "--num-inference-steps", "2", "--json")


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose checker takes everything for unsafe."""
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**small, "projection_dim": 16, "image_size": 32, "patch_size": 16}
    config = CLIPConfig(text_config={**small, "projection_dim": 16}, vision_config=vision, projection_dim=16)
    checker = StableDiffusionSafetyChecker(config)
    with torch.no_grad():
        checker.concept_embeds_weights.fill_(-10)
        checker.special_care_embeds_weights.fill_(10)
    extractor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    parts = {**stable_diffusion_pipeline().components, "safety_checker": checker, "feature_extractor": extractor}
    folder = tmp_path_factory.mktemp("strict") / "model"
    StableDiffusionPipeline(**parts, requires_safety_checker=True).save_pretrained(folder)
    return folder


def test_a_flagged_picture_is_said_in_every_place_and_a_build_without_the_checker_makes_it(
    cli: Cli, strict: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(strict, tmp_path / "model"))
    build = ("build", "stable-diffusion", "--model", model, "--dtype", "float32", "--device", "cpu")
    keys = [
        cli(*build, "--name", name, *more, "--json", check=True).stdout
        for name, more in (("with", ()), ("without", ("--no-safety-checker",)))
    ]
    assert len({json.loads(key)["key"] for key in keys}) == 2

    done = cli("generate", "with", *CALL, "-o", "a.png", "--journal", "run.jsonl", cwd=tmp_path, check=True)
    (warning,) = json.loads(done.stdout)["warnings"]
    assert "took the picture for not safe for work and made it black" in warning
    assert warning in done.stderr
    assert warning in (tmp_path / "run.jsonl").read_text()
    assert warning in cli("inspect", "a.png", cwd=tmp_path, check=True).stdout
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.getextrema() == ((0, 0),) * 3

    shutil.rmtree(model / "safety_checker")  # what is left out is not needed
    done = cli("generate", "without", *CALL, "-o", "b.png", cwd=tmp_path, check=True)
    assert json.loads(done.stdout)["warnings"] == []
    assert "safety" not in done.stderr
    with Image.open(tmp_path / "b.png") as picture:
        assert all(high > low for low, high in picture.getextrema())
    shown = cli("inspect", "b.png", cwd=tmp_path, check=True).stdout
    assert "safety_checker" in next(line for line in shown.splitlines() if line.startswith("without"))
    cli("pipelines", "export", "without", "bare.tar", cwd=tmp_path, check=True)
    elsewhere = {"DIFFPIPE_HOME": str(tmp_path / "there")}
    key = json.loads(cli("pipelines", "import", "bare.tar", "--json", cwd=tmp_path, env=elsewhere, check=True).stdout)
    assert key["key"] == json.loads(keys[1])["key"]
    again = cli("reproduce", "b.png", "--verify", "-o", "c.png", cwd=tmp_path, check=True)
    assert "identical" in again.stdout + again.stderr
    cli("pipelines", "remove", "without", cwd=tmp_path, check=True)
    built = cli("reproduce", "b.png", "--model", model, "--verify", "-o", "d.png", cwd=tmp_path, check=True)
    assert "identical" in built.stdout + built.stderr


@pytest.mark.parametrize(
    ("model", "more", "says"),
    [
        ("sd", ("--no-safety-checker",), "--no-safety-checker: this model has no safety checker"),
        ("strict", ("--no-safety-checker", "--component", "safety_checker=x"), "are both given"),
    ],
)
def test_where_there_is_none_the_option_is_refused(
    cli: Cli, checkpoints: Path, strict: Path, model: str, more: tuple[str, ...], says: str
) -> None:
    place = strict if model == "strict" else checkpoints / "stable-diffusion"
    for command in ("build", "plan"):
        done = cli(command, "stable-diffusion", "--model", place, *more)
        assert (done.returncode, says in done.stderr, done.stderr.count("\n")) == (2, True, 2)
