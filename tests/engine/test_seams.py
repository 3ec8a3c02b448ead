"""diffpipe.engine.seams: each private name of a library is there and does what it is used for."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diffpipe.engine import seams
from diffpipe.engine.seams import (
    accelerate_seam,
    diffusers_seam,
    diffusers_source_seam,
    torch_seam,
    transformers_seam,
)
from diffpipe.engine.seams.seam import Seam, folders, installed

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")


ALL = [pytest.param(seam, marks=[pytest.mark.pinned] if seam.versions else []) for seam in seams.seams()]


@pytest.mark.parametrize("seam", ALL, ids=[f"{seam.library} {seam.name}" for seam in seams.seams()])
def test_it_applies_to_what_is_installed(seam: Seam) -> None:
    assert seam.applies
    assert all((seam.buys, seam.without, seam.name))


@pytest.mark.pinned
def test_nothing_is_imported_to_tell() -> None:
    program = """
import sys
from diffpipe.engine.seams import seams
print(len([seam for seam in seams() if seam.applies]))
print([name for name in ("torch", "diffusers", "transformers", "accelerate", "optimum") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == [str(len(seams.seams())), "[]"]


# --- Where they do not apply ---

SEAM = Seam("package", "a name", "speed", "it is slower", "package/inner/module.py", "def _name(")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution "package" 2.13.4 whose module has `_name`."""
    (tmp_path / "package" / "inner").mkdir(parents=True)
    (tmp_path / "package" / "__init__.py").write_text("raise SystemError('imported')")
    (tmp_path / "package" / "inner" / "module.py").write_text("def _name():\n    pass\n")
    (tmp_path / "package-2.13.4.dist-info").mkdir()
    (tmp_path / "package-2.13.4.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: package\nVersion: 2.13.4\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "package"


@pytest.mark.parametrize(
    ("changed", "applies"),
    [
        ({}, True),
        ({"versions": ("2.13.",)}, True),
        ({"versions": ("2.1.", "3.")}, False),
        ({"text": "def _renamed("}, False),
        ({"file": "package/gone.py"}, False),
        ({"file": "nothing_of_that_name/module.py"}, False),
        ({"library": "not-installed-here"}, False),
    ],
)
def test_it_applies_where_its_words_stand_in_a_version_it_is_for(
    package: Path, changed: dict[str, Any], applies: bool
) -> None:
    assert replace(SEAM, **changed).applies is applies


def test_a_package_that_is_taken_for_absent_has_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)  # type: ignore[arg-type]
    assert folders("torchao") == []
    assert installed("torch", ("2.", "3."))


@pytest.mark.pinned
def test_what_does_not_apply_stands_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gone = replace(torch_seam.COMPILER, versions=("1.0.",))
    monkeypatch.setattr(torch_seam, "SEAMS", (gone,))
    caplog.set_level(logging.WARNING, "diffpipe.engine")
    seams.log_missing()
    caplog.set_level(logging.INFO, "diffpipe.engine")
    seams.log_missing()
    assert [record.getMessage() for record in caplog.records] == [
        "torch: no torch._dynamo as diffpipe knows it: the compiler is imported at each start, which takes 0.9 s more"
    ]


# --- diffusers ---


def test_constructor_types_names_classes_and_the_parts_of_unions() -> None:
    types = diffusers_seam.constructor_types(diffusers.FluxPipeline)
    assert diffusers.FluxTransformer2DModel in types["transformer"]
    assert transformers.T5EncoderModel in types["text_encoder_2"]
    control = diffusers_seam.constructor_types(diffusers.StableDiffusionControlNetPipeline)["controlnet"]
    assert diffusers.ControlNetModel in control
    assert diffusers.MultiControlNetModel in control


def test_parts_of_a_pipeline() -> None:
    assert {"image_encoder", "feature_extractor"} <= diffusers_seam.optional_parts(diffusers.FluxPipeline)
    assert set(diffusers_seam.lora_parts(diffusers.FluxPipeline)) == {"transformer", "text_encoder"}
    assert diffusers_seam.lora_parts(diffusers.AmusedPipeline) == ()


def test_modules_that_moved_are_found_under_their_old_name() -> None:
    diffusers_seam.register_deprecated("wuerstchen")
    assert diffusers.pipelines.wuerstchen is sys.modules["diffusers.pipelines.wuerstchen"]
    assert "WuerstchenDecoderPipeline" in dir(sys.modules["diffusers.pipelines.wuerstchen"])
    for name in ("flux", "no_such_module", "not an identifier"):
        diffusers_seam.register_deprecated(name)
    assert not hasattr(diffusers.pipelines, "no_such_module")


def test_missing_packages_of_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    assert diffusers_seam.missing_backends(diffusers.LMSDiscreteScheduler) == ["scipy"]
    assert diffusers_seam.missing_backends(diffusers.FluxPipeline) == []
    assert diffusers_seam.missing_backends(None) == []


def test_schedulers_say_what_may_take_their_place() -> None:
    assert "EulerDiscreteScheduler" in diffusers_seam.compatible_schedulers(diffusers.DDIMScheduler)
    assert diffusers_seam.compatible_schedulers(diffusers.AmusedScheduler) == frozenset()


def test_alpha_and_sigma_of_a_level() -> None:
    solver = diffusers.DPMSolverMultistepScheduler()
    level = torch.tensor(3.0)
    alpha, sigma = diffusers_seam.alpha_and_sigma(solver, level) or (0.0, 0.0)
    assert alpha == pytest.approx(1 / 10**0.5)  # unit variance: a = 1 / sqrt(1 + level^2), s = level * a
    assert sigma == pytest.approx(3 / 10**0.5)
    assert diffusers_seam.alpha_and_sigma(diffusers.EulerDiscreteScheduler(), level) is None


TINY = {
    "block_out_channels": (4,),
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "attention_head_dim": 2,
    "norm_num_groups": 2,
    "layers_per_block": 1,
}


def test_what_models_say_of_themselves() -> None:
    assert diffusers_seam.has_repeated_blocks(diffusers.FluxTransformer2DModel)
    assert not diffusers_seam.has_repeated_blocks(diffusers.AutoencoderKL)
    with torch.device("meta"):
        forbidding = diffusers.AutoencoderOobleck(encoder_hidden_size=4, decoder_channels=4)
    assert not diffusers_seam.supports_group_offloading(forbidding)
    assert diffusers_seam.supports_group_offloading(torch.nn.Linear(1, 1))


def test_which_models_switch_their_attention() -> None:
    with torch.device("meta"):
        flux = diffusers.FluxTransformer2DModel(
            num_layers=1, num_single_layers=0, attention_head_dim=8, num_attention_heads=1, axes_dims_rope=(2, 2, 4)
        )
        unet = diffusers.UNet2DModel(**TINY)
    assert diffusers_seam.switches_attention(flux)
    assert not diffusers_seam.switches_attention(unet)


class Bare:
    """A pipeline of which nothing private is there."""

    device = torch.device("cpu")


def test_a_loaded_pipeline_tells_and_one_without_the_names_has_a_default() -> None:
    pipe = diffusers.DDPMPipeline(diffusers.UNet2DModel(**TINY), diffusers.DDPMScheduler())
    assert not diffusers_seam.is_offloaded_by_model(pipe)
    assert diffusers_seam.device_of(pipe) == torch.device("cpu")
    pipe.enable_model_cpu_offload(device="cpu")
    assert diffusers_seam.is_offloaded_by_model(pipe)
    assert not diffusers_seam.is_offloaded_by_model(Bare())
    assert diffusers_seam.device_of(Bare()) == torch.device("cpu")


def test_steps_and_settings_of_a_call() -> None:
    pipe = diffusers.FluxPipeline.__new__(diffusers.FluxPipeline)  # __init__ would want its parts
    assert diffusers_seam.step_count(pipe) == 0
    diffusers_seam.set_step_count(pipe, 7)
    assert (diffusers_seam.step_count(pipe), pipe.num_timesteps) == (7, 7)
    pipe._guidance_scale, pipe._interrupt = 3.5, True
    assert diffusers_seam.call_settings(pipe)["_guidance_scale"] == pipe.guidance_scale == 3.5
    assert not {"_num_timesteps", "_interrupt"} & set(diffusers_seam.call_settings(pipe))


# --- The text of diffusers' pipelines ---


@pytest.mark.parametrize(
    ("read", "found"),
    [
        (diffusers_source_seam.output_fields, {"Flux": ("images",), "Wan": ("frames",)}),
        (diffusers_source_seam.example_fps, {"Flux": None, "Wan": 16.0}),
        (diffusers_source_seam.schedule_arguments, {"Flux": {"sigmas", "mu"}, "Wan": set()}),
        (diffusers_source_seam.noising_methods, {"FluxImg2Img": {"scale_noise"}, "Flux": set()}),
        (diffusers_source_seam.noising_methods, {"StableDiffusionImg2Img": {"add_noise"}}),
        (diffusers_source_seam.separates_passes, {"Flux": True, "StableDiffusion": False}),
    ],
)  # fmt: skip
def test_what_is_read_from_a_pipelines_text(read: Callable[[type], object], found: dict[str, object]) -> None:
    assert {name: read(getattr(diffusers, f"{name}Pipeline")) for name in found} == found


def test_the_body_of_check_inputs() -> None:
    body = diffusers_source_seam.check_inputs_body(diffusers.FluxPipeline)
    assert len(body) > 5
    assert diffusers_source_seam.check_inputs_body(object) == []


# --- transformers, torch, accelerate (quanto: test_quantize; the compiler and the file scan: test_cold) ---


def test_a_text_encoder_by_its_settings_in_a_dtype() -> None:
    settings = {"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 8}
    with torch.device("meta"):
        made = transformers_seam.from_config(transformers.CLIPTextModel, settings, torch.bfloat16)
    assert (type(made), made.dtype, made.config.hidden_size) == (transformers.CLIPTextModel, torch.bfloat16, 8)


def test_a_layer_that_is_only_read() -> None:
    attention = torch.nn.MultiheadAttention(4, 1)
    assert torch_seam.is_only_read(attention.out_proj)
    assert not torch_seam.is_only_read(torch.nn.Linear(4, 4))


def test_whether_there_is_a_compiler_for_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder, exc

    def none() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", lambda: "g++")
    assert torch_seam.has_cpp_compiler()
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    assert not torch_seam.has_cpp_compiler()


def test_a_gate_stands_before_a_part_comes_to_its_device() -> None:
    from accelerate import cpu_offload_with_hook

    part, other = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    cpu_offload_with_hook(part, "cpu")
    seen: list[str] = []

    def gate(name: str, pre_forward: Callable[..., Any]) -> Callable[..., Any]:
        def gated(*args: Any, **kwargs: Any) -> Any:
            seen.append(name)
            return pre_forward(*args, **kwargs)

        return gated

    value = torch.ones(1, 1)
    with accelerate_seam.gated({"part": part, "other": other}, gate):
        made = part(value)
        other(value)
    assert seen == ["part"]
    assert torch.equal(part(value), made)
    assert seen == ["part"]
