"""diffpipe worker: the processes that keep pipelines loaded; and the options of generate that start and use them."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..cache.entry import SHORT, Entry
from ..cache.store import Store
from ..core.errors import CacheError, DiffpipeError, NotFoundError, UsageError
from ..core.manifest import Manifest
from ..core.request import Outcome, Request
from ..runners.job import LONGEST_KEEP, Callbacks, Job
from ..storage.disk import readable
from . import output, tree
from .flags import option

if TYPE_CHECKING:
    from ..runners.worker.lifecycle import Link, Running
    from ..runners.worker.protocol import Status

DEFAULT = "DIFFPIPE_KEEP_WARM"
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
DURATION = re.compile(r"(?:\d+(?:\.\d+)?[smhd])+|\d+(?:\.\d+)?", re.ASCII)

ROWS = {
    "list": "List the workers: pipeline, process, memory, idle time, requests.",
    "stop": "Stop a pipeline's worker, or all of them; their memory is free when it returns.",
}
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def make() -> Any:
    commands: dict[str, Any] = {"list": list_, "stop": stop}

    def command(name: str) -> Any:
        return tree.command(name, commands[name], ROWS[name]) if name in commands else None

    return tree.group("worker", "List or stop the workers that keep pipelines loaded.", lambda: ROWS, command)


# The commands


def list_(json: Json = False) -> None:
    from ..runners.worker import folder, lifecycle

    store = Store()
    found = lifecycle.running(store)
    if json:
        output.result_json([_row(store, one.status) for one in found])
        return
    if not folder.supported():
        output.say(f"no worker runs: {folder.UNSUPPORTED}")
        return
    if not found:
        output.say("no worker runs; diffpipe generate NAME --keep-warm 5m starts one")
        return
    headings = ("PIPELINE", "KEY", "PROCESS", "MEMORY", "STATE", "REQUESTS", "KEPT FOR")
    output.table(headings, [_cells(store, one.status) for one in found])


def _row(store: Store, status: Status | None) -> dict[str, object]:
    """A worker as --json prints it; None for all that is not known of one that does not answer."""
    from ..runners.worker.protocol import Status

    if status:
        return {"names": _names_of(store, status.key), **vars(status)}
    return {"names": [], **{field.name: None for field in fields(Status)}, "key": ""}


def _names_of(store: Store, key: str) -> list[str]:
    return sorted(name for name, known in store.names().items() if known == key)


def _cells(store: Store, status: Status | None) -> list[str]:
    if status is None:
        return ["?", "?", "?", "?", "does not answer", "?", "?"]
    held = [readable(size) for size in (status.memory, status.device_memory) if size]
    state = "busy" if status.busy else f"idle for {duration(status.idle)}"
    return [
        ", ".join(_names_of(store, status.key)) or "?",
        status.key[:SHORT],
        str(status.pid),
        " + GPU ".join(held),
        state if status.loaded else "loading",
        str(status.requests),
        duration(status.keep),
    ]


def _names(incomplete: str) -> list[str]:
    return [name for name in Store().name_list() if name.startswith(incomplete)]


def stop(
    pipeline: Annotated[
        str | None, typer.Argument(metavar="PIPELINE", help="Its name or key.", autocompletion=_names)
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Stop every worker.")] = False,
    json: Json = False,
) -> None:
    from ..runners.worker import lifecycle, places

    if pipeline is None and not all_:
        raise UsageError("worker stop needs a PIPELINE, or --all", "diffpipe worker list shows what runs")
    if pipeline is not None and all_:
        raise UsageError("worker stop is given a PIPELINE and --all", "leave one of them out")
    store = Store()
    wanted = None if pipeline is None else places.place_of(store, store.key(pipeline))
    found = [one for one in lifecycle.running(store) if wanted in (None, one.place)]
    if wanted and not found:
        raise NotFoundError(f"no worker of {pipeline} runs", "diffpipe worker list shows those that do")
    for one in found:
        _stop(store, one, json)
    if not found:
        output.say("no worker runs")


def _stop(store: Store, worker: Running, json: bool) -> None:
    from ..runners.worker import lifecycle

    key = worker.status.key if worker.status else ""
    names = _names_of(store, key)
    lifecycle.stop(worker.place)
    if json:
        output.result_json({"names": names, "key": key, "pid": worker.status.pid if worker.status else None})
    else:
        output.result(f"stopped {', '.join(names) or key[:SHORT] or 'one that did not answer'}")


# Options of generate


def options(panel: str) -> list[inspect.Parameter]:
    return [
        option(
            "keep_warm", str | None, None,
            "Keep the pipeline loaded in a worker for so long after its last item (30s, 5m, 1h), for later calls to "
            f"use. 0: stop it after this run. Default: {DEFAULT}, else no worker is started.",
            panel=panel, metavar="DURATION",
        ),
        option(
            "worker", bool, True, "Use the pipeline's worker where one runs; --no-worker makes it in this process.",
            "--worker/--no-worker", panel=panel, show_default=False,
        ),
    ]  # fmt: skip


@dataclass(frozen=True)
class KeepWarm:
    """What a run wants of a worker. `allowed`: whether one may be used. `seconds`: for how long it is to be kept, None
    for no wish. `insisted`: whether the run fails where there is none."""

    allowed: bool
    seconds: float | None = None
    insisted: bool = False


def keep_warm(given: str | None, allowed: bool) -> KeepWarm:
    """What --keep-warm and --worker ask for, or the environment. Raises UsageError for what is no duration."""
    if not allowed:
        if given is not None:
            raise UsageError("--keep-warm is given with --no-worker", "leave one of them out")
        return KeepWarm(allowed=False)
    if given is not None:
        return KeepWarm(True, seconds(given, "--keep-warm"), insisted=True)
    default = os.environ.get(DEFAULT)
    return KeepWarm(True, seconds(default, DEFAULT) if default else None)


def seconds(text: str, name: str) -> float:
    """ "90", "30s", "5m", "1h30m" in seconds. Raises UsageError for anything else."""
    plain = text.strip().lower()
    if not DURATION.fullmatch(plain):
        raise UsageError(f"{name} {text!r} is no duration", "for example 30s, 5m or 1h")
    found = sum(float(count) * UNITS[unit] for count, unit in re.findall(r"([\d.]+)([smhd]?)", plain))
    if found > LONGEST_KEEP:
        raise UsageError(f"{name} {text} is longer than 30 days", "for example 30s, 5m or 1h")
    return found


def duration(length: float) -> str:
    whole = round(length)
    parts = [f"{whole // size % most}{unit}" for size, most, unit in ((3600, 10**6, "h"), (60, 60, "m"), (1, 60, "s"))]
    return "".join(part for part in parts if part[:-1] != "0") or "0s"


# What generate does with them


class PipelineWorker:
    """The worker of a run's pipeline: the one that runs, or one that is started for it."""

    def __init__(self, store: Store, entry: Entry, manifest: Manifest, wish: KeepWarm) -> None:
        self.store, self.entry, self.manifest, self.wish = store, entry, manifest, wish
        self.kept = 0.0  # seconds that the next worker is kept
        self.link: Link | None = None

    def find(self) -> Link | None:
        """The worker for the run, started if it is wished for; None where it does without."""
        from ..runners.worker import folder, lifecycle

        if not self.wish.allowed or not (folder.supported() or self.wish.seconds):
            return None
        try:
            found = lifecycle.find(self.store, self.entry.key, output.warn)
            if isinstance(found, lifecycle.Link):
                self.link = found
                self.kept = found.welcome.keep if self.wish.seconds is None else self.wish.seconds
            elif keep := self.wish.seconds or found:
                self.kept = keep
                self.link = self.start()
        except lifecycle.Unusable as error:
            output.warn(f"{error.message}: this run does not use it")
        except OSError as error:
            reason = f"the folder of workers cannot be used: {error.strerror or error}"
            self._do_without(CacheError(reason, "make room in it, or use --no-worker"))
        except DiffpipeError as error:
            self._do_without(error)
        return self.link

    def _do_without(self, error: DiffpipeError) -> None:
        if self.wish.insisted:
            raise error
        output.warn(f"{error.message}: no worker is used ({error.hint})")

    def start(self) -> Link:
        """A new worker; the idlest of the others end where memory is short."""
        from ..runners.worker import lifecycle, memory_check

        for ended in memory_check.free_memory(self.store, self.entry, self.manifest):
            names = ", ".join(_names_of(self.store, ended.key)) or ended.key[:SHORT]
            output.say(f"memory is short: stopped the worker of {names}, idle for {duration(ended.idle)}")
        return lifecycle.start(self.store, self.entry.key, self.kept)

    def run(
        self, link: Link, requests: Iterator[Request], job: Job, callbacks: Callbacks, *, alone: bool
    ) -> Iterator[Outcome]:
        """What becomes of each request. `alone`: it is the only one, and fails if the worker dies of it."""
        from ..runners.worker import lifecycle, places, publishing, runner

        steps, tries = sys.stderr.isatty(), 1 if alone else runner.TRIES

        def make(made_here: Iterator[Request]) -> Iterator[Outcome]:
            keep = self.wish.seconds
            return runner.run_on_worker(link, self.start, self.manifest, made_here, job, callbacks, keep, steps, tries)

        yield from publishing.run(make, requests)
        if self.wish.seconds == 0:
            places.gone(link.place, lifecycle.END_TIMEOUT)  # its memory is free when this returns
