"""LoRAs through the real command line: what they change, how they compose, and which are refused before any fetch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Cli, Warm
from hub_server import serve
from PIL import Image
from safetensors.torch import load_file, save_file

SMALL = ("--prompt", "a fox", "--width", 32, "--height", 32, "--num-inference-steps", 2, "--seed", 1)
Make = Callable[..., bytes]


@pytest.fixture
def make(warm: Warm, checkpoints: Path, tmp_path: Path) -> Make:
    """The pixels of a small picture by a folder of `checkpoints` with LoRAs."""

    def picture(provider: str, *loras: object, component: str = "") -> bytes:
        words = [word for lora in loras for word in ("--lora", lora)]
        words += ["--component", component] if component else []
        model = ("--model", checkpoints / provider, "--dtype", "float32", "--name", "adapted")
        warm("build", provider, *model, *words, check=True)
        path = tmp_path / "made.png"
        warm("generate", "adapted", *SMALL, "-o", path, "--overwrite", check=True)
        return pixels(path)

    return picture


def pixels(path: Path) -> bytes:
    return Image.open(path).tobytes()


def refused(warm: Warm, *args: object) -> tuple[int, str, str]:
    done = warm("build", *args, "--name", "refused")
    message, hint = done.stderr.splitlines()[-2:]
    return done.returncode, message.removeprefix("error: "), hint.strip().removeprefix("try: ")


def test_two_compose_with_their_scales(make: Make, checkpoints: Path) -> None:
    first, second = checkpoints / "flux-lora.safetensors", checkpoints / "flux-lora-2.safetensors"
    base = make("flux")
    alone = [make("flux", first), make("flux", second)]
    both = make("flux", first, second)
    assert len({base, *alone, both}) == 4
    assert make("flux", f"{first}@0", f"{second}@0") == base
    assert make("flux", f"{first}@0", second) == alone[1]
    assert make("flux", first, f"{second}@0.5") not in (base, *alone, both)


def test_the_layout_of_the_file_makes_no_difference(make: Make, checkpoints: Path) -> None:
    flux = [make("flux", checkpoints / f"flux-lora-{layout}.safetensors") for layout in ("kohya", "as-kohya")]
    assert flux[0] == flux[1] != make("flux")
    sd = [make("stable-diffusion", checkpoints / f"sd-lora{layout}.safetensors") for layout in ("", "-kohya")]
    assert sd[0] == sd[1] != make("stable-diffusion")


def test_the_text_encoders_part_alone_changes_the_picture(make: Make, checkpoints: Path) -> None:
    lora = checkpoints / "sd-lora-text.safetensors"
    base = make("stable-diffusion")
    assert make("stable-diffusion", lora) != base == make("stable-diffusion", f"{lora}@0")


def test_beside_a_gguf_transformer(make: Make, checkpoints: Path) -> None:
    """Its weights cannot be added to, so two LoRAs stay beside them: what they make is near what fused ones make."""
    gguf = f"transformer={checkpoints / 'flux-transformer.gguf'}"
    loras = (f"{checkpoints / 'flux-lora.safetensors'}@0.5", checkpoints / "flux-lora-2.safetensors")
    plain, fused = make("flux"), make("flux", *loras)
    beside = make("flux", *loras, component=gguf)
    assert distance(beside, fused) < 8 < distance(beside, plain)
    assert distance(make("flux", f"{loras[1]}@0", component=gguf), plain) < 8


def distance(one: bytes, other: bytes) -> int:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def test_one_that_fits_in_part_is_taken_where_that_is_asked_for(warm: Warm, checkpoints: Path) -> None:
    words = ("flux", "--model", checkpoints / "flux", "--lora", checkpoints / "flux-lora-part.safetensors")
    code, message, hint = refused(warm, *words)
    told = (
        "the LoRA flux-lora-part.safetensors fits in part: 6 of its 10 layers are in this model; left out: "
        "transformer.single_transformer_blocks.7.attn.to_k, transformer.single_transformer_blocks.7.attn.to_v, "
        "transformer.transformer_blocks.7.attn.to_k and 1 more"
    )
    assert (code, message) == (2, told)
    assert hint == "--lora-partial takes the rest; or choose a LoRA made for this model"
    done = warm("build", *words, "--lora-partial", "--name", "part", check=True)
    assert told in done.stderr.splitlines()
    made = warm("generate", "part", *SMALL, "--json", check=True)
    assert not [line for line in made.stderr.splitlines() if "LoRA" in line]


REFUSED = {
    ("stable-diffusion", "flux-lora"): "another model: of its 10 layers this StableDiffusionPipeline has none",
    ("flux", "sd-lora-kohya"): "another model: of its 40 layers this FluxPipeline has none",
    ("flux", "flux-lora-wide"): "another model: it was made for width 3072, this FluxPipeline has 32 there",
    ("flux", "flux-lora-zero"): "changes no layer: its weights are all zero",
}


@pytest.mark.parametrize(("provider", "lora"), REFUSED)
def test_one_for_another_model_is_refused_at_build(warm: Warm, checkpoints: Path, provider: str, lora: str) -> None:
    words = (provider, "--model", checkpoints / provider, "--lora", checkpoints / f"{lora}.safetensors")
    code, message, hint = refused(warm, *words)
    assert (code, message.split(" is for ")[-1].split("safetensors ")[-1]) == (2, REFUSED[provider, lora])
    assert hint == "choose a LoRA made for this model, or leave it out"
    assert warm("pipelines", "show", "refused").returncode == 3


@pytest.fixture
def repositories(checkpoints: Path, tmp_path: Path) -> dict[str, Path]:
    """A model, and a LoRA of each family."""
    found = {"org/flux": checkpoints / "flux"}
    for name, file in (("org/style", "flux-lora.safetensors"), ("org/other", "sd-lora.safetensors")):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        shutil.copy(checkpoints / file, folder / "lora.safetensors")
        found[name] = folder
    return found


def test_from_the_hub(
    cli: Cli, warm: Warm, make: Make, checkpoints: Path, repositories: dict[str, Path], tmp_path: Path
) -> None:
    """The LoRA of another family costs its own file and no weights; the right one does what the local file does."""
    with serve(repositories) as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hub")}
        build = ("build", "flux", "--model", "org/flux", "--dtype", "float32", "--name", "online", "--lora")

        done = cli(*build, "org/other", env=env)
        message = "the LoRA org/other is for another model: of its 40 layers this FluxPipeline has none"
        assert (done.returncode, done.stderr.splitlines()[-2]) == (2, f"error: {message}")
        assert {Path(request.path).name for request in hub.of(".safetensors")} == {"lora.safetensors"}

        cli(*build, "org/style@0.5", env=env, check=True)
        path = tmp_path / "online.png"
        cli("generate", "online", *SMALL, "-o", path, env=env, check=True)
    assert pixels(path) == make("flux", f"{checkpoints / 'flux-lora.safetensors'}@0.5")
    manifest = json.loads(warm("pipelines", "show", "online", "--json", check=True).stdout)["manifest"]
    lora: dict[str, Any] = next(source for source in manifest["sources"] if source["role"] == "lora:0")
    assert (lora["label"], lora["scale"], len(lora["commit"])) == ("org/style", 0.5, 40)


def test_doras_magnitudes_cannot_stay_beside_gguf_weights(warm: Warm, checkpoints: Path, tmp_path: Path) -> None:
    """They scale the sum of both: it is refused before anything is loaded."""
    tensors = load_file(checkpoints / "flux-lora.safetensors")
    sizes = {
        name.replace("lora_B.weight", "dora_scale"): one.shape[0] for name, one in tensors.items() if "lora_B" in name
    }
    save_file(tensors | {name: torch.ones(size, 1) for name, size in sizes.items()}, tmp_path / "dora.safetensors")
    gguf = f"transformer={checkpoints / 'flux-transformer.gguf'}"
    words = ("flux", "--model", checkpoints / "flux", "--component", gguf, "--lora", tmp_path / "dora.safetensors")
    code, message, _ = refused(warm, *words)
    assert (code, message.partition(": ")[0]) == (2, "the LoRA dora.safetensors cannot be applied to quantized weights")


@pytest.mark.parametrize("named", ["folder", "file"])
def test_how_strong_one_of_peft_is_stands_beside_it(make: Make, checkpoints: Path, tmp_path: Path, named: str) -> None:
    """peft.PeftModel.save_pretrained: the scale is lora_alpha / r, of the configuration, and of no tensor."""
    layers = load_file(checkpoints / "flux-lora.safetensors")
    rank = next(tensor.shape[0] for name, tensor in layers.items() if "lora_A" in name)
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank / 2, "use_rslora": False, "alpha_pattern": {}}
    saved = {name.replace("transformer.", "base_model.model.", 1): tensor for name, tensor in layers.items()}
    save_file(saved, tmp_path / "adapter_model.safetensors")
    lora = tmp_path if named == "folder" else tmp_path / "adapter_model.safetensors"
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": rank}))
    assert make("flux", lora) == make("flux", checkpoints / "flux-lora.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    assert make("flux", lora) == make("flux", f"{checkpoints / 'flux-lora.safetensors'}@0.5")
