"""Sizes, predicted peaks, the automatic choice, refusals and the step-down order, all without a GPU or weights."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import memory_docs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_docs import MEMORY, PUBLIC, chosen, estimated, on_the_cpu, parts_of, task_of

from diffpipe.cache.measured import Case, Measured
from diffpipe.core.build_spec import Placement
from diffpipe.core.choices import CpuOffload
from diffpipe.core.components import kind_of
from diffpipe.core.device_names import DeviceKind
from diffpipe.core.errors import UsageError
from diffpipe.core.parsing import Fields
from diffpipe.memory import knobs, ladder
from diffpipe.memory.estimate import (
    BYTES,
    LIBRARIES,
    PROCESS,
    Task,
    correction,
    moving,
    peaks,
    quantized_names,
    unknown,
    usable,
    weight_bytes,
    weights,
)
from diffpipe.memory.ladder import Known
from diffpipe.memory.plan import MARGIN, Machine, candidates, needed, option, plan, slow_down
from diffpipe.memory.recorded import recorded
from diffpipe.memory.sizes import Sizes, is_linear, read_sizes, set_steps

MODELS = tuple(recorded())
FLUX = parts_of("flux-dev")
TASK = task_of("flux-dev")
GIB = 1 << 30
PLACEMENTS = st.builds(
    Placement,
    vae_tiling=st.booleans(),
    vae_slicing=st.booleans(),
    attention_slicing=st.booleans(),
    layerwise_casting=st.booleans(),
    cpu_offload=st.sampled_from(["none", "model", "group", "sequential"]),
    quantize=st.sampled_from(["none", "fp8", "int8", "int4"]),
    quantize_backend=st.sampled_from(["quanto", "torchao"]),
)


def part(model: str, name: str) -> Sizes:
    return next(part for part in parts_of(model) if part.name == name)


# Predictions against the world


@pytest.mark.parametrize("way", PUBLIC)
def test_public_figures_of_flux(way: str) -> None:
    loaded, peak = estimated(way)
    assert loaded == pytest.approx(PUBLIC[way][0], rel=0.05)
    assert peak == pytest.approx(PUBLIC[way][1], rel=0.15)


@pytest.mark.parametrize(("model", "side", "dtype", "measured"), memory_docs.MEASURED)
def test_host_memory_measured_here(model: str, side: int, dtype: str, measured: float) -> None:
    assert on_the_cpu(model, side, dtype) == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(
    ("model", "component", "billions"),
    [
        ("flux-dev", "transformer", 11.90),
        ("flux-dev", "text_encoder_2", 4.76),
        ("flux-dev", "text_encoder", 0.123),
        ("flux-dev", "vae", 0.084),
        ("qwen-image", "transformer", 20.43),
        ("qwen-image", "text_encoder", 8.29),
        ("sdxl", "unet", 2.567),
        ("sd3.5-large", "transformer", 8.15),
        ("wan2.1-14b", "transformer", 14.29),
        ("wan2.1-14b", "text_encoder", 5.68),
        ("audioldm2", "unet", 0.347),
    ],
)
def test_recorded_parameters_are_the_published_ones(model: str, component: str, billions: float) -> None:
    assert (part(model, component).parameters or 0) / 1e9 == pytest.approx(billions, rel=0.005)


def test_quantized_weights_of_flux_against_bfloat16() -> None:
    transformer = part("flux-dev", "transformer")
    plain = weight_bytes(transformer, "plain", "bfloat16")
    ratios = {mode: weight_bytes(transformer, mode, "bfloat16") / plain for mode in ("fp8", "int8", "int4", "cast")}
    assert ratios == pytest.approx({"fp8": 0.500, "int8": 0.500, "int4": 0.266, "cast": 0.636}, abs=0.001)


def test_tokens_of_each_family() -> None:
    counted = {
        model: memory_docs.estimate.tokens(next(p for p in parts_of(model) if p.kind == "denoiser"), task_of(model))
        for model in MODELS
    }
    assert counted == {
        "flux-dev": 64 * 64,
        "qwen-image": 64 * 64,
        "sdxl": 128 * 128,
        "sd3.5-large": 64 * 64,
        "wan2.1-14b": 21 * 30 * 52,
        "audioldm2": 256 * 16,
        "sd1.4": 64 * 64,
        "z-image": 64 * 64,
        "flux2-dev": 64 * 64,
        "amused-512": 32 * 32,
        "wuerstchen": 25 * 25,
        "audioldm": 128 * 16,
    }


def test_tiling_helps_where_the_picture_is_larger_than_a_tile() -> None:
    vae = part("flux-dev", "vae")
    small, large = replace(TASK, width=512, height=512), replace(TASK, width=2048, height=2048)
    plain, tiled = Placement(), Placement(vae_tiling=True)
    assert moving(vae, tiled, small) == moving(vae, plain, small)
    assert moving(vae, tiled, large) < moving(vae, plain, large) / 10


# Sizes


def test_a_linear_is_a_matrix_of_no_embedding() -> None:
    shapes = {
        "transformer_blocks.0.norm1.linear.weight": (12, 4),
        "blocks.0.attn1.to_q.weight": (4, 4),
        "shared.weight": (8, 4),
        "text_model.embeddings.token_embedding.weight": (8, 4),
        "h.0.attn.c_attn.weight": (4, 12),
        "proj_out.weight": (4, 4),
        "lm_head.weight": (8, 4),
        "conv_in.weight": (4, 4, 3, 3),
        "conv_in.bias": (4,),
    }
    assert [name for name, shape in shapes.items() if is_linear(name, shape)] == [
        "transformer_blocks.0.norm1.linear.weight",
        "blocks.0.attn1.to_q.weight",
    ]


def test_sizes_read_from_shapes() -> None:
    shapes = {"blocks.0.to_q.weight": (8, 4), "blocks.1.to_q.weight": (16, 4), "norm_out.linear.weight": (2, 4)}
    sizes = read_sizes("transformer", "AnyTransformer", shapes, {"num_attention_heads": 2, "attention_head_dim": 2})
    assert sizes == Sizes(
        "transformer", "AnyTransformer", "denoiser", parameters=104, linear=104, rows=26, cast=96,
        block=64, outside=8, layer=64, live=68, besides=68 * 512, largest=64,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("transformer", "vae", "step"),
    [
        ({"patch_size": 1, "in_channels": 64}, {"block_out_channels": [1, 2, 3, 4], "latent_channels": 16}, 16),
        ({"patch_size": 2, "in_channels": 16}, {"block_out_channels": [1, 2, 3, 4], "latent_channels": 16}, 16),
        ({"patch_size": [1, 2, 2], "in_channels": 16}, {"base_dim": 96, "z_dim": 16}, 16),
        ({"patch_size": 1, "in_channels": 128},
            {"spatio_temporal_scaling": [1, 1, 1, 0], "patch_size": 4, "latent_channels": 128}, 32),
        ({"in_channels": 9, "out_channels": 4}, {"block_out_channels": [1, 2, 3, 4], "latent_channels": 4}, 8),
        ({"in_channels": 768}, {"block_out_channels": [1, 2, 3, 4, 5], "latent_channels": 64}, 16),
        ({"all_patch_size": [2], "in_channels": 16}, {"block_out_channels": [1, 2, 3, 4], "latent_channels": 16}, 16),
    ],
    ids=["flux", "sd3", "wan", "ltx", "inpainting U-Net", "amused", "z-image"],
)  # fmt: skip
def test_pixels_to_a_token(transformer: dict[str, Any], vae: dict[str, Any], step: int) -> None:
    parts = (read_sizes("transformer", "T", {"a": (1,)}, transformer), read_sizes("vae", "V", {"a": (1,)}, vae))
    assert set_steps(parts, {"transformer": transformer, "vae": vae})[0].step == step


def test_what_components_do() -> None:
    kinds = {
        "denoiser": ("transformer", "transformer_2", "unet", "prior", "prior_prior"),
        "guide": ("controlnet", "adapter", "motion_adapter"),
        "encoder": ("text_encoder", "text_encoder_3", "prior_text_encoder", "image_encoder", "language_model"),
        "decoder": ("vae", "vqvae", "vqgan"),
        "other": ("vocoder", "audio_vae", "safety_checker"),
    }
    assert {kind: tuple(n for n in names if kind_of(n) == kind) for kind, names in kinds.items()} == kinds


def test_a_guide_is_on_the_device_with_the_denoiser() -> None:
    guide = Sizes("controlnet", "FluxControlNetModel", kind_of("controlnet"), parameters=10**9)
    for offload in ("none", "model"):
        placement = Placement(cpu_offload=offload)  # type: ignore[arg-type]
        alone, both = ({p.stage: p.device for p in peaks(parts, placement, TASK)} for parts in (FLUX, (*FLUX, guide)))
        assert both["denoise"] - alone["denoise"] == 2 * 10**9


def test_the_formula_is_near_what_was_recorded() -> None:
    """A model that nobody recorded is predicted by LIVE: the recorded transformers lie within it."""
    widths = {"flux-dev": 3072, "qwen-image": 3072, "sd3.5-large": 2432, "wan2.1-14b": 5120}
    ratios = {model: part(model, "transformer").live / width for model, width in widths.items()}
    assert all(10 < ratio < 18 for ratio in ratios.values()), ratios


# The automatic choice


def test_the_page_of_choices_is_current() -> None:
    assert memory_docs.FILE.read_text("utf-8") == memory_docs.text()


@pytest.mark.parametrize(("model", "memory"), itertools.product(MODELS, MEMORY))
def test_the_automatic_choice(model: str, memory: int) -> None:
    made = chosen(model, memory)
    parts, task, there = parts_of(model), task_of(model), Machine("accelerator", memory << 30)
    fitting = [one for p in candidates(parts, task, Placement(memory="auto"))
        if (one := option(p, parts, task, there)).fits]  # fmt: skip
    assert made.chosen.fits
    assert made.chosen.peak <= usable(memory << 30, "accelerator")
    assert made.chosen.slow_down <= MARGIN * min(one.slow_down for one in fitting)
    assert not made.chosen.placement.attention_slicing
    if option(Placement(), parts, task, there).fits:  # fully resident when it fits
        assert made.chosen.placement == Placement(memory="auto")
    if made.chosen.placement.cpu_offload != "none":  # nothing is offloaded that would fit
        resident = [one for one in fitting if one.placement.cpu_offload == "none"]
        assert not [one for one in resident if one.placement.quantize == "none" and not one.placement.layerwise_casting]
        assert all(one.slow_down > MARGIN * made.chosen.slow_down for one in resident)


def test_a_plan_weighs_few_placements() -> None:
    """It is made in milliseconds: twelve billion parameters take no longer than twelve."""
    assert len(list(candidates(FLUX, replace(TASK, batch=2), Placement(memory="auto")))) < 100


def test_when_nothing_fits_it_says_what_would() -> None:
    made = plan(FLUX, TASK, Machine("accelerator", GIB), Placement(memory="auto"))
    assert not made.chosen.fits
    assert usable(made.needed, "accelerator") == pytest.approx(made.chosen.peak, rel=1e-6)
    assert made.reason.startswith("nothing fits: the smallest, ")
    assert plan(FLUX, TASK, Machine("accelerator", made.needed + GIB), Placement(memory="auto")).chosen.fits


def test_host_memory_counts_too() -> None:
    placement = plan(FLUX, TASK, Machine("accelerator", 12 * GIB, 16 * GIB), Placement(memory="auto")).chosen.placement
    assert (placement.cpu_offload, placement.quantize) == ("none", "int4")


def test_where_the_memory_is_the_hosts_offloading_saves_nothing() -> None:
    """On Apple's and integrated GPUs what is kept in host memory takes of the same memory."""
    for size in (48, 64):
        made = plan(FLUX, TASK, Machine("accelerator", size * GIB, size * GIB, shared=True), Placement(memory="auto"))
        assert made.chosen.fits
        assert made.chosen.placement.cpu_offload == "none"
        both = max(peak.device + peak.host for peak in made.chosen.peaks)
        assert both <= usable(size * GIB, "accelerator")
        assert usable(made.needed, "accelerator") == pytest.approx(both, rel=1e-6)


