"""Numbers that are not finite are an error with advice, and no file: for pictures, videos and sounds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import stable_diffusion_pipeline
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image

from diffpipe.core.errors import DiffpipeError, Exit
from diffpipe.core.request import Artifact, Request
from diffpipe.engine.running.preview import Observer, Preview
from diffpipe.engine.running.run import PipelineCall, run
from diffpipe.runners.outcomes import outcomes_of

NAN, INF = float("nan"), float("inf")


def request(folder: Path, seed: int, ending: str = "png") -> Request:
    return Request(0, seed, {}, (str(folder / f"{seed}.{ending}"),))


def make(pipe: Any, requests: list[Request], kind: Any = "image", **arguments: Any) -> list[list[Artifact]]:
    call = PipelineCall(kind, requests, [{"prompt": f"a fox {n}", **arguments} for n in requests], lambda *_: None)
    return run(pipe, call)


class Decoder(torch.nn.Module):
    """Latents as they are, but for what `spoil` makes of them."""

    def __init__(self, spoil: Any) -> None:
        super().__init__()
        self.spoil, self.weight = spoil, torch.nn.Parameter(torch.zeros(1))

    def decode(self, latents: torch.Tensor, return_dict: bool = True) -> Any:
        return (self.spoil(latents),)


class Noise:
    """A pipeline that decodes its generators' noise and clips it, as diffusers does, into whatever `give` makes."""

    def __init__(self, spoil: Any, give: Any, shape: tuple[int, ...] = (3, 8, 8)) -> None:
        self.components = {"vae": Decoder(spoil), "tokenizer": None}
        self.give, self.shape = give, shape

    def __call__(self, prompt: Any, generator: Any = None) -> Any:
        noise = [
            torch.rand(self.shape, generator=one) for one in (generator if isinstance(prompt, list) else [generator])
        ]
        return self.give(self.components["vae"].decode(torch.stack(noise), return_dict=False)[0].clamp(0, 1))


def pictures(values: torch.Tensor) -> Any:
    with np.errstate(invalid="ignore"):
        arrays = (values.permute(0, 2, 3, 1).numpy() * 255).round().astype("uint8")
    return SimpleNamespace(images=[Image.fromarray(array) for array in arrays])


def frames(values: torch.Tensor) -> Any:
    return SimpleNamespace(frames=[[pictures(values[:, :, n]).images[0] for n in range(values.shape[2])]])


def put(value: float) -> Any:
    """Spoils one number of all."""

    def spoiled(latents: torch.Tensor) -> torch.Tensor:
        made = latents.clone()
        made.flatten()[17] = value
        return made

    return spoiled


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize(("give", "shape", "kind"), [(pictures, (3, 8, 8), "image"), (frames, (3, 5, 8, 8), "video")])
def test_one_number_that_is_not_finite_is_enough(
    tmp_path: Path, value: float, give: Any, shape: Any, kind: Any
) -> None:
    with pytest.raises(DiffpipeError, match="the vae made numbers that are not finite in float32") as failed:
        make(Noise(put(value), give, shape), [request(tmp_path, 3, "mp4" if kind == "video" else "png")], kind)
    assert (failed.value.exit_code, bool(failed.value.hint), list(tmp_path.iterdir())) == (Exit.FAILED, True, [])


@pytest.mark.parametrize("value", [NAN, INF])
def test_sound_that_is_not_finite_is_an_error(tmp_path: Path, value: float) -> None:
    give = lambda values: SimpleNamespace(audios=values.flatten(1))  # noqa: E731
    pipe: Any = Noise(put(value), give)
    pipe.sample_rate = 8000
    with pytest.raises(DiffpipeError, match="silence or noise"):
        make(pipe, [request(tmp_path, 3, "wav")], "audio")
    pipe.components = {}
    pipe.give = None
    pipe.__class__ = type(
        "Vocoder",
        (Noise,),
        {"__call__": lambda self, prompt, generator=None: SimpleNamespace(audios=np.full((1, 9), value))},
    )
    with pytest.raises(DiffpipeError, match="no numbers"):
        make(pipe, [request(tmp_path, 3, "wav")], "audio")
    assert list(tmp_path.iterdir()) == []


def test_a_vocoder_is_watched_like_a_decoder(tmp_path: Path) -> None:
    class Speech(Noise):
        def __call__(self, prompt: Any, generator: Any = None) -> Any:
            return SimpleNamespace(audios=self.components["vocoder"](torch.ones(1, 9)).detach().clamp(-1, 1).numpy())

    pipe: Any = Speech(None, None)
    pipe.components, pipe.sample_rate = {"vocoder": torch.nn.Linear(9, 9)}, 8000
    make(pipe, [request(tmp_path, 3, "wav")], "audio")
    pipe.components["vocoder"].bias.data[4] = INF  # clipped to a sample of full scale
    with pytest.raises(DiffpipeError, match="the vocoder made numbers that are not finite in float32"):
        make(pipe, [request(tmp_path, 4, "wav")], "audio")
    assert [path.name for path in tmp_path.iterdir()] == ["3.wav"]


