"""What becomes of items for which the device's memory runs out: which steps are taken, from where, and what is made.

Limits follow from what whole runs were measured to take at their peaks, so that they mean the same when that changes.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli

from paper.device import LIMIT, REPORT

SIZE = {"width": 48, "height": 48, "num_inference_steps": 1}
ARGUMENTS = {"flux": {**SIZE, "max_sequence_length": 16}, "stable-diffusion": SIZE}

# Switches by the steps that turn them on.
TILED = {"vae_slicing": True, "vae_tiling": True}
SLICED = {**TILED, "attention_slicing": True}


# What runs where the device is


@dataclass
class Bench:
    """Makes items of a tiny checkpoint on the device, each with a session of its own."""

    name: str
    model: Path
    folder: Path
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def session(self, **placed: Any) -> Any:
        from diffpipe.building.build import Options, build
        from diffpipe.building.request import Request as BuildRequest
        from diffpipe.cache.store import Store
        from diffpipe.cache.verify import locate
        from diffpipe.catalog import BUILTIN
        from diffpipe.core.build_spec import BuildSpec, Placement
        from diffpipe.runners.local import Session

        provider = BUILTIN[self.name]
        spec = BuildSpec(self.name, provider.types[0].name, str(self.model), dtype="float32", device="paper",
            placement=Placement(**placed))  # fmt: skip
        request = BuildRequest(spec, provider.types[0], Store(self.folder / "home"))
        entry = build(request, spec, Options(f"tiny-{next(self.numbers)}"), lambda text: None).entry
        manifest = entry.manifest()
        return Session(manifest, locate(entry, manifest))

    def make(self, session: Any, count: int = 1, **settings: Any) -> list[str]:
        """The digests of the files of items, or what failed."""
        from diffpipe.core.request import Request
        from diffpipe.engine.running.media_arguments import read_media
        from diffpipe.runners.settings import RunSettings

        flags = session.manifest.flags_by_name
        requests = [
            Request(number, number, {"prompt": "a cat", **ARGUMENTS[self.name]}, (str(self.folder / f"{number}.png"),),
                id=f"item-{number}", overwrite=True)
            for number in range(count)
        ]  # fmt: skip
        plain = RunSettings(read=lambda request: read_media(flags, request.arguments), on_step=lambda *_: None)
        outcomes = session.outcomes(requests, replace(plain, **settings))
        return [
            f"{one.error.message}; {one.error.hint}" if one.error else digest(one.artifacts[0].path) for one in outcomes
        ]


def digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@contextmanager
def counted() -> Iterator[Callable[[], int]]:
    """Bytes on the device beyond those at the start."""
    from paper.device import memory

    gc.collect()
    before = memory.now
    yield lambda: memory.now - before


def climbed(name: str, model: str, folder: str, limits: list[tuple[dict[str, Any], str, int]]) -> list[Any]:
    """What becomes of an item of a resident pipeline under each limit: (switches, moment, bytes) is the peak under
    those switches at a moment ("load", a stage, "run" for all, "nothing"), and so many bytes more.

    Returns for each the steps as [where memory ran out, what was tried then], what was made, what a pipeline makes that
    was built with the switches that were on last, and the bytes that are left on the device.
    """
    from paper.device import limited, memory

    bench = Bench(name, Path(model), Path(folder))

    @cache
    def built(switches: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
        stages: list[Any] = []
        with counted():
            memory.peak = before = memory.now
            session = bench.session(**dict(switches))
            load = memory.peak - before
            (made,) = bench.make(session, record=stages.extend)
            peaks = {one.case.stage: one.device and one.device - before for one in stages}
            return {**peaks, "nothing": 0, "load": load, "run": memory.peak - before, "made": made}

    def under(limit: int) -> list[Any]:
        steps: list[list[str]] = []
        with counted() as left, limited(memory.now + limit):
            session = bench.session()

            def told(line: str) -> None:
                where = "load" if "was loaded" in line else session.meter.stage
                steps.append([where, line.partition(": trying again with ")[2]])

            (made,) = bench.make(session, on_warning=told)
            last = session.pipeline.placement.to_json()
            session = None
            gc.collect()
            remains = left()
        return [steps, made, built(tuple(sorted(last.items())))["made"], remains]

    return [under(built(tuple(sorted(switches.items())))[moment] + more) for switches, moment, more in limits]


def interrupted(name: str, model: str, folder: str, placements: list[dict[str, Any]]) -> list[Any]:
    """By placement, what is on the device beyond what one item left there: after another failed within a layer, after
    Ctrl-C did, and after one more that is made; and whether that is as the first was."""
    import torch

    bench, linear = Bench(name, Path(model), Path(folder)), torch.nn.functional.linear

    def breaking(error: type[BaseException]) -> Callable[..., Any]:
        """A linear layer that raises the error the eighth time: within the denoiser, as the first item's embeddings of
        the prompt are kept."""
        calls = itertools.count(1)

        def failing(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == 8:
                raise error("here")
            return linear(*args, **kwargs)

        return failing

    def under(placed: dict[str, Any]) -> list[Any]:
        with counted() as now:
            session = bench.session(**placed)
            first = bench.make(session)
            gc.collect()
            before, left = now(), []
            for error in (ValueError, KeyboardInterrupt):
                torch.nn.functional.linear = breaking(error)
                with suppress(KeyboardInterrupt):
                    failed = bench.make(session)  # kept meanwhile, as a batch keeps an outcome
                torch.nn.functional.linear = linear
                gc.collect()
                left.append(now() - before)
            assert "here" in failed[0]
            again = bench.make(session)
            gc.collect()
            return [*left, now() - before, again == first]

    return list(map(under, placements))


def crowded(name: str, model: str, folder: str) -> dict[str, Any]:
    """Four items, while another program takes memory after the first and gives it back after the third: what was made,
    what was said of each, and how the pipeline was loaded meanwhile. Then the same where no step may be taken."""
    from diffpipe.core.errors import DiffpipeError
    from paper.device import limited, memory

    bench, loads = Bench(name, Path(model), Path(folder)), []
    said: list[str] = []
    with counted() as weights:
        session = bench.session()
        enough = weights()
        load, session.pipeline.load = (
            session.pipeline.load,
            lambda placed, look: loads.append(placed) or load(placed, look),
        )
        sizes = iter([enough - 1, enough - 1, 2 * memory.size, 2 * memory.size])
        with limited(memory.now):
            made = bench.make(
                session, 4, on_warning=said.append, before_writing=lambda: setattr(memory, "size", next(sizes))
            )
        session = None
    with counted(), limited(memory.now + enough - 1):
        try:
            bench.make(bench.session(), 2, step_down=False)
        except DiffpipeError as error:
            refused = [error.exit_code, error.message, error.hint]
    with counted():
        whole = bench.make(bench.session(), 4)
    return {"made": made, "said": said, "loads": [one.to_json() for one in loads], "refused": refused, "whole": whole}


def chunked(name: str, model: str, folder: str) -> list[list[str]]:
    """Two items side by side under model offload, with less memory than one takes: what is made and said, and what is
    made where there is enough, and under group offload, sliced and tiled."""
    from paper.device import limited, memory

    bench = Bench(name, Path(model), Path(folder))
    with counted():
        memory.peak = before = memory.now
        whole = bench.make(bench.session(cpu_offload="model"), 2)
        peak = memory.peak - before
    said: list[str] = []
    with counted(), limited(memory.now + peak - 1):
        made = bench.make(bench.session(cpu_offload="model"), 2, side_by_side=2, on_warning=said.append)
    with counted():
        grouped = bench.make(bench.session(cpu_offload="group", **SLICED), 2)
    return [made, said, whole, grouped]


# What pytest runs


@dataclass(frozen=True)
class Limit:
    """How much memory there is, as `climbed` takes it; where it runs out and what is tried then, from the first try on;
    and whether anything is made."""

    switches: dict[str, Any]
    moment: str
    more: int
    steps: list[tuple[str, str]]
    made: bool = True


T, S = "VAE tiling, VAE slicing", "VAE tiling, VAE slicing, attention slicing"
MODEL, GROUP, SEQUENTIAL = ({"cpu_offload": way} for way in ("model", "group", "sequential"))
CAST = {**GROUP, "layerwise_casting": True}
TO_GROUP = [
    ("load", "model offload"),
    ("denoise", f"model offload, {T}"),
    ("denoise", f"model offload, {S}"),
    ("denoise", f"group offload, {S}"),
]
TO_CAST = [*TO_GROUP, ("denoise", f"layerwise casting, group offload, {S}")]
TO_SEQUENTIAL = [*TO_CAST, ("denoise", f"sequential offload, {S}")]
FLUX_TO_GROUP = [
    ("load", "model offload"),
    ("decode", f"model offload, {T}"),
    ("decode", f"group offload, {T}"),
]
FLUX_TO_CAST = [
    *((where if where == "load" else "denoise", step) for where, step in FLUX_TO_GROUP),
    ("denoise", f"layerwise casting, group offload, {T}"),
]
FLUX_TO_SEQUENTIAL = [*FLUX_TO_CAST, ("denoise", f"sequential offload, {T}")]


def encoding(steps: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The same steps where memory runs out as soon as anything is computed."""
    return [(where if where == "load" else "encode", step) for where, step in steps]


