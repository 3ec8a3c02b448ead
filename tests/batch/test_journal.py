"""The journal: what it holds, what it forgives, and that it belongs to one run at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffpipe.batch.journal import opened
from diffpipe.core.errors import CacheError, UsageError
from diffpipe.storage.disk import mark

KEY = "ab" * 32


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "out" / "x.journal.jsonl"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path) -> None:
    """A journal of a finished item `a`, a failed one `b` and one, `c`, that was begun."""
    with opened(path) as journal:
        journal.begin(KEY, 7)
        (path.parent / "a.png").write_bytes(b"picture")
        journal.started("a", "a-digest", 1, ["out/a.png"])
        journal.done("a", "a-digest", 1, ["out/a.png"], 0.12345, ["it was hot"])
        journal.failed("b", "b-digest", 2, "it broke")
        journal.started("c", "c-digest", 3, ["out/c.png", "out/deep/c-2.png"])


def test_what_it_holds(path: Path) -> None:
    write(path)
    first, *rest = lines(path)
    assert first == {"journal": 1, "pipeline": KEY, "seed": 7}
    digest = rest[1]["files"][0].pop("digest")
    assert digest.startswith("sha256:")
    assert len(digest) == 7 + 64
    assert rest == [
        {"id": "a", "item": "a-digest", "status": "started", "seed": 1, "paths": ["a.png"]},
        {
            "id": "a", "item": "a-digest", "status": "done", "seed": 1, "files": [{"path": "a.png", "size": 7}],
            "seconds": 0.123, "warnings": ["it was hot"], "error": None,
        },
        {
            "id": "b", "item": "b-digest", "status": "failed", "seed": 2, "files": [], "seconds": 0.0, "warnings": [],
            "error": "it broke",
        },
        {"id": "c", "item": "c-digest", "status": "started", "seed": 3, "paths": ["c.png", "deep/c-2.png"]},
    ]  # fmt: skip


def test_it_is_read_again(path: Path) -> None:
    write(path)
    with opened(path) as journal:
        assert journal.header == {"journal": 1, "pipeline": KEY, "seed": 7}
        found = [(journal.last(name) or {}).get("status") for name in "abcd"]
        assert found == ["done", "failed", "started", None]
        begun = journal.last("c")
        assert begun is not None
        assert journal.paths(begun) == [str(path.parent / "c.png"), str(path.parent / "deep" / "c-2.png")]
        journal.done("c", "c-digest", 3, [], 1.0)
        assert (journal.last("c") or {})["status"] == "done"


@pytest.mark.parametrize("change", ["longer", "other", "gone", "none"])
def test_a_file_that_changed_is_not_intact(path: Path, change: str) -> None:
    write(path)
    picture = path.parent / "a.png"
    {
        "longer": lambda: picture.write_bytes(b"picture and more"),
        "other": lambda: picture.write_bytes(b"PICTURE"),
        "gone": picture.unlink,
        "none": lambda: None,
    }[change]()
    with opened(path) as journal:
        line = journal.last("a")
        assert line is not None
        assert journal.intact(line) is (change == "none")


def test_a_folder_of_frames_is_a_result(path: Path) -> None:
    frames = path.parent / "clip.frames"
    frames.mkdir(parents=True)
    for number in range(3):
        (frames / f"{number}.png").write_bytes(b"%d" % number)
    with opened(path) as journal:
        journal.begin(KEY, 1)
        journal.done("v", "v", 1, ["out/clip.frames"], 1.0)
        line = journal.last("v")
        assert line is not None
        assert line["files"][0]["size"] == 3
        assert journal.intact(line)
        (frames / "1.png").write_bytes(b"9")
        assert not journal.intact(line)


def test_files_are_on_disk_before_it_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    frames = path.parent / "clip.frames"
    frames.mkdir(parents=True)
    files = [path.parent / "a.png", frames / "00001.png"]
    for file in files:
        file.write_bytes(b"picture")
    with opened(path) as journal:
        journal.done("a", "a", 1, ["out/a.png", "out/clip.frames"], 1.0)
    assert synced == [file.stat().st_ino for file in (*files, path)]


def test_what_a_crash_left_of_an_item_is_removed_and_nothing_else(path: Path) -> None:
    write(path)
    mine = tempfile.mkstemp(dir=path.parent, prefix=mark(Path("c.png")), suffix=".tmp")[1]
    other = tempfile.mkstemp(dir=path.parent, prefix=mark(Path("d.png")), suffix=".tmp")[1]
    frames = path.parent / "deep" / f"{mark(Path('c-2.png'))}x.tmp"
    frames.mkdir(parents=True)
    (frames / "00001.png").write_bytes(b"x")
    with opened(path) as journal:
        for name in "abcd":
            journal.clear(name)
    assert [Path(one).exists() for one in (mine, other, frames)] == [False, True, False]


@given(kept=st.integers(0, 2000))
def test_a_crash_at_any_byte_loses_at_most_the_last_line(tmp_path_factory: pytest.TempPathFactory, kept: int) -> None:
    folder = tmp_path_factory.mktemp("crash")
    path = folder / "j.jsonl"
    with opened(path) as journal:
        journal.begin(KEY, 7)
        for name in "abc":
            journal.started(name, name, 1, [str(folder / name)])
            journal.failed(name, name, 1, "it broke")
    whole = path.read_bytes()
    cut = whole[: min(kept, len(whole))]
    path.write_bytes(cut)
    with opened(path) as journal:
        before = cut[: cut.rfind(b"\n") + 1]
        assert path.read_bytes() == before
        journal.begin(KEY, 8) if not journal.header else None
        journal.failed("d", "d", 1, "it broke")
    read = lines(path)
    assert read[-1]["id"] == "d"
    assert path.read_bytes().startswith(before)
    assert read[0]["seed"] == (7 if before else 8)


def test_another_file_is_left_alone(tmp_path: Path) -> None:
    for text in ("a fox\na cat\n", "one line without an end", '{"prompt": "x"}\n', '{"journa'[:-1] + "x"):
        (tmp_path / "p.txt").write_text(text)
        with pytest.raises(UsageError, match=r"p.txt is no journal"), opened(tmp_path / "p.txt"):
            pass
        assert (tmp_path / "p.txt").read_text() == text


def test_lines_that_are_damaged_are_passed_over(path: Path) -> None:
    write(path)
    text = path.read_text().splitlines(keepends=True)
    text[2:2] = ["no json\n", "[]\n", '{"id": 3}\n', "\n"]
    path.write_text("".join(text))
    with opened(path) as journal:
        assert [(journal.last(name) or {}).get("status") for name in "abc"] == ["done", "failed", "started"]


HOLD = """
import sys
import tempfile
from pathlib import Path
from diffpipe.batch.journal import opened
with opened(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_runs_are_kept_apart(path: Path) -> None:
    words = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="another run is writing"), opened(path):
            pass
        other.kill()  # a lock must not outlive its process
        other.wait()
    with opened(path) as journal:
        journal.begin(KEY, 1)
    assert len(lines(path)) == 1


def test_an_error_inside_is_not_taken_for_the_journals(path: Path) -> None:
    with pytest.raises(FileNotFoundError), opened(path):
        raise FileNotFoundError("something else")


def test_a_full_disk_is_told_and_leaves_no_part_of_a_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path)
    before = path.read_bytes()
    with opened(path) as journal:
        part = os.open(path, os.O_WRONLY | os.O_APPEND)

        def half(line: bytes) -> int:
            return os.write(part, line[: len(line) // 2])

        real = journal._writer

        class Full:
            write = staticmethod(half)
            truncate = real.truncate
            fileno = real.fileno

        monkeypatch.setattr(journal, "_writer", Full)
        with pytest.raises(CacheError, match="the disk is full"):
            journal.failed("d", "d", 1, "it broke")
        os.close(part)
    assert path.read_bytes() == before
