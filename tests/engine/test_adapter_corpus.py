"""Every format of adapter files, for every family: what is applied is what the format's formula says.

The files, the layers' names and the expected weights are of tests/adapter_corpus, which asks no library how a file is
read. `docs/adapters.md` has the table; tools/adapter_table.py writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from adapter_corpus.rows import ROWS  # noqa: E402
from adapter_corpus.trial import Row, Tensors, Tiny, Written, apply, compare, fit, parts_of, save, trial, values, write  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from diffpipe.core.errors import UsageError  # noqa: E402
from diffpipe.engine.loading import adapters  # noqa: E402

Pipelines = Callable[[str], Tiny]


@pytest.fixture(scope="module")
def pipelines() -> Iterator[Pipelines]:
    """Each family's tiny pipeline, made once."""
    made: dict[str, Tiny] = {}

    def of(family: str) -> Tiny:
        if family not in made:
            made[family] = Tiny(family)
        return made[family]

    yield of
    made.clear()


def test_names_are_one_each() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_weight_is_what_the_formula_says(row: Row, pipelines: Pipelines, tmp_path: Path) -> None:
    result = trial(row, pipelines(row.family), tmp_path)
    assert not result.wrong, f"{result.applied} of {result.layers} layers applied; wrong: {', '.join(result.wrong)}"
    assert result.layers > 0


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_build_says_that_all_of_it_fits(row: Row, pipelines: Pipelines, tmp_path: Path) -> None:
    """Also that the tables of names, which are read without weights, are those that the weights are changed by."""
    tiny = pipelines(row.family)
    written = write(row, tiny.model)
    layers = len(written.sites)
    assert fit(tiny, save(row, written, tmp_path / row.file), row.into)[0][:2] == (layers, layers)


LINEAR = ("Flux: kohya", "SDXL: LoHa", "Qwen Image: LoKr of musubi-tuner", "Wan 2.1: ComfyUI, with differences")


@pytest.mark.parametrize("scale", [0.5, -2.0])
@pytest.mark.parametrize("name", LINEAR)
def test_changes_grow_with_the_scale(name: str, scale: float, pipelines: Pipelines, tmp_path: Path) -> None:
    row = by_name(name)
    assert not trial(row, pipelines(row.family), tmp_path, scale).wrong


def by_name(name: str) -> Row:
    return next(row for row in ROWS if row.name == name)


def file_of(row: Row, tiny: Tiny, path: Path, more: Tensors, less: str = "") -> Path:
    """A row's file with some tensors more, and without those whose names end so."""
    written = {name: tensor.float() for name, tensor in write(row, tiny.model).tensors.items()}
    kept = {name: tensor for name, tensor in written.items() if not less or not name.endswith(less)}
    save_file({**kept, **more}, path)
    return path