def test_manual_keeps_exactly_the_switches() -> None:
    asked = Placement(cpu_offload="model", vae_tiling=True)
    made = plan(FLUX, TASK, Machine("accelerator", 12 * GIB), asked)
    assert (made.chosen.placement, made.chosen.fits) == (asked, False)
    assert made.reason == "it does not fit into 12.0 GiB; layerwise casting, group offload would (--memory auto)"


def test_automatic_keeps_the_switches_that_were_given() -> None:
    made = plan(FLUX, TASK, Machine("accelerator", 24 * GIB), Placement(memory="auto", cpu_offload="model"))
    assert {one.placement.cpu_offload for one in made.alternatives} == {"model"}


def test_unknown_is_said_and_never_zero() -> None:
    parts = (*FLUX, Sizes("controlnet", "FluxControlNetModel", "other"))
    assert unknown(parts) == ("controlnet",)
    assert plan(parts, TASK, Machine("accelerator", 80 * GIB), Placement(memory="auto")).unknown == ("controlnet",)
    assert "controlnet" not in weights(parts, Placement(), "bfloat16")
    with pytest.raises(ValueError, match="controlnet"):
        weight_bytes(parts[-1], "plain", "bfloat16")


@given(placement=PLACEMENTS, side=st.sampled_from([512, 1024, 2048]), batch=st.integers(1, 4))
def test_larger_needs_more_and_offloading_needs_less(placement: Placement, side: int, batch: int) -> None:
    def peak(placement: Placement, side: int, batch: int) -> int:
        return option(
            placement, FLUX, replace(TASK, width=side, height=side, batch=batch), Machine("accelerator", 0)
        ).peak

    assert peak(placement, side, batch) <= peak(placement, 2 * side, batch)
    assert peak(placement, side, batch) <= peak(placement, side, batch + 1)
    assert peak(replace(placement, cpu_offload="none"), side, batch) >= peak(placement, side, batch)
    assert peak(replace(placement, vae_tiling=True, vae_slicing=True), side, batch) <= peak(placement, side, batch)
    assert slow_down(FLUX, placement, TASK) >= 1.0


