"""The most host memory of a process in two parts: what is allocated is its own, a file read through a map is not."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest

from diffpipe.engine.placement import host_memory
from diffpipe.engine.placement.host_memory import Held, Watch

STATUS = "Name:\tpython\nVmHWM:\t   900 kB\nVmRSS:\t 700 kB\nRssAnon:\t 400 kB\nRssFile:\t 250 kB\nRssShmem:\t 50 kB\n"
SIZE = 64 << 20
PAGE = mmap.PAGESIZE


@pytest.fixture
def status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(host_memory, "STATUS", tmp_path / "status")
    return tmp_path / "status"


def test_what_proc_says(status: Path) -> None:
    status.write_text(STATUS)
    assert host_memory.held() == Held(400 << 10, 300 << 10, 900 << 10)
    assert host_memory.peak() == 900 << 10


@pytest.mark.parametrize("text", ["", "VmHWM: many kB\n", "VmHWM: 1 kB\n", None])
def test_a_system_that_does_not_say(status: Path, text: str | None) -> None:
    if text is not None:
        status.write_text(text)
    assert host_memory.held() is None
    with Watch() as watch:
        assert watch.largest == Held(0, 0, 0)
    assert "mapped" not in watch.words()


def test_the_parts_are_those_of_the_largest_sum_and_the_rest_of_the_peak_is_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = iter([Held(10, 5, 15), Held(10, 90, 100), Held(95, 4, 130), Held(20, 0, 130)])
    monkeypatch.setattr(host_memory, "held", lambda: next(now))
    watch = Watch()
    assert [watch._look() for _ in range(3)] == [True] * 3
    assert watch.largest == Held(10, 90, 100)
    monkeypatch.setattr(host_memory, "peak", lambda: 130_000_000)
    watch.largest = Held(10_000_000, 90_000_000, 100_000_000)
    assert watch.words() == "peak host memory 130 MB, of it mapped files 90 MB"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells the parts")
def test_a_mapped_file_and_what_is_allocated(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"1" * SIZE)
    before = host_memory.held()
    assert before
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as mapped, Watch() as watch:
        assert sum(mapped[::PAGE]) == 49 * (SIZE // PAGE)
        held = bytearray(b"1") * SIZE
        watch._look()
    assert len(held) == SIZE
    # Slack for what the interpreter itself takes and gives back meanwhile.
    assert watch.largest.mapped - before.mapped == pytest.approx(SIZE, rel=0.1)
    assert watch.largest.own - before.own == pytest.approx(SIZE, rel=0.1)
