"""The command line on the device of paper: it is found as any accelerator is, and draws what the CPU draws."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from conftest import Cli
from PIL import Image

from diffpipe.core.errors import Exit
from paper.device import REPORT

SIZE = ("--num-inference-steps", "2", "--width", "16", "--height", "16", "--max-sequence-length", "16")
FLAGS = ("--prompt", "a fox", "--seed", "7", *SIZE)


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def test_a_picture_is_the_cpus_to_the_bit(paper: Cli, checkpoints: Path) -> None:
    report = paper.cwd / "report"
    for device in ("cpu", "paper"):
        paper("build", "flux", "--model", checkpoints / "flux", "--name", device, "--device", device, check=True)
        paper("generate", device, *FLAGS, "--output", f"{device}.png", env={REPORT: str(report)}, check=True)
    assert pixels(paper.cwd / "cpu.png") == pixels(paper.cwd / "paper.png")
    on_cpu, on_paper = map(json.loads, report.read_text().splitlines())
    assert on_cpu["operations"] == 0 < on_paper["operations"]
    assert on_paper["peak"] > on_paper["now"] > 0


def moved() -> list[object]:
    import torch

    there = torch.ones(3).to("paper") * 2
    return [str(there.device), there.cpu().tolist()]


def test_functions_can_be_called_where_the_device_is(on_paper: Callable[..., object]) -> None:
    assert on_paper(moved) == ["paper:0", [2.0, 2.0, 2.0]]


def test_it_is_what_auto_takes_first(paper: Cli) -> None:
    found = json.loads(paper("doctor", "--json", check=True).stdout)
    assert "paper:0" in json.dumps(found["devices"])


def test_kernels_of_attention_are_tried_on_the_device_before_anything_is_fetched(paper: Cli, checkpoints: Path) -> None:
    """The device has torch's own kernels and none of CUDA's: nothing but asking tells."""
    build = ("build", "flux", "--model", checkpoints / "flux", "--device", "paper", "--name", "attention")
    paper(*build, "--attention-backend", "native-flash", check=True)
    done = paper(*build, "--attention-backend", "native-cudnn")
    assert done.returncode == Exit.USAGE
    words = "error: --attention-backend native-cudnn cannot be used in bfloat16 on paper: "
    assert done.stderr.splitlines()[-2].startswith(words)
    assert done.stderr.splitlines()[-1].strip() == "try: use native"


def test_an_autoencoder_that_decodes_in_float32_can_be_offloaded_in_groups(paper: Cli, checkpoints: Path) -> None:
    """Streams copied SDXL's float16 weights to the device again as it decoded."""
    for offload in ("none", "group"):
        build = ("build", "stable-diffusion", "--type", "xl", "--model", checkpoints / "sdxl", "--dtype", "float16")
        paper(*build, "--name", offload, "--device", "paper", "--cpu-offload", offload, check=True)
        paper("generate", offload, *FLAGS[:-2], "--output", f"xl-{offload}.png", check=True)
    assert pixels(paper.cwd / "xl-none.png") == pixels(paper.cwd / "xl-group.png")