# What is in a file beside what fits -> what the refusal must name.
STRANGE: dict[str, tuple[str, Tensors, str]] = {
    "a block that the model lacks": (
        "Flux: kohya",
        {
            "lora_unet_double_blocks_7_img_attn_proj.lora_down.weight": torch.ones(4, 32),
            "lora_unet_double_blocks_7_img_attn_proj.lora_up.weight": torch.ones(32, 4),
        },
        "lora_unet_double_blocks_7_img_attn_proj",
    ),
    "a text encoder that the model lacks": (
        "Stable Diffusion 1: PEFT",
        {
            "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": torch.ones(4, 32),
            "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_B.weight": torch.ones(64, 4),
        },
        "text_encoder_2.text_model.encoder.layers.0.mlp.fc1",
    ),
    "one matrix of a pair": (
        "Qwen Image: PEFT",
        {"transformer.img_in.lora_A.weight": torch.ones(4, 32)},
        "transformer.img_in",
    ),
    "a bias for a layer without one": (
        "Stable Diffusion 1: kohya, no alpha",
        {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.diff_b": torch.ones(16)},
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
    ),
    "GLoRA": (
        "SDXL: kohya",
        {f"lora_unet_input_blocks_0_0.{part}.weight": torch.ones(4, 4) for part in ("a1", "a2", "b1", "b2")},
        "lora_unet_input_blocks_0_0",
    ),
    "OFT": ("SDXL: kohya", {"lora_unet_input_blocks_0_0.oft_blocks": torch.ones(4, 4, 4)}, "oft_blocks"),
    "a textual inversion": ("SDXL: OneTrainer", {"bundle_emb.cat.clip_l": torch.ones(2, 32)}, "bundle_emb.cat.clip_l"),
    "a layer of another shape": (
        "Wan 2.1: musubi-tuner",
        {
            "lora_unet_text_embedding_0.lora_down.weight": torch.ones(4, 4096),
            "lora_unet_text_embedding_0.lora_up.weight": torch.ones(24, 4),
        },
        "4096",
    ),
}


@pytest.mark.parametrize("case", STRANGE)
def test_what_cannot_be_applied_is_refused_by_name(case: str, pipelines: Pipelines, tmp_path: Path) -> None:
    name, more, said = STRANGE[case]
    tiny = pipelines(by_name(name).family)
    with pytest.raises(UsageError) as raised:
        fit(tiny, file_of(by_name(name), tiny, tmp_path / "adapter.safetensors", more))
    assert said in raised.value.message
    assert raised.value.hint


@pytest.mark.parametrize("case", [case for case in STRANGE if case != "a layer of another shape"])
def test_the_rest_is_taken_where_that_is_asked_for(case: str, pipelines: Pipelines, tmp_path: Path) -> None:
    name, more, left_out = STRANGE[case]
    row, tiny = by_name(name), pipelines(by_name(name).family)
    path = file_of(row, tiny, tmp_path / "adapter.safetensors", more)
    found, said = fit(tiny, path, partial=True)
    written = write(row, tiny.model)
    assert found is not None
    assert found[0] == len(written.sites)
    assert any(left_out in line for line in said)
    apply(tiny.pipe, (path, ""))
    result = compare(written, tiny.before, values(parts_of(tiny.pipe)))
    tiny.reset()
    assert not result.wrong


# What is zero when training starts: kohya's lora.py, LyCORIS' loha.py and lokr.py.
UNTRAINED = {
    "Flux: kohya": "lora_up.weight",
    "SDXL: LoHa": "hada_w2_a",
    "Qwen Image: LoKr of musubi-tuner": "lokr_w2_b",
    "Flux: LoKr of ai-toolkit": "lokr_w2",
}


@pytest.mark.parametrize("name", UNTRAINED)
def test_one_that_was_not_trained_is_refused(name: str, pipelines: Pipelines, tmp_path: Path) -> None:
    row, tiny = by_name(name), pipelines(by_name(name).family)
    tensors = write(row, tiny.model).tensors
    save_file(
        {key: tensor * (not key.endswith(UNTRAINED[name])) for key, tensor in tensors.items()}, tmp_path / row.file
    )
    with pytest.raises(UsageError, match="changes no layer: its weights are all zero"):
        fit(tiny, tmp_path / row.file)


@pytest.mark.parametrize("name", ["Flux: kohya", "SDXL: LoCon", "Qwen Image: DoRA of LyCORIS, by output"])
def test_half_precision_is_rounded_once(name: str, tmp_path: Path) -> None:
    """bfloat16 has 8 bits: a weight is at most half a unit of its last place away from the formula's."""
    row = by_name(name)
    assert not trial(row, Tiny(row.family, torch.bfloat16), tmp_path, tolerance=2**-8 * 1.01).wrong


@pytest.mark.parametrize("name", ["Flux: kohya, all layers", "SDXL: LoCon"])
def test_layers_that_are_added_to_in_steps(
    name: str, pipelines: Pipelines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of some rows each: a step ends within a layer, and within one of the layers that the file has as one."""
    monkeypatch.setattr(adapters, "ELEMENTS", 5 * 32)
    assert not trial(by_name(name), pipelines(by_name(name).family), tmp_path).wrong


def test_a_pair_of_files_for_two_denoisers(pipelines: Pipelines, tmp_path: Path) -> None:
    high, low = (by_name(f"Wan 2.2: ai-toolkit, {kind} noise") for kind in ("high", "low"))
    tiny = pipelines("Wan 2.2")
    written = [write(row, tiny.model) for row in (high, low)]
    files = [(save(row, file, tmp_path / row.file), "") for row, file in zip((high, low), written, strict=True)]
    apply(tiny.pipe, *files)
    both = Written({}, [], {**written[0].expected, **written[1].expected})
    result = compare(both, tiny.before, values(parts_of(tiny.pipe)))
    tiny.reset()
    assert not result.wrong


def test_a_pair_without_its_second_matrix_is_refused(pipelines: Pipelines, tmp_path: Path) -> None:
    tiny = pipelines("Flux")
    path = file_of(by_name("Flux: PEFT"), tiny, tmp_path / "adapter.safetensors", {}, "0.attn.to_q.lora_B.weight")
    with pytest.raises(UsageError, match=r"transformer_blocks\.0\.attn\.to_q"):
        fit(tiny, path)
