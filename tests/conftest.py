"""What every test shares: a cache and a hub that are not the user's, the command line, and tiny checkpoints."""

from __future__ import annotations

import inspect
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
from typing import Any

import pytest
from filelock import FileLock
from fork_server import HANGS, ForkServer, Running, packages
from hypothesis import settings
from inputs import inputs as inputs  # a fixture

TESTS = Path(__file__).parent
NOWHERE = "http://127.0.0.1:9"  # the discard port, where nothing listens: a test that asks the hub fails at once
HEAVY = {"torch", "diffusers", "transformers", "PIL", "numpy", "peft", "accelerate", "av"}
# How every command shows what it says.
SHOWN = {"COLUMNS": "160", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
PREPARED = {
    "bare": "import diffpipe.cli.app",
    "hub": "import diffpipe.sources.hub, diffpipe.cli.app",
    "ready": """
import contextlib
import diffpipe.sources.hub  # first: it sets a variable that the hub's client reads when it is imported
import diffpipe.cli.app, peft, torch, transformers
from diffusers import FluxPipeline, StableDiffusionPipeline
with contextlib.suppress(ImportError):  # a table that transformers makes for the first model of a process: 0.2 seconds
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    get_checkpoint_conversion_mapping("clip")
""",
}
PREPARED["paper"] = PREPARED["ready"]
# Where Python finds the device of paper/device.py, which torch loads as any device that a package brings.
ON_PAPER = {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS / "paper/site"), os.environ.get("PYTHONPATH", "")])}
FRESH = bool(os.environ.get("TEST_FRESH_PROCESSES")) or not hasattr(os, "fork")
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
    config.stash[TEMPORARY] = folder = Path(tempfile.mkdtemp(prefix="diffpipe-tests-"))
    point_elsewhere(folder)
    if hasattr(config.option, "loadscopereorder"):  # pytest-xdist's, of 3.7 on: it would undo the order of FIRST
        config.option.loadscopereorder = False


def point_elsewhere(folder: Path) -> None:
    """Point every cache and the hub elsewhere, for this process and its children, before a library reads them."""
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING", "DIFFPIPE_", "TRANSFORMERS_"))]:
        del os.environ[name]
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else every command would compile its modules anew
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


