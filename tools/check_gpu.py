"""Check a machine's GPU: every placement, quantizer and kernel by families, through the command line, in one go.

    python tools/check_gpu.py [--device auto] [--budget 480] [--output docs/gpu.json] [--quick]

It needs the repository, and a Python with what pyproject.toml lists (the extra `torchao` too) and the torch that fits
the card; diffpipe itself may be installed or not, and nothing is fetched. Models are the demo model, the tests' tiny
ones and, but with --quick, a Flux of a billion random parameters (2.4 GB), written into a folder that is removed at the
end. `--device paper` is the tests' device without hardware (tests/paper/device.py).

A row that does not fit into the budget any more is `not run`; one that fails, hangs or ends its process is `failed`
with its words, and the next goes on. Exit code 1 if any row failed, 2 if the device cannot be had.

What is compared, of results as numbers between 0 and 1 (pixels, frames, samples), by their mean difference:
- with the CPU's result. On paper and on the CPU: the same bytes. Else float32 may differ by FLOOR (cuDNN convolves
  float32 in TF32), bfloat16 and float16 by FLOOR and ROUNDING times as much as the CPU's own result in that format
  differs from its float32: rounding in another order moves a result about as far as rounding at all.
- offloading with everything resident on the device, and a run in a fresh process with the first: the same bytes. Where
  offloading differs within the bound above it is `close`: kernels are chosen by how memory lies. On paper and on the
  CPU, and for two runs of the same, that is a failure.
- the peak of memory that `diffpipe plan` predicts with the allocator's: within PREDICTED, of the large model.
- A run with less memory than its peak must be made all the same, by steps down.

The JSON, of which tools/memory_docs.py makes a section of docs/memory.md (bytes and seconds; null for not known):
    {"format": 1, "date", "device", "quick", "budget", "seconds", "facts": {as gpu_process.facts},
     "counts": {status: number},
     "rows": [{"group", "name", "case", "dtype", "build": [words],
               "status": "ok" | "close" | "refused" | "failed" | "not run", "words": what was said, or what is wrong,
               "seconds": {"build", "plan", "generate", "item"}, "peak", "left", "predicted", "measured",
               "stepped_down": [words], "cpu": {"mean", "max", "bound"}, "resident": {"mean", "max"}}]}
`item`: seconds of the call alone. `left`: on the device when the pipeline is gone. `measured`: as measured.json has it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from gpu_rows import LARGE, LARGE_FLAGS, Row, rows, with_references

ROOT = Path(__file__).resolve().parents[1]
FORMAT = 1  # of the JSON: raise it when it is read in another way
FLOOR = 1 / 255  # of the mean difference: a step of eight bits
ROUNDING = 2.0
PREDICTED = 0.15  # of the measured peak
CHOOSY = 0.9  # of its peak, in which a run may be made after all: cuDNN takes algorithms that need no workspace
LEFT = 256 << 20  # bytes that may be left on the device: cuBLAS keeps workspaces; none on paper
HANGS = 240.0  # seconds after which a row is given up
GRACE = 30.0  # seconds that one begun within the budget may take beyond it
GUESS = {"large": 20.0, "tiny": 4.0}  # seconds of a row unlike any before
EXACT = ("cpu", "paper")  # devices whose results are the CPU's to the bit
STEP = re.compile(r"trying again with (.*)")
REFUSED = 2  # the exit code of what diffpipe refuses before anything is loaded
Found = dict[str, Any]


class Lost(Exception):
    """The process that ran a row ended, or did not answer."""


class Worker:
    """A gpu_process, begun when it is first asked. What it says beside its answers goes to `log`."""

    def __init__(self, environment: Mapping[str, str], log: IO[bytes]) -> None:
        self.environment, self.log = environment, log
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, patience: float, **request: Any) -> Found:
        """Its answer. Raises Lost when there is none in so many seconds; the next question goes to another process."""
        if self.process is None:
            words = [sys.executable, str(ROOT / "tools/gpu_process.py")]
            self.process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, env=dict(self.environment)
            )
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            answered = select.select([self.process.stdout], [], [], patience)[0]
            line = self.process.stdout.readline() if answered else b""
        except OSError:
            line, answered = b"", [self.process.stdout]
        if not line:
            code = self.end()
            last = Path(self.log.name).read_text("utf-8", "replace").strip().rpartition("\n")[2][-300:]
            raise Lost(f"the process ended with {code}: {last}" if answered else f"no answer in {patience:.0f} s")
        return dict(json.loads(line))

    def end(self) -> int | None:
        """End the process; its exit code."""
        if self.process is None:
            return None
        process, self.process = self.process, None
        if process.stdin:
            process.stdin.close()
        try:
            return process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


@dataclass
class Check:
    """A run of rows on a device, one after another."""

    folder: Path
    device: str
    budget: float
    worker: Worker
    exact: bool = False
    began: float = field(default_factory=time.monotonic)
    made: dict[str, Path] = field(default_factory=dict)  # by the name of a row: its result
    found: dict[str, Found] = field(default_factory=dict)  # by the name of a row: its line of the JSON
    durations: dict[tuple[str, str], float] = field(default_factory=dict)  # of rows by group and case

    def run(self, row: Row) -> Found:
        """A row's line of the JSON."""
        started = time.monotonic()
        line: Found = {"group": row.group, "name": row.name, "case": row.case, "dtype": row.dtype, "build": row.build}
        if reason := self._not_run(row):
            line |= {"status": "not run", "words": reason}
        else:
            try:
                line |= self._made(row)
            except Exception as error:  # whatever a row leads to, the others are run
                line |= {"status": "failed", "words": f"{type(error).__name__}: {error}"}
            self.durations[row.group, row.case] = time.monotonic() - started
        self.found[row.name] = line
        return line

    def _not_run(self, row: Row) -> str:
        """Why a row cannot be run, "" if it can."""
        guess = self.durations.get((row.group, row.case), GUESS["large" if row.case == LARGE else "tiny"])
        if time.monotonic() - self.began + guess > self.budget:
            return "the budget is used up"
        if row.room:
            if self.device == "cpu":
                return "the CPU's memory is the system's"
            if not self.peak_of(row):
                return "it needs the peak of the same run with all memory, which is not known"
            if row.case != LARGE and not self.exact:
                return "the tiny models are smaller than what a device gives out at once"
        return ""

    def peak_of(self, row: Row) -> int:
        """The peak of the same run with all memory, 0 where there was none."""
        names = (name for name, line in self.found.items() if f"{name} in " == row.name[: len(name) + 4])
        return max((self.found[name].get("peak") or 0 for name in names), default=0)

    def _made(self, row: Row) -> Found:
        """Run a row, and judge what came out."""
        device = "cpu" if row.cpu else self.device
        name = f"row{len(self.found)}"
        build, flags = row.command(self.folder, self.folder / "inputs")
        commands = [["build", *build, "--device", device, "--name", name, "--offline", "--json"]]
        if row.case == LARGE and not row.room:
            commands.append(self._plan(build, device))
        output = ["--output", str(self.folder / "made" / f"{name}{row.ending}"), "--overwrite", "--json"]
        commands.append(["generate", name, *flags, *output])
        worker = Worker(self.worker.environment, self.worker.log) if row.fresh else self.worker
        room = round(self.peak_of(row) * row.room) if row.room else None
        patience = min(HANGS, max(GRACE, self.began + self.budget + GRACE - time.monotonic()))
        answer = worker.ask(patience, do="row", commands=commands, device=device, room=room)
        if row.fresh:
            worker.end()
        answer["seconds"] = dict(zip((command[0] for command in commands), answer["seconds"], strict=False))
        return self._judged(row, answer)

    def _plan(self, build: Sequence[str], device: str) -> list[str]:
        sizes = LARGE_FLAGS[LARGE_FLAGS.index("--width") :]
        return ["plan", *build, *sizes, "--device", device, "--device-memory", "4096GiB", "--offline", "--json"]

    def _judged(self, row: Row, answer: Found) -> Found:
        """What an answer says of its row."""
        code, said = answer["codes"][-1], answer["said"].strip()
        line: Found = {"seconds": answer["seconds"], "peak": answer.get("peak"), "left": answer.get("left")}
        line["stepped_down"] = list(dict.fromkeys(STEP.findall(said)))  # each is said twice
        if code:
            refused = code == REFUSED and len(answer["codes"]) == 1
            return {**line, "status": "refused" if refused else "failed", "words": _words(said, code)}
        item = json.loads(answer["printed"][-1].splitlines()[0])
        line["seconds"] |= {"item": item["seconds"]}
        self.made[row.name] = Path(item["path"])
        line |= self._memory(row, answer)
        problems = [*self._compared(row, line), *self._wrong_memory(row, line)]
        close = line.pop("close", False)
        return {**line, "status": "failed" if problems else "close" if close else "ok", "words": "; ".join(problems)}

    def _memory(self, row: Row, answer: Found) -> Found:
        """What was predicted and what the run itself noted."""
        if row.case != LARGE or row.room or len(answer["printed"]) < 3:
            return {}
        key = json.loads(answer["printed"][0])["key"]
        noted = [json.loads(file.read_text()) for file in (self.folder / "home").rglob(f"{key}/measured.json")]
        peaks = [one["peak_device"] for records in noted for one in records["records"] if one["peak_device"]]
        plan = json.loads(answer["printed"][1])
        return {"predicted": plan["strategy"]["peak"], "measured": max(peaks, default=None)}

    def _compared(self, row: Row, line: Found) -> list[str]:
        """What is wrong with a row's result."""
        if row.room:
            if not line["stepped_down"] and not self.exact and row.room >= CHOOSY:
                line["close"] = True
                return []
            return [] if line["stepped_down"] else ["memory did not run out"]
        problems = []
        cpu, resident = self._like(row, row.on_cpu()), self._like(row, row.resident())
        bound = self._bound(row)
        if cpu:
            line["cpu"] = cpu | {"bound": bound}
            if cpu["mean"] > bound:
                problems.append(f"{cpu['mean']:.4f} from the CPU's result, {bound:.4f} is the bound")
            line["close"] = cpu["max"] > 0
        if resident:
            line["resident"] = resident
            strict = row.fresh or self.exact
            if resident["max"] and (strict or resident["mean"] > (bound or FLOOR)):
                what = "in another process" if row.fresh else "with everything resident"
                problems.append(f"other bytes than {what} (mean difference {resident['mean']:.4f})")
        return problems

    def _like(self, row: Row, other: Row | None) -> dict[str, float] | None:
        """How far a row's result is from another's; None where there is no other."""
        if other is None or other == row or other.name not in self.made:
            return None
        return difference(self.made[row.name], self.made[other.name])

    def _bound(self, row: Row) -> float:
        """The mean difference from the CPU's result that rounding explains."""
        if self.exact and not row.loose:
            return 0.0
        own = [row.plain(dtype).name for dtype in (row.dtype, "float32")]
        known = all(name in self.made for name in own)
        return FLOOR + (ROUNDING * difference(*(self.made[name] for name in own))["mean"] if known else 0.0)

    def _wrong_memory(self, row: Row, line: Found) -> list[str]:
        """What is wrong with what a row needed."""
        problems = []
        if (line["left"] or 0) > (0 if self.exact else LEFT):
            problems.append(f"{line['left']} bytes are left on the device")
        if not self.exact and line.get("predicted") and line["peak"]:
            off = line["predicted"] / line["peak"] - 1
            if abs(off) > PREDICTED:
                problems.append(f"predicted {line['predicted']} bytes, measured {line['peak']}: {off:+.0%}")
        return problems


