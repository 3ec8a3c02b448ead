"""A Ray cluster as a run needs it: joined or started, its nodes asked whether they would make the same, shared out."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...cache.bundle import transfer as bundle
from ...cache.entry import SHORT, Entry
from ...cache.store import Store
from ...core.errors import DiffpipeError, UsageError
from ...core.manifest import Manifest
from ...storage.disk import umask
from ..job import Job
from . import node

log = logging.getLogger("diffpipe.ray")

INSTALL = "pip install 'diffpipe[ray]'"
REACHED = 10.0  # seconds in which the address of a cluster must answer
ANSWER = 60.0  # seconds in which a node must answer
TOKENS = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
STORE = 256 << 20  # bytes of a local cluster's object store: rows are small, and results do not pass through it


@dataclass(frozen=True)
class Cluster:
    """Where to run. `address`: "local" for a cluster of this machine's own for this run, "auto" for the one that runs
    here if there is one, else local. `workers`, `gpus` (a worker): None for what the nodes have. `bundle`: the folder
    or URL through which nodes get the pipeline, "" for none. `watch` is told how many workers have work; `say` gets
    lines for the user.
    """

    address: str = "auto"
    workers: int | None = None
    gpus: float | None = None
    bundle: str = ""
    watch: Callable[[int], None] = lambda busy: None
    say: Callable[[str], None] = lambda line: None


@dataclass(frozen=True)
class Shares:
    """How many workers there are, what each has of a node, and the nodes that can have one."""

    workers: int
    cpus: float
    gpus: float
    nodes: tuple[Mapping[str, Any], ...]


def check_installed() -> None:
    """Raises UsageError without the extra, with the command that installs it."""
    for package in ("ray", "pyarrow"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"--runner ray needs {package}, which is not installed", INSTALL)


@contextmanager
def connected(address: str) -> Iterator[tuple[Any, bool]]:
    """Ray, connected for the block, and whether to a cluster that was started for it: that ends with it."""
    quiet = not log.isEnabledFor(logging.INFO)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if quiet:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if not TOKENS & os.environ.keys() and os.path.exists(os.path.expanduser("~/.ray/auth_token")):
        os.environ["RAY_AUTH_MODE"] = "token"  # as `ray start` does; it must be set when Ray is imported
    check_installed()
    import ray
    import ray.data

    _keep_off_stdout(ray)
    if ray.is_initialized():
        yield ray, False
        return
    level = logging.CRITICAL if quiet else logging.WARNING
    folder = None
    try:
        with _hushed(quiet):
            if address == "local" or not _join(ray, address, level):
                folder = _start(ray, level)
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(level)
        yield ray, folder is not None
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _keep_off_stdout(ray: Any) -> None:
    """Log what Ray prints of its nodes: it has no setting for that, and would print it among the results."""

    def kept(data: Mapping[str, Any], ignore_prefix: bool = False) -> None:
        log.info("Ray: %s", " ".join(data["lines"]))

    ray._private.worker.print_to_stdstream = kept


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


def _join(ray: Any, address: str, level: int) -> bool:
    """Join a cluster; False for "auto" where none runs here."""
    if address.startswith("ray://"):
        raise UsageError("--ray-address ray:// is for clients outside of a cluster", "run this on one of its nodes")
    if address != "auto":
        _check_address(address)
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
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DiffpipeError(f"Ray cannot join {address}: {said}", "use the cluster's own versions") from error
    return True


def _check_address(address: str) -> None:
    """Raises UsageError for what is no address, and where nothing listens: Ray itself would wait for minutes."""
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise UsageError(f"--ray-address {address} is no address", "give auto, local or HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACHED).close()
    except (OSError, OverflowError) as error:
        hint = "start one with ray start --head; ray status shows the address of the one that runs"
        raise UsageError(f"there is no Ray cluster at {address}", hint) from error


def _start(ray: Any, level: int) -> Path:
    """Start a cluster of this machine; the folder of its files, which go with it unless RAY_TMPDIR names another."""
    # Sockets lie in it, whose paths must be short: the folder for temporary files of macOS is too deep.
    folder = node.own_folder("dpr", "/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir())
    try:
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=level,
            object_store_memory=STORE,
            _temp_dir=os.environ.get("RAY_TMPDIR", str(folder)),
        )
    except Exception as error:
        shutil.rmtree(folder, ignore_errors=True)
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DiffpipeError(f"Ray cannot start here: {said}", "ray start --head shows why") from error
    return folder


def alive(ray: Any) -> list[Mapping[str, Any]]:
    return [one for one in ray.nodes() if one["Alive"]]


def shares_of(nodes: list[Mapping[str, Any]], cluster: Cluster) -> Shares:
    """A GPU a worker where there are any, else all of a node's CPUs, unless something else was asked for.

    Raises UsageError where no node has as much.
    """
    has = [(one, one["Resources"].get("CPU", 0.0), one["Resources"].get("GPU", 0.0)) for one in nodes]
    gpus = cluster.gpus if cluster.gpus is not None else float(any(gpu for _, _, gpu in has))
    if gpus:
        cpus = 1.0
        fitting = [(one, int(min(cpu, gpu / gpus) + 1e-6)) for one, cpu, gpu in has]
        found = [(one, count) for one, count in fitting if count]
        workers = cluster.workers or sum(count for _, count in found)
        if not found:
            most = max((gpu for _, _, gpu in has), default=0.0)
            raise UsageError(f"no node has {gpus:g} GPUs for a worker: {most:g} at most", "lower --gpus-per-worker")
        fitting_now = sum(count for _, count in found)
        if workers > fitting_now:
            cluster.say(f"{fitting_now} of {workers} workers fit on the nodes there are; the others wait for more")
        return Shares(workers, cpus, gpus, tuple(one for one, _ in found))
    useful = [(one, cpu) for one, cpu, _ in has if cpu]
    if not useful:
        raise UsageError("no node of the cluster has a CPU for a worker", "start nodes with ray start --num-cpus")
    workers = cluster.workers or len(useful)
    each = -(-workers // len(useful))  # on a node, rounded up
    cpus = min(cpu for _, cpu in useful) / each
    return Shares(workers, float(int(cpus)) if cpus >= 1 else cpus, 0.0, tuple(one for one, _ in useful))


def plan_of(ray: Any, entry: Entry, manifest: Manifest, job: Job, cluster: Cluster, gpus: float) -> node.Plan:
    document = {
        "pipeline": {
            "key": entry.key,
            "provider": manifest.provider,
            "name": job.about.name if job.about else f"{manifest.provider}-{entry.key[:SHORT]}",
        },
        "config": manifest.config.json,
        "sources": [source.to_json() for source in manifest.sources],
    }
    return node.Plan(
        key=entry.key,
        document=document,
        places={str(role): place for role, place in entry.locations().items()},
        versions=node.found(node.deciding(manifest)),
        job=job.to_json(),
        driver=ray.get_runtime_context().get_node_id(),
        root=str(entry.folder.parent.parent),
        folder=os.getcwd(),
        umask=umask(),
        gpus=gpus,
        bundle=cluster.bundle,
    )


def check_nodes(ray: Any, shares: Shares, plan: node.Plan, manifest: Manifest, entry: Entry, cluster: Cluster) -> None:
    """Ask each node that may get a worker for its versions. Raises DiffpipeError that names all that differ.

    Where a node lacks the pipeline and bundles have a place, the bundle is put there.
    """
    packages = node.deciding(manifest)
    asked = {}
    for one in shares.nodes:
        label = f"the node {one['NodeManagerHostname']} ({one['NodeManagerAddress']})"
        answer = ray.remote(num_cpus=0)(node.answer).options(scheduling_strategy=on_node(one["NodeID"]))
        asked[label, one["NodeID"]] = answer.remote(packages, entry.key)
    different, lacking = [], False
    for (label, node_id), reference in asked.items():
        try:
            told_of = ray.get(reference, timeout=ANSWER)
        except ray.exceptions.GetTimeoutError as error:
            raise DiffpipeError(f"{label} does not answer", "see ray status; leave that node out") from error
        except ray.exceptions.RayError as error:
            raise DiffpipeError(
                f"{label} has no diffpipe, or an older one", "install the same version there"
            ) from error
        differing = node.differing(plan.versions, told_of["versions"])
        different += [(label, differing)] if differing else []
        lacking |= not told_of["here"] and node_id != plan.driver
        log.info("%s: %s", label, told_of["all"])
    if different:
        label, first = different[0]
        more = "".join(f"; {other} has {', '.join(lines)}" for other, lines in different[1:])
        raise node.refuse(label, [*first[:-1], first[-1] + more])
    if lacking and plan.bundle:
        bundle.export(Store(Path(plan.root)), entry, plan.bundle, say=cluster.say)


def on_node(node_id: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
