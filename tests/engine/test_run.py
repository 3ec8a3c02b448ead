"""What happens around one call of a pipeline."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image

from diffpipe.core.errors import DeviceLost, DiffpipeError, Exit, UsageError
from diffpipe.core.flag import Flag
from diffpipe.core.request import Request
from diffpipe.engine.media import read_image, write_image
from diffpipe.engine.running.files import numbered
from diffpipe.engine.running.media_arguments import read_media
from diffpipe.engine.running.results import PictureResult, keep_unmasked
from diffpipe.engine.running.run import PipelineCall, run


class Pipe:
    """A pipeline of the old kind that draws the noise its generator gives."""

    device = torch.device("cpu")
    components: ClassVar[dict[str, Any]] = {}

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault = fault

    def __call__(
        self, prompt: str, num_inference_steps: int = 2, generator: Any = None, callback: Any = None
    ) -> SimpleNamespace:
        for step in range(num_inference_steps):
            callback(step, 0, None)
        if self.fault:
            raise self.fault
        noise = torch.randint(0, 255, (8, 8, 3), dtype=torch.uint8, generator=generator)
        return SimpleNamespace(images=[Image.fromarray(noise.numpy())])


def request(tmp_path: Path, seed: int) -> Request:
    return Request(0, seed, {}, (str(tmp_path / f"{seed}.png"),))


def made_by(pipe: Any, tmp_path: Path, seed: int, **options: Any) -> Path:
    """The picture that a call of a pipeline makes."""
    call = PipelineCall("image", [request(tmp_path, seed)], [{"prompt": "x"}], lambda *_: None, **options)
    ((made,),) = run(pipe, call)
    return Path(made.path)


class Slow:
    """A pipeline that makes a picture for each prompt, in as many seconds as there are prompts twice over."""

    device = torch.device("cpu")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def __call__(self, prompt: Any, generator: Any = None) -> SimpleNamespace:
        prompts = prompt if isinstance(prompt, list) else [prompt]
        self.now += 2.0 * len(prompts)
        return SimpleNamespace(images=[Image.new("RGB", (8, 8))] * len(prompts))


@pytest.mark.parametrize("count", [1, 3])
def test_an_item_of_a_call_took_its_share_of_the_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    requests = [request(tmp_path, seed) for seed in range(count)]
    call = PipelineCall("image", requests, [{"prompt": f"a cat {seed}"} for seed in range(count)], lambda *_: None)
    made = run(Slow(monkeypatch), call)  # type: ignore[arg-type]
    assert [[artifact.seconds for artifact in artifacts] for artifacts in made] == [[2.0]] * count


def test_steps_are_reported_in_the_old_form_too(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    call = {"prompt": "x", "num_inference_steps": 3}
    report = lambda done, total: seen.append((done, total))  # noqa: E731
    run(Pipe(), PipelineCall("image", [request(tmp_path, 1)], [call], report))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_seed_means_the_same_noise_whatever_ran_before(tmp_path: Path) -> None:
    pipe, written = Pipe(), []
    for seed in (5, 6, 5):
        written.append(made_by(pipe, tmp_path, seed).read_bytes())
    assert written[0] == written[2] != written[1]
    torch.manual_seed(0)
    noise = torch.randint(0, 255, (8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    with Image.open(tmp_path / "5.png") as picture:
        assert picture.tobytes() == noise.numpy().tobytes()


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), Exit.OUT_OF_MEMORY),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), Exit.OUT_OF_MEMORY),
        (MemoryError(), Exit.OUT_OF_MEMORY),
        (ValueError("height must be\nsomething else"), Exit.FAILED),
    ],
)
def test_a_failing_call_is_two_lines_and_leaves_no_file(tmp_path: Path, fault: Exception, code: Exit) -> None:
    with pytest.raises(DiffpipeError) as failed:
        made_by(Pipe(fault), tmp_path, 1)
    assert failed.value.exit_code == code
    assert "\n" not in failed.value.message
    assert failed.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lost", [True, False])
def test_a_device_that_failed_is_not_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool) -> None:
    """After such an error everything that is asked of a GPU raises it again; after others, such as one of a kernel that
    is not there, nothing does."""
    fault = torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCompile with ...")

    def synchronize() -> None:
        if lost:
            raise fault

    monkeypatch.setattr(torch, "xpu", SimpleNamespace(synchronize=synchronize, _is_in_bad_fork=lambda: True))
    torch.get_device_module.cache_clear()
    pipe = Pipe(fault)
    pipe.device = torch.device("xpu")
    with pytest.raises(DiffpipeError) as failed:
        made_by(pipe, tmp_path, 1)
    torch.get_device_module.cache_clear()
    assert (type(failed.value) is DeviceLost) is lost
    assert failed.value.message.endswith("failed: CUDA error: an illegal memory access was encountered")


def test_unmasked_pixels_stay_the_sources_own() -> None:
    source, made = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (0, 0, 8, 16))
    kept = keep_unmasked(made, {"image": source, "mask_image": mask})
    assert kept.getpixel((3, 3)) == (0, 0, 255)
    assert kept.getpixel((12, 3)) == (255, 0, 0)
    assert keep_unmasked(made, {"image": source}) is made


def test_what_draws_from_torchs_own_generator_has_the_seed_too(tmp_path: Path) -> None:
    class Careless(Pipe):
        def __call__(self, prompt: str, num_inference_steps: int = 2, **rest: Any) -> SimpleNamespace:
            noise = torch.randint(0, 255, (8, 8, 3), dtype=torch.uint8)
            return SimpleNamespace(images=[Image.fromarray(noise.numpy())])

    written = []
    for seed in (5, 6, 5):
        written.append(made_by(Careless(), tmp_path, seed).read_bytes())
    assert written[0] == written[2] != written[1]


def test_results_that_nobody_wants_any_more_are_not_written(tmp_path: Path) -> None:
    def gone() -> None:
        raise DiffpipeError("stopped")

    with pytest.raises(DiffpipeError, match="stopped"):
        made_by(Pipe(), tmp_path, 5, before_writing=gone)
    assert list(tmp_path.iterdir()) == []


def test_more_pictures_than_planned_are_numbered() -> None:
    picture, mask = (PictureResult(Image.new("RGB", (1, 1)), role=role) for role in ("", "mask"))
    assert numbered(("a.png",), [picture]) == ["a.png"]
    assert numbered(("a.png", "b.png"), [picture] * 4) == ["a.png", "b.png", "b-2.png", "b-3.png"]
    assert numbered(("a.png",), [picture, mask, mask]) == ["a.png", "a-mask.png", "a-mask-2.png"]


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_sixteen_bits_a_channel_are_scaled_not_clipped(tmp_path: Path, mode: str) -> None:
    grey = Image.new("I", (4, 4), 30_000)
    path = tmp_path / ("deep.tiff" if mode == "I" else "deep.png")
    (grey if mode == "I" else grey.convert("I;16")).save(path)
    assert read_image(path).getpixel((1, 1)) == (117, 117, 117)  # 30000 / 257, rounded


def test_a_mask_that_paints_nothing_is_refused(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 0).save(tmp_path / "mask.png")
    with pytest.raises(UsageError, match="all black"):
        read_image(tmp_path / "mask.png", mask=True)


def test_too_many_pixels_are_named_as_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (2000, 2000)).save(tmp_path / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    with pytest.raises(UsageError, match="more than 2 million pixels"):
        read_image(tmp_path / "big.png")


def test_a_picture_never_replaces_one_that_came_meanwhile(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    written = [write_image(picture, tmp_path / "x.png", overwrite=False) for picture in (red, blue, red)]
    assert [path.name for path in written] == ["x.png", "x-2.png", "x-3.png"]
    assert written[0].read_bytes() == written[2].read_bytes() != written[1].read_bytes()
    assert write_image(blue, tmp_path / "x.png", overwrite=True).read_bytes() == written[1].read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"x.png", "x-2.png", "x-3.png"}


VIDEO = {name: Flag(name, "video") for name in ("video", "mask")}


def write_masks(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        Image.new("L", (8, 8), 255).save(folder / f"{number}.png")
    return folder


def test_one_picture_is_the_mask_of_every_frame(tmp_path: Path) -> None:
    frames = write_masks(tmp_path / "frames", 3)

    read = read_media(VIDEO, {"video": str(frames), "mask": str(frames / "0.png")})

    assert [(frame.mode, frame.size) for frame in read["mask"]] == [("L", (8, 8))] * 3


@pytest.mark.parametrize(
    ("masks", "video", "says"),
    [(2, True, "--mask has 2 frames but --video has 3"), (3, False, "--mask needs a --video")],
)
def test_a_mask_that_does_not_fit_its_video_is_refused(tmp_path: Path, masks: int, video: bool, says: str) -> None:
    frames, mask = write_masks(tmp_path / "frames", 3), write_masks(tmp_path / "masks", masks)
    with pytest.raises(UsageError, match=says):
        read_media(VIDEO, {"mask": str(mask), **({"video": str(frames)} if video else {})})


PICTURE = {"image": Flag("image", "image"), "mask_image": Flag("mask_image", "mask")}


@pytest.mark.parametrize("size", [(8, 12), (12, 8), (8, 4)])
def test_a_mask_of_another_width_or_height_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    Image.new("L", size, 255).save(tmp_path / "mask.png")
    arguments = {"image": str(tmp_path / "picture.png"), "mask_image": str(tmp_path / "mask.png")}
    with pytest.raises(UsageError, match=rf"--mask-image is {size[0]} x {size[1]} but --image is 8 x 8"):
        read_media(PICTURE, arguments)
    Image.new("L", (8, 8), 255).save(tmp_path / "mask.png")
    assert read_media(PICTURE, arguments)["mask_image"].size == (8, 8)