# From what all of a pipeline as it was built needs to a thousand bytes.
LIMITS = {
    "stable-diffusion": [
        Limit({}, "run", 0, []),
        Limit({}, "run", -1, [("decode", T)]),
        Limit({}, "denoise", -1, [("denoise", T), ("denoise", S), ("denoise", f"model offload, {S}")]),
        Limit({}, "load", -1, [("load", "model offload")]),
        Limit({**TILED, **MODEL}, "run", -1, TO_GROUP),
        Limit({**SLICED, **GROUP}, "run", -1, TO_CAST),
        Limit({**SLICED, **CAST}, "run", -1, TO_SEQUENTIAL),
        Limit({}, "nothing", 1000, encoding(TO_SEQUENTIAL), made=False),
    ],
    "flux": [
        Limit({}, "run", 0, []),
        Limit({}, "run", -1, [("decode", T)]),
        Limit({}, "load", 0, [("encode", T), ("encode", f"model offload, {T}")]),
        Limit({}, "load", -1, [("load", "model offload")]),
        Limit(MODEL, "run", -1, [("load", "model offload"), ("decode", f"model offload, {T}")]),
        Limit({**TILED, **MODEL}, "run", -1, FLUX_TO_GROUP),
        Limit({**TILED, **GROUP}, "run", -1, FLUX_TO_CAST),
        Limit({}, "nothing", 1000, encoding(FLUX_TO_SEQUENTIAL), made=False),
    ],
}


