"""diffpipe.memory.traced: trace and estimate beside each other, for every model that was recorded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from diffpipe.cache.store import Store
from diffpipe.catalog import BUILTIN
from diffpipe.core.build_spec import BuildSpec, Placement
from diffpipe.core.errors import DiffpipeError, Exit, UsageError
from diffpipe.core.tracing import Held, Recipe
from diffpipe.memory.estimate import CONVOLUTION, PROCESS, Task
from diffpipe.memory.recipes import recipe, recorded_recipe
from diffpipe.memory.recorded import RecordedModel, recorded
from diffpipe.memory.sizes import Sizes
from diffpipe.memory.traced import APART, SLACK, WITHIN, Beside, beside, of_recorded
from diffpipe.sources.pin import Pinned

GIB = 1 << 30


@pytest.mark.parametrize("name", recorded())
def test_trace_and_estimate_agree_or_a_row_says_which_is_wrong(name: str) -> None:
    """At the model's own size, and at another, with two samples, that no constant was read off."""
    for trace in recorded()[name].traces:
        found = of_recorded(recorded()[name], trace)
        assert [one.stage for one in found] == ["encode", "denoise", "decode"]
        apart = {one.stage: f"{one.off:+.1%}" for one in found if not one.agrees and (name, one.stage) not in APART}
        assert apart == {}, trace.made


def test_every_row_of_what_disagrees_is_needed() -> None:
    for name, stage in APART:
        traces = recorded()[name].traces
        assert any(
            not one.agrees for trace in traces for one in of_recorded(recorded()[name], trace) if one.stage == stage
        )


def test_every_family_of_the_catalogue_was_traced() -> None:
    traced = {model.pipeline for model in recorded().values()}
    families = {name for name, provider in BUILTIN.items() if any(row.pipeline in traced for row in provider.types)}
    # Of LTX and Allegro nothing is recorded: what their decoders hold grows with the frames, which tiling makes less
    # in a trace and not in `estimate.moving`.
    assert families == BUILTIN.keys() - {"custom", "allegro", "ltx"}


@pytest.mark.parametrize("name", recorded())
def test_a_recorded_model_can_be_made_from_its_recorded_settings(name: str) -> None:
    model: RecordedModel = recorded()[name]
    layout, configs = recorded_recipe(name)
    assert configs.keys() <= layout.keys()
    assert {part.name: part.class_name for part in model.components}.items() <= {
        component: class_name for component, (_, class_name) in layout.items()
    }.items()


# --- Peaks from a trace ---

PARTS = (
    Sizes("unet", "UNet2DConditionModel", "denoiser", parameters=GIB, block=GIB // 8, layer=GIB // 16, live=10),
    Sizes("vae", "AutoencoderKL", "decoder", parameters=GIB // 4, layer=GIB // 64, step=8, live=768),
)
TASK = Task("StableDiffusionPipeline", 512, 512)
HELD = (Held("denoise", "unet", 5_000), Held("decode", "unet", 7), Held("decode", "vae", 9_000))


def test_what_convolutions_take_is_added_to_what_lives_in_a_decoder() -> None:
    denoise, decode = beside(PARTS, Placement(), TASK, HELD)
    weights = 2 * (GIB + GIB // 4)
    assert (denoise.traced, denoise.device) == (5_000, weights + 5_000)
    assert decode.component == "vae"
    assert (decode.living, decode.traced) == (9_000, round(9_000 * CONVOLUTION["accelerator"]["2d"]))
    assert decode.device == weights + decode.traced


def test_an_offloaded_component_is_there_alone() -> None:
    denoise, decode = beside(PARTS, Placement(cpu_offload="model"), TASK, HELD)
    assert denoise.device == 2 * GIB + 5_000
    assert decode.device == 2 * GIB + 7  # the denoiser is larger than the decoder with all that it holds


def test_the_cpu_has_the_process_in_the_same_memory() -> None:
    task = replace(TASK, device="cpu")
    here, there = (beside(PARTS, Placement(), one, HELD)[1] for one in (task, TASK))
    assert here.traced == round(9_000 * CONVOLUTION["cpu"]["2d"])
    assert here.device - here.traced == PROCESS + there.device - there.traced


@pytest.mark.parametrize(
    ("estimated", "agrees"),
    [(10 * GIB, True), (round(10 * GIB * (0.999 + WITHIN)), True), (round(10 * GIB * (1.01 + WITHIN)), False),
     (round(10 * GIB * (0.99 - WITHIN)), False)],
)  # fmt: skip
def test_agreement_is_a_matter_of_a_tenth(estimated: int, agrees: bool) -> None:
    assert Beside("decode", "vae", 10 * GIB, 10 * GIB, 10 * GIB, estimated).agrees is agrees


def test_little_is_no_disagreement() -> None:
    assert Beside("encode", "text_encoder", 1, 1, GIB, SLACK).agrees
    assert not Beside("encode", "text_encoder", 1, 1, GIB, SLACK + 2).agrees


def away() -> Pinned:
    raise DiffpipeError("the hub cannot be reached", "", Exit.FAILED)


def recipe_offline(tmp_path: Path, spec: BuildSpec) -> Recipe:
    return recipe(spec, BUILTIN["flux"].types[0], "FluxPipeline", Store(tmp_path), True, away)


def test_a_recorded_model_is_traced_without_the_hub(tmp_path: Path) -> None:
    spec = BuildSpec("flux", "text2image", "black-forest-labs/FLUX.1-dev", dtype="float16")
    made = recipe_offline(tmp_path, spec)
    assert (made.pipeline, made.dtype, made.layout["vae"]) == (
        "FluxPipeline",
        "float16",
        ("diffusers", "AutoencoderKL"),
    )
    assert made.configs["text_encoder_2"]["num_layers"] == 24  # T5-XXL's


def test_what_nothing_is_known_of_is_refused(tmp_path: Path) -> None:
    spec = BuildSpec("flux", "text2image", "black-forest-labs/FLUX.1-dev", components={"vae": "somebody/vae"})
    with pytest.raises(UsageError, match="nothing here says what vae is made of"):
        recipe_offline(tmp_path, spec)
    with pytest.raises(DiffpipeError, match="the hub cannot be reached"):
        recipe_offline(tmp_path, replace(spec, model="somebody/else"))
