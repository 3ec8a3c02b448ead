"""What the functions of the rows of video do, by themselves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diffpipe.core.errors import UsageError
from diffpipe.engine.running.quirks import allegro, area, wan


class Pipe:
    """Stands for a Wan pipeline, 16 pixels and 4 frames a step: returns what it was called with."""

    vae_scale_factor_spatial, vae_scale_factor_temporal = 8, 4
    transformer = None
    transformer_2 = SimpleNamespace(config=SimpleNamespace(patch_size=(1, 2, 2)))

    def __call__(self, **arguments: Any) -> dict[str, Any]:
        return arguments


LTX = SimpleNamespace(vae_spatial_compression_ratio=32, transformer_spatial_patch_size=1)


def picture(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), "red")


@pytest.mark.parametrize(
    ("given", "asked", "made"),
    [
        ((1600, 900), (None, None), (832, 464)),  # as WanImageToVideoPipeline's example: below 480 x 832 pixels
        ((900, 1600), (None, None), (464, 832)),
        ((100, 100), (None, None), (624, 624)),
        ((1600, 900), (320, None), (320, 176)),
        ((1600, 900), (None, 320), (560, 320)),
        ((1600, 900), (64, 64), (64, 64)),
        ((4000, 10), (None, None), (12624, 32)),
    ],
)
def test_frames_have_the_proportions_of_what_is_given(
    given: tuple[int, int], asked: tuple[int | None, int | None], made: tuple[int, int]
) -> None:
    assert area.size_at_area(given, 480 * 832, 16, *asked) == made


SIDE = st.integers(64, 4096)


@given(SIDE, SIDE, st.sampled_from([16, 32]), st.integers(256 * 256, 1280 * 720))
def test_frames_are_whole_steps_and_nearly_the_area(width: int, height: int, step: int, pixels: int) -> None:
    made = area.size_at_area((width, height), pixels, step)

    assert all(side % step == 0 and side >= step for side in made)
    exact = ((pixels * width / height) ** 0.5, (pixels * height / width) ** 0.5)
    assert all(side in (step, *range(int(e) - step, int(e) + 2)) for side, e in zip(made, exact, strict=True))


def test_what_is_given_is_scaled_to_the_frames() -> None:
    found = area.call_at_area(Pipe(), {"image": picture(160, 90), "max_area": 64 * 32, "prompt": "x"})

    assert (found["width"], found["height"], found["image"].size) == (48, 32, (48, 32))
    assert found.keys() == {"image", "width", "height", "prompt"}


def test_without_a_picture_the_pipeline_decides() -> None:
    assert area.call_at_area(Pipe(), {"prompt": "x", "max_area": 64}) == {"prompt": "x"}


def test_a_token_of_wan_is_16_pixels_one_of_ltx_32() -> None:
    assert (area.frame_step(Pipe()), area.frame_step(LTX)) == (16, 32)


def clip(frames: int) -> list[Image.Image]:
    return [picture(96, 64) for _ in range(frames)]


@pytest.mark.parametrize(("given", "asked", "made"), [(9, None, 9), (12, None, 9), (1, None, 1), (9, 5, 5)])
def test_vace_makes_as_many_frames_as_the_video_has(given: int, asked: int | None, made: int) -> None:
    wanted = {"num_frames": asked} if asked else {}
    arguments = {"video": clip(given), "mask": clip(given), "max_area": 48 * 32, **wanted}

    found = wan.call_vace(Pipe(), arguments)

    assert (len(found["video"]), len(found["mask"]), found["num_frames"]) == (made, made, made)
    assert {frame.size for frame in found["video"] + found["mask"]} == {(48, 32)}


def test_vace_without_a_video_is_told_nothing() -> None:
    assert wan.call_vace(Pipe(), {"prompt": "x", "num_frames": 5, "max_area": 64}) == {
        "prompt": "x",
        "num_frames": 5,
    }


def test_vace_refuses_a_video_that_is_too_short() -> None:
    with pytest.raises(UsageError, match="--video has 9 frames but --num-frames is 81"):
        wan.call_vace(Pipe(), {"video": clip(9), "num_frames": 81, "max_area": 64})


def test_autoencoders_work_in_float32_and_allegros_in_tiles() -> None:
    decoding = SimpleNamespace(vae=torch.nn.Linear(1, 1).bfloat16(), image_encoder=None)
    wan.load_wan(decoding)
    tiled: list[bool] = []
    tiling = SimpleNamespace(vae=torch.nn.Linear(1, 1).bfloat16())
    tiling.vae.enable_tiling = lambda: tiled.append(True)
    allegro.load_allegro(tiling)

    assert (decoding.vae.weight.dtype, tiling.vae.weight.dtype, tiled) == (torch.float32, torch.float32, [True])