@given(memory=st.integers(0, 1 << 40), device=st.sampled_from(["accelerator", "cpu"]))
def test_what_is_needed_is_the_inverse_of_what_is_usable(memory: int, device: DeviceKind) -> None:
    peak = usable(memory, device)
    assert not peak or needed(peak, device) == pytest.approx(memory, abs=2)


# Measured peaks

DECODE = Case("decode", 1024, 1024, 1, 1, "bfloat16", "accelerator", Placement())


def test_a_measured_peak_corrects_the_prediction() -> None:
    predicted = {peak.stage: peak for peak in peaks(FLUX, Placement(), TASK)}
    true = predicted["decode"].device + predicted["decode"].moving // 2
    near = Measured(DECODE, true, None)
    far = Measured(replace(DECODE, width=2048), 10 * true, None)
    other = Measured(replace(DECODE, dtype="float32"), 2 * true, None)
    factors = correction([far, near, other], FLUX, TASK)
    assert factors == {"decode": pytest.approx(1.5)}
    corrected = {peak.stage: peak.device for peak in peaks(FLUX, Placement(), TASK, factors)}
    assert corrected["decode"] == pytest.approx(true, rel=1e-6)
    assert corrected["denoise"] == predicted["denoise"].device


def test_of_peaks_equally_near_the_largest_decides() -> None:
    predicted = next(peak for peak in peaks(FLUX, Placement(), TASK) if peak.stage == "decode")
    measured = [Measured(DECODE, predicted.device + more * predicted.moving, None) for more in (0, 1)]
    for order in (measured, measured[::-1]):
        assert correction(order, FLUX, TASK) == {"decode": pytest.approx(2.0)}