def test_in_a_batch_only_the_item_with_such_numbers_fails(tmp_path: Path) -> None:
    first = torch.rand((3, 8, 8), generator=torch.Generator().manual_seed(6))[0, 0, 0]
    pipe = Noise(lambda latents: torch.where((latents[:, :1, :1, :1] == first), NAN, latents), pictures)
    outcomes = outcomes_of([request(tmp_path, seed) for seed in (5, 6, 7)], lambda group: make(pipe, group))
    assert [bool(one.error) for one in outcomes] == [False, True, False]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5.png", "7.png"]
    (alone,) = outcomes_of([request(tmp_path / "alone", 7)], lambda group: make(pipe, group))
    assert Path(alone.artifacts[0].path).read_bytes() == (tmp_path / "7.png").read_bytes()


def test_finite_numbers_change_nothing(tmp_path: Path) -> None:
    pipe = Noise(lambda latents: latents, pictures)
    for _ in range(2):  # decoders are watched from the first call on
        make(pipe, [request(tmp_path, 4)])
    wanted = torch.rand((3, 8, 8), generator=torch.Generator().manual_seed(4)).permute(1, 2, 0).numpy()
    for name in ("4.png", "4-2.png"):
        with Image.open(tmp_path / name) as made:
            assert (np.asarray(made) == (wanted * 255).round()).all()


@pytest.fixture(scope="module")
def painter() -> Any:
    pipe = stable_diffusion_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_vae_that_overflows_in_half_precision(painter: Any, tmp_path: Path) -> None:
    weight = painter.vae.decoder.conv_in.weight
    before = weight.detach().clone()
    try:
        weight.data *= 1e6
        make(painter, [request(tmp_path, 7)], num_inference_steps=1)  # in float32 it is a picture
        with pytest.raises(DiffpipeError, match="the vae made numbers that are not finite in float16") as failed:
            make(painter.to(torch.float16), [request(tmp_path, 8)], num_inference_steps=1)
    finally:
        painter.to(torch.float32)
        painter.vae.decoder.conv_in.weight.data = before
    assert "--dtype bfloat16 or float32" in failed.value.hint
    assert "--component vae=SOURCE" in failed.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["7.png"]


@pytest.mark.parametrize(("dtype", "advice"), [(torch.bfloat16, "--dtype float32"), (torch.float32, "verify")])
def test_a_denoiser_that_makes_nan_is_named(painter: Any, tmp_path: Path, dtype: Any, advice: str) -> None:
    bias = painter.unet.conv_out.bias
    before = bias.detach().clone()
    try:
        bias.data[0] = NAN
        with pytest.raises(DiffpipeError, match="the unet made numbers that are not finite in ") as failed:
            make(painter.to(dtype), [request(tmp_path, 7)], num_inference_steps=1)
    finally:
        painter.to(torch.float32)
        painter.unet.conv_out.bias.data = before
    assert advice in failed.value.hint


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_pipeline_of_pixels_has_its_denoiser_watched(tmp_path: Path, value: float) -> None:
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "layers_per_block": 1}
    unet = UNet2DModel(8, 3, 3, block_out_channels=(8,), norm_num_groups=4, **blocks)
    pipe = DDPMPipeline(unet, DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    call = lambda seed: PipelineCall("image", [request(tmp_path, seed)], [{"num_inference_steps": 2}], lambda *_: None)  # noqa: E731
    run(pipe, call(1))
    unet.conv_out.bias.data[0] = value
    with pytest.raises(DiffpipeError, match="the unet made numbers"):
        run(pipe, call(2))
    assert [path.name for path in tmp_path.iterdir()] == ["1.png"]


@pytest.mark.parametrize("decode", [False, True])
def test_a_preview_of_such_latents_is_excused_and_the_call_goes_on(
    painter: Any, decode: bool, caplog: pytest.LogCaptureFixture
) -> None:
    shown: list[Any] = []
    watch = Observer(painter, {}, Preview(shown.append, every=1, decode=decode))
    latents = torch.zeros(1, 4, 4, 4)
    watch.step(1, 4, put(NAN)(latents))
    watch.step(2, 4, put(INF)(latents))
    assert not shown
    assert [record.getMessage() for record in caplog.records] == ["no preview: ValueError: the latents are not finite"]
    watch.step(3, 4, latents)
    assert len(shown) == 1
