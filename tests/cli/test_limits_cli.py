"""The limits of the system: file sizes, descriptors, memory, streams that fail, folders that are taken away."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Cli, Done

from diffpipe.core.errors import Exit

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these limits are POSIX systems'")

ONE = ("generate", "demo", "--prompt", "a fox", "--num-inference-steps", 1, "--seed", 1)
# Takes a folder away when the second result has come to lie in it, as another terminal would.
TAKEN = """
import os, pathlib, diffpipe.engine.media.write as write
publish, made = write._publish, []
def taking(temporary, path, overwrite):
    found = publish(temporary, path, overwrite)
    made.append(found)
    if len(made) == 2:
        {how}
    return found
write._publish = taking
"""
WAYS = {
    "removed": "__import__('shutil').rmtree('out')",
    "renamed": "os.rename('out', 'elsewhere')",
    "replaced": "os.rename('out', 'elsewhere'); os.mkdir('out')",
    "a link": "os.rename('out', 'elsewhere'); os.mkdir('other'); os.symlink('other', 'out')",
}


def limit(name: str, value: int) -> str:
    """A program that sets a limit of its process."""
    return f"import resource; resource.setrlimit(resource.RLIMIT_{name}, ({value}, {value}))\n"


def error(done: Done) -> str:
    """The message of a run that failed as it should."""
    assert "Traceback" not in done.stderr
    assert "this is a bug" not in done.stderr
    (first,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return first.removeprefix("error: ")


def left_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module", autouse=True)
def demo(cli: Cli) -> None:
    cli("build", "demo", check=True)


@pytest.mark.parametrize(
    ("words", "most", "what"),
    [
        ((*ONE, "-o", "new/folder/x.png"), 1000, "new/folder/x.png"),
        ((*ONE, "-o", "x.png", "--log-file", "/dev/null", "--preview", "p.png"), 0, "x.png"),
        ((*ONE, "-o", "x.png", "--journal", "j.jsonl"), 20, "j.jsonl"),
        (("pipelines", "export", "demo", "x.tar"), 5000, "x.tar"),
        (("pipelines", "rename", "demo", "other"), 0, ""),  # of the entry, whichever comes first
    ],
)
def test_a_file_that_may_not_be_so_large(
    cli: Cli, tmp_path: Path, words: tuple[str, ...], most: int, what: str
) -> None:
    done = cli(*words, cwd=tmp_path, first=limit("FSIZE", most))
    assert done.returncode == Exit.CACHE
    message = error(done)
    assert message.startswith("there is no room for ")
    assert message.endswith(what)
    assert [path.name for path in tmp_path.rglob("*") if path.name not in ("j.jsonl", ".j.jsonl.lock")] == []


def test_what_is_made_again_and_looked_at(cli: Cli, tmp_path: Path) -> None:
    cli(*ONE, "-o", "x.png", cwd=tmp_path, check=True)
    done = cli("reproduce", "x.png", "-o", "y.png", cwd=tmp_path, first=limit("FSIZE", 1000))
    assert (done.returncode, error(done)) == (Exit.CACHE, "there is no room for y.png")
    words = (*ONE, "--count", 4, "-o", "z.png", "--contact-sheet", "s.png")
    done = cli(*words, cwd=tmp_path, first=limit("FSIZE", 30_000))
    assert "lacks results: there is no room for s.png" in done.stderr
    assert "s.png" not in left_in(tmp_path)


def test_weights_and_manifests_that_may_not_be_so_large(cli: Cli, tmp_path: Path) -> None:
    home = {"DIFFPIPE_HOME": str(tmp_path / "home")}
    done = cli("build", "demo", "--quantize", "int8", cwd=tmp_path, env=home, first=limit("FSIZE", 100_000))
    assert (done.returncode, error(done)[:21]) == (Exit.CACHE, "there is no room for ")
    done = cli("build", "demo", cwd=tmp_path, env=home, first=limit("FSIZE", 0))
    assert (done.returncode, error(done)[:21]) == (Exit.CACHE, "there is no room for ")
    assert {name.split("/")[1] for name in left_in(tmp_path)} <= {"digests", "locks"}


@pytest.mark.parametrize(
    "words", [(*ONE, "-o", "x.png", "--journal", "j"), ("build", "demo", "--dtype", "float32", "--name", "other")]
)
def test_few_descriptors_are_left(cli: Cli, tmp_path: Path, words: tuple[str, ...]) -> None:
    """Wherever they run out, it is told so; in the middle of an import, too."""
    held = "import os; held = []\ntry:\n    while True: held.append(os.dup(0))\nexcept OSError: pass\n"
    refused = 0
    for free in (1, 3):
        first = limit("NOFILE", 64) + held + f"for number in held[-{free}:]: os.close(number)\n"
        done = cli(*words, cwd=tmp_path, first="import diffpipe.cli.app\n" + first)
        if done.returncode:
            refused += 1
            assert (done.returncode, error(done)) == (Exit.CACHE, "no more files can be opened"), done.stderr
    assert refused


def test_no_memory_is_left(cli: Cli, tmp_path: Path) -> None:
    done = cli.fresh(*ONE, "-o", "x.png", cwd=tmp_path, first=limit("AS", 300 << 20))
    assert (done.returncode, error(done)) == (Exit.OUT_OF_MEMORY, "memory ran out")


@pytest.mark.parametrize("way", WAYS)
def test_a_folder_that_is_taken_away_ends_the_run(cli: Cli, tmp_path: Path, way: str) -> None:
    """Whoever is told of a number made finds as many."""
    first = TAKEN.format(how=WAYS[way])
    done = cli(*ONE, "--count", 4, "-o", "out/", cwd=tmp_path, first=first)
    assert (done.returncode, error(done)) == (
        Exit.CACHE,
        "the folder out was removed or replaced while the run wrote to it",
    )
    assert done.stdout.splitlines() == ["out/demo-1.png"]


def test_a_journal_that_is_taken_away_with_its_folder(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a fox\na cat\na dog\na cow\n")
    words = ("generate", "demo", "--prompts-from", "p.txt", "--num-inference-steps", 1, "-o", "out/")
    done = cli(*words, cwd=tmp_path, first=TAKEN.format(how=WAYS["removed"]))
    assert done.returncode == Exit.CACHE
    assert error(done).endswith("while the run wrote to it")
    assert "made" not in done.stderr.replace("make", "")


def test_one_file_that_is_taken_away_was_not_made(cli: Cli, tmp_path: Path) -> None:
    done = cli(*ONE, "--count", 3, "-o", "out/", cwd=tmp_path, first=TAKEN.format(how="os.unlink(found)"))
    assert (done.returncode, error(done)) == (Exit.CACHE, "out/demo-2.png was removed while the run went on")


STOPPED = """
import os, signal, diffpipe.engine.media.write as write
signal.signal(signal.{name}, signal.{before})
publish = write._publish
def stopped(*given):
    os.kill(os.getpid(), signal.{name})
    return publish(*given)
