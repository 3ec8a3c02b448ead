"""The connection to a Ray cluster: one that runs is joined, or one of this machine's own is started for a run."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType

from ...core import access_tokens
from ...core.errors import DiffpipeError, UsageError
from . import ray_seam
from .cluster import check_installed
from .scratch import scratch_folder

log = logging.getLogger("diffpipe.ray")

CONNECT_TIMEOUT = 10.0  # seconds in which the address of a cluster must answer
TOKENS = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
OBJECT_STORE = 256 << 20  # bytes of a local cluster's: rows are small, and results do not pass through it


@contextmanager
def connected(address: str, stores: bool) -> Iterator[bool]:
    """Ray, connected for the block: whether to a cluster that was started for it, which ends with it. `stores`: see
    Cluster."""
    quiet = not log.isEnabledFor(logging.INFO)
    _set_environment(quiet)
    check_installed()
    import ray
    import ray.data

    ray_seam.log_missing()
    ray_seam.keep_off_stdout()
    if ray.is_initialized():
        yield False
        return
    level = logging.CRITICAL if quiet else logging.WARNING
    folder, stopped_by = None, signal.getsignal(signal.SIGTERM)
    try:
        with _hushed(quiet):
            if address == "local" or not _join(address, level):
                folder = _start(level, stores)
        _stop_by(stopped_by)
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(level)
        yield folder is not None
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _stop_by(handler: Callable[[int, FrameType | None], object] | int | None) -> None:
    """Let SIGTERM stop the run as before: Ray's own handlers end the process at once, and print frames of C++."""
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _set_environment(quiet: bool) -> None:
    """What must be set when Ray is imported."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if quiet:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if not TOKENS & os.environ.keys() and os.path.exists(os.path.expanduser("~/.ray/auth_token")):
        os.environ["RAY_AUTH_MODE"] = "token"  # as `ray start` does


@contextmanager
def _hushed(quiet: bool) -> Iterator[None]:
    """Nothing on stderr within the block: Ray's own library writes there of what its variables are set to."""
    if not quiet:
        yield
        return
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _join(address: str, level: int) -> bool:
    """Join a cluster; False for "auto" where none runs here."""
    import ray

    if address.startswith("ray://"):
        raise UsageError("--ray-address ray:// is for clients outside of a cluster", "run this on one of its nodes")
    if address != "auto":
        check_address(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=level)
    except ConnectionError as error:
        if address == "auto" and not os.environ.get("RAY_ADDRESS"):
            return False
        raise UsageError(
            f"there is no Ray cluster at {os.environ.get('RAY_ADDRESS') or address}",
            "start one with ray start --head; if one runs there, check RAY_AUTH_MODE and its token",
        ) from error
    except Exception as error:  # RuntimeError for versions of Ray or Python, and whatever the network gives
        raise DiffpipeError(
            f"Ray cannot join {address}: {_first_line(error)}", "use the cluster's own versions"
        ) from error
    return True


def check_address(address: str) -> None:
    """Raises UsageError for what is no address, and where nothing listens: Ray itself would wait for minutes."""
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise UsageError(f"--ray-address {address} is no address", "give auto, local or HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT).close()
    except (OSError, OverflowError) as error:
        hint = "start one with ray start --head; ray status shows the address of the one that runs"
        raise UsageError(f"there is no Ray cluster at {address}", hint) from error


def _start(level: int, stores: bool) -> Path:
    """Start a cluster of this machine; the folder of its files, which go with it unless RAY_TMPDIR names another.

    The pipeline is in the cache here, so its processes need secrets for `stores` alone, by whatever variables a store's
    package goes by.
    """
    import ray

    # Sockets lie in it, whose paths must be short: the folder for temporary files of macOS is too deep.
    folder = scratch_folder("dpr", "/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir())
    try:
        with nullcontext() if stores else access_tokens.kept_back(unless="RAY_"):
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=level,
                object_store_memory=OBJECT_STORE,
                _temp_dir=os.environ.get("RAY_TMPDIR", str(folder)),
            )
    except Exception as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise DiffpipeError(f"Ray cannot start here: {_first_line(error)}", "ray start --head shows why") from error
    return folder


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
