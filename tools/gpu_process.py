"""The process of tools/check_gpu.py that has torch: runs command lines of diffpipe in itself, and measures the device.

Requests come as lines of JSON on standard input, answers go as lines of JSON to standard output; what commands print is
caught. A process does many rows, so that libraries are imported and the device is begun once; one that dies or hangs
costs its row, and the next gets a process of its own.

- {"do": "make", "folder", "names", "large"}: write tiny checkpoints, inputs and the large model into a folder.
- {"do": "facts", "device"}: the device, what it can do, how fast it copies and multiplies.
- {"do": "row", "commands", "device", "room"}: run commands in order until one fails; the last one is measured. `room`:
  bytes that the device has left for it, null for all.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOLD = 1500  # characters of what a command said, its end
COPIED = 256 << 20  # bytes that are copied to measure how fast copies are; a hundredth of it on the CPU and on paper
SIDE = 8192  # of the matrices that are multiplied to measure how fast a device multiplies
LIMIT = "PAPER_MEMORY"  # how many bytes the paper device has (tests/paper/device.py)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print to standard output is no answer
    work: dict[str, Callable[..., dict[str, Any]]] = {"make": make, "facts": facts, "row": row}
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps(work[request.pop("do")](**request)) + "\n")
        answers.flush()


# --- What is run on -------------------------------------------------------------------------------------------------


def make(folder: str, names: list[str], large: bool) -> dict[str, Any]:
    """Write what the rows need."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tools")]
    import checkpoints
    from inputs import write_inputs

    place = Path(folder)
    makers = {"flux": checkpoints.flux, "stable-diffusion": checkpoints.stable_diffusion}
    for module in checkpoints.MORE:
        makers |= {name: function for name, function, _ in importlib.import_module(module).MAKERS}
    with _caught():
        for name in names:
            makers[name](place / name)
        (place / "inputs").mkdir()
        write_inputs(place / "inputs")
        if large:
            importlib.import_module("make_large_flux").make(place / "large")
    return {}


# --- The device -----------------------------------------------------------------------------------------------------


def facts(device: str) -> dict[str, Any]:
    """What the device is and can do. `device`: a name as --device takes it; the answer has what it stands for."""
    import torch

    from diffpipe.building.versions import versions
    from diffpipe.engine.placement import devices
    from diffpipe.engine.seams import torch_seam

    name = devices.choose_device(device)
    about = next(one for one in devices.devices() if one.name in (name, f"{name}:0"))
    module = _module(name)
    kinds = {"cuda": torch.version.cuda, "hip": torch.version.hip}
    return {
        "device": name,
        "card": about.description,
        "memory": about.total,
        "shared": about.shared,
        "kind": devices.kind(name),
        "streams": devices.has_streams(name),
        "counts_memory": devices.peak_memory(name) is not None,
        "capability": list(getattr(module, "get_device_capability", lambda _: ())(name)),
        "built_for": {kind: version for kind, version in kinds.items() if version},
        "versions": versions(),
        "compiles_with_triton": torch_seam.needs_triton(name),
        "triton": importlib.util.find_spec("triton") is not None,
        "compiler": torch_seam.has_cpp_compiler(),
        "speed": _speed(name),
        "attention": _attention(name),
    }


def _module(device: str) -> Any:
    """Torch's module of the device's kind; None for the CPU."""
    import torch

    kind = device.partition(":")[0]
    return None if kind == "cpu" else torch.get_device_module(kind)


def _is_real(device: str) -> bool:
    """Whether a device is hardware of its own: its speed says something."""
    return device.partition(":")[0] not in ("cpu", "paper")


def _finish(device: str) -> None:
    """Wait for what the device was given to do."""
    module = _module(device)
    if module is not None and hasattr(module, "synchronize"):
        module.synchronize()


def _seconds(work: Callable[[], object], device: str, times: int = 3) -> float:
    """The least of some times, after one that is not counted."""
    work()
    found = []
    for _ in range(times):
        _finish(device)
        started = time.perf_counter()
        work()
        _finish(device)
        found.append(time.perf_counter() - started)
    return min(found)


def _speed(device: str) -> dict[str, float | None]:
    """Bytes a second to the device from pageable and from pinned memory, and bfloat16 operations a second; {} where
    they say nothing of a GPU."""
    import torch

    if not _is_real(device):
        return {}
    plain = torch.empty(COPIED, dtype=torch.uint8)
    there = torch.empty(COPIED, dtype=torch.uint8, device=device)
    found: dict[str, float | None] = {"pageable": COPIED / _seconds(lambda: there.copy_(plain), device)}
    try:
        pinned = plain.pin_memory()
        found["pinned"] = COPIED / _seconds(lambda: there.copy_(pinned, non_blocking=True), device)
    except RuntimeError:
        found["pinned"] = None
    matrix = torch.randn(SIDE, SIDE, dtype=torch.bfloat16, device=device)
    return {**found, "flops": 2 * SIDE**3 / _seconds(lambda: matrix @ matrix, device)}


