"""Single files as other tools write them: what their headers say is met at build, and their numbers are loaded as they
are meant."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from asked import Asked

from diffpipe.building import header_checks
from diffpipe.core.errors import CacheError, UsageError
from diffpipe.core.manifest import Located
from diffpipe.core.source import Role

torch = pytest.importorskip("torch")
checkpoints = pytest.importorskip("checkpoints")
from safetensors.torch import load_file, save_file  # noqa: E402

Tensors = dict[str, Any]
F8 = torch.float8_e4m3fn
HIGHEST = 448.0  # of float8_e4m3fn


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


def loaded(asked: Asked, *args: Any, **words: Any) -> Any:
    from diffpipe.engine.loading import load

    request = asked.request(*args, **words)
    manifest = asked.built(*args, **words)
    places = {role: Path(place) for role, place in request.pinned.locations.items()}
    return load.load(manifest, Located(places), "cpu")


def save(path: Path, tensors: Mapping[str, Any], **metadata: str) -> Path:
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, {"format": "pt", **metadata}
    )
    return path


# Scaled float8

SPELLINGS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "ComfyUI's first": ("scale_weight", lambda weight: (weight.abs().max() / HIGHEST).reshape(())),
    "of one element": ("scale_weight", lambda weight: (weight.abs().max() / HIGHEST).reshape(1)),
    "LTX's": ("weight_scale", lambda weight: (weight.abs().max() / HIGHEST).reshape(())),
    "a row each": ("weight_scale", lambda weight: weight.abs().amax(1, keepdim=True).clamp(min=1e-6) / HIGHEST),
    "a row each, flat": ("weight_scale", lambda weight: weight.abs().amax(1).clamp(min=1e-6) / HIGHEST),
}


def scaled(tensors: Tensors, ending: str, scale_of: Callable[[Any], Any], inside: str = "") -> tuple[Tensors, Tensors]:
    """The file's tensors with their matrices in float8, and what these are by the format: float8 times scale."""
    written: Tensors = {}
    meant: Tensors = {}
    for name, tensor in tensors.items():
        written[name] = meant[name] = tensor
        if tensor.ndim == 2 and name.endswith(".weight") and inside in name and "norm" not in name:
            scale = scale_of(tensor).to(torch.float32)
            column = scale.reshape(-1, 1) if scale.numel() > 1 else scale
            written[name] = (tensor / column).to(F8)
            written[name.removesuffix("weight") + ending] = scale
            written[name.removesuffix("weight") + "scale_input"] = torch.ones(())
            meant[name] = written[name].to(torch.float32) * column
    return written, meant


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_scaled_weights_of_a_denoiser_are_float8_times_scale(
    asked: Asked, made: Path, tmp_path: Path, spelling: tuple[str, Callable[[Any], Any]]
) -> None:
    weights = load_file(made / "flux" / "transformer" / "diffusion_pytorch_model.safetensors")
    written, meant = scaled(weights, *spelling)
    file = save(tmp_path / "scaled.safetensors", {**written, "scaled_fp8": torch.zeros(2).to(F8)})
    pipe = loaded(asked, "flux", file, config=str(made / "flux"))
    found = pipe.transformer.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in meant.items())


def test_scaled_weights_within_a_whole_checkpoint(asked: Asked, made: Path, tmp_path: Path) -> None:
    weights = load_file(made / "sd.safetensors")
    written, meant = scaled(weights, *SPELLINGS["ComfyUI's first"])
    plain, packed = save(tmp_path / "plain.safetensors", meant), save(tmp_path / "scaled.safetensors", written)
    pipes = [loaded(asked, "stable-diffusion", file, config=str(made / "sd")) for file in (plain, packed)]
    for part in ("unet", "text_encoder", "vae"):
        one, other = (getattr(pipe, part).state_dict() for pipe in pipes)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_float8_without_scales_is_taken_as_it_is(asked: Asked, made: Path, tmp_path: Path) -> None:
    weights = load_file(made / "flux" / "transformer" / "diffusion_pytorch_model.safetensors")
    file = save(tmp_path / "plain.safetensors", {name: tensor.to(F8) for name, tensor in weights.items()})
    found = loaded(asked, "flux", file, config=str(made / "flux")).transformer.state_dict()
    assert all(torch.equal(found[name], tensor.to(F8).float()) for name, tensor in weights.items())


