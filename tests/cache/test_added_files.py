"""What came into a model's folder after the build: the libraries would load it with what has a digest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffpipe.cache.added_files import added
from diffpipe.core.source import BASE, FileInfo, Role, Source

COMPONENTS = {
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "unet": ("diffusers", "UNet2DConditionModel"),
}
FILES = (
    "model_index.json",
    "tokenizer/vocab.json",
    "tokenizer/tokenizer_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
)
SHARDS = [f"unet/diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
OTHERS = ("README.md", "unet/diffusion_pytorch_model.fp16.safetensors", "unet/.hidden.json", "vae/config.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (*FILES, *OTHERS):
        put(tmp_path, name)
    return tmp_path


def put(folder: Path, name: str) -> None:
    place = folder / name
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps({}))


def base(files: tuple[str, ...] = FILES) -> Source:
    return Source(BASE, "folder", "model", dict.fromkeys(files, FileInfo(2, "")), components=COMPONENTS)


@pytest.mark.parametrize(
    "names",
    [
        [*SHARDS, "unet/diffusion_pytorch_model.safetensors.index.json"],
        ["text_encoder/adapter_config.json"],
        ["tokenizer/added_tokens.json"],
        ["tokenizer/additional_chat_templates/default.jinja"],
    ],
)
def test_what_would_be_loaded_is_found(folder: Path, names: list[str]) -> None:
    assert added(base(), str(folder), pickle=False, code=False) is None
    for name in names:
        put(folder, name)
    assert added(base(), str(folder), pickle=False, code=False) == min(names)


def test_of_what_is_not_loaded_nobody_is_told(folder: Path) -> None:
    for name in ("unet/own.py", "unet/diffusion_pytorch_model.bin", "other/config.json", "sample.png"):
        put(folder, name)
    assert added(base(), str(folder), pickle=False, code=False) is None
    assert added(base(), str(folder), pickle=True, code=True) == "unet/own.py"
    weightless = tuple(name for name in FILES if not name.startswith("unet/diffusion"))
    put(folder, SHARDS[0])
    assert added(base(weightless), str(folder), pickle=False, code=False) is None


@pytest.mark.parametrize("subfolder", ["", "text_encoder"])
def test_a_replaced_component_too(folder: Path, subfolder: str) -> None:
    root = folder if subfolder else folder / "text_encoder"
    inside = f"{subfolder}/" if subfolder else ""
    files = {f"{inside}{name}": FileInfo(2, "") for name in ("config.json", "model.safetensors")}
    source = Source(Role.component("text_encoder"), "folder", "model", files, subfolder=subfolder)
    assert added(source, str(root), pickle=False, code=False) is None
    put(root, f"{inside}adapter_config.json")
    assert added(source, str(root), pickle=False, code=False) == f"{inside}adapter_config.json"
