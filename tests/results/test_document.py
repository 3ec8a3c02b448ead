"""The wall that documents pass: what is read, what is refused, and that those of older versions are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from documents import made
from hypothesis import given
from hypothesis import strategies as some

from diffpipe.cli.inspect_file import rows
from diffpipe.core.build_spec import Placement
from diffpipe.core.errors import DiffpipeError
from diffpipe.core.source import Role
from diffpipe.results import document
from diffpipe.results.document import REQUIRED, InputFile, ResultFacts, damaged, parsed, written


@given(some.text(max_size=40) | some.from_regex(r'\{"format":[12],.{0,30}\}', fullmatch=True))
def test_what_is_no_document_is_refused(text: str) -> None:
    with pytest.raises(DiffpipeError):
        parsed(text)


@pytest.mark.parametrize("name", REQUIRED)
def test_a_document_without_a_part_or_with_another_in_its_place_is_refused(name: str) -> None:
    whole = made({"prompt": "x"}).json
    without = {part: value for part, value in whole.items() if part != name}
    for broken in (without, {**whole, name: None}, {**whole, name: True}):
        with pytest.raises(DiffpipeError) as refused:
            parsed(written(broken))
        assert refused.value.message == damaged().message
    assert parsed(written(whole)).json == whole


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("format",), 0.5), (("pipeline", "key"), 1), (("config", "base"), None), (("config", "base", "kind"), "disk"),
        (("config", "base", "commit"), None), (("config", "trust"), {}), (("config", "placement", "device"), 0),
        (("config", "placement", "cpu_offload"), "all"), (("config", "components"), {"../vae": {}}),
        (("sources", 0, "role"), "lora:x"), (("sources", 0, "kind"), "disk"), (("sources", 0, "files"), {"a": 1}),
        (("components", "scheduler"), 3), (("media",), {"image": {"file": "a.png"}}), (("media",), {"image": "a.png"}),
        (("media",), {"image": [{"file": 1, "digest": ""}]}), (("seed",), -1), (("seed",), 2**64),
        (("result", "kind"), "sculpture"), (("result", "index"), -1), (("result", "of"), 1.5), (("versions", "x"), 1),
        (("result", "fps"), 10**400), (("result", "width"), "a"), (("result", "duration"), "1"),
        (("device",), ["cpu"]), (("fps",), "fast"), (("fit",), 1), (("batch_size",), 0), (("stepped_down",), []),
        (("arguments",), {"x": [[]] * 3 + [json.loads("[" * 120 + "]" * 120)]}),
    ],
)  # fmt: skip
def test_a_document_with_a_value_that_no_diffpipe_wrote_is_refused(place: tuple[Any, ...], value: Any) -> None:
    whole = json.loads(written(made({"prompt": "x"}).json))
    inside = whole
    for name in place[:-1]:
        inside = inside[name]
    inside[place[-1]] = value
    with pytest.raises(DiffpipeError, match="its settings are damaged"):
        parsed(json.dumps(whole))


def test_a_document_of_any_size_is_not_read() -> None:
    whole = json.dumps(made({"prompt": "x"}).json)
    assert parsed(whole + " " * 1000).seed == 3
    with pytest.raises(DiffpipeError, match="its settings are damaged"):
        parsed(whole + " " * document.LARGEST)


def test_what_a_newer_version_adds_is_kept() -> None:
    whole = {**made({"prompt": "x"}).json, "mood": {"good": True}}
    assert parsed(written(whole)).json == whole


SAMPLES = Path(__file__).parent / "samples"  # written by diffpipe 0.1.0


@pytest.mark.parametrize("name", ["fox", "cat", "panda", "hub"])
def test_documents_of_the_first_version_are_read_to_the_letter(name: str) -> None:
    text = (SAMPLES / f"{name}.json").read_text()
    found = parsed(text)
    assert written(found.json) == text
    assert found.recipe.config.key == found.pipeline.key == found.recipe.key


def test_what_a_document_of_the_first_version_says() -> None:
    fox, cat, panda, hub = (parsed((SAMPLES / f"{name}.json").read_text()) for name in ("fox", "cat", "panda", "hub"))
    assert fox.pipeline.class_name == "FluxPipeline"
    assert fox.arguments["prompt"] == "a fox, red"
    assert (fox.seed, fox.fps, fox.fit, fox.batch_size, fox.stepped_down) == (7, None, False, 1, None)
    assert fox.result == ResultFacts("image", "png", 0, 1, {"width": 64, "height": 64})
    (picture,) = cat.media.values()
    assert isinstance(picture, InputFile)
    assert (picture.file, picture.digest[:7], cat.result.format) == ("fox.png", "sha256:", "webp")
    assert [str(role) for role in panda.recipe.sources] == ["base", "lora:0"]
    assert panda.recipe.sections[Role.lora(0)].scale == 0.5
    assert panda.recipe.config.placement == Placement(cpu_offload="model")
    assert (hub.stepped_down, hub.fps, hub.fit) == (Placement(vae_slicing=True, vae_tiling=True), 12.0, True)
    assert hub.recipe.sections[Role("base")].files == ("paint.safetensors",)
    assert dict(rows(hub))["stepped down to vae_tiling"] is True