def test_a_measured_peak_of_no_use_is_passed_over() -> None:
    useless = [
        Measured(DECODE, 1000, None),
        Measured(DECODE, None, 1000),
        Measured(replace(DECODE, stage="load"), 1, 1),
    ]
    assert correction(useless, FLUX, TASK) == {}


# Switches


@pytest.mark.parametrize("row", knobs.COMBINATIONS, ids=lambda row: row.title)
def test_a_combination_that_does_not_work_is_refused_and_another_named(row: knobs.Combination) -> None:
    device = row.devices[0] if row.devices else "accelerator"
    pipeline = f"{row.pipelines[0]}Pipeline" if row.pipelines else ""
    for values in itertools.product(*row.where.values()):
        placement = Placement(**dict(zip(row.where, values, strict=True)))
        found = knobs.refused(placement, pipeline, device)
        assert found is not None
        with pytest.raises(UsageError) as caught:
            knobs.check(placement, pipeline, device)
        fields = knobs.working(placement, pipeline, device)
        assert (caught.value.exit_code, caught.value.hint) == (2, f"use {knobs.options(fields)}")
        assert fields.items() >= found.instead.items()
        knobs.check(replace(placement, **fields), pipeline, device)


@given(
    placement=PLACEMENTS, pipeline=st.sampled_from(["FluxPipeline", ""]), device=st.sampled_from(["accelerator", "cpu"])
)
def test_for_every_combination_there_is_one_that_works(placement: Placement, pipeline: str, device: DeviceKind) -> None:
    knobs.check(replace(placement, **knobs.working(placement, pipeline, device)), pipeline, device)


