"""`diffpipe inspect` and `diffpipe reproduce` as a user runs them, and what is in the files, read by other readers."""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import av
import pytest
from conftest import Cli, Done, Warm
from PIL import Image

FOX = ("generate", "demo", "--prompt", "a red fox", "--width", 64, "--height", 64, "--num-inference-steps", 1)


@pytest.fixture(scope="module")
def demo(warm: Warm) -> Warm:
    """The command line with the demo model built."""
    warm("build", "demo", check=True)
    return warm


@pytest.fixture(scope="module")
def fox(demo: Warm) -> Path:
    """A picture of seed 5, not to be changed."""
    demo(*FOX, "--seed", 5, "-o", "fox.png", check=True)
    return demo.cwd / "fox.png"


def independent(file: Path) -> dict[str, str]:
    """The texts of a file as Pillow and FFmpeg tell them, without diffpipe."""
    if file.suffix in (".mp4", ".flac", ".wav"):
        with av.open(str(file)) as container:
            found = {name.lower(): value for name, value in container.metadata.items()}
        return json.loads(found["comment"]) if "comment" in found else found
    with Image.open(file) as picture:
        if file.suffix == ".png":
            return {name: str(value) for name, value in picture.info.items()}
        comment = picture.getexif().get_ifd(0x8769).get(0x9286, b"")
        xmp = ElementTree.fromstring(picture.info["xmp"]) if "xmp" in picture.info else ElementTree.Element("none")
    texts = {"diffpipe": xmp.findtext(".//{urn:diffpipe:}document", "")}
    texts["parameters"] = comment.removeprefix(b"UNICODE\0").decode("utf-16-be")
    return {name: text for name, text in texts.items() if text}


def inspected(cli: Cli, file: Path) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(cli("inspect", file, "--json", check=True).stdout)
    return shown


def says_nothing_of_the_machine(file: Path, *folders: Path) -> bool:
    """Whether no folder of this machine is in a file, and no user or host name among the words of its texts."""
    forms = [str(folder).encode(form) for folder in (Path.home(), *folders) for form in ("utf-8", "utf-16-be")]
    words = set(re.findall(r"[\w-]+", " ".join(independent(file).values())))
    assert {"prompt", "seed"} <= words  # else there is nothing to look at
    return not any(form in file.read_bytes() for form in forms) and not words & {
        getpass.getuser(),
        socket.gethostname(),
    }


def refused(done: Done) -> tuple[int, str]:
    """Exit code and message; nothing on stdout."""
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines()[-2].removeprefix("error: ")


# Round trips


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_a_picture_says_what_made_it(demo: Warm, tmp_path: Path, ending: str) -> None:
    prompt = 'a red fox, "happy" 🦊\nin the snow'
    file = tmp_path / f"fox.{ending}"
    demo(*FOX[:2], "--prompt", prompt, *FOX[4:], "--seed", 7, "-o", file, check=True)

    texts = independent(file)

    first, second, fields = texts["parameters"].split("\n")
    assert f"{first}\n{second}" == prompt
    assert re.fullmatch(
        r"Steps: 1, Sampler: Euler, CFG scale: 3, Seed: 7, Size: 64x64, Model hash: [0-9a-f]{10}, Model: demo, "
        r"Version: diffpipe [\d.]+",
        fields,
    )
    document = json.loads(texts["diffpipe"])
    manifest = json.loads(demo("pipelines", "show", "demo", "--json", check=True).stdout)["manifest"]
    assert document["config"] == manifest["config"]
    assert document["pipeline"] == {
        "name": "demo", "key": manifest["key"], "provider": "demo", "type": "text2image", "class": "FluxPipeline"
    }  # fmt: skip
    assert document["arguments"] == {
        "prompt": prompt, "width": 64, "height": 64, "num_inference_steps": 1, "guidance_scale": 3.0,
        "max_sequence_length": 32, "num_images_per_prompt": 1, "true_cfg_scale": 1.0,
    }  # fmt: skip
    assert (document["seed"], document["media"], document["fit"]) == (7, {}, False)
    assert document["result"] == {
        "kind": "image", "format": ending, "index": 0, "of": 1, "width": 64, "height": 64
    }  # fmt: skip
    assert {"diffpipe", "torch", "diffusers"} <= document["versions"].keys()
    assert document["device"].startswith("cpu")
    assert inspected(demo, file) == {"path": str(file), "diffpipe": document, "parameters": texts["parameters"]}
    assert says_nothing_of_the_machine(file, demo.cwd, demo.home, tmp_path)