@pytest.mark.parametrize("name", LIMITS)
def test_a_step_is_taken_for_each_limit_and_makes_what_is_made_when_built_so(
    name: str, on_paper: Callable[..., Any], checkpoints: Path, tmp_path: Path
) -> None:
    limits = LIMITS[name]
    asked = [(limit.switches, limit.moment, limit.more) for limit in limits]
    for limit, (steps, made, built, left) in zip(
        limits, on_paper(climbed, name, checkpoints / name, tmp_path, asked), strict=True
    ):
        assert [tuple(step) for step in steps] == limit.steps
        assert left == 0
        if limit.made:
            assert made == built
        else:
            last = limit.steps[-1][1]
            hint = "make it smaller, or build with a smaller --dtype"
            assert made == f"memory ran out, in the end with {last}; {hint}"


def test_what_failed_or_was_stopped_leaves_nothing_on_the_device(
    on_paper: Callable[..., Any], checkpoints: Path, tmp_path: Path
) -> None:
    placements = [{}, MODEL, GROUP, SEQUENTIAL, CAST]
    name = "stable-diffusion"
    for failed, stopped, again, same in on_paper(interrupted, name, checkpoints / name, tmp_path, placements):
        assert max(failed, stopped) <= 0  # what hooks moved layer by layer is given up whole
        assert (again, same) == (0, True)