def test_what_works_is_not_refused() -> None:
    for placement in (
        Placement(quantize="int8", cpu_offload="group"),
        Placement(quantize="int4", cpu_offload="model"),
        Placement(quantize="fp8", cpu_offload="sequential"),
        Placement(quantize="int8", quantize_backend="torchao", layerwise_casting=True, cpu_offload="group"),
        Placement(layerwise_casting=True, cpu_offload="group"),
        Placement(cpu_offload="sequential"),
        Placement(quantize="int4", vae_tiling=True),
    ):
        knobs.check(placement, "StableDiffusion3Pipeline")


def test_switches_a_pipeline_cannot_take_are_left_out_with_a_notice() -> None:
    parts = (
        Sizes("transformer", "ZImageTransformer2DModel", "denoiser", parameters=1),
        Sizes("vae", "AutoencoderKLTemporalDecoder", "decoder", parameters=1),
    )
    asked = Placement(layerwise_casting=True, vae_slicing=True, vae_tiling=True, cpu_offload="model")
    assert knobs.takable(asked, parts) == (
        Placement(cpu_offload="model"),
        (
            "--vae-slicing is left out: AutoencoderKLTemporalDecoder has none",
            "--vae-tiling is left out: AutoencoderKLTemporalDecoder has none",
            "--layerwise-casting is left out: ZImageTransformer2DModel: it reads a weight's number format before it "
            "calls the layer",
        ),
    )


def test_what_is_quantized_already_is_not_quantized_again() -> None:
    parts = (
        replace(part("flux-dev", "transformer"), quantized="bitsandbytes", stored=6 * GIB),
        replace(part("flux-dev", "text_encoder_2"), quantized="bitsandbytes", stored=2 * GIB),
    )
    placement, notices = knobs.takable(Placement(quantize="int8"), parts)
    assert (placement, notices) == (
        Placement(),
        ("--quantize is left out: what it would quantize is quantized already",),
    )
    assert quantized_names(parts, Placement(quantize="int8")) == frozenset()
    assert weights(parts, Placement(quantize="int8"), "bfloat16") == {
        "transformer": 6 * GIB,
        "text_encoder_2": 2 * GIB,
    }


def test_the_classes_without_slicing_and_tiling_are_those_of_diffusers() -> None:
    import inspect

    import diffusers

    without: dict[str, set[str]] = {"use_slicing": set(), "use_tiling": set()}
    for name in dir(diffusers):
        cls = getattr(diffusers, name)
        if isinstance(cls, type) and ".autoencoders." in cls.__module__ and issubclass(cls, diffusers.ModelMixin):
            source = inspect.getsource(cls)
            for switch, names in without.items():
                if f"self.{switch}" not in source:
                    names.add(name)
    assert without == {"use_slicing": knobs.UNSLICED, "use_tiling": knobs.UNTILED}


def climbed(placement: Placement, known: Known, *, loading: bool = False) -> list[Placement]:
    """The placements that a run steps down through."""
    found = []
    following: Placement | None = placement
    while (following := ladder.next_step(following, known, loading=loading)) is not None:
        found.append(following)
    return found


def steps(placement: Placement, known: Known, *, loading: bool = False) -> list[str]:
    return [knobs.describe(one) for one in climbed(placement, known, loading=loading)]


