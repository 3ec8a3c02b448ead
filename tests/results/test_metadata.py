"""What a file says of itself: the document is whole, survives in every format, and names no place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from documents import BASE, COMMIT, FACTS, SHA, UNET, hub, local, manifest_of, run_of
from hypothesis import given
from hypothesis import strategies as some

from diffpipe.cli.inspect_file import rows
from diffpipe.core.build_spec import BuildSpec
from diffpipe.core.placeless import placeless
from diffpipe.core.request import Request
from diffpipe.engine import media
from diffpipe.results.document import parsed, written
from diffpipe.results.metadata import document, media_digest, texts


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


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("UserWarning in /home/ann/.venv/lib/site-packages/torch/x.py:12: old", "UserWarning in x.py:12: old"),
        ("C:\\Users\\ann\\mask.png has alpha", "mask.png has alpha"),
        ("cannot open '/srv/models/paint/vae/'", "cannot open ''"),
        ("see https://example.org/docs/masks and s3://bucket/a/b.png", None),
        ("at 1/2 or 3/4 of its size, and/or less; out/a.png", None),
    ],
)
def test_warnings_in_files_name_no_place(said: str, kept: str | None) -> None:
    assert placeless(said) == (said if kept is None else kept)


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
    assert (found.arguments, found.seed) == ({"prompt": prompt, "guidance_scale": scale}, seed)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
@given(prompt=some.text(max_size=60))
def test_any_prompt_survives_in_a_picture(tmp_path_factory: pytest.TempPathFactory, ending: str, prompt: str) -> None:
    from PIL import Image

    told = texts(run_of(manifest_of((BASE,))), Request(0, 1, {"prompt": prompt}))(FACTS)
    file = tmp_path_factory.getbasetemp() / f"prompt.{ending}"
    media.write_image(Image.new("RGB", (2, 2)), file, text=told)
    assert media.read_text(file)["diffpipe"] == told["diffpipe"]


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