NAME = "transformer_blocks.0.attn.to_q"
WRONG: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "a scale of no weight": (lambda t: {**t, "nothing.scale_weight": torch.ones(())}, "has a scale of no weight"),
    "a scale of other rows": (lambda t: {**t, f"{NAME}.scale_weight": torch.ones(5)}, "does not fit its weight"),
    "packed in four bits": (lambda t: {**t, f"{NAME}.weight_scale_2": torch.ones(())}, "holds packed weights"),
    "scaled whole numbers": (
        lambda t: {**t, f"{NAME}.weight": t[f"{NAME}.weight"].to(torch.int8), f"{NAME}.weight_scale": torch.ones(())},
        "as scaled I8",
    ),
    "a weight that is missing": (
        lambda t: {name: one for name, one in t.items() if name != f"{NAME}.weight"},
        f"{NAME}.weight is missing",
    ),
    "a weight of another shape": (
        lambda t: {**t, f"{NAME}.weight": torch.ones(3, 7)},
        f"{NAME}.weight is 3 x 7, not 32 x 32",
    ),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_weights_that_cannot_be_meant_are_refused(
    asked: Asked, made: Path, tmp_path: Path, case: tuple[Callable[[Tensors], Tensors], str]
) -> None:
    spoil, message = case
    weights = load_file(made / "flux" / "transformer" / "diffusion_pytorch_model.safetensors")
    file = save(tmp_path / "wrong.safetensors", spoil(weights))
    with pytest.raises(UsageError, match=message):
        asked.checked("flux", made / "flux", components={"transformer": str(file)})


def test_what_has_no_place_is_refused(asked: Asked, made: Path, tmp_path: Path) -> None:
    weights = load_file(made / "flux" / "transformer" / "diffusion_pytorch_model.safetensors")
    file = save(tmp_path / "more.safetensors", {**weights, "extra.weight": torch.ones(2)})
    with pytest.raises(UsageError, match=r"it has extra\.weight, for which there is no place"):
        asked.checked("flux", made / "flux", components={"transformer": str(file)})


# Checkpoints without a part


@pytest.mark.parametrize("gone", ["first_stage_model.", "cond_stage_model.", "model.diffusion_model."])
def test_a_part_that_a_checkpoint_lacks_is_the_folders(asked: Asked, made: Path, tmp_path: Path, gone: str) -> None:
    checkpoints.stable_diffusion(tmp_path / "other", seed=1)
    weights = load_file(made / "sd.safetensors")
    file = save(tmp_path / "less.safetensors", {n: t for n, t in weights.items() if not n.startswith(gone)})
    part = {"first": "vae", "cond_": "text_encoder", "model": "unet"}[gone[:5]]
    found = loaded(asked, "stable-diffusion", file, config=str(tmp_path / "other"))
    for name in ("vae", "text_encoder", "unet"):
        folder = tmp_path / "other" if name == part else made / "sd"
        (weights_file,) = (folder / name).glob("*.safetensors")
        wanted = {key.removeprefix("text_model."): tensor for key, tensor in load_file(weights_file).items()}
        has = {key.removeprefix("text_model."): tensor for key, tensor in getattr(found, name).state_dict().items()}
        assert all(torch.equal(has[key], tensor) for key, tensor in wanted.items()), name