def _words(said: str, code: int) -> str:
    """The error of a command: its last lines, from the one that says so."""
    at = said.rfind("error:")
    return said[at:] if at >= 0 else said[-300:] or f"exit code {code}"


def difference(one: Path, other: Path) -> dict[str, float]:
    """The mean and the largest difference of two results, as numbers between 0 and 1; 1 for results of other sizes."""
    import numpy as np

    first, second = (read(path) for path in (one, other))
    if first.shape != second.shape:
        return {"mean": 1.0, "max": 1.0}
    away = np.abs(first - second)
    return {"mean": float(away.mean()), "max": float(away.max())}


def read(path: Path) -> Any:
    """A picture, a folder of frames or a sound as an array."""
    import wave

    import numpy as np
    from PIL import Image

    if path.is_dir():
        return np.stack([read(frame) for frame in sorted(path.iterdir())])
    if path.suffix == ".wav":
        with wave.open(str(path)) as file:
            return np.frombuffer(file.readframes(file.getnframes()), "<i2") / 65536
    with Image.open(path) as picture:
        return np.asarray(picture, dtype=np.float64) / 255


def environment(folder: Path, device: str) -> dict[str, str]:
    """Of the processes: caches of their own, no network, this repository's diffpipe; the paper device if asked for."""
    paths = [ROOT / "src", ROOT / "tests", ROOT / "tools", *[ROOT / "tests/paper/site"] * device.startswith("paper")]
    own = {
        "DIFFPIPE_HOME": folder / "home",
        "HF_HOME": folder / "hub",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")]),
        "NO_COLOR": "1",
        "COLUMNS": "160",
        **({"OMP_NUM_THREADS": "1"} if device in EXACT else {}),
    }
    return {**os.environ, **{name: str(value) for name, value in own.items()}}


