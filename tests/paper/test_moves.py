"""What offloading moves to the device is what docs/memory.md says: counted on the device of paper, byte by byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

STEPS, PROMPTS = 3, ("a fox", "a cat")
# How often components work for one item. Stable Diffusion encodes the negative prompt, too, by itself.
WORK = {
    "flux": {"text_encoder": 1, "text_encoder_2": 1, "transformer": STEPS, "vae": 1},
    "stable-diffusion": {"text_encoder": 2, "unet": STEPS, "vae": 1},
}


@pytest.mark.parametrize("name", WORK)
def test_offloading_moves_what_the_docs_say(
    checkpoints: Path, on_paper: Callable[..., dict[str, Any]], name: str
) -> None:
    found = on_paper(moved, str(checkpoints / name))
    whole, working = found["whole"], found["working"]
    inputs = found["moved"].pop("none")  # what calls of a pipeline that is on the device move
    a_run = sum(working[part] * times for part, times in WORK[name].items())
    staying = sum(found["buffers"][part] * times for part, times in WORK[name].items())
    assert {way: size - inputs for way, size in found["moved"].items()} == {
        "model": sum(whole.values()),  # once, for both items of a chunk
        "model, alone": len(PROMPTS) * sum(whole.values()),
        "sequential": len(PROMPTS) * (a_run - staying),
        "group": len(PROMPTS) * a_run,
        "group, no streams": len(PROMPTS) * a_run,
    }


def moved(checkpoint: str) -> dict[str, Any]:
    """Bytes that came to the device for two items, by ways of offloading; and those of components: as a whole, and of
    what works in a run (an autoencoder's decoder), and of their buffers."""
    import torch

    from paper import device

    pipe = loaded(checkpoint)
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    found = {way: run(checkpoint, way) for way in ("none", "model", "model, alone", "sequential", "group")}
    del torch.get_device_module(device.NAME).Stream
    found["group, no streams"] = run(checkpoint, "group")
    working = {name: bytes_of(part) for name, part in parts.items()}
    quant = getattr(pipe.vae, "post_quant_conv", None)
    working["vae"] = bytes_of(pipe.vae.decoder) + (bytes_of(quant) if quant is not None else 0)
    whole = {name: bytes_of(part) for name, part in parts.items()}
    buffers = {name: sum(buffer.nbytes for buffer in part.buffers()) for name, part in parts.items()}
    return {"whole": whole, "working": working, "buffers": buffers, "moved": found}


def loaded(checkpoint: str) -> Any:
    import torch
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(checkpoint, dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def bytes_of(part: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*part.parameters(), *part.buffers()))


def run(checkpoint: str, way: str) -> int:
    """Bytes that came to the device while both prompts' pictures were made."""
    import torch

    from diffpipe.core.build_spec import Placement
    from diffpipe.engine.placement import apply, interleave
    from paper import device

    pipe = loaded(checkpoint)
    apply.apply(pipe, Placement(cpu_offload=way.partition(",")[0]), device.DEVICE)  # type: ignore[arg-type]

    def work(own: Any, prompt: str) -> None:
        own(prompt, num_inference_steps=STEPS, width=32, height=32, generator=torch.Generator().manual_seed(1))

    device.traffic.clear()
    if way == "model":
        interleave.run(pipe, [lambda own, prompt=prompt: work(own, prompt) for prompt in PROMPTS])
    else:
        for prompt in PROMPTS:
            work(pipe, prompt)
    return device.traffic.size["to"]
