"""Memory and speed options as a user gives them: what is refused, left out, chosen, kept and applied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, Warm

from diffpipe.cache import measured
from diffpipe.cache.store import Store
from diffpipe.core.build_spec import Placement
from diffpipe.core.manifest import Manifest

SMALL = ("--width", 64, "--height", 48, "--num-inference-steps", 4, "--no-metadata")


def manifest(cli: Cli, name: str) -> Manifest:
    return Store(cli.home).find(name).manifest()


def pictures(
    warm: Warm, name: str, folder: Path, *flags: object, seed: int = 3, small: tuple[object, ...] = SMALL
) -> list[bytes]:
    output = ("-o", f"{folder}/{name}-{{seed}}.png")
    words = ("generate", name, "--prompt", "a cat", "--seed", seed, *small, *output, *flags)
    done = warm(*words, check=True)
    assert done.stderr == ""
    return [Path(line).read_bytes() for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def flux(checkpoints: Path) -> tuple[object, ...]:
    return "build", "flux", "--model", checkpoints / "flux"


@pytest.fixture(scope="module")
def plain(warm: Warm, flux: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    warm(*flux, "--name", "plain", check=True)
    return pictures(warm, "plain", tmp_path_factory.mktemp("plain"), "--count", 2)


@pytest.mark.parametrize("switches", [("--cpu-offload", "model"), ("--cpu-offload", "group"), ("--vae-slicing",)])
def test_switches_that_change_no_arithmetic_change_no_byte(
    warm: Warm, flux: tuple[object, ...], plain: list[bytes], tmp_path: Path, switches: tuple[str, ...]
) -> None:
    name = switches[-1].strip("-")
    warm(*flux, *switches, "--name", name, check=True)
    assert pictures(warm, name, tmp_path, "--count", 2) == plain


@pytest.mark.parametrize("offload", ["model", "group"])
def test_stored_quantized_weights_are_offloaded_to_the_bit(
    warm: Warm, flux: tuple[object, ...], tmp_path: Path, offload: str
) -> None:
    words = (*flux, "--device", "cpu", "--quantize", "int8")
    warm(*words, "--name", "int8", check=True)
    warm(*words, "--cpu-offload", offload, "--name", f"int8-{offload}", check=True)
    resident, moved = (manifest(warm, name) for name in ("int8", f"int8-{offload}"))
    assert resident.stored
    assert moved.stored
    assert resident.stored.key == moved.stored.key
    folders = [tmp_path / name for name in ("int8", "moved")]
    assert pictures(warm, "int8", folders[0], "--count", 2) == pictures(
        warm, f"int8-{offload}", folders[1], "--count", 2
    )


def test_layerwise_casting_is_applied_and_part_of_the_key(
    warm: Warm, flux: tuple[object, ...], plain: list[bytes], tmp_path: Path
) -> None:
    warm(*flux, "--layerwise-casting", "--name", "cast", check=True)
    assert manifest(warm, "cast").config.json["placement"] == {"device": "auto", "layerwise_casting": True}
    assert pictures(warm, "cast", tmp_path, "--count", 2) != plain


@pytest.mark.parametrize(
    ("switches", "message", "hint"),
    [
        (
            ("--quantize", "int8", "--layerwise-casting"),
            "quanto + layerwise casting does not work: fails in both orders: weights that quanto quantized cannot be "
            "cast (optimum-quanto 0.2.7, diffusers 0.42.1)",
            "use no --layerwise-casting",
        ),
        (
            ("--cpu-offload", "sequential", "--device", "cpu"),
            "sequential offload on the CPU does not work: sets up, then fails: it needs an accelerator "
            "(accelerate 1.15.0)",
            "use --cpu-offload none",
        ),
        (
            ("--device-memory", "8GiB"),
            "--device-memory does nothing without --memory auto",
            "add --memory auto",
        ),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_heavy_is_imported(
    cli: Cli, flux: tuple[object, ...], switches: tuple[str, ...], message: str, hint: str
) -> None:
    done = cli.light(*flux, *switches, "--name", "refused")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {message}\n  try: {hint}\n"
    assert "refused" not in Store(cli.home).names()


def test_what_a_model_cannot_take_is_left_out_and_told(warm: Warm, checkpoints: Path) -> None:
    words = ("build", "z-image", "--model", checkpoints / "z-image", "--layerwise-casting", "--vae-tiling")
    done = warm(*words, "--name", "z", check=True)
    assert done.stderr.splitlines()[0] == (
        "warning: --layerwise-casting is left out: ZImageTransformer2DModel: it reads a weight's number format before "
        "it calls the layer"
    )
    assert manifest(warm, "z").config.json["placement"] == {"device": "auto", "vae_tiling": True}


def test_automatic_keeps_all_resident_that_fits(
    warm: Warm, flux: tuple[object, ...], plain: list[bytes], tmp_path: Path
) -> None:
    done = warm(*flux, "--memory", "auto", "--device", "cpu", "--name", "auto", check=True)
    assert done.stderr.splitlines()[0] == "memory: as it is: everything fits as it is"
    found = manifest(warm, "auto")
    assert found.config.json["placement"] == {"device": "cpu", "memory": "auto"}
    assert found.placement_reason == "everything fits as it is"
    lines = warm("pipelines", "show", "auto", check=True).stdout.splitlines()
    assert "memory    as it is: everything fits as it is" in lines
    assert pictures(warm, "auto", tmp_path, "--count", 2) == plain


def test_automatic_refuses_what_will_not_fit(cli: Cli, flux: tuple[object, ...]) -> None:
    done = cli.light(*flux, "--memory", "auto", "--device", "cpu", "--device-memory", "100MiB", "--name", "refused")
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.startswith("error: nothing fits: the smallest, ")
    assert " of 100 MiB" in done.stderr.splitlines()[0]


def test_measured_peaks_correct_the_plan(cli: Cli, warm: Warm, flux: tuple[object, ...], plain: list[bytes]) -> None:
    words = ("plan", *flux[1:], "--device", "cpu", "--width", 64, "--height", 48, "--json")

    def decode() -> dict[str, Any]:
        peaks = json.loads(cli.light(*words).stdout)["strategy"]["peaks"]
        return next(dict(peak) for peak in peaks if peak["stage"] == "decode")

    entry = Store(cli.home).find("plain")
    assert {record.case.stage for record in measured.read(entry.folder)} <= {"encode", "denoise", "decode"}
    (entry.folder / measured.NAME).unlink(missing_ok=True)
    before = decode()
    case = measured.Case("decode", 64, 48, 1, 1, "bfloat16", "cpu", Placement())
    measured.add(entry.folder, [measured.Measured(case, None, before["host"] + before["moving"])])
    assert decode() == {**before, **{name: before[name] + before["moving"] for name in ("host", "device", "moving")}}


def test_runs_measure_themselves(warm: Warm, flux: tuple[object, ...], tmp_path: Path) -> None:
    warm(*flux, "--dtype", "float32", "--name", "fresh", check=True)
    pictures(warm, "fresh", tmp_path)
    found = measured.read(Store(warm.home).find("fresh").folder)
    assert found
    assert {(one.case.width, one.case.height, one.case.dtype) for one in found} == {(64, 48, "float32")}


# Speed


@pytest.mark.parametrize("cache", ["first-block", "taylorseer", "pyramid"])
def test_cached_steps_depend_on_no_other_item(warm: Warm, flux: tuple[object, ...], tmp_path: Path, cache: str) -> None:
    warm(*flux, "--step-cache", cache, "--name", cache, check=True)
    assert manifest(warm, cache).config.json["speed"] == {"step_cache": cache}
    steps = ("--width", 64, "--height", 48, "--num-inference-steps", 8, "--no-metadata")
    both = pictures(warm, cache, tmp_path, "--count", 2, small=steps)
    alone = pictures(warm, cache, tmp_path, "--overwrite", seed=4, small=steps)
    assert both[1:] == alone


def test_an_attention_backend_computes_the_same(
    warm: Warm, flux: tuple[object, ...], plain: list[bytes], tmp_path: Path
) -> None:
    warm(*flux, "--attention-backend", "native", "--name", "native", check=True)
    assert pictures(warm, "native", tmp_path, "--count", 2) == plain
    entry = Store(warm.home).find("native")
    assert "--attention-backend native" in entry.rebuild()
    lines = warm("pipelines", "show", "native", check=True).stdout.splitlines()
    assert "speed     attention backend native" in lines


@pytest.mark.parametrize(
    ("provider", "switches", "message"),
    [
        ("stable-diffusion", ("--step-cache", "first-block"),
            "--step-cache first-block: StableDiffusionPipeline with UNet2DConditionModel is not made for it"),
        ("stable-diffusion", ("--attention-backend", "native"),
            "--attention-backend: the unet (UNet2DConditionModel) calls torch's attention itself"),
        ("flux", ("--attention-backend", "flash"), "--attention-backend flash needs a GPU"),
        ("flux", ("--compile", "--quantize", "int8", "--cpu-offload", "group"),
            "--compile does not work with quantized weights that are offloaded in groups: compiled code pins them"),
    ],
)  # fmt: skip
def test_what_a_denoiser_cannot_take_is_refused(
    warm: Warm, checkpoints: Path, provider: str, switches: tuple[str, ...], message: str
) -> None:
    done = warm("build", provider, "--model", checkpoints / provider, "--device", "cpu", *switches, "--name", "refused")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[0] == f"error: {message}"
    assert "refused" not in Store(warm.home).names()
