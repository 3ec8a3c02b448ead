"""What the settings files of a folder say, and what stands in their place, is found at build."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asked import Asked

from diffpipe.core.errors import DiffpipeError, UsageError
from diffpipe.core.manifest import Located
from diffpipe.core.source import BASE

checkpoints = pytest.importorskip("checkpoints")

# As git checks it out where LFS is not installed (git-lfs, docs/spec.md).
POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    checkpoints.flux(folder / "flux")
    checkpoints.stable_diffusion(folder / "sd")
    return folder


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return Asked(tmp_path / "home")


@pytest.fixture
def flux(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "flux", tmp_path / "flux"))


@pytest.fixture
def sd(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "sd", tmp_path / "sd"))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# Damaged settings

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "a list": lambda data: b"[" + data + b"]",
    "a page of a web server": lambda data: b"<!DOCTYPE html><html>404</html>",
    "UTF-16": lambda data: data.decode().encode("utf-16"),
    "deep": lambda data: b'{"a":' + b"[" * 200_000,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("file", ["transformer/config.json", "text_encoder_2/config.json", "vae/config.json"])
def test_a_damaged_configuration_is_named(asked: Asked, flux: Path, file: str, damage: Any) -> None:
    (flux / file).write_bytes(damage((flux / file).read_bytes()))
    with pytest.raises(UsageError, match=f"^{file} of flux is damaged: it ") as error:
        asked.checked("flux", flux)
    assert error.value.hint == "copy or fetch the model again"


@pytest.mark.parametrize(
    ("part", "setting", "value"),
    [
        ("transformer", "num_layers", "two"),
        ("transformer", "attention_head_dim", "wide"),
        ("vae", "block_out_channels", "abc"),
        ("vae", "block_out_channels", [0, 0, 0, 0]),
        ("text_encoder_2", "num_heads", "x"),
        ("text_encoder", "hidden_size", [1]),
    ],
)
def test_settings_that_a_class_cannot_be_made_with_are_named(
    asked: Asked, flux: Path, part: str, setting: str, value: object
) -> None:
    change(flux / part / "config.json", **{setting: value})
    with pytest.raises(UsageError, match=r"^the settings of a \w+ cannot be used: ") as error:
        asked.checked("flux", flux)
    assert error.value.hint == "copy or fetch the model again"


@pytest.mark.parametrize(
    "file", ["scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json", "tokenizer_2/tokenizer.json"]
)
def test_damaged_settings_of_what_has_no_weights_are_named(asked: Asked, flux: Path, file: str) -> None:
    (flux / file).write_bytes((flux / file).read_bytes()[:-3])
    with pytest.raises(UsageError, match=f"^{file} of flux is damaged: it "):
        asked.checked("flux", flux)


def test_a_class_that_is_not_there_is_named(asked: Asked, flux: Path) -> None:
    change(flux / "model_index.json", vae=["diffusers", "AutoencoderOfTomorrow"])
    with pytest.raises(UsageError, match="there is no AutoencoderOfTomorrow in diffusers"):
        asked.checked("flux", flux)


# Pointers of Git LFS


@pytest.mark.parametrize(
    "file",
    [
        "transformer/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "vae/config.json",
        "tokenizer_2/tokenizer.json",
        "model_index.json",
    ],
)
def test_a_pointer_is_named_as_such(asked: Asked, flux: Path, file: str) -> None:
    (flux / file).write_text(POINTER)
    with pytest.raises(UsageError, match="is a pointer of Git LFS in the place of the file itself") as error:
        asked.checked("flux", flux)
    assert Path(file).name in error.value.message
    assert "git lfs pull" in error.value.hint


@pytest.mark.parametrize("where", ["model", "component", "lora"])
def test_a_pointer_for_a_single_file_is_named_as_such(asked: Asked, flux: Path, tmp_path: Path, where: str) -> None:
    file = tmp_path / "style.safetensors"
    file.write_text(POINTER)
    words: dict[str, Any] = {
        "model": {"config": str(flux)},
        "component": {"components": {"transformer": str(file)}},
        "lora": {"loras": (str(file),)},
    }[where]
    with pytest.raises(UsageError, match="is a pointer of Git LFS"):
        asked.checked("flux", file if where == "model" else flux, **words)


# Saved quantized

BNB = {  # as diffusers 0.31 wrote it
    "_load_in_4bit": True,
    "_load_in_8bit": False,
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "uint8",
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": False,
    "llm_int8_enable_fp32_cpu_offload": False,
    "llm_int8_has_fp16_weight": False,
    "llm_int8_skip_modules": None,
    "llm_int8_threshold": 6.0,
    "load_in_4bit": True,
    "load_in_8bit": False,
    "quant_method": "bitsandbytes",
}
QUANTIZED: dict[str, tuple[str, dict[str, Any], str, str]] = {  # component, its settings, module, pip's name
    "bitsandbytes denoiser": ("transformer", BNB, "bitsandbytes", "bitsandbytes"),
    "bitsandbytes by its switch": ("text_encoder_2", {"load_in_8bit": True}, "bitsandbytes", "bitsandbytes"),
    "quanto": ("transformer", {"quant_method": "quanto", "weights_dtype": "int8"}, "optimum.quanto", "optimum-quanto"),
    "torchao": ("transformer", {"quant_method": "torchao", "quant_type": "int8wo"}, "torchao", "torchao"),
    "sdnq": ("transformer", {"quant_method": "sdnq", "weights_dtype": "int8"}, "sdnq", "sdnq"),
    "gptq": ("text_encoder_2", {"quant_method": "gptq", "bits": 4}, "gptqmodel", "gptqmodel"),
    "awq": ("text_encoder_2", {"quant_method": "awq", "bits": 4}, "gptqmodel", "gptqmodel"),
}


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has a package be not installed, as far as importing and looking for it goes."""
    return lambda module: monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.parametrize("case", QUANTIZED.values(), ids=QUANTIZED)
