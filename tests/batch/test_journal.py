"""The journal: what it holds, what it forgives, and that it belongs to one run at a time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffpipe.batch.journal import Journal, opened, opened_to_read
from diffpipe.batch.journal_lines import (
    LONGEST_LINE,
    LONGEST_WORDS,
    MOST_FILES,
    Header,
    NotedFile,
    Record,
    header_of,
    line_of,
    record_of,
)
from diffpipe.core.errors import CacheError, UsageError
from diffpipe.storage.disk import mark

KEY = "ab" * 32


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "out" / "x.journal.jsonl"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def state(journal: Journal, name: str) -> str | None:
    record = journal.last(name)
    return record.state if record else None


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
        assert journal.header == Header(KEY, 7)
        found = [state(journal, name) for name in "abcd"]
        assert found == ["done", "failed", "started", None]
        begun = journal.last("c")
        assert begun is not None
        assert journal.paths(begun) == [str(path.parent / "c.png"), str(path.parent / "deep" / "c-2.png")]
        journal.done("c", "c-digest", 3, [], 1.0)
        assert state(journal, "c") == "done"


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
        record = journal.last("a")
        assert record is not None
        assert journal.intact(record) is (change == "none")


def test_a_folder_of_frames_is_a_result(path: Path) -> None:
    frames = path.parent / "clip.frames"
    frames.mkdir(parents=True)
    for number in range(3):
        (frames / f"{number}.png").write_bytes(b"%d" % number)
    with opened(path) as journal:
        journal.begin(KEY, 1)
        journal.done("v", "v", 1, ["out/clip.frames"], 1.0)
        record = journal.last("v")
        assert record is not None
        assert record.files[0].size == 3
        assert journal.intact(record)
        (frames / "1.png").write_bytes(b"9")
        assert not journal.intact(record)


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
        assert [state(journal, name) for name in "abc"] == ["done", "failed", "started"]


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
        with pytest.raises(CacheError, match="there is no room for"):
            journal.failed("d", "d", 1, "it broke")
        os.close(part)
    assert path.read_bytes() == before


# Journals of other versions, and of other programs

SAMPLES = Path(__file__).parent / "samples"  # written by diffpipe 0.1.0


def test_a_journal_of_the_first_version_is_read(tmp_path: Path) -> None:
    shutil.copy(SAMPLES / "journal.jsonl", path := tmp_path / "demo.journal.jsonl")
    with opened(path) as journal:
        assert journal.header == Header("d3d470a7650abe6fc550d7ac73c83d356c779793ab6c0b8be9168d2f8a3800de", 2072656898)
        done, failed = journal.last("fox"), journal.last("bad")
        assert done == Record(
            "fox", "9c8a621dbea5824110c6675ebb748dbde3dd873e1a03856a10eb518c04a9b932", "done", 1,
            files=(
                NotedFile(
                    "demo-fox.png", 9837, "sha256:0418d2f812c0d1132229486664c23ecf2d1532d4eddf5dc895c2eff306640662"
                ),
            ),
            seconds=0.316,
        )  # fmt: skip
        assert failed == Record(
            "bad", "96fcaacc78ac4730310dbdd9eaac2b0dbcfb410dc005d2960812e12a573bb2a2", "failed", 4175422949,
            error="FluxPipeline failed: 'int' object has no attribute 'ndim'",
        )  # fmt: skip
        assert state(journal, "d0b489f21ee21286") == "done"
        assert not journal.intact(done)
    assert path.read_bytes() == (SAMPLES / "journal.jsonl").read_bytes()


def test_a_journal_of_the_first_version_with_urls_and_refused_rows_is_read() -> None:
    with opened_to_read(SAMPLES / "journal_urls.jsonl") as journal:
        file = NotedFile("s3://bucket/out/fox.png", 3, "sha256:" + "0" * 64, "e1")
        assert journal.header == Header(KEY, 7)
        assert journal.last("fox") == Record(
            "fox", "cd" * 32, "done", 1, files=(file,), seconds=0.5, warnings=("a warning",)
        )
        assert journal.last("line-2") == Record(
            "line-2", "", "failed", None, error="p.jsonl line 2: --width 33 is no multiple of 16"
        )
        assert journal.paths(Record("fox", "", "done", 1, files=(file,))) == ["s3://bucket/out/fox.png"]


@pytest.mark.parametrize("name", ["journal.jsonl", "journal_urls.jsonl"])
def test_every_line_is_written_as_the_first_version_wrote_it(name: str) -> None:
    first, *rest = (SAMPLES / name).read_bytes().splitlines(keepends=True)
    assert line_of(header_of(json.loads(first))) == first
    assert [line_of(record_of(json.loads(line))) for line in rest] == rest


RECORD = {"id": "a", "item": "x", "status": "done", "seed": 1, "files": [{"path": "a.png", "size": 7}]}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"status": "finished"}, "status is none of started, done, failed"),
        ({"status": None}, "status is missing"),
        ({"item": 3}, "item is no text"),
        ({"seed": -1}, f"seed is no whole number from 0 to {2**64 - 1}"),
        ({"seed": 2**64}, f"seed is no whole number from 0 to {2**64 - 1}"),
        ({"seed": True}, f"seed is no whole number from 0 to {2**64 - 1}"),
        ({"files": {}}, "files is no list"),
        ({"files": ["a.png"]}, "files.0 is no object"),
        ({"files": [{"size": 7}]}, "files.0.path is missing"),
        ({"files": [{"path": "a.png", "size": -1}]}, f"files.0.size is no whole number from 0 to {2**63 - 1}"),
        ({"files": [{"path": "a.png"}] * (MOST_FILES + 1)}, f"it has more than {MOST_FILES} files"),
        ({"status": "started", "paths": ["a.png"] * (MOST_FILES + 1)}, f"it has more than {MOST_FILES} files"),
        ({"status": "started", "paths": [1]}, "paths is no list of texts"),
        ({"warnings": "hot"}, "warnings is no list"),
        ({"seconds": "1"}, "seconds is no number"),
        ({"error": ["x"]}, "error is no text"),
    ],
)
def test_what_a_line_says_that_no_diffpipe_wrote_is_refused(path: Path, change: dict[str, Any], what: str) -> None:
    write(path)
    with path.open("a") as stream:
        stream.write(json.dumps({**RECORD, **change}) + "\n")
    before = path.read_bytes()
    with opened(path) as journal:
        with pytest.raises(CacheError) as refused:
            journal.last("a")
        assert refused.value.message == f"what {path} says of a is damaged: {what}"
        assert state(journal, "b") == "failed"
        journal.refused("a", "it cannot be made")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("header", "error", "message"),
    [
        ('{"journal": 2, "pipeline": "x", "seed": 1}', UsageError, "was written by a newer diffpipe"),
        ('{"journal": 1, "pipeline": "x"}', CacheError, "is damaged: seed is missing"),
        ('{"journal": 1, "pipeline": 1, "seed": 1}', CacheError, "is damaged: pipeline is no text"),
        ('{"journal": "1", "pipeline": "x", "seed": 1}', CacheError, "is damaged: journal is no number"),
    ],
)
def test_a_run_that_says_what_no_diffpipe_wrote(path: Path, header: str, error: Any, message: str) -> None:
    path.parent.mkdir()
    path.write_text(header + "\n")
    with pytest.raises(error, match=message), opened(path):
        pass
    assert path.read_text() == header + "\n"


def test_a_line_of_any_length_is_not_read(path: Path) -> None:
    write(path)
    with path.open("ab") as stream:
        stream.write(b'{"id": "d", "item": "' + b"x" * LONGEST_LINE + b'"}\n')
    size = path.stat().st_size
    with pytest.raises(CacheError, match=f"it has a line of more than {LONGEST_LINE} bytes"), opened(path):
        pass
    assert path.stat().st_size == size


def test_an_error_of_any_length_can_be_noted(path: Path) -> None:
    with opened(path) as journal:
        journal.begin(KEY, 1)
        journal.failed("a", "a", 1, "\u20ac" * LONGEST_LINE)
    with opened(path) as journal:
        found = journal.last("a")
    assert found is not None
    assert found.error == "\u20ac" * LONGEST_WORDS


def test_reading_one_changes_and_makes_nothing(path: Path) -> None:
    write(path)
    with path.open("ab") as stream:
        stream.write(b'{"id": "d", "item": "cut sh')
    before = path.read_bytes(), path.stat().st_mtime_ns, sorted(path.parent.iterdir())
    with opened(path), opened_to_read(path) as journal:  # another run may hold it
        assert [state(journal, name) for name in "abcd"] == ["done", "failed", "started", None]
    with path.open("ab") as stream:
        stream.write(b'{"id": "d", "item": "cut sh')
    with opened_to_read(path):
        pass
    assert path.read_bytes() == before[0]
    assert sorted(path.parent.iterdir()) == before[2]
    with pytest.raises(CacheError, match="cannot read"), opened_to_read(path.with_name("none.jsonl")):
        pass
    assert sorted(path.parent.iterdir()) == before[2]


def test_a_refused_item_is_noted_once_and_takes_nothing_back(path: Path) -> None:
    write(path)
    with opened(path) as journal:
        for name in ("a", "c"):
            journal.refused(name, "it was made already")
        for error in ("it cannot be made", "it cannot be made", "nor now"):
            journal.refused("d", error)
        assert [state(journal, name) for name in "abcd"] == ["done", "failed", "started", "failed"]
    assert [line["error"] for line in lines(path) if line.get("id") == "d"] == ["it cannot be made", "nor now"]


def test_what_cannot_be_read_when_it_is_noted_was_not_made(path: Path) -> None:
    with opened(path) as journal:
        journal.begin(KEY, 1)
        with pytest.raises(CacheError, match=r"out/gone\.png cannot be read back"):
            journal.done("a", "a", 1, ["out/gone.png"], 1.0)
        assert journal.last("a") is None


@pytest.mark.parametrize("away", ["removed", "renamed", "replaced"])
def test_a_journal_that_is_taken_away_ends_the_run(path: Path, away: str) -> None:
    """What is written then would be read by nobody."""
    with opened(path) as journal:
        journal.begin(KEY, 1)
        path.unlink() if away == "removed" else path.rename(path.with_name("elsewhere"))
        if away == "replaced":
            path.write_bytes(b"")
        with pytest.raises(CacheError, match="was removed or renamed while the run wrote it"):
            journal.failed("a", "a", 1, "it failed")
        assert not path.exists() or not path.read_bytes()


@pytest.mark.parametrize("name", ["/dev/zero", "pipe", "/proc/kmsg", "/", "/usr/bin", "link"])
def test_a_journal_that_names_what_it_never_made_is_not_followed(path: Path, name: str) -> None:
    """The digest of an endless file is never done, and a pipe that nobody writes would be waited for."""
    path.parent.mkdir()
    os.mkfifo(path.parent / "pipe")
    (path.parent / "link").symlink_to("/dev/zero")
    for size in (0, 7, None):
        file = {"path": name, "size": size, "digest": "sha256:0"}
        done = {"id": "a", "item": "a", "status": "done", "seed": 1, "files": [file]}
        path.write_text(f'{{"journal": 1, "pipeline": "{KEY}", "seed": 1}}\n{json.dumps(done)}\n')
        with opened(path) as journal:
            record = journal.last("a")
            assert record
            assert not journal.intact(record)


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
@pytest.mark.parametrize("state", ["done", "started"])
def test_a_path_that_no_system_takes_is_damage(path: Path, name: str, state: str) -> None:
    path.parent.mkdir()
    line = {"id": "a", "item": "a", "status": state, "seed": 1, "files": [{"path": name}], "paths": [name]}
    path.write_text(f'{{"journal": 1, "pipeline": "{KEY}", "seed": 1}}\n{json.dumps(line)}\n')
    with opened(path) as journal, pytest.raises(CacheError, match="says of a is damaged") as caught:
        journal.last("a")
    assert caught.value.hint.startswith("remove that line")
