"""The document and the `parameters` text of a file, and what a document is taken for when a file is made again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from manifests import component_json, manifest

from diffpipe.building.reproduce import (
    EQUAL,
    Given,
    call_of,
    changes,
    differences,
    find_media,
    spec_of,
    told_briefly,
    verdict,
)
from diffpipe.cli.inspect_file import plain, rows
from diffpipe.core.build_spec import BuildSpec, Placement, Speed
from diffpipe.core.errors import DiffpipeError, NotFoundError, UsageError
from diffpipe.core.manifest import Manifest
from diffpipe.core.request import Request
from diffpipe.core.source import FileInfo, Role, Source
from diffpipe.engine import media
from diffpipe.engine.running import compare
from diffpipe.results import metadata
from diffpipe.results.metadata import About, Run, damaged, document, media_digest, parameters, parsed, texts, written
from diffpipe.sources.key import configuration

SHA = "sha256:" + "ab12" * 16
COMMIT = "c0ffee" + "0" * 34
FLAGS = [
    {"name": "prompt", "kind": "text"}, {"name": "width", "kind": "integer"}, {"name": "image", "kind": "image"},
    {"name": "images", "kind": "image", "many": True}, {"name": "guidance_scale", "kind": "number", "minimum": 0},
]  # fmt: skip
NAMES = ["prompt", "width", "image", "images", "guidance_scale"]
FACTS = {"kind": "image", "format": "png", "index": 0, "of": 1, "width": 64, "height": 32}


def hub(role: str, label: str, *paths: str, **more: Any) -> Source:
    return Source(Role.parse(role), "hub", label, {path: FileInfo(10, SHA) for path in paths}, COMMIT, **more)


def local(role: str, label: str, path: str, kind: Any = "folder", **more: Any) -> Source:
    return Source(Role.parse(role), kind, label, {path: FileInfo(10, SHA)}, **more)


UNET = "unet/diffusion_pytorch_model.safetensors"
BASE = hub("base", "someone/paint", "text_encoder/model.safetensors", UNET, pipeline="StableDiffusionPipeline")


def manifest_of(sources: tuple[Source, ...], spec: BuildSpec | None = None, **more: Any) -> Manifest:
    wanted = spec or BuildSpec("stable-diffusion", "text2image", "someone/paint")
    config = configuration(wanted, "StableDiffusionPipeline", sources)
    return manifest(
        config.json, sources=[source.to_json() for source in sources], flags=FLAGS, arguments=NAMES,
        components=[component_json("scheduler", "PNDMScheduler")], **more,
    )  # fmt: skip


def run_of(manifest: Manifest, **about: Any) -> Run:
    return Run(manifest, About("paint", **about), {"diffpipe": "0.1.0", "torch": "2.13.0"}, "cpu: AVX2")


def made(arguments: Mapping[str, Any], *sources: Source, seed: int = 3, **facts: Any) -> dict[str, Any]:
    """A whole document of a call of a pipeline of these sources."""
    run = run_of(manifest_of(sources or (BASE,)))
    return parsed(texts(run, Request(0, seed, arguments))({**FACTS, **facts})["diffpipe"])


# The document


def test_a_document_says_all_that_makes_a_file_and_no_place(tmp_path: Path) -> None:
    (tmp_path / "in.png").write_bytes(b"picture")
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "1.png").write_bytes(b"frame")
    picture, frames = str(tmp_path / "in.png"), str(tmp_path / "frames")
    arguments = {"prompt": "a fox", "width": 64, "image": picture, "images": [picture, frames]}
    built = manifest_of((BASE,))

    found = document(run_of(built, fit=True, batch_size=4), Request(8, 3, arguments, ("/x/y.png",), fps=12.0))

    same = {"file": "in.png", "digest": media_digest(tmp_path / "in.png")}
    assert found == {
        "format": 1,
        "tool": "diffpipe",
        "pipeline": {
            "name": "paint", "key": built.key, "provider": "stable-diffusion", "type": "text2image",
            "class": "StableDiffusionPipeline",
        },
        "config": built.config.json,
        "sources": [
            {
                "role": "base", "kind": "hub", "label": "someone/paint", "commit": COMMIT,
                "pipeline": "StableDiffusionPipeline", "files": {"text_encoder/model.safetensors": SHA, UNET: SHA},
            }
        ],
        "components": {"scheduler": "PNDMScheduler"},
        "arguments": {"prompt": "a fox", "width": 64},
        "media": {"image": same, "images": [same, {"file": "frames", "digest": media_digest(tmp_path / "frames")}]},
        "seed": 3,
        "fps": 12.0,
        "fit": True,
        "batch_size": 4,
        "versions": {"diffpipe": "0.1.0", "torch": "2.13.0"},
        "device": "cpu: AVX2",
    }  # fmt: skip
    assert str(tmp_path) not in written(found)


def test_a_digest_is_of_the_content(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    one, other = folder / "1.png", folder / "2.png"
    one.write_bytes(b"")
    assert media_digest(one) == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    seen = {media_digest(folder)}
    other.write_bytes(b"x")
    seen.add(media_digest(folder))
    other.write_bytes(b"yy")
    seen.add(media_digest(folder))
    other.rename(folder / "3.png")
    seen.add(media_digest(folder))
    (folder / ".hidden").write_bytes(b"z")
    assert (len(seen), media_digest(folder) in seen) == (4, True)


ANYTHING = some.text(some.characters(codec=None, exclude_categories=()), max_size=80)


@given(prompt=ANYTHING, seed=some.integers(0, 2**64 - 1), scale=some.floats(allow_nan=False, allow_infinity=False))
def test_any_prompt_survives_as_what_every_format_can_hold(prompt: str, seed: int, scale: float) -> None:
    from diffpipe.engine.media import text

    run = run_of(manifest_of((BASE,)))
    told = texts(run, Request(0, seed, {"prompt": prompt, "guidance_scale": scale}))(FACTS)
    assert text.clean({"diffpipe": told["diffpipe"]}) == {"diffpipe": told["diffpipe"]}
    found = parsed(told["diffpipe"])
    assert (found["arguments"], found["seed"]) == ({"prompt": prompt, "guidance_scale": scale}, seed)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
@given(prompt=some.text(max_size=60))
def test_any_prompt_survives_in_a_picture(tmp_path_factory: pytest.TempPathFactory, ending: str, prompt: str) -> None:
    from PIL import Image

    told = texts(run_of(manifest_of((BASE,))), Request(0, 1, {"prompt": prompt}))(FACTS)
    file = tmp_path_factory.getbasetemp() / f"prompt.{ending}"
    media.write_image(Image.new("RGB", (2, 2)), file, text=told)
    assert media.read_text(file)["diffpipe"] == told["diffpipe"]


@given(some.text(max_size=40) | some.from_regex(r'\{"format":[12],.{0,30}\}', fullmatch=True))
def test_what_is_no_document_is_refused(text: str) -> None:
    with pytest.raises(DiffpipeError):
        parsed(text)


@pytest.mark.parametrize("name", sorted(metadata.SHAPE))
def test_a_document_without_a_part_or_with_another_in_its_place_is_refused(name: str) -> None:
    whole = made({"prompt": "x"})
    without = {part: value for part, value in whole.items() if part != name}
    for broken in (without, {**whole, name: None}, {**whole, name: True}):
        with pytest.raises(DiffpipeError) as refused:
            parsed(written(broken))
        assert refused.value.message == damaged().message
    assert parsed(written(whole)) == whole


def test_people_are_shown_where_everything_is_from() -> None:
    style = local("lora:0", "ink.safetensors", "ink.safetensors", "file", scale=0.5)
    vae = hub("component:vae", "other/vae", "vae/config.json", "vae/model.safetensors", subfolder="vae")
    spec = BuildSpec("stable-diffusion", "text2image", "x", components={"vae": "x"}, loras=("x",))
    built = manifest_of((BASE, vae, style), spec)
    fused = replace(built, sources=built.sources[:-1])  # as quantization does
    told = texts(run_of(fused), Request(0, 1, {"prompt": "a\nfox\x1b[2J"}))({**FACTS, "index": 1, "of": 4})
    shown = list(rows(parsed(told["diffpipe"])))
    assert shown[3:6] == [
        ("model", "someone/paint@c0ffee0"), ("vae", "other/vae@c0ffee0"), ("lora", "ink.safetensors at 0.5 (local)")
    ]  # fmt: skip
    assert dict(shown)["result"] == "png, 64 x 32, 2 of 4"
    assert plain("a\nfox\x1b[2J\u202e") == "a\nfox[2J\u202e"


# The text of other tools

PARAMETER = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def as_others_read(text: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt and fields as AUTOMATIC1111's `parse_generation_parameters` finds them."""
    *lines, last = text.strip().split("\n")
    assert len(PARAMETER.findall(last)) >= 3
    prompt, negative, done = "", "", False
    for line in map(str.strip, lines):
        if line.startswith("Negative prompt:"):
            done, line = True, line[16:].strip()
        if done:
            negative += ("" if negative == "" else "\n") + line
        else:
            prompt += ("" if prompt == "" else "\n") + line
    fields = {}
    for name, value in PARAMETER.findall(last):
        quoted = len(value) > 1 and value[0] == value[-1] == '"'
        fields[name] = json.loads(value) if quoted else value
    return prompt, negative, fields


