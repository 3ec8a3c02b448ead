"""Runs hostile command lines and hostile input of single parsers, and says what is wrong with how each ended.

A generator is a module beside this one with one or both of

    def lines(rng: random.Random, folder: Path) -> Iterator[Line]   # command lines; `folder` is for files they name
    def cases(rng: random.Random, folder: Path) -> Iterator[Case]   # calls of one wall in this process

Both are endless and say the same for the same `rng`; what was made by hand comes first. LINES and CASES, where the
module has them, say how many the suite draws. An item may rely on what the generator wrote into `folder`, and on no
earlier item: the cache and the working folder are as before each time. The cache has the pipeline `demo`.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import random
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from conftest import RUN, Cli, fork_server

from diffpipe.core.errors import DiffpipeError, Exit
from diffpipe.core.parsing import Misfit
from diffpipe.core.printable import CONTROLS, printable

# What one command line may cost beyond `diffpipe --version`. The largest legitimate ones load the demo model and make a
# picture: 2 s of a processor and 300 MiB. A machine may be ten times slower, and none of the attacks is a little over.
CPU_SECONDS = 60.0
WALL_SECONDS = 240.0
MEMORY = 768 * 2**20  # bytes resident
DISK = 64 * 2**20  # bytes in new files
OUTPUT = 4 * 2**20  # bytes on stdout and stderr together; --help of a pipeline is 20 kB
LINE = 4000  # characters of a line on stderr; the longest hints name a command to run
CASE_SECONDS = 20.0  # of a processor, for one call of a parser
# Bounds of the process, so that what goes wrong does not take the machine with it.
ADDRESS, FILE = 8 * 2**30, 2**30

# What has a command write elsewhere, also where it fails.
HOMES = {"DIFFPIPE_HOME", "HF_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"}

DISORDER = ("this is a bug", "Traceback (most recent call last)", "Exception ignored in", "[y/N]")
LEFT_OVER = re.compile(r"\.tmp$|\.part$|\.partial$|\.incomplete$|\.lock$|^tmp|^core$")
ENTRIES = (
    "pipelines",
    "names",
    "pins",
    "blobs",
    "sources",
    "weights",
)  # folders of the cache that a failure adds nothing to


@dataclass(frozen=True)
class Line:
    """A command line: `words` after `diffpipe`, and what is hostile about it in a few words.

    `env` is added to the environment, `first` is a program in Python that the process runs before.
    """

    what: str
    words: tuple[str, ...]
    stdin: bytes = b""
    env: Mapping[str, str] = field(default_factory=dict)
    first: str = ""

    def shown(self) -> str:
        """As one types it in a shell, as far as printable."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.env.items()]
        fed = f"printf %b {shlex.quote(repr(self.stdin)[2:-1])} | " if self.stdin else ""
        return printable(fed + " ".join([*variables, "diffpipe", *map(shlex.quote, self.words)]))


@dataclass(frozen=True)
class Case:
    """A call of one wall: it returns, or raises a DiffpipeError or a Misfit, and nothing else."""

    what: str
    call: Callable[[], object]

    def shown(self) -> str:
        return printable(self.what)


@dataclass(frozen=True)
class Ended:
    """How a command line ended; times in seconds, memory in bytes."""

    code: int
    out: bytes
    err: bytes
    cpu: float
    wall: float
    memory: int


def generators() -> dict[str, object]:
    """The modules that take part, by name."""
    folder = str(Path(__file__).parent)
    names = sorted(one.name for one in pkgutil.iter_modules([folder]) if not one.name.startswith(("test_", "runner")))
    modules = {name: importlib.import_module(f"hostile.{name}") for name in names}
    return {name: one for name, one in modules.items() if hasattr(one, "lines") or hasattr(one, "cases")}


def seeded(seed: object, name: str) -> random.Random:
    return random.Random(f"{seed}:{name}")


# Command lines

PREPARE = """
import os, resource, tempfile
tempfile.tempdir = os.environ["TMPDIR"] = {temporary!r}
os.environ["HOME"] = {user!r}
resource.setrlimit(resource.RLIMIT_DATA, ({address}, {address}))
resource.setrlimit(resource.RLIMIT_FSIZE, ({file}, {file}))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
"""


