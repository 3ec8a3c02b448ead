"""Nodes of a Ray cluster on this machine, each with a diffpipe cache of its own, for tests and measurements.

Started in the foreground (ray start --block) and ended by their process groups: `ray stop` would end those of others.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

RAY = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
PATIENCE = 300.0  # seconds in which a node must be there, however busy the machine is


@dataclass
class Nodes:
    """A cluster. `environment` is what drivers need to join it; `address` the head's."""

    folder: Path
    environment: dict[str, str]
    address: str = ""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def add(self, home: Path, cpus: int, more: Mapping[str, str] | None = None) -> None:
        """Start a node with `cpus`; the first is the head. Its workers have `home` as their cache."""
        first = not self.processes
        own = {"DIFFPIPE_HOME": str(home), "OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(self.folder)}
        port = free_port()
        where = ["--head", f"--port={port}", "--include-dashboard=false"] if first else [f"--address={self.address}"]
        # Each node must have an address of its own.
        place = [] if first else [f"--node-ip-address=127.0.0.{len(self.processes) + 1}"]
        log = (self.folder / f"node-{len(self.processes)}.log").open("wb")
        words = [*RAY, *where, *place, f"--num-cpus={cpus}", "--num-gpus=0", "--object-store-memory=100000000"]
        with log:
            self.processes.append(
                subprocess.Popen(
                    words, env={**os.environ, **self.environment, **own, **(more or {})}, stdin=subprocess.DEVNULL,
                    stdout=log, stderr=log, start_new_session=True,
                )
            )  # fmt: skip
        text = self._wait(Path(log.name), "Ray runtime started.")
        if first:
            said = next(line for line in text.splitlines() if "Local node IP: " in line)
            self.address = f"{said.rpartition(' ')[2]}:{port}"

    def _wait(self, log: Path, sign: str) -> str:
        ends = time.monotonic() + PATIENCE
        while sign not in (text := log.read_text(errors="replace")):
            if self.processes[-1].poll() is not None or time.monotonic() > ends:
                raise RuntimeError(f"a node did not start:\n{text}")
            time.sleep(0.1)
        return text

    def stop(self) -> None:
        for process in reversed(self.processes):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def nodes() -> Iterator[Nodes]:
    """A cluster without nodes, that ends with the block and leaves nothing. Only who has its token may join."""
    folder = Path(tempfile.mkdtemp(prefix="dpn-", dir="/tmp"))  # a short path: sockets lie below it
    made = Nodes(folder, private(folder))
    try:
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


def private(folder: Path) -> dict[str, str]:
    """Variables for a cluster that answers only to those who have them, and tells nobody of its use."""
    token = folder / "token"
    token.touch(0o600)
    token.write_text(secrets.token_hex(32))
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def children(process: int) -> dict[int, str]:
    """Every process below one, with its command line (Linux)."""
    below: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError, IndexError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            below.setdefault(parent, []).append(int(entry.name))
    found: dict[int, str] = {}
    waiting = [process]
    while waiting:
        for child in below.get(waiting.pop(), []):
            waiting.append(child)
            with suppress(OSError):
                found[child] = (Path("/proc") / str(child) / "cmdline").read_text().replace("\0", " ").strip()
    return found


def workers(process: int) -> list[int]:
    """Ray's worker processes below one, which run tasks and actors; not the node's own agents, whose end is its own."""
    return [pid for pid, line in children(process).items() if line.startswith("ray::") and "Agent" not in line]
