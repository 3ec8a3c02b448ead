"""Previews: latents are laid out as the decoder takes them, without noise, in the right colours; results stay."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Cli, Warm
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2Pipeline,
    FluxPipeline,
    LTXPipeline,
    QwenImagePipeline,
)
from PIL import Image

from diffpipe.engine.running import colours
from diffpipe.engine.running.latents import Decoder, Scale, decoder_of, unpacked
from diffpipe.engine.running.preview import Observer, Preview, denoised

UNSCALED = Scale(1.0, 0.0)


class Call:
    """A pipeline as far as its call's defaults count."""

    def __call__(self, num_frames: int = 9) -> None: ...


def decoder(channels: int, *, frames: bool = False, scale: Scale = UNSCALED, **vae: Any) -> Decoder:
    return Decoder(SimpleNamespace(config={}, **vae), channels, frames, scale)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pipeline", [FluxPipeline, QwenImagePipeline])
def test_packed_latents_are_laid_out_again(pipeline: Any) -> None:
    whole = noise(2, 16, 6, 10)
    packed = pipeline._pack_latents(whole, 2, 16, 6, 10)
    found = unpacked(packed, decoder(16), {"height": 48, "width": 80}, Call())
    assert torch.equal(found[:, :, 0], whole)


def test_the_grid_follows_the_picture_that_is_changed_and_is_square_without_one() -> None:
    whole = noise(1, 4, 4, 8)
    packed = FluxPipeline._pack_latents(whole, 1, 4, 4, 8)
    arguments = {"prompt": "x", "image": Image.new("RGB", (640, 320))}
    assert torch.equal(unpacked(packed, decoder(4), arguments, Call())[:, :, 0], whole)
    assert unpacked(packed, decoder(4), {"prompt": "x"}, Call()) is None  # 8 tokens are no square


def test_a_videos_tokens_are_frames_of_a_grid() -> None:
    whole = noise(1, 8, 3, 4, 6)
    packed = LTXPipeline._pack_latents(whole, 1, 1)
    video = decoder(8, frames=True, temporal_compression_ratio=4)
    found = unpacked(packed, video, {"height": 128, "width": 192, "num_frames": 9}, Call())
    assert torch.equal(found, whole)
    assert torch.equal(unpacked(packed, video, {"height": 128, "width": 192}, Call()), whole)  # 9 frames by default


def test_frames_first_and_the_decoders_own_scale() -> None:
    whole = noise(1, 4, 3, 5, 7)
    std, mean = torch.tensor([1.0, 2, 3, 4]), torch.tensor([0.0, 1, 0, 1])
    found = unpacked(whole.transpose(1, 2), decoder(4, frames=True, scale=Scale(std, mean)), {}, Call())
    assert torch.allclose(found, whole * std.view(1, 4, 1, 1, 1) + mean.view(1, 4, 1, 1, 1))


def test_flux2_is_whitened_patch_by_patch() -> None:
    norm = torch.nn.BatchNorm2d(32, affine=False)
    norm.running_mean, norm.running_var = noise(32), noise(32).abs() + 0.1
    whole = noise(1, 8, 6, 6)
    patched = Flux2Pipeline._patchify_latents(whole)
    white = (patched - norm.running_mean.view(1, -1, 1, 1)) / (norm.running_var + norm.eps).sqrt().view(1, -1, 1, 1)
    found = unpacked(Flux2Pipeline._pack_latents(white), decoder(8, bn=norm), {"height": 48, "width": 48}, Call())
    assert torch.allclose(found[:, :, 0], whole, atol=1e-5)


def test_latents_of_another_kind_are_not_drawn() -> None:
    assert unpacked(noise(1, 5, 6, 6), decoder(4), {}, Call()) is None
    assert unpacked(noise(1, 7, 64), decoder(16), {}, Call()) is None
    assert decoder_of(SimpleNamespace()) is None