# Files that take longest, in this order: begun last, one of them would run alone while the other processors wait.
FIRST = (
    "test_quantize_families.py", "test_attack.py", "test_cold.py", "test_cache_cli.py", "test_ray.py",
    "test_worker_cli.py", "test_lora_cli.py", "test_place.py", "test_families.py", "test_generate_cli.py",
    "test_custom_cli.py", "test_fork_server.py", "test_batch_cli.py", "test_demo.py", "test_plugins.py",
    "test_memory_cli.py", "test_inspect_cli.py", "test_hub_folders.py", "test_collect.py", "test_completion.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, and mark as light what neither runs the command line nor loads a pipeline, unless it
    is for the pinned packages."""
    rank = {name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(FIRST)))
    for item in items:
        heavy = {"cli", "checkpoints"} & set(getattr(item, "fixturenames", ()))
        if item.path.parent.name in LIGHT and not heavy and not item.get_closest_marker("pinned"):
            item.add_marker(pytest.mark.light)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many command lines and calls the attacker tried (hostile/test_attack.py), where it was run."""
    reports = [one for found in terminalreporter.stats.values() for one in found if hasattr(one, "user_properties")]
    counts = [
        value for one in reports for name, value in one.user_properties if name == "attack" and one.when == "call"
    ]
    if counts:
        tried, failed = (sum(numbers) for numbers in zip(*counts, strict=True))
        terminalreporter.write_line(f"the attacker: {tried} tried, {failed} failed")


def pytest_unconfigure(config: pytest.Config) -> None:
    close_servers()
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
    """The command line with a cache of its own. `cwd` is where it runs unless told otherwise.

    Calls run in forks of a process that has the libraries imported (fork_server.py), or, where TEST_FRESH_PROCESSES is
    set, as `fresh` does: in processes of their own.
    """

    home: Path
    cwd: Path
    on_paper: bool = False  # whether there is a second device, "paper"

    def environment(self, env: Mapping[str, str] | None = None) -> dict[str, str]:
        own = {"DIFFPIPE_HOME": str(self.home), "HF_HOME": str(self.home.parent / "huggingface")}
        return {**os.environ, **own, **SHOWN, **(ON_PAPER if self.on_paper else {}), **(env or {})}

    def __call__(
        self,
        *args: object,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = False,
        stdin: str = "",
        first: str = "",
    ) -> Done:
        """Run ``diffpipe ARGS`` to its end; with `check`, anything but exit code 0 fails the test with what it said.

        `first`: a program in Python to run in the process before the command.
        """
        words, environment = [str(word) for word in args], self.environment(env)
        # A small process is forked faster. A command that needs the libraries after all has them imported there.
        small = "--help" in words or words[:1] in SMALL_COMMANDS
        server = fork_server("paper" if self.on_paper else "bare" if small else "ready")
        if FRESH or not server.takes(environment):
            return self.fresh(*args, cwd=cwd, env=env, check=check, stdin=stdin, first=first)
        done, _ = server.run(words, cwd=cwd or self.cwd, env=environment, stdin=stdin, first=first)
        return _checked(done, check)

    def begin(
        self, *args: object, cwd: Path | None = None, env: Mapping[str, str] | None = None, **streams: int
    ) -> Running | subprocess.Popen[str]:
        """Start ``diffpipe ARGS``. `streams`: those of subprocess.Popen; nothing on stdin, and pipes, unless told
        otherwise."""
        words, environment = [*map(str, args)], self.environment(env)
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
        if FRESH or not fork_server("ready").takes(environment):
            line = [sys.executable, "-m", "diffpipe", *words]
            return subprocess.Popen(line, cwd=cwd or self.cwd, env=environment, text=True, **streams)
        return Running(fork_server("ready"), words, cwd=cwd or self.cwd, env=environment, **streams)

    def fresh(
        self,
        *args: object,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = False,
        stdin: str = "",
        first: str = "",
    ) -> Done:
        """The same in a process of its own, from an interpreter that has nothing imported."""
        start = ["-c", first + RUN] if first else ["-m", "diffpipe"]
        done = subprocess.run(
            [sys.executable, *start, *map(str, args)],
            cwd=cwd or self.cwd, env=self.environment(env), input=stdin, capture_output=True, encoding="utf-8",
            timeout=HANGS, check=False,
        )  # fmt: skip
        return _checked(done, check)

    def light(self, *args: object, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Done:
        """Run ``diffpipe ARGS``, which must import nothing heavy: the test fails if it does."""
        server, environment = fork_server("bare"), self.environment(env)
        if FRESH or not server.takes(environment):
            return self._light_fresh(*args, cwd=cwd, env=env)
        done, imported = server.run(map(str, args), cwd=cwd or self.cwd, env=environment)
        assert imported is not None  # else the command did not end by itself
        assert not packages(imported) & HEAVY
        return done

    def _light_fresh(self, *args: object, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Done:
        done = self.fresh(*args, cwd=cwd, env={**(env or {}), "PYTHONPROFILEIMPORTTIME": "1"})
        lines = done.stderr.splitlines(keepends=True)
        imported = packages(line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:"))
        assert "diffpipe" in imported  # else the profile is not what this reads
        assert not imported & HEAVY
        done.stderr = "".join(line for line in lines if not line.startswith("import time:"))
        return done


def _checked(done: Done, check: bool) -> Done:
    if check and done.returncode:
        pytest.fail(f"{' '.join(done.args[1:])}: exit code {done.returncode}\n{done.stderr}")
    return done


SMALL_COMMANDS = ([], ["--version"], ["pipelines"], ["providers"], ["plan"], ["inspect"], ["worker"])
RUN = "\nimport runpy\nrunpy.run_module('diffpipe', run_name='__main__', alter_sys=True)\n"
Warm = Cli
_servers: dict[str, ForkServer] = {}


def fork_server(name: str) -> ForkServer:
    """One of this session's: `ready` has torch, diffusers and what else was used, `bare` has nothing heavy, and `hub`
    the hub's client and readers of media, but no torch."""
    if name not in _servers:
        log = Path(os.environ["DIFFPIPE_HOME"]).parent / f"{name}.log"
        never = {"bare": HEAVY | {"huggingface_hub"}, "hub": HEAVY - {"PIL", "av", "numpy"}}.get(name, ())
        paths = ON_PAPER if name == "paper" else {}
        _servers[name] = ForkServer(PREPARED[name], {**os.environ, **SHOWN, **paths}, log, never)
    return _servers[name]


def close_servers() -> None:
    for server in _servers.values():
        server.close()


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """The command line; one cache and one working folder for the module's tests."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "work").mkdir()
    return Cli(folder / "home", folder / "work")


@pytest.fixture(scope="module")
def warm(cli: Cli) -> Cli:
    """The same as `cli`."""
    return cli


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """The command line on a machine with a second device, "paper"; one cache and working folder for the module."""
    folder = tmp_path_factory.mktemp("paper")
    (folder / "work").mkdir()
    return Cli(folder / "home", folder / "work", on_paper=True)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every tiny checkpoint of checkpoints.py (see `write_all` there), not to be changed: use `copy_of`.

    Made once by another process, for all that pytest-xdist started; what needs no torch does not import it.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "checkpoints"
    with FileLock(f"{folder}.lock"):
        if not (whole := folder.with_suffix(".whole")).exists():
            _run_file(TESTS / "checkpoints.py", folder)
            whole.touch()
    return folder


def _run_file(program: Path, *args: object, server: str = "ready") -> str:
    """Run a Python file, which may use torch. Returns what it printed last, and shows what it says where it fails."""
    with open(os.devnull, "rb") as nothing, tempfile.TemporaryFile() as said:
        streams = (nothing.fileno(), said.fileno(), said.fileno())
        env = {**os.environ, **SHOWN, **(ON_PAPER if server == "paper" else {})}
        child = fork_server(server).start(map(str, args), cwd=TESTS, env=env, streams=streams, program=str(program))
        code = child.wait()
        said.seek(0)
        text = said.read().decode(errors="replace")
        if code:
            pytest.fail(f"{program}: exit code {code}\n{text}")
        return text.rstrip().rpartition("\n")[2]


@pytest.fixture
def on_paper() -> Callable[..., Any]:
    """Calls a function of a test's file in a process that has the device of paper: on_paper(function, JSON values...).

    Returns what it returns, which must be JSON, too.
    """

    def call(function: Callable[..., Any], *args: object) -> Any:
        words = (inspect.getfile(function), function.__name__, json.dumps(args, default=str))
        return json.loads(_run_file(TESTS / "paper/call.py", *words, server="paper"))

    return call


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
