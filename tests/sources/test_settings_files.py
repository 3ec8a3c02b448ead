"""The wall before a model's settings: what is refused of the files that the libraries would read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffpipe.core.build_spec import BuildSpec
from diffpipe.core.errors import UsageError
from diffpipe.core.source import BASE, FileInfo, Role, Source, SourceKind
from diffpipe.sources import settings_files, trust

CLASSES = {
    "tokenizer": ("transformers", "AutoTokenizer"),
    "clip": ("transformers", "CLIPTokenizer"),
    "processor": ("transformers", "Qwen2_5_VLProcessor"),
    "text_encoder": ("transformers", "T5EncoderModel"),
    "chat": ("kolors", "ChatGLMModel"),
    "transformer": ("diffusers", "FluxTransformer2DModel"),
    "scheduler": ("diffusers", "EulerDiscreteScheduler"),
    "safety_checker": ("stable_diffusion", "StableDiffusionSafetyChecker"),
}
OWN = {"AutoTokenizer": ["own.OwnTokenizer", None]}


def check(
    files: dict[str, str],
    *,
    role: Role = BASE,
    kind: SourceKind = "folder",
    trusted: bool = False,
    size: int | None = None,
) -> None:
    infos = {path: FileInfo(len(text) if size is None else size, "") for path, text in files.items()}
    read: Callable[[str], str] = files.__getitem__
    settings_files.check(Source(role, kind, "model", infos), CLASSES, read, trusted=trusted)


ESCAPED = json.dumps({"auto_map": OWN}).replace("auto_map", "\\u0061uto_map")


@pytest.mark.parametrize("kind", ["folder", "hub", "embedded"])
@pytest.mark.parametrize(
    "path",
    [
        "tokenizer/tokenizer_config.json",
        "tokenizer/config.json",
        "tokenizer/config.4.0.0.json",
        "tokenizer/decoder_tokenizer/tokenizer_config.json",
        "processor/processor_config.json",
        "processor/preprocessor_config.json",
        "processor/video_preprocessor_config.json",
        "processor/tokenizer_config.json",
    ],
)
@pytest.mark.parametrize("text", [json.dumps({"auto_map": OWN}), ESCAPED, json.dumps({"a": [{"auto_map": OWN}]})])
def test_a_class_of_the_models_own_needs_consent(path: str, text: str, kind: SourceKind) -> None:
    component = path.partition("/")[0]
    with pytest.raises(UsageError, match=f"^model wants to run code of its own for {component}$") as error:
        check({path: text}, kind=kind)
    assert error.value.hint == "read it, then pass --trust-remote-code if you trust it"
    check({path: text}, kind=kind, trusted=True)


def test_a_replaced_components_too() -> None:
    for path in ("tokenizer_config.json", "tokenizer/tokenizer_config.json", "any/where/config.json"):
        with pytest.raises(UsageError, match="wants to run code of its own for tokenizer"):
            check({path: ESCAPED}, role=Role.component("tokenizer"))


@pytest.mark.parametrize("path", ["text_encoder/config.json", "chat/tokenizer_config.json", "transformer/config.json"])
def test_a_class_that_a_library_has_does_not_look_for_another(path: str) -> None:
    """Kolors and Phi have an auto_map for those who load them elsewhere. Below, it would be a part's own."""
    check({path: ESCAPED})
    with pytest.raises(UsageError, match="wants to run code of its own"):
        check({path: json.dumps({"text_config": {"auto_map": OWN}})})


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize(
    "value", ["owner/kernel", "paged|owner/kernel@v1:f", {"": "sdpa", "text_config": "owner/kernel"}]
)
def test_a_kernel_of_the_hub_needs_consent(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match="names code of the hub"):
        check({"text_encoder/config.json": json.dumps({"vision_config": {name: value}})})
    check({"text_encoder/config.json": json.dumps({name: "sdpa"})})


@pytest.mark.parametrize("component", ["text_encoder", "safety_checker"])
@pytest.mark.parametrize("trusted", [False, True])
def test_an_adapter_beside_a_model_of_transformers_is_refused(component: str, trusted: bool) -> None:
    """Also where a pipeline's own module has its class; consent to code is no consent to weights."""
    files = {f"{component}/adapter_config.json": json.dumps({"base_model_name_or_path": "owner/other"})}
    with pytest.raises(UsageError, match="other weights than the model's own"):
        check(files, trusted=trusted)