def test_a_batch_goes_on_while_the_pipeline_does_not_fit_as_it_was_built(
    on_paper: Callable[..., Any], checkpoints: Path, tmp_path: Path
) -> None:
    name = "stable-diffusion"
    found = on_paper(crowded, name, checkpoints / name, tmp_path)
    assert found["made"][1:] == found["whole"][1:]  # offloading leaves every bit as it is
    unfit = "memory ran out as the pipeline as it was built was loaded: trying again with model offload"
    assert found["said"][3:] == [f"item-1: {unfit}", f"item-2: {unfit}"]
    assert found["loads"] == [{**SLICED, **MODEL}, {}, MODEL, {}]
    problem = "the pipeline does not fit into the memory of paper as it was built"
    assert found["refused"] == [5, problem, "build with --cpu-offload model, or with a smaller --dtype"]


def test_items_of_a_chunk_step_down_by_themselves(
    on_paper: Callable[..., Any], checkpoints: Path, tmp_path: Path
) -> None:
    name = "stable-diffusion"
    made, said, whole, grouped = on_paper(chunked, name, checkpoints / name, tmp_path)
    steps = [step for _, step in TO_GROUP[1:]]
    stepped = [number for number in range(2) if any(line.startswith(f"item-{number}: ") for line in said)]
    before = ["the pipeline as it was built", *steps]
    assert said == [
        f"item-{number}: memory ran out with {was}: trying again with {now}"
        for number in stepped
        for was, now in zip(before, steps, strict=False)
    ]
    assert stepped  # the second may find what the first gave back
    assert made == [(grouped if number in stepped else whole)[number] for number in range(2)]


def test_the_command_line_says_every_step(paper: Cli, checkpoints: Path) -> None:
    model = ("--model", checkpoints / "stable-diffusion", "--dtype", "float32")
    paper("build", "stable-diffusion", *model, "--name", "sd", "--device", "paper", check=True)
    flags = [word for name, value in SIZE.items() for word in (f"--{name.replace('_', '-')}", value)]
    (paper.cwd / "prompts.txt").write_text("a cat\na dog\n")
    call = ("generate", "sd", "--prompts-from", "prompts.txt", "--seed", "1", *flags)
    paper(*call, "-o", "whole/{index}.png", env={REPORT: str(paper.cwd / "report")}, check=True)
    less = {LIMIT: str(json.loads((paper.cwd / "report").read_text())["now"] * 9 // 10)}
    done = paper(*call, "-o", "less/{index}.png", "--json", env=less, check=True)
    unfit = "memory ran out as the pipeline as it was built was loaded: trying again with model offload"
    for item in map(json.loads, done.stdout.splitlines()):
        assert item["warnings"] == [unfit]
        assert f"{item['id']}: {unfit}" in done.stderr
        about = json.loads(paper("inspect", item["path"], "--json", check=True).stdout)
        assert "model" in json.dumps(about)
    journal = (paper.cwd / "less" / "sd.journal.jsonl").read_text()
    assert journal.count(unfit) == 2
    done = paper(*call, "-o", "none/{index}.png", "--no-step-down", env=less)
    assert (done.returncode, done.stdout) == (5, "")
    assert "does not fit into the memory of paper" in done.stderr
    assert "build with --cpu-offload model" in done.stderr
