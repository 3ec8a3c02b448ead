"""`diffpipe build` as a user runs it: cache hits, keys, sources, and what is refused."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, Warm
from PIL import Image

from diffpipe.core.manifest import Located, Manifest
from diffpipe.core.source import BASE

FLOAT = ("--dtype", "float32")
SMALL = ("--prompt", "a fox", "--width", 32, "--height", 32, "--num-inference-steps", 2, "--seed", 1)
Copy = Callable[..., Path]


def built(cli: Cli, *args: object, **options: Any) -> dict[str, Any]:
    """What `build ... --json` prints."""
    return dict(json.loads(cli("build", *args, "--json", check=True, **options).stdout))


def manifest(cli: Cli, name: str) -> dict[str, Any]:
    return dict(json.loads(cli("pipelines", "show", name, "--json", check=True).stdout)["manifest"])


def picture(cli: Cli, name: str, tmp_path: Path, *args: object) -> bytes:
    """A small picture by a pipeline with seed 1, as a PNG without what it was made of."""
    path = tmp_path / f"{name}.png"
    assert cli("generate", name, *SMALL, *args, "-o", path, check=True).stdout == f"{path}\n"
    return without_metadata(path)


def without_metadata(path: Path) -> bytes:
    plain = io.BytesIO()
    Image.open(path).save(plain, "PNG")
    return plain.getvalue()


@pytest.fixture(scope="module")
def flux(warm: Warm, checkpoints: Path) -> dict[str, Any]:
    """The plain Flux folder, built as `flux`."""
    return built(warm, "flux", "--model", checkpoints / "flux", *FLOAT)


@pytest.fixture(scope="module")
def sd(warm: Warm, checkpoints: Path) -> dict[str, Any]:
    """The plain Stable Diffusion folder, built as `sd`."""
    return built(warm, "stable-diffusion", "--model", checkpoints / "stable-diffusion", "--name", "sd", *FLOAT)


@pytest.fixture(scope="module")
def flux_picture(warm: Warm, flux: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return picture(warm, flux["key"], tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def sd_picture(warm: Warm, sd: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return picture(warm, sd["key"], tmp_path_factory.mktemp("sd"))


def test_the_first_build_says_what_it_made_and_how_to_use_it(cli: Cli, checkpoints: Path) -> None:
    words = ("build", "flux", "--model", checkpoints / "flux", "--name", "first", "--dtype", "float16")
    done = cli.fresh(*words, check=True)
    name, key = done.stdout.split()
    assert (name, len(key)) == ("first", 12)
    assert done.stderr == (
        f'built FluxPipeline from flux as first ({key})\nuse it: diffpipe generate first --prompt "..."\n'
    )


# The key


def test_a_second_build_is_a_hit_without_torch(cli: Cli, flux: dict[str, Any], checkpoints: Path) -> None:
    done = cli.light("build", "flux", "--model", checkpoints / "flux", *FLOAT)
    key = flux["key"][:12]
    assert (done.returncode, done.stdout) == (0, f"flux {key}\n")
    assert done.stderr == (
        f'flux is in the cache already ({key}): nothing to do\nuse it: diffpipe generate flux --prompt "..."\n'
    )


def test_each_change_gives_another_key(warm: Warm, flux: dict[str, Any], checkpoints: Path, copy_of: Copy) -> None:
    flipped = copy_of("flux", "flipped")
    weights = flipped / "transformer" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    lora = checkpoints / "flux-lora.safetensors"
    changes: dict[str, tuple[object, ...]] = {
        "one byte of the weights": ("--model", flipped, *FLOAT),
        "dtype": ("--dtype", "bfloat16"),
        "component": ("--component", f"vae={checkpoints / 'stable-diffusion'}", *FLOAT),
        "scheduler": ("--scheduler", "FlowMatchLCMScheduler", *FLOAT),
        "scheduler setting": ("--scheduler-config", '{"shift": 3.0}', *FLOAT),
        "another value of it": ("--scheduler-config", '{"shift": 2.0}', *FLOAT),
        "LoRA": ("--lora", lora, *FLOAT),
        "scale of the LoRA": ("--lora", f"{lora}@0.5", *FLOAT),
        "type": ("--type", "img2img", *FLOAT),
        "device": ("--device", "cpu", *FLOAT),
    }
    model = ("--model", checkpoints / "flux")
    keys = {
        name: built(warm, "flux", *(() if "--model" in args else model), *args, "--name", "changed")["key"]
        for name, args in changes.items()
    }
    assert len({flux["key"], *keys.values()}) == 1 + len(changes), keys


def test_the_working_folder_does_not_change_the_key(cli: Cli, flux: dict[str, Any], checkpoints: Path) -> None:
    done = cli.light("build", "flux", "--model", "flux", "--json", *FLOAT, cwd=checkpoints)
    assert json.loads(done.stdout) == {**flux, "cached": True}


def test_the_place_of_the_model_does_not_change_the_key(
    cli: Cli, warm: Warm, flux: dict[str, Any], copy_of: Copy, tmp_path: Path, flux_picture: bytes
) -> None:
    home = {"DIFFPIPE_HOME": str(tmp_path / "home")}
    model = copy_of("flux", "before")
    assert built(warm, "flux", "--model", model, *FLOAT, env=home)["key"] == flux["key"]
    model.rename(tmp_path / "after")
    moved = cli.light("build", "flux", "--model", tmp_path / "after", *FLOAT, env=home)
    assert moved.stdout == f"flux {flux['key'][:12]}\n"
    # ... and the entry follows the model to its new place.
    warm("generate", "flux", *SMALL, "-o", tmp_path / "x.png", env=home, check=True)
    assert without_metadata(tmp_path / "x.png") == flux_picture


def test_a_moved_cache_keeps_its_entries(
    cli: Cli, warm: Warm, flux: dict[str, Any], checkpoints: Path, tmp_path: Path, flux_picture: bytes
) -> None:
    shutil.copytree(cli.home, tmp_path / "home")
    (tmp_path / "home").rename(tmp_path / "elsewhere")
    home = {"DIFFPIPE_HOME": str(tmp_path / "elsewhere")}
    done = cli.light("build", "flux", "--model", checkpoints / "flux", "--json", *FLOAT, env=home)
    assert json.loads(done.stdout) == {**flux, "cached": True}
    warm("generate", flux["key"], *SMALL, "-o", tmp_path / "x.png", env=home, check=True)
    assert without_metadata(tmp_path / "x.png") == flux_picture


def test_the_order_of_options_does_not_change_the_key(cli: Cli, warm: Warm, checkpoints: Path) -> None:
    vae = ("--component", f"vae={checkpoints / 'stable-diffusion'}")
    encoder = ("--component", f"text_encoder={checkpoints / 'stable-diffusion'}")
    model = ("--model", checkpoints / "flux", "--name", "ordered")
    one = built(warm, "flux", *vae, *model, *encoder, *FLOAT)
    other = json.loads(cli.light("build", "flux", *FLOAT, *encoder, *vae, *model, "--json").stdout)
    assert other == {**one, "cached": True}


def test_force_builds_again(warm: Warm, flux: dict[str, Any], checkpoints: Path) -> None:
    again = built(warm, "flux", "--model", checkpoints / "flux", *FLOAT, "--force")
    assert (again["key"], again["cached"]) == (flux["key"], False)


def test_a_name_that_stood_for_another_pipeline_is_reported(
    warm: Warm, flux: dict[str, Any], checkpoints: Path
) -> None:
    built(warm, "flux", "--model", checkpoints / "flux", *FLOAT, "--name", "mine")
    done = warm("build", "flux", "--model", checkpoints / "flux-sharded", *FLOAT, "--name", "mine", check=True)
    assert f"the name mine stood for {flux['key'][:12]} until now\n" in done.stderr


# Sources


def test_a_single_file_checkpoint_makes_what_its_folder_makes(
    warm: Warm, checkpoints: Path, tmp_path: Path, sd_picture: bytes
) -> None:
    single, folder = checkpoints / "stable-diffusion.safetensors", checkpoints / "stable-diffusion"
    built(warm, "stable-diffusion", "--model", single, "--config", folder, "--name", "single", *FLOAT)
    assert picture(warm, "single", tmp_path) == sd_picture
    sizes = {part["name"]: part["parameters"] for part in manifest(warm, "single")["components"]}
    assert sizes == {part["name"]: part["parameters"] for part in manifest(warm, "sd")["components"]}


def test_a_single_file_transformer_goes_into_the_config_folder(
    warm: Warm, checkpoints: Path, tmp_path: Path, flux_picture: bytes
) -> None:
    single = checkpoints / "flux-transformer.safetensors"
    built(warm, "flux", "--model", single, "--config", checkpoints / "flux", "--name", "single-flux", *FLOAT)
    assert picture(warm, "single-flux", tmp_path) == flux_picture


def test_shards_make_what_one_file_makes(warm: Warm, checkpoints: Path, tmp_path: Path, flux_picture: bytes) -> None:
    built(warm, "flux", "--model", checkpoints / "flux-sharded", "--name", "sharded", *FLOAT)
    assert picture(warm, "sharded", tmp_path) == flux_picture


def test_a_variant_is_what_is_loaded(warm: Warm, checkpoints: Path, tmp_path: Path, flux_picture: bytes) -> None:
    built(warm, "flux", "--model", checkpoints / "flux-fp16", "--variant", "fp16", "--name", "half", *FLOAT)
    stored = {part["name"]: part["dtypes"] for part in manifest(warm, "half")["components"] if part["bytes"]}
    assert stored == {name: ["F16"] for name in ("text_encoder", "text_encoder_2", "transformer", "vae")}
    assert picture(warm, "half", tmp_path) != flux_picture


def test_custom_takes_the_class_of_the_folder(warm: Warm, checkpoints: Path, tmp_path: Path, sd_picture: bytes) -> None:
    made = built(warm, "custom", "--model", checkpoints / "stable-diffusion", *FLOAT)
    assert (made["name"], made["pipeline"]) == ("custom", "StableDiffusionPipeline")
    assert picture(warm, "custom", tmp_path) == sd_picture


def test_custom_takes_another_class(warm: Warm, checkpoints: Path) -> None:
    model = ("--model", checkpoints / "flux", "--class", "FluxImg2ImgPipeline", "--name", "classed")
    assert built(warm, "custom", *model, *FLOAT)["pipeline"] == "FluxImg2ImgPipeline"
    required = {flag["name"] for flag in manifest(warm, "classed")["flags"] if flag.get("required")}
    assert "image" in required


@pytest.mark.parametrize("inside", ["", "/vae"], ids=["pipeline folder", "folder of the component alone"])
def test_a_component_from_elsewhere(
    warm: Warm, checkpoints: Path, copy_of: Copy, tmp_path: Path, flux_picture: bytes, inside: str
) -> None:
    other = copy_of("flux", "other")
    weights = other / "vae" / "diffusion_pytorch_model.safetensors"
    data = weights.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")  # of the tensors; the decoder's come first
    weights.write_bytes(data[:start] + bytes(1000) + data[start + 1000 :])
    model = ("--model", checkpoints / "flux", "--name", "parts", *FLOAT)
    built(warm, "flux", *model, "--component", f"vae={checkpoints / 'flux-sharded'}{inside}")
    assert picture(warm, "parts", tmp_path) == flux_picture  # the same autoencoder from another place
    built(warm, "flux", *model, "--component", f"vae={other}{inside}")
    assert picture(warm, "parts", tmp_path, "--overwrite") != flux_picture
    sources = {part["name"]: part["source"] for part in manifest(warm, "parts")["components"]}
    assert sources["transformer"] == "flux"
    assert sources["vae"] == (Path(inside).name or "other")


def test_a_component_from_a_single_file(
    warm: Warm, checkpoints: Path, copy_of: Copy, tmp_path: Path, flux_picture: bytes
) -> None:
    base = copy_of("flux", "base")
    (base / "transformer" / "diffusion_pytorch_model.safetensors").unlink()  # not needed: only the settings are
    file = f"transformer={checkpoints / 'flux-transformer.safetensors'}"
    built(warm, "flux", "--model", base, "--component", file, "--name", "filed", *FLOAT)
    assert picture(warm, "filed", tmp_path) == flux_picture


@pytest.mark.parametrize("inside", ["", "/text_encoder_2"], ids=["pipeline folder", "folder of the component alone"])
def test_a_component_that_the_model_leaves_out(
    warm: Warm, checkpoints: Path, copy_of: Copy, tmp_path: Path, flux_picture: bytes, inside: str
) -> None:
    """Its class is the one that its own folder names."""
    base = copy_of("flux", "without")
    index_naming("text_encoder_2", None, None)(base)
    shutil.rmtree(base / "text_encoder_2")
    command = ("flux", "--model", base, "--name", "completed", *FLOAT)
    code, message, _ = refused(warm("build", *command))
    assert (code, message) == (2, "FluxPipeline needs text_encoder_2, which this model does not have")
    built(warm, *command, "--component", f"text_encoder_2={checkpoints / 'flux'}{inside}")
    part = next(part for part in manifest(warm, "completed")["components"] if part["name"] == "text_encoder_2")
    assert (part["library"], part["class_name"]) == ("transformers", "T5EncoderModel")
    assert picture(warm, "completed", tmp_path) == flux_picture


def test_a_component_of_another_class_is_refused(warm: Warm, checkpoints: Path, tmp_path: Path) -> None:
    """transformers would fill what is missing with random numbers: told by the weights where nothing else does."""
    model = ("flux", "--model", checkpoints / "flux", "--name", "mixed")
    other = Path(shutil.copytree(checkpoints / "flux" / "text_encoder_2", tmp_path / "text_encoder_2"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"architectures": None}))
    code, message, hint = refused(warm("build", *model, "--component", f"text_encoder={other}"))
    assert (code, hint) == (2, "choose a CLIPTextModel for --component text_encoder")
    assert message.startswith("the weights of text_encoder in text_encoder_2 are not those of the CLIPTextModel of ")


def test_a_lora_changes_the_picture_unless_its_scale_is_zero(
    warm: Warm, checkpoints: Path, tmp_path: Path, flux_picture: bytes
) -> None:
    model = ("--model", checkpoints / "flux", *FLOAT)
    made = {}
    for scale in ("1", "0.5", "0"):
        built(warm, "flux", *model, "--lora", f"{checkpoints / 'flux-lora.safetensors'}@{scale}", "--name", "adapted")
        made[scale] = picture(warm, "adapted", tmp_path, "--overwrite")
    assert made["0"] == flux_picture
    assert len(set(made.values())) == 3


def test_the_types_of_stable_diffusion_start_from_a_picture(
    warm: Warm, checkpoints: Path, tmp_path: Path, sd_picture: bytes
) -> None:
    start = tmp_path / "start.png"
    start.write_bytes(sd_picture)
    model = ("stable-diffusion", "--model", checkpoints / "stable-diffusion", *FLOAT)
    call = ("--prompt", "a fox", "--image", start, "--num-inference-steps", 2, "--strength", 1, "--seed", 1)
    for kind, media in (("img2img", ()), ("inpaint", ("--mask-image", start, "--width", 32, "--height", 32))):
        made = built(warm, *model, "--type", kind)
        assert (made["name"], made["type"]) == (f"stable-diffusion-{kind}", kind)
        warm("generate", made["name"], *call, *media, "-o", tmp_path / f"{kind}.png", check=True)
    assert len({path.read_bytes() for path in tmp_path.glob("*.png")}) == 3


def test_another_scheduler_keeps_the_shipped_settings(
    warm: Warm, sd: dict[str, Any], checkpoints: Path, tmp_path: Path, sd_picture: bytes
) -> None:
    changes = ("--scheduler", "EulerDiscreteScheduler", "--scheduler-config", '{"timestep_spacing": "trailing"}')
    built(warm, "stable-diffusion", "--model", checkpoints / "stable-diffusion", *changes, "--name", "euler", *FLOAT)
    described = manifest(warm, "euler")
    scheduler = {part["name"]: part["class_name"] for part in described["components"]}["scheduler"]
    assert scheduler == "EulerDiscreteScheduler"
    assert described["config"]["scheduler"] == {
        "class": "EulerDiscreteScheduler",
        "config": {"timestep_spacing": "trailing"},
    }
    assert picture(warm, "euler", tmp_path) != sd_picture

    from diffpipe.engine.loading.load import load

    pipe = load(Manifest.from_json(described), Located({BASE: checkpoints / "stable-diffusion"}), "cpu")
    assert type(pipe.scheduler).__name__ == "EulerDiscreteScheduler"
    settings = {name: pipe.scheduler.config[name] for name in ("timestep_spacing", "beta_end", "beta_schedule")}
    # 0.012 and scaled_linear are the shipped ones; the class would take 0.02 and linear.
    assert settings == {"timestep_spacing": "trailing", "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def test_a_scheduler_setting_alone_keeps_the_class(
    warm: Warm, checkpoints: Path, tmp_path: Path, flux_picture: bytes
) -> None:
    model = ("--model", checkpoints / "flux", "--name", "shifted", *FLOAT)
    built(warm, "flux", *model, "--scheduler-config", '{"shift": 9.0}')
    assert picture(warm, "shifted", tmp_path) != flux_picture
    scheduler = next(part for part in manifest(warm, "shifted")["components"] if part["name"] == "scheduler")
    assert scheduler["class_name"] == "FlowMatchEulerDiscreteScheduler"


# What is refused


def refused(done: Any) -> tuple[int, str, str]:
    """Exit code, message and hint; nothing on stdout, two lines on stderr."""
    assert done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first.startswith("error: ")
    assert second.startswith("  try: ")
    return done.returncode, first.removeprefix("error: "), second.removeprefix("  try: ")


PICKLE_HINT = "use a .safetensors file, or pass --allow-pickle if you trust its source"
FLOW_CONFIG = """for example '{"shift": 3.0}'"""
NAME_HINT = "use letters, digits, dots, dashes and underscores, and not 6 or more hex digits alone"

# `{}` is the folder of the checkpoints. None of these needs torch to be refused.
REFUSED: dict[str, tuple[str, int, str, str]] = {
    "pickled weights": (
        "flux --model {}/flux-pickle",
        2,
        "transformer has no safetensors weights, only pickled ones, which can run code when loaded",
        "use a model with safetensors weights, or pass --allow-pickle if you trust its source",
    ),
    "a pipeline class of its own": (
        "custom --model {}/flux-custom",
        2,
        "{}/flux-custom wants to run pipeline code of its own",
        "read it, then pass --trust-remote-code if you trust it",
    ),
    "the same under a known provider": (
        "flux --model {}/flux-custom",
        2,
        "{}/flux-custom wants to run pipeline code of its own",
        "read it, then pass --trust-remote-code if you trust it",
    ),
    "a folder without an index": (
        "flux --model {}/flux/vae",
        2,
        "{}/flux/vae is no diffusers folder: it has no model_index.json",
        "convert it with diffusers, or name the checkpoint file itself",
    ),
    "no such path": ("flux --model ./nowhere", 3, "there is no file or folder ./nowhere", "check the path"),
    "neither path nor repository": (
        "flux --model nowhere",
        2,
        "'nowhere' is neither a folder, a file, nor a repository (owner/name)",
        "for example ./my-model or owner/name",
    ),
    "no model": (
        "custom",
        2,
        "--model is missing",
        "diffpipe build custom --model SOURCE: a repository, folder or file",
    ),
    "a near provider": ("flx", 2, "diffpipe build has no 'flx'", "did you mean flux or flux2 or ltx?"),
    "an unknown type": (
        "flux --type txt2img --model {}/flux",
        2,
        "Invalid value for '--type': 'txt2img' is not one of 'text2image', 'img2img', 'inpaint', 'fill', 'kontext', "
        "'controlnet', 'upscale'",
        "diffpipe build flux --help shows what it takes",
    ),
    "an unknown dtype": (
        "flux --dtype float8 --model {}/flux",
        2,
        "Invalid value for '--dtype': 'float8' is not one of 'bfloat16', 'float16', 'float32'",
        "diffpipe build flux --help shows what it takes",
    ),
    "an unknown device": (
        "flux --device gpu --model {}/flux",
        2,
        "--device 'gpu' is no device",
        "use auto, cpu, cuda, cuda:N, mps or xpu",
    ),
    "a misspelt option": (
        "flux --modle {}/flux",
        2,
        "diffpipe build flux has no option --modle",
        "did you mean --model?",
    ),
    "a component without a source": (
        "flux --model {}/flux --component vae",
        2,
        "--component 'vae' is not NAME=SOURCE",
        "for example text_encoder_2=google/t5-v1_1-xxl",
    ),
    "a component that is not in its source": (
        "flux --model {}/flux --component transformer={}/stable-diffusion",
        3,
        "{}/stable-diffusion holds no component transformer",
        "check the source, or the name of the component",
    ),
    "a variant that is not there": (
        "flux --model {}/flux --variant fp16",
        3,
        "no weights of variant 'fp16' here",
        "leave out --variant, or name one that exists",
    ),
    "a revision of a folder": (
        "flux --model {}/flux --revision main",
        2,
        "--revision main means nothing for the local folder {}/flux",
        "leave --revision out",
    ),
    "no such LoRA": (
        "flux --model {}/flux --lora {}/none.safetensors",
        3,
        "there is no file or folder {}/none.safetensors",
        "check the path",
    ),
    "a scale that is no number": (
        "flux --model {}/flux --lora {}/flux-lora.safetensors@big",
        2,
        "--lora {}/flux-lora.safetensors@big: 'big' is no scale",
        "write SOURCE@SCALE with a number, for example @0.8",
    ),
    "JSON cut short": (
        'flux --model {}/flux --scheduler-config {"shift":',
        2,
        '--scheduler-config is no JSON at column 10: {"shift":',
        """for example '{"shift": 3.0}'""",
    ),
    "JSON that is no object": (
        "flux --model {}/flux --scheduler-config [1]",
        2,
        "--scheduler-config must be a JSON object",
        FLOW_CONFIG,
    ),
    "a name like a key": (
        "flux --model {}/flux --name abcdef12",
        2,
        "'abcdef12' cannot be a pipeline's name",
        NAME_HINT,
    ),
    "a name that is a path": ("flux --model {}/flux --name ../x", 2, "'../x' cannot be a pipeline's name", NAME_HINT),
    "a single file without settings": (
        "custom --model {}/flux-transformer.safetensors",
        2,
        "a single-file checkpoint of a custom pipeline does not say what it is",
        "name a folder or repository with the same layout: --config SOURCE",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_without_torch(cli: Cli, checkpoints: Path, case: str) -> None:
    command, code, message, hint = REFUSED[case]
    found = refused(cli.light("build", *command.replace("{}", str(checkpoints)).split()))
    assert found == (code, message.replace("{}", str(checkpoints)), hint)


SCHEDULERS_OF_DDIM = (
    "DDIMParallelScheduler, DDIMScheduler, DDPMParallelScheduler, DDPMScheduler, DEISMultistepScheduler, "
)

# These take diffusers to know.
REFUSED_BY_DIFFUSERS: dict[str, tuple[str, int, str, str]] = {
    "a misspelt scheduler": (
        "stable-diffusion --model {}/stable-diffusion --scheduler EulerDiscretScheduler",
        2,
        "diffusers has no scheduler 'EulerDiscretScheduler'",
        "did you mean EulerDiscreteScheduler or ",
    ),
    "no scheduler": (
        "flux --model {}/flux --scheduler FluxPipeline",
        2,
        "diffusers has no scheduler 'FluxPipeline'",
        "",
    ),
    "a scheduler of noise for a flow": (
        "flux --model {}/flux --scheduler DDIMScheduler",
        2,
        "DDIMScheduler does not fit a model made for FlowMatchEulerDiscreteScheduler",
        "choose one of: FlowMatchEulerDiscreteScheduler",
    ),
    "a scheduler of flows for noise": (
        "stable-diffusion --model {}/stable-diffusion --scheduler FlowMatchEulerDiscreteScheduler",
        2,
        "FlowMatchEulerDiscreteScheduler does not fit a model made for DDIMScheduler",
        f"choose one of: {SCHEDULERS_OF_DDIM}",
    ),
    "a misspelt setting": (
        'flux --model {}/flux --scheduler-config {"shft":3}',
        2,
        "FlowMatchEulerDiscreteScheduler has no setting 'shft'",
        "did you mean shift?",
    ),
    "a word for a number": (
        'flux --model {}/flux --scheduler-config {"shift":"high"}',
        2,
        'FlowMatchEulerDiscreteScheduler: shift cannot be "high"',
        "the default is 1.0",
    ),
    "a number for a switch": (
        'flux --model {}/flux --scheduler-config {"use_dynamic_shifting":1}',
        2,
        "FlowMatchEulerDiscreteScheduler: use_dynamic_shifting cannot be 1",
        "the default is false",
    ),
    "a word that the scheduler does not know": (
        'stable-diffusion --model {}/stable-diffusion --scheduler-config {"beta_schedule":"steep"}',
        2,
        "DDIMScheduler cannot be set up so: steep is not implemented for "
        "<class 'diffusers.schedulers.scheduling_ddim.DDIMScheduler'>",
        "check --scheduler-config",
    ),
    "an unknown component": (
        "flux --model {}/flux --component scheduler_2={}/flux/scheduler",
        2,
        "FluxPipeline has no component 'scheduler_2'",
        "did you mean scheduler? it has: feature_extractor, image_encoder, scheduler, ",
    ),
    "the wrong provider": (
        "flux --model {}/stable-diffusion",
        2,
        "FluxPipeline needs text_encoder_2, tokenizer_2, transformer, which this model does not have",
        "this model is a StableDiffusionPipeline: diffpipe build stable-diffusion",
    ),
    "a misspelt class": (
        "custom --model {}/flux --class FluxPipelin",
        2,
        "diffusers 0.42.1 has no pipeline 'FluxPipelin'",
        "did you mean FluxPipeline or ",
    ),
    "a module for a class": (
        "custom --model {}/flux --class os",
        2,
        "diffusers 0.42.1 has no pipeline 'os'",
        "check the name, or install the diffusers that has it",
    ),
    **{
        f"{name} for a class": (
            f"custom --model {{}}/flux --class {name}",
            2,
            f"diffusers 0.42.1 has no pipeline '{name}'",
            "",
        )
        for name in ("os.system", "__loader__", "AutoencoderKL")
    },
    "a device that is not here": (
        "flux --model {}/flux --device cuda:7",
        2,
        "there is no device 'cuda:7' here",
        "available: ",
    ),
}


@pytest.mark.parametrize("case", REFUSED_BY_DIFFUSERS)
def test_refused_by_diffusers(warm: Warm, checkpoints: Path, case: str) -> None:
    import diffusers

    command, code, message, hint = REFUSED_BY_DIFFUSERS[case]
    found = refused(warm("build", *command.replace("{}", str(checkpoints)).split(), "--name", "refused"))
    assert found[:2] == (code, message.replace("0.42.1", diffusers.__version__))
    assert found[2].startswith(hint)
    assert not (warm.home / "names" / "refused").exists()


def without_vae(folder: Path) -> None:
    shutil.rmtree(folder / "vae")


def without_weights(folder: Path) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()


def truncated(folder: Path) -> None:
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    os.truncate(weights, weights.stat().st_size - 10)


def bad_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


def index_naming(component: str, *named: Any) -> Callable[[Path], None]:
    """Let model_index.json say [library, class], or something else, of a component."""

    def spoil(folder: Path) -> None:
        index = json.loads((folder / "model_index.json").read_text())
        value = named[0] if len(named) == 1 else named
        (folder / "model_index.json").write_text(json.dumps({**index, component: value}))

    return spoil


SPOILT: list[tuple[Callable[[Path], None], int, str, str]] = [
    (
        without_vae,
        3,
        "the folder vae, which model_index.json names, is missing",
        "fetch the whole model, or replace the part with --component vae=SOURCE",
    ),
    (
        without_weights,
        3,
        "vae has no weights",
        "the folder is incomplete: fetch it again, or name the variant it has with --variant",
    ),
    (
        truncated,
        6,
        "diffusion_pytorch_model.safetensors in vae is not a complete safetensors file",
        "fetch or copy the file again",
    ),
    (bad_index, 2, "the model_index.json of {} is no JSON object", "fetch the model again"),
    (
        index_naming("vae", "os", "system"),
        2,
        "{} names the library 'os', which diffusers does not load from",
        "diffpipe loads folders made of diffusers and transformers parts only",
    ),
    (
        index_naming("vae", "diffusers", "AutoencoderXL"),
        2,
        "there is no AutoencoderXL in diffusers",
        "install the versions of diffusers and transformers that have it",
    ),
    *(
        (
            index_naming("_class_name", value),
            2,
            "the model_index.json of {} names no pipeline class",
            "fetch the model again",
        )
        for value in (None, 5, [], ["pipeline"], ["../pipeline", "Own"], ["pipeline", 5])
    ),
    *(
        (
            index_naming("vae", value),
            2,
            "FluxPipeline needs vae, which this model does not have",
            "choose the provider and --type that fit the model, or add the part with --component NAME=SOURCE",
        )
        for value in (None, ["diffusers", 5], [["diffusers"], "AutoencoderKL"], {"diffusers": "AutoencoderKL"})
    ),
]


@pytest.mark.parametrize(("spoil", "code", "message", "hint"), SPOILT)
def test_a_spoilt_folder_is_refused(
    warm: Warm, copy_of: Copy, spoil: Callable[[Path], None], code: int, message: str, hint: str
) -> None:
    folder = copy_of("flux", "spoilt")
    spoil(folder)
    before = sorted(warm.home.rglob("manifest.json"))
    assert refused(warm("build", "flux", "--model", folder)) == (code, message.format(folder), hint)
    assert sorted(warm.home.rglob("manifest.json")) == before


@pytest.mark.parametrize("taken", [False, True], ids=["/proc takes no folders", "a file"])
def test_a_cache_that_cannot_be_written(cli: Cli, checkpoints: Path, taken: bool) -> None:
    home = str(checkpoints / "flux-lora.safetensors") if taken else "/proc/diffpipe"
    done = cli.light("build", "flux", "--model", checkpoints / "flux", env={"DIFFPIPE_HOME": home})
    code, message, hint = refused(done)
    assert (code, hint) == (6, "set DIFFPIPE_HOME to a folder of yours")
    assert message.startswith("the cache folder cannot be written: ")


def test_a_pickled_checkpoint_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x04.")
    message = "model.ckpt is a pickled checkpoint, which can run code when loaded"
    done = cli.light("build", "stable-diffusion", "--model", tmp_path / "model.ckpt")
    assert refused(done) == (2, message, PICKLE_HINT)


def test_a_file_that_is_no_checkpoint_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_bytes(b"PK")
    code, message, _ = refused(cli.light("build", "stable-diffusion", "--model", tmp_path / "model.zip"))
    assert (code, message) == (2, "model.zip is no checkpoint")


# What is allowed when it is asked for


def test_allowed_pickles_make_what_safetensors_make(
    warm: Warm, checkpoints: Path, tmp_path: Path, flux_picture: bytes
) -> None:
    built(warm, "flux", "--model", checkpoints / "flux-pickle", "--allow-pickle", "--name", "pickled", *FLOAT)
    assert picture(warm, "pickled", tmp_path) == flux_picture


def test_an_allowed_pickle_still_runs_no_code(warm: Warm, copy_of: Copy, tmp_path: Path) -> None:
    """torch loads it with weights_only, which refuses anything but tensors and plain containers."""
    folder = copy_of("flux-pickle")
    attack = f"cos\nsystem\n(S'touch {tmp_path}/ran'\ntR.".encode()
    (folder / "transformer" / "diffusion_pytorch_model.bin").write_bytes(attack)
    built(warm, "flux", "--model", folder, "--allow-pickle", "--name", "attack", *FLOAT)
    code, message, _ = refused(warm("generate", "attack", *SMALL))
    assert (code, message.startswith("FluxPipeline could not be loaded: ")) == (6, True)
    assert not (tmp_path / "ran").exists()


def test_trusted_code_runs_and_makes_the_picture(
    warm: Warm, checkpoints: Path, copy_of: Copy, tmp_path: Path, flux_picture: bytes
) -> None:
    folder = copy_of("flux-custom")
    marker = checkpoints / "flux-custom" / "custom-code-ran"  # the copy's code still touches the original
    refused(warm("build", "custom", "--model", folder, "--name", "own"))
    assert not marker.exists()
    made = built(warm, "custom", "--model", folder, "--trust-remote-code", "--name", "own", *FLOAT)
    assert made["pipeline"] == "CustomPipeline"
    assert marker.exists()
    marker.unlink()
    assert picture(warm, "own", tmp_path) == flux_picture
    assert marker.exists()
    marker.unlink()


# What a source may be


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "{}/flux", "--config", "{}/flux"), "--config is for a single-file checkpoint"),
        (("--model", "{}/flux-transformer.safetensors", "--revision", "main"), "--revision main means nothing"),
        (("--model", "{}/flux", "--lora", "org/name/style.bin"), "style.bin is a pickled checkpoint"),
        (("--model", "{}/flux", "--lora", "{}/flux-transformer.safetensors"), "holds no LoRA"),
    ],
)
def test_options_that_mean_nothing_here(cli: Cli, checkpoints: Path, options: tuple[str, ...], message: str) -> None:
    done = cli.light("build", "flux", *(option.replace("{}", str(checkpoints)) for option in options))
    assert message in done.stderr
    assert done.returncode == 2


def test_a_folder_named_like_a_checkpoint(warm: Warm, checkpoints: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoints / "flux", tmp_path / "flux.pt"))
    here = built(warm, "flux", "--model", folder, "--name", "like-a-checkpoint")
    there = built(warm, "flux", "--model", checkpoints / "flux", "--name", "like-a-folder")
    assert here["key"] == there["key"]


def test_a_lora_whose_path_has_an_at_sign(warm: Warm, checkpoints: Path, tmp_path: Path) -> None:
    lora = tmp_path / "style@2x.safetensors"
    lora.write_bytes((checkpoints / "flux-lora.safetensors").read_bytes())
    plain = built(warm, "flux", "--model", checkpoints / "flux", *FLOAT, "--lora", lora, "--name", "at")
    scaled = built(warm, "flux", "--model", checkpoints / "flux", *FLOAT, "--lora", f"{lora}@1", "--name", "at")
    assert plain["key"] == scaled["key"]


def test_a_copy_is_used_once_the_first_folder_was_edited(warm: Warm, checkpoints: Path, tmp_path: Path) -> None:
    first, second = (Path(shutil.copytree(checkpoints / "flux", tmp_path / name)) for name in ("first", "second"))
    made = built(warm, "flux", "--model", first, *FLOAT, "--name", "copied")
    weights = first / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    again = built(warm, "flux", "--model", second, *FLOAT, "--name", "copied")
    assert (again["key"], again["cached"]) == (made["key"], True)
    assert warm("pipelines", "verify", "copied").returncode == 0


def test_a_tokenizer_with_code_of_its_own_is_refused_before_any_question(
    warm: Warm, copy_of: Callable[..., Path]
) -> None:
    folder = copy_of("flux", "auto")
    index = json.loads((folder / "model_index.json").read_text())
    index["tokenizer"] = ["transformers", "AutoTokenizer"]
    (folder / "model_index.json").write_text(json.dumps(index))
    config = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["own.OwnTokenizer", None]}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    done = warm("build", "flux", "--model", folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert "auto wants to run code of its own for tokenizer" in done.stderr
