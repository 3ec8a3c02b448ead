"""What a pipeline returns, whatever its class calls it: pictures, videos as lists of frames, sounds."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection, Iterable, Mapping
from functools import reduce
from typing import TYPE_CHECKING

from ...core.errors import DiffpipeError
from ...core.flag import OutputKind
from ..media import Sound
from ..seams.diffusers_source_seam import example_fps, output_fields

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from diffusers import DiffusionPipeline
    from PIL import Image

    Array = npt.NDArray[np.generic]

__all__ = [
    "example_fps",
    "flags_of",
    "frames_of",
    "images_of",
    "kind_of",
    "output_arguments",
    "output_fields",
    "sound_of",
]

# The fields of diffusers 0.42's output classes. `rgb` is LDM3D's (its depth comes out wrong or not at all, in every
# output type), `prediction` Marigold's; `video` and `sound` are those of Cosmos 3.
VIDEO_FIELDS = ("frames", "video", "videos")
SOUND_FIELDS = ("audios", "audio", "sound")
IMAGE_FIELDS = ("images", "image", "rgb", "prediction")
# What checkers say of each result, and in which words. What they flag comes back black.
FLAGS = {
    "nsfw_content_detected": "not safe for work",  # Stable Diffusion's kin
    "nsfw_detected": "not safe for work",  # DeepFloyd IF
    "watermark_detected": "watermarked",  # DeepFloyd IF
}


def kind_of(fields: Collection[str]) -> OutputKind | None:
    """What an output with these fields is; None where it is nothing to see or hear (embeddings, text).

    A video with sound is a video; a sound with its spectrogram (AudioDiffusionPipeline) is a sound.
    """
    kinds: tuple[tuple[OutputKind, tuple[str, ...]], ...] = (
        ("video", VIDEO_FIELDS),
        ("audio", SOUND_FIELDS),
        ("image", IMAGE_FIELDS),
    )
    return next((kind for kind, names in kinds if not set(names).isdisjoint(fields)), None)


@functools.cache  # reading source takes 20 ms
def output_arguments(pipeline: type) -> Mapping[str, str]:
    """Call arguments without which nothing readable comes back: the output_type for pipelines that return latents by
    default (LTX' long videos), and for LDM3D, which fails to make PIL images of its depths."""
    output_type = inspect.signature(pipeline.__call__).parameters.get("output_type")
    if output_type is None:
        return {}
    if "rgb" in output_fields(pipeline):
        return {"output_type": "np"}
    return {"output_type": "pil"} if output_type.default == "latent" else {}


def images_of(pipe: DiffusionPipeline, output: object) -> list[Image.Image]:
    """Every picture of an output as PIL images, in order; layers and batches one after another.

    Depth, normals and the like (Marigold) come in the colours their own pipeline draws them in. Raises DiffpipeError
    where there are none.
    """
    if (prediction := _field(output, ("prediction",))) is not None:
        return _visualized(pipe, prediction)
    value = _field(output, IMAGE_FIELDS)
    pictures = _pictures(value) if value is not None else []
    if not pictures:
        raise DiffpipeError(f"{type(pipe).__name__} made no pictures", "check the arguments (--help lists them)")
    return pictures


def frames_of(output: object) -> list[list[Image.Image]]:
    """The videos of an output, each a list of PIL images; one for each of num_videos_per_prompt.

    Read are lists of PIL images, arrays (batch, frames, height, width, channels) and tensors (batch, frames, channels,
    height, width) in 0..1; the batch may be left out. Raises DiffpipeError where there are none.
    """
    value = _field(output, VIDEO_FIELDS)
    videos = list(value) if isinstance(value, Iterable) else []
    if not videos:
        raise DiffpipeError("the pipeline made no video", "check the arguments (--help lists them)")
    batched = isinstance(videos[0], list) or getattr(videos[0], "ndim", 0) == 4
    return [_pictures(video) for video in (videos if batched else [value])]


def sound_of(pipe: DiffusionPipeline, output: object) -> list[Sound]:
    """The sounds of an output, one for each of num_waveforms_per_prompt (or video); [] where it has none.

    Read are arrays and tensors (batch, samples) and (batch, channels, samples), and what Cosmos 3 returns without a
    batch. Raises DiffpipeError where a sample is no number, or where the pipeline does not say its rate.
    """
    import numpy as np

    value = _field(output, SOUND_FIELDS)
    if value is None:
        return []
    rate = sound_rate(pipe)
    if rate is None:
        raise DiffpipeError(f"{type(pipe).__name__} does not say the sample rate of its sound", "report this class")
    waves = np.asarray(_array(value), dtype=np.float32)
    if hasattr(output, "sound"):
        waves = waves[None]
    _check_numbers(waves, "the sound")
    return [Sound(np.atleast_2d(wave), rate) for wave in waves]


def flags_of(output: object, count: int) -> list[str]:
    """What the checkers of a pipeline take each of so many results for, "" for nothing.

    Where they say more or fewer things (of each frame of a video), or one for all, any of it goes for every result.
    """
    said = [(words, _truths(_field(output, (field,)))) for field, words in FLAGS.items()]
    flagged = [(words, found if len(found) == count else [any(found)] * count) for words, found in said]
    return [" and ".join(dict.fromkeys(words for words, found in flagged if found[n])) for n in range(count)]


def _truths(value: object) -> list[bool]:
    """A flag, or any nesting of lists or arrays of them, as a list; None counts as one that says no."""
    if isinstance(value, Iterable):
        return [truth for one in value for truth in _truths(one)]
    return [bool(value)]


# Where pipelines keep the rate of what they return. The vocoder has the last word on its sound: LTX2's audio_vae works
# at 16 kHz below a vocoder that writes 24.
RATES = (
    "audio_sample_rate",  # Kandinsky 6
    "sample_rate",  # ACE-Step, LongCat
    "vocoder.config.output_sampling_rate",  # LTX2
    "vocoder.config.sampling_rate",  # AudioLDM, AudioLDM2, MusicLDM
    "sound_tokenizer.config.sampling_rate",  # Cosmos 3
    "vae.config.sampling_rate",  # Stable Audio
    "unet.config.sample_rate",  # Dance Diffusion
)


def sound_rate(pipe: DiffusionPipeline) -> int | None:
    """Samples a second of the sound that a loaded pipeline makes; None where it does not say."""
    found = (reduce(lambda part, name: getattr(part, name, None), path.split("."), pipe) for path in RATES)
    rate = next((value for value in found if value), None)
    if rate is None and hasattr(pipe, "mel"):  # AudioDiffusionPipeline
        rate = pipe.mel.get_sample_rate()
    return int(rate) if rate else None


def _field(output: object, names: Collection[str]) -> object:
    """The first of an output's fields that is there; an output without a batch dimension may hold None."""
    values = (output.get(name) if isinstance(output, Mapping) else getattr(output, name, None) for name in names)
    return next((value for value in values if value is not None), None)


def _array(value: object) -> Array:
    """An array, or a tensor as a float32 array on the CPU (NumPy has no bfloat16)."""
    import numpy as np
    import torch

    return value.detach().cpu().float().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _pictures(value: object) -> list[Image.Image]:
    """PIL images of a picture, an array or tensor of one or many, or any nesting of lists of those."""
    import torch
    from PIL import Image

    if isinstance(value, Image.Image):
        return [value]
    if isinstance(value, list | tuple):
        return [picture for item in value for picture in _pictures(item)]
    return _drawn(_array(value), channels_first=isinstance(value, torch.Tensor))


def _drawn(array: Array, *, channels_first: bool) -> list[Image.Image]:
    """An array (…, height, width, channels) of values in 0..1, or of bytes, as PIL images."""
    import numpy as np

    if channels_first and array.shape[-3] in (1, 3, 4):
        array = np.moveaxis(array, -3, -1)
    return [_picture(values) for values in array.reshape(-1, *array.shape[-3:])]


def _picture(values: Array) -> Image.Image:
    """One picture of an array: by itself, since a copy of all of a video's frames is large."""
    import numpy as np
    from PIL import Image

    if values.dtype != np.uint8:
        _check_numbers(values, "a picture")
        values = (values.clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)


def _check_numbers(values: Array, what: str) -> None:
    import numpy as np

    if not np.isfinite(values).all():
        raise DiffpipeError(f"{what} came out with values that are no numbers", "build again with --dtype float32")


def _visualized(pipe: DiffusionPipeline, prediction: object) -> list[Image.Image]:
    """Marigold's predictions as pictures: (N, H, W, 1) depths, (N, H, W, 3) normals, or a row of intrinsic images."""
    processor, kind = pipe.image_processor, type(pipe).__name__
    if "Intrinsics" in kind:
        sets = processor.visualize_intrinsics(prediction, pipe.target_properties)
        return [picture for one in sets for picture in one.values()]
    drawn = processor.visualize_normals(prediction) if "Normals" in kind else processor.visualize_depth(prediction)
    return list(drawn)
