"""engine.classes.schedulers: which fit, that all which are listed run, and settings merged onto the shipped ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli

from diffpipe.catalog import BUILTIN
from diffpipe.catalog.schedulers import every_scheduler, schedulers_of
from diffpipe.core.configuration import SchedulerChoice
from diffpipe.core.errors import UsageError

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
np = pytest.importorskip("numpy")

from PIL import Image  # noqa: E402

from diffpipe.engine.classes import schedulers  # noqa: E402
from diffpipe.engine.loading import chosen_scheduler, library_logs  # noqa: E402

SIZE = {"height": 32, "width": 32}


def shipped(folder: Path) -> tuple[Any, dict[str, Any]]:
    settings = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    return schedulers.scheduler_class(settings["_class_name"]), settings


def listed() -> Iterator[tuple[str, str, str]]:
    """Folder, pipeline class and scheduler of what `providers show` lists for families of either kind."""
    for folder, name in (
        ("stable-diffusion", "StableDiffusionPipeline"),
        ("stable-diffusion", "StableDiffusionImg2ImgPipeline"),
        ("flux", "FluxPipeline"),
        ("flux", "FluxImg2ImgPipeline"),
        ("sd3", "StableDiffusion3Pipeline"),
        ("wan", "WanPipeline"),
    ):
        yield from ((folder, name, scheduler) for scheduler in schedulers_of(name))


@pytest.fixture(scope="module")
def pipelines(checkpoints: Path) -> dict[tuple[str, str], Any]:
    library_logs.listen()
    found = {}
    for folder, name in dict.fromkeys((folder, name) for folder, name, _ in listed()):
        found[folder, name] = getattr(diffusers, name).from_pretrained(checkpoints / folder, local_files_only=True)
        found[folder, name].set_progress_bar_config(disable=True)
    return found


@pytest.mark.parametrize(("folder", "name", "scheduler"), listed())
def test_what_is_listed_runs(pipelines: dict[tuple[str, str], Any], folder: str, name: str, scheduler: str) -> None:
    pipe, size = pipelines[folder, name], SIZE
    own = pipe.scheduler
    pipe.scheduler = chosen_scheduler.replaced(own, SchedulerChoice(scheduler, {}))
    if "Img2Img" in name:
        size = {"image": Image.linear_gradient("L").resize((32, 32)).convert("RGB"), "strength": 0.75}
    if "Wan" in name:
        size = {**SIZE, "num_frames": 5}
    try:
        # PNDM needs four steps where the shipped configuration does not say skip_prk_steps
        out = pipe("a fox", num_inference_steps=4, generator=torch.Generator().manual_seed(0), output_type="np", **size)
    finally:
        pipe.scheduler = own
    made = np.asarray(out[0])
    assert np.isfinite(made).all()
    assert made.std() > 0.01


def test_every_pipeline_of_the_catalogue_with_a_scheduler_lists_its_own() -> None:
    rows = [row for provider in BUILTIN.values() for row in provider.types if row.pipeline]
    assert {row.pipeline for row in rows if not schedulers_of(row.pipeline)} == set()
    assert "PNDMScheduler" in every_scheduler()


@pytest.mark.parametrize(
    "model", ["flux", "stable-diffusion", "sdxl", "sd3", "qwen", "z-image", "wan", "ltx", "allegro"]
)
def test_what_a_build_accepts_is_what_is_listed(checkpoints: Path, model: str) -> None:
    index = json.loads((checkpoints / model / "model_index.json").read_text())
    pipeline = getattr(diffusers, index["_class_name"])
    assert schedulers.fitting(pipeline, *shipped(checkpoints / model)) == list(schedulers_of(pipeline.__name__))


def check(checkpoints: Path, model: str, scheduler: str | None, settings: dict[str, Any] | None = None) -> None:
    pipeline = diffusers.FluxPipeline if model == "flux" else diffusers.StableDiffusionPipeline
    chosen_scheduler.check(SchedulerChoice(scheduler, settings or {}), pipeline, *shipped(checkpoints / model))


@pytest.mark.parametrize(
    ("model", "scheduler"),
    [
        ("flux", "DDIMScheduler"),
        ("flux", "FlowMatchHeunDiscreteScheduler"),  # takes no sigmas, which FluxPipeline always passes
        ("stable-diffusion", "FlowMatchEulerDiscreteScheduler"),
        ("stable-diffusion", "DDIMInverseScheduler"),
        ("stable-diffusion", "EDMEulerScheduler"),
        ("stable-diffusion", "AmusedScheduler"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(checkpoints: Path, model: str, scheduler: str) -> None:
    with pytest.raises(UsageError, match=f"{scheduler} does not fit a model made for") as raised:
        check(checkpoints, model, scheduler)
    assert raised.value.hint.startswith("choose one of: ")
    assert scheduler not in raised.value.hint


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"beta_strat": 0.1}, "EulerDiscreteScheduler has no setting 'beta_strat'", "did you mean beta_start?"),
        ({"beta_start": "a"}, 'EulerDiscreteScheduler: beta_start cannot be "a"', "the default is 0.0001"),
        ({"beta_start": True}, "EulerDiscreteScheduler: beta_start cannot be true", "the default is 0.0001"),
        ({"use_karras_sigmas": 1}, "EulerDiscreteScheduler: use_karras_sigmas cannot be 1", "the default is false"),
        (
            {"beta_start": float("inf")},
            "EulerDiscreteScheduler: beta_start cannot be Infinity",
            "1,000,000 is the most",
        ),
        (
            {"num_train_timesteps": 20_000_000},
            "EulerDiscreteScheduler: num_train_timesteps cannot be",
            "1,000,000 is the most",
        ),
        ({"beta_schedule": "x"}, "EulerDiscreteScheduler cannot be set up so: ", "check --scheduler-config"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_settings_that_it_cannot_have(checkpoints: Path, settings: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(UsageError) as raised:
        check(checkpoints, "stable-diffusion", "EulerDiscreteScheduler", settings)
    assert raised.value.message.startswith(message)
    assert raised.value.hint == hint
    check(checkpoints, "stable-diffusion", "DDIMScheduler", {"clip_sample_range": 2, "thresholding": True})


def test_a_model_without_a_scheduler_has_none_to_change() -> None:
    asked = SchedulerChoice("DDIMScheduler", {})
    with pytest.raises(UsageError, match="this pipeline has no scheduler to change"):
        chosen_scheduler.check(asked, diffusers.FluxPriorReduxPipeline, None, {})
    chosen_scheduler.check(SchedulerChoice(None, {}), diffusers.FluxPriorReduxPipeline, None, {})


def test_one_that_needs_another_package_is_named() -> None:
    with pytest.raises(UsageError) as raised:
        schedulers.scheduler_class("LMSDiscreteScheduler")
    assert raised.value.message == "LMSDiscreteScheduler needs a package that is not installed: scipy"
    assert raised.value.hint == "pip install scipy"


def test_a_solver_of_either_kind_integrates_the_shipped_flow(checkpoints: Path) -> None:
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    made = chosen_scheduler.replaced(flow, SchedulerChoice("UniPCMultistepScheduler", {"solver_order": 3}))
    expected = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0, "solver_order": 3}
    assert {name: made.config[name] for name in expected} == expected

    back = chosen_scheduler.replaced(made, SchedulerChoice("FlowMatchEulerDiscreteScheduler", {}))
    assert back.config.shift == 3.0
    own = chosen_scheduler.replaced(flow, SchedulerChoice("DPMSolverMultistepScheduler", {"flow_shift": 5.0}))
    assert own.config.flow_shift == 5.0


def test_a_setting_that_the_shipped_configuration_leaves_out_is_set() -> None:
    shipped_one = diffusers.EulerDiscreteScheduler.from_config({"beta_start": 0.001})  # as in an older scheduler_config
    made = chosen_scheduler.replaced(shipped_one, SchedulerChoice(None, {"use_karras_sigmas": True}))
    assert (made.config.use_karras_sigmas, made.config.beta_start) == (True, 0.001)
    solver = SchedulerChoice("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, "beta_start": 0.002})
    made = chosen_scheduler.replaced(shipped_one, solver)
    assert (made.config.use_karras_sigmas, made.config.beta_start) == (True, 0.002)


def test_the_list_costs_no_import(cli: Cli) -> None:
    shown = cli.light("providers", "show", "flux").stdout
    line = next(line for line in shown.splitlines() if line.startswith("schedulers (text2image"))
    assert line.partition(": ")[2].split(", ") == list(schedulers_of("FluxPipeline"))
    rows = json.loads(cli.light("providers", "show", "flux", "--json").stdout)["types"]
    assert rows[0]["schedulers"] == list(schedulers_of("FluxPipeline"))