def _attention(device: str) -> list[dict[str, Any]]:
    """Torch's kernels of attention by format: whether the device has each, how far it is from the CPU's in float32 (the
    largest difference, over the largest value), and its milliseconds."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    tokens, heads, size = (4608, 24, 128) if _is_real(device) else (64, 2, 32)
    given = torch.randn(3, 1, heads, tokens, size, generator=torch.Generator().manual_seed(0))
    part = slice(0, 1)  # of the heads: on the CPU all of them would take long
    attend = torch.nn.functional.scaled_dot_product_attention
    right = attend(*given[:, :, part])
    found = []
    for kernel in (one for name, one in SDPBackend.__members__.items() if name not in ("ERROR", "OVERRIDEABLE")):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            line: dict[str, Any] = {"kernel": kernel.name.lower(), "dtype": str(dtype).removeprefix("torch.")}
            try:
                query, key, value = given.to(device, dtype)
                with sdpa_kernel(kernel):
                    made = attend(query, key, value)
                    seconds = _seconds(lambda: attend(query, key, value), device)  # noqa: B023
                away = (made[:, part].float().cpu() - right).abs().max() / right.abs().max()
                line |= {"works": True, "away": float(away), "ms": round(seconds * 1e3, 3)}
            except (RuntimeError, NotImplementedError) as error:
                line |= {"works": False, "words": str(error).strip().splitlines()[0][:200]}
            found.append(line)
    return found


# --- Rows -----------------------------------------------------------------------------------------------------------


def row(commands: list[list[str]], device: str, room: int | None) -> dict[str, Any]:
    """Run commands; exit codes, what they said and printed, seconds; and bytes of the device: before the last one, at
    its peak, and left after it (None where torch does not count them)."""
    found: dict[str, Any] = {"codes": [], "said": "", "printed": [], "seconds": []}
    for number, command in enumerate(commands):
        last = number == len(commands) - 1
        _collect(device)
        before = _count(device, "memory_allocated")
        with _caught() as said, _filled(device, room if last else None) as filler:
            if last:
                _count(device, "reset_peak_memory_stats")
            started = time.perf_counter()
            with _unmeasured() if command[0] == "plan" else contextlib.nullcontext():
                code, printed = _run(command)
            found["seconds"].append(time.perf_counter() - started)
            peak = _count(device, "max_memory_allocated")
        _collect(device)
        found["codes"].append(code)
        found["printed"].append(printed)
        found["said"] = said[0][-TOLD:]
        if code:
            break
        if last and before is not None and peak is not None:
            left = (_count(device, "memory_allocated") or 0) - before
            found |= {"before": before, "peak": peak - filler, "left": left}
    return found


@contextlib.contextmanager
def _unmeasured() -> Iterator[None]:
    """A cache without what runs measured, meanwhile: a plan that was corrected by a run predicts nothing of it."""
    before = os.environ["DIFFPIPE_HOME"]
    with tempfile.TemporaryDirectory() as os.environ["DIFFPIPE_HOME"]:
        try:
            yield
        finally:
            os.environ["DIFFPIPE_HOME"] = before


def _run(command: list[str]) -> tuple[int, str]:
    """A command's exit code and what it printed, as `diffpipe` runs it but that the process stays."""
    from diffpipe.cli import app

    arguments, sys.argv = sys.argv, ["diffpipe", *command]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
        try:
            with contextlib.redirect_stdout(printed):
                app.main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        finally:
            sys.argv = arguments
        printed.seek(0)
        return code, printed.read()


@contextlib.contextmanager
def _caught() -> Iterator[list[str]]:
    """What is written to standard error within it, by C too: the one string of the list, once it is over."""
    said: list[str] = []
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            said.append(file.read())


@contextlib.contextmanager
def _filled(device: str, room: int | None) -> Iterator[int]:
    """The device has no more than so many bytes left for a command, meanwhile. The bytes that were taken for it."""
    import torch

    if room is None:
        yield 0
    elif device.startswith("paper"):
        os.environ[LIMIT] = str((_count(device, "memory_allocated") or 0) + room)
        try:
            yield 0
        finally:
            del os.environ[LIMIT]
    else:
        taken = max(0, int(_module(device).mem_get_info(device)[0]) - room)
        filler = torch.empty(taken, dtype=torch.uint8, device=device)
        try:
            yield taken
        finally:
            del filler


def _collect(device: str) -> None:
    """What nothing refers to any more goes from the device."""
    gc.unfreeze()  # a command freezes what is there once its libraries are imported: its own pipeline would stay
    gc.collect()
    module = _module(device) if "torch" in sys.modules else None
    if hasattr(module, "empty_cache"):
        module.empty_cache()


def _count(device: str, name: str) -> int | None:
    """A number of the device's allocator, by the name of its function; None where it has none."""
    count = getattr(_module(device) if "torch" in sys.modules else None, name, None)
    found = None if count is None else count(device)
    return None if found is None else int(found)


if __name__ == "__main__":
    main()
