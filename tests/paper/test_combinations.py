"""Placements on a second device: what is allowed gives what the CPU gives, what is refused does fail to this day."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from diffpipe.memory import knobs

SIZE = {"width": 16, "height": 16, "num_inference_steps": 2, "max_sequence_length": 8}


def loaded(folder: str, device: str, **placed: Any) -> Any:
    """A Flux in a placement; its weights lie in memory that torch chose, as those do that were moved."""
    import torch
    from diffusers import FluxPipeline

    from diffpipe.core.build_spec import Placement
    from diffpipe.engine.placement import apply

    torch.set_num_threads(1)
    pipe = FluxPipeline.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    for _, part in apply.modules(pipe):
        for tensor in (*part.parameters(), *part.buffers()):
            tensor.data = tensor.data.clone()
    return apply.apply(pipe, Placement(**placed), device)


def drawn(pipe: Any) -> list[float]:
    import torch

    generator = torch.Generator().manual_seed(3)
    picture = pipe("a cat", generator=generator, output_type="pt", **SIZE).images
    assert picture.isfinite().all()
    return picture.float().cpu().flatten().tolist()  # type: ignore[no-any-return]


# What is allowed


def offloaded(folder: str, kept: dict[str, Any], offloads: list[str]) -> list[str]:
    """The ways of offloading by which a pipeline draws another picture than the resident one on the CPU."""
    from diffpipe.engine.placement import devices

    expected = drawn(loaded(folder, "cpu", **kept))
    assert devices.has_streams("paper")
    different = []
    for offload in offloads:
        if offload == "group, not streamed":
            devices.has_streams = lambda device: False  # type: ignore[assignment]
        placed = {**kept, "cpu_offload": offload.partition(",")[0]}
        different += [offload] * (drawn(loaded(folder, "paper", **placed)) != expected)
    return different


@pytest.mark.parametrize(
    ("kept", "offloads"),
    [
        ({}, ["sequential"]),
        ({"quantize": "int8"}, ["none", "sequential", "group", "group, not streamed"]),
        ({"quantize": "fp8"}, ["none", "group"]),
        ({"quantize": "int4"}, ["model", "sequential", "group"]),
        ({"quantize": "int8", "quantize_backend": "torchao"}, ["group", "group, not streamed"]),
        ({"quantize": "int8", "quantize_backend": "torchao", "layerwise_casting": True}, ["none", "group"]),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_what_the_table_does_not_refuse_any_more_draws_what_the_cpu_draws(
    checkpoints: Path, on_paper: Callable[..., Any], kept: dict[str, Any], offloads: list[str]
) -> None:
    assert on_paper(offloaded, checkpoints / "flux", kept, offloads) == []


def products(mode: str) -> list[bool]:
    """Whether a quantized layer gives on the device what it gives on the CPU, for each dtype that computes; and whether
    its weights are on either as they are stored."""
    import torch

    from diffpipe.engine.loading import kernels, quantize

    torch.set_grad_enabled(False)
    same = []
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        torch.manual_seed(0)
        layer, inputs = torch.nn.Linear(256, 48, dtype=dtype), torch.randn(5, 256, dtype=dtype)
        quantize.quantize_module(torch.nn.Sequential(layer), mode, "quanto")
        expected, stored = layer(inputs), quantize.inner_tensors(layer.weight, "")
        there = layer.to("paper")
        moved = quantize.inner_tensors(there.weight, "")
        same.append(torch.equal(there(inputs.to("paper")).cpu(), expected))
        same += [moved[name].device.type == "paper" for name in stored]
        same += [torch.equal(moved[name].cpu().view(torch.uint8), stored[name].view(torch.uint8)) for name in stored]
    wide = kernels.dequantize(torch.ones(3, device="paper").to(torch.float8_e4m3fn), torch.bfloat16)
    return [*same, wide.device.type == "paper", wide.tolist() == [1, 1, 1]]


@pytest.mark.parametrize("mode", ["fp8", "int8", "int4"])
def test_quantos_products_are_computed_in_one_order_everywhere(on_paper: Callable[..., Any], mode: str) -> None:
    found = on_paper(products, mode)
    assert found == [True] * len(found)


# What is refused


def fails(work: Callable[[], object]) -> bool:
    try:
        work()
    except Exception:
        return True
    return False


def cast_quanto(folder: str) -> list[bool]:
    """Whether quantizing and casting a denoiser fail, in both orders."""
    import torch

    from diffpipe.engine.loading import quantize

    def cast(model: Any) -> None:
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)

    def both(mode: str, casts_first: bool) -> None:
        pipe = loaded(folder, "cpu")
        if casts_first:
            cast(pipe.transformer)
        quantize.quantize_module(pipe.transformer, mode, "quanto")
        if not casts_first:
            cast(pipe.transformer)
        drawn(pipe)

    orders = itertools.product(("fp8", "int8", "int4"), (False, True))
    return [fails(partial(both, mode, first)) for mode, first in orders]


def torchao_int4(folder: str) -> list[bool]:
    """Whether each of torchao's formats of int4 fails on either device."""
    import torch
    from torchao.quantization import Int4WeightOnlyConfig, quantize_
    from torchao.quantization.quantize_.workflows import Int4PackingFormat

    def multiply(device: str, form: Any) -> None:
        layer = torch.nn.Linear(256, 64, bias=False, dtype=torch.bfloat16, device=device)
        quantize_(layer, Int4WeightOnlyConfig(group_size=128, int4_packing_format=form))
        layer(torch.ones(3, 256, dtype=torch.bfloat16, device=device))

    ways = itertools.product(("cpu", "paper"), Int4PackingFormat)
    return [fails(partial(multiply, device, form)) for device, form in ways]


