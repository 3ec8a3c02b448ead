"""What runs in a fork of the fork server is what a process of its own is: streams, environment, ends and results."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from conftest import Cli, Done, fork_server
from hub_server import serve

pytestmark = pytest.mark.skipif(
    bool(os.environ.get("TEST_FRESH_PROCESSES")), reason="every command is a process of its own"
)

FACTS = """
import json, locale, os, signal, stat, sys, threading

def stream(number, name):
    found, text = os.fstat(number), getattr(sys, name)
    return [
        stat.S_IFMT(found.st_mode), os.isatty(number), text.isatty(), text.encoding, text.errors, text.line_buffering,
        text.newlines, getattr(text.buffer, "raw", text.buffer).seekable(), text.fileno(), text.name,
    ]

mask = os.umask(0)
os.umask(mask)
names = ("SIGINT", "SIGTERM", "SIGPIPE", "SIGCHLD", "SIGHUP", "SIGALRM", "SIGUSR1")
facts = {
    "streams": [stream(*one) for one in enumerate(("stdin", "stdout", "stderr"))],
    "arguments": sys.argv[1:], "folder": os.getcwd(), "umask": mask, "group": os.getpgrp(),
    "environment": {**os.environ},
    "signals": [str(signal.getsignal(getattr(signal, name))) for name in names],
    "mask": str(signal.pthread_sigmask(signal.SIG_BLOCK, [])), "wake": signal.set_wakeup_fd(-1),
    "alarm": signal.alarm(0),
    "threads": threading.active_count(), "program": sys.executable, "flags": str(sys.flags),
    "text": [sys.getfilesystemencoding(), locale.getpreferredencoding(), str(locale.getlocale())],
    "inherited": [int(n) for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")
                  and os.get_inheritable(int(n))],
    "limits": sys.getrecursionlimit(),
    "hooks": [sys.excepthook is sys.__excepthook__, sys.gettrace(), sys.getprofile()],
}
json.dump(facts, sys.stdout)
print()
"""  # fmt: skip


SERVERS = ("bare", "ready")


def run(
    cli: Cli, *words: str, env: Mapping[str, str] | None = None, first: str = "", servers: Iterable[str] = SERVERS
) -> tuple[list[Done], Done]:
    """A command in a fork of each server, and in a process of its own."""
    environment, forked = cli.environment(env), []
    for server in map(fork_server, servers):
        assert server.takes(environment)
        forked.append(server.run(words, cwd=cli.cwd, env=environment, first=first)[0])
    return forked, cli.fresh(*words, env=env, first=first)


def test_the_process_is_the_same(cli: Cli, tmp_path: Path) -> None:
    env = {"DIFFPIPE_HOME": str(tmp_path / "ä home"), "COLUMNS": "77", "HF_TOKEN": "x"}
    forked, fresh = run(cli, "--version", env=env, first=FACTS)
    expected = json.loads(fresh.stdout.splitlines()[0])
    assert (expected["arguments"], expected["inherited"]) == (["--version"], [0, 1, 2])
    for done in forked:
        facts = json.loads(done.stdout.splitlines()[0])
        set_by_imports = facts["environment"].items() - expected["environment"].items()
        assert {name for name, _ in set_by_imports} <= {"HF_HUB_DISABLE_TELEMETRY", "TORCHINDUCTOR_CACHE_DIR"}
        facts["environment"] = {name: facts["environment"][name] for name in expected["environment"]}
        assert facts == expected


THREAD = "import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()"


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("raise SystemExit(7)", 7),
        ("raise SystemExit", 0),
        ("raise SystemExit('words')", 1),
        ("1 / 0", 1),
        ("raise KeyboardInterrupt", -2),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -15),
        ("import os; os.abort()", -6),
        ("import os; os._exit(3)", 3),
        ("import atexit; atexit.register(print, 'at exit'); raise SystemExit(4)", 4),
        (f"{THREAD}; 1 / 0", 1),
        ("import sys; sys.stdout.write('kept'); sys.stderr.write('said'); raise SystemExit(5)", 5),
        ("import os, sys; os.close(1); sys.stdout.write('lost'); raise SystemExit(0)", None),
    ],
)  # fmt: skip
def test_it_ends_the_same(cli: Cli, program: str, code: int | None) -> None:
    servers = SERVERS if code == 7 else ["bare"]  # taking torch apart takes a second
    forked, fresh = run(cli, "--version", first=program, servers=servers)
    assert code in (fresh.returncode, None)  # None: another one where PYTHONUNBUFFERED is set
    assert [ended(done) for done in forked] == [ended(fresh)] * len(forked)


def ended(done: Done) -> tuple[int, str, list[str]]:
    """Of what is on stderr the last line alone: a traceback differs in where it begins."""
    return done.returncode, done.stdout, done.stderr.splitlines()[-1:]


@pytest.mark.parametrize(
    "command",
    ["", "--version", "nonsense", "pipelines show nobody", "build flux --typ x", "providers show flux --json",
     "generate flux --prompt x"],
)  # fmt: skip
def test_it_says_the_same(cli: Cli, command: str) -> None:
    forked, fresh = run(cli, *command.split())
    said = [(done.returncode, done.stdout, done.stderr) for done in (*forked, fresh)]
    assert said == [said[-1]] * len(said)


def test_it_makes_the_same(cli: Cli, checkpoints: Path, tmp_path: Path) -> None:
    """A pipeline is built and used with prompts from standard input; folders and files have the umask's modes."""
    small = ("--width", 32, "--height", 32, "--num-inference-steps", 2, "--seed", 1)
    os.umask(0o027)
    made = {}
    for way, run in (("forked", cli), ("fresh", cli.fresh)):
        folder = tmp_path / way
        folder.mkdir()
        env = {"DIFFPIPE_HOME": str(folder / "home")}
        built = run("build", "flux", "--model", checkpoints / "flux", env=env, cwd=folder, check=True)
        words = ("generate", "flux", *small, "--prompts-from", "-", "-o", "out/", "--no-metadata")
        done = run(*words, stdin="a fox\nä ö\n", env=env, cwd=folder, check=True)
        files = [path for path in sorted((folder / "out").iterdir()) if path.suffix == ".png"]
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder / "out", *files, folder / "home")]
        made[way] = (built.stdout, built.stderr, done.stdout, done.stderr, [file.read_bytes() for file in files], modes)
    assert made["forked"] == made["fresh"]
    assert len(made["forked"][4]) == 2


