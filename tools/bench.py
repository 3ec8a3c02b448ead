"""What one picture costs: diffpipe, cold and warm, against a hand-written script and `diffusers-cli run`.

    python tools/bench.py [--runs 7]
    python tools/make_large_flux.py FOLDER && python tools/bench.py --large FOLDER

All ways make the same picture with the demo model (the same bytes, which is checked). In each round every way runs
once, one after the other; a figure is the median of its rounds' ratios, so a machine that is busy for a while slows all
sides. --large adds a transformer of a billion parameters: stored quantized, against a script that quantizes it with
optimum-quanto at every start. Prints a Markdown table with each figure's limit; exits with 1 where one is missed.
Needs no network.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench_start import BARE, Run, diffpipe, timed

DEMO = Path(__file__).resolve().parent.parent / "src" / "diffpipe" / "demo"
PROMPT, SEED = "a panda on a pink background", 11
CALL = {"num_inference_steps": 4, "width": 128, "height": 128, "guidance_scale": 3.0, "max_sequence_length": 32}
LARGE = {**CALL, "num_inference_steps": 1, "width": 32, "height": 32}  # mostly the start, not the arithmetic

LOAD = """
import sys
import torch
from diffusers import FluxPipeline

pipe = FluxPipeline.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
"""
MAKE = """
generator = torch.Generator("cpu").manual_seed({seed})
picture = pipe({prompt!r}, generator=generator, **{call!r}).images[0]
"""
QUANTIZE = """
from optimum import quanto

quanto.quantize(pipe.transformer, weights=quanto.{kind})
quanto.freeze(pipe.transformer)
"""
KINDS = {"fp8": "qfloat8", "int8": "qint8"}
SAVE = "picture.save(sys.argv[2])\n"
# Calls a loaded pipeline for each line it reads, and prints the seconds that took.
LOOP = """
import time

pipe.set_progress_bar_config(disable=True)
for _ in sys.stdin:
    started = time.perf_counter()
{call}
    print(time.perf_counter() - started, flush=True)
