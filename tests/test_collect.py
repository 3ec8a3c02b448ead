"""Every test can be collected where Python lacks what only POSIX has, as on Windows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from conftest import FIRST

# What Windows has not goes once the libraries are imported: they ask for the system's name, which stays.
COLLECT = """
import os, signal, socket, sys
import asyncio, http.server, multiprocessing.popen_fork, tempfile, uuid
import diffusers, hypothesis, peft, platformdirs, pytest, torch, transformers, xdist

for module, names in {
    os: "chown fork getegid geteuid getgid getpgid getuid killpg mkfifo openpty setsid",
    signal: "SIGALRM SIGCONT SIGHUP SIGKILL SIGSTOP alarm",
    socket: "AF_UNIX",
}.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
sys.modules |= dict.fromkeys(["fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"])
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider"]))
"""


def test_all_tests_are_found_without_what_only_posix_has() -> None:
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", COLLECT], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def test_the_files_that_are_begun_first_are_there() -> None:
    assert {path.name for path in Path(__file__).parent.rglob("test_*.py")} >= set(FIRST)
