"""The folder of a run is known again, whatever number its file system gives it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffpipe.batch.held_folder import checked
from diffpipe.core.errors import CacheError
from diffpipe.core.request import Artifact, Outcome, Request


def made_in(folder: Path, count: int) -> Iterator[Outcome]:
    for at in range(count):
        folder.mkdir(exist_ok=True)
        path = folder / f"{at}.png"
        path.touch()
        yield Outcome(Request(at, at, {}, (str(path),)), (Artifact(str(path), at, at, "image", 0.01),))


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux which files are open")
@pytest.mark.parametrize("there", [True, False])
def test_it_is_open_while_the_run_goes_on(tmp_path: Path, there: bool) -> None:
    """Where no program has it open, vfat and many mounts by FUSE give a folder another number from time to time."""

    def is_open() -> bool:
        return str(folder) in [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]

    folder = (tmp_path / "out").resolve()
    if there:
        folder.mkdir(mode=0o300)  # to be written, and not to be read
    outcomes = checked(made_in(folder, 2), str(folder))
    next(outcomes)
    assert is_open()
    assert len(list(outcomes)) == 1
    assert not is_open()


def test_one_that_is_made_anew_is_another_though_it_gets_the_same_number(tmp_path: Path) -> None:
    (folder := tmp_path / "out").mkdir()
    outcomes = checked(made_in(folder, 2), str(folder))
    made = next(outcomes)
    os.unlink(made.artifacts[0].path)
    folder.rmdir()
    with pytest.raises(CacheError, match="was removed or replaced while the run wrote to it"):
        next(outcomes)
