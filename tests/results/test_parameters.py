"""The text that other image tools read."""

from __future__ import annotations

import json
import re

import pytest
from documents import hub, made
from hypothesis import given
from hypothesis import strategies as some

from diffpipe.core.source import FileInfo, Role, Source
from diffpipe.results.parameters import parameters

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
