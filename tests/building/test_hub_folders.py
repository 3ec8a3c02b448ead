"""Folders as the hub has them: settings of older versions, with keys missing, classes renamed, components null.

samples/ has them by hand from what is public of each repository; `smaller` holds the widths that tests have instead.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from asked import Asked

from diffpipe.core.errors import UsageError
from diffpipe.core.manifest import Located
from diffpipe.core.source import BASE

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
checkpoints = pytest.importorskip("checkpoints")
from safetensors.torch import save_model  # noqa: E402

SAMPLES = sorted((Path(__file__).parent / "samples").glob("*.json"))
LIBRARIES = {
    "diffusers": "diffusers",
    "transformers": "transformers",
    "stable_diffusion": "diffusers.pipelines.stable_diffusion.safety_checker",
}
STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model", "stable_diffusion": "model"}


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(__file__).parent / "samples" / f"{name}.json").read_text())
    return found


def written(folder: Path, sample: dict[str, Any]) -> Path:
    """The folder of a sample: its settings as they are, but for the widths, with weights and tokenizers of that."""
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps(sample["model_index.json"], indent=2))
    for path, settings in sample["files"].items():
        place = folder / path
        place.parent.mkdir(exist_ok=True)
        if place.name == "tokenizer_config.json":
            t5 = settings["tokenizer_class"].startswith("T5")
            (checkpoints.t5_tokenizer() if t5 else checkpoints.clip_tokenizer()).save_pretrained(place.parent)
        place.write_text(json.dumps({**settings, **sample["smaller"].get(path, {})}))
        if place.name == "config.json":
            _weights(place, *sample["model_index.json"][place.parent.name])
    return folder


def _weights(config: Path, library: str, name: str) -> None:
    cls = getattr(importlib.import_module(LIBRARIES[library]), name)
    settings = json.loads(config.read_text())
    torch.manual_seed(0)
    model = cls.from_config(settings) if library == "diffusers" else cls(cls.config_class.from_dict(settings))
    save_model(model, str(config.with_name(f"{STEMS[library]}.safetensors")), {"format": "pt"})


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return Asked(tmp_path / "home")


@pytest.mark.parametrize("name", [path.stem for path in SAMPLES])
def test_it_is_what_diffusers_makes_of_it(asked: Asked, tmp_path: Path, name: str) -> None:
    from diffpipe.engine.loading import load

    sample = read(name)
    folder = written(tmp_path / name, sample)
    manifest = asked.built(sample["provider"], folder, sample["type"])
    pipe = load.load(manifest, Located({BASE: folder}), "cpu")
    index = sample["model_index.json"]
    assert type(pipe).__name__ == manifest.pipeline
    assert manifest.pipeline == index["_class_name"] or sample["type"] == "img2img"
    null = {part for part, pair in index.items() if pair == [None, None]}
    assert all(getattr(pipe, part) is None for part in null)
    expected = type(pipe).from_pretrained(folder, dtype=torch.float32, **dict.fromkeys(null))
    for part, wanted in expected.components.items():
        found = getattr(pipe, part)
        assert type(found) is type(wanted), part
        if isinstance(wanted, torch.nn.Module):
            has = found.state_dict()
            assert all(torch.equal(has[key], one) for key, one in wanted.state_dict().items()), part
        elif isinstance(wanted, diffusers.SchedulerMixin):
            assert dict(found.config) == dict(wanted.config)
            settings = sample["files"][f"{part}/scheduler_config.json"]
            assert all(
                found.config[key] == settings[key] for key in settings.keys() & found.config.keys() if key[0] != "_"
            )


@pytest.mark.parametrize("name", [path.stem for path in SAMPLES if "refused" in json.loads(path.read_text())])
def test_another_type_than_its_own_is_refused_with_the_right_one(asked: Asked, tmp_path: Path, name: str) -> None:
    sample = read(name)
    refused = sample["refused"]
    folder = written(tmp_path / name, sample)
    with pytest.raises(UsageError, match=refused["says"] or None) as error:
        asked.checked(refused.get("provider", sample["provider"]), folder, refused["type"])
    assert refused["way"] in error.value.hint