def test_the_same_call_makes_the_same_bytes(demo: Warm, fox: Path) -> None:
    demo(*FOX, "--seed", 5, "-o", "again.png", check=True)
    assert (demo.cwd / "again.png").read_bytes() == fox.read_bytes()


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_no_metadata_leaves_none(demo: Warm, tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"fox.{ending}"
    demo(*FOX, "--seed", 5, "-o", file, "--no-metadata", check=True)
    assert independent(file) == {}
    assert b"fox" not in file.read_bytes()
    assert refused(demo("inspect", file)) == (1, f"fox.{ending} does not say what it was made with")
    assert refused(demo("reproduce", file)) == (1, f"fox.{ending} does not say what it was made with")


@pytest.mark.parametrize(
    ("provider", "checkpoint", "file", "flags", "parameters"),
    [
        (
            "wan", "wan", "cat.mp4", ("--width", 64, "--height", 32, "--num-frames", 5),
            r"a cat\n.*Steps: 1, Sampler: UniPC, .*Seed: 3, Size: 64x32, .*",
        ),
        ("audioldm", "audioldm", "cat.wav", ("--audio-length-in-s", 0.5), r"a cat\nSteps: 1, .*Seed: 3, Model hash.*"),
        ("audioldm", "audioldm", "cat.flac", ("--audio-length-in-s", 0.5), r"a cat\nSteps: 1, .*Seed: 3, Model.*"),
    ],
    ids=["mp4", "wav", "flac"],
)  # fmt: skip
def test_video_and_sound_say_what_made_them_and_are_made_again(
    warm: Warm, checkpoints: Path, provider: str, checkpoint: str, file: str, flags: tuple[Any, ...], parameters: str
) -> None:
    warm("build", provider, "--model", checkpoints / checkpoint, "--dtype", "float32", check=True)
    call = ("--prompt", "a cat", "--num-inference-steps", 1, *flags, "--seed", 3)
    warm("generate", provider, *call, "-o", file, check=True)
    made = warm.cwd / file

    texts = independent(made)

    assert re.fullmatch(parameters, texts["parameters"], flags=re.DOTALL)
    document = json.loads(texts["diffpipe"])
    assert (document["arguments"]["prompt"], document["seed"]) == ("a cat", 3)
    assert inspected(warm, made)["diffpipe"] == document
    assert says_nothing_of_the_machine(made, warm.cwd, warm.home, checkpoints)
    done = warm("reproduce", file, "--verify", check=True)
    assert done.stdout.splitlines()[1] == f"{file}: identical, byte for byte"
    warm("generate", provider, *call, "-o", f"bare-{file}", "--no-metadata", check=True)
    assert not {"parameters", "diffpipe", "comment"} & independent(warm.cwd / f"bare-{file}").keys()


# inspect


def test_inspect_prints_a_table_and_imports_no_torch(demo: Warm, fox: Path) -> None:
    words = ["python", "-X", "importtime", "-m", "diffpipe", "inspect", str(fox)]
    done = demo("inspect", fox, check=True)
    shown = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert (shown["pipeline"], shown["model"]) == ("FluxPipeline (demo, text2image)", "embedded:demo")
    assert (shown["seed"], shown["prompt"], shown["result"]) == ("5", "a red fox", "png, 64 x 64")
    python = shutil.which("python", path=f"{os.path.dirname(os.sys.executable)}")  # type: ignore[attr-defined]
    profile = subprocess.run([python or "python", *words[1:]], capture_output=True, text=True, env=demo.environment())
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in profile.stderr.splitlines()}
    assert "diffpipe" in imported
    assert not imported & {"torch", "diffusers", "transformers"}


