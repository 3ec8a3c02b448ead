"""What every test shares: a cache and a hub that are not the user's, the command line, and tiny checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings
from inputs import inputs as inputs  # a fixture

TESTS = Path(__file__).parent
NOWHERE = "http://127.0.0.1:9"  # the discard port, where nothing listens: a test that asks the hub fails at once
HEAVY = {"torch", "diffusers", "transformers", "PIL", "numpy", "peft", "accelerate", "av"}
Done = subprocess.CompletedProcess[str]
# The folders of tests for which the versions of packages matter, but for those that run whole processes.
LIGHT = {"batch", "building", "cache", "catalog", "core", "engine", "memory", "results", "sources", "storage"}
IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
TEMPORARY = pytest.StashKey[Path]()
UMASK = os.umask(0o022)
os.umask(UMASK)  # it can only be read by setting it


# How long an example takes says nothing on a busy machine.
settings.register_profile("diffpipe", deadline=None)
settings.load_profile("diffpipe")


def pytest_configure(config: pytest.Config) -> None:
    """Point every cache and the hub elsewhere, for this process and its children, before a library reads them."""
    folder = Path(tempfile.mkdtemp(prefix="diffpipe-tests-"))
    config.stash[TEMPORARY] = folder
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING", "DIFFPIPE_", "TRANSFORMERS_"))]:
        del os.environ[name]
    (folder / "run").mkdir(mode=0o700)
    os.environ |= {
        "DIFFPIPE_HOME": str(folder / "cache"),
        "HF_HOME": str(folder / "huggingface"),
        "XDG_CACHE_HOME": str(folder / "xdg"),
        "XDG_RUNTIME_DIR": str(folder / "run"),
        "HF_ENDPOINT": NOWHERE,
        "NO_PROXY": "*",
        "OMP_NUM_THREADS": "1",
    }


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as light what neither runs the command line nor loads a pipeline, unless it is for the pinned packages."""
    for item in items:
        heavy = {"cli", "checkpoints"} & set(getattr(item, "fixturenames", ()))
        if item.path.parent.name in LIGHT and not heavy and not item.get_closest_marker("pinned"):
            item.add_marker(pytest.mark.light)


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[TEMPORARY], ignore_errors=True)


def _own(family: int, address: str) -> bool:
    """Whether an address is one of this machine's: no other can be bound to."""
    with socket.socket(family, socket.SOCK_DGRAM) as bound:
        try:
            bound.bind((address, 0))
        except OSError:
            return False
    return True


