"""What a plan counts of weights against real loads, of every family, as its row and its classes have them loaded."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cases_image
import cases_video
import diffusers
import pytest
import record_components
import torch
import transformers
from cases import Case

from diffpipe.building.build import Options, build
from diffpipe.building.request import Request
from diffpipe.cache.store import Store
from diffpipe.catalog import BUILTIN
from diffpipe.catalog.plugins import quirks
from diffpipe.core.build_spec import BuildSpec, Placement
from diffpipe.core.manifest import Located
from diffpipe.core.source import place_of
from diffpipe.engine.loading import load
from diffpipe.engine.tracing.living import Living
from diffpipe.memory import loaded_dtypes
from diffpipe.memory.estimate import Task, moving, peaks, upcast, weights
from diffpipe.memory.sizes import Sizes, read_sizes
from diffpipe.memory.tables import table

# One case of each checkpoint; of custom, whose row says nothing of a class, what rows of the class load in float32.
CASES = {
    (case.checkpoint, case.provider): case
    for case in (*cases_image.CASES, *cases_video.CASES)
    if not case.build and (case.provider != "custom" or case.checkpoint.startswith("wan"))
}
WIDE = ("wan", "allegro")  # of these, bfloat16 keeps some in float32 too


def both(case: Case, checkpoints: Path, store: Store, dtype: str) -> tuple[dict[str, int], dict[str, int]]:
    """Component -> bytes of its weights as a plan counts them, and as they are once they were loaded."""
    row = BUILTIN[case.provider].type(case.type)
    assert row is not None
    spec = BuildSpec(case.provider, row.name, str(checkpoints / case.checkpoint), dtype=dtype, device="cpu")  # type: ignore[arg-type]
    request = Request(spec, row, store, offline=True)
    counted = weights(table(spec, row, store, True, lambda: request.pinned).parts, Placement(), dtype)
    entry = build(request, spec, Options("x", offline=True, quiet=True), lambda _: None).entry
    lies = {role: place_of(location) for role, location in entry.locations().items()}
    pipe = load.load(entry.manifest(), Located(lies), "cpu", quirks(entry.manifest()))
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return counted, {name: _bytes(module, dtype) for name, module in modules.items()}


def _bytes(module: torch.nn.Module, dtype: str) -> int:
    """Tables of whole numbers, which are no weights, count as if they were."""
    tensors = {id(tensor): tensor for tensor in module.state_dict(keep_vars=True).values()}.values()
    width = getattr(torch, dtype).itemsize
    return sum(tensor.numel() * (tensor.itemsize if tensor.is_floating_point() else width) for tensor in tensors)


@pytest.mark.parametrize(("checkpoint", "provider"), CASES)
def test_weights_are_counted_as_they_are_loaded(
    checkpoint: str, provider: str, checkpoints: Path, tmp_path: Path
) -> None:
    for dtype in ("float16", "bfloat16") if checkpoint.startswith(WIDE) else ("float16",):
        counted, true = both(CASES[checkpoint, provider], checkpoints, Store(tmp_path), dtype)
        assert counted == true


def classes_of(folder: str) -> Iterator[tuple[str, str]]:
    """The classes of the modules of diffusers under a folder, each with its text: none is imported."""
    for path in Path(diffusers.__file__).parent.joinpath(folder).rglob("*.py"):
        _, *parts = re.split(r"^class (\w+)", path.read_text("utf-8"), flags=re.MULTILINE)
        yield from zip(parts[::2], parts[1::2], strict=True)


def test_what_the_libraries_keep_in_float32_is_what_their_classes_say() -> None:
    said = re.compile(r"^    _keep_in_fp32_modules = (\[[^\]]+\])", re.MULTILINE)
    kept = {name: found[1] for name, text in classes_of("models") if (found := said.search(text))}
    assert {name: tuple(ast.literal_eval(parts)) for name, parts in kept.items()} == loaded_dtypes.KEPT
    for name in ("T5EncoderModel", "UMT5EncoderModel", "MT5EncoderModel"):
        assert loaded_dtypes.T5.fullmatch(name)
        assert tuple(getattr(transformers, name)._keep_in_fp32_modules) == loaded_dtypes.KEPT_BESIDE_FLOAT16


def test_pipelines_that_decode_in_float32_are_those_whose_code_says_so() -> None:
    turning = re.compile(r"self\.vae\.dtype == torch\.float16 and self\.vae\.config\.force_upcast")
    pipelines = {name: text for name, text in classes_of("pipelines") if re.search("Pipeline(?!Output)", name)}
    said = {name for name, text in pipelines.items() if turning.search(text)}
    assert said == {name for name in pipelines if loaded_dtypes.UPCASTING.search(name) and "Onnx" not in name}


def test_an_autoencoder_that_a_pipeline_turns_into_float32_weighs_and_holds_twice_as_much() -> None:
    vae = Sizes("vae", "AutoencoderKL", "decoder", parameters=1000, upcast=True, live=10, step=8, dtypes=("F16",))
    half, xl, other = (
        Task(name, 64, 64, dtype=dtype)
        for name, dtype in (
            ("StableDiffusionXLPipeline", "bfloat16"),
            ("StableDiffusionXLPipeline", "float16"),
            ("FluxPipeline", "float16"),
        )
    )
    assert [upcast(vae, task) for task in (half, xl, other)] == [False, True, False]
    assert moving(vae, Placement(), xl) == 2 * moving(vae, Placement(), half)
    peak = {task.pipeline + task.dtype: peaks([vae], Placement(), task)[3] for task in (half, xl, other)}
    weights_of = {name: one.device - one.moving for name, one in peak.items()}
    assert list(weights_of.values()) == [2000, 4000, 2000]


# Of the settings of T5-XXL (FLUX.1, SD 3), of AudioLDM 2's T5, and one with few heads and a wide feed-forward.
T5S = (
    {"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64},
    {"d_model": 1024, "d_ff": 2816, "d_kv": 64, "num_heads": 16},
    {"d_model": 1024, "d_ff": 16384, "d_kv": 128, "num_heads": 8},
)


@pytest.mark.pinned  # earlier versions of transformers lay the masks out in another way
@pytest.mark.parametrize("name", ["T5EncoderModel", "UMT5EncoderModel"])
@pytest.mark.parametrize("settings", T5S, ids=["XXL", "large", "wide"])
def test_what_an_encoder_of_t5s_kind_holds_of_512_tokens_with_padding(name: str, settings: dict[str, Any]) -> None:
    """Against the largest sum of living tensors in the real forward on tensors without memory."""
    small = {**settings, "num_layers": 2, "feed_forward_proj": "gated-gelu"}
    model = record_components.build("transformers", name, small).to(torch.bfloat16)
    padding = torch.empty((1, 1, 1, 512), dtype=torch.bool, device="meta")
    ids = torch.empty((1, 512), dtype=torch.long, device="meta")
    with Living([*model.parameters(), *model.buffers()]).watching() as living:
        model(input_ids=ids, attention_mask=padding)
    (true,) = living.most.values()
    counted = read_sizes("text_encoder", name, {}, settings)
    assert moving(counted, Placement(), Task()) == pytest.approx(true, rel=0.15)
