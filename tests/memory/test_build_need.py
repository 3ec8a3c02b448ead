"""What builds that quantize need of host memory: predicted against measured, and refused before anything is fetched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Cli
from memory_docs import BUILDS, XL_UNET, needs, parts_of, task_of

from diffpipe.core.build_spec import Placement
from diffpipe.core.choices import Quantize
from diffpipe.core.errors import DiffpipeError, Exit
from diffpipe.memory import build_need as module
from diffpipe.memory.build_need import BuildNeed, build_need
from diffpipe.memory.estimate import LIBRARIES

GIB = 1 << 30
INT8 = Placement(quantize="int8")


@pytest.mark.parametrize(("what", "held", "each", "mode", "measured"), BUILDS, ids=[row[1] for row in BUILDS])
def test_what_builds_took(what: str, held: str, each: int, mode: Quantize, measured: tuple[float, ...]) -> None:
    need = needs(held, each, mode)
    for predicted, true in zip((need.host, need.mapped, need.own), measured, strict=True):
        assert not true or predicted / 1e9 == pytest.approx(true, rel=0.1)
    assert need.converted == (0 if held == "BF16" else 2 * (XL_UNET.parameters or 0))


def test_weights_that_are_as_they_are_loaded_stay_in_their_files() -> None:
    need = build_need(parts_of("flux-dev"), INT8, task_of("flux-dev"))
    assert need
    assert need.mapped == LIBRARIES + sum(part.stored or 0 for part in parts_of("flux-dev") if part.kind != "decoder")


def test_loras_make_what_they_change_the_process_s_own_but_how_much_that_is_they_alone_know() -> None:
    """Of the whole denoiser at most; what is sure, and refused where there is not so much, is without it."""
    plain, fused = (build_need(parts_of("flux-dev"), INT8, task_of("flux-dev"), loras=loras) for loras in (False, True))
    assert plain
    assert fused
    (denoiser,) = (2 * (part.parameters or 0) for part in parts_of("flux-dev") if part.kind == "denoiser")
    assert fused.own - plain.own == plain.mapped - fused.mapped == denoiser
    assert fused.least == plain.least == plain.own


def test_a_build_that_quantizes_nothing_loads_nothing() -> None:
    assert build_need(parts_of("flux-dev"), Placement(), task_of("flux-dev")) is None
    ready = [replace(part, quantized="bitsandbytes") for part in parts_of("flux-dev")]
    assert build_need(ready, INT8, task_of("flux-dev")) is None
    absent = replace(INT8, quantize_components=("vaes",))
    assert build_need(parts_of("flux-dev"), absent, task_of("flux-dev")) is None


def told(need: BuildNeed, monkeypatch: pytest.MonkeyPatch, total: int | None, free: int | None, force: bool) -> str:
    monkeypatch.setattr(module, "host_total", lambda: total)
    monkeypatch.setattr(module, "host_free", lambda: free)
    try:
        return module.check(need, force)
    except DiffpipeError as error:
        return f"{error.message}\n{error.hint}" if error.exit_code == Exit.OUT_OF_MEMORY else repr(error)


def test_what_ends_in_the_middle_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    need = BuildNeed(20 * GIB, 10 * GIB, 10 * GIB, 8 * GIB, 10 * GIB)
    assert told(need, monkeypatch, 12 * GIB, 11 * GIB, False) == ""
    short = "quantizing needs some 10.0 GiB of memory, and 9.0 GiB are free: the system may end it"
    assert told(need, monkeypatch, 12 * GIB, 9 * GIB, False) == short
    assert told(need, monkeypatch, 7 * GIB, 6 * GIB, False).splitlines() == [
        "quantizing needs some 10.0 GiB of memory, and this machine has 7.0 GiB in all",
        "weights that are in their files as --dtype has them need less (see --variant); --force tries it as it is",
    ]
    mapped = replace(need, converted=0)
    assert "import its bundle here" in told(mapped, monkeypatch, 7 * GIB, 6 * GIB, False)
    assert told(need, monkeypatch, 7 * GIB, 9 * GIB, True) == short
    assert told(need, monkeypatch, None, None, False) == ""
    assert told(replace(need, least=GIB), monkeypatch, 7 * GIB, 6 * GIB, False).startswith("quantizing needs some 10.0")
    monkeypatch.setattr(module.sys, "platform", "darwin")  # its swap grows
    assert told(need, monkeypatch, 7 * GIB, 9 * GIB, False) == short


def test_a_build_is_refused_before_it_fetches_or_loads(cli: Cli, checkpoints: Path) -> None:
    words = ("build", "flux", "--model", checkpoints / "flux", "--device", "cpu", "--quantize", "int8")
    small = "from diffpipe.memory import build_need; build_need.host_total = lambda: 1 << 20"
    done = cli(*words, first=small)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.splitlines() == [
        "error: quantizing needs some 0.3 GiB of memory, and this machine has 1 MiB in all",
        "  try: build it on a machine with more, and import its bundle here; --force tries it as it is",
    ]