def test_a_part_that_nothing_has_is_refused(asked: Asked, made: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(made / "sd", tmp_path / "bare")
    (bare / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    weights = load_file(made / "sd.safetensors")
    file = save(tmp_path / "less.safetensors", {n: t for n, t in weights.items() if "first_stage_model" not in n})
    with pytest.raises(Exception, match="vae has no weights"):
        asked.checked("stable-diffusion", file, config=str(bare))
    pipe = loaded(asked, "stable-diffusion", file, config=str(bare), components={"vae": str(made / "sd")})
    assert type(pipe.vae).__name__ == "AutoencoderKL"


def test_averaged_weights(asked: Asked, made: Path, tmp_path: Path) -> None:
    """As the original trainer kept them: names without dots (ldm/modules/ema.py, LitEma)."""
    weights = load_file(made / "sd.safetensors")
    inner = {n.removeprefix("model."): t for n, t in weights.items() if n.startswith("model.diffusion_model.")}
    averages = {f"model_ema.{n.replace('.', '')}": t + 1 for n, t in inner.items()}
    averages["model_ema.decay"] = torch.tensor(0.9999)
    both = save(tmp_path / "both.safetensors", {**weights, **averages})
    pipe = loaded(asked, "stable-diffusion", both, config=str(made / "sd"))
    said = "warning: both.safetensors also holds averaged weights (model_ema): the plain ones are taken"
    assert said in asked.said
    assert torch.equal(pipe.unet.conv_in.bias, weights["model.diffusion_model.input_blocks.0.0.bias"])
    rest = {n: t for n, t in weights.items() if not n.startswith("model.diffusion_model.")}
    alone = save(tmp_path / "alone.safetensors", {**rest, **averages})
    with pytest.raises(UsageError, match=r"holds the denoiser's averaged weights \(model_ema\) alone"):
        asked.checked("stable-diffusion", alone, config=str(made / "sd"))


ENCODER = "cond_stage_model.transformer.text_model.encoder.layers.1."
SPOILT: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "a layer of its text encoder short": (
        lambda t: {name: one for name, one in t.items() if not name.startswith(ENCODER)},
        "settings of text_encoder in sd: encoder.layers.1.* is missing",
    ),
    "a text encoder of another width": (
        lambda t: {n: torch.ones(*(2 * size for size in one.shape)) if ENCODER in n else one for n, one in t.items()},
        "settings of text_encoder in sd: encoder.layers.1.* is .*, not",
    ),
    "a VAE of other channels": (
        lambda t: {**t, "first_stage_model.decoder.conv_in.weight": torch.ones(16, 16, 3, 3)},
        "settings of vae in sd: decoder.conv_in.weight is 16 x 16 x 3 x 3, not",
    ),
    "a block of the UNet short": (
        lambda t: {name: one for name, one in t.items() if "middle_block.0." not in name},
        "settings of unet in sd: mid_block.* is missing",
    ),
}


@pytest.mark.parametrize("case", SPOILT.values(), ids=SPOILT)
def test_a_checkpoint_that_is_not_what_its_folder_says(
    asked: Asked, made: Path, tmp_path: Path, case: tuple[Callable[[Tensors], Tensors], str]
) -> None:
    spoil, message = case
    file = save(tmp_path / "spoilt.safetensors", spoil(load_file(made / "sd.safetensors")))
    with pytest.raises(UsageError, match=message) as error:
        asked.checked("stable-diffusion", file, config=str(made / "sd"))
    assert "--config" in error.value.hint


def test_a_checkpoint_that_was_cut_short(asked: Asked, made: Path, tmp_path: Path) -> None:
    file = tmp_path / "short.safetensors"
    file.write_bytes((made / "sd.safetensors").read_bytes()[:-1000])
    with pytest.raises(CacheError, match="is not a complete safetensors file"):
        asked.checked("stable-diffusion", file, config=str(made / "sd"))


def test_a_gguf_file_is_met_by_its_header(asked: Asked, made: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    good = checkpoints.flux_transformer_gguf(tmp_path / "good.gguf")
    assert asked.checked("flux", made / "flux", components={"transformer": str(good)}).kind == "image"
    folder = made / "flux" / "transformer" / "config.json"
    other = Path(shutil.copytree(made / "flux", tmp_path / "other"))
    settings = other / "transformer" / "config.json"
    settings.write_text(folder.read_text().replace('"num_single_layers": 2', '"num_single_layers": 3'))
    with pytest.raises(UsageError, match=r"good\.gguf does not fit .* single_transformer_blocks\.2\..* is missing"):
        asked.checked("flux", other, components={"transformer": str(good)})


def test_a_gguf_file_of_the_hub_is_met_once_it_is_fetched(asked: Asked, made: Path, tmp_path: Path) -> None:
    """Its header cannot be read before: it is checked where the file lies then."""
    pytest.importorskip("gguf")
    good = checkpoints.flux_transformer_gguf(tmp_path / "good.gguf")
    resolved = asked.resolved("flux", made / "flux", components={"transformer": str(good)})
    role = Role.component("transformer")
    away = replace(resolved, locations={**resolved.locations, role: ""})
    layout = {**resolved.layout, "transformer": ("diffusers", "SD3Transformer2DModel")}
    with pytest.raises(UsageError, match=r"good\.gguf does not fit"):
        header_checks.check_fetched("FluxPipeline", away, layout, resolved.locations, offline=True)
    assert header_checks.check_fetched("FluxPipeline", away, resolved.layout, resolved.locations, offline=True) == []
