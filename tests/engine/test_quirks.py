"""What the rows' own functions do, by themselves."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import clip_tokenizer, stable_diffusion_pipeline
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DPMSolverMultistepInverseScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionDiffEditPipeline,
    WuerstchenCombinedPipeline,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffpipe.catalog.families.flux import FLUX
from diffpipe.core.errors import UsageError
from diffpipe.engine.running.quirks import area, flux, stable_diffusion, upscale, wuerstchen
from diffpipe.engine.running.quirks.upscale import Tiles


class Pipe:
    """Stands for an image-to-image pipeline with 16 pixels a step: darkens every pixel by a tenth."""

    image_processor = SimpleNamespace(config=SimpleNamespace(vae_scale_factor=16))
    default_sample_size, vae_scale_factor = 8, 8

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self,
        prompt: str,
        image: Any = None,
        width: int = 0,
        height: int = 0,
        generator: Any = None,
        callback_on_step_end: Any = None,
    ) -> SimpleNamespace:
        noise = int(torch.randint(0, 10**6, (), generator=generator)) if generator else None
        self.calls.append({"image": image, "width": width, "height": height, "noise": noise})
        self._num_timesteps = 2
        for index in range(2):
            if callback_on_step_end:
                callback_on_step_end(self, index, 0, {})
        return SimpleNamespace(images=[image.point(lambda value: round(value * 0.9))])


def gradient(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x, y, (x + y) / 2], axis=-1).astype(np.uint8))


# --- Sizes


@pytest.mark.parametrize(
    ("size", "asked", "expected"),
    [
        ((48, 32), {}, (48, 32)),
        ((50, 33), {}, (48, 32)),
        ((8, 9), {}, (16, 16)),
        ((512, 128), {}, (128, 32)),  # scaled down to as many pixels as 64 x 64
        ((512, 128), {"width": 256}, (256, 64)),
        ((512, 128), {"height": 64}, (256, 64)),
        ((512, 128), {"width": 32, "height": 32}, (32, 32)),
    ],
)
def test_the_result_is_as_large_as_the_picture(
    size: tuple[int, int], asked: dict[str, int], expected: tuple[int, int]
) -> None:
    pipe = Pipe()
    area.call_at_image_size(pipe, {"prompt": "x", "image": gradient(*size), **asked})
    assert [(call["width"], call["height"]) for call in pipe.calls] == [expected]


def test_without_a_picture_the_size_is_the_pipelines_own() -> None:
    assert area.with_image_size(Pipe(), {"prompt": "x"}) == {"prompt": "x"}


def test_kontext_makes_as_many_pixels_as_asked_for() -> None:
    told: list[dict[str, Any]] = []

    class Kontext(Pipe):
        def __call__(self, **arguments: Any) -> SimpleNamespace:
            told.append(arguments)
            return SimpleNamespace(images=[])

    image = gradient(48, 32)
    flux.call_kontext(Kontext(), {"image": image, "width": 64, "height": 32})
    flux.call_kontext(Kontext(), {"image": image, "width": 64, "height": 32, "max_area": 4096})
    flux.call_kontext(Kontext(), {"image": image, "width": 96})
    flux.call_kontext(Kontext(), {"image": image})
    assert told == [
        {"image": image, "width": 64, "height": 32, "max_area": 2048},
        {"image": image, "width": 64, "height": 32, "max_area": 4096},
        {"image": image, "width": 96, "height": 64, "max_area": 6144},
        {"image": image, "width": 48, "height": 32},
    ]


# --- Upscaling

lengths = st.integers(1, 300)


@given(length=lengths, tile=st.integers(1, 200), data=st.data())
def test_tiles_cover_a_side_overlap_and_stay_within_it(length: int, tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, tile - 1))
    starts = upscale.tile_starts(length, tile, overlap)
    ends = [min(start + tile, length) for start in starts]
    assert (starts[0], ends[-1]) == (0, length)
    assert all(end - start == min(tile, length) for start, end in zip(starts, ends, strict=True))
    assert all(end - start >= overlap for start, end in zip(starts[1:], ends, strict=False))
    assert starts == sorted(set(starts))


def test_tiles_are_laid_row_by_row_and_the_last_one_moved_back() -> None:
    assert Tiles((100, 40), 48, 16).boxes() == [
        (0, 0, 48, 40),
        (32, 0, 80, 40),
        (52, 0, 100, 40),
    ]
    assert Tiles((32, 80), 48, 16).boxes() == [(0, 0, 32, 48), (0, 32, 32, 80)]


@given(length=st.integers(1, 60), rising=st.integers(0, 20), falling=st.integers(0, 20))
def test_a_ramp_rises_and_falls_and_is_never_zero(length: int, rising: int, falling: int) -> None:
    weights = upscale.ramp(length, rising, falling)
    assert len(weights) == length
    assert weights.min() > 0
    assert weights.max() <= 1
    inner = weights[rising : max(length - falling, rising)]
    assert (inner == 1).all()


@settings(deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 70),
    tile=st.integers(8, 40),
    value=st.integers(0, 255),
    data=st.data(),
)
def test_tiles_of_one_colour_blend_to_that_colour(
    width: int, height: int, tile: int, value: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, tile - 1))
    tiles = Tiles((width, height), tile, overlap)
    pieces = [
        Image.new("RGB", (right - left, bottom - top), (value,) * 3) for left, top, right, bottom in tiles.boxes()
    ]
    whole = tiles.blend(pieces)
    assert whole.size == (width, height)
    assert whole.getcolors() == [(width * height, (value,) * 3)]


def test_two_colours_blend_gradually_where_tiles_overlap() -> None:
    pieces = [Image.new("RGB", (32, 8), (shade,) * 3) for shade in (0, 170)]
    row = np.asarray(Tiles((48, 8), 32, 16).blend(pieces))[0, :, 0].tolist()
    assert row == [0] * 16 + [10 * n for n in range(1, 17)] + [170] * 16


def enlarged(pipe: Pipe, image: Image.Image, seed: int = 3, **options: Any) -> Any:
    given = {"scale": 2.0, "resample": "lanczos", "tile_size": 32, "tile_overlap": 8} | options
    generator = torch.Generator().manual_seed(seed)
    return upscale.call_upscale(pipe, {"prompt": "x", "image": image, "generator": generator, **given}).images


@pytest.mark.parametrize(
    ("size", "scale", "expected"), [((40, 24), 2.0, (80, 48)), ((33, 7), 1.5, (50, 10)), ((5, 5), 1.0, (5, 5))]
)
def test_an_enlarged_picture_has_exactly_the_size(
    size: tuple[int, int], scale: float, expected: tuple[int, int]
) -> None:
    pipe, image = Pipe(), gradient(*size)
    (made,) = enlarged(pipe, image, scale=scale)
    assert made.size == expected
    # Every tile has a size that the pipeline can make, and is told it.
    assert all((call["width"], call["height"]) == call["image"].size for call in pipe.calls)
    assert all(side % 16 == 0 for call in pipe.calls for side in call["image"].size)
    darker = np.asarray(image.resize(expected, Image.Resampling.LANCZOS), dtype=float) * 0.9
    assert np.abs(np.asarray(made, dtype=float) - darker).max() <= 1


def test_every_tile_has_its_own_noise_which_the_seed_decides() -> None:
    noises = []
    for seed in (3, 3, 4):
        pipe = Pipe()
        enlarged(pipe, gradient(40, 24), seed)
        noises.append([call["noise"] for call in pipe.calls])
    assert noises[0] == noises[1] != noises[2]
    assert len(set(noises[0])) == len(noises[0]) == 6


def test_the_steps_of_all_tiles_are_counted_together() -> None:
    totals: list[int] = []
    enlarged(Pipe(), gradient(40, 24), callback_on_step_end=lambda pipe, *_: totals.append(pipe._num_timesteps))
    assert totals == [12] * 12  # 6 tiles of 2 steps


def test_a_pipeline_that_takes_no_size_is_given_none() -> None:
    class Sizeless(Pipe):
        def __call__(self, prompt: str, image: Any, generator: Any) -> SimpleNamespace:  # type: ignore[override]
            return SimpleNamespace(images=[image])

    (made,) = enlarged(Sizeless(), gradient(40, 24), resample="nearest")
    assert made.tobytes() == gradient(40, 24).resize((80, 48), Image.Resampling.NEAREST).tobytes()


# --- Control modes


class ControlPipe(Pipe):
    def __init__(self, union: bool) -> None:
        self.controlnet = SimpleNamespace(union=union)
        self.told: dict[str, Any] = {}

    def __call__(self, **arguments: Any) -> SimpleNamespace:  # type: ignore[override]
        self.told = arguments
        return SimpleNamespace(images=[])


def test_every_control_mode_of_the_row_has_a_number() -> None:
    row = FLUX.type("controlnet")
    assert row is not None
    choices = (row.flags["control_mode"] or {})["choices"]
    told = []
    for mode in choices:
        pipe = ControlPipe(union=True)
        flux.call_flux_controlnet(pipe, {"control_image": gradient(48, 32), "control_mode": mode})
        told.append((pipe.told["control_mode"], pipe.told["width"], pipe.told["height"]))
    assert told == [(number, 48, 32) for number in range(7)]


@pytest.mark.parametrize(
    ("union", "mode", "says"), [(True, None, "--control-mode is missing"), (False, "canny", "takes no --control-mode")]
)
def test_a_control_mode_is_for_unions(union: bool, mode: str | None, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        flux.call_flux_controlnet(ControlPipe(union), {"control_image": gradient(48, 32), "control_mode": mode})


# --- Attend and Excite


def test_words_are_found_in_the_prompt_as_tokens() -> None:
    tokenizer = clip_tokenizer()  # a token for each letter
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("a cat, a frog").input_ids)
    found = stable_diffusion.token_indices(tokenizer, "a cat, a frog", ["frog", "cat"])
    assert [tokens[index] for index in found] == ["f", "r", "o", "g</w>", "c", "a", "t</w>"]
    assert found == [7, 8, 9, 10, 2, 3, 4]


def test_a_phrase_is_found_whole() -> None:
    assert stable_diffusion.token_indices(clip_tokenizer(), "a cat a dog", ["a dog"]) == [5, 6, 7, 8]


@pytest.mark.parametrize("word", ["dog", "ca", "", "cat frog"])
def test_a_word_that_the_prompt_does_not_have_is_named(word: str) -> None:
    with pytest.raises(UsageError, match=f"--words {word}: the prompt does not have it"):
        stable_diffusion.token_indices(clip_tokenizer(), "a cat and a frog", [word])


@pytest.mark.parametrize(("prompt", "indices"), [("a cat", [2, 3, 4]), (["a cat", "the cat"], [[2, 3, 4], [4, 5, 6]])])
def test_attention_is_looked_at_where_it_is_for_the_size(prompt: str | list[str], indices: list[Any]) -> None:
    told: dict[str, Any] = {}

    class Attending(Pipe):
        tokenizer = clip_tokenizer()

        def __call__(self, **arguments: Any) -> None:  # type: ignore[override]
            told.update(arguments)

    given = {"prompt": prompt, "words": ["cat"], "width": 768, "height": 520, "thresholds": {"0": 0.1, "10": 1}}
    stable_diffusion.call_attend_excite(Attending(), given)
    assert told == {
        "prompt": prompt,
        "token_indices": indices,
        "width": 768,
        "height": 520,
        "attn_res": (17, 24),  # 520 / 32 rounded up, as the UNet's strided convolutions do
        "thresholds": {0: 0.1, 10: 1.0},
    }


# --- DiffEdit


@pytest.mark.parametrize(
    ("shipped", "forward", "inverse"),
    [
        (DDIMScheduler, DDIMScheduler, DDIMInverseScheduler),
        (EulerDiscreteScheduler, DDIMScheduler, DDIMInverseScheduler),
        (DPMSolverMultistepScheduler, DPMSolverMultistepScheduler, DPMSolverMultistepInverseScheduler),
    ],
)
def test_diffedit_gets_a_scheduler_and_its_inverse(shipped: type, forward: type, inverse: type) -> None:
    parts = stable_diffusion_pipeline().components
    del parts["image_encoder"]
    scheduler = shipped.from_config(parts["scheduler"].config)  # type: ignore[attr-defined]
    pipe = StableDiffusionDiffEditPipeline(
        **{**parts, "scheduler": scheduler}, inverse_scheduler=None, requires_safety_checker=False
    )
    stable_diffusion.load_diffedit(pipe)
    assert (type(pipe.scheduler), type(pipe.inverse_scheduler)) == (forward, inverse)
    assert pipe.scheduler.config.beta_start == pipe.inverse_scheduler.config.beta_start == 0.00085


# --- Wuerstchen


def test_the_steps_of_both_stages_are_the_pipelines_own_unless_asked_for() -> None:
    parameters = inspect.signature(WuerstchenCombinedPipeline.__call__).parameters
    own = [parameters[name].default for name in ("prior_num_inference_steps", "num_inference_steps")]
    assert own == [wuerstchen.PRIOR_STEPS, wuerstchen.DECODER_STEPS]