SCHEDULERS: dict[str, Any] = {
    "flow": (lambda: FlowMatchEulerDiscreteScheduler(), lambda x0, eps, level: eps - x0),
    "euler": (lambda: EulerDiscreteScheduler(), lambda x0, eps, level: eps),
    "dpm": (lambda: DPMSolverMultistepScheduler(solver_order=1), lambda x0, eps, level: eps),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_step_tells_where_it_leads(name: str) -> None:
    make, output = SCHEDULERS[name]
    scheduler: Any = make()
    scheduler.set_timesteps(6)
    clean, eps = noise(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    sigma = float(scheduler.sigmas[0])
    alpha, level = {
        "flow": (1 - sigma, sigma),
        "euler": (1.0, sigma),
        "dpm": (1 / (1 + sigma**2) ** 0.5, sigma / (1 + sigma**2) ** 0.5),
    }[name]
    sample, before = alpha * clean + level * eps, None
    for time in scheduler.timesteps[:3]:
        scheduler.scale_model_input(sample, time) if name == "euler" else None
        after = scheduler.step(output(clean, eps, level), time, sample).prev_sample
        if before is not None:
            assert torch.allclose(denoised(scheduler, before, after), clean, atol=1e-3)
        sample = before = after


@pytest.fixture(scope="module")
def vae() -> Any:
    torch.manual_seed(0)
    return AutoencoderKL(block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, scaling_factor=0.5, shift_factor=0.1)  # fmt: skip


def test_the_map_finds_colours_that_are_in_the_latents() -> None:
    """An encoder whose latents are a linear mixture of the colours: the fit must give them back."""
    mixture = torch.tensor([[1.0, 0.5, 0], [0, 1, 0.5], [0.5, 0, 1], [1, 1, 1]])

    class Mixing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config, self.weight = {}, torch.nn.Parameter(mixture)

        def encode(self, pictures: Any) -> Any:
            small = torch.nn.functional.interpolate(pictures, scale_factor=1 / 8, mode="area")
            return SimpleNamespace(latents=torch.einsum("lr,brhw->blhw", self.weight, small))

    fitted = colours.fitted(Decoder(Mixing(), 4, False, Scale(1.0, 0.0)), torch.device("cpu"))
    assert fitted
    drawn = torch.rand(1, 3, 5, 6) * 2 - 1
    found = fitted(torch.einsum("lr,brhw->blhw", mixture, drawn))
    assert torch.allclose(found, drawn / 2 + 0.5, atol=0.02)


def test_numbers_that_are_not_finite_are_told_once_and_cost_nothing(vae: Any, caplog: Any) -> None:
    class Broken(Call):
        pass

    pipe: Any = Broken()
    pipe.vae, pipe._execution_device, pipe.scheduler = vae, torch.device("cpu"), SimpleNamespace()
    shown: list[Any] = []
    watch = Observer(pipe, {}, Preview(shown.append, every=1))
    for step in (1, 2, 3):
        watch.step(step, 4, noise(1, 9, 2, 2))
    assert shown == []
    assert [record.getMessage() for record in caplog.records] == [
        "no preview: ValueError: latents of shape (1, 9, 2, 2) are not understood"
    ]


def test_every_so_many_steps_and_not_the_last(vae: Any) -> None:
    pipe: Any = Call()
    pipe.vae, pipe._execution_device, pipe.scheduler = vae, torch.device("cpu"), SimpleNamespace()
    for every, steps in ((2, [2, 4, 6]), (None, [1, 2, 3, 4, 5, 6, 7]), (8, [])):
        shown: list[Any] = []
        watch = Observer(pipe, {}, Preview(shown.append, every=every))
        seen = []
        for step in range(1, 9):
            before = len(shown)
            watch.step(step, 8, noise(2, 4, 8, 12))
            seen += [step] if len(shown) > before else []
        assert seen == steps


def test_two_results_of_a_call_lie_side_by_side_and_decoding_is_exact(vae: Any) -> None:
    pipe: Any = Call()
    pipe.vae, pipe._execution_device, pipe.scheduler = vae, torch.device("cpu"), SimpleNamespace()
    latents, shown = noise(2, 4, 8, 12), []
    Observer(pipe, {}, Preview(shown.append, every=1)).step(1, 4, latents)
    Observer(pipe, {}, Preview(shown.append, every=1, decode=True)).step(1, 4, latents)
    assert shown[0].size == (24 * 2, 8 * 2)
    with torch.no_grad():
        whole = (vae.decode(latents / 0.5 + 0.1).sample / 2 + 0.5).clamp(0, 1)
    exact = (torch.cat([*whole], dim=2).permute(1, 2, 0).numpy() * 255).round().astype("uint8")
    assert shown[1] == Image.fromarray(exact)


@pytest.fixture(scope="module")
def demo(warm: Warm) -> Warm:
    warm("build", "demo", check=True)
    return warm


CALL = ("generate", "demo", "--prompt", "a panda on a yellow background", "--seed", "4")


def test_previews_do_not_change_the_result(demo: Warm, tmp_path: Path) -> None:
    for name, more in (("plain", ()), ("seen", ("--preview", "p.png", "--preview-every", "1"))):
        demo(*CALL, "-o", f"{name}.png", *more, cwd=tmp_path, check=True)
    digests = {hashlib.sha256((tmp_path / f"{name}.png").read_bytes()).hexdigest() for name in ("plain", "seen")}
    assert len(digests) == 1
    with Image.open(tmp_path / "p.png") as preview, Image.open(tmp_path / "seen.png") as made:
        assert preview.size == made.size == (128, 128)
        middle, corner = (preview.convert("RGB").getpixel(at) for at in ((64, 40), (5, 5)))
        wanted = made.convert("RGB").getpixel((5, 5))
    assert max(abs(a - b) for a, b in zip(corner, wanted, strict=True)) < 60  # the background's yellow
    assert min(middle) > 180  # the panda's white forehead


def test_a_preview_is_replaced_and_nothing_else_is(demo: Warm, tmp_path: Path) -> None:
    (tmp_path / "mine.png").write_bytes(b"mine")
    Image.new("RGB", (8, 8)).save(tmp_path / "own.png")
    for name in ("mine.png", "own.png"):
        refused = demo(*CALL, "--preview", name, cwd=tmp_path)
        assert (refused.returncode, "is no preview" in refused.stderr) == (2, True)
    for _ in range(2):
        demo(*CALL, "-o", "x.png", "--overwrite", "--preview", "again.png", cwd=tmp_path, check=True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--preview", "x.txt"), "is no picture's name"),
        (("--preview-every", "2"), "need --preview"),
        (("--contact-sheet", "x.gif"), "is no picture's name"),
        (("--contact-sheet", "there.png"), "is there already"),
        (("--gallery", "there.png"), "is a file"),
        (("--gallery", "page"), "is no gallery of diffpipe"),
    ],
)
def test_what_cannot_be_shown_is_refused_before_loading(
    demo: Warm, cli: Cli, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    (tmp_path / "there.png").write_bytes(b"")
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text("<html>mine</html>")
    refused = cli.light(*CALL, *arguments, cwd=tmp_path)
    assert (refused.returncode, says in refused.stderr) == (2, True), refused.stderr


def test_a_terminal_preview_needs_a_terminal(demo: Warm, tmp_path: Path) -> None:
    done = demo(*CALL, "-o", "x.png", "--preview", "terminal", cwd=tmp_path, check=True)
    assert "standard error is no terminal" in done.stderr
    assert done.stdout == "x.png\n"
