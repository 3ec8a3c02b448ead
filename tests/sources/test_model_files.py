"""Which files are fetched and loaded, from listings as they are on the hub."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffpipe.core.components import DENOISER_ONLY, parts_of_checkpoint
from diffpipe.core.errors import DiffpipeError, NotFoundError, UsageError
from diffpipe.sources.model_files import components_of, model_files, nearest, pipeline_files


def listing(text: str) -> list[str]:
    """ "folder: file file" lines -> paths; a folder "." is the root."""
    names = []
    for line in text.strip().splitlines():
        folder, _, files = line.strip().partition(": ")
        names += [name if folder == "." else f"{folder}/{name}" for name in files.split()]
    return names


FLUX = {
    "_class_name": "FluxPipeline",
    "_diffusers_version": "0.30.0.dev0",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
FLUX_LOADED = """
    .: model_index.json
    scheduler: scheduler_config.json
    text_encoder: config.json model.safetensors
    text_encoder_2: config.json model-00001-of-00002.safetensors model-00002-of-00002.safetensors
    text_encoder_2: model.safetensors.index.json
    tokenizer: merges.txt special_tokens_map.json tokenizer_config.json vocab.json
    tokenizer_2: special_tokens_map.json spiece.model tokenizer.json tokenizer_config.json
    transformer: config.json diffusion_pytorch_model-00001-of-00003.safetensors
    transformer: diffusion_pytorch_model-00002-of-00003.safetensors
    transformer: diffusion_pytorch_model-00003-of-00003.safetensors diffusion_pytorch_model.safetensors.index.json
    vae: config.json diffusion_pytorch_model.safetensors
"""
FLUX_REST = ".: .gitattributes README.md LICENSE.md ae.safetensors flux1-schnell.safetensors schnell_grid.jpeg"

SDXL: dict[str, Any] = {
    "_class_name": "StableDiffusionXLPipeline",
    "force_zeros_for_empty_prompt": True,
    "add_watermarker": None,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
SDXL_FILES = """
    .: .gitattributes 01.png LICENSE.md README.md comparison.png model_index.json pipeline.png
    .: sd_xl_base_1.0.safetensors sd_xl_base_1.0_0.9vae.safetensors sd_xl_offset_example-lora_1.0.safetensors
    scheduler: scheduler_config.json
    text_encoder: config.json flax_model.msgpack model.fp16.safetensors model.onnx model.safetensors
    text_encoder: openvino_model.bin openvino_model.xml
    text_encoder_2: config.json flax_model.msgpack model.fp16.safetensors model.onnx model.onnx_data model.safetensors
    text_encoder_2: openvino_model.bin openvino_model.xml
    tokenizer: merges.txt special_tokens_map.json tokenizer_config.json vocab.json
    tokenizer_2: merges.txt special_tokens_map.json tokenizer_config.json vocab.json
    unet: config.json diffusion_flax_model.msgpack diffusion_pytorch_model.fp16.safetensors
    unet: diffusion_pytorch_model.safetensors model.onnx model.onnx_data openvino_model.bin openvino_model.xml
    vae: config.json diffusion_flax_model.msgpack diffusion_pytorch_model.fp16.safetensors
    vae: diffusion_pytorch_model.safetensors
    vae_1_0: config.json diffusion_pytorch_model.fp16.safetensors diffusion_pytorch_model.safetensors
    vae_decoder: config.json model.onnx openvino_model.bin openvino_model.xml
    vae_encoder: config.json model.onnx openvino_model.bin openvino_model.xml
"""
SDXL_LOADED = """
    .: model_index.json
    scheduler: scheduler_config.json
    text_encoder: config.json model{v}.safetensors
    text_encoder_2: config.json model{v}.safetensors
    tokenizer: merges.txt special_tokens_map.json tokenizer_config.json vocab.json
    tokenizer_2: merges.txt special_tokens_map.json tokenizer_config.json vocab.json
    unet: config.json diffusion_pytorch_model{v}.safetensors
    vae: config.json diffusion_pytorch_model{v}.safetensors
