"""Settings of schedulers: every class that a family can take, every setting it has, from configurations as hubs have
them: with all keys, with none, and with `_use_default_values`."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diffpipe.catalog import BUILTIN
from diffpipe.catalog.schedulers import schedulers_of
from diffpipe.core.configuration import SchedulerChoice
from diffpipe.core.errors import UsageError

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
np = pytest.importorskip("numpy")

from diffpipe.engine.classes.schedulers import is_scheduler  # noqa: E402
from diffpipe.engine.loading import chosen_scheduler  # noqa: E402
from diffpipe.engine.seams import diffusers_seam  # noqa: E402

# Values that differ from the default, where a number or a switch does not say which: first those of diffusers'
# documentation of each class.
WORDS: dict[str, tuple[Any, ...]] = {
    "prediction_type": ("v_prediction", "sample", "epsilon"),
    "beta_schedule": ("scaled_linear", "squaredcos_cap_v2", "linear"),
    "timestep_spacing": ("trailing", "leading", "linspace"),
    "variance_type": ("fixed_large", "learned", "learned_range"),
    "algorithm_type": ("sde-dpmsolver++", "dpmsolver++", "deis", "noise_prediction"),
    "solver_type": ("heun", "bh1", "bh2", "midpoint", "logrho"),
    "final_sigmas_type": ("sigma_min", "zero"),
    "time_shift_type": ("linear", "exponential"),
    "interpolation_type": ("log_linear",),
    "timestep_type": ("continuous",),
    "masking_schedule": ("linear",),
    "upscale_mode": ("nearest",),
    "trained_betas": ([0.0001 + 0.00001 * step for step in range(20)],),
    "disable_corrector": ([0],),
    "sigma_min": (0.05,),
    "sigma_max": (12.0,),
    "shift_terminal": (0.1,),
    "num_train_timesteps": (30,),
    "noise_sampler_seed": (5,),
    "scale_factors": ([0.5, 0.75, 1.0],),
    "mask_token_id": (6,),
}
OBJECTS = {"tau_func", "solver_p"}  # a function, another scheduler: no JSON says them
# KDPM2's constructors make the whole schedule, which takes long for a thousand steps.
FEW = {"num_train_timesteps": 20}
NEEDED: dict[str, dict[str, Any]] = {
    "AmusedScheduler": {"mask_token_id": 5},
    "KDPM2DiscreteScheduler": FEW,
    "KDPM2AncestralDiscreteScheduler": FEW,
}
# What a value needs beside it (diffusers' own errors say so).
BESIDE = {"shift_terminal": {"use_flow_sigmas": True}}
OPTIONAL = ("LMSDiscreteScheduler", "DPMSolverSDEScheduler")  # where scipy and torchsde are installed
ONE_VALUE = {("DEISMultistepScheduler", "algorithm_type"), ("DEISMultistepScheduler", "solver_type")}


def families() -> dict[str, str]:
    """Scheduler -> the first pipeline class of the catalogue that takes it."""
    rows = [row for provider in BUILTIN.values() for row in provider.types if row.pipeline]
    found: dict[str, str] = {}
    for row in rows:
        for name in schedulers_of(row.pipeline):
            found.setdefault(name, row.pipeline)
    return {**found, **dict.fromkeys(OPTIONAL, "StableDiffusionPipeline")}


def other_values(name: str, default: object) -> tuple[Any, ...]:
    if name in WORDS:
        return tuple(value for value in WORDS[name] if value != default)
    if isinstance(default, bool):
        return (not default,)
    assert isinstance(default, int | float), name
    return (default + 1 if isinstance(default, int) else default / 2 if math.isfinite(default) and default else -5.1,)


def settings() -> Iterator[tuple[str, str]]:
    for name in families():
        if is_scheduler(cls := getattr(diffusers, name)):
            yield from ((name, one) for one in inspect.signature(cls.__init__).parameters if one != "self")


SETTINGS = [(cls, name) for cls, name in settings() if name not in OBJECTS]


def shipped(cls: Any) -> dict[str, Any]:
    """The class's own scheduler at its defaults, by three configurations of it."""
    needed = NEEDED.get(cls.__name__, {})
    defaults = {name: p.default for name, p in inspect.signature(cls.__init__).parameters.items() if name != "self"}
    every = {**defaults, **needed}
    return {
        "all keys": cls.from_config({"_class_name": cls.__name__, "_diffusers_version": "0.30.0", **every}),
        "no key": cls.from_config({"_class_name": cls.__name__, "_diffusers_version": "0.2.2", **needed}),
        "defaults listed": cls.from_config({**every, "_use_default_values": sorted(every.keys() - needed.keys())}),
    }


def outcome(own: Any, setting: str, value: object) -> str:
    """Whether a scheduler made of another has a value: kept, refused by its class's name, or wrong."""
    cls = type(own)
    beside = BESIDE.get(setting, {}) if "use_flow_sigmas" in own.config else {}
    try:
        made = chosen_scheduler.set_up(own, SchedulerChoice(None, {**beside, setting: value}), cls)
    except UsageError as error:
        return "refused" if cls.__name__ in error.message else error.message
    again = cls.from_config(made.config)  # as pipelines do that take a scheduler from another
    found = [json.loads(json.dumps(one.config[setting])) for one in (made, again)]
    right = found == [value, value] and setting not in made.config["_use_default_values"]
    return "kept" if right else f"wrong: {found}"


