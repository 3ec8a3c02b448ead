"""Files that somebody named: regular ones and pipes are read, all else is refused, and no open waits."""

from __future__ import annotations

import ast
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import house
import pytest

from diffpipe.batch import journal, presets
from diffpipe.cli import output
from diffpipe.core.errors import DiffpipeError, NotFoundError, UsageError
from diffpipe.results import gallery, metadata
from diffpipe.sources import named, pin
from diffpipe.storage import fetching, opening, streams
from diffpipe.storage.digests import DigestCache
from diffpipe.storage.opening import UnfitFile, open_regular, open_stream, read_regular
from diffpipe.storage.tensor_headers import read_header


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "WRITER_TIMEOUT", 0.1)


def make_special(kind: str, path: Path) -> Path:
    """Something at a path that is no file, or a link to one."""
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    elif kind == "folder":
        path.mkdir()
    else:
        if not os.path.exists(kind):
            pytest.skip(f"there is no {kind} here")
        path.symlink_to(kind)
    return path


KINDS = [
    "fifo", "socket", "folder", "/dev/zero", "/dev/urandom", "/dev/null", "/dev/full", "/dev/tty", "/proc/self/maps",
    "/proc/self/mem", "/proc/kmsg", "/proc/self/environ",
]  # fmt: skip