SDXL = Known("StableDiffusionXLPipeline", parts_of("sdxl"))
SLICED = "VAE tiling, VAE slicing, attention slicing"


def test_the_order_of_stepping_down() -> None:
    assert steps(Placement(), SDXL) == [
        "VAE tiling, VAE slicing",
        SLICED,
        f"model offload, {SLICED}",
        f"group offload, {SLICED}",
        f"layerwise casting, group offload, {SLICED}",
        f"sequential offload, {SLICED}",
    ]
    assert steps(Placement(), replace(SDXL, device="cpu")) == [
        "VAE tiling, VAE slicing",
        SLICED,
        f"layerwise casting, {SLICED}",
        f"int8, {SLICED}",
        f"int4, {SLICED}",
    ]


def test_weights_that_are_stored_quantized_stay_so() -> None:
    stored = replace(SDXL, stored=True)
    offloads = [f"int8, {way} offload" for way in ("model", "group", "sequential")]
    assert steps(Placement(quantize="int8"), stored, loading=True) == offloads
    assert steps(Placement(quantize="int8"), stored)[2:] == [f"{step}, {SLICED}" for step in offloads]


def test_what_helps_nothing_while_loading_is_not_taken_there() -> None:
    offloads = ["model offload", "group offload", "layerwise casting, group offload", "sequential offload"]
    assert steps(Placement(), SDXL, loading=True) == offloads
    assert steps(Placement(vae_tiling=True), SDXL, loading=True) == [f"{step}, VAE tiling" for step in offloads]


def test_what_a_pipeline_cannot_take_is_left_out_for_a_reason() -> None:
    def why(placement: Placement, known: Known) -> dict[str, str]:
        return {step.name: step.why for step in ladder.steps_from(placement, known) if step.why}

    bare = Known("AmusedPipeline", (Sizes("vqvae", "VQModel", "decoder"),), ordered=False, slices=False, stored=True)
    assert why(Placement(), bare) == {
        "VAE slicing and tiling": "VQModel has none",
        "attention slicing": "no component of AmusedPipeline computes attention in slices",
        "model offload": "AmusedPipeline does not say in which order its components work",
        "layerwise casting": "this pipeline has no transformer or U-Net",
        "quantization to int8": "the weights are stored as they are",
        "quantization to int4": "the weights are stored as they are",
    }
    on_cpu = why(Placement(), replace(SDXL, device="cpu"))
    assert on_cpu == dict.fromkeys(
        ("model offload", "group offload", "sequential offload"), "it needs another device than the CPU"
    )
    assert why(Placement(), replace(SDXL, float8=False)) == {"layerwise casting": "the device has no float8"}
    pinned = "compiled code pins quantized weights"
    compiled = why(Placement(quantize="int8"), replace(SDXL, compiled=True))
    assert compiled["group offload"] == pinned
    assert "sequential offload" not in compiled
    in_groups = why(Placement(cpu_offload="group"), replace(SDXL, compiled=True))
    assert [in_groups[f"quantization to {mode}"] for mode in ("int8", "int4")] == [pinned, pinned]
    last = why(Placement(cpu_offload="sequential"), SDXL)
    enough = "with sequential offload no more than a layer is on the device"
    assert last == {
        "model offload": ladder.ON,
        "group offload": ladder.ON,
        "layerwise casting": enough,
        "sequential offload": ladder.ON,
        "quantization to int8": enough,
        "quantization to int4": enough,
    }


@given(
    placement=PLACEMENTS,
    model=st.sampled_from(MODELS),
    device=st.sampled_from(["accelerator", "cpu"]),
    truths=st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
)
def test_stepping_down_ends_and_takes_every_step_that_works(
    placement: Placement, model: str, device: DeviceKind, truths: tuple[bool, bool, bool, bool]
) -> None:
    ordered, slices, stored, loading = truths
    pipeline = recorded()[model].pipeline
    known = Known(pipeline, parts_of(model), device, ordered=ordered, slices=slices, stored=stored)
    seen = [placement, *climbed(placement, known, loading=loading)]
    assert len(seen) == len(set(seen)) <= 1 + len(ladder.STEPS)
    for before, after in itertools.pairwise(seen):
        assert knobs.refused(after, pipeline, device) is None
        assert after.quantize == before.quantize or not stored
        changed = {name for name in ladder.IN_PLACE if getattr(before, name) != getattr(after, name)}
        assert not (changed and loading)
    left = list(ladder.steps_from(seen[-1], known, loading=loading))
    assert [step.name for step in left] == [name for name, _ in ladder.STEPS]
    assert all(step.why and step.placement is None for step in left)