write._publish = stopped
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_signal_leaves_nothing_half_done(cli: Cli, tmp_path: Path, name: str, code: int) -> None:
    before = "default_int_handler" if name == "SIGINT" else "SIG_DFL"
    first = STOPPED.format(name=name, before=before)
    done = cli(*ONE, "--count", 2, "-o", "out/", "--journal", "j", cwd=tmp_path, first=first)
    assert (done.returncode, done.stdout, done.stderr.splitlines()[-1]) == (code, "", "interrupted")
    assert left_in(tmp_path) == [".j.lock", "j"]


def test_who_ignores_that_the_terminal_goes_is_let_be(cli: Cli, tmp_path: Path) -> None:
    cli(*ONE, "-o", "x.png", cwd=tmp_path, first=STOPPED.format(name="SIGHUP", before="SIG_IGN"), check=True)
    assert left_in(tmp_path) == ["x.png"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux alone has a device that is always full")
def test_messages_that_cannot_be_written_cost_no_result(cli: Cli, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "diffpipe", *map(str, (*ONE[:-2], "-o", "x.png"))],
            cwd=tmp_path, env=cli.environment(), stdout=subprocess.PIPE, stderr=full, text=True,
        )  # fmt: skip
    assert (done.returncode, done.stdout, left_in(tmp_path)) == (Exit.OK, "x.png\n", ["x.png"])


def test_closed_streams_are_not_taken_by_files(cli: Cli, tmp_path: Path) -> None:
    """What a library prints in C would go into them."""
    first = (
        "import os\nfor number in range(3): os.close(number)\nimport sys; sys.stdout = sys.stderr = sys.stdin = None\n"
    )
    after = "import atexit; atexit.register(lambda: os.write(2, b'a library speaks'))\n"
    done = cli(*ONE, "-o", "x.png", "--log-file", "log", cwd=tmp_path, first=first + after)
    assert done.returncode == Exit.OK
    assert b"a library speaks" not in (tmp_path / "log").read_bytes() + (tmp_path / "x.png").read_bytes()