def sequential_on_cpu(folder: str) -> list[bool]:
    return [fails(lambda: drawn(loaded(folder, "cpu", cpu_offload="sequential")))]


TRIED: dict[str, Callable[[str], list[bool]]] = {
    "quanto + layerwise casting": cast_quanto,
    "torchao int4": torchao_int4,
    "sequential offload on the CPU": sequential_on_cpu,
}


@pytest.mark.pinned
@pytest.mark.parametrize("row", knobs.COMBINATIONS, ids=lambda row: row.title)
def test_what_is_refused_fails_with_the_versions_that_the_row_names(
    checkpoints: Path, on_paper: Callable[..., Any], row: knobs.Combination
) -> None:
    tried = on_paper(TRIED[row.title], checkpoints / "flux")
    assert tried
    assert all(tried), f"{row.title} works now: take it from the table"
    assert row.seen == {package: importlib.metadata.version(package) for package in row.seen}


# What is left on the device


def left_by_failures(folder: str, offload: str, at: list[int]) -> list[list[int]]:
    """Bytes on the device beyond those of the loaded pipeline, after calls that fail in a product, and after the next;
    whether that one draws what the first drew."""
    import torch

    from diffpipe.engine.placement.settle import settled
    from paper import device

    expected = drawn(loaded(folder, "cpu"))
    pipe = loaded(folder, "paper", cpu_offload=offload)
    gc.collect()
    before, plain, found = device.memory.now, torch.nn.functional.linear, []

    def call() -> list[float]:
        with settled(pipe):
            return drawn(pipe)

    for number in at:
        count = itertools.count(1)

        def broken(*args: Any, count: Any = count, number: int = number, **kwargs: Any) -> Any:
            if next(count) == number:
                raise ValueError("broken")
            return plain(*args, **kwargs)

        torch.nn.functional.linear = broken
        failed = fails(call)
        torch.nn.functional.linear = plain
        gc.collect()
        after = device.memory.now - before
        equal = call() == expected
        gc.collect()
        found.append([failed, after, equal, device.memory.now - before])
    return found


@pytest.mark.parametrize(("offload", "at"), [("model", [40]), ("sequential", [40]), ("group", [3, 40])])
def test_a_call_that_fails_leaves_nothing_on_the_device_and_nothing_to_the_next(
    checkpoints: Path, on_paper: Callable[..., Any], offload: str, at: list[int]
) -> None:
    """In the text encoder of the first call, from which streams learn the order of layers, and in the denoiser."""
    found = on_paper(left_by_failures, checkpoints / "flux", offload, at)
    assert found == [[True, 0, True, 0]] * len(at)


def left_by_calls(folder: str, offload: str, arguments: dict[str, Any]) -> list[int]:
    """Bytes on the device beyond those of the loaded pipeline after a call within `settled`, and after one without."""
    import torch
    from diffusers import DiffusionPipeline

    from diffpipe.core.build_spec import Placement
    from diffpipe.engine.placement import apply
    from diffpipe.engine.placement.settle import settled
    from paper import device

    torch.set_num_threads(1)
    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    apply.apply(pipe, Placement(cpu_offload=offload), "paper")  # type: ignore[arg-type]
    gc.collect()
    before, left = device.memory.now, []
    for around in (settled, contextlib.nullcontext):
        with around(pipe):
            pipe("a cat", **arguments)
        gc.collect()
        left.append(device.memory.now - before)
    return left


SMALL = {"width": 16, "height": 16, "num_inference_steps": 2, "output_type": "np"}


SOUND = {"audio_length_in_s": 0.1, "num_inference_steps": 1}


