"""Write a Flux folder whose transformer has a billion random parameters (2 GB), to measure loading and quantizing on.

    python tools/make_large_flux.py FOLDER [--double 2] [--single 2]

The transformer is as wide as the released one (3072), with fewer blocks; the other components are the tests' tiny ones.
The file is written tensor by tensor from one block of random numbers: some seconds, and 200 MB of memory.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel

from diffpipe.engine.loading.aligned import Group, slots_of, write_file

TESTS = Path(__file__).resolve().parent.parent / "tests"
HEADS, HEAD = 24, 128  # of Flux
ROPE = (16, 56, 56)
BLOCK = 1 << 24  # random numbers drawn; weights are taken from it at places that differ


def make(folder: Path, double: int = 2, single: int = 2) -> int:
    """Write the folder; the number of the transformer's parameters."""
    sys.path.insert(0, str(TESTS))
    from checkpoints import flux_pipeline

    small = flux_pipeline()
    small.save_pretrained(folder)
    for file in (folder / "transformer").glob("*.safetensors"):
        file.unlink()
    wide = {"num_attention_heads": HEADS, "attention_head_dim": HEAD, "axes_dims_rope": ROPE}
    with torch.device("meta"):
        settings = {**small.transformer.config, **wide, "num_layers": double, "num_single_layers": single}
        model = FluxTransformer2DModel.from_config(settings).to(torch.bfloat16)
    model.save_config(folder / "transformer")
    noise = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    groups = [
        Group(slots_of({name: tensor}), functools.partial(_weights, noise, name, tensor))
        for name, tensor in model.state_dict().items()
    ]
    write_file(folder / "transformer" / "diffusion_pytorch_model.safetensors", groups, {"format": "pt"})
    return sum(tensor.numel() for tensor in model.state_dict().values())


def _weights(noise: torch.Tensor, name: str, like: torch.Tensor) -> Mapping[str, Any]:
    """Random weights that keep the size of what they multiply; ones for norms, small biases."""
    count = like.numel()
    start = sum(name.encode()) * 7919 % (BLOCK // 2)
    values = noise.roll(-start).repeat(-(-count // BLOCK))[:count].reshape(like.shape)
    if like.ndim > 1:
        return {name: values * like.shape[-1] ** -0.5}
    return {name: values * 0.02 + (1 if name.endswith("norm.weight") or "norm_" in name.split(".")[-2] else 0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--double", type=int, default=2, help="blocks with a stream each for picture and text")
    parser.add_argument("--single", type=int, default=2, help="blocks with one stream")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    count = make(arguments.folder, arguments.double, arguments.single)
    print(json.dumps({"folder": arguments.folder.name, "parameters": count}))


if __name__ == "__main__":
    main()
