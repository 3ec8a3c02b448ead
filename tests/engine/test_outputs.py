"""diffpipe.engine.classes.outputs: what pipelines return, in the forms of diffusers' own output classes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from diffpipe.core.errors import DiffpipeError
from diffpipe.engine.classes.outputs import (
    example_fps,
    frames_of,
    images_of,
    kind_of,
    output_arguments,
    output_fields,
    sound_of,
    sound_rate,
)

diffusers = pytest.importorskip("diffusers")
np = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")
torch = pytest.importorskip("torch")


@pytest.mark.parametrize(
    ("class_name", "fields", "kind"),
    [
        ("FluxPipeline", ("images",), "image"),
        ("StableDiffusionPipeline", ("images", "nsfw_content_detected"), "image"),
        ("AmusedPipeline", ("images",), "image"),
        ("KandinskyCombinedPipeline", ("images",), "image"),  # calls other pipelines: the docstring says
        ("Kandinsky5T2IPipeline", ("image",), "image"),
        ("StableDiffusionLDM3DPipeline", ("rgb", "depth", "nsfw_content_detected"), "image"),
        ("MarigoldDepthPipeline", ("prediction", "uncertainty", "latent"), "image"),
        ("UniDiffuserPipeline", ("images", "text"), "image"),
        ("WanPipeline", ("frames",), "video"),
        ("AllegroPipeline", ("frames",), "video"),
        ("EasyAnimatePipeline", ("frames",), "video"),  # its docstring names an output of pictures
        ("LTX2Pipeline", ("frames", "audio"), "video"),
        ("Cosmos3OmniPipeline", ("video", "sound", "action"), "video"),
        ("AudioLDM2Pipeline", ("audios",), "audio"),
        ("FluxPriorReduxPipeline", ("prompt_embeds", "pooled_prompt_embeds"), None),
        ("LLaDA2Pipeline", ("sequences", "texts"), None),
        ("VersatileDiffusionPipeline", (), None),
    ],
)
def test_the_kind_of_output_is_read_from_the_class(class_name: str, fields: tuple[str, ...], kind: str | None) -> None:
    found = output_fields(getattr(diffusers, class_name))

    assert (found, kind_of(found)) == (fields, kind)


def test_a_sound_with_its_spectrogram_is_a_sound() -> None:
    assert kind_of(("audios", "images")) == "audio"  # AudioDiffusionPipeline


@pytest.mark.parametrize(
    ("class_name", "fps"),
    [("WanPipeline", 16), ("AllegroPipeline", 15), ("CogVideoXPipeline", 8), ("LTX2Pipeline", None)],
)
def test_frames_a_second_of_the_classs_example(class_name: str, fps: float | None) -> None:
    assert example_fps(getattr(diffusers, class_name)) == fps


def test_what_returns_nothing_readable_by_default_is_told_otherwise() -> None:
    assert output_arguments(diffusers.StableDiffusionLDM3DPipeline) == {"output_type": "np"}
    assert output_arguments(diffusers.LTXI2VLongMultiPromptPipeline) == {"output_type": "pil"}
    assert output_arguments(diffusers.LTXPipeline) == {}
    assert output_arguments(diffusers.FluxPriorReduxPipeline) == {}


def picture(color: Any, mode: str = "RGB") -> Any:
    return Image.new(mode, (4, 2), color)


def levels(pictures: list[Any]) -> list[tuple[str, tuple[int, int], Any]]:
    return [(p.mode, p.size, p.getpixel((0, 0))) for p in pictures]


RED = ("RGB", (4, 2), (255, 0, 0))
GREY = ("RGB", (4, 2), (128, 128, 128))


def video(shape: tuple[int, ...], channel: int = -1) -> Any:
    """All red, in 0..1; `channel` is the axis of the colours."""
    array = np.zeros(shape, dtype=np.float32)
    np.moveaxis(array, channel, 0)[0] = 1.0
    return array


@pytest.mark.parametrize(
    ("frames", "count"),
    [
        ([[picture("red")] * 2] * 2, 2),
        ([picture("red")] * 2, 1),
        (video((2, 2, 2, 4, 3)), 2),
        (video((2, 2, 4, 3)), 1),
        ([video((2, 2, 4, 3))], 1),
        (torch.from_numpy(video((2, 2, 3, 2, 4), channel=2)).bfloat16(), 2),
        (torch.from_numpy(video((2, 3, 2, 4), channel=1)), 1),
    ],
    ids=["pil", "pil-alone", "array", "array-alone", "arrays", "tensor", "tensor-alone"],
)
def test_videos_in_every_form(frames: Any, count: int) -> None:
    found = frames_of(SimpleNamespace(frames=frames))

    assert [levels(one) for one in found] == [[RED, RED]] * count


def test_values_are_rounded_and_clipped_to_bytes() -> None:
    array = np.array([-0.5, 0.5, 1.5], dtype=np.float32)[:, None, None, None] * np.ones((3, 2, 4, 3), np.float32)

    (frames,) = frames_of(SimpleNamespace(frames=array))

    assert [frame.getpixel((0, 0))[0] for frame in frames] == [0, 128, 255]


@pytest.mark.parametrize("level", [np.nan, np.inf])
def test_a_video_of_no_numbers_is_an_error(level: float) -> None:
    with pytest.raises(DiffpipeError, match="no numbers"):
        frames_of(SimpleNamespace(frames=np.full((1, 2, 2, 4, 3), level)))


def test_no_video_is_an_error() -> None:
    with pytest.raises(DiffpipeError, match="made no video"):
        frames_of(SimpleNamespace(frames=[]))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"images": [picture("gray"), picture("gray")]}, [GREY, GREY]),
        ({"images": [[picture((v,) * 4, "RGBA") for v in (9, 8)]]}, [("RGBA", (4, 2), (v,) * 4) for v in (9, 8)]),
        ({"images": video((2, 2, 4, 3))}, [RED, RED]),
        ({"image": [picture("gray")]}, [GREY]),
        ({"images": np.full((1, 2, 4, 1), 0.5)}, [("L", (4, 2), 128)]),
        ({"rgb": video((1, 2, 4, 3)), "depth": np.zeros((1, 2, 4))}, [RED]),
    ],
    ids=["pil", "layers", "array", "image", "grey", "ldm3d"],
)
def test_pictures_in_every_form(fields: dict[str, Any], expected: list[Any]) -> None:
    assert levels(images_of(SimpleNamespace(), SimpleNamespace(**fields))) == expected


def test_no_pictures_is_an_error() -> None:
    with pytest.raises(DiffpipeError, match="made no pictures"):
        images_of(SimpleNamespace(), SimpleNamespace(images=None, text=["a cat"]))


@pytest.mark.parametrize(("kind", "channels"), [("Depth", 1), ("Normals", 3)])
def test_predictions_are_drawn_by_their_own_processor(kind: str, channels: int) -> None:
    from diffusers.pipelines.marigold.marigold_image_processing import MarigoldImageProcessor

    processor = MarigoldImageProcessor(vae_scale_factor=8)
    pipe = type(f"Marigold{kind}Pipeline", (), {"image_processor": processor})()
    ramp = np.linspace(0, 1, 2 * 2 * 4 * channels, dtype=np.float32).reshape(2, 2, 4, channels)

    found = images_of(pipe, SimpleNamespace(prediction=ramp))

    drawn = getattr(processor, f"visualize_{kind.lower()}")(ramp)
    assert [np.asarray(p).tolist() for p in found] == [np.asarray(p).tolist() for p in drawn]
    assert [(p.mode, p.size) for p in found] == [("RGB", (4, 2))] * 2


def config(**values: Any) -> SimpleNamespace:
    return SimpleNamespace(config=SimpleNamespace(**values))


@pytest.mark.parametrize(
    ("pipe", "rate"),
    [
        (SimpleNamespace(vocoder=config(sampling_rate=16000), vae=config(sample_size=512)), 16000),
        (SimpleNamespace(audio_sampling_rate=16000, vocoder=config(output_sampling_rate=24000)), 24000),
        (SimpleNamespace(vae=config(sampling_rate=44100)), 44100),
        (SimpleNamespace(sample_rate=48000, vae=config(sampling_rate=44100)), 48000),
        (SimpleNamespace(audio_sample_rate=44100, vocoder=config()), 44100),
        (SimpleNamespace(sound_tokenizer=config(sampling_rate=48000)), 48000),
        (SimpleNamespace(unet=config(sample_rate=16000)), 16000),
        (SimpleNamespace(mel=SimpleNamespace(get_sample_rate=lambda: 22050)), 22050),
        (SimpleNamespace(vae=config()), None),
    ],
    ids=["audioldm", "ltx2", "stable-audio", "ace-step", "kandinsky6", "cosmos3", "dance", "audio-diffusion", "none"],
)
def test_the_rate_of_the_sound(pipe: Any, rate: int | None) -> None:
    assert sound_rate(pipe) == rate


PIPE = SimpleNamespace(vocoder=config(sampling_rate=16000))


@pytest.mark.parametrize(
    ("fields", "shapes"),
    [
        ({"audios": np.zeros((2, 5))}, [(1, 5), (1, 5)]),
        ({"audios": np.zeros((1, 2, 5))}, [(2, 5)]),
        ({"frames": [], "audio": torch.zeros(1, 2, 5, dtype=torch.bfloat16)}, [(2, 5)]),
        ({"video": [], "sound": torch.zeros(2, 5)}, [(2, 5)]),
        ({"frames": [], "audio": None}, []),
        ({"frames": []}, []),
    ],
    ids=["mono", "stereo", "with-video", "no-batch", "none", "no-field"],
)
def test_sounds_in_every_form(fields: dict[str, Any], shapes: list[tuple[int, int]]) -> None:
    sounds = sound_of(PIPE, SimpleNamespace(**fields))

    assert [(s.samples.shape, s.samples.dtype, s.rate) for s in sounds] == [(s, np.float32, 16000) for s in shapes]


def test_a_sound_of_no_numbers_is_an_error() -> None:
    with pytest.raises(DiffpipeError, match="no numbers"):
        sound_of(PIPE, SimpleNamespace(audios=np.full((1, 5), np.nan)))


def test_a_sound_without_a_rate_is_an_error() -> None:
    with pytest.raises(DiffpipeError, match="SimpleNamespace does not say the sample rate"):
        sound_of(SimpleNamespace(), SimpleNamespace(audios=np.zeros((1, 5))))