"""

SD: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": [None, None],
    "requires_safety_checker": True,
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
SD_FILES = """
    .: .gitattributes README.md model_index.json v1-5-pruned.ckpt v1-5-pruned.safetensors v1-5-pruned-emaonly.ckpt
    .: v1-inference.yaml
    feature_extractor: preprocessor_config.json
    safety_checker: config.json model.fp16.safetensors model.safetensors pytorch_model.bin pytorch_model.fp16.bin
    scheduler: scheduler_config.json
    text_encoder: config.json model.fp16.safetensors model.safetensors pytorch_model.bin pytorch_model.fp16.bin
    tokenizer: merges.txt special_tokens_map.json tokenizer_config.json vocab.json
    unet: config.json diffusion_pytorch_model.bin diffusion_pytorch_model.fp16.bin
    unet: diffusion_pytorch_model.fp16.safetensors diffusion_pytorch_model.non_ema.bin
    unet: diffusion_pytorch_model.non_ema.safetensors diffusion_pytorch_model.safetensors
    vae: config.json diffusion_pytorch_model.bin diffusion_pytorch_model.fp16.bin
    vae: diffusion_pytorch_model.fp16.safetensors diffusion_pytorch_model.safetensors
"""
SD_LOADED = """
    .: model_index.json
    feature_extractor: preprocessor_config.json
    safety_checker: config.json {model}
    scheduler: scheduler_config.json
    text_encoder: config.json {model}
    tokenizer: merges.txt special_tokens_map.json tokenizer_config.json vocab.json
    unet: config.json {unet}
    vae: config.json {vae}