@pytest.fixture(params=KINDS)
def special(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    return make_special(request.param, Path("x"))


def test_what_is_no_file_is_told_at_once(special: Path) -> None:
    before = time.monotonic()
    for read in (open_regular, open_stream, lambda path: read_regular(path, 100)):
        with pytest.raises(OSError, match=r"it is|Is a directory|No such device|Permission|not permitted|Input/output"):
            read(special)  # type: ignore[operator]
    assert time.monotonic() - before < 10


WALLS: dict[str, Callable[[Path], object]] = {
    "preset": lambda path: presets.preset("./x.toml", path),
    "journal": lambda path: entered(journal.opened(path)),
    "journal to read": lambda path: entered(journal.opened_to_read(path)),
    "bundle": lambda path: entered(streams.reading(str(path))),
    "digest": lambda path: DigestCache(Path("digests")).get(path),
    "header": lambda path: read_header(path),
    "media digest": lambda path: metadata.media_digest(path),
    "source": lambda path: pin._pin_file("base", "x.safetensors", None),  # type: ignore[arg-type]
    "what a source is": lambda path: named.source_kind("./x"),
    "gallery": lambda path: gallery.check(path),
    "log": lambda path: output.set_up(log_file=path),
}
ENDINGS = {"preset": "x.toml", "source": "x.safetensors"}
# What may be at these: a folder of a model, a log on a device, an entry of a gallery that is not there yet.
TAKEN = {("what a source is", "folder"), ("gallery", "folder"), ("media digest", "folder")}
TAKEN |= {("what a source is", "/proc/self/maps")}  # who reads it looks again


def entered(opened: object) -> None:
    with opened:  # type: ignore[attr-defined]
        pass


@pytest.mark.parametrize("wall", WALLS)
@pytest.mark.parametrize("kind", ["fifo", "socket", "folder", "/dev/zero", "/proc/self/maps"])
def test_no_wall_waits_for_what_is_no_file(
    wall: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = make_special(kind, Path(ENDINGS.get(wall, "x")))
    before = time.process_time()
    if (wall, kind) in TAKEN or (wall == "log" and kind.startswith("/dev")):
        WALLS[wall](path)
        return
    with pytest.raises((DiffpipeError, OSError)) as caught:
        WALLS[wall](path)
    assert isinstance(caught.value, UnfitFile | DiffpipeError | IsADirectoryError), caught.value
    if isinstance(caught.value, DiffpipeError):
        assert caught.value.hint
        assert not isinstance(caught.value, NotFoundError)
    assert time.process_time() - before < 5


def test_a_file_is_read_no_further_than_its_limit(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert read_regular(tmp_path / "x", 5) == b"12345"
    with pytest.raises(UnfitFile, match="it is larger than 4 bytes"):
        read_regular(tmp_path / "x", 4)
    (tmp_path / "empty").touch()
    assert read_regular(tmp_path / "empty", 5) == b""


def test_memory_for_a_file_is_asked_for_by_its_size(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    most = 1 << 62  # which no machine has
    assert read_regular(tmp_path / "x", most) == b"12345"
    with open_regular(tmp_path / "x", "r+b", 0) as stream:  # one that grows while it is read
        stream.seek(3)
        assert opening.read_most(stream, most) == b"45"
        os.truncate(tmp_path / "x", 7)
        assert opening.read_most(stream, 1) == b"\0"


def write_later(path: str, *parts: bytes, pause: float = 0.0) -> threading.Thread:
    def write() -> None:
        with open(path, "wb", 0) as out:
            for part in parts:
                out.write(part)
                time.sleep(pause)

    writing = threading.Thread(target=write)
    writing.start()
    return writing


def test_a_pipe_is_read_while_somebody_writes_it(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    writing = write_later(str(pipe), b"a fox\n", b"a cat\n", pause=0.3)  # longer than a writer may be waited for
    with open_stream(pipe) as stream:
        assert stream.read() == b"a fox\na cat\n"
    writing.join()


def test_a_pipe_of_a_shell_whose_writer_has_gone(tmp_path: Path) -> None:
    source, target = os.pipe()
    os.write(target, b"x" * 3)
    os.close(target)
    with open_stream(f"/dev/fd/{source}") as stream:
        assert stream.read() == b"xxx"
    with open_stream(f"/dev/fd/{source}") as stream:
        assert stream.read() == b""
    os.close(source)


def test_a_pipe_through_which_nothing_comes_any_more_is_given_up() -> None:
    source, target = os.pipe()
    with open_stream(f"/dev/fd/{source}", still=0.05) as stream, pytest.raises(UnfitFile, match="nothing came for"):
        stream.read()
    os.close(source)
    os.close(target)


def test_what_comes_through_a_pipe_is_kept_for_who_reads_it_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_place", lambda _process: str(tmp_path))
    os.mkfifo(pipe := tmp_path / "pipe")
    writing = write_later(str(pipe), b"x" * 100_000)
    first = fetching.local(str(pipe))
    writing.join()
    assert (first.read_bytes(), fetching.local(str(pipe))) == (b"x" * 100_000, first)


def test_a_log_in_a_pipe_that_nobody_reads(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnfitFile, match="it is a pipe that nobody reads"):
        opening.open_log(tmp_path / "pipe")


def test_a_system_without_calls_of_unix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "AT_ONCE", 0)
    monkeypatch.delattr(os, "pread")
    monkeypatch.delattr(os, "set_blocking")
    (tmp_path / "empty").touch()
    assert read_regular(tmp_path / "empty", 5) == b""
    opening.open_log(tmp_path / "log").close()


def test_a_pipe_without_end_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_place", lambda _process: str(tmp_path))
    monkeypatch.setattr(fetching, "MOST_PIPED", 1000)
    os.mkfifo(pipe := tmp_path / "pipe")

    def write() -> None:
        with open(pipe, "wb", 0) as out:
            while True:
                try:
                    out.write(b"x" * 100)
                except BrokenPipeError:
                    return

    writing = threading.Thread(target=write)
    writing.start()
    with pytest.raises(UsageError, match="more than 1000 bytes"):
        fetching.local(str(pipe))
    writing.join(10)
    assert os.listdir(tmp_path) == ["pipe"]


def test_pipes_have_one_limit_all_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_place", lambda _process: str(tmp_path))
    monkeypatch.setattr(fetching, "_pipes", {})
    monkeypatch.setattr(fetching, "MOST_PIPED", 1000)
    for name in ("a", "b"):
        os.mkfifo(tmp_path / name)
        writing = write_later(str(tmp_path / name), b"x" * 600)
        if name == "a":
            fetching.local(str(tmp_path / name))
        else:
            with pytest.raises(UsageError, match="more than 1000 bytes"):
                fetching.local(str(tmp_path / name))
        writing.join()


# Nobody opens a user's file in another way

OPENERS = {"open", "fdopen", "read_bytes", "read_text"}
# Who opens by another way what diffpipe, or the system, made; or what is open already, or at a URL.
OURS = {"read_text", "hub.read_text", "media.read_text", "self.open", "store.open"}  # which open by it, or no path
SYSTEMS = re.compile(r"os\.devnull|'/proc/")
OWN = {
    "cache/bundle/transfer.py _received_weights", "cache/bundle/transfer.py write", "catalog/pipelines.py _file",
    "catalog/schedulers.py _table", "catalog/vocabulary.py read",
    "engine/loading/aligned.py write_file", "engine/media/encode.py _container", "engine/media/pictures.py _opened",
    "engine/media/pictures.py is_animated", "engine/media/read.py opened", "engine/media/text.py comment_gif",
    "engine/media/text.py read_text", 
    "engine/running/preview.py picture_of", "engine/seams/seam.py _sources", "memory/control_groups.py",
    "memory/device_facts.py _signs", "memory/recipes.py _settings", "memory/recorded.py recorded",
    "engine/placement/host_memory.py held",  # /proc/self/status
    "results/gallery_page.py page", "runners/worker/clients.py add",
     "runners/worker/lifecycle.py _started", "sources/download.py _stream",
    "storage/disk.py", "storage/opening.py", "storage/publishing.py", "storage/web.py",
}  # fmt: skip


def opened_in(source: Path) -> Iterator[str]:
    """The functions of a module that open something by other ways than `storage.opening`, each with the call."""
    text = source.read_text(encoding="utf-8")
    for function in ast.walk(ast.parse(text)) if any(f"{name}(" in text for name in OPENERS) else ():
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for call in ast.walk(function):
                called = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
                if called.split(".")[-1] in OPENERS and called not in OURS and not SYSTEMS.search(ast.unparse(call)):
                    yield f"{function.name}: {ast.unparse(call)[:90]}"


def test_nobody_opens_a_users_file_in_another_way() -> None:
    found = [
        f"{path.relative_to(house.SOURCE).as_posix()} {line}"
        for path in sorted(house.SOURCE.rglob("*.py"))
        for line in opened_in(path)
    ]
    assert len(found) > 20  # the reader does read
    others = [line for line in found if not {line.split(":")[0], line.split()[0]} & OWN]
    assert others == [], "\n".join(others)
