"""Stored quantized weights against quantizing at every start: time, memory, sizes, and whether the outputs are equal.

    python tools/make_large_flux.py FOLDER
    python tools/bench_quantize.py FOLDER [--runs 3] [--json FILE]

Cases, each run in a process of its own, on one thread, runs of all cases in turn, medians of them:

- bf16: from_pretrained, and one forward pass;
- by hand: from_pretrained, then optimum.quanto's quantize and freeze, as its README says, and one forward pass;
- build: from_pretrained, then what `diffpipe build --quantize` does: quantize layer by layer into a file;
- live: from_pretrained, then the same arithmetic in memory, and one forward pass: what a reload must equal bit by bit;
- stored: what `diffpipe generate` does: map that file, and one forward pass. The folder plays no part.

Memory: peak resident beyond that of a process that only imported diffusers, at the end of loading; peak anonymous
(RssAnon of /proc, sampled every 5 ms) until then. Times start after `import diffusers`. Exits with 1 where one of these
is missed: fp8 and int8 load in a third of the time by hand, in at most 0.6 GB; stored at most 0.53 (int4: 0.31) of
bfloat16; a build's anonymous memory at most 1.4 times the stored component and 0.5 GB; outputs equal bit by bit.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MODES = ("fp8", "int8", "int4")
CASES = (
    ("bf16", ""),
    *((way, mode) for mode in MODES for way in ("by hand", "build", "live", "stored")),
    *((way, f"{mode} torchao") for mode in MODES[:2] for way in ("build", "live", "stored")),
)
FIGURES = ("load", "forward", "peak", "anonymous", "bytes", "cosine")
LIMITS = {"fp8": 0.53, "int8": 0.53, "int4": 0.31}  # of the bytes in bfloat16
THIRD, RESIDENT, TIMES, MORE = 1 / 3, 0.6e9, 1.4, 0.5e9


def status(field: str) -> int:
    """A figure of this process in bytes: VmHWM, its peak resident memory; RssAnon, what of it now is of no file."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


class Anonymous(threading.Thread):
    """Watches the peak of this process's anonymous memory."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0

    def run(self) -> None:
        while True:
            self.peak = max(self.peak, status("RssAnon"))
            time.sleep(0.005)


def one(way: str, mode: str, folder: Path, scratch: Path) -> dict[str, float]:
    """Run one case in this process. Outputs are left in `scratch` for the cases that must equal them."""
    import torch
    from diffusers import FluxTransformer2DModel

    from diffpipe.engine.loading import quantize, stored

    torch.set_num_threads(1)
    kind, backend = [*mode.split(), "quanto"][:2] if mode else ("", "")
    file = scratch / f"{mode}.safetensors"
    before, watcher, started = status("VmHWM"), Anonymous(), time.perf_counter()
    base = status("RssAnon")
    watcher.start()
    if way == "stored":
        model = stored.read(FluxTransformer2DModel, file)
    else:
        model = FluxTransformer2DModel.from_pretrained(folder / "transformer", dtype=torch.bfloat16)
    if way == "by hand":
        from optimum import quanto

        quanto.quantize(model, weights={"fp8": quanto.qfloat8, "int8": quanto.qint8, "int4": quanto.qint4}[kind])
        quanto.freeze(model)
    elif way == "live":
        quantize.quantize_module(model, kind, backend)
    elif way == "build":
        stored.write(model, file, kind, backend)
    figures = {
        "load": time.perf_counter() - started,
        "peak": status("VmHWM") - before,
        "anonymous": max(watcher.peak, status("RssAnon")) - base,
        "bytes": file.stat().st_size if way in ("build", "stored") else 0,
    }
    return figures if way == "build" else figures | forward(model, way, mode, scratch)


def forward(model: Any, way: str, mode: str, scratch: Path) -> dict[str, float]:
    """One step on fixed inputs: its time, how near it is to bfloat16's, and whether a reload equals what was live."""
    import torch

    draw = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw).to(torch.bfloat16)

    config = model.config
    inputs = {
        "hidden_states": noise(1, 256, config.in_channels),
        "encoder_hidden_states": noise(1, 64, config.joint_attention_dim),
        "pooled_projections": noise(1, config.pooled_projection_dim),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(256, 3),
        "txt_ids": torch.zeros(64, 3),
    }
    started = time.perf_counter()
    with torch.no_grad():
        made = model(**inputs).sample.float().flatten()
    figures = {"forward": time.perf_counter() - started}
    file = scratch / f"{way} {mode}.pt"
    torch.save(made, file)
    original = scratch / "bf16 .pt"
    if mode and original.exists():
        figures["cosine"] = float(torch.cosine_similarity(made, torch.load(original), dim=0))
    if way == "stored":
        figures["equal"] = float(torch.equal(made, torch.load(scratch / f"live {mode}.pt")))
    return figures


