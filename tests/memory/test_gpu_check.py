"""tools/check_gpu.py: how results are judged and told, on results and answers that are written here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import check_gpu
import gpu_docs
import numpy as np
import pytest
from check_gpu import FLOOR, Check, Worker
from gpu_rows import FAMILIES, FLUX, LARGE, SD, Row, rows, with_references
from PIL import Image

GENERATED = {"path": "", "seconds": 0.5}


def picture(path: Path, level: int) -> Path:
    Image.fromarray(np.full((4, 4, 3), level, np.uint8)).save(path)
    return path


class Answers(Worker):
    """A process that answers with pictures of a level each, in order; None for one that ends."""

    def __init__(self, folder: Path, *levels: int | None, **more: Any) -> None:
        self.folder, self.levels, self.more = folder, list(levels), more
        self.asked: list[Any] = []

    def ask(self, patience: float, **request: Any) -> Any:
        self.asked.append(request)
        level = self.levels.pop(0)
        if level is None:
            raise check_gpu.Lost("the process ended with -11")
        path = picture(self.folder / f"{len(self.asked)}.png", level)
        printed = ["", json.dumps(GENERATED | {"path": str(path)})]
        return {
            "codes": [0, 0],
            "said": "",
            "printed": printed,
            "seconds": [1.0, 2.0],
            "peak": 100,
            "left": 0,
            **self.more,
        }


def run(check: Check, *wanted: Row) -> list[str]:
    return [check.run(row)["status"] for row in wanted]


def test_a_result_may_be_as_far_from_the_cpus_as_rounding_is(tmp_path: Path) -> None:
    """The CPU's bfloat16 is 10 levels from its float32, so the device may be 2 * 10 + 1 levels from the CPU."""
    row = Row("families", FLUX)
    before = (row.plain("float32"), row.plain("bfloat16"))
    for level, status in ((131, "close"), (110, "ok"), (132, "failed")):
        check = Check(tmp_path, "cuda:0", 60.0, Answers(tmp_path, 100, 110, level))
        assert run(check, *before, row) == ["ok", "ok", status]
        assert check.found[row.name]["cpu"]["bound"] == pytest.approx(21 / 255)
    exact = Check(tmp_path, "paper", 60.0, Answers(tmp_path, 100, 110, 111), exact=True)
    assert run(exact, *before, row) == ["ok", "ok", "failed"]


def test_offloading_may_be_rounded_otherwise_on_a_gpu_but_two_runs_may_not(tmp_path: Path) -> None:
    resident, offloaded = Row("placements", SD, "float32"), Row("placements", SD, "float32", ("--cpu-offload", "group"))
    again = Row("placements", SD, "float32", fresh=True)
    assert offloaded.resident() == again.resident() == resident
    check = Check(tmp_path, "cuda:0", 60.0, Answers(tmp_path, 100, 101))
    assert run(check, resident, offloaded) == ["ok", "ok"]
    assert check.found[offloaded.name]["resident"]["max"] == pytest.approx(FLOOR)
    check.made[again.name] = picture(tmp_path / "again.png", 101)
    line = {"stepped_down": []}
    assert check._compared(again, line) == ["other bytes than in another process (mean difference 0.0039)"]


def test_a_process_that_dies_costs_its_row(tmp_path: Path) -> None:
    check = Check(tmp_path, "cuda:0", 60.0, Answers(tmp_path, None, 100))
    assert run(check, Row("families", FLUX), Row("families", SD)) == ["failed", "ok"]
    assert "the process ended with -11" in check.found["flux-text2image bfloat16"]["words"]


def test_a_row_that_does_not_fit_into_the_budget_is_named(tmp_path: Path) -> None:
    check = Check(tmp_path, "cuda:0", 3.0, Answers(tmp_path))
    assert run(check, Row("families", FLUX)) == ["not run"]
    assert check.found["flux-text2image bfloat16"]["words"] == "the budget is used up"


