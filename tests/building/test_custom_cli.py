"""`build custom` through the real command line: any class by its folder, single files, GGUF, swapped components."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import Cli, Warm
from PIL import Image
from safetensors.torch import load_file

from diffpipe.core.errors import UsageError
from diffpipe.sources import trust

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

PROMPT = ("--prompt", "a fox", "--num-inference-steps", 2, "--seed", 1)
SMALL = (*PROMPT, "--width", 32, "--height", 32)
FLOAT = ("--dtype", "float32")


def made(warm: Warm, tmp_path: Path, build: Sequence[object], *call: object) -> Path:
    """The file that a custom pipeline makes."""
    warm("build", "custom", *build, *FLOAT, "--name", "custom-made", "--force", check=True)
    done = warm("generate", "custom-made", *call, "-o", f"{tmp_path}/", check=True)
    (line,) = done.stdout.splitlines()
    return Path(line)


def pixels(path: Path) -> Any:
    return np.asarray(Image.open(path).convert("RGB"), dtype=float)


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DDPMPipeline folder: a class without a provider, that takes no prompt and no size."""
    unet = diffusers.UNet2DModel(
        sample_size=16,
        block_out_channels=[8, 16],
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=["DownBlock2D", "AttnDownBlock2D"],
        up_block_types=["AttnUpBlock2D", "UpBlock2D"],
        attention_head_dim=4,
    )
    folder = tmp_path_factory.mktemp("made") / "ddpm"
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("folder", ["flux", "stable-diffusion", "sdxl", "sd3", "z-image"])
def test_pictures_by_the_class_of_the_folder(warm: Warm, checkpoints: Path, tmp_path: Path, folder: str) -> None:
    path = made(warm, tmp_path, ("--model", checkpoints / folder), *SMALL)
    assert pixels(path).shape == (32, 32, 3)
    assert pixels(path).std() > 1


@pytest.mark.parametrize(("folder", "tracks"), [("wan", ["video"]), ("ltx2", ["video", "audio"])])
def test_video_by_the_class_of_the_folder(
    warm: Warm, checkpoints: Path, tmp_path: Path, folder: str, tracks: list[str]
) -> None:
    path = made(warm, tmp_path, ("--model", checkpoints / folder), *PROMPT, *size_of(folder), "--num-frames", 9)
    with av.open(path) as opened:
        assert [stream.type for stream in opened.streams] == tracks
        frames = [frame.to_ndarray(format="rgb24") for frame in opened.decode(video=0)]
    assert len(frames) == 9
    assert np.stack(frames).std() > 1


def size_of(folder: str) -> tuple[object, ...]:
    return ("--width", 64, "--height", 64) if folder == "ltx2" else ("--width", 32, "--height", 32)


def test_sound_by_the_class_of_the_folder(warm: Warm, checkpoints: Path, tmp_path: Path) -> None:
    path = made(warm, tmp_path, ("--model", checkpoints / "audioldm2"), *PROMPT, "--audio-length-in-s", 1)
    with av.open(path) as opened:
        assert [stream.type for stream in opened.streams] == ["audio"]
        samples = np.concatenate([frame.to_ndarray().ravel() for frame in opened.decode(audio=0)])
    assert samples.std() > 0


def test_a_class_without_prompt_or_provider(warm: Warm, unconditional: Path, tmp_path: Path) -> None:
    path = made(warm, tmp_path, ("--model", unconditional), "--num-inference-steps", 2, "--seed", 1)
    assert pixels(path).shape == (16, 16, 3)
    shown = warm("generate", "custom-made", "--help", check=True).stdout
    assert "--num-inference-steps" in shown
    assert not re.search(r"--prompt(?![\w-])", shown)


def test_a_class_that_is_not_the_folders(warm: Warm, checkpoints: Path, tmp_path: Path) -> None:
    build = ("--model", checkpoints / "stable-diffusion", "--class", "StableDiffusionPAGPipeline")
    plain = made(warm, tmp_path / "0", build, *SMALL, "--pag-scale", 0)
    guided = made(warm, tmp_path / "3", build, *SMALL, "--pag-scale", 3)
    assert (pixels(plain) != pixels(guided)).any()


def test_a_component_from_another_folder(warm: Warm, checkpoints: Path, tmp_path: Path) -> None:
    base, other = checkpoints / "stable-diffusion", checkpoints / "stable-diffusion-deep"
    swapped = made(warm, tmp_path, ("--model", base, "--component", f"unet={other}"), *SMALL)
    unet = diffusers.UNet2DConditionModel.from_pretrained(other, subfolder="unet")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(base, unet=unet, local_files_only=True)
    call = {"width": 32, "height": 32, "num_inference_steps": 2, "generator": torch.Generator().manual_seed(1)}
    assert np.array_equal(pixels(swapped), np.asarray(pipe("a fox", **call).images[0], dtype=float))


