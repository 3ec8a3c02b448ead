"""diffpipe.engine.tracing: what lives in a run without weights is what a device holds in the real one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli

from diffpipe.catalog import BUILTIN
from diffpipe.core.errors import UsageError
from diffpipe.core.tracing import Recipe
from diffpipe.memory.estimate import Task

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

# What is made of which checkpoint: provider, type, folder, width, height, frames.
CASES = {
    "flux": ("flux", "text2image", 64, 64, 1),
    "stable-diffusion": ("stable-diffusion", "text2image", 64, 48, 1),
    "wan": ("wan", "text2video", 64, 64, 5),
    "audioldm": ("audioldm", "text2audio", 64, 256, 1),
}
LONG = "a b " * 700  # more tokens than any of the models takes


def recipe_of(folder: Path, dtype: str = "float32") -> Recipe:
    index = json.loads((folder / "model_index.json").read_text())
    layout = {name: tuple(place) for name, place in index.items() if isinstance(place, list) and place[0]}
    found = {name: sorted((folder / name).glob("*config.json"))[:1] for name in layout}
    configs = {name: json.loads(paths[0].read_text()) for name, paths in found.items() if paths}
    return Recipe(index["_class_name"], layout, configs, dtype)


def held_on_paper(checkpoints: str, cases: dict[str, tuple[str, str, int, int, int]]) -> dict[str, Any]:
    """Case -> stage -> (bytes by trace, bytes that the device's memory held besides the weights)."""
    import gc

    import diffusers
    import torch
    from paper.device import memory

    from diffpipe.engine.loading.load import hook
    from diffpipe.engine.placement import apply
    from diffpipe.engine.tracing.trace import arguments, trace

    torch.set_num_threads(1)

    def real(pipe: Any, given: dict[str, Any], call: Any) -> dict[str, int]:
        pipe.set_progress_bar_config(disable=True)
        pipe.to("paper")
        gc.collect()
        weights, found, stage = memory.now, {}, "encode"
        memory.peak = memory.now

        def enter(new: str) -> None:
            nonlocal stage
            found[stage] = max(found.get(stage, 0), memory.peak - weights)
            memory.peak, stage = memory.now, new

        def decode(*args: Any, decoding: Any, **kwargs: Any) -> Any:
            enter("decode")
            return decoding(*args, **kwargs)

        for _, part in apply.modules(pipe, "denoiser"):
            part.register_forward_pre_hook(lambda *_: enter("denoise"))
        for _, part in apply.modules(pipe, "decoder"):
            part.decode = lambda *args, decoding=part.decode, **kwargs: decode(*args, decoding=decoding, **kwargs)
        with torch.no_grad():
            call(pipe, given) if call else pipe(**given)
        enter("over")
        return found

    shown = {}
    for name, (provider, kind, width, height, frames) in cases.items():
        row, folder = BUILTIN[provider].type(kind), Path(checkpoints) / name
        assert row
        recipe = replace(recipe_of(folder), float32=row.float32)
        task = Task(recipe.pipeline, width, height, frames, dtype="float32", steps=1)
        traced: dict[str, int] = {}
        for one in trace(recipe, task, row):
            traced[one.stage] = max(traced.get(one.stage, 0), one.living)
        cls = getattr(diffusers, recipe.pipeline)
        given = {**arguments(cls, task, row), "prompt": LONG, "negative_prompt": LONG}
        call = hook(row.quirks["call"]) if "call" in row.quirks else None
        held = real(cls.from_pretrained(folder), given, call)
        shown[name] = {stage: (traced[stage], held[stage]) for stage in ("encode", "denoise", "decode")}
    return shown


def test_a_trace_holds_what_a_device_holds_in_the_real_run_to_the_byte(
    on_paper: Callable[..., Any], checkpoints: Path
) -> None:
    shown = on_paper(held_on_paper, str(checkpoints), CASES)
    assert shown.keys() == CASES.keys()
    assert all(held > 0 for stages in shown.values() for _, held in stages.values())
    different = {
        (name, stage): (traced, held)
        for name, stages in shown.items()
        for stage, (traced, held) in stages.items()
        if traced != held
    }
    assert different == {}


# --- What lives ---


def living_of(function: Callable[[], object]) -> int:
    """The most bytes that live while a function runs, its arguments aside."""
    from diffpipe.engine.tracing.living import Living

    with Living().watching() as living:
        living.at_work("it")
        kept = function()
    del kept
    assert living.now == 0  # nothing is counted that is gone
    return living.most["encode", "it"]


def there(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def test_living_bytes_are_those_of_storages() -> None:
    def chain() -> object:
        one = there(10)  # 40 bytes
        view = one[2:].view(2, 4)  # none
        two = view * 2  # 32 more
        del one, view
        return two + 1  # 32 more, when 40 are gone

    assert living_of(chain) == 72


def test_fused_attention_holds_no_matrix_and_a_models_own_does() -> None:
    heads, tokens, width = 4, 64, 8
    state, matrix = heads * tokens * width * 4, heads * tokens * tokens * 4

    def fused() -> object:
        query, key, value = (there(1, heads, tokens, width) for _ in range(3))
        return torch.nn.functional.scaled_dot_product_attention(query, key, value)

    def by_hand() -> object:
        query, key, value = (there(1, heads, tokens, width) for _ in range(3))
        scores = query @ key.transpose(-1, -2)
        return scores.softmax(-1) @ value

    assert living_of(fused) == 4 * state
    assert living_of(by_hand) == 4 * state + 2 * matrix  # with the scores and their softmax


def test_values_that_a_run_depends_on_are_known() -> None:
    from diffpipe.engine.tracing.living import Living

    with Living().watching() as living:
        mask = torch.tensor([True, False, True, True]).to("meta")
        states = there(4, 100_000)
        taken = states[mask]
        counts = mask.sum(dim=0, keepdim=True).tolist()
        steps = torch.linspace(1, 0, 5).to("meta")
        where = (steps == 0.5).nonzero().item()
        steps[1] = 7.0  # changed in place, through a view
        unknown = states.isnan().any()
    assert (tuple(taken.shape), counts, where) == ((3, 100_000), [3], 2)
    assert living.value(steps).tolist() == [1.0, 7.0, 0.5, 0.25, 0.0]  # type: ignore[union-attr]
    assert living.value(unknown) is None


def test_what_was_not_computed_reads_as_finite_numbers() -> None:
    from diffpipe.engine.tracing.living import Living

    with Living().watching():
        states = there(2, 3)
        host = states.to("cpu")
        into = torch.zeros(2, 3)
        into.copy_(states)
        broken = bool(states.isnan().any())
    assert (host.tolist(), into.tolist(), broken) == ([[1.0] * 3] * 2, [[1.0] * 3] * 2, False)


def test_results_are_remembered_by_shape_and_kind_of_number() -> None:
    from diffpipe.engine.tracing.living import Living

    with Living().watching():
        whole = torch.ones(2, 3, dtype=torch.int64, device="meta")
        dtypes = [(whole * 2).dtype, (whole * 2.0).dtype, (whole * 2).dtype]
        shapes = [tuple((whole[:, :n] * 2).shape) for n in (1, 2, 1)]
    assert dtypes == [torch.int64, torch.float32, torch.int64]
    assert shapes == [(2, 1), (2, 2), (2, 1)]


# --- What cannot be traced ---


def test_a_pipeline_that_cannot_be_made_is_refused_in_words(checkpoints: Path) -> None:
    from diffpipe.engine.tracing.trace import trace

    row = BUILTIN["flux"].types[0]
    recipe = recipe_of(checkpoints / "flux")
    task = Task("FluxPipeline", 64, 64, dtype="float32")
    without = replace(recipe, layout={n: p for n, p in recipe.layout.items() if n != "vae"})
    with pytest.raises(UsageError, match="nothing says what FluxPipeline has for vae"):
        trace(without, task, row)
    wrong = {**recipe.configs["transformer"], "joint_attention_dim": 31}
    with pytest.raises(UsageError, match="FluxPipeline cannot be traced: "):
        trace(replace(recipe, configs={**recipe.configs, "transformer": wrong}), task, row)


# --- The command line ---


def test_plan_shows_the_trace_beside_the_estimate(cli: Cli, checkpoints: Path) -> None:
    asked = ("plan", "stable-diffusion", "--model", checkpoints / "stable-diffusion", "--device-memory", "8GiB",
             "--width", 64, "--height", 48)  # fmt: skip
    done = cli(*asked, "--trace", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    made = json.loads(done.stdout)
    assert [(one["stage"], one["component"]) for one in made["trace"]] == [
        ("encode", "text_encoder"), ("denoise", "unet"), ("decode", "vae"),
    ]  # fmt: skip
    weights = sum(part["weights"] for part in made["components"])
    assert all(one["device"] == weights + one["traced"] for one in made["trace"])
    assert "trace" not in json.loads(cli.light(*asked, "--json").stdout)


def test_a_trace_is_a_table_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    from diffpipe.cli.plan import _show_trace
    from diffpipe.memory.traced import Beside

    gib = 1 << 30
    _show_trace([Beside("decode", "vae", gib, 2 * gib, 5 * gib, 3 * gib)], "device")
    assert [line.split() for line in capsys.readouterr().out.splitlines() if line] == [
        ["besides", "weights", "estimated", "traced", "device", "by", "trace", "at", "work"],
        ["decode", "3.0", "GiB", "2.0", "GiB", "+50%", "5.0", "GiB", "vae"],
    ]