@pytest.fixture(autouse=True)
def this_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test of this process connect to another machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and not _own(self.family, address[0]):
            raise AssertionError(f"a test tried to connect to {address[0]}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def environment_restored() -> Iterator[None]:
    """What runs in this process may set variables for good (runners.local stays offline), and the umask (a worker's is
    077): not for the next test."""
    before = dict(os.environ)
    os.umask(UMASK)
    yield
    os.environ.clear()
    os.environ.update(before)
    os.umask(UMASK)


@dataclass(frozen=True)
class Cli:
    """The real command line with a cache of its own. `cwd` is where it runs unless told otherwise."""

    home: Path
    cwd: Path

    def environment(self, env: Mapping[str, str] | None = None) -> dict[str, str]:
        own = {"DIFFPIPE_HOME": str(self.home), "HF_HOME": str(self.home.parent / "huggingface")}
        return {**os.environ, **own, "COLUMNS": "160", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8", **(env or {})}

    def __call__(
        self,
        *args: object,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = False,
        stdin: str = "",
    ) -> Done:
        """Run ``diffpipe ARGS`` to its end; with `check`, anything but exit code 0 fails the test with what it said."""
        words = [sys.executable, "-m", "diffpipe", *map(str, args)]
        done = self.run(words, cwd or self.cwd, self.environment(env), stdin)
        if check and done.returncode:
            pytest.fail(f"diffpipe {' '.join(words[3:])}: exit code {done.returncode}\n{done.stderr}")
        return done

    def run(self, words: list[str], cwd: Path, env: dict[str, str], stdin: str) -> Done:
        return subprocess.run(
            words, cwd=cwd, env=env, input=stdin, capture_output=True, encoding="utf-8", timeout=120, check=False
        )

    def light(self, *args: object, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Done:
        """Run ``diffpipe ARGS``, which must import nothing heavy: the test fails if it does."""
        done = self(*args, cwd=cwd, env={**(env or {}), "PYTHONPROFILEIMPORTTIME": "1"})
        lines = done.stderr.splitlines(keepends=True)
        imported = {line.rpartition("|")[2].strip().split(".")[0] for line in lines if line.startswith("import time:")}
        assert "diffpipe" in imported  # else the profile is not what this reads
        assert not imported & HEAVY
        done.stderr = "".join(line for line in lines if not line.startswith("import time:"))
        return done


@dataclass(frozen=True)
class Warm(Cli):
    """The same, in children forked from one process that has the libraries imported: 5 seconds less for each.

    A child is a fresh process but for those imports. Stdin is empty.
    """

    server: subprocess.Popen[str]

    def run(self, words: list[str], cwd: Path, env: dict[str, str], stdin: str) -> Done:
        assert not stdin
        assert self.server.stdin
        assert self.server.stdout
        with tempfile.TemporaryDirectory() as folder:
            order = {"args": words[3:], "cwd": str(cwd), "env": env, "folder": folder}
            print(json.dumps(order), file=self.server.stdin, flush=True)
            code = os.waitstatus_to_exitcode(int(self.server.stdout.readline()))
            texts = [Path(folder, name).read_text(encoding="utf-8") for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(words, code, *texts)


SERVER = """
import gc, json, os, signal, sys
import diffusers, peft, torch, transformers
from diffusers import FluxPipeline, StableDiffusionPipeline
gc.freeze()
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if not child:
        signal.alarm(120)
        os.chdir(order["cwd"])
        os.environ.clear()
        os.environ.update(order["env"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(os.path.join(order["folder"], name), os.O_WRONLY | os.O_CREAT), number)
        sys.argv = ["diffpipe", *order["args"]]
        code = 0
        try:
            from diffpipe.cli.app import main
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # tearing down torch takes seconds
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(scope="session")
def _warm_server() -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", SERVER]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield server
        assert server.stdin
        server.stdin.close()


@pytest.fixture(scope="module")
def warm(cli: Cli, _warm_server: subprocess.Popen[str]) -> Warm:
    """The command line with the cache of `cli`, in processes that have torch and diffusers imported already."""
    return Warm(cli.home, cli.cwd, _warm_server)


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """The command line; one cache and one working folder for the module's tests."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "work").mkdir()
    return Cli(folder / "home", folder / "work")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every tiny checkpoint of checkpoints.py (see `write_all` there), not to be changed: use `copy_of`.

    Made by another process, so that tests of what needs no torch do not import it.
    """
    folder = tmp_path_factory.mktemp("checkpoints")
    subprocess.run([sys.executable, str(TESTS / "checkpoints.py"), str(folder)], check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture
def copy_of(checkpoints: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies one of the `checkpoints` into the test's own folder, to be changed: copy_of(name, new name)."""

    def copy(name: str, new: str = "") -> Path:
        source, target = checkpoints / name, tmp_path / (new or name)
        return Path(shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target))

    return copy


@pytest.fixture(scope="session", autouse=True)
def _nothing_in_the_users_cache() -> Iterator[None]:
    """The environment that `pytest_configure` set must not be undone by a test."""
    before = {name: os.environ[name] for name in ("DIFFPIPE_HOME", "HF_HOME", "HF_ENDPOINT")}
    yield
    assert before == {name: os.environ.get(name) for name in before}