def check(device: str, budget: float, quick: bool, folder: Path) -> Found:
    """All of the JSON. Raises Lost where the device cannot be had."""
    began = time.monotonic()
    (folder / "made").mkdir(parents=True)
    worker = Worker(environment(folder, device), (folder / "log").open("wb"))
    about = worker.ask(HANGS, do="facts", device=device)
    exact = about["device"].partition(":")[0] in EXACT
    wanted = rows(quick=quick, large=not quick and not exact)
    needed = set().union(*(row.needs() for row in wanted))
    worker.ask(HANGS, do="make", folder=str(folder), names=sorted(needed - {LARGE}), large=LARGE in needed)
    one = Check(folder, about["device"], budget, worker, exact, began)
    for row in with_references(wanted):
        line = one.run(row)
        took = sum(line.get("seconds", {}).get(name, 0) for name in ("build", "generate"))
        print(f"{line['status']:8}{took:6.1f} s  {row.group}: {row.name}  {line['words']}".rstrip(), file=sys.stderr)
    worker.end()
    return {
        "format": FORMAT,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "device": about["device"],
        "quick": quick,
        "budget": budget,
        "seconds": round(time.monotonic() - began),
        "facts": about,
        "counts": Counter(line["status"] for line in one.found.values()),
        "rows": list(one.found.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:1, xpu, mps, cpu or paper")
    parser.add_argument("--budget", type=float, default=480.0, help="seconds after which no further row is begun")
    parser.add_argument("--quick", action="store_true", help="one row of each kind, on tiny models alone")
    parser.add_argument("--output", type=Path, help="where the JSON goes; standard output if not given")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="check-gpu-", ignore_cleanup_errors=True) as folder:
        try:
            found = check(arguments.device, arguments.budget, arguments.quick, Path(folder).resolve())
        except Lost as error:
            print(f"the device {arguments.device} cannot be had: {error}", file=sys.stderr)
            sys.exit(2)
    text = json.dumps(found, indent=1) + "\n"
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8", newline="\n")
    else:
        print(text, end="")
    counts = ", ".join(f"{count} {status}" for status, count in found["counts"].items())
    print(f"{found['device']} ({found['facts']['card']}): {counts} in {found['seconds']} s", file=sys.stderr)
    sys.exit(1 if found["counts"].get("failed") else 0)


if __name__ == "__main__":
    main()