def test_what_runs_short_of_memory_gets_a_share_of_the_peak_and_must_step_down(tmp_path: Path) -> None:
    plain, short = Row("memory", LARGE), Row("memory", LARGE, room=0.6)
    answers = Answers(tmp_path, 100, 100, said="memory ran out: trying again with model offload")
    check = Check(tmp_path, "cuda:0", 600.0, answers)
    assert run(check, plain, short) == ["ok", "ok"]
    assert [asked["room"] for asked in answers.asked] == [None, 60]
    assert check.found[short.name]["stepped_down"] == ["model offload"]
    answers.levels, answers.more = [100], {}
    assert run(check, short) == ["failed"]


def test_rows_are_named_once_and_come_after_what_they_are_compared_with() -> None:
    order = with_references(rows(quick=False, large=True))
    names = [row.name for row in order]
    assert len(names) == len(set(names)) > 250
    assert {row.case for row in order} == {*FAMILIES, LARGE}
    for row in order:
        for other in (row.on_cpu(), row.resident()):
            if other is not None and other != row and row.case != LARGE:
                assert names.index(other.name) < names.index(row.name)


def test_what_a_row_is_compared_with_goes_without_what_the_cpu_need_not_have() -> None:
    row = Row("compiled", FLUX, build=("--compile", "--quantize", "int8", "--cpu-offload", "model"), loose=True)
    assert row.on_cpu().build == ("--quantize", "int8")
    assert row.resident() == Row("compiled", FLUX, build=("--compile", "--quantize", "int8"), loose=True)
    assert Row("attention", FLUX, build=("--attention-backend", "flex")).on_cpu().build[0] == "--attention-backend"


def test_a_worker_that_ends_is_lost_and_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_gpu, "ROOT", tmp_path)
    (tmp_path / "tools").mkdir()
    program = (
        "import sys\nfor line in sys.stdin:\n    print('{}', flush=True) if 'live' in line else sys.exit('no device')\n"
    )
    (tmp_path / "tools/gpu_process.py").write_text(program)
    with (tmp_path / "log").open("wb") as log:
        worker = Worker({"PATH": str(Path(sys.executable).parent)}, log)
        with pytest.raises(check_gpu.Lost, match="ended with 1: no device"):
            worker.ask(60.0, do="die")
        assert worker.ask(60.0, do="live") == {}
        assert worker.end() == 0


def test_the_page_says_what_was_measured(tmp_path: Path) -> None:
    assert gpu_docs.section(tmp_path / "missing.json") == gpu_docs.NONE
    line = {"name": "a", "case": LARGE, "status": "ok", "words": "", "seconds": {"item": 3.0, "generate": 9.0}}
    found = {
        "device": "cuda:0", "date": "2026-12-01", "seconds": 300,
        "facts": {
            "card": "NVIDIA L4", "memory": 24 << 30, "versions": {"torch": "2.13.0", "diffusers": "0.42.1"},
            "speed": {"pageable": 2e9, "pinned": 2e10, "flops": 1e14},
            "attention": [{"kernel": "math", "dtype": "float32", "works": True, "ms": 2.0, "away": 0.001}],
        },
        "rows": [
            {**line, "group": "speed", "build": ["--cpu-offload", "group"], "peak": 2 << 30, "predicted": 3 << 30},
            {**line, "group": "quantizers", "status": "failed", "words": "error: noise\n  try: int8"},
        ],
    }  # fmt: skip
    (tmp_path / "gpu.json").write_text(json.dumps(found))
    text = gpu_docs.section(tmp_path / "gpu.json")
    assert "on NVIDIA L4 (`cuda:0`, 24 GiB), 2026-12-01, with torch 2.13.0" in text
    assert "2.0 GB/s from pageable memory and 20.0 GB/s from pinned memory. It does 100 TFLOP/s" in text
    assert "| --cpu-offload group | 3.00 | 9.0 | 2.00 | 3.00 | +50.0% |" in text
    assert "- a: error: noise try: int8" in text
    assert "| math | float32 | 2.00 | 0.0010 |" in text