def run(way: str, mode: str, folder: Path, scratch: Path) -> dict[str, float]:
    """One case in a fresh process."""
    words = [sys.executable, __file__, str(folder), "--case", way, mode, "--scratch", str(scratch)]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        sys.exit(f"{way} {mode}: {done.stderr}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def table(medians: Mapping[tuple[str, str], Mapping[str, float]]) -> str:
    """The figures as a Markdown table; memory and sizes in GB (10^9 bytes), times in seconds."""
    lines = [
        "| format | way | load s | peak GB | anonymous GB | file GB | forward s | cosine to bf16 | equal to live |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (way, mode), figures in medians.items():
        sizes = [f"{figures[name] / 1e9:.2f}" if figures[name] else "-" for name in ("peak", "anonymous", "bytes")]
        step = f"{figures['forward']:.2f}" if "forward" in figures else "-"
        near = f"{figures['cosine']:.5f}" if "cosine" in figures else "-"
        equal = {1.0: "yes", 0.0: "NO"}.get(figures.get("equal", -1), "-")
        cells = [
            mode or "bf16",
            way if mode else "from_pretrained",
            f"{figures['load']:.2f}",
            *sizes,
            step,
            near,
            equal,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def misses(medians: Mapping[tuple[str, str], Mapping[str, float]], original: int) -> list[str]:
    """Which limits are missed; `original` is the component's bytes in bfloat16."""
    found = []
    for (way, mode), figures in medians.items():
        kind = mode.split()[0] if mode else ""
        if way == "stored":
            by_hand = medians["by hand", kind]["load"]
            limits = {
                f"load time, of by hand's {by_hand:.2f} s": (figures["load"] / by_hand, THIRD),
                "peak memory": (figures["peak"], RESIDENT),
                "file size, of bfloat16's": (figures["bytes"] / original, LIMITS[kind]),
                "difference to live": (1 - figures["equal"], 0),
            }
        elif way == "build":
            limits = {"anonymous memory of the build": (figures["anonymous"], TIMES * figures["bytes"] + MORE)}
        else:
            continue
        found += [
            f"{mode} {way}: {what} {value:.3g} > {limit:.3g}"
            for what, (value, limit) in limits.items()
            if value > limit
        ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="as tools/make_large_flux.py makes it")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write every run's figures here")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(one(*arguments.case, arguments.folder, arguments.scratch)))
        return
    runs: dict[tuple[str, str], list[dict[str, float]]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        for number in range(arguments.runs):
            for case in CASES:
                runs[case].append(run(*case, arguments.folder, Path(scratch)))
                print(f"run {number + 1}: {' '.join(case)}", file=sys.stderr)
    medians = {
        case: {name: statistics.median(each[name] for each in found) for name in found[0]}
        for case, found in runs.items()
    }
    if arguments.json:
        arguments.json.write_text(json.dumps([[*case, *found] for case, found in runs.items()]))
    original = sum(file.stat().st_size for file in (arguments.folder / "transformer").glob("*.safetensors"))
    print(table(medians))
    missed = misses(medians, original)
    print("\n".join(missed) or "every limit is kept")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
