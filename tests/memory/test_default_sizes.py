"""What a plan takes for the size that a model makes by default, and what it refuses: the pipeline's own answers."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli

from diffpipe.catalog import BUILTIN, pipelines
from diffpipe.catalog.rows import PipelineType
from diffpipe.core.errors import UsageError
from diffpipe.memory.recorded import default_sizes

diffusers = pytest.importorskip("diffusers")

from diffpipe.building.checks import refused_class  # noqa: E402
from diffpipe.engine.seams import diffusers_seam  # noqa: E402

NAMES = {"width": "width", "height": "height", "num_frames": "frames"}
FOLDERS = (
    "allegro", "flux", "qwen", "sd3", "sdxl", "stable-diffusion", "wan", "z-image", "ltx",
)  # fmt: skip


class Asked(Exception):
    """Ends a call once the pipeline has said what size it makes."""


def configs_of(folder: Path) -> dict[str, Any]:
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/config.json")}


def asked_for(pipe: Any, monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> dict[str, int]:
    """The width, height and frames that a pipeline asks `prepare_latents` for."""
    prepare = pipe.prepare_latents
    seen: dict[str, int] = {}

    def asked(*args: Any, **kwargs: Any) -> None:
        given = inspect.signature(prepare).bind(*args, **kwargs).arguments
        seen.update({NAMES[name]: value for name, value in given.items() if name in NAMES})
        raise Asked

    monkeypatch.setattr(pipe, "prepare_latents", asked)
    with pytest.raises(Asked):
        pipe("a fox", num_inference_steps=1, **arguments)
    return seen


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_plan_is_for_what_the_pipeline_makes(folder: str, checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(checkpoints / folder, local_files_only=True)
    made = asked_for(pipe, monkeypatch)
    planned = default_sizes(type(pipe).__name__, configs_of(checkpoints / folder))
    assert {name: planned[name] for name in made} == made


def test_amused_and_wuerstchen(checkpoints: Path) -> None:
    diffusers_seam.register_deprecated("wuerstchen")
    configs = configs_of(checkpoints / "amused")
    # AmusedPipeline: transformer.config.sample_size x 2 ** (levels of the VQ autoencoder - 1)
    side = configs["transformer"]["sample_size"] * 2 ** (len(configs["vqvae"]["block_out_channels"]) - 1)
    assert default_sizes("AmusedPipeline", configs) == {"width": side, "height": side, "steps": 12}
    assert default_sizes("WuerstchenCombinedPipeline", {})["width"] == 512


# As the hub has them: (class, settings of its components, width, height, frames where it makes a video).
HUB = [
    ("DDPMPipeline", {"unet": {"sample_size": 128}}, 128, 128, None),  # google/ddpm-ema-celebahq-256's kin
    ("DDPMPipeline", {"unet": {"sample_size": [32, 64]}}, 64, 32, None),
    ("StableDiffusionPipeline", {"unet": {"sample_size": 96}, "vae": {"block_out_channels": [1] * 4}}, 768, 768, None),
    ("StableDiffusionImg2ImgPipeline", {"unet": {"sample_size": 64}, "vae": {"block_out_channels": [1] * 4}}, 512, 512,
        None),
    ("LDMTextToImagePipeline", {"unet": {"sample_size": 32}, "vqvae": {"block_out_channels": [1] * 4}}, 256, 256, None),
    ("PixArtAlphaPipeline", {"transformer": {"sample_size": 64}, "vae": {"block_out_channels": [1] * 4}}, 512, 512,
        None),
    ("SanaPipeline", {"transformer": {"sample_size": 32}, "vae": {"encoder_block_out_channels": [1] * 6}}, 1024, 1024,
        None),
    ("WanPipeline", {}, 832, 480, 81),
    ("LTXPipeline", {}, 704, 512, 161),
    ("CogVideoXPipeline", {"transformer": {"sample_width": 90, "sample_height": 60, "sample_frames": 49},
        "vae": {"block_out_channels": [1] * 4}}, 720, 480, 49),
    ("AnimateDiffPipeline", {"unet": {"sample_size": 64}, "vae": {"block_out_channels": [1] * 4}}, 512, 512, 16),
]  # fmt: skip


@pytest.mark.parametrize(("name", "configs", "width", "height", "frames"), HUB)
def test_sizes_of_models_on_the_hub(
    name: str, configs: dict[str, Any], width: int, height: int, frames: int | None
) -> None:
    found = default_sizes(name, configs)
    assert (found.get("width"), found.get("height"), found.get("frames")) == (width, height, frames)


ROW = next(row for row in BUILTIN["custom"].types if not row.pipeline)
REFUSED = [line.split(" | ") for line in (Path(__file__).parents[2] / "docs" / "pipelines.md").read_text().splitlines()]
REFUSED = REFUSED[next(at for at, line in enumerate(REFUSED) if "Not runnable" in line[0]) :]
CLASSES = [line[0].removeprefix("| ") for line in REFUSED if line[0].startswith("| ") and "Class" not in line[0]]


@pytest.mark.pinned  # the table is of one version of diffusers, and says nothing of others
@pytest.mark.parametrize("name", CLASSES)
def test_what_a_build_refuses_is_refused_before_in_the_same_words(name: str) -> None:
    with pytest.raises(UsageError) as early:
        pipelines.check(name, ROW)
    cls = getattr(diffusers, name)
    if not getattr(cls, "_backends", None):  # else it is a stand-in, and the build stops where its sources are pinned
        late = refused_class(cls, name, ROW)
        assert late is not None
        assert (early.value.message, early.value.hint) == (late.message, late.hint)


def test_what_a_row_calls_in_its_own_way_is_not_refused() -> None:
    rows: list[PipelineType] = [row for provider in BUILTIN.values() for row in provider.types if row.pipeline]
    for row in rows:
        pipelines.check(row.pipeline, row)


def test_nothing_is_refused_by_what_was_written_down_of_another_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines, "version", lambda package: "99.0")
    pipelines.check("LEditsPPPipelineStableDiffusion", ROW)


def test_plan_says_what_build_says(cli: Cli, tmp_path: Path) -> None:
    unet = {"_class_name": "UNet2DModel", "sample_size": 128, "block_out_channels": [32]}
    folder(tmp_path / "ddpm", "DDPMPipeline", unet)
    shown = json.loads(cli.light("plan", "custom", "--model", tmp_path / "ddpm", "--json").stdout)["task"]
    assert (shown["width"], shown["height"], shown["frames"]) == (128, 128, 1)

    folder(tmp_path / "prior", "KandinskyV22PriorPipeline", {"_class_name": "PriorTransformer"})
    said = [
        cli.light("plan", "custom", "--model", tmp_path / "prior"),
        cli("build", "custom", "--model", tmp_path / "prior"),
    ]
    assert [done.returncode for done in said] == [2, 2]
    assert said[0].stderr == said[1].stderr
    assert said[0].stderr.startswith("error: KandinskyV22PriorPipeline makes no picture, video or sound\n")


def folder(path: Path, pipeline: str, config: dict[str, Any]) -> None:
    """A model of one component without weights that matter, as a plan reads it."""
    name = "unet" if "UNet" in config["_class_name"] else "prior"
    (path / name).mkdir(parents=True)
    index = {"_class_name": pipeline, "_diffusers_version": "0.3.0", name: ["diffusers", config["_class_name"]]}
    (path / "model_index.json").write_text(json.dumps(index))
    (path / name / "config.json").write_text(json.dumps(config))
    header = b'{"conv_in.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    weights = len(header).to_bytes(8, "little") + header + bytes(4)
    (path / name / "diffusion_pytorch_model.safetensors").write_bytes(weights)
