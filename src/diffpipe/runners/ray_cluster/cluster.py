"""The cluster that a run is to be made on, as it was asked for; and what installs Ray."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

from ...core.errors import UsageError

INSTALL = "pip install 'diffpipe[ray]'"


@dataclass(frozen=True)
class Cluster:
    """Where to run. `address`: "local" for a cluster of this machine's own for this run, "auto" for the one that runs
    here if there is one, else local. `workers`, `gpus` (a worker): None for what the nodes have. `bundle`: the folder
    or URL through which nodes get the pipeline, "" for none. `stores`: whether workers may read or write at URLs, whose
    stores go by the environment. `watch` is given how many workers have work; `say` gets
    lines for the user.
    """

    address: str = "auto"
    workers: int | None = None
    gpus: float | None = None
    bundle: str = ""
    stores: bool = False
    watch: Callable[[int], None] = lambda busy: None
    say: Callable[[str], None] = lambda line: None


def check_installed() -> None:
    """Raises UsageError without the extra, with the command that installs it."""
    for package in ("ray", "pyarrow"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"--runner ray needs {package}, which is not installed", INSTALL)
