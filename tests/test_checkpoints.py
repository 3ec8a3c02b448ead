"""The tiny checkpoints load with plain diffusers, offline, and make pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import (
    bfl_converter_width,
    flux,
    flux_lora,
    flux_transformer_diffusers_file,
    flux_transformer_single_file,
    sharded,
    stable_diffusion,
    stable_diffusion_single_file,
    with_custom_pipeline,
    with_pickle,
    with_variant,
)
from diffusers import (
    DiffusionPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from PIL import Image
from safetensors.torch import load_file


@pytest.fixture(scope="module", autouse=True)
def offline() -> Iterator[None]:
    def refuse(*_: object) -> None:
        raise AssertionError("a checkpoint test used the network")

    with pytest.MonkeyPatch.context() as patch:
        # huggingface_hub read HF_HUB_OFFLINE when it was imported, which may have been long ago.
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setattr("socket.socket.connect", refuse)
        patch.setattr("socket.getaddrinfo", refuse)
        yield


@pytest.fixture(scope="module")
def flux_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flux(tmp_path_factory.mktemp("flux") / "flux")


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion(tmp_path_factory.mktemp("sd") / "sd")


@pytest.fixture
def flux_copy(flux_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(flux_folder, tmp_path / "copy"))


def picture(pipe: DiffusionPipeline, size: int = 32, prompt: str = "a red apple", **inputs: object) -> np.ndarray:
    """The (size, size, 3) picture in 0..1 that two steps (or `num_inference_steps`) with seed 7 make."""
    pipe.set_progress_bar_config(disable=True)
    inputs = {"num_inference_steps": 2, "height": size, "width": size, **inputs}
    return pipe(prompt, generator=torch.Generator().manual_seed(7), output_type="np", **inputs).images[0]


def check(image: np.ndarray, size: int = 32) -> None:
    assert image.shape == (size, size, 3)
    assert np.isfinite(image).all()
    assert image.std() > 0.01


def source() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def mask() -> Image.Image:
    return Image.fromarray(np.pad(np.full((32, 16), 255, np.uint8), ((0, 0), (0, 16))))


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("pipeline_class", [FluxPipeline, StableDiffusionPipeline])
def test_text_to_image(pipeline_class: type[DiffusionPipeline], size: int, flux_folder: Path, sd_folder: Path) -> None:
    pipe = pipeline_class.from_pretrained(flux_folder if pipeline_class is FluxPipeline else sd_folder)
    image = picture(pipe, size)
    check(image, size)
    assert not np.array_equal(image, picture(pipe, size, prompt="a blue cat"))


@pytest.mark.parametrize("pipeline_class", [FluxImg2ImgPipeline, StableDiffusionImg2ImgPipeline])
def test_image_to_image(pipeline_class: type[DiffusionPipeline], flux_folder: Path, sd_folder: Path) -> None:
    inputs = {"image": source(), "strength": 0.5, "num_inference_steps": 4}
    if pipeline_class is FluxImg2ImgPipeline:
        check(picture(pipeline_class.from_pretrained(flux_folder), **inputs))
        return
    pipe = pipeline_class.from_pretrained(sd_folder)
    pipe.set_progress_bar_config(disable=True)  # its call takes no height and width
    check(pipe("a red apple", output_type="np", generator=torch.Generator().manual_seed(7), **inputs).images[0])


@pytest.mark.parametrize("pipeline_class", [FluxInpaintPipeline, StableDiffusionInpaintPipeline])
def test_inpainting(pipeline_class: type[DiffusionPipeline], flux_folder: Path, sd_folder: Path) -> None:
    pipe = pipeline_class.from_pretrained(flux_folder if pipeline_class is FluxInpaintPipeline else sd_folder)
    image = picture(pipe, image=source(), mask_image=mask(), strength=1.0)
    check(image)


def test_a_seed_means_the_same_weights_and_another_seed_others(flux_folder: Path, tmp_path: Path) -> None:
    file = "transformer/diffusion_pytorch_model.safetensors"
    first = (flux_folder / file).read_bytes()
    torch.manual_seed(99)
    assert (flux(tmp_path / "again") / file).read_bytes() == first
    assert (flux(tmp_path / "other", seed=1) / file).read_bytes() != first


def test_making_one_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    flux_lora(tmp_path / "lora.safetensors")
    stable_diffusion_single_file(tmp_path / "sd.safetensors")
    flux_transformer_single_file(tmp_path / "flux.safetensors")
    assert torch.equal(torch.get_rng_state(), state)


def test_stable_diffusion_single_file_equals_the_folder(sd_folder: Path, tmp_path: Path) -> None:
    file = stable_diffusion_single_file(tmp_path / "sd.safetensors")
    pipe = StableDiffusionPipeline.from_single_file(str(file), config=str(sd_folder), local_files_only=True)
    folder_pipe = StableDiffusionPipeline.from_pretrained(sd_folder)
    for name in ("unet", "vae", "text_encoder"):
        same_weights(getattr(pipe, name), getattr(folder_pipe, name))
    assert np.array_equal(picture(pipe), picture(folder_pipe))


def test_flux_transformer_single_file_equals_the_folder(flux_folder: Path, tmp_path: Path) -> None:
    file = flux_transformer_single_file(tmp_path / "flux.safetensors")
    assert "double_blocks.0.img_attn.qkv.weight" in load_file(file)
    with bfl_converter_width():
        same_weights(
            load_flux_file(file, flux_folder), FluxTransformer2DModel.from_pretrained(flux_folder / "transformer")
        )


def test_diffusers_still_converts_only_the_released_width(flux_folder: Path, tmp_path: Path) -> None:
    file = flux_transformer_single_file(tmp_path / "flux.safetensors")
    with pytest.raises(RuntimeError, match="split_sizes"):  # else bfl_converter_width has had its day
        load_flux_file(file, flux_folder)


def test_flux_transformer_diffusers_file_equals_the_folder(flux_folder: Path, tmp_path: Path) -> None:
    file = flux_transformer_diffusers_file(tmp_path / "flux.safetensors")
    same_weights(load_flux_file(file, flux_folder), FluxTransformer2DModel.from_pretrained(flux_folder / "transformer"))


def load_flux_file(file: Path, folder: Path) -> FluxTransformer2DModel:
    return FluxTransformer2DModel.from_single_file(
        str(file), config=str(folder), subfolder="transformer", local_files_only=True
    )


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("component", ["transformer", "text_encoder_2"])
def test_sharded(component: str, flux_folder: Path, flux_copy: Path) -> None:
    before = picture(FluxPipeline.from_pretrained(flux_folder))
    sharded(flux_copy, component, "50KB")
    (index_file,) = (flux_copy / component).glob("*.safetensors.index.json")
    shards = {file.name for file in (flux_copy / component).glob("*.safetensors")}
    assert len(shards) > 1
    assert set(json.loads(index_file.read_text())["weight_map"].values()) == shards
    # Mapped weights of another file begin at other addresses, and some kernels round by that.
    assert np.allclose(picture(FluxPipeline.from_pretrained(flux_copy)), before, atol=1e-5)


def test_variant(flux_folder: Path, flux_copy: Path) -> None:
    with_variant(flux_copy)
    half = FluxPipeline.from_pretrained(flux_copy, variant="fp16", dtype=torch.float16)
    assert {half.transformer.dtype, half.vae.dtype, half.text_encoder.dtype} == {torch.float16}
    as_half = FluxPipeline.from_pretrained(flux_folder).transformer.to(torch.float16)
    same_weights(half.transformer, as_half)
    check(picture(FluxPipeline.from_pretrained(flux_copy)))


@pytest.mark.parametrize("component", ["transformer", "text_encoder"])
def test_pickle(component: str, flux_copy: Path) -> None:
    with_pickle(flux_copy, component)
    with pytest.raises((OSError, ValueError)):
        FluxPipeline.from_pretrained(flux_copy, use_safetensors=True)
    check(picture(FluxPipeline.from_pretrained(flux_copy)))


def test_custom_pipeline_runs_only_on_request(flux_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(flux_copy.parent / "modules"))
    with_custom_pipeline(flux_copy)
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(flux_copy)
    assert not (flux_copy / "custom-code-ran").exists()
    pipe = DiffusionPipeline.from_pretrained(flux_copy, trust_remote_code=True)
    assert type(pipe).__name__ == "CustomPipeline"
    assert (flux_copy / "custom-code-ran").exists()


def test_flux_lora_changes_the_picture(flux_folder: Path, tmp_path: Path) -> None:
    file = flux_lora(tmp_path / "lora.safetensors", seed=3)
    pipe = FluxPipeline.from_pretrained(flux_folder)
    before = picture(pipe)
    pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="tiny")
    with_lora = picture(pipe)
    check(with_lora)
    assert np.abs(with_lora - before).mean() > 0.005
    pipe.unload_lora_weights()
    assert np.array_equal(picture(pipe), before)


def test_every_folder_is_small(flux_folder: Path, sd_folder: Path) -> None:
    for folder in (flux_folder, sd_folder):
        assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 1_000_000
