"""engine.running.own_state: an item is the same in a batch and alone, in any place, after any other."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli

from diffpipe.catalog.schedulers import schedulers_of
from diffpipe.core.configuration import SchedulerChoice
from diffpipe.core.errors import DrawnTogether

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
np = pytest.importorskip("numpy")

from diffpipe.engine.classes.schedulers import is_scheduler  # noqa: E402
from diffpipe.engine.loading import chosen_scheduler  # noqa: E402
from diffpipe.engine.running.own_state import each_its_own, generators  # noqa: E402

ITEMS = (("a fox", 7), ("a long prompt about a cat in a box", 8), ("a dog", 9))
# Together they take every scheduler that a family can take, but for those of one model alone.
FAMILIES = {
    "stable-diffusion": "StableDiffusionPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline",
}
# Settings that make a scheduler draw noise, or look at how many steps there are.
DRAWING = (
    ("stable-diffusion", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("stable-diffusion", "DPMSolverSinglestepScheduler", {"final_sigmas_type": "sigma_min"}),
    ("stable-diffusion", "DPMSolverSDEScheduler", {"noise_sampler_seed": 3}),
    ("stable-diffusion", "DPMSolverSDEScheduler", {}),
    ("stable-diffusion", "LMSDiscreteScheduler", {}),
    ("flux", "FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
)


def cases() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for folder, name in FAMILIES.items():
        yield from ((folder, scheduler, {}) for scheduler in schedulers_of(name))
    yield from (case for case in DRAWING if is_scheduler(getattr(diffusers, case[1])))


@pytest.fixture(scope="module")
def pipelines(checkpoints: Path) -> dict[str, Any]:
    found = {}
    for folder in FAMILIES:
        found[folder] = diffusers.DiffusionPipeline.from_pretrained(checkpoints / folder, local_files_only=True)
        found[folder].set_progress_bar_config(disable=True)
    return found


def made(pipe: Any, items: Any, steps: int = 4, **more: Any) -> list[Any]:
    """The latents of items in one call, or, where they cannot have each its own noise in it, in one call each."""
    prompts, seeds = [prompt for prompt, _ in items], [seed for _, seed in items]
    own = generators(seeds)
    several = len(items) > 1
    try:
        with each_its_own(pipe, len(items)):
            (out,) = pipe(
                prompts if several else prompts[0], generator=own, num_inference_steps=steps, width=32, height=32,
                output_type="latent", return_dict=False, **more,
            )[:1]  # fmt: skip
    except DrawnTogether:
        return [one for item in items for one in made(pipe, [item], steps, **more)]
    return list(out)


@pytest.fixture
def pipe(pipelines: dict[str, Any], request: pytest.FixtureRequest) -> Iterator[Any]:
    folder, scheduler, settings = request.param
    found = pipelines[folder]
    own = found.scheduler
    chosen_scheduler.put(found, SchedulerChoice(scheduler, settings))
    yield found
    found.scheduler = own


@pytest.mark.parametrize("pipe", cases(), indirect=True, ids=lambda case: "-".join([*case[:2], *case[2]]))
def test_an_item_of_a_batch_is_the_item_alone(pipe: Any) -> None:
    together = made(pipe, ITEMS[:2])
    alone = [made(pipe, [item])[0] for item in reversed(ITEMS[:2])][::-1]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


FLOW = ("flux", "FlowMatchLCMScheduler", {})
SINGLE = ("stable-diffusion", "DPMSolverSinglestepScheduler", {"final_sigmas_type": "sigma_min", "solver_order": 3})


@pytest.mark.parametrize("pipe", [SINGLE], indirect=True)
def test_what_a_scheduler_keeps_of_one_call_is_not_there_in_the_next(pipe: Any) -> None:
    first = made(pipe, ITEMS[:1], steps=6)
    made(pipe, ITEMS[:1], steps=5)  # no multiple of its order: it sets lower_order_final for good
    assert not pipe.scheduler.config.lower_order_final
    torch.testing.assert_close(made(pipe, ITEMS[:1], steps=6), first, atol=0, rtol=0)


@pytest.mark.parametrize("pipe", [FLOW, SINGLE], indirect=True)
def test_an_item_after_one_that_failed_is_the_same(pipe: Any) -> None:
    first = made(pipe, ITEMS[:1])

    def failing(pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            raise RuntimeError("no more")
        return tensors

    with pytest.raises(RuntimeError, match="no more"):
        made(pipe, ITEMS[1:2], callback_on_step_end=failing)
    torch.testing.assert_close(made(pipe, ITEMS[:1]), first, atol=0, rtol=0)


@pytest.mark.parametrize("pipe", [FLOW], indirect=True)
@pytest.mark.parametrize("draw", [lambda: torch.rand(1), np.random.rand, random.random], ids=["torch", "numpy", "own"])
def test_a_draw_from_what_items_share_is_noticed(pipe: Any, draw: Any) -> None:
    with pytest.raises(DrawnTogether), each_its_own(pipe, 2):
        draw()
    with each_its_own(pipe, 1):
        draw()
    with each_its_own(pipe, 2):
        torch.rand(2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("pipe", [FLOW], indirect=True)
def test_a_noise_sampler_of_the_schedulers_own_is_no_items(pipe: Any) -> None:
    pipe.scheduler.noise_sampler = None  # as DPMSolverSDEScheduler has it before a call: one tree for all items
    with pytest.raises(DrawnTogether), each_its_own(pipe, 2):
        pytest.fail("the call was made")


@pytest.mark.parametrize("seed", [0, 2**32, 2**64 - 1])
def test_every_generator_of_the_process_begins_anew(seed: int) -> None:
    def drawn() -> list[float]:
        generators([seed])
        return [torch.rand(1).item(), float(np.random.rand()), random.random()]

    assert drawn() == drawn()


def test_a_batch_that_shares_noise_is_made_one_by_one(checkpoints: Path, cli: Cli, tmp_path: Path) -> None:
    scheduler = ("--scheduler", "FlowMatchLCMScheduler", "--device", "cpu", "--name", "lcm")
    cli("build", "flux", "--model", checkpoints / "flux", *scheduler, check=True)
    (tmp_path / "three.txt").write_text("a fox\na cat\na dog\n")
    flags = ("--prompts-from", "three.txt", "--seed", 7, "--num-inference-steps", 2, "--width", 32, "--height", 32)
    made = {}
    for size in (1, 3):
        words = ("--batch-size", size, "--no-worker", "--no-metadata", "-o", f"{size}/{{index}}.png")
        made[size] = cli("generate", "lcm", *flags, *words, cwd=tmp_path, check=True)
    assert made[3].stderr.count("draws the noise of all items of a call at once") == 1
    assert "at once" not in made[1].stderr
    for name in ("1.png", "2.png", "3.png"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()
