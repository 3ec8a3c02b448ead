"""`diffpipe plan` as a user runs it: sizes, peaks, verdicts, and never torch or weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli
from hub_server import closed_port, serve

from diffpipe.storage.tensor_headers import read_safetensors, weigh

GIB = 1 << 30
FLUX_DEV = ("flux", "--model", "black-forest-labs/FLUX.1-dev", "--offline")


def planned(cli: Cli, *args: object, **options: Any) -> dict[str, Any]:
    """What `plan ... --json` prints; it imports nothing heavy."""
    done = cli.light("plan", *args, "--json", **options)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_a_plan_of_a_known_model_that_the_hub_cannot_be_asked_for(cli: Cli) -> None:
    done = cli.light("plan", *FLUX_DEV, "--device-memory", "24GiB", "--memory", "auto")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:2] == [
        "FluxPipeline from black-forest-labs/FLUX.1-dev (recorded for FLUX.1-dev, as the hub cannot be asked)",
        "1024 x 1024, 1 at once, 28 steps, bfloat16; 24.0 GiB of a GPU",
    ]
    shown = [" ".join(line.split()) for line in lines]
    assert "transformer FluxTransformer2DModel 11.90 B 11.1 GiB device, int8" in shown
    assert "load 16.0 GiB 12.4 GiB 11.2 GiB" in shown
    assert "decode 20.2 GiB 1.4 GiB 0.1 GiB vae" in shown
    # All that is in the files as it is loaded stays there: measured, 0.86 GB of the process's own.
    assert "to build: 32.2 GiB of host memory, of it mapped files 31.4 GiB" in shown
    assert "strategy: int8" in shown
    # Plain, cast, fp8, int8 and int4, in four places, tiled or not: all but the plain and the cast that are resident.
    assert "reason: the fastest of 36 ways that fit; as it is, it needs 37.4 GiB of 24.0 GiB" in shown
    assert "layerwise casting, group offload 4.4 GiB 31.6 GiB 1.27 x fits" in shown
    assert "int8 20.2 GiB 12.4 GiB 1.25 x chosen, fits" in shown
    assert "layerwise casting, VAE tiling 24.4 GiB 31.6 GiB 1.12 x does not fit" in shown


def test_a_plan_of_a_local_folder(cli: Cli, checkpoints: Path) -> None:
    folder = checkpoints / "flux"
    made = planned(cli, "flux", "--model", folder, "--device", "cpu", "--dtype", "float32", "--width", 64)
    weighed = {
        path.parent.name: weigh(read_safetensors(path).tensors.values()).parameters
        for path in folder.rglob("*.safetensors")
    }
    assert {part["name"]: part["parameters"] for part in made["components"]} == weighed
    assert {part["name"]: part["weights"] for part in made["components"]} == {n: 4 * c for n, c in weighed.items()}
    assert made["disk"] == sum(
        path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in (".safetensors", ".json", ".txt", ".model", ".jinja")
    )
    assert (made["download"], made["origin"]) == (0, "read from the headers of its files")
    assert (made["task"]["width"], made["task"]["height"]) == (64, 1024)
    assert [peak["stage"] for peak in made["strategy"]["peaks"]] == ["load", "encode", "denoise", "decode"]
    assert (made["strategy"]["fits"], made["reason"]) == (True, "the switches asked for")
    assert made["build"] is None  # nothing is quantized


def test_a_plan_of_a_single_file(cli: Cli, checkpoints: Path) -> None:
    """A checkpoint holds what it holds; the rest comes from --config."""
    file = checkpoints / "stable-diffusion.safetensors"
    made = planned(
        cli, "stable-diffusion", "--model", file, "--config", checkpoints / "stable-diffusion", "--device", "cpu"
    )
    folder = planned(cli, "stable-diffusion", "--model", checkpoints / "stable-diffusion", "--device", "cpu")
    for one, other in zip(made["components"], folder["components"], strict=True):
        assert one["name"] == other["name"]
        assert one["parameters"] == pytest.approx(other["parameters"], rel=0.02)


def test_the_demo_fits_everywhere(cli: Cli) -> None:
    made = planned(cli, "demo", "--device", "cpu", "--memory", "auto")
    assert (made["task"]["width"], made["task"]["steps"]) == (128, 8)
    assert made["strategy"]["placement"] == {"memory": "auto"}
    assert made["reason"] == "everything fits as it is"


def test_larger_pictures_and_batches_need_more(cli: Cli) -> None:
    small = planned(cli, *FLUX_DEV, "--device-memory", "80GiB")
    large = planned(cli, *FLUX_DEV, "--device-memory", "80GiB", "--width", 2048, "--batch", 2)
    peaks = [[peak["moving"] for peak in made["strategy"]["peaks"]] for made in (small, large)]
    assert peaks[1][3] == pytest.approx(4 * peaks[0][3], rel=0.01)
    assert peaks[1][2] > 3 * peaks[0][2]


def test_nothing_fits(cli: Cli) -> None:
    made = planned(cli, *FLUX_DEV, "--device-memory", "1GiB", "--memory", "auto")
    assert made["strategy"]["fits"] is False
    assert made["reason"].startswith("nothing fits: the smallest, ")
    assert made["needed"] > GIB


def test_a_combination_that_does_not_work_is_refused_before_anything_is_read(cli: Cli) -> None:
    words = ("--quantize", "int4", "--quantize-backend", "torchao", "--device-memory", "8GiB")
    done = cli.light("plan", "flux", "--model", "no/where", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: torchao int4 does not work: each of its int4 formats is for one kind of accelerator "
        "(torchao 0.18.0)\n  try: use --quantize int8\n"
    )


@pytest.mark.parametrize(
    ("text", "count"),
    [("12GiB", 12 * GIB), ("12G", 12 * GIB), ("8gb", 8 * 10**9), ("512MiB", 1 << 29)],
)
def test_sizes_of_memory(text: str, count: int) -> None:
    from diffpipe.cli.build import memory_size

    assert memory_size(text) == count


@pytest.mark.parametrize("count", [12 * GIB, 12 * 10**9, 12345678901])
def test_a_size_of_memory_is_the_same_in_the_command_that_builds_again(count: int) -> None:
    from diffpipe.building.command import command_of
    from diffpipe.cli.build import memory_size
    from diffpipe.core.build_spec import BuildSpec, Placement

    placement = Placement(memory="auto", device_memory=count)
    words = command_of(BuildSpec("flux", "text2image", "a/b", placement=placement), "flux")
    assert memory_size(words[words.index("--device-memory") + 1]) == count


@pytest.mark.parametrize("text", ["", "big", "-1GiB", "0GiB", "12 apples"])
def test_what_is_no_size_of_memory(text: str) -> None:
    from diffpipe.cli.build import memory_size
    from diffpipe.core.errors import UsageError

    with pytest.raises(UsageError, match="is no size"):
        memory_size(text)
    with pytest.raises(UsageError, match="12 of what"):
        memory_size("12")


def test_a_gpu_that_is_not_here_needs_a_size(cli: Cli) -> None:
    done = cli.light("plan", *FLUX_DEV, "--device", "mps")
    assert done.returncode == 2
    assert "name it, for example --device-memory 12GiB" in done.stderr


def test_a_switch_that_the_pipeline_cannot_take_gives_a_notice(cli: Cli, copy_of: Callable[..., Path]) -> None:
    folder = copy_of("flux")
    index = json.loads((folder / "model_index.json").read_text())
    index["vae"] = ["diffusers", "AutoencoderKLTemporalDecoder"]
    (folder / "model_index.json").write_text(json.dumps(index))
    done = cli.light("plan", "flux", "--model", folder, "--vae-tiling", "--device", "cpu")
    assert done.returncode == 0
    assert done.stderr == "warning: --vae-tiling is left out: AutoencoderKLTemporalDecoder has none\n"


def test_a_size_that_nothing_tells_is_said(cli: Cli, copy_of: Callable[..., Path]) -> None:
    folder = copy_of("flux")
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    done = cli.light("plan", "flux", "--model", folder, "--allow-pickle", "--device", "cpu", "--json")
    assert done.stderr == (
        "warning: the size of vae is not known: every figure leaves it out, and more will be needed\n"
    )
    made = json.loads(done.stdout)
    vae = next(part for part in made["components"] if part["name"] == "vae")
    assert (made["unknown"], vae["parameters"], vae["weights"]) == (["vae"], None, None)


def test_a_plan_of_a_repository_downloads_no_weights(cli: Cli, checkpoints: Path, tmp_path: Path) -> None:
    cached = tmp_path / "huggingface"
    home = {"DIFFPIPE_HOME": str(tmp_path / "home"), "HF_HOME": str(cached)}
    args = ("flux", "--model", "org/tiny", "--device", "cpu", "--json")
    with serve({"org/tiny": checkpoints / "flux"}) as hub:
        online = cli("plan", *args, env={**home, "HF_ENDPOINT": hub.url}, check=True)
        asked = [request for request in hub.requests if request.path.endswith(".safetensors")]
        assert asked
        assert all(request.range for request in asked if request.method == "GET")
        hub.requests.clear()
        again = cli("plan", *args, env={**home, "HF_ENDPOINT": hub.url}, check=True)
        assert not [request for request in hub.requests if request.path.endswith(".safetensors")]
        made = json.loads(online.stdout)
        assert json.loads(again.stdout)["components"] == made["components"]
        nowhere = {**home, "DIFFPIPE_HOME": "/proc/none", "HF_ENDPOINT": hub.url}  # nothing can be kept there
        assert json.loads(cli("plan", *args, env=nowhere, check=True).stdout)["components"] == made["components"]
    assert not list(cached.rglob("*.safetensors"))
    local = planned(cli, "flux", "--model", checkpoints / "flux", "--device", "cpu")
    assert made["components"] == local["components"]
    assert made["disk"] == local["disk"]
    assert 0 < made["download"] <= made["disk"]
    # Without the network, what was read then serves.
    away = {**home, "HF_ENDPOINT": f"http://127.0.0.1:{closed_port()}"}
    kept = json.loads(cli("plan", *args, env=away, check=True).stdout)
    assert kept["origin"].startswith("kept from an earlier look at commit ")
    assert (kept["components"], kept["download"]) == (made["components"], None)


def test_a_repository_that_nobody_knows_is_an_error_offline(cli: Cli) -> None:
    done = cli.light("plan", "flux", "--model", "no/where", "--offline", "--device", "cpu")
    assert (done.returncode, done.stdout) == (3, "")
