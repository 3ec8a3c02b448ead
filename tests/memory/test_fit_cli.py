"""Whether a model, a component or a LoRA is for the pipeline: told at the build, before any weight is fetched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import transformers
from conftest import Cli, Warm
from hub_server import serve
from PIL import Image

from diffpipe.engine.classes import match
from diffpipe.engine.classes.lookup import pipeline_class

CONTROLNET_HINT = "name a source that has one: --component controlnet=SOURCE"
# Words after `build`, what is said, and the hint.
REFUSED: dict[str, tuple[str, str, str]] = {
    "a model of another family": (
        "wan --model {}/flux",
        "the transformer of flux is of class FluxTransformer2DModel; WanPipeline takes WanTransformer3DModel",
        "this model is a FluxPipeline: diffpipe build flux",
    ),
    "a model without the parts": (
        "flux --model {}/wan",
        "FluxPipeline needs text_encoder_2, tokenizer_2, which this model does not have",
        "this model is a WanPipeline: diffpipe build wan",
    ),
    "the same classes, one text encoder less": (
        "stable-diffusion --type xl --model {}/stable-diffusion",
        "StableDiffusionXLPipeline needs text_encoder_2, which stable-diffusion does not have",
        "this model is a StableDiffusionPipeline: diffpipe build stable-diffusion",
    ),
    "the same classes, one text encoder more": (
        "stable-diffusion --model {}/sdxl",
        "StableDiffusionPipeline has no place for text_encoder_2 of sdxl",
        "this model is a StableDiffusionXLPipeline: diffpipe build stable-diffusion --type xl",
    ),
    "by the class alone": (
        "custom --class WanPipeline --model {}/qwen",
        "the transformer of qwen is of class QwenImageTransformer2DModel; WanPipeline takes WanTransformer3DModel",
        "this model is a QwenImagePipeline: diffpipe build qwen",
    ),
    "a ControlNet of another family": (
        "flux --type controlnet --model {}/flux --controlnet {}/sd-controlnet",
        "the controlnet of sd-controlnet is of class ControlNetModel; FluxControlNetPipeline takes FluxControlNetModel",
        CONTROLNET_HINT,
    ),
    "a ControlNet for narrower text": (
        "stable-diffusion --type xl-controlnet --model {}/sdxl --controlnet {}/sd-controlnet",
        "the controlnet of sd-controlnet does not fit the unet: cross attention dim 32, not 64",
        "choose parts made for the same model",
    ),
    "an autoencoder of another class": (
        "flux --model {}/flux --component vae={}/wan",
        "the vae of wan is of class AutoencoderKLWan; FluxPipeline takes AutoencoderKL",
        "name a source that has one: --component vae=SOURCE",
    ),
    "a text encoder of another class": (
        "flux --model {}/flux --component text_encoder_2={}/wan/text_encoder",
        "the text_encoder_2 of text_encoder is of class UMT5EncoderModel; FluxPipeline takes T5EncoderModel",
        "name a source that has one: --component text_encoder_2=SOURCE",
    ),
    "a Control LoRA": (
        "flux --model {}/flux --lora {}/flux-lora-control.safetensors",
        "flux-lora-control.safetensors is a Control LoRA, which needs a control picture; FluxPipeline takes none",
        "build it for FluxControlPipeline: diffpipe build custom --class FluxControlPipeline --model SOURCE "
        "--lora flux-lora-control.safetensors",
    ),
    "a part that the pipeline does not have": (
        "flux --model {}/flux --component foo={}/flux",
        "FluxPipeline has no component 'foo'",
        "it has: feature_extractor, image_encoder, scheduler, text_encoder, text_encoder_2, tokenizer, tokenizer_2, "
        "transformer, vae",
    ),
    "a size without a unit": (
        "flux --model {}/flux --memory auto --device-memory 12",
        "--device-memory 12: 12 of what?",
        "add the unit, for example 12GiB",
    ),
}


def error(done: Any) -> tuple[int, str, str]:
    """Exit code, message and hint; nothing on stdout, nothing else on stderr."""
    assert done.stdout == ""
    first, second = done.stderr.splitlines()
    return done.returncode, first.removeprefix("error: "), second.removeprefix("  try: ")


@pytest.mark.parametrize("case", REFUSED)
def test_refused(warm: Warm, checkpoints: Path, case: str) -> None:
    command, message, hint = REFUSED[case]
    done = warm("build", *command.replace("{}", str(checkpoints)).split())
    assert error(done) == (2, message, hint)
    assert not list((warm.home / "names").glob("*"))


def test_refused_before_weights_are_fetched(cli: Cli, checkpoints: Path) -> None:
    with serve({"someone/flux": checkpoints / "flux", "someone/wan": checkpoints / "wan"}) as hub:
        env = {"HF_ENDPOINT": hub.url}
        model = cli("build", "wan", "--model", "someone/flux", env=env)
        vae = cli("build", "flux", "--model", checkpoints / "flux", "--component", "vae=someone/wan", env=env)
    assert error(model)[:2] == (2, REFUSED["a model of another family"][1].replace("of flux", "of someone/flux"))
    assert error(vae)[:2] == (2, REFUSED["an autoencoder of another class"][1].replace("of wan", "of someone/wan"))
    assert hub.requests
    assert [request.path for request in hub.requests if ".safetensors" in request.path] == []


@pytest.fixture
def tiny_autoencoder(tmp_path: Path, checkpoints: Path) -> Callable[[int], Path]:
    """Writes an AutoencoderTiny with as many scales as Flux's autoencoder, for latents of so many channels."""
    scales = len(json.loads((checkpoints / "flux/vae/config.json").read_text())["block_out_channels"])

    def write(channels: int) -> Path:
        vae = diffusers.AutoencoderTiny(
            latent_channels=channels,
            encoder_block_out_channels=(8,) * scales,
            decoder_block_out_channels=(8,) * scales,
            num_encoder_blocks=(1,) * scales,
            num_decoder_blocks=(1,) * scales,
        )
        vae.save_pretrained(tmp_path / f"tiny-{channels}")
        return tmp_path / f"tiny-{channels}"

    return write


