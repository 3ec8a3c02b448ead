"""What a user's disk or shell does to the command line: an error of two lines and an exit code, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Cli, Done

from diffpipe.core.errors import Exit

LONG = ("a" * 300, "a" * 5000)  # longer than a name may be, and than a path
FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux alone has a device that is always full")
GONE = "import os; os.rmdir(os.getcwd())\n"


@pytest.fixture(scope="module", autouse=True)
def demo(cli: Cli) -> None:
    cli("build", "demo", check=True)


def refused(done: Done) -> tuple[int, str]:
    """Exit code and message; there is a hint after it, and no traceback."""
    assert "Traceback" not in done.stderr
    assert "this is a bug" not in done.stderr
    (first,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.stderr.splitlines()[-1].startswith("  try: ")
    return done.returncode, first.removeprefix("error: ")


@pytest.mark.parametrize(
    "words",
    [
        "build flux --model ~nouser/x",
        "build flux --model ~nouser/x.safetensors",
        "build demo --lora ~nouser/x.safetensors",
        "plan flux --model ~nouser/x",
        "pipelines import ~nouser/x.tar",
        "pipelines export demo ~nouser/x.tar",
    ],
)
def test_the_home_of_nobody(cli: Cli, words: str) -> None:
    assert refused(cli(*words.split())) == (Exit.USAGE, "there is no home folder of ~nouser")


def test_a_cache_in_the_home_of_nobody(cli: Cli) -> None:
    done = cli("pipelines", "list", env={"DIFFPIPE_HOME": "~nouser/x"})
    assert refused(done) == (Exit.USAGE, "there is no home folder of ~nouser")


@pytest.mark.parametrize("name", LONG, ids=["name", "path"])
@pytest.mark.parametrize(
    "words",
    [
        "build flux --model ./NAME",
        "build flux --model NAME",
        "build demo --lora NAME.safetensors",
        "plan flux --model ./NAME",
        "inspect NAME",
        "reproduce NAME",
        "pipelines import NAME",
        "pipelines export demo NAME",
        "generate demo --prompt a --dry-run --journal NAME",
    ],
)
def test_a_name_that_no_disk_holds(cli: Cli, words: str, name: str) -> None:
    code, message = refused(cli(*words.replace("NAME", name).split()))
    assert (code, message[:12]) == (Exit.USAGE, "the name aaa")
    assert message.endswith("… is longer than a disk can hold")
    assert len(message) < 200


@pytest.mark.parametrize("name", LONG, ids=["name", "path"])
@pytest.mark.parametrize("words", ["-o NAME.png --dry-run", "--prompts-from NAME", "--log-file NAME --dry-run"])
def test_an_option_that_no_disk_holds(cli: Cli, words: str, name: str) -> None:
    code, _ = refused(cli("generate", "demo", "--prompt", "a", *words.replace("NAME", name).split()))
    assert code in (Exit.USAGE, Exit.CACHE)


@pytest.mark.parametrize(
    "words",
    ["pipelines list", "build demo", "plan demo", "doctor", "inspect x.png", "generate demo --prompt a -o x.png"],
)
def test_a_working_folder_that_is_gone(cli: Cli, tmp_path: Path, words: str) -> None:
    (tmp_path / "gone").mkdir()
    done = cli.fresh(*words.split(), cwd=tmp_path / "gone", first=GONE)
    assert refused(done) == (Exit.NOT_FOUND, "the working folder is not there any more")


@pytest.mark.parametrize("words", ["--version", "--help", "generate --help"])
def test_help_needs_no_working_folder(cli: Cli, tmp_path: Path, words: str) -> None:
    (tmp_path / "gone").mkdir()
    assert cli.fresh(*words.split(), cwd=tmp_path / "gone", first=GONE).returncode == Exit.OK


def printing_to_full(cli: Cli, *words: str, stderr: int = subprocess.PIPE) -> Done:
    with open("/dev/full", "w") as full:
        return subprocess.run(
            [sys.executable, "-m", "diffpipe", *words],
            cwd=cli.cwd, env=cli.environment(), stdout=full, stderr=stderr or full, text=True,
        )  # fmt: skip


@FULL
@pytest.mark.parametrize(
    "words",
    ["--version", "--help", "generate --help", "pipelines list", "pipelines show demo --json", "providers list"],
)
def test_output_that_does_not_fit(cli: Cli, words: str) -> None:
    assert refused(printing_to_full(cli, *words.split())) == (Exit.CACHE, "there is no room for the output")


@FULL
def test_where_nothing_can_be_said_the_exit_code_says_it(cli: Cli) -> None:
    assert printing_to_full(cli, "pipelines", "list", stderr=0).returncode == Exit.CACHE
    assert printing_to_full(cli, "pipelines", "show", "none", stderr=0).returncode == Exit.NOT_FOUND


@FULL
def test_a_log_that_does_not_fit_ends_and_the_run_goes_on(cli: Cli) -> None:
    done = cli("generate", "demo", "--prompt", "a", "--dry-run", "--log-file", "/dev/full", check=True)
    assert done.stderr.count("warning: the log /dev/full ends here: No space left on device") == 1
    assert "Traceback" not in done.stderr


def test_a_pipe_is_not_replaced_by_a_file(cli: Cli, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    done = cli("pipelines", "export", "demo", tmp_path / "pipe", "--force")
    message = f"{tmp_path / 'pipe'} is a device, pipe or socket, which a file cannot replace"
    assert refused(done) == (Exit.USAGE, message)
    assert (tmp_path / "pipe").is_fifo()