def test_an_adapter_that_nobody_loads_is_let_be() -> None:
    files = {"adapter_config.json": json.dumps({"base_model_name_or_path": "owner/other"})}
    check(files, role=Role("lora", "0"))
    check({f"transformer/{name}": text for name, text in files.items()})


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("kind", ["folder", "hub"])
@pytest.mark.parametrize(
    ("path", "settings"),
    [
        ("text_encoder/config.json", {"transformers_weights": "other.safetensors"}),
        ("text_encoder/config.json", {"configuration_files": ["../vae/config.9.0.0.json"]}),
        ("text_encoder/config.json", {"text_config": {"backbone": "owner/model"}}),
        ("tokenizer/tokenizer_config.json", {"fast_tokenizer_files": ["/etc/tokenizer.4.0.json"]}),
        ("tokenizer/tokenizer_config.json", {"vocab_file": "/etc/spiece.model"}),
        ("tokenizer/tokenizer_config.json", {"merges_file": "../merges.txt"}),
        ("tokenizer/tokenizer_config.json", {"vocab": "vocab.json"}),
        ("tokenizer/tokenizer_config.json", {"init_inputs": ["/etc/vocab.json"]}),
        ("tokenizer/tokenizer_config.json", {"gguf_file": "model.gguf"}),
        ("processor/processor_config.json", {"audio_tokenizer": {"audio_tokenizer_name_or_path": "/other"}}),
        ("processor/preprocessor_config.json", {"repo_path": "/etc", "class_info_file": "x.json"}),
    ],
)
def test_a_file_without_a_digest_is_named_by_no_field(
    path: str, settings: Any, kind: SourceKind, trusted: bool
) -> None:
    with pytest.raises(UsageError, match="which is none of the model's own files"):
        check({path: json.dumps(settings)}, kind=kind, trusted=trusted)


def test_fields_that_name_what_has_a_digest_or_nothing() -> None:
    made_at = {"tokenizer_file": "/root/tokenizer.json", "special_tokens_map_file": "/root/special_tokens_map.json"}
    check({"tokenizer/tokenizer_config.json": json.dumps({**made_at, "name_or_path": "/root", "vocab_file": None})})
    stayed = {**made_at, "vocab_file": "/root/spiece.model", "init_inputs": [], "vocab": {"a": 1}}
    check({"tokenizer/tokenizer_config.json": json.dumps(stayed), "tokenizer/tokenizer.json": "{}"})
    check({"tokenizer/tokenizer_config.json": '{"vocab_file": "spiece.model"}', "tokenizer/spiece.model": ""})
    settings = {"transformers_weights": "model.safetensors", "configuration_files": ["config.5.0.0.json"]}
    files = {"text_encoder/model.safetensors": "", "text_encoder/config.5.0.0.json": "{}"}
    check({"text_encoder/config.json": json.dumps({**settings, "backbone": None, "_name_or_path": "a/b"}), **files})


@pytest.mark.parametrize(
    ("path", "settings"),
    [
        ("transformer/config.json", {"num_layers": 10**9}),
        ("transformer/config.json", {"num_single_layers": -(10**9)}),
        ("transformer/config.json", {"in_channels": 10**12}),
        ("transformer/config.json", {"layers_per_block": [1, 10**6]}),
        ("transformer/config.json", {"transformer_layers_per_block": [[10**6]]}),
        ("transformer/config.json", {"down_block_types": ["DownBlock2D"] * 10**6}),
        ("text_encoder/config.json", {"vocab_size": 10**15}),
        ("text_encoder/config.json", {"text_config": {"num_hidden_layers": 10**9}}),
        ("text_encoder/config.5.0.0.json", {"num_hidden_layers": 10**9}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**12}),
        ("scheduler/scheduler_config.json", {"solver_order": 10**9}),
        ("clip/tokenizer_config.json", {"model_max_length": 10**9}),
        ("clip/tokenizer_config.json", {"model_max_length": 10**30}),
        ("clip/tokenizer_config.json", {"model_max_length": -5}),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 10**9}),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 0}),
        ("tokenizer/tokenizer_config.json", {"model_max_length": "many"}),
        ("tokenizer/tokenizer_config.json", {"extra_ids": 10**9}),
        ("tokenizer/tokenizer_config.json", {"added_tokens_decoder": {"99999999999": {"content": "x"}}}),
        ("processor/preprocessor_config.json", {"size": 10**6}),
        ("processor/preprocessor_config.json", {"crop_size": {"height": 10**6, "width": 224}}),
        ("processor/preprocessor_config.json", {"size": {"shortest_edge": 10**6}}),
        ("processor/processor_config.json", {"feature_extractor": {"feature_size": 10**9}}),
        ("processor/video_preprocessor_config.json", {"max_pixels": 10**12}),
    ],
)
def test_a_model_beyond_any_that_there_is(path: str, settings: Any) -> None:
    with pytest.raises(UsageError, match="no model goes beyond") as error:
        check({path: json.dumps(settings)})
    assert len(error.value.message) < 200


