"""Code that comes with a model runs with consent alone: what is said to the libraries, and what they can ask."""

from __future__ import annotations

import ast
import io
import json
import sys
from pathlib import Path

import house
import pytest

from diffpipe.core.errors import UsageError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# What reads a model's files, and would run code among them.
LOADERS = {"from_pretrained", "from_single_file", "get_class_from_dynamic_module"}


def test_every_call_that_loads_says_whether_code_is_trusted() -> None:
    calls = [
        (path.name, node.lineno, {word.arg for word in node.keywords})
        for path in house.SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in LOADERS
    ]
    assert len(calls) > 8  # the reader of calls does read
    assert [call[:2] for call in calls if "trust_remote_code" not in call[2]] == []


def test_no_class_of_transformers_is_chosen_by_a_file() -> None:
    """An Auto class takes the class that a file names. Quantizers alone are found so, from settings that were read."""
    named = {
        (path.name, name)
        for path in house.SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in [node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""]
        if name.startswith("Auto") and name[4:5].isupper()
    }
    assert named == {("prequantized.py", "AutoHfQuantizer")}


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("transformers", "AutoTokenizer"),
        ("transformers", "AutoModel"),
        ("transformers", "Trainer"),
        ("transformers", "os"),
        ("diffusers", "AutoModel"),
        ("diffusers", "FluxPipeline"),
        ("diffusers", "ModularPipeline"),
        ("diffusers", "ModelMixin"),
        ("diffusers", "SchedulerMixin"),
        ("transformers", "PreTrainedModel"),
        ("flux", "FluxPipeline"),
        ("flux", "__class__"),
        ("os", "system"),
    ],
)
def test_a_class_that_is_no_part_is_not_found(library: str, name: str) -> None:
    from diffpipe.engine.classes.lookup import component_class

    with pytest.raises(UsageError):
        component_class(library, name)


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "CLIPImageProcessor"])
def test_a_model_is_no_tokenizer(name: str) -> None:
    """Also in the folder of the pipeline's own class, which may name other models than the class does."""
    import diffusers

    from diffpipe.engine.classes import match

    layout = {"text_encoder": ("transformers", "CLIPTextModelWithProjection")}
    match.check(diffusers.StableDiffusionPipeline, match.Model("m", "StableDiffusionPipeline", layout), {}, "")
    model = match.Model("m", "StableDiffusionPipeline", {"text_encoder": ("transformers", name)})
    with pytest.raises(UsageError, match=f"^the text_encoder of m is of class {name}; StableDiffusionPipeline takes"):
        match.check(diffusers.StableDiffusionPipeline, model, {}, "")


@pytest.fixture
def own_tokenizer(tmp_path: Path) -> Path:
    """A folder whose tokenizer is a class of its own, which leaves a file when it is read."""
    settings = {"auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}, "tokenizer_class": "OwnTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    marker = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass OwnTokenizer: pass\n")
    return tmp_path


def test_a_question_of_a_library_is_answered_no_and_not_shown(
    own_tokenizer: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from diffpipe.engine.loading import library_logs

    library_logs.listen()
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 100))
    with pytest.raises(ValueError, match="custom code"):
        transformers.AutoTokenizer.from_pretrained(own_tokenizer)
    assert not (own_tokenizer / "ran").exists()
    assert "[y/N]" not in capfd.readouterr().out


def test_standard_input_is_kept_from_everybody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffpipe.cli import standard_input

    given = io.StringIO("y\n")
    monkeypatch.setattr(standard_input, "_ours", None)
    monkeypatch.setattr(sys, "stdin", given)
    standard_input.keep()
    standard_input.keep()
    with pytest.raises(EOFError):
        input()
    with standard_input.lent():
        assert sys.stdin is given
    assert standard_input.stream() is given