@pytest.mark.parametrize(("name", "setting"), SETTINGS, ids=[f"{cls}-{name}" for cls, name in SETTINGS])
def test_a_setting_is_the_schedulers_or_is_refused(name: str, setting: str) -> None:
    cls = getattr(diffusers, name)
    default = inspect.signature(cls.__init__).parameters[setting].default
    found = {
        json.dumps(value): {outcome(own, setting, value) for own in shipped(cls).values()}
        for value in other_values(setting, default)
    }
    # From every configuration alike.
    assert [answers for answers in found.values() if answers not in ({"kept"}, {"refused"})] == []
    # The first needs scipy; of the others DEIS has one value each, by its constructor.
    assert {"kept"} in found.values() or setting == "use_beta_sigmas" or (name, setting) in ONE_VALUE


def test_there_is_a_setting_for_every_argument_of_every_scheduler() -> None:
    assert len(families()) >= 22
    assert len(SETTINGS) >= 300


# --- By effect -------------------------------------------------------------------------------------------------------

# What Stable Diffusion 1's repository says of its scheduler: no prediction_type, no timestep_spacing, no sigmas.
HUB = {"_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085}
TRAINED = 1000
# (Stable Diffusion's scaled_linear) arXiv:2112.10752, configs/stable-diffusion of CompVis/stable-diffusion
ALPHAS = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, TRAINED) ** 2)


def as_asked(name: str, settings: dict[str, Any], config: dict[str, Any] | None = None) -> Any:
    """A scheduler of a build that asks for settings, from a model whose configuration does not list them."""
    model = diffusers.PNDMScheduler.from_config({"_class_name": "PNDMScheduler", **(config or HUB)})
    return chosen_scheduler.replaced(model, SchedulerChoice(name, settings))


def noise_levels(steps: int) -> Any:
    """sigma = sqrt((1 - a) / a) at evenly spaced timesteps, the noisiest first (arXiv:2206.00364, table 1)."""
    return np.interp(np.linspace(TRAINED - 1, 0, steps), range(TRAINED), np.sqrt((1 - ALPHAS) / ALPHAS))


def test_karras_noise_levels_are_those_of_the_paper() -> None:
    made = as_asked("EulerDiscreteScheduler", {"use_karras_sigmas": True})
    made.set_timesteps(8)
    low, high = noise_levels(8)[[-1, 0]] ** (1 / 7)  # rho = 7 (arXiv:2206.00364, equation 5)
    expected = (high + np.arange(8) / 7 * (low - high)) ** 7
    np.testing.assert_allclose(made.sigmas[:-1].numpy(), expected, rtol=1e-4)


def test_exponential_noise_levels_are_even_in_the_logarithm() -> None:
    made = as_asked("EulerDiscreteScheduler", {"use_exponential_sigmas": True})
    made.set_timesteps(8)
    low, high = np.log(noise_levels(8)[[-1, 0]])
    np.testing.assert_allclose(np.log(made.sigmas[:-1].numpy()), np.linspace(high, low, 8), rtol=1e-3)


def test_beta_noise_levels_are_quantiles_of_the_beta_distribution() -> None:
    stats = pytest.importorskip("scipy.stats")
    made = as_asked("EulerDiscreteScheduler", {"use_beta_sigmas": True})
    made.set_timesteps(8)
    levels = noise_levels(8)
    low, high = levels[-1], levels[0]
    # arXiv:2407.12173, with alpha = beta = 0.6: their share of the way between the ends has quantiles 1 - n / 7
    share = (made.sigmas[:-1].numpy().astype(float) - low) / (high - low)
    np.testing.assert_allclose(stats.beta.cdf(np.clip(share, 0, 1), 0.6, 0.6), np.linspace(1, 0, 8), atol=1e-3)


def test_zero_terminal_snr_rescales_the_betas() -> None:
    made = as_asked("DDIMScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"})
    root = np.sqrt(ALPHAS)  # arXiv:2305.08891, algorithm 1
    expected = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    np.testing.assert_allclose(made.alphas_cumprod.numpy(), expected, atol=1e-5)
    made.set_timesteps(4)
    assert made.timesteps.tolist() == [999, 749, 499, 249]


def test_v_prediction_is_what_a_step_reads() -> None:
    made = as_asked("DDIMScheduler", {"prediction_type": "v_prediction", "clip_sample": False, "steps_offset": 0})
    made.set_timesteps(4)  # leading: 750, 500, 250, 0
    x, v = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    now, then = ALPHAS[750], ALPHAS[500]
    clean = now**0.5 * x - (1 - now) ** 0.5 * v  # arXiv:2202.00512, appendix D
    noise = now**0.5 * v + (1 - now) ** 0.5 * x
    expected = then**0.5 * clean + (1 - then) ** 0.5 * noise  # arXiv:2010.02502, equation 12 without noise
    torch.testing.assert_close(made.step(v, 750, x).prev_sample, expected.float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0, 12.0])