def test_the_largest_models_pass() -> None:
    llama = {"max_position_embeddings": 10_485_760, "rope_theta": 2804339835, "vocab_size": 262_208, "n_layer": 126}
    check({"text_encoder/config.json": json.dumps({**llama, "num_experts": 512, "torch_dtype": "bfloat16"})})
    check({"text_encoder/config.json": '{"time_step_limit": [0.0, Infinity]}'})  # as Python writes it
    check({"transformer/config.json": json.dumps({"sample_size": 2_097_152, "latents_mean": [0.1] * 128})})
    check({"scheduler/scheduler_config.json": json.dumps({"trained_betas": [0.1] * 1000, "num_train_timesteps": 1000})})
    for length in (10**30, int(1e30), 1e30, 1_010_000, None):
        check({"tokenizer/tokenizer_config.json": json.dumps({"model_max_length": length, "extra_ids": 100})})
    check({"clip/tokenizer_config.json": json.dumps({"model_max_length": 77, "added_tokens_decoder": {"49406": {}}})})
    qwen = {"size": {"shortest_edge": 65536, "longest_edge": 234_881_024}, "max_pixels": 12_845_056, "patch_size": 14}
    check({"processor/preprocessor_config.json": json.dumps({**qwen, "sampling_rate": 48_000, "size_divisor": None})})
    check({"processor/preprocessor_config.json": json.dumps({"size": 224, "crop_size": {"height": 224, "width": 224}})})


@pytest.mark.parametrize(
    ("path", "size"),
    [
        ("tokenizer/tokenizer_config.json", settings_files.LARGEST),
        ("tokenizer/chat_template.jinja", settings_files.LARGEST),
        ("tokenizer/tokenizer.json", settings_files.LARGEST_VOCABULARY),
        ("tokenizer/tekken.json", settings_files.LARGEST_VOCABULARY),
        ("transformer/diffusion_pytorch_model.safetensors.index.json", settings_files.LARGEST),
    ],
)
def test_a_file_beyond_its_size_is_not_read(path: str, size: int) -> None:
    check({path: "{}"}, size=size)
    with pytest.raises(UsageError, match=f"larger than {size} bytes"):
        check({path: "never read: no JSON"}, size=size + 1)


@pytest.mark.parametrize(
    "text", ["", "[]", "[" * 10**5, '{"a": ' * 200 + "1" + "}" * 200, '{"a": 1' + "0" * 5000 + "}"]
)
def test_what_is_no_object_is_named(text: str) -> None:
    with pytest.raises(UsageError, match=r"^transformer/config\.json of model is damaged: it "):
        check({"transformer/config.json": text}, kind="hub")


@pytest.mark.parametrize("named", ["../../other.safetensors", "/etc/passwd", "model.bin", 5, None])
def test_an_index_of_the_hub_names_files_beside_it(named: Any) -> None:
    index, weights = "transformer/diffusion_pytorch_model.safetensors.index.fp16.json", "transformer/a.safetensors"
    check({index: json.dumps({"weight_map": {"x": "a.safetensors"}}), weights: ""}, kind="hub")
    with pytest.raises(UsageError, match="which is not there"):
        check({index: json.dumps({"weight_map": {"x": named}}), weights: ""}, kind="hub")


@pytest.mark.parametrize(
    "kind", ["StableDiffusionPipeline", "ModularPipelineBlocks", "os.system", "__class__", "_Private", "x y"]
)
def test_a_part_is_named_by_a_class_that_can_be_one(kind: str) -> None:
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", kind]}
    with pytest.raises(UsageError, match="which is no part of a pipeline"):
        trust.model_index(json.dumps(index), "model", [], BuildSpec("", "", "model"))


def test_a_file_that_diffusers_would_run_for_a_part() -> None:
    index = json.dumps({"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]})
    files = ["transformer/config.json", "transformer/diffusers.py"]
    with pytest.raises(UsageError, match="wants to run code of its own for transformer"):
        trust.model_index(index, "model", files, BuildSpec("", "", "model"))
    trust.model_index(index, "model", files, BuildSpec("", "", "model", trust_remote_code=True))


def test_what_came_by_a_bundle_is_judged_by_its_index(tmp_path: Path) -> None:
    """Whatever classes its manifest lists: diffusers goes by the index."""
    index = {"_class_name": "FluxPipeline", "tokenizer": ["transformers", "AutoTokenizer"]}
    files = {"model_index.json": json.dumps(index), "tokenizer/tokenizer_config.json": ESCAPED}
    (tmp_path / "tokenizer").mkdir()
    for path, text in files.items():
        (tmp_path / path).write_text(text)
    source = Source(BASE, "hub", "model", {path: FileInfo(len(text), "") for path, text in files.items()})
    with pytest.raises(UsageError, match="wants to run code of its own for tokenizer"):
        trust.refuse_code(source, str(tmp_path), {"tokenizer": ("transformers", "CLIPTokenizer")}, False)
    trust.refuse_code(source, str(tmp_path), {}, True)