def test_it_asks_the_same_hub(cli: Cli, checkpoints: Path, tmp_path: Path) -> None:
    """The hub's client reads its variables when it is imported."""
    with serve({"org/flux": checkpoints / "flux"}) as hub:
        asked = []
        for way, run in (("forked", cli), ("fresh", cli.fresh)):
            env = {
                "HF_ENDPOINT": hub.url,
                "HF_HOME": str(tmp_path / way),
                "DIFFPIPE_HOME": str(tmp_path / f"{way}-home"),
            }
            done = run("build", "flux", "--model", "org/flux", env=env, check=True)
            files = sorted(path.relative_to(tmp_path / way).as_posix() for path in (tmp_path / way).rglob("*"))
            asked.append((done.stdout, done.stderr, [(r.method, r.path) for r in hub.requests], files))
            hub.requests.clear()
    assert asked[0] == asked[1]
    assert asked[0][2]


@pytest.mark.parametrize(
    "name", ["PYTHONPATH", "PYTHONDEVMODE", "OMP_NUM_THREADS", "LC_ALL", "HOME", "TMPDIR", "HF_HUB_OFFLINE"]
)
def test_other_variables_take_a_process_of_their_own(cli: Cli, name: str) -> None:
    for server in map(fork_server, SERVERS):
        assert server.takes(cli.environment({"DIFFPIPE_OFFLINE": "1"}))
        assert not server.takes(cli.environment({name: "7"}))


def test_what_must_be_light_is_found_out_where_it_is_not(cli: Cli) -> None:
    assert cli.light("--version").returncode == 0
    server = fork_server("bare")
    done, imported = server.run(["--version"], cwd=cli.cwd, env=cli.environment(), first="import numpy")
    assert (done.returncode, "numpy" in (imported or [])) == (0, True)
    assert cli.light("--version").returncode == 0  # the server did not learn it


def test_a_command_that_hangs_is_ended(cli: Cli) -> None:
    server = fork_server("bare")
    with open(os.devnull, "r+b") as nothing:
        child = server.start(
            [],
            cwd=cli.cwd,
            env=cli.environment(),
            streams=(nothing.fileno(),) * 3,
            first="import time; time.sleep(600)",
        )
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.2)
    assert child.wait() == -9


def test_several_at_once(cli: Cli) -> None:
    server = fork_server("bare")
    programs = ["import time; time.sleep(0.3); raise SystemExit(1)", "raise SystemExit(2)", "raise SystemExit(3)"]
    with open(os.devnull, "r+b") as nothing:
        streams = (nothing.fileno(),) * 3
        children = [
            server.start([], cwd=cli.cwd, env=cli.environment(), streams=streams, first=one) for one in programs
        ]
    assert [child.wait() for child in children] == [1, 2, 3]