@pytest.mark.parametrize(
    ("family", "offload", "arguments"),
    [
        ("qwen", "model", SMALL),  # a method that remembers: it holds rotary tables
        ("z-image", "none", SMALL),  # a plain object of the model that keeps them
        ("wan", "group", {**SMALL, "num_frames": 5}),  # a solver that keeps its last samples
        ("audioldm", "model", SOUND),  # a pipeline that takes nothing back
        ("audioldm2", "model", SOUND),  # one that offloads in its own way
    ],
)
def test_a_call_leaves_on_the_device_what_was_there(
    checkpoints: Path, on_paper: Callable[..., Any], family: str, offload: str, arguments: dict[str, Any]
) -> None:
    settled, plain = on_paper(left_by_calls, checkpoints / family, offload, arguments)
    assert settled == 0
    assert plain > 1000  # else there is nothing to settle, and this family stands for nothing


def left_by_a_chunk(folder: str) -> int:
    """Bytes on the device beyond those of the loaded pipeline after two calls side by side."""
    from diffusers import DiffusionPipeline

    from diffpipe.core.build_spec import Placement
    from diffpipe.engine.placement import apply, interleave
    from diffpipe.engine.placement.settle import settled
    from paper import device

    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    apply.apply(pipe, Placement(cpu_offload="model"), "paper")
    gc.collect()
    before = device.memory.now

    def call(own: Any) -> None:
        with settled(own):
            own("a cat", **SMALL)

    interleave.run(pipe, [call, call])
    gc.collect()
    return device.memory.now - before


def brought_to_the_device(folder: str) -> list[int]:
    """Bytes that an offloaded call with a safety checker, which stays on the device, brings there: alone, settled."""
    from diffusers import DiffusionPipeline
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    from diffpipe.core.build_spec import Placement
    from diffpipe.engine.placement import apply
    from diffpipe.engine.placement.settle import settled
    from paper import device

    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = tiny | {"image_size": 32, "patch_size": 16}
    config = CLIPConfig(text_config=tiny, vision_config=vision, projection_dim=16)
    found = []
    for around in (contextlib.nullcontext, settled):
        parts = {
            "safety_checker": StableDiffusionSafetyChecker(config),
            "feature_extractor": CLIPImageProcessor(crop_size=32, size=32),
        }
        pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True, **parts)
        pipe.set_progress_bar_config(disable=True)
        apply.apply(pipe, Placement(cpu_offload="model"), "paper")
        device.traffic.clear()
        with around(pipe):
            pipe("a cat", **SMALL)
        found.append(device.traffic.size["to"])
    return found


def test_what_stays_on_the_device_on_purpose_is_not_taken_away_and_back(
    checkpoints: Path, on_paper: Callable[..., Any]
) -> None:
    alone, settled = on_paper(brought_to_the_device, checkpoints / "stable-diffusion")
    assert alone == settled


def test_calls_side_by_side_leave_nothing_when_all_are_done(checkpoints: Path, on_paper: Callable[..., Any]) -> None:
    assert on_paper(left_by_a_chunk, checkpoints / "z-image") == 0


def kept_tensors() -> dict[str, list[str]]:
    """Where what a model keeps is, before `settled`, in it and after it; and the buffer of a streamed group."""
    import functools

    import torch
    from diffusers import DiffusionPipeline, ModelMixin
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.hooks import apply_group_offloading

    from diffpipe.engine.placement.settle import settled

    class Model(ModelMixin, ConfigMixin):
        @register_to_config
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
            self.table, self.lists, self.tables = torch.ones(2), [torch.ones(2)], {"of": {"a": torch.ones(2)}}

        @functools.lru_cache  # noqa: B019
        def remembered(self) -> torch.Tensor:
            return self.table.to("paper")

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            self.table, self.new = self.table.to("paper"), self.remembered()
            self.lists[0] = self.table
            self.lists.append(self.table)
            self.tables["of"]["b"] = self.table
            return self.layers(inputs)  # type: ignore[no-any-return]

    class Pipeline(DiffusionPipeline):
        def __init__(self, model: Model) -> None:
            super().__init__()
            self.register_modules(model=model)

    model = Model().eval()
    pipe = Pipeline(model)
    apply_group_offloading(
        model, torch.device("paper"), offload_type="block_level", num_blocks_per_group=1, use_stream=True
    )

    def places() -> list[str]:
        every = (model.table, *model.lists, *model.tables["of"].values(), *vars(model).get("new", torch.ones(0)))
        return [one.device.type for one in (*every, model.layers[1].running_mean)]

    before = places()
    with torch.no_grad(), settled(pipe):
        model(torch.ones(3, 2, device="paper"))
        inside = places()
    remembered = [str(Model.remembered.cache_info().currsize)]
    return {"before": before, "inside": inside, "after": places(), "remembered": remembered}


def test_what_is_kept_outside_of_weights_is_what_it_was(on_paper: Callable[..., Any]) -> None:
    found = on_paper(kept_tensors)
    assert found["inside"] == ["paper"] * 3 + ["cpu"] + ["paper"] * 4
    assert found["before"] == found["after"] == ["cpu"] * 4
    assert found["remembered"] == ["0"]
