"""Commands in children forked from one process that has the libraries imported: seconds less for each.

A child is what ``python -m diffpipe ARGS`` is, but for imports that are done already: it has its own arguments, working
folder, environment, umask and standard streams, and ends with its own exit code or signal (test_fork_server.py compares
the two). What a child had to import, the server imports before it forks the next one. The server itself runs nothing
else: a process that has run an operation of torch in several threads cannot be forked, nor one with other threads.

Variables of the environment that Python and the libraries read when they start are those of the server, so a command
with others must be a process of its own: see `takes`.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import importlib.util
import json
import os
import re
import runpy
import select
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

HANGS = 900.0  # seconds after which a command that has not ended never will, however busy the machine is
# Variables that are read when they are used.
LIVE = re.compile(
    r"_?DIFFPIPE_\w+|PAPER_\w+|_TYPER_COMPLETE\w+|COMP_\w+|COLUMNS|LINES|PYTEST_CURRENT_TEST|XDG_(CACHE|DATA)_HOME|XDG_RUNTIME_DIR"
    r"|HF_TOKEN|HUGGINGFACE_HUB_ACCESS_TOKEN"
)
# Variables that the hub's client reads when it is imported, of which libraries keep copies: these are put right.
COPIED = ("HF_HOME", "HF_ENDPOINT")
# Packages that start threads or processes when they are imported.
NEVER_LEARNT = {"ray", "pyarrow"}


class Child:
    """A command that was started."""

    def __init__(self, answers: int, ended: Callable[[list[str]], None]) -> None:
        self._answers, self._rest, self._ended = answers, b"", ended
        self._known: dict[str, Any] = {}
        self.pid = int(self._ask("pid", HANGS))

    @property
    def imported(self) -> list[str] | None:
        """The modules it imported itself; None unless it ended by itself."""
        return self._known.get("imported")

    @property
    def seconds(self) -> float:
        """Of a processor, that it took."""
        return float(self._ask("seconds", HANGS))

    @property
    def memory(self) -> int:
        """Bytes that it had resident at most, those of the server that it was forked from among them."""
        return int(self._ask("memory", HANGS))

    def wait(self, timeout: float = HANGS) -> int:
        """The exit code, or the negative number of the signal that ended it, as subprocess has it. It is killed where
        that takes longer."""
        try:
            return self.code_within(timeout)
        except subprocess.TimeoutExpired:
            os.kill(self.pid, signal.SIGKILL)
            raise

    def code_within(self, timeout: float) -> int:
        return int(self._ask("code", timeout))

    def _ask(self, name: str, timeout: float) -> Any:
        """What the pipe, of one JSON object a line, says of something."""
        deadline = time.monotonic() + timeout
        while name not in self._known:
            if not select.select([self._answers], [], [], max(deadline - time.monotonic(), 0))[0]:
                raise subprocess.TimeoutExpired("diffpipe", timeout)
            data = os.read(self._answers, 65536)
            assert data, "the fork server ended"
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._known |= json.loads(line)
        if "code" in self._known and self._answers >= 0:
            os.close(self._answers)
            self._answers = -1
            self._ended(self.imported or [])
        return self._known[name]


class Running:
    """A command that runs in a fork: of subprocess.Popen, with streams of text, what tests use."""

    def __init__(
        self,
        server: ForkServer,
        arguments: Iterable[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
    ) -> None:
        with ExitStack() as theirs:
            kinds = enumerate((stdin, stdout, stderr))
            (self.stdin, self.stdout, self.stderr), ends = zip(*(_stream(theirs, *kind) for kind in kinds), strict=True)
            self.child = server.start(arguments, cwd=cwd, env=env, streams=ends)
        self.pid = self.child.pid
        self.returncode: int | None = None

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in filter(None, (self.stdin, self.stdout, self.stderr)):
            with suppress(BrokenPipeError):
                stream.close()
        self.wait()

    def poll(self) -> int | None:
        if self.returncode is None:
            with suppress(subprocess.TimeoutExpired):
                self.returncode = self.child.code_within(0)
        return self.returncode

    def wait(self, timeout: float = HANGS) -> int:
        self.returncode = self.child.wait(timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = HANGS) -> tuple[str, str]:
        """What is left on stdout and stderr, "" for what is no pipe."""
        if self.stdin:
            self.stdin.close()
        with ThreadPoolExecutor(2) as pool:
            texts = [pool.submit(one.read) if one and not one.closed else None for one in (self.stdout, self.stderr)]
            self.wait(timeout)
        for stream in filter(None, (self.stdout, self.stderr)):
            stream.close()
        out, err = (text.result() if text else "" for text in texts)
        return out, err


def _stream(theirs: ExitStack, number: int, kind: int) -> tuple[IO[str] | None, int]:
    """This side's end of a stream, if it is a pipe, and the command's; `theirs` closes what is not needed here."""
    if kind >= 0:
        return None, kind
    if kind == subprocess.DEVNULL:
        ours, end = None, os.open(os.devnull, os.O_RDWR)
    else:
        read, write = os.pipe()
        (mine, mode), end = ((write, "w"), read) if number == 0 else ((read, "r"), write)
        ours = os.fdopen(mine, mode, encoding="utf-8")
    theirs.callback(os.close, end)
    return ours, end


class ForkServer:
    """The process, seen from the tests.

    `prepare`: a program that it runs once: imports, and nothing with tensors. `never`: packages it must not import.
    """

    def __init__(self, prepare: str, env: Mapping[str, str], log: Path, never: Collection[str] = ()) -> None:
        self.env = dict(env)
        self.never = set(never)
        self.learnt: list[str] = []
        self.connection, theirs = socket.socketpair()
        words = [sys.executable, __file__, str(theirs.fileno()), str(log), json.dumps([*self.never]), prepare]
        # Python asks what its streams are when it starts: pipes, as the streams of a command are.
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with theirs:
            self.process = subprocess.Popen(words, env=env, pass_fds=[theirs.fileno()], **pipes)

    def takes(self, env: Mapping[str, str]) -> bool:
        """Whether a child can have this environment."""
        names = {name for name in env.keys() | self.env.keys() if env.get(name) != self.env.get(name)}
        return all(LIVE.fullmatch(name) or (name in COPIED and name in env) for name in names)

    def start(
        self,
        arguments: Iterable[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        streams: tuple[int, int, int],
        first: str = "",
        program: str = "",
    ) -> Child:
        """Start ``diffpipe ARGUMENTS``, or a Python file. `streams`: descriptors for stdin, stdout and stderr.

        `first`: a program in Python to run in the process before.
        """
        assert self.takes(env)
        answers, theirs = os.pipe()
        mask = os.umask(0)
        os.umask(mask)
        order = {
            "arguments": list(arguments), "cwd": str(cwd), "env": dict(env), "umask": mask,
            "first": first, "program": program, "learn": self.learnt,
        }  # fmt: skip
        data = json.dumps(order).encode() + b"\n"
        sent = socket.send_fds(self.connection, [data], [*streams, theirs])
        self.connection.sendall(data[sent:])
        os.close(theirs)
        self.learnt = []
        return Child(answers, self._learn)

    def run(
        self, arguments: Iterable[str], *, cwd: Path, env: Mapping[str, str], stdin: str = "", **more: str
    ) -> tuple[subprocess.CompletedProcess[str], list[str] | None]:
        """Run ``diffpipe ARGUMENTS`` to its end, as subprocess.run would. Also returns what `Child.imported` is."""
        words = [sys.executable, "-m", "diffpipe", *arguments]
        (stdin_read, stdin_write), (out_read, out_write), (err_read, err_write) = (os.pipe() for _ in range(3))
        child = self.start(words[3:], cwd=cwd, env=env, streams=(stdin_read, out_write, err_write), **more)
        for end in (stdin_read, out_write, err_write):
            os.close(end)
        with ThreadPoolExecutor(3) as pool:
            pool.submit(_write, stdin_write, stdin)
            texts = [pool.submit(_read, end) for end in (out_read, err_read)]
            code = child.wait()
        return subprocess.CompletedProcess(words, code, *(text.result() for text in texts)), child.imported

    def _learn(self, imported: list[str]) -> None:
        if not (self.never | NEVER_LEARNT) & packages(imported):
            self.learnt += imported

    def close(self) -> None:
        self.connection.close()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream
            stream.close()
        self.process.wait()


def packages(modules: Iterable[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def _write(descriptor: int, text: str) -> None:
    with suppress(BrokenPipeError), open(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)


def _read(descriptor: int) -> str:
    with open(descriptor, encoding="utf-8") as stream:
        return stream.read()


# --- The server ---


class Server:
    def __init__(self, connection: socket.socket, never: Collection[str]) -> None:
        self.connection = connection
        self.never = {*never, *NEVER_LEARNT}
        self.before = dict(os.environ)
        self.installed = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
        self.tried: set[str] = set()  # modules that it was asked to learn
        self.answers: dict[int, int] = {}  # process -> the pipe to answer in
        self.ended, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake)

    def learn(self, names: Iterable[str]) -> None:
        """Import what children imported: modules of installed packages, and of diffpipe."""
        new = [name for name in names if name not in self.tried]
        if self.tried and not new:
            return  # what cannot be learnt is asked for again and again, and what follows takes a tenth of a second
        self.tried |= {"", *new}
        for name in new:
            if name not in sys.modules and not packages([name]) & self.never:
                with suppress(Exception):
                    if self._is_installed(name):
                        importlib.import_module(name)
        assert not packages(sys.modules) & self.never
        assert threading.active_count() == 1
        self.copies = self._find_copies()
        gc.collect()
        gc.freeze()  # else the first collection in a child would touch, and so copy, every page
        for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
            finalizer.atexit = False  # what the server made is not a child's to undo: torch's operators take 40 ms
        collapse_memory()

    def _is_installed(self, name: str) -> bool:
        spec = importlib.util.find_spec(name)
        origin = (spec and spec.origin) or ""
        return (
            name.partition(".")[0] == "diffpipe"
            or origin in ("built-in", "frozen")
            or origin.startswith(self.installed)
        )

    def _find_copies(self) -> list[tuple[dict[str, Any], str, str]]:
        """Where modules keep what they took from the variables COPIED, and with what it begins."""
        values = [value for name in COPIED if (value := self.before.get(name))]
        found = []
        for module in list(sys.modules.values()):
            names = getattr(module, "__dict__", {})
            for name, kept in list(names.items()):
                if isinstance(kept, str) and not name.startswith("__"):
                    found += [(names, name, value) for value in values if kept.startswith(value)]
        return found

    def serve(self) -> bool:
        """Fork children until the tests leave. True in a child, False in the server."""
        self.learn([])
        while True:
            ready = select.select([self.connection, self.ended], [], [])[0]
            if self.ended in ready:
                os.read(self.ended, 4096)
                self.report()
            if self.connection in ready:
                order, descriptors = self.receive()
                if order is None:
                    return False
                if order["learn"]:
                    self.learn(order["learn"])
                if self.fork(order, descriptors):
                    return True

    def receive(self) -> tuple[dict[str, Any] | None, list[int]]:
        data, descriptors, _, _ = socket.recv_fds(self.connection, 65536, 4)
        while data and not data.endswith(b"\n"):
            data += self.connection.recv(65536)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        return (json.loads(data) if data else None), descriptors

    def report(self) -> None:
        """Say of every child that ended how it did."""
        while self.answers:
            child, status, used = os.wait4(-1, os.WNOHANG)
            if not child:
                return
            answer, seconds = self.answers.pop(child), used.ru_utime + used.ru_stime
            memory = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
            _say(answer, {"code": os.waitstatus_to_exitcode(status), "seconds": seconds, "memory": memory})
            os.close(answer)

    def fork(self, order: dict[str, Any], descriptors: list[int]) -> bool:
        child = os.fork()
        *streams, answer = descriptors
        if child:
            self.answers[child] = answer
            for descriptor in streams:
                os.close(descriptor)
            _say(answer, {"pid": child})
            return False
        self.become(order, streams, answer)
        return True

    def become(self, order: dict[str, Any], streams: list[int], answer: int) -> None:
        """Turn this child into a process of its own."""
        import atexit

        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.connection.close()
        for descriptor in (self.ended, *self.answers.values()):
            os.close(descriptor)
        for number, descriptor in enumerate(streams):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.umask(order["umask"])
        os.chdir(order["cwd"])
        by_imports = {name: value for name, value in os.environ.items() if name not in self.before}
        os.environ.clear()
        os.environ.update(by_imports | order["env"])
        for names, name, value in self.copies:
            new = next(os.environ[variable] for variable in COPIED if self.before.get(variable) == value)
            names[name] = new + names[name].removeprefix(value)
        had = set(sys.modules)
        atexit.register(lambda: _say(answer, {"imported": [name for name in sys.modules if name not in had]}))
        sys.path.insert(0, order["cwd"])  # as `python -m` does
        sys.argv = ["diffpipe", *order["arguments"]]
        exec(order["first"], {})
        self.program = order["program"]


def collapse_memory() -> None:
    """Have this process's memory in pages of 2 MiB, where Linux can: far less is to be copied for a fork."""
    if sys.platform != "linux":
        return
    huge, collapse, libc = 1 << 21, 25, ctypes.CDLL(None)
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, rights, *_, inode = line.split()[:5]
        if rights == "rw-p" and inode == "0":
            begin, end = (int(address, 16) for address in place.split("-"))
            begin, end = -(-begin // huge) * huge, end // huge * huge
            if begin < end:  # refused by older kernels, and where no such page is free: then all is as it was
                libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), collapse)


def _say(descriptor: int, answer: dict[str, Any]) -> None:
    data = json.dumps(answer).encode() + b"\n"
    with suppress(BrokenPipeError):
        while data:
            data = data[os.write(descriptor, data) :]


def main() -> None:
    """Serve; in a child, run the command and end as the interpreter ends."""
    descriptor, log, never, prepare = sys.argv[1:]
    for number in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.path.pop(0)  # the folder of the tests
    server = Server(socket.socket(fileno=int(descriptor)), json.loads(never))
    exec(prepare, {})
    if not server.serve():
        os._exit(0)  # tearing down torch takes seconds
    if server.program:
        sys.argv[0] = server.program
        sys.path[0] = os.path.dirname(server.program)
        runpy.run_path(server.program, run_name="__main__")
    else:
        runpy.run_module("diffpipe", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
