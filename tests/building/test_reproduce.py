"""What a document is taken for when a file is made again: the pipeline, the call and its input files."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from documents import BASE, COMMIT, FACTS, SHA, hub, local, made, manifest_of, run_of

from diffpipe.building.command import command_of
from diffpipe.building.reproduce import Given, call_of, find_media, spec_of
from diffpipe.core.build_spec import BuildSpec, Placement, Speed
from diffpipe.core.errors import DiffpipeError, NotFoundError, UsageError
from diffpipe.core.request import Request
from diffpipe.core.source import FileInfo, Role, Source
from diffpipe.results.document import InputFile, parsed
from diffpipe.results.metadata import media_digest, texts

# The pipeline that is built again


def test_a_hub_pipeline_is_asked_for_by_its_commits() -> None:
    style = hub("lora:0", "someone/style", "style.safetensors", scale=0.1 + 0.2)
    encoder = hub("component:text_encoder", "other/clip", "deep/model.safetensors", subfolder="deep")
    vae = hub("component:vae", "other/vae", "vae.safetensors")
    checkpoint = hub("base", "someone/paint", "paint.safetensors")
    settings = hub("config", "someone/settings", "model_index.json", variant="fp16", pipeline="FluxPipeline")
    spec = BuildSpec(
        "stable-diffusion", "text2image", "x", components={"text_encoder": "x", "vae": "x"}, loras=("x",),
        scheduler="DDIMScheduler", scheduler_config={"eta": 1}, dtype="float16", device="cuda",
        placement=Placement(cpu_offload="model"), speed=Speed(compile=True),
    )  # fmt: skip
    manifest = manifest_of((checkpoint, settings, encoder, vae, style), spec)
    found = parsed(texts(run_of(manifest), Request(0, 1, {}))(FACTS)["diffpipe"])

    again, row, commits = spec_of(found.recipe, Given(), {})

    assert again == BuildSpec(
        "stable-diffusion",
        "text2image",
        "someone/paint/paint.safetensors",
        revision=COMMIT,
        config="someone/settings",
        components={
            "text_encoder": f"other/clip/deep/model.safetensors@{COMMIT}", "vae": f"other/vae/vae.safetensors@{COMMIT}"
        },
        loras=("someone/style/style.safetensors@0.30000000000000004",),
        scheduler="DDIMScheduler",
        scheduler_config={"eta": 1},
        dtype="float16",
        device="cuda",
        placement=Placement(cpu_offload="model"),
        speed=Speed(compile=True),
    )  # fmt: skip
    assert (row.pipeline, commits) == ("StableDiffusionPipeline", {Role("config"): COMMIT, Role.lora(0): COMMIT})


def test_two_files_of_one_repository_are_two_pipelines() -> None:
    keys = {manifest_of((hub("base", "someone/paint", f"{name}.safetensors"),)).key for name in "ab"}
    assert len(keys) == 2


def test_local_sources_are_asked_for_in_words_that_can_be_typed() -> None:
    sources = (
        local("base", "paint", "model_index.json"),
        local("component:vae", "vae.safetensors", "vae.safetensors", "file"),
        Source(Role.lora(0), "embedded", "demo:pixel", {"pixel.safetensors": FileInfo(1, SHA)}),
        local("lora:1", "ink.safetensors", "ink.safetensors", "file", scale=0.5),
    )
    spec = BuildSpec("stable-diffusion", "text2image", "x", components={"vae": "x"}, loras=("x", "y"))
    manifest = manifest_of(sources, spec)
    found = parsed(texts(run_of(manifest), Request(0, 1, {}))(FACTS)["diffpipe"])
    given = Given(model="/m/paint", components={"vae": "/m/v"}, loras=("/m/ink.safetensors",))

    again, _, commits = spec_of(found.recipe, given, {})
    with pytest.raises(NotFoundError) as refused:
        spec_of(found.recipe, Given(), {Role.component("vae"): "/here"})

    assert (again.model, again.components, commits) == ("/m/paint", {"vae": "/m/v"}, {})
    assert again.loras == ("demo:pixel@1.0", "/m/ink.safetensors@0.5")
    assert refused.value.hint == "say where: --model paint --lora ink.safetensors"
    for strange in (Given(config="x"), Given(components={"unet": "x"}), Given(loras=("a", "b"))):
        with pytest.raises(UsageError):
            spec_of(found.recipe, strange, {})


def test_a_lora_goes_where_it_went_and_may_be_one_in_part() -> None:
    sources = (BASE, local("lora:0", "ink.safetensors", "ink.safetensors", "file", scale=0.5, into="transformer_2"))
    spec = BuildSpec("stable-diffusion", "text2image", "x", loras=("x",), lora_partial=True)
    found = parsed(texts(run_of(manifest_of(sources, spec)), Request(0, 1, {}))(FACTS)["diffpipe"])
    again, _, _ = spec_of(found.recipe, Given(loras=("/m/ink.safetensors",)), {})
    assert (again.loras, again.lora_partial) == (("transformer_2=/m/ink.safetensors@0.5",), True)
    words = command_of(again, "x")
    assert words[-3:] == ("--lora", "transformer_2=/m/ink.safetensors@0.5", "--lora-partial")
    whole = replace(spec, lora_partial=False)
    plain = manifest_of((BASE, replace(sources[1], into="")), whole)
    assert len({one.key for one in (plain, manifest_of(sources, spec), manifest_of(sources, whole))}) == 3


@pytest.mark.parametrize("trust", ["allow_pickle", "trust_remote_code"])
def test_a_file_cannot_decide_that_code_runs(trust: str) -> None:
    consent: dict[str, Any] = {trust: True}
    spec = BuildSpec("stable-diffusion", "text2image", "someone/paint", **consent)
    found = parsed(texts(run_of(manifest_of((BASE,), spec)), Request(0, 1, {}))(FACTS)["diffpipe"])
    with pytest.raises(UsageError) as refused:
        spec_of(found.recipe, Given(), {})
    assert "--" + trust.replace("_", "-") in refused.value.hint
    assert getattr(spec_of(found.recipe, Given(**consent), {})[0], trust) is True


# The call


def test_call_arguments_are_checked_as_those_of_a_prompt_file() -> None:
    found = made({"prompt": "a fox", "width": 64, "guidance_scale": 3})
    manifest = manifest_of((BASE,))

    def find(name: str, recorded: InputFile, place: int) -> str:
        return f"{name} {recorded.file} {place}"

    two = [InputFile("a", ""), InputFile("b", "")]
    assert call_of(replace(found, media={"images": two, "image": two[0]}), manifest, find) == {
        "prompt": "a fox", "width": 64, "guidance_scale": 3, "images": ["images a 0", "images b 1"],
        "image": "image a 0",
    }  # fmt: skip
    for arguments in ({"generator": 1}, {"width": "64"}, {"guidance_scale": -1.0}, {"image": "/etc/passwd"}):
        with pytest.raises(DiffpipeError):
            call_of(replace(found, arguments=arguments), manifest, find)
    with pytest.raises(DiffpipeError):
        call_of(replace(found, media={"prompt": two[0]}), manifest, find)


def test_an_input_is_sought_by_its_name_alone_and_known_by_its_digest(tmp_path: Path) -> None:
    here, beside = tmp_path / "here", tmp_path / "beside"
    for folder, content in ((here, b"right"), (beside, b"wrong")):
        folder.mkdir()
        (folder / "in.png").write_bytes(content)
    recorded = InputFile("../../secret/in.png", media_digest(here / "in.png"))
    assert find_media("image", recorded, None, (beside, here)) == str(here / "in.png")
    with pytest.raises(UsageError):
        find_media("image", recorded, None, (beside,))
    assert find_media("image", recorded, None, (beside,), force=True) == str(beside / "in.png")
    with pytest.raises(UsageError):
        find_media("image", recorded, str(beside / "in.png"), (here,))
    with pytest.raises(NotFoundError):
        find_media("image", replace(recorded, file=".."), None, (tmp_path / "none",))
    os.mkfifo(here / "pipe.png")
    (here / "zero.png").symlink_to("/dev/zero")
    for name in ("..", ".", "", "pipe.png", "zero.png", "in\0.png"):
        with pytest.raises(NotFoundError):
            find_media("image", replace(recorded, file=name), None, (here,))


SAMPLES = Path(__file__).parents[1] / "results" / "samples"  # documents of diffpipe 0.1.0


def test_the_pipeline_of_a_document_of_the_first_version() -> None:
    recipe = parsed((SAMPLES / "hub.json").read_text()).recipe
    spec, _, commits = spec_of(recipe, Given(), {})
    assert recipe.config.key == recipe.key
    assert (spec.model, spec.placement, spec.speed) == (
        "someone/paint/paint.safetensors",
        Placement(cpu_offload="model", quantize="int8", quantize_components=("unet",)),
        Speed(compile=True, step_cache="first-block"),
    )
    assert commits == {Role("config"): COMMIT, Role.lora(0): COMMIT}


def test_a_document_that_leaves_its_model_out_is_damaged() -> None:
    recipe = made({"prompt": "x"}).recipe
    with pytest.raises(DiffpipeError, match="its settings are damaged"):
        spec_of(replace(recipe, sources={}), Given(), {})