"""


def sd_loaded(model: str, unet: str, vae: str) -> list[str]:
    return sorted(listing(SD_LOADED.format(model=model, unet=unet, vae=vae)))


def test_flux_schnell() -> None:
    assert pipeline_files(listing(FLUX_LOADED + FLUX_REST), FLUX) == sorted(listing(FLUX_LOADED))


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_sdxl(variant: str | None) -> None:
    expected = listing(SDXL_LOADED.format(v=f".{variant}" if variant else ""))
    assert pipeline_files(listing(SDXL_FILES), SDXL, variant=variant) == sorted(expected)


def test_sd_takes_safetensors_before_pickles_whatever_is_allowed() -> None:
    expected = sd_loaded(
        "model.safetensors", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors"
    )
    for allow_pickle in (False, True):
        assert pipeline_files(listing(SD_FILES), SD, allow_pickle=allow_pickle) == expected


def test_a_variant_that_only_one_component_has() -> None:
    """The others take their plain weights, as diffusers does."""
    expected = sd_loaded(
        "model.safetensors", "diffusion_pytorch_model.non_ema.safetensors", "diffusion_pytorch_model.safetensors"
    )
    assert pipeline_files(listing(SD_FILES), SD, variant="non_ema") == expected


def test_a_variant_that_no_component_has() -> None:
    with pytest.raises(NotFoundError, match="no weights of variant 'bf16' here"):
        pipeline_files(listing(SD_FILES), SD, variant="bf16")


def test_pickles_alone_need_permission() -> None:
    names = [name for name in listing(SD_FILES) if not name.endswith(".safetensors")]
    with pytest.raises(UsageError, match="safety_checker has no safetensors weights") as caught:
        pipeline_files(names, SD)
    assert "--allow-pickle" in caught.value.hint
    expected = sd_loaded("pytorch_model.bin", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.bin")
    assert pipeline_files(names, SD, allow_pickle=True) == expected


def test_a_replaced_component_is_not_fetched() -> None:
    chosen = pipeline_files(listing(FLUX_LOADED), FLUX, without={"text_encoder_2", "vae"})
    assert not [name for name in chosen if name.startswith(("text_encoder_2/", "vae/"))]
    assert [name for name in chosen if name.startswith("text_encoder/")]


def test_of_a_component_in_a_checkpoint_only_the_settings_are_fetched() -> None:
    chosen = pipeline_files(listing(FLUX_LOADED), FLUX, weightless={"transformer"})
    assert [name for name in chosen if name.startswith("transformer/")] == ["transformer/config.json"]


def test_a_missing_component_folder() -> None:
    names = [name for name in listing(FLUX_LOADED) if not name.startswith("vae/")]
    with pytest.raises(NotFoundError, match=r"the folder vae, which model_index\.json names, is missing"):
        pipeline_files(names, FLUX)
    assert pipeline_files(names, FLUX, without={"vae"})


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("diffusion_pytorch_model-00002-of-00003.safetensors", "transformer has 2 of its 3 weight files"),
        ("diffusion_pytorch_model.safetensors.index.json", "the index of the transformer weight files is missing"),
    ],
)
def test_incomplete_shards(lost: str, message: str) -> None:
    names = [name for name in listing(FLUX_LOADED) if name != f"transformer/{lost}"]
    with pytest.raises(NotFoundError, match=message):
        pipeline_files(names, FLUX)


ONE = {"transformer": ["diffusers", "FluxTransformer2DModel"]}
PLAIN = "diffusion_pytorch_model-0000{}-of-00002.safetensors", "diffusion_pytorch_model.safetensors.index.json"
# How diffusers names the shards of a variant, and how it did before 0.31.
NEW = "diffusion_pytorch_model.fp16-0000{}-of-00002.safetensors", "diffusion_pytorch_model.safetensors.index.fp16.json"
LEGACY = (
    "diffusion_pytorch_model-0000{}-of-00002.fp16.safetensors",
    "diffusion_pytorch_model.safetensors.index.fp16.json",
)


def shards(pattern: tuple[str, str]) -> list[str]:
    return [f"transformer/{name}" for name in (pattern[0].format(1), pattern[0].format(2), pattern[1])]


@pytest.mark.parametrize("pattern", [NEW, LEGACY], ids=["new", "legacy"])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_of_a_variant(pattern: tuple[str, str], variant: str | None) -> None:
    names = ["transformer/config.json", *shards(PLAIN), *shards(pattern)]
    expected = ["model_index.json", "transformer/config.json", *shards(pattern if variant else PLAIN)]
    assert pipeline_files(names, ONE, variant=variant) == sorted(expected)


def test_one_file_beside_shards() -> None:
    """diffusers loads shards when there is an index; transformers prefers the single file."""
    diffusers = ["transformer/config.json", "transformer/diffusion_pytorch_model.safetensors", *shards(PLAIN)]
    assert "transformer/diffusion_pytorch_model.safetensors" not in pipeline_files(diffusers, ONE)
    index = {"text_encoder_2": ["transformers", "T5EncoderModel"]}
    names = [name for name in listing(FLUX_LOADED) if name.startswith("text_encoder_2/")]
    single = "text_encoder_2/model.safetensors"
    chosen = pipeline_files([*names, single], index)
    assert chosen == ["model_index.json", "text_encoder_2/config.json", single]


def test_a_folder_of_one_component() -> None:
    """google/t5-v1_1-xxl has pickles alone; a mirror has shards."""
    t5 = listing(".: .gitattributes README.md config.json pytorch_model.bin spiece.model tf_model.h5")
    with pytest.raises(UsageError, match="no safetensors weights"):
        model_files(t5)
    assert model_files(t5, allow_pickle=True) == ["config.json", "pytorch_model.bin", "spiece.model"]
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    mirror = ["config.json", *shards, "model.safetensors.index.json", "flax_model.msgpack", "deep/model.safetensors"]
    assert model_files(mirror) == ["config.json", *shards, "model.safetensors.index.json"]


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("component", ["text_encoder", "transformer", "text_encoder_2"])
def test_of_two_names_the_one_that_the_library_loads_is_taken(component: str, order: int) -> None:
    """As WEIGHTS_NAME of either library has it: the other would have a digest, and not be what is loaded."""
    others = "diffusion_pytorch_model" if component.startswith("text") else "model"
    shards = [f"{component}/{others}-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    names = listing(FLUX_LOADED)
    more = [f"{component}/{others}.safetensors", *shards, f"{component}/{others}.safetensors.index.json"]
    assert pipeline_files([*names, *more][::order], FLUX) == sorted(names)


def test_of_two_names_none_is_taken_where_nobody_says_which() -> None:
    index = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    files = ["safety_checker/config.json", "safety_checker/model.safetensors", "safety_checker/pytorch_model.bin"]
    assert "safety_checker/model.safetensors" in pipeline_files(files, index)
    with pytest.raises(UsageError, match="safety_checker has weights by two names, diffusion_pytorch_model and model"):
        pipeline_files([*files, "safety_checker/diffusion_pytorch_model.safetensors"], index)
    with pytest.raises(UsageError, match="the component has weights by two names"):
        model_files(["config.json", "model.safetensors", "diffusion_pytorch_model.safetensors"])


def test_a_folder_of_a_tokenizer_has_no_weights() -> None:
    names = ["merges.txt", "tokenizer_config.json", "vocab.json"]
    assert model_files([*names, "README.md"]) == names


@pytest.mark.parametrize(
    ("tensors", "parts"),
    [
        (["model.diffusion_model.out.2.bias"], {"unet"}),
        (["model.diffusion_model.out.2.bias", "first_stage_model.post_quant_conv.bias"], {"unet", "vae"}),
        (["first_stage_model.x", "cond_stage_model.transformer.x", "alphas_cumprod"], {"unet", "vae", "text_encoder"}),
        (["conditioner.embedders.0.x"], {"text_encoder"}),
        (["__metadata__"], set()),
    ],
)
def test_what_a_checkpoint_holds(tensors: list[str], parts: set[str]) -> None:
    assert parts_of_checkpoint(tensors, components_of(SD)) == parts


NAMES = st.sampled_from(
    [
        *[name.removeprefix("transformer/") for name in shards(PLAIN) + shards(NEW)],
        *listing(".: config.json model.safetensors model.fp16.safetensors pytorch_model.bin openvino_model.bin"),
        *listing(".: diffusion_pytorch_model.bin diffusion_pytorch_model.safetensors model.onnx optimizer.pt"),
        *listing(".: pipeline.py vocab.json x.ckpt"),
    ]
)


@given(
    inside=st.lists(NAMES, unique=True),
    root=st.lists(NAMES, unique=True),
    variant=st.sampled_from([None, "fp16", "bf16"]),
    allow_pickle=st.booleans(),
)
def test_any_listing_gives_one_set_of_weights_or_says_why_not(
    inside: list[str], root: list[str], variant: str | None, allow_pickle: bool
) -> None:
    names = [*root, *(f"transformer/{name}" for name in inside)]
    try:
        chosen = pipeline_files(names, ONE, variant=variant, allow_pickle=allow_pickle)
    except DiffpipeError:  # of any other kind the test fails
        return
    assert chosen == sorted(set(chosen))
    assert set(chosen) - {"model_index.json"} <= {name for name in names if name.startswith("transformer/")}
    endings = {name.rpartition(".")[2] for name in chosen} - {"json"}
    assert endings <= {"safetensors", "bin"}
    assert "bin" not in endings or (allow_pickle and endings == {"bin"})
    weights = [name for name in chosen if name.endswith((".safetensors", ".bin"))]
    assert len(weights) in (0, 1, 2)
    assert len(weights) != 1 or "-of-" not in weights[0]


def test_a_checkpoint_that_cannot_be_listed_stands_for_the_denoiser_alone() -> None:
    parts = ["transformer", "vae", "text_encoder", "scheduler"]
    assert parts_of_checkpoint(DENOISER_ONLY, parts) == {"transformer"}


def test_a_folder_of_ten_thousand_parts_is_gone_through_once() -> None:
    names = ["model_index.json", *(f"c{number}/config.json" for number in range(10_000))]
    index = {f"c{number}": ["diffusers", "CLIPTokenizer"] for number in range(10_000)}
    began = time.process_time()
    assert len(pipeline_files(names, index)) == 10_001
    assert time.process_time() - began < 5  # seconds; each part through all names would be 10 of them


def test_what_is_like_a_name_is_sought_among_the_first() -> None:
    names = [f"{number}{'ab' * 40}.safetensors" for number in range(100_000)]
    began = time.process_time()
    assert nearest("x" * 5000 + ".safetensors", names) == []
    assert len(nearest(names[5][1:], names)) == 3
    assert time.process_time() - began < 20  # seconds; among all it would be minutes