def test_the_parameters_of_a_picture() -> None:
    arguments = {
        "prompt": "a fox", "negative_prompt": "a dog", "num_inference_steps": 8, "guidance_scale": 7.5, "strength": 1.0
    }  # fmt: skip
    assert parameters(made(arguments)) == (
        "a fox\nNegative prompt: a dog\nSteps: 8, Sampler: PLMS, CFG scale: 7.5, Seed: 3, Size: 64x32, "
        "Model hash: ab12ab12ab, Model: someone/paint, Denoising strength: 1, Version: diffpipe 0.1.0"
    )


def test_the_model_of_a_single_file_is_its_name_and_hash() -> None:
    other = "sha256:" + "cd34" * 16
    files = {"paint, v1: last.safetensors": FileInfo(1, other)}
    single = Source(Role("base"), "file", "paint, v1: last.safetensors", files)
    found = parameters(made({}, single))
    assert 'Model hash: cd34cd34cd, Model: "paint, v1: last",' in found
    assert as_others_read("x\n" + found)[2]["Model"] == "paint, v1: last"


def test_the_hash_is_the_commit_where_no_weights_are_known() -> None:
    assert "Model hash: c0ffee0000," in parameters(made({}, hub("base", "a/b", "model_index.json")))


LINES = some.lists(some.text(some.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp", "Zs"))), max_size=4)


@given(prompt=LINES, negative=LINES)
def test_other_tools_find_every_part(prompt: list[str], negative: list[str]) -> None:
    texts = ["\n".join(line.strip() for line in lines if line.strip()) for lines in (prompt, negative)]
    if any("Negative prompt:" in text for text in texts):
        return  # ambiguous in the tools that write it, too
    arguments = {"prompt": texts[0], "negative_prompt": texts[1], "num_inference_steps": 8}
    found = as_others_read(parameters(made(arguments)))
    assert found[:2] == (texts[0], texts[1])
    assert {name: found[2][name] for name in ("Steps", "Seed", "Size", "Model")} == {
        "Steps": "8", "Seed": "3", "Size": "64x32", "Model": "someone/paint"
    }  # fmt: skip


@pytest.mark.parametrize(("index", "says"), [(0, "a"), (1, "a"), (2, "b"), (3, "b")])
def test_each_of_several_prompts_is_told_of_its_own_results(index: int, says: str) -> None:
    assert parameters(made({"prompt": ["a", "b"]}, index=index, of=4)).startswith(f"{says}\n")


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

    again, row, commits = spec_of(found, Given(), {})

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

    again, _, commits = spec_of(found, given, {})
    with pytest.raises(NotFoundError) as refused:
        spec_of(found, Given(), {"component:vae": "/here"})

    assert (again.model, again.components, commits) == ("/m/paint", {"vae": "/m/v"}, {})
    assert again.loras == ("demo:pixel@1.0", "/m/ink.safetensors@0.5")
    assert refused.value.hint == "say where: --model paint --lora ink.safetensors"
    for strange in (Given(config="x"), Given(components={"unet": "x"}), Given(loras=("a", "b"))):
        with pytest.raises(UsageError):
            spec_of(found, strange, {})


@pytest.mark.parametrize("trust", ["allow_pickle", "trust_remote_code"])
def test_a_file_cannot_decide_that_code_runs(trust: str) -> None:
    consent: dict[str, Any] = {trust: True}
    spec = BuildSpec("stable-diffusion", "text2image", "someone/paint", **consent)
    found = parsed(texts(run_of(manifest_of((BASE,), spec)), Request(0, 1, {}))(FACTS)["diffpipe"])
    with pytest.raises(UsageError) as refused:
        spec_of(found, Given(), {})
    assert "--" + trust.replace("_", "-") in refused.value.hint
    assert getattr(spec_of(found, Given(**consent), {})[0], trust) is True


def test_what_differs_is_told_by_its_path() -> None:
    recorded = {"a": {"b": 1, "f": SHA}, "c": [{"d": "x"}], "e": 1}
    found = {"a": {"b": 2, "f": SHA.replace("1", "2")}, "c": [{"d": "y"}]}
    assert list(differences(recorded, found)) == [
        "a.b: 1 then, 2 now", "a.f is another file", "c.0.d: x then, y now", "e: 1 then, nothing now"
    ]  # fmt: skip
    assert list(differences(recorded, recorded)) == []


# The call


def test_call_arguments_are_checked_as_those_of_a_prompt_file() -> None:
    found = made({"prompt": "a fox", "width": 64, "guidance_scale": 3})
    manifest = manifest_of((BASE,))

    def find(name: str, recorded: Mapping[str, Any], place: int) -> str:
        return f"{name} {recorded['file']} {place}"

    two = [{"file": "a", "digest": ""}, {"file": "b", "digest": ""}]
    assert call_of({**found, "media": {"images": two, "image": two[0]}}, manifest, find) == {
        "prompt": "a fox", "width": 64, "guidance_scale": 3, "images": ["images a 0", "images b 1"],
        "image": "image a 0",
    }  # fmt: skip
    for arguments in ({"generator": 1}, {"width": "64"}, {"guidance_scale": -1.0}, {"image": "/etc/passwd"}):
        with pytest.raises(DiffpipeError):
            call_of({**found, "arguments": arguments}, manifest, find)
    with pytest.raises(DiffpipeError):
        call_of({**found, "media": {"prompt": two[0]}}, manifest, find)


def test_an_input_is_sought_by_its_name_alone_and_known_by_its_digest(tmp_path: Path) -> None:
    here, beside = tmp_path / "here", tmp_path / "beside"
    for folder, content in ((here, b"right"), (beside, b"wrong")):
        folder.mkdir()
        (folder / "in.png").write_bytes(content)
    recorded = {"file": "../../secret/in.png", "digest": media_digest(here / "in.png")}
    assert find_media("image", recorded, None, (beside, here)) == str(here / "in.png")
    with pytest.raises(UsageError):
        find_media("image", recorded, None, (beside,))
    assert find_media("image", recorded, None, (beside,), force=True) == str(beside / "in.png")
    with pytest.raises(UsageError):
        find_media("image", recorded, str(beside / "in.png"), (here,))
    with pytest.raises(NotFoundError):
        find_media("image", {**recorded, "file": ".."}, None, (tmp_path / "none",))


# The comparison


def test_verdicts() -> None:
    inf = float("inf")
    assert [verdict(True, {})[0], *(verdict(False, one)[0] for one in (
        {"picture": inf}, {"picture": 40.0}, {"picture": 39.9}, {"picture": None}, {"frames": 50.0, "sound": 59.0},
        {"frames": 50.0, "sound": None}, {"sound": 60.0},
    ))] == [True, True, True, False, False, False, False, True]  # fmt: skip
    assert verdict(False, {"picture": 45.25}) == (True, "visually equal, picture PSNR 45.2 dB")
    assert verdict(False, {"sound": 70.0}) == (True, "audibly equal, sound PSNR 70.0 dB")
    assert verdict(False, {"frames": 20.0, "sound": inf})[1] == "differs, frames PSNR 20.0 dB, sound PSNR inf dB"
    assert set(EQUAL) == {"picture", "frames", "sound"}


def test_a_batch_can_explain_a_difference() -> None:
    found = made({"prompt": "x"})
    assert changes(found, found) == []
    assert changes({**found, "batch_size": 4}, found) == ["it was made up to 4 in a call, and now alone"]
    assert changes({**found, "device": "cuda: X"}, found) == ["device: cuda: X then, cpu: AVX2 now"]


def test_psnr_of_pictures_videos_and_sounds(tmp_path: Path) -> None:
    import math

    import numpy as np
    from PIL import Image

    dark, light = (Image.new("RGB", (16, 16), (level,) * 3) for level in (100, 110))
    clear = Image.new("RGBA", (16, 16), (100, 100, 100, 128))
    for name, picture in {"dark": dark, "light": light, "clear": clear, "small": dark.resize((8, 8))}.items():
        picture.save(tmp_path / f"{name}.png")
    tone = np.sin(np.arange(1600, dtype=np.float32) / 10)[None] / 2
    media.write_audio(media.Sound(tone, 16000), tmp_path / "tone.wav")
    media.write_audio(media.Sound(tone + np.float32(0.125), 16000), tmp_path / "up.flac")
    media.write_video([dark] * 3, tmp_path / "dark.frames", fps=8)
    media.write_video([dark, dark, light], tmp_path / "light.frames", fps=8)
    media.write_video([dark] * 2, tmp_path / "short.frames", fps=8)

    def of(one: str, other: str, kind: Any) -> dict[str, float | None]:
        return compare.measured(tmp_path / one, tmp_path / other, kind)

    tenth = 20 * math.log10(255 / 10)
    assert of("dark.png", "light.png", "image") == {"picture": pytest.approx(tenth)}
    assert of("dark.png", "dark.png", "image") == {"picture": math.inf}
    assert of("dark.png", "clear.png", "image") == {"picture": None}
    assert of("dark.png", "small.png", "image") == {"picture": None}
    assert of("tone.wav", "up.flac", "audio") == {"sound": pytest.approx(20 * math.log10(8), abs=0.01)}
    assert of("dark.frames", "light.frames", "video") == {"frames": pytest.approx(tenth + 10 * math.log10(3))}
    assert of("dark.frames", "short.frames", "video") == {"frames": None}
    assert compare.identical(tmp_path / "dark.frames", tmp_path / "dark.frames")
    assert not compare.identical(tmp_path / "dark.frames", tmp_path / "light.frames")
    assert not compare.identical(tmp_path / "dark.frames", tmp_path / "short.frames")
    assert not compare.identical(tmp_path / "dark.png", tmp_path / "light.png")


def test_many_differences_are_told_briefly() -> None:
    assert told_briefly(map(str, range(7))) == "0; 1; 2; 3; 4; and 2 more"