def test_what_was_saved_quantized_needs_its_package(
    asked: Asked, flux: Path, absent: Callable[[str], None], case: tuple[str, dict[str, Any], str, str]
) -> None:
    name, settings, module, package = case
    absent(module)
    change(flux / name / "config.json", quantization_config=settings)
    with pytest.raises(UsageError, match=f"the {name} of flux is quantized with .*not installed") as error:
        asked.checked("flux", flux)
    assert error.value.hint == f"pip install {package}"


@pytest.mark.parametrize("name", ["transformer", "text_encoder_2"])
def test_a_method_that_the_library_does_not_know_is_named(asked: Asked, flux: Path, name: str) -> None:
    change(flux / name / "config.json", quantization_config={"quant_method": "of-tomorrow"})
    with pytest.raises(UsageError, match=f"the {name} of flux is quantized with of-tomorrow, which cannot be used"):
        asked.checked("flux", flux)


# Classes that were renamed


@pytest.mark.parametrize("old", ["CLIPFeatureExtractor", "CLIPImageProcessor", "ViTFeatureExtractor"])
def test_a_renamed_class_loads(asked: Asked, sd: Path, old: str) -> None:
    """As folders saved before 2023 have it, beside the preprocessor_config.json of the time."""
    import transformers

    from diffpipe.engine.loading import load

    (sd / "feature_extractor").mkdir()
    (sd / "feature_extractor" / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "crop_size": 224,
                "do_center_crop": True,
                "do_normalize": True,
                "do_resize": True,
                "feature_extractor_type": old,
                "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_std": [0.26862954, 0.26130258, 0.27577711],
                "resample": 3,
                "size": 224,
            }
        )
    )
    change(sd / "model_index.json", feature_extractor=["transformers", old])
    pipe = load.load(asked.built("stable-diffusion", sd), Located({BASE: sd}), "cpu")
    now = old.replace("FeatureExtractor", "ImageProcessor")
    expected = getattr(transformers, now)
    assert isinstance(pipe.feature_extractor, expected) or type(pipe.feature_extractor).__name__.startswith(now)


def test_an_old_class_that_nothing_replaced_is_named(asked: Asked, sd: Path) -> None:
    (sd / "feature_extractor").mkdir()
    (sd / "feature_extractor" / "preprocessor_config.json").write_text("{}")
    change(sd / "model_index.json", feature_extractor=["transformers", "NobodysFeatureExtractor"])
    with pytest.raises(DiffpipeError, match="there is no NobodysFeatureExtractor in transformers"):
        asked.checked("stable-diffusion", sd)