class World:
    """A working folder, a cache with `demo`, a home and a temporary folder, for one command line at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("work", "temporary", "user", "given"):
            (root / name).mkdir(parents=True)
        self.cli = Cli(root / "home", root / "work")
        self.cli("build", "demo", check=True)
        shutil.copytree(root / "home", root / "pristine", symlinks=True)
        self.before = self.snapshot()
        self.base = {name: self._run_forked(Line("", ("--version",)), name).memory for name in ("hub", "ready")}

    def folder(self, name: str) -> Path:
        """Where the files of a generator are."""
        (found := self.root / "given" / name).mkdir(exist_ok=True)
        return found

    def snapshot(self) -> dict[str, tuple[int, int, int]]:
        """Every file and folder, with its kind, size and time of change; time of folders left out."""
        found = {}
        for top in ("work", "temporary", "user", "given", "home"):
            for folder, folders, files in os.walk(self.root / top):
                for name in (*folders, *files):
                    facts = os.lstat(path := os.path.join(folder, name))
                    plain = stat.S_ISREG(facts.st_mode)
                    time_ = facts.st_mtime_ns if plain else 0
                    found[os.path.relpath(path, self.root)] = (
                        stat.S_IFMT(facts.st_mode), facts.st_size if plain else 0, time_,
                    )  # fmt: skip
        return found

    def run(self, line: Line) -> list[str]:
        """What is wrong with how a command line ends; nothing where all is well. All is as before afterwards."""
        before = self.snapshot()
        name = server_of(line)
        run = self._run_forked if fork_server(name).takes(self._environment(line, name)) else self._run_fresh
        try:
            ended = run(line, name)
        except subprocess.TimeoutExpired:
            return [f"did not end within {WALL_SECONDS:g} s", *self._restore(before)]
        new = {path: facts for path, facts in self.snapshot().items() if before.get(path) != facts}
        gone = [path for path in before if not os.path.lexists(self.root / path)]
        # A shell's question whether there is a completion is answered by exit code 1.
        asked = ended.code == 1 and not ended.err and "_DIFFPIPE_COMPLETE" in line.env
        found = [] if asked else [*_faults(ended, self.base[name])]
        # reproduce --verify keeps what it made also where that differs, which its exit code says.
        written = any(word.startswith(("--log-file", "--verify")) for word in line.words)
        if not (HOMES & line.env.keys() or written):
            found += _files(ended.code, new, gone)
        self._restore(before)
        return found

    def _restore(self, before: Mapping[str, object]) -> list[str]:
        after = self.snapshot()
        for path in sorted(after.keys() - before.keys(), reverse=True):
            if not path.startswith("home/"):
                remove(self.root / path)
        if any(after.get(path) != facts for path, facts in before.items() if path.startswith("home/")) or any(
            path.startswith("home/") for path in after.keys() - before.keys()
        ):
            shutil.rmtree(self.root / "home")
            shutil.copytree(self.root / "pristine", self.root / "home", symlinks=True)
        return []

    def _environment(self, line: Line, name: str) -> dict[str, str]:
        """Of the server's, not this process's: libraries that a generator imports set variables."""
        own = {"DIFFPIPE_HOME": str(self.root / "home"), "HF_HOME": str(self.root / "huggingface")}
        return {**fork_server(name).env, **own, **line.env}

    def _first(self, line: Line) -> str:
        folders = {"temporary": str(self.root / "temporary"), "user": str(self.root / "user")}
        return PREPARE.format(**folders, address=ADDRESS, file=FILE) + line.first

    def _run_forked(self, line: Line, name: str) -> Ended:
        began = time.monotonic()
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            given.write(line.stdin)
            given.seek(0)
            child = fork_server(name).start(
                line.words, cwd=self.cli.cwd, env=self._environment(line, name), first=self._first(line),
                streams=(given.fileno(), out.fileno(), err.fileno()),
            )  # fmt: skip
            code = child.wait(WALL_SECONDS)
            wall = time.monotonic() - began
            return Ended(code, _read(out), _read(err), child.seconds, wall, child.memory)

    def _run_fresh(self, line: Line, name: str) -> Ended:
        began, deadline = time.monotonic(), time.monotonic() + WALL_SECONDS
        words = [sys.executable, "-c", self._first(line) + RUN, *line.words]
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            given.write(line.stdin)
            given.seek(0)
            child = subprocess.Popen(
                words, cwd=self.cli.cwd, env=self._environment(line, name), stdin=given, stdout=out, stderr=err
            )
            while not (ended := os.wait4(child.pid, os.WNOHANG))[0]:
                if time.monotonic() > deadline:
                    child.kill()
                    child.wait()
                    raise subprocess.TimeoutExpired(words, WALL_SECONDS)
                time.sleep(0.005)
            child.returncode = os.waitstatus_to_exitcode(ended[1])
            wall, used = time.monotonic() - began, ended[2]
            cpu, memory = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024
            return Ended(child.returncode, _read(out), _read(err), cpu, wall, memory)


def server_of(line: Line) -> str:
    """The fork server for a command: the large one has torch already, from the small one a fork takes a third."""
    command, words = line.words[:1], set(line.words)
    large = command == ("generate",) or (command == ("build",) and "--offline" not in words)
    large |= command == ("reproduce",) or line.words[:2] == ("build", "demo")
    return "ready" if large and not {"--help", "--dry-run"} & words else "hub"


def remove(path: Path) -> None:
    """A file, a link or a folder with all in it, whatever its mode is."""
    if path.is_dir() and not path.is_symlink():
        path.chmod(0o700)
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        path.unlink()


def _read(stream: object) -> bytes:
    stream.seek(0)  # type: ignore[attr-defined]
    return stream.read(OUTPUT + 1)  # type: ignore[attr-defined, no-any-return]


def _faults(ended: Ended, base: int) -> Iterator[str]:
    if ended.code not in set(Exit):
        yield f"exit code {ended.code}"
    if len(ended.out) + len(ended.err) > OUTPUT:
        yield f"more than {OUTPUT} bytes of output"
    # Bytes that are no UTF-8 are those of a file's name.
    out, err = (text.decode("utf-8", "surrogateescape") for text in (ended.out, ended.err))
    yield from (f"says {words!r}: {err.strip()[-600:]}" for words in DISORDER if words in err + out)
    for name, text in (("stdout", out), ("stderr", err)):
        if raw := sorted({one for one in CONTROLS.findall(text) if one != "\n"}):
            yield f"{name} has the raw characters {raw}"
    if (longest := max(map(len, err.split("\n")))) > LINE:
        yield f"a line of {longest} characters on stderr"
    yield from _message(ended.code, err)
    if ended.cpu > CPU_SECONDS:
        yield f"{ended.cpu:.1f} s of a processor"
    if ended.memory - base > MEMORY:
        yield f"{(ended.memory - base) >> 20} MiB of memory"


def _message(code: int, err: str) -> Iterator[str]:
    """What is wrong with the error's two lines."""
    said = err.splitlines()
    errors = [number for number, text in enumerate(said) if text.startswith("error: ")]
    if code == Exit.OK and errors:
        yield f"exit code 0 with {said[errors[0]]!r}"
    if code in (Exit.OK, Exit.INTERRUPTED) or (code == Exit.USAGE and "Usage: " in err):
        return
    if not errors:
        yield f"exit code {code} without an error's line: {err[-300:]!r}"
    elif not any(text.startswith("  try: ") and len(text) > 8 for text in said[errors[0] :]):
        yield f"no hint after {said[errors[-1]]!r}"