"""

Way = Callable[[], Run]
Rounds = Mapping[str, Sequence[Run]]


class Row(NamedTuple):
    """A line of the table: a way, its runs, what its figure says, the figure and its limit (None: there is none)."""

    way: str
    runs: Sequence[Run]
    says: str = ""
    figure: float | None = None
    limit: float | None = None


def script(folder: Path, name: str, *parts: str) -> Path:
    """A Python file of these parts."""
    path = folder / f"{name}.py"
    path.write_text("".join(parts))
    return path


def making(call: Mapping[str, object]) -> str:
    return MAKE.format(seed=SEED, prompt=PROMPT, call=dict(call))


def generate(name: str, call: Mapping[str, object], output: str, *more: str) -> list[str]:
    flags = [word for key, value in call.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    own = ["--prompt", PROMPT, "--seed", str(SEED), "--overwrite", "-o", output]
    return [*diffpipe(), "generate", name, *own, *flags, *more]


def command(words: list[str], folder: Path, shows: str = "") -> Way:
    return lambda: timed(words, {}, folder, shows)


def rounds(ways: Mapping[str, Way], count: int) -> dict[str, list[Run]]:
    """Every way once a round, in order; the first round, which fills the file cache, does not count."""
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    for _ in range(count + 1):
        for name, way in ways.items():
            runs[name].append(way())
            print(f"{name}: {runs[name][-1].wall:.2f} s", file=sys.stderr)
    return {name: found[1:] for name, found in runs.items()}


def ratio(runs: Rounds, of: str, to: str, measure: str = "wall") -> float:
    pairs = zip(runs[of], runs[to], strict=True)
    return statistics.median(getattr(one, measure) / getattr(other, measure) for one, other in pairs)


def against(way: str, runs: Rounds, of: str, to: str, called: str, limit: float | None = None) -> Row:
    """A way's time as a share of another's. The limit holds for the time by the clock."""
    says = f"of {called} ({ratio(runs, of, to, 'processor'):.2f} of its processor time)"
    return Row(way, runs[of], says, ratio(runs, of, to), limit)


def same(folder: Path, *names: str) -> None:
    """Raises SystemExit unless the files hold the same bytes."""
    if len({(folder / name).read_bytes() for name in names}) != 1:
        raise SystemExit(f"{' and '.join(names)} differ: the ways do not do the same work")


def cold(folder: Path, count: int) -> list[Row]:
    """A picture from nothing, three ways."""
    by_hand = script(folder, "script", LOAD, making(CALL), SAVE)
    theirs = [str(Path(sys.executable).with_name("diffusers-cli")), "run", "-m", str(DEMO), "--dtype", "bf16"]
    arguments = json.dumps({"prompt": PROMPT, **CALL})
    theirs += ["--device-map", "cpu", "--seed", str(SEED), "--pipeline-kwargs", arguments, "--output", "theirs.png"]
    ways = {
        "script": command([sys.executable, str(by_hand), str(DEMO), "script.png"], folder),
        "diffusers-cli": command(theirs, folder, "theirs.png"),
        "cold": command(generate("demo", CALL, "cold.png", "--no-worker"), folder, "cold.png"),
    }
    runs = rounds(ways, count)
    timed(generate("demo", CALL, "plain.png", "--no-worker", "--no-metadata"), {}, folder, "plain.png")
    same(folder, "script.png", "theirs.png", "plain.png")
    told = "`diffpipe generate`, cold"
    return [
        Row("a script with diffusers", runs["script"]),
        against("`diffusers-cli run`", runs, "diffusers-cli", "script", "the script"),
        against(told, runs, "cold", "script", "the script", 0.70),
        against(told, runs, "cold", "diffusers-cli", "`diffusers-cli run`", 1.0),
    ]


@contextmanager
def loop(folder: Path) -> Iterator[Way]:
    """The bare pipeline call, in a process that has it loaded."""
    indented = "".join(f"    {line}\n" for line in making(CALL).strip().splitlines())
    path = script(folder, "loop", LOAD, LOOP.format(call=indented))
    words = [sys.executable, str(path), str(DEMO)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin and process.stdout  # noqa: PT018

        def call() -> Run:
            process.stdin.write(b"\n")
            process.stdin.flush()
            seconds = float(process.stdout.readline())
            return Run(seconds, seconds)

        yield call
        process.stdin.close()


def warm(folder: Path, count: int) -> list[Row]:
    """A picture from a worker that has the pipeline loaded, against the bare call and the script."""
    (folder / "bare.py").write_text(BARE)
    timed(generate("demo", CALL, "warm.png", "--keep-warm", "10m"), {}, folder, "warm.png")
    with loop(folder) as call:
        ways = {
            "script": command([sys.executable, "script.py", str(DEMO), "script.png"], folder),
            "bare": command([sys.executable, "bare.py", "--help"], folder, "Greet"),
            "call": call,
            "warm": command(generate("demo", CALL, "warm.png"), folder, "warm.png"),
        }
        runs = rounds(ways, count)
    timed(generate("demo", CALL, "plain.png", "--no-metadata"), {}, folder, "plain.png")
    timed([*diffpipe(), "worker", "stop", "--all"], {}, folder, "")
    same(folder, "script.png", "plain.png")
    both = zip(runs["warm"], runs["call"], runs["bare"], strict=True)
    more = statistics.median((ours.wall - one.wall) / bare.wall for ours, one, bare in both)
    told = "`diffpipe generate`, warm"
    return [
        Row("the bare call, loaded", runs["call"]),
        Row("a bare Typer program's `--help`", runs["bare"]),
        Row(told, runs["warm"], "of the script", ratio(runs, "warm", "script"), 0.10),
        Row(told, runs["warm"], "beyond the bare call, in bare `--help`s", more, 2.0),
    ]


def large(model: Path, folder: Path, count: int, kind: str) -> list[Row]:
    """A billion parameters, quantized at every start and once."""
    path = script(folder, f"quantize-{kind}", LOAD, QUANTIZE.format(kind=KINDS[kind]), making(LARGE), SAVE)
    (folder / "large").symlink_to(model.absolute())
    timed([*diffpipe(), "build", "flux", "--model", "large", "--quantize", kind, "--name", kind], {}, folder, kind)
    ways = {
        "script": command([sys.executable, str(path), "large", f"{kind}.png"], folder),
        "stored": command(generate(kind, LARGE, f"{kind}.png", "--no-worker"), folder, f"{kind}.png"),
    }
    runs = rounds(ways, count)
    (folder / "large").unlink()
    return [
        Row(f"1 B, a script that quantizes ({kind})", runs["script"]),
        against(f"1 B, stored {kind}", runs, "stored", "script", "the script", 0.40),
    ]


def table(rows: Iterable[Row]) -> str:
    lines = ["| way | seconds | of processor | figure | limit | |", "|---|---|---|---|---|---|"]
    for row in rows:
        wall, processor = (statistics.median(getattr(run, name) for run in row.runs) for name in Run._fields)
        figure = "" if row.figure is None else f"{row.figure:.2f} {row.says}"
        limit = "" if row.limit is None else f"{row.limit:.2f}"
        verdict = "" if row.limit is None else ("MISSED" if missed(row) else "kept")
        lines.append(f"| {row.way} | {wall:.2f} | {processor:.2f} | {figure} | {limit} | {verdict} |")
    return "\n".join(lines)


def missed(row: Row) -> bool:
    return row.limit is not None and row.figure is not None and row.figure > row.limit


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=7, help="rounds that count (default 7)")
    parser.add_argument("--large", type=Path, help="as tools/make_large_flux.py makes it; takes 3 GB more")
    parser.add_argument("--scratch", type=Path, help="where the temporary cache goes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="diffpipe-bench-", dir=options.scratch) as name:
        folder = Path(name)
        os.environ |= {"DIFFPIPE_HOME": str(folder / "home"), "HF_HOME": str(folder / "huggingface")}
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # pip compiles what it installs
        timed([*diffpipe(), "build", "demo"], {}, folder, "demo")
        time.sleep(2.5)  # as in bench_start: what is as new as this is read again
        rows = [*cold(folder, options.runs), *warm(folder, options.runs)]
        for kind in KINDS if options.large else ():
            rows += large(options.large, folder, options.runs, kind)
    print(table(rows))
    sys.exit(any(map(missed, rows)))


if __name__ == "__main__":
    main()
