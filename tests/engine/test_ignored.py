"""engine.running.ignored: arguments that did nothing, and numbers that became others, are told."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from diffpipe.batch.argument_checks import checked
from diffpipe.core.errors import UsageError
from diffpipe.core.request import Request

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from PIL import Image  # noqa: E402

from diffpipe.engine.classes.signature import read_flags  # noqa: E402
from diffpipe.engine.running import ignored, run  # noqa: E402
from diffpipe.engine.running.results import PictureResult, VideoResult  # noqa: E402

FAMILIES = ("flux", "stable-diffusion", "sdxl", "sd3", "z-image", "amused")


@pytest.fixture(scope="module")
def pipelines(checkpoints: Path) -> dict[str, Any]:
    found = {}
    for folder in FAMILIES:
        found[folder] = diffusers.DiffusionPipeline.from_pretrained(checkpoints / folder, local_files_only=True)
        found[folder].set_progress_bar_config(disable=True)
    return found


def told(pipe: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path, **given: Any) -> list[str]:
    """The names of the arguments that a call is warned of."""
    usual = {flag.name: flag.default for flag in read_flags(type(pipe))}
    arguments = {"prompt": "a fox", "width": 32, "height": 32, "num_inference_steps": 2, **given}
    every = {name: value for name, value in {**usual, **arguments}.items() if value not in (None, [])}
    request = Request(0, 7, every, (str(tmp_path / "x.png"),), True)
    with caplog.at_level(logging.WARNING, "diffpipe.run"):
        run.run(pipe, run.PipelineCall("image", [request], [every], lambda done, steps: None, usual=usual))
    return [record.getMessage().split()[0] for record in caplog.records if record.name == "diffpipe.run"]


@pytest.mark.parametrize(
    ("folder", "given", "names"),
    [
        ("stable-diffusion", {"negative_prompt": "blue", "guidance_scale": 1.0}, ["--negative-prompt"]),
        ("stable-diffusion", {"negative_prompt": "blue"}, []),  # 7.5 by default
        ("stable-diffusion", {"guidance_rescale": 0.7, "guidance_scale": 0.0}, ["--guidance-rescale"]),
        ("stable-diffusion", {"eta": 0.5}, []),  # DDIM's own
        ("sdxl", {"eta": 0.5}, ["--eta"]),  # Euler takes none
        ("sdxl", {"negative_prompt_2": "blue", "guidance_scale": 1.0}, ["--negative-prompt-2"]),
        ("sd3", {"negative_prompt": "blue", "negative_prompt_3": "red", "guidance_scale": 1.0},
            ["--negative-prompt", "--negative-prompt-3"]),
        ("flux", {"negative_prompt": "blue"}, ["--negative-prompt"]),  # its own guidance takes no negative prompt
        ("flux", {"negative_prompt": "blue", "true_cfg_scale": 4.0}, []),
        ("flux", {"guidance_scale": 7.0}, ["--guidance-scale"]),  # the tiny one is as [schnell]: no guidance_embeds
        ("z-image", {"negative_prompt": "blue", "guidance_scale": 0.0}, ["--negative-prompt"]),
        ("z-image", {"negative_prompt": "blue", "guidance_scale": 1.0}, []),  # it guides above 0
        ("amused", {"negative_prompt": "blue", "guidance_scale": 1.0}, ["--negative-prompt"]),
    ],
)  # fmt: skip
def test_an_argument_that_does_nothing_is_told(
    pipelines: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    folder: str,
    given: dict[str, Any],
    names: list[str],
) -> None:
    assert told(pipelines[folder], caplog, tmp_path, **given) == names


@pytest.mark.parametrize("folder", FAMILIES)
def test_nothing_is_told_of_a_plain_call(
    pipelines: dict[str, Any], caplog: pytest.LogCaptureFixture, tmp_path: Path, folder: str
) -> None:
    assert told(pipelines[folder], caplog, tmp_path) == []


def picture(width: int, height: int) -> PictureResult:
    return PictureResult(Image.new("RGB", (width, height)))


@pytest.mark.parametrize(
    ("results", "arguments", "lines"),
    [
        ([picture(96, 64)], {"width": 100, "height": 64}, ["--width 100 was asked for: the pipeline made 96 of it"]),
        ([picture(96, 64)], {"width": 96}, []),
        ([picture(96, 64)], {"width": 32, "height": 32, "padding_mask_crop": 8}, []),
        ([VideoResult([Image.new("RGB", (32, 32))] * 5, 8.0)], {"num_frames": 6, "width": 32},
            ["--num-frames 6 was asked for: the pipeline made 5 of it"]),
        ([picture(8, 8)] * 2, {"num_images_per_prompt": 3},
            ["--num-images-per-prompt 3 was asked for: the pipeline made 2 of it"]),
        ([picture(8, 8), PictureResult(Image.new("L", (8, 8)), role="mask")], {"num_images_per_prompt": 1}, []),
    ],
)  # fmt: skip
def test_a_number_that_became_another_is_told(results: Any, arguments: dict[str, Any], lines: list[str]) -> None:
    assert list(ignored.made_otherwise(results, arguments, 1)) == lines


def test_a_call_without_a_step_is_told() -> None:
    assert len(list(ignored.no_step(4, 0, counted=True))) == 1
    assert list(ignored.no_step(4, 1, counted=True)) == []
    assert list(ignored.no_step(4, 0, counted=False)) == []  # a pipeline that does not report its steps


@pytest.mark.parametrize(
    "arguments",
    [
        {"control_guidance_start": 0.8, "control_guidance_end": 0.2},
        {"control_guidance_start": 0.5, "control_guidance_end": 0.5},
        {"control_guidance_start": [0.0, 0.9], "control_guidance_end": [1.0, 0.1]},
        {"denoising_start": 0.9, "denoising_end": 0.5},
        {"pag_start": 1, "pag_end": 0},
    ],
)
def test_a_part_that_ends_before_it_starts_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="no step is left"):
        checked({}, arguments)


def test_a_part_that_ends_after_it_starts_is_taken() -> None:
    checked({}, {"control_guidance_start": [0.0, 0.1], "control_guidance_end": [1.0, 0.9], "denoising_start": 0.5})