def _files(code: int, new: Mapping[str, tuple[int, int, int]], gone: list[str]) -> Iterator[str]:
    """What is wrong with the files that are there now and were not before, or are not as before."""
    failed = code not in (Exit.OK, Exit.PARTIAL)
    for path in map(Path, new):
        top, inner = path.parts[0], path.parts[1:]
        # A batch of which nothing could be made has its journal. Locks of journals and galleries stay, hidden, as
        # the next run takes them; a summary's time is that of its last use; torch makes a folder as it is imported.
        journal = path.name.endswith(".journal.jsonl") or (path.name.startswith(".") and path.suffix == ".lock")
        known = (top == "work" and journal) or (top == "home" and (inner[0] == "locks" or path.name == "summary.json"))
        if "torchinductor" in path.parts[-1] or known:
            continue
        if top in ("temporary", "user") or LEFT_OVER.search(path.name):
            yield f"left over: {path}"
        elif failed and (top != "home" or (inner[0] in ENTRIES and len(inner) > 1)):
            yield f"failed, and made or changed {path}"
        elif top == "home" and inner[0] == "temporary" and len(inner) > 1:
            yield f"left over: {path}"
    yield from (f"failed, and removed {path}" for path in gone if failed and not path.startswith("home/temporary"))
    if (size := sum(facts[1] for facts in new.values())) > DISK:
        yield f"{size >> 20} MiB of new files"


# Calls in this process


def run_case(case: Case) -> list[str]:
    """What is wrong with how a call ends; nothing where all is well."""
    began, memory = time.process_time(), _most_memory()
    found = []
    try:
        case.call()
    except (DiffpipeError, Misfit) as error:
        found += _words(error)
    except Exception as error:
        found.append(f"raised {type(error).__name__}: {error!s:.300}")
    if (took := time.process_time() - began) > CASE_SECONDS:
        found.append(f"{took:.1f} s of a processor")
    if (grown := _most_memory() - memory) > MEMORY:
        found.append(f"{grown >> 20} MiB of memory")
    return found


def _words(error: Exception) -> Iterator[str]:
    text, hint = str(error), getattr(error, "hint", "x")
    if not text or not hint:
        yield f"no {'hint' if text else 'message'}: {error!r}"
    for said in (text, hint):
        if len(said) > LINE:
            yield f"a message of {len(said)} characters"
        try:
            printable(said).encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            yield f"what cannot be printed: {said!r:.300}"


def _most_memory() -> int:
    import resource  # which only POSIX has

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