def test_a_placement_survives_json() -> None:
    placement = Placement(quantize="int8", quantize_components=("transformer",), vae_tiling=True)
    assert Placement.from_json(Fields(placement.to_json())) == placement
    assert Placement().to_json() == {}
    assert [Sizes.from_json(Fields(part.to_json())) for part in FLUX] == list(FLUX)


def test_what_is_in_files_as_it_is_loaded_is_mapped_once_it_is_used() -> None:
    kept = weights(FLUX, Placement(), "bfloat16")
    stages = {peak.stage: peak for peak in peaks(FLUX, Placement(), replace(TASK, device="cpu"))}
    used = {
        "load": 0,
        "encode": kept["text_encoder"] + kept["text_encoder_2"],
        "denoise": sum(kept.values()) - kept["vae"],
        "decode": sum(kept.values()),
    }
    assert {stage: peak.mapped - LIBRARIES for stage, peak in stages.items()} == used
    assert {peak.own - peak.moving for peak in stages.values()} == {PROCESS - LIBRARIES}


def test_what_is_converted_is_the_process_s_own() -> None:
    stages = peaks(FLUX, Placement(), replace(TASK, device="cpu", dtype="float32"))
    whole = sum(weights(FLUX, Placement(), "float32").values())
    assert {peak.own - peak.moving for peak in stages} == {PROCESS - LIBRARIES + whole}
    read = max(part.stored or 0 for part in FLUX)  # the file that is read meanwhile
    assert [peak.mapped - LIBRARIES for peak in stages] == [read, 0, 0, 0]


@pytest.mark.parametrize(("offload", "share"), [("none", 0), ("model", 0), ("group", 0), ("sequential", 1)])
def test_what_is_mapped_behind_a_gpu(offload: CpuOffload, share: int) -> None:
    """Model offload brings back copies and group offload pins them; sequential offload copies from the files."""
    kept = weights(FLUX, Placement(), "bfloat16")
    load, *stages = peaks(FLUX, Placement(cpu_offload=offload), TASK)
    assert {peak.mapped for peak in stages} == {LIBRARIES + share * sum(kept.values())}
    through = max(kept.values()) if offload == "none" else sum(kept.values())
    assert load.mapped == LIBRARIES + through


def test_files_that_are_read_once_need_not_fit_into_host_memory() -> None:
    small = Machine("accelerator", 80 * GIB, 8 * GIB)
    one = option(Placement(), FLUX, TASK, small)
    assert (one.fits, one.host > small.host) == (True, True)
    assert not option(Placement(), FLUX, replace(TASK, dtype="float32"), small).fits


def test_a_part_that_its_row_loads_in_float32_does_so_whatever_the_dtype() -> None:
    vae = part("wan2.1-14b", "vae")
    assert vae.dtype == "float32"
    task = task_of("wan2.1-14b")
    each = [replace(task, dtype=dtype) for dtype in ("bfloat16", "float16", "float32")]
    assert {weights([vae], Placement(), one.dtype)["vae"] for one in each} == {4 * (vae.parameters or 0)}
    (held,) = {moving(vae, Placement(), one) for one in each}
    assert held == pytest.approx(2 * moving(replace(vae, dtype=""), Placement(), task), abs=2)  # rounded before


def test_float32_takes_twice_as_much() -> None:
    assert BYTES["float32"] == 2 * BYTES["bfloat16"]
    half, full = (peaks(FLUX, Placement(), replace(TASK, dtype=dtype)) for dtype in ("bfloat16", "float32"))
    assert full[0].device == 2 * half[0].device


def test_two_halves_of_guidance_are_one_batch_where_the_pipeline_does_so() -> None:
    assert [Task(f"{name}Pipeline").halves for name in ("Flux", "Wan", "StableDiffusionXL")] == [1, 1, 2]