def test_a_flow_is_shifted(shift: float) -> None:
    own = diffusers.FlowMatchEulerDiscreteScheduler.from_config({"num_train_timesteps": 1000})
    made = chosen_scheduler.replaced(own, SchedulerChoice(None, {"shift": shift}))
    made.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    even = np.array([1.0, 0.75, 0.5, 0.25])
    expected = shift * even / (1 + (shift - 1) * even)  # arXiv:2403.03206, equation 23
    np.testing.assert_allclose(made.sigmas[:-1].numpy(), expected, rtol=1e-5)


# --- What is said of settings ----------------------------------------------------------------------------------------


def said(name: str, settings: dict[str, Any], pipeline: str = "StableDiffusionPipeline") -> list[str]:
    cls = getattr(diffusers, name)
    return chosen_scheduler.check(SchedulerChoice(name, settings), getattr(diffusers, pipeline), cls, {})


@pytest.mark.parametrize(
    ("name", "settings", "idle"),
    [
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, "use_lu_lambdas": True}, "use_lu_lambdas"),
        ("DPMSolverMultistepScheduler", {"flow_shift": 5.0}, "flow_shift"),
        ("UniPCMultistepScheduler", {"dynamic_thresholding_ratio": 0.9}, "dynamic_thresholding_ratio"),
        ("HeunDiscreteScheduler", {"clip_sample_range": 2.0}, "clip_sample_range"),
        ("LCMScheduler", {"timestep_spacing": "trailing"}, "timestep_spacing"),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "timestep_type"),
    ],
)
def test_a_setting_without_an_effect_is_named(name: str, settings: dict[str, Any], idle: str) -> None:
    assert said(name, settings) == [
        f"--scheduler-config {idle} changes nothing: {name} does not use it as it is set up"
    ]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "flow_shift": 5.0}),
        ("DPMSolverMultistepScheduler", {"thresholding": True, "sample_max_value": 2.0}),
        ("HeunDiscreteScheduler", {"clip_sample": True, "clip_sample_range": 0.5}),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous", "prediction_type": "v_prediction"}),
        ("DDPMScheduler", {"variance_type": "learned_range"}),
        ("PNDMScheduler", {"prediction_type": "epsilon", "timestep_spacing": "leading"}),  # the defaults
    ],
)
def test_nothing_is_said_of_settings_that_do_something(name: str, settings: dict[str, Any]) -> None:
    assert said(name, settings) == []


def test_a_shift_that_the_pipeline_computes_is_used() -> None:
    assert (
        said("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "max_shift": 2.0}, "FluxPipeline") == []
    )


def test_a_setting_that_the_scheduler_takes_back_is_named() -> None:
    settings = {"final_sigmas_type": "sigma_min", "lower_order_final": False}
    (notice,) = said("DPMSolverSinglestepScheduler", settings)
    assert notice.startswith("--scheduler-config lower_order_final does not stay: ")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("DEISMultistepScheduler", {"solver_type": "bh2"}, 'makes "logrho" of solver_type = "bh2"'),
        ("UniPCMultistepScheduler", {"solver_type": "midpoint"}, 'makes "bh2" of solver_type = "midpoint"'),
        ("EulerDiscreteScheduler", {"prediction_type": "v_pred"}, "cannot run so: prediction_type given as v_pred"),
        ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "even"}, "cannot run so: even is not supported"),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "use_exponential_sigmas": True}, "Only one of"),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "beta_start": 0.0}, "not finite"),  # ln 0
        ("UniPCMultistepScheduler", {"shift_terminal": 0.1}, "only supported when `use_flow_sigmas=True`"),
    ],
)
def test_a_setting_that_cannot_be_kept_is_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        said(name, settings)
    assert name in raised.value.message
    assert message in raised.value.message


def test_a_shift_by_size_is_refused_where_the_pipeline_computes_none() -> None:
    with pytest.raises(UsageError, match="`mu` must be passed"):
        said("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, "WanPipeline")


def test_a_pipeline_inside_the_pipeline_has_the_scheduler_too(checkpoints: Path) -> None:
    diffusers_seam.register_deprecated("wuerstchen")
    pipe = diffusers.WuerstchenCombinedPipeline.from_pretrained(checkpoints / "wuerstchen", local_files_only=True)
    chosen_scheduler.put(pipe, SchedulerChoice(None, {"scaler": 0.5}))
    assert pipe.decoder_pipe.scheduler is pipe.scheduler
    assert pipe.decoder_pipe.scheduler.config.scaler == 0.5
    assert pipe.prior_pipe.scheduler.config.scaler == 1.0  # that of another component


def test_the_package_that_a_setting_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.schedulers import scheduling_euler_discrete

    monkeypatch.setattr(scheduling_euler_discrete, "is_scipy_available", lambda: False)
    with pytest.raises(UsageError) as raised:
        said("EulerDiscreteScheduler", {"use_beta_sigmas": True})
    assert raised.value.hint == "pip install scipy"