SHORT = ("--width", 64, "--height", 64, "--num-inference-steps", 2, "--seed", 1)


def test_a_smaller_autoencoder_for_the_same_latents(
    warm: Warm, checkpoints: Path, tiny_autoencoder: Callable[[int], Path]
) -> None:
    words = ("build", "flux", "--model", checkpoints / "flux", "--name", "fast", "--component")
    warm(*words, f"vae={tiny_autoencoder(4)}", check=True)
    done = warm("generate", "fast", "--prompt", "a fox", *SHORT, check=True)
    shown = json.loads(warm("pipelines", "show", "fast", "--json", check=True).stdout)["manifest"]
    assert {part["name"]: part["class_name"] for part in shown["components"]}["vae"] == "AutoencoderTiny"
    with Image.open(warm.cwd / done.stdout.strip()) as picture:
        assert picture.size == (64, 64)


def test_an_autoencoder_for_other_latents(
    warm: Warm, checkpoints: Path, tiny_autoencoder: Callable[[int], Path]
) -> None:
    done = warm("build", "flux", "--model", checkpoints / "flux", "--component", f"vae={tiny_autoencoder(8)}")
    message = "the vae of tiny-8 does not fit the transformer: latent channels 8, not 4"
    assert error(done) == (2, message, "choose parts made for the same model")


def test_a_control_lora_where_it_belongs(warm: Warm, checkpoints: Path, inputs: Path) -> None:
    lora = checkpoints / "flux-lora-control.safetensors"
    words = ("custom", "--class", "FluxControlPipeline", "--model", checkpoints / "flux", "--lora", lora)
    warm("build", *words, "--name", "control", check=True)
    control = ("--control-image", inputs / "control.png")
    done = warm("generate", "control", "--prompt", "a fox", *control, *SHORT, check=True)
    with Image.open(warm.cwd / done.stdout.strip()) as picture:
        assert picture.size == (64, 64)


def test_a_plain_lora_makes_no_control_pipeline_of_a_plain_model(warm: Warm, checkpoints: Path) -> None:
    lora = checkpoints / "flux-lora.safetensors"
    words = ("custom", "--class", "FluxControlPipeline", "--model", checkpoints / "flux", "--lora", lora)
    code, message, _ = error(warm("build", *words, "--name", "refused"))
    assert (code, message.startswith("the transformer of flux takes ")) == (2, True)


def test_the_limit_holds_where_it_will_run(warm: Warm, checkpoints: Path) -> None:
    """Nothing was named but a limit: on a machine without a GPU that is the CPU, whose memory is the host's."""
    words = ("build", "flux", "--model", checkpoints / "flux", "--device", "auto", "--memory", "auto")
    done = warm(*words, "--device-memory", "600MiB")
    code, message, _ = error(done)
    assert code == 5
    assert message.startswith("nothing fits: ")
    assert message.endswith(" of 0.6 GiB")


@pytest.mark.parametrize(
    ("command", "option", "repository"),
    [
        ("flux --type controlnet --model {}/flux", "--controlnet", "InstantX/FLUX.1-dev-Controlnet-Union"),
        ("flux --model {}/flux-transformer.gguf", "--config", "black-forest-labs/FLUX.1-schnell"),
    ],
)
@pytest.mark.parametrize(("offline", "code"), [(True, 3), (False, 1)])
def test_what_was_wanted_of_the_hub(
    warm: Warm, checkpoints: Path, command: str, option: str, repository: str, offline: bool, code: int
) -> None:
    done = warm("build", *command.replace("{}", str(checkpoints)).split(), *["--offline"] * offline)
    found = error(done)
    assert found[0] == code
    assert found[1].startswith(f"without {option}, {repository} is needed: ")
    assert found[2].startswith(f"name what is on this machine with {option} SOURCE, or ")


@pytest.mark.parametrize(
    ("pipeline", "name", "part", "taken"),
    [
        ("FluxPipeline", "vae", diffusers.AutoencoderKL, True),
        ("FluxPipeline", "vae", diffusers.AutoencoderTiny, True),
        ("FluxPipeline", "vae", diffusers.AutoencoderKLWan, False),
        ("FluxPipeline", "text_encoder", transformers.CLIPTextModelWithProjection, True),
        ("FluxPipeline", "text_encoder", transformers.CLIPModel, True),
        ("FluxPipeline", "text_encoder", transformers.T5EncoderModel, False),
        ("FluxPipeline", "text_encoder_2", transformers.T5ForConditionalGeneration, True),
        ("FluxPipeline", "text_encoder_2", transformers.UMT5EncoderModel, False),
        ("WanPipeline", "vae", diffusers.AutoencoderTiny, False),
        ("StableDiffusionControlNetPipeline", "controlnet", diffusers.ControlNetModel, True),
        ("StableDiffusionControlNetPipeline", "controlnet", diffusers.FluxControlNetModel, False),
    ],
)
def test_what_fits(pipeline: str, name: str, part: type, taken: bool) -> None:
    accepted = match.accepted_classes(pipeline_class(pipeline))
    assert match.fits(part, accepted[name]) is taken
