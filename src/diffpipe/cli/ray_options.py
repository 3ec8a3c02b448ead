"""generate --runner ray: its options, what cannot go with them, and how the run is shown."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from ..cache.entry import Entry
from ..core.errors import UsageError
from ..core.flag import MEDIA_KINDS
from ..core.manifest import Manifest
from ..core.request import Outcome, Request
from ..runners.job import Callbacks, Job
from ..storage import urls
from . import output
from .flags import option

PANEL = "Many GPUs"
ONLY_HERE = {"keep_warm": None, "preview": "none", "preview_every": None, "preview_decode": False}


def options() -> list[inspect.Parameter]:
    return [
        option(
            "runner", Literal["local", "ray"], "local",
            "Where it runs: this process, or the GPUs of a Ray cluster (docs/ray.md).", panel=PANEL,
        ),
        option(
            "ray_address", str | None, None,
            "local: a cluster of this machine's own for this run; auto: the one that runs here, else local; or the "
            "address of one that this machine is a node of. Default: auto.", panel=PANEL, metavar="auto|local|ADDRESS",
        ),
        option(
            "workers", int | None, None, "How many workers load the pipeline. Default: one a GPU, without any one a "
            "node.", panel=PANEL, metavar="INTEGER", min=1,
        ),
        option(
            "gpus_per_worker", float | None, None, "GPUs of each worker; 0.5 puts two on one. Default: 1 where there "
            "are any.", panel=PANEL, metavar="NUMBER", min=0,
        ),
        option(
            "bundle", str | None, None,
            "A folder or URL through which nodes that lack the pipeline get it. Default: they build it from its pinned "
            "sources.", panel=PANEL, metavar="FOLDER|URL",
        ),
    ]  # fmt: skip


def check(values: Mapping[str, Any]) -> None:
    """Raises UsageError for options that do not go together, before anything is loaded."""
    if values["runner"] != "ray":
        for name in ("ray_address", "workers", "gpus_per_worker", "bundle"):
            if values[name] is not None:
                raise UsageError(f"{_option(name)} needs --runner ray", "pass that, or leave it out")
        return
    for name, default in ONLY_HERE.items():
        if values.get(name, default) != default:
            raise UsageError(f"{_option(name)} cannot be used with --runner ray", "leave one of them out")
    if values["bundle"] is not None and values["ray_address"] == "local":
        raise UsageError("--bundle cannot be used with --ray-address local", "leave it out: the pipeline is here")
    gpus = values["gpus_per_worker"]
    if gpus and gpus > 1 and gpus != int(gpus):
        raise UsageError(f"--gpus-per-worker {gpus:g} is no share of a GPU", "give whole GPUs, or less than one")
    from ..runners.ray_cluster import cluster

    cluster.check_installed()


def elsewhere(values: Mapping[str, Any]) -> bool:
    """Whether it may run on other machines than this one."""
    return bool(values["runner"] == "ray" and values["ray_address"] != "local")


def run(
    values: Mapping[str, Any],
    entry: Entry,
    manifest: Manifest,
    requests: Iterator[Request],
    job: Job,
    callbacks: Callbacks,
    total: int | None,
) -> Iterator[Outcome]:
    """What becomes of each request, in any order, with progress on stderr."""
    from ..runners.ray_cluster.cluster import Cluster
    from ..runners.ray_cluster.runner import run_on_ray

    shares = values["workers"], values["gpus_per_worker"], _folder(values["bundle"] or ""), at_stores(values, manifest)
    with output.items(job.about.name if job.about else manifest.provider, total) as bar:
        where = Cluster(values["ray_address"] or "auto", *shares, watch=bar.workers, say=output.say)
        for outcome in run_on_ray(entry, manifest, requests, job, callbacks, where):
            bar.item()
            yield outcome


def at_stores(values: Mapping[str, Any], manifest: Manifest) -> bool:
    """Whether workers may read or write at URLs. Files that a pipeline takes may be named by any row, as it comes."""
    media = [name for name, flag in manifest.flags_by_name.items() if flag.kind in MEDIA_KINDS]
    rows = any(values[name] for name in ("prompts_from", "args", "sweep", "set"))
    # Several files come as a list, of whose text a URL is a part.
    named = (str(values.get(name)) for name in media)
    return urls.is_url(values["output"] or "") or any(rows or "://" in one for one in named)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _folder(place: str) -> str:
    """A folder or URL as every node can read it; the / says that it is a folder (see streams.inside)."""
    whole = place if urls.is_url(place) or not place else os.path.abspath(os.path.expanduser(place))
    return whole and whole.rstrip("/") + "/"