def test_a_single_file_takes_its_settings_from_a_folder(warm: Warm, checkpoints: Path, tmp_path: Path) -> None:
    folder = checkpoints / "stable-diffusion"
    whole = made(warm, tmp_path / "folder", ("--model", folder), *SMALL)
    single = made(warm, tmp_path / "file", ("--model", f"{folder}.safetensors", "--config", folder), *SMALL)
    assert np.array_equal(pixels(whole), pixels(single))


# --- GGUF ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["model", "component"])
def test_a_gguf_transformer(warm: Warm, checkpoints: Path, tmp_path: Path, how: str) -> None:
    file, folder = checkpoints / "flux-transformer.gguf", checkpoints / "flux"
    model = ("--model", file, "--config", folder)
    words = model if how == "model" else ("--model", folder, "--component", f"transformer={file}")
    exact = pixels(made(warm, tmp_path / "exact", ("--model", folder), *SMALL))
    rounded = pixels(made(warm, tmp_path / "gguf", words, *SMALL))
    assert np.abs(rounded - exact).max() <= 8  # of 255: 8 bits a weight
    manifest = json.loads(warm("pipelines", "show", "custom-made", "--json", check=True).stdout)["manifest"]
    parts = {part["name"]: part["source"] for part in manifest["components"]}
    assert parts["transformer"] == "flux-transformer.gguf"
    sizes = {part["name"]: (part["parameters"], part["bytes"], part["dtypes"]) for part in manifest["components"]}
    exact_parameters = sum(weights.numel() for weights in load_file(transformer_file(folder)).values())
    count, size, dtypes = sizes["transformer"]
    assert (count, dtypes) == (exact_parameters, ["F32", "Q8_0"])
    assert count * 34 / 32 <= size <= file.stat().st_size  # Q8_0: 32 values and a scale are 34 bytes
    assert parts["vae"] == "flux"


def transformer_file(folder: Path) -> Path:
    return next((folder / "transformer").glob("*.safetensors"))


def test_a_damaged_gguf_file(warm: Warm, checkpoints: Path, tmp_path: Path) -> None:
    whole = (checkpoints / "flux-transformer.gguf").read_bytes()
    for content in (b"", b"GGUF", whole[: len(whole) // 20], b"no weights at all"):
        (tmp_path / "bad.gguf").write_bytes(content)
        done = warm("build", "flux", "--model", tmp_path / "bad.gguf", "--config", checkpoints / "flux")
        assert done.returncode == 2
        assert done.stderr.splitlines()[-2:] == [
            "error: bad.gguf is no GGUF file, or it is damaged",
            "  try: fetch it again",
        ]


def test_gguf_without_its_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError) as raised:
        trust.check_suffix("flux.gguf", False)
    assert (raised.value.message, raised.value.hint) == (
        "flux.gguf needs the package gguf",
        "pip install 'diffpipe[gguf]'",
    )


# --- Refused ---------------------------------------------------------------------------------------------------------

REFUSED = {
    ("stable-diffusion", "LEditsPPPipelineStableDiffusion"): (
        "no command line can call LEditsPPPipelineStableDiffusion: it needs a call of its invert() first",
        "name another with --class",
    ),
    ("stable-diffusion", "DiffusionPipeline2"): (
        "diffusers 0.42.1 has no pipeline 'DiffusionPipeline2'",
        "did you mean",
    ),
    ("flux", "StableDiffusionPipeline"): ("StableDiffusionPipeline needs", "this model is a FluxPipeline: "),
    ("flux", "FluxPriorReduxPipeline"): ("FluxPriorReduxPipeline makes no picture", "it returns prompt_embeds"),
}


@pytest.mark.parametrize(("folder", "name"), REFUSED)
def test_a_class_that_cannot_be_used(warm: Warm, checkpoints: Path, folder: str, name: str) -> None:
    done = warm("build", "custom", "--model", checkpoints / folder, "--class", name, "--name", "refused")
    said, hint = done.stderr.splitlines()[-2:]
    message, start = REFUSED[folder, name]
    assert done.returncode == 2
    assert said.startswith(f"error: {message}".replace("0.42.1", diffusers.__version__))
    assert hint.strip().startswith(f"try: {start}")


def test_a_folder_that_is_no_diffusers_folder(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    done = cli.light("build", "custom", "--model", tmp_path / "pictures")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: {tmp_path / 'pictures'} is no diffusers folder: it has no model_index.json",
        "  try: convert it with diffusers, or name the checkpoint file itself",
    ]
