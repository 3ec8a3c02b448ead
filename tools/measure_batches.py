"""What a batch costs beyond the pipeline itself, how it survives crashes, and how much memory its lines take.

    python tools/measure_batches.py overhead [--items 200] [--one-prompt]
    python tools/measure_batches.py crashes [--items 500] [--kills 10]
    python tools/measure_batches.py lines [--items 1000000]

All on the demo model, which is built in a temporary cache. Each exits with 1 if it misses its bound.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

BOUND = 1.03  # times the wall time of a bare loop
GROWTH = 100  # MB that the lines of a dry run may take
DIFFPIPE = [sys.executable, "-m", "diffpipe"]
SUBJECTS = ("fox", "cat", "panda", "owl", "frog", "bear", "pig", "koala")


def overhead(items: int, one_prompt: bool) -> bool:
    """Wall time of a batch against a bare loop, item by item in turns, so that both meet the same load."""
    from diffpipe.cli import app
    from diffpipe.engine.loading import load
    from diffpipe.runners import local

    prompts = [f"a {SUBJECTS[0 if one_prompt else at % len(SUBJECTS)]}" for at in range(items)]
    rows = [{"prompt": prompt, "seed": at, "id": str(at)} for at, prompt in enumerate(prompts)]
    Path("p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bare, loading, ready = 0.0, 0.0, 0.0
    real_load, real_run = load.load, local.run_here
    pipes: list[Any] = []

    def loaded(*args: Any) -> Any:
        nonlocal loading, ready
        started = time.perf_counter()
        pipes.extend(real_load(*args) for _ in range(2))
        for pipe in pipes:
            pipe("a fox", num_inference_steps=1)  # the first call of each sets up more than the others
        ready = time.perf_counter()
        loading = ready - started
        return pipes[0]

    def in_turns(*args: Any) -> Iterator[Any]:
        nonlocal bare
        for at, outcome in enumerate(real_run(*args)):
            yield outcome
            started = time.perf_counter()
            call_bare(pipes[1], prompts[at], at)
            bare += time.perf_counter() - started

    load.load, local.run_here = loaded, in_turns
    sys.argv = ["diffpipe", "generate", "demo", "--prompts-from", "p.jsonl", "-o", "out/", "--json", "-q"]
    import torch  # noqa: F401  (what both need to be imported is not the batch's)

    local.stay_offline()
    from diffpipe.engine.loading import library_logs

    library_logs.listen()
    started = time.perf_counter()
    with suppress(SystemExit), open("told.jsonl", "w") as told, redirect_stdout(told):
        app.main()
    ended = time.perf_counter()
    batch, loop = ended - started - bare - loading, ended - ready - bare
    made = len(list(Path("out").glob("*.png")))
    print(
        f"{made} items: bare loop {bare:.2f} s, batch {batch:.2f} s with start-up, {loop:.2f} s from the loaded model"
    )
    print(f"ratio {batch / bare:.3f} with start-up, {loop / bare:.3f} without")
    return made == items and (loop < bare if one_prompt else batch <= BOUND * bare)


def call_bare(pipe: Any, prompt: str, seed: int) -> None:
    """What a script of five lines does, with the defaults that `generate demo` shows."""
    import torch

    generator = torch.Generator("cpu").manual_seed(seed)
    call = {"width": 128, "height": 128, "num_inference_steps": 8, "guidance_scale": 3.0, "max_sequence_length": 32}
    pipe(prompt, generator=generator, **call).images[0].save(f"bare-{seed}.png")


def crashes(items: int, kills: int) -> bool:
    """A batch that is killed at random moments and resumed, against one that was left alone."""
    rows = [{"prompt": f"a {SUBJECTS[at % 8]}", **({"seed": at} if at % 3 else {})} for at in range(items)]
    Path("p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = ["--width", "64", "--height", "64", "--num-inference-steps", "1", "--resume", "-q"]
    run = [*DIFFPIPE, "generate", "demo", "--prompts-from", "p.jsonl", *small]
    chance = random.Random(0)
    for kill in range(kills):
        with open("told.txt", "w") as told, subprocess.Popen([*run, "-o", "out/"], stdout=told) as process:
            goal = ended("out") + chance.randint(1, max(1, items // (kills + 1)))
            while process.poll() is None and ended("out") < goal:
                time.sleep(0.02)
            time.sleep(chance.random() / 10)
            process.kill()
        print(f"kill {kill + 1}: {ended('out')} done", flush=True)
    subprocess.run([*run, "-o", "out/"], check=True, stdout=subprocess.DEVNULL)
    Path("whole").mkdir()
    first = Path("out/demo.journal.jsonl").read_text().partition("\n")[0]
    Path("whole/demo.journal.jsonl").write_text(first + "\n")  # the seed that the others derive from
    subprocess.run([*run, "-o", "whole/"], check=True, stdout=subprocess.DEVNULL)
    out, whole = ({path.name: path.read_bytes() for path in Path(folder).glob("*.png")} for folder in ("out", "whole"))
    lines = [json.loads(line) for line in Path("out/demo.journal.jsonl").read_text().splitlines()]
    done = [line["id"] for line in lines if line.get("status") == "done"]
    left = [path.name for path in Path("out").iterdir() if path.suffix == ".tmp"]
    print(
        f"{len(out)} pictures, {len(whole)} left alone, equal: {out == whole}; {len(done)} lines, {len(set(done))} ids"
    )
    print(f"temporary files left: {len(left)}")
    return out == whole and len(out) == len(done) == len(set(done)) == items and not left


def ended(folder: str) -> int:
    path = Path(folder) / "demo.journal.jsonl"
    return path.read_bytes().count(b'"done"') if path.exists() else 0


def lines(items: int) -> bool:
    """Peak memory of a dry run of many lines against that of ten, for each format."""
    good = True
    for form in ("txt", "csv", "jsonl"):
        peaks = {count: dry_run(form, count) for count in (10, items)}
        growth = peaks[items][0] - peaks[10][0]
        print(f"{form}: {items} lines in {peaks[items][1]:.0f} s, {growth:.1f} MB more than 10 lines", flush=True)
        good = good and growth < GROWTH
    return good


def dry_run(form: str, count: int) -> tuple[float, float]:
    """Peak resident memory (MB) and seconds."""
    heads = {"txt": "", "csv": "prompt,id,guidance_scale\n", "jsonl": ""}
    rows = {
        "txt": "a fox number {0}\n",
        "csv": '"a fox, {0}",id-{0},3.5\n',
        "jsonl": '{{"prompt": "a fox {0}", "seed": {0}}}\n',
    }
    with open(f"p.{form}", "w") as stream:
        stream.write(heads[form])
        stream.writelines(rows[form].format(number) for number in range(count))
    started = time.perf_counter()
    words = [*DIFFPIPE, "generate", "demo", "--prompts-from", f"p.{form}", "--dry-run", "-q", "-o", "out/"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the dry run of {form} ended with {process.returncode}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["overhead", "crashes", "lines"])
    parser.add_argument("--items", type=int)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--one-prompt", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ |= {"DIFFPIPE_HOME": f"{folder}/home", "OMP_NUM_THREADS": "1"}
        subprocess.run([*DIFFPIPE, "build", "demo", "-q"], check=True, stdout=subprocess.DEVNULL)
        good = {
            "overhead": lambda: overhead(given.items or 200, given.one_prompt),
            "crashes": lambda: crashes(given.items or 500, given.kills),
            "lines": lambda: lines(given.items or 1_000_000),
        }[given.what]()
        os.chdir("/")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