def test_text_of_another_tool_is_shown_with_its_control_characters_as_escapes(demo: Warm, tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    texts.add_text("parameters", "a dog\x1b]0;gone\x07\nSteps: 20, Sampler: Euler a, Seed: 1")
    Image.new("RGB", (8, 8)).save(tmp_path / "dog.png", pnginfo=texts)
    done = demo("inspect", tmp_path / "dog.png", check=True)
    assert done.stdout == "a dog\\x1b]0;gone\\x07\nSteps: 20, Sampler: Euler a, Seed: 1\n"
    assert done.stderr == "dog.png was made by another tool; this is what it says:\n"
    assert refused(demo("reproduce", tmp_path / "dog.png")) == (1, "dog.png was made by another tool")


def test_what_is_no_file_or_no_picture_is_refused(demo: Warm, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    assert refused(demo("inspect", tmp_path / "none.png")) == (3, f"there is no file {tmp_path / 'none.png'}")
    code, message = refused(demo("inspect", tmp_path / "text.png"))
    assert (code, message) == (2, "cannot read text.png: it is no picture, video or sound, or it is damaged")


# reproduce


def test_reproduce_makes_the_same_bytes_and_never_overwrites(demo: Warm, fox: Path, tmp_path: Path) -> None:
    shutil.copy(fox, tmp_path / "fox {seed}.png")
    first = demo("reproduce", "fox {seed}.png", "--verify", cwd=tmp_path, check=True)
    second = demo("reproduce", "fox {seed}.png", cwd=tmp_path, check=True)
    assert first.stdout == "fox {seed}-reproduced.png\nfox {seed}.png: identical, byte for byte\n"
    assert second.stdout == "fox {seed}-reproduced-2.png\n"
    assert (tmp_path / "fox {seed}-reproduced-2.png").read_bytes() == fox.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {
        "fox {seed}.png", "fox {seed}-reproduced.png", "fox {seed}-reproduced-2.png"
    }  # fmt: skip
    there = demo("reproduce", "fox {seed}.png", "-o", "fox {{seed}}.png", cwd=tmp_path)
    assert refused(there) == (2, "fox {seed}.png exists already")
    over = ("reproduce", "fox {seed}.png", "-o", "fox {{seed}}.png", "--overwrite")
    assert refused(demo(*over, "--verify", cwd=tmp_path)) == (
        2, "--verify compares fox {seed}.png with what would replace it"
    )  # fmt: skip
    (tmp_path / "fox {seed}-reproduced.png").write_bytes(b"in the way")
    demo("reproduce", "fox {seed}.png", "-o", "fox {{seed}}-reproduced.png", "--overwrite", cwd=tmp_path, check=True)
    assert (tmp_path / "fox {seed}-reproduced.png").read_bytes() == fox.read_bytes()


def test_one_of_several_pictures_of_a_call_is_made_again(demo: Warm, tmp_path: Path) -> None:
    demo(*FOX, "--seed", 5, "--num-images-per-prompt", 3, "-o", "{index}.png", cwd=tmp_path, check=True)
    assert inspected(demo, tmp_path / "2.png")["diffpipe"]["result"]["index"] == 1
    done = demo("reproduce", "2.png", "--verify", "--json", "-o", "new/{index}.webp", cwd=tmp_path, check=True)
    shown = json.loads(done.stdout)
    assert (shown["path"], shown["same"], shown["identical"]) == ("new/2.webp", True, False)
    assert re.match(r"visually equal, picture PSNR \d\d\.\d dB", shown["verdict"])
    again = demo("reproduce", "2.png", "--verify", cwd=tmp_path, check=True)
    assert again.stdout.endswith("2.png: identical, byte for byte\n")
    assert len(list(tmp_path.rglob("*.png"))) == 4
    assert (tmp_path / "1.png").read_bytes() != (tmp_path / "2.png").read_bytes()


def test_verify_tells_what_differs(demo: Warm, fox: Path, tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    document = inspected(demo, fox)["diffpipe"]
    texts = PngInfo()
    texts.add_text("diffpipe", json.dumps({**document, "versions": {**document["versions"], "torch": "1.0"}}))
    with Image.open(fox) as picture:
        picture.save(tmp_path / "other.png", pnginfo=texts)
        picture.rotate(90).save(tmp_path / "turned.png", pnginfo=texts)
        picture.resize((32, 32)).save(tmp_path / "small.png", pnginfo=texts)

    done = [demo("reproduce", f"{name}.png", "--verify", cwd=tmp_path) for name in ("other", "turned", "small")]

    now = document["versions"]["torch"]
    assert [one.returncode for one in done] == [0, 1, 1]
    same, turned, small = (one.stdout.splitlines()[1:] for one in done)
    reason = f"  versions.torch: 1.0 then, {now} now"
    assert same == ["other.png: the same picture once decoded; other bytes of the file differ", reason]
    assert re.fullmatch(r"turned\.png: differs, picture PSNR [\d.]+ dB", turned[0])
    assert turned[1:] == [reason]
    assert small == ["small.png: differs in size or length", reason]


def test_a_removed_pipeline_of_a_local_folder_is_built_again_from_where_it_is_now(
    warm: Warm, checkpoints: Path, tmp_path: Path
) -> None:
    moved, lora = tmp_path / "elsewhere" / "flux", checkpoints / "flux-lora.safetensors"
    shutil.copytree(checkpoints / "flux", tmp_path / "flux")
    words = ("--dtype", "float32", "--lora", f"{lora}@0.75", "--scheduler", "FlowMatchLCMScheduler")
    warm("build", "flux", "--model", tmp_path / "flux", *words, check=True)
    call = ("--prompt", "a fox", "--width", 32, "--height", 32, "--num-inference-steps", 2, "--seed", 1)
    warm("generate", "flux", *call, "-o", "house.png", cwd=tmp_path, check=True)
    assert says_nothing_of_the_machine(tmp_path / "house.png", warm.home, tmp_path, checkpoints)
    key = inspected(warm, tmp_path / "house.png")["diffpipe"]["pipeline"]["key"]
    warm("pipelines", "remove", "flux", check=True)
    moved.parent.mkdir()
    (tmp_path / "flux").rename(moved)

    lost = warm("reproduce", "house.png", cwd=tmp_path)
    other = warm("reproduce", "house.png", "--model", checkpoints / "flux-sharded", "--lora", lora, cwd=tmp_path)
    found = warm("reproduce", "house.png", "--model", moved, "--lora", lora, "--verify", cwd=tmp_path, check=True)

    assert refused(lost)[0] == 3
    assert lost.stderr == (
        "error: it was made with local files that are not known here: flux, flux-lora.safetensors\n"
        "  try: say where: --model flux --lora flux-lora.safetensors\n"
    )
    assert refused(other)[0] == 2
    assert "this is not the pipeline that made it: base.files.transformer/" in other.stderr
    assert found.stdout.splitlines()[1] == "house.png: identical, byte for byte"
    assert json.loads(warm("pipelines", "show", "flux", "--json", check=True).stdout)["key"] == key


def test_input_files_are_found_by_name_and_known_by_content(demo: Warm, tmp_path: Path) -> None:
    demo("build", "demo", "--type", "img2img", check=True)
    start = tmp_path / "start.png"
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(start)
    call = ("--prompt", "a red fox", "--num-inference-steps", 2, "--strength", 0.5, "--width", 64, "--height", 64)
    demo("generate", "demo-img2img", "--image", start, *call, "--seed", 1, "-o", "a.png", cwd=tmp_path, check=True)
    media = inspected(demo, tmp_path / "a.png")["diffpipe"]["media"]
    assert media == {"image": {"file": "start.png", "digest": media["image"]["digest"]}}
    assert media["image"]["digest"].startswith("sha256:")
    assert says_nothing_of_the_machine(tmp_path / "a.png", demo.home, tmp_path)

    beside = demo("reproduce", "a.png", "--verify", cwd=tmp_path, check=True)
    kept = start.rename(tmp_path / "kept.png")
    gone = demo("reproduce", "a.png", cwd=tmp_path)
    given = demo("reproduce", "a.png", "--set", f"image={kept}", "--verify", cwd=tmp_path, check=True)
    Image.new("RGB", (64, 64), "red").save(start)
    wrong = demo("reproduce", "a.png", cwd=tmp_path)
    forced = demo("reproduce", "a.png", "--force", "--verify", cwd=tmp_path)

    assert beside.stdout.splitlines()[1] == "a.png: identical, byte for byte"
    assert refused(gone) == (3, "the input start.png is not here")
    assert given.stdout.splitlines()[1:] == [
        "a.png: the same picture once decoded; other bytes of the file differ",
        "  media.image.file: start.png then, kept.png now",
    ]
    assert refused(wrong) == (2, "start.png is not the start.png that it was made from: the content differs")
    assert forced.returncode == 1
    assert forced.stdout.splitlines()[2:] == ["  media.image.digest is another file"]


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"config": {"provider": "demo"}}, 1, "its settings are damaged"),
        ({"format": 2}, 1, "its settings were written by a newer diffpipe"),
        ({"seed": "5"}, 1, "its settings are damaged"),
        ({"arguments": {"prompt": "x", "callback_on_step_end": "os:system"}}, 2, "its settings, column callback"),
        ({"arguments": {"prompt": "x", "width": "wide"}}, 2, "its settings, column width: 'wide' is no whole number"),
        ({"media": {"image": {"file": "/etc/passwd", "digest": ""}}}, 1, "its settings are damaged"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_edited_settings_are_refused_before_anything_is_loaded(
    demo: Warm, fox: Path, tmp_path: Path, change: dict[str, Any], code: int, says: str
) -> None:
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    texts.add_text("diffpipe", json.dumps({**inspected(demo, fox)["diffpipe"], **change}))
    Image.new("RGB", (64, 64)).save(tmp_path / "edited.png", pnginfo=texts)
    done = demo("reproduce", tmp_path / "edited.png", cwd=tmp_path)
    assert refused(done)[0] == code
    assert refused(done)[1].startswith(says)
    assert [path.name for path in tmp_path.iterdir()] == ["edited.png"]
