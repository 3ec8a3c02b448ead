"""Weights of a folder are those that its settings say, or are refused at build."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from asked import Asked

from diffpipe.core.errors import DiffpipeError
from diffpipe.core.manifest import Located
from diffpipe.core.source import BASE

torch = pytest.importorskip("torch")
checkpoints = pytest.importorskip("checkpoints")
from safetensors.torch import load_file, save_file  # noqa: E402

Tensors = dict[str, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    checkpoints.flux(folder / "flux")
    checkpoints.sharded(checkpoints.flux(folder / "sharded"), "transformer")
    return folder


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return Asked(tmp_path / "home")


@pytest.fixture
def flux(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "flux", tmp_path / "flux"))


@pytest.fixture
def sharded(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "sharded", tmp_path / "sharded"))


def rewrite(file: Path, change: Callable[[Tensors], Mapping[str, Any]]) -> None:
    tensors = change(load_file(file))
    save_file({name: one.contiguous().clone() for name, one in tensors.items()}, file, {"format": "pt"})


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: one for name, one in tensors.items() if part not in name}


TRANSFORMER, CLIP = "transformer/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
T5, VAE = "text_encoder_2/model.safetensors", "vae/diffusion_pytorch_model.safetensors"
QUERY = "transformer_blocks.0.attn.to_q.weight"
SPOILT: dict[str, tuple[str, Callable[[Tensors], Tensors], str]] = {
    "a layer of the denoiser is missing": (TRANSFORMER, without("single_transformer_blocks.1."), "is missing"),
    "a matrix of another width": (TRANSFORMER, lambda t: {**t, QUERY: torch.ones(3, 7)}, "is 3 x 7, not 32 x 32"),
    "a layer of CLIP is missing": (CLIP, without("layers.1."), "is missing"),
    "a layer of T5 is missing": (T5, without("block.1."), "is missing"),
    "the decoder is missing": (VAE, without("decoder."), "is missing"),
    "another T5": (T5, lambda t: {n: torch.ones(*(2 * size for size in one.shape)) for n, one in t.items()}, "not"),
    "scales that nobody reads": (
        TRANSFORMER,
        lambda t: {**t, QUERY.replace("weight", "weight_scale"): torch.ones(())},
        "scaled",
    ),
}


@pytest.mark.parametrize("case", SPOILT.values(), ids=SPOILT)
def test_weights_that_are_not_those_of_the_settings(
    asked: Asked, flux: Path, case: tuple[str, Callable[[Tensors], Tensors], str]
) -> None:
    file, spoil, message = case
    rewrite(flux / file, spoil)
    with pytest.raises(DiffpipeError, match=f"the weights of {file.partition('/')[0]} in flux are.*{message}"):
        asked.checked("flux", flux)


def test_settings_of_another_size(asked: Asked, flux: Path) -> None:
    config = flux / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_layers": 2}))
    with pytest.raises(DiffpipeError, match=r"the weights of transformer in flux .*transformer_blocks\.1\."):
        asked.checked("flux", flux)


def test_shards_are_those_of_their_index(asked: Asked, sharded: Path) -> None:
    assert asked.checked("flux", sharded).kind == "image"
    (index,) = (sharded / "transformer").glob("*.index.json")
    listed = json.loads(index.read_text())
    moved = {**listed, "weight_map": {**listed["weight_map"], "extra.weight": sorted(listed["weight_map"].values())[0]}}
    index.write_text(json.dumps(moved))
    with pytest.raises(DiffpipeError, match=r"extra\.weight is in none of the files"):
        asked.checked("flux", sharded)
    index.write_text(json.dumps({**listed, "weight_map": {**listed["weight_map"], "a": "other.safetensors"}}))
    with pytest.raises(DiffpipeError, match=r"names other\.safetensors, which is not there"):
        asked.checked("flux", sharded)
    index.write_text(json.dumps(listed)[:-20])
    with pytest.raises(DiffpipeError, match="is damaged"):
        asked.checked("flux", sharded)


def test_a_shard_that_is_missing(asked: Asked, sharded: Path) -> None:
    sorted((sharded / "transformer").glob("*-of-*.safetensors"))[0].unlink()
    with pytest.raises(DiffpipeError, match=r"transformer has . of its . weight files"):
        asked.checked("flux", sharded)


@pytest.mark.parametrize("file", [TRANSFORMER, CLIP, VAE])
def test_weights_that_were_cut_short(asked: Asked, flux: Path, file: str) -> None:
    (flux / file).write_bytes((flux / file).read_bytes()[:-10])
    with pytest.raises(DiffpipeError, match="is not a complete safetensors file"):
        asked.checked("flux", flux)


def test_a_vae_of_before_2023_is_whole(asked: Asked, flux: Path) -> None:
    """Its attention has the names query, key, value and proj_attn, as in most folders of Stable Diffusion 1 and 2."""
    from diffpipe.engine.loading import load

    earlier = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(tensors: Tensors) -> Tensors:
        made = {}
        for name, one in tensors.items():
            now = next((now for now in earlier if f".attentions.0.{now}." in name), None)
            made[name.replace(f".{now}.", f".{earlier[now]}.") if now else name] = one
        return made

    meant = load_file(flux / VAE)
    rewrite(flux / VAE, renamed)
    assert any("proj_attn" in name for name in load_file(flux / VAE))
    found = load.load(asked.built("flux", flux), Located({BASE: flux}), "cpu").vae.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in meant.items())


@pytest.mark.parametrize("part", ["text_encoder_2", "vae", "tokenizer"])
def test_a_component_that_is_a_link(asked: Asked, made: Path, flux: Path, part: str) -> None:
    """Models that share a part: the folder of one links to the other's."""
    from diffpipe.engine.loading import load

    shutil.rmtree(flux / part)
    (flux / part).symlink_to(made / "flux" / part)
    pipe = load.load(asked.built("flux", flux), Located({BASE: flux}), "cpu")
    assert getattr(pipe, part) is not None


def test_of_a_components_two_names_its_own_library_says_which(asked: Asked, checkpoints: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoints / "flux" / "vae", tmp_path / "vae"))
    shutil.copy(folder / "diffusion_pytorch_model.safetensors", folder / "model.safetensors")
    resolved = asked.resolved("flux", checkpoints / "flux", components={"vae": str(folder)})
    (vae,) = (source for source in resolved.sources if source.role.name == "vae")
    assert sorted(vae.files) == ["config.json", "diffusion_pytorch_model.safetensors"]
