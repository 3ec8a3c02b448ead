"""diffpipe worker: the processes that keep pipelines loaded; and the options of generate that start and use them."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from ..cache.store import SHORT, Entry, Store
from ..core.errors import CacheError, DiffpipeError, NotFoundError, UsageError
from ..core.request import Outcome, Request
from ..runners.job import Ears, Job
from ..storage.disk import readable
from . import output, tree
from .flags import option

DEFAULT = "DIFFPIPE_KEEP_WARM"
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
DURATION = re.compile(r"(?:\d+(?:\.\d+)?[smhd])+|\d+(?:\.\d+)?", re.ASCII)
LONGEST = 30 * 86400

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
    found = [_row(store, one) for one in lifecycle.running(store)]
    if json:
        output.result_json(found)
        return
    if not folder.supported():
        output.say(f"no worker runs: {folder.UNSUPPORTED}")
        return
    if not found:
        output.say("no worker runs; diffpipe generate NAME --keep-warm 5m starts one")
        return
    headings = ("PIPELINE", "KEY", "PROCESS", "MEMORY", "STATE", "REQUESTS", "KEPT FOR")
    output.table(headings, [_cells(row) for row in found])


def _row(store: Store, found: Mapping[str, Any]) -> dict[str, Any]:
    """A worker as --json prints it."""
    status = found["status"] or {}
    key = status.get("key", "")
    names = sorted(name for name, known in store.names().items() if known == key)
    shown = ("pid", "memory", "device_memory", "loaded", "busy", "idle", "keep", "requests", "clients")
    return {"names": names, "key": key, **{name: status.get(name) for name in shown}}


def _cells(row: Mapping[str, Any]) -> list[str]:
    if row["pid"] is None:
        return ["?", "?", "?", "?", "does not answer", "?", "?"]
    held = [readable(row[name]) for name in ("memory", "device_memory") if row[name]]
    state = "busy" if row["busy"] else f"idle for {_duration(row['idle'])}"
    return [
        ", ".join(row["names"]) or "?",
        row["key"][:SHORT],
        str(row["pid"]),
        " + GPU ".join(held),
        state if row["loaded"] else "loading",
        str(row["requests"]),
        _duration(row["keep"]),
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
    from ..runners.worker import lifecycle

    if pipeline is None and not all_:
        raise UsageError("worker stop needs a PIPELINE, or --all", "diffpipe worker list shows what runs")
    if pipeline is not None and all_:
        raise UsageError("worker stop is given a PIPELINE and --all", "leave one of them out")
    store = Store()
    wanted = None if pipeline is None else lifecycle.place_of(store, store.key(pipeline))
    found = [one for one in lifecycle.running(store) if wanted in (None, one["place"])]
    if wanted and not found:
        raise NotFoundError(f"no worker of {pipeline} runs", "diffpipe worker list shows those that do")
    for one in found:
        row = _row(store, one)
        lifecycle.stop(one["place"])
        if json:
            output.result_json({"names": row["names"], "key": row["key"], "pid": row["pid"]})
        else:
            output.result(f"stopped {', '.join(row['names']) or row['key'][:SHORT] or 'one that did not answer'}")
    if not found:
        output.say("no worker runs")


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


def wanted(values: Mapping[str, Any]) -> tuple[bool, float | None]:
    """Whether a worker may be used, and for how many seconds it is to be kept, None for no wish.

    Raises UsageError for what is no duration.
    """
    given = values["keep_warm"]
    if not values["worker"]:
        if given is not None:
            raise UsageError("--keep-warm is given with --no-worker", "leave one of them out")
        return False, None
    if given is not None:
        return True, seconds(given, "--keep-warm")
    default = os.environ.get(DEFAULT)
    return True, seconds(default, DEFAULT) if default else None


def seconds(text: str, name: str) -> float:
    """ "90", "30s", "5m", "1h30m" in seconds. Raises UsageError for anything else."""
    plain = text.strip().lower()
    if not DURATION.fullmatch(plain):
        raise UsageError(f"{name} {text!r} is no duration", "for example 30s, 5m or 1h")
    found = sum(float(count) * UNITS[unit] for count, unit in re.findall(r"([\d.]+)([smhd]?)", plain))
    if found > LONGEST:
        raise UsageError(f"{name} {text} is longer than 30 days", "for example 30s, 5m or 1h")
    return found


def _duration(length: float) -> str:
    whole = round(length)
    parts = [f"{whole // size % most}{unit}" for size, most, unit in ((3600, 10**6, "h"), (60, 60, "m"), (1, 60, "s"))]
    return "".join(part for part in parts if part[:-1] != "0") or "0s"


# What generate does with them


class Workers:
    """The worker of a run's pipeline: the one that runs, or one that is started for it."""

    def __init__(self, store: Store, entry: Entry, name: str, manifest: Mapping[str, Any], values: Mapping[str, Any]):
        self.store, self.entry, self.name, self.manifest = store, entry, name, manifest
        self.allowed, self.keep = wanted(values)
        self.kept = 0.0  # seconds that the next worker is kept
        self.insisted = values["keep_warm"] is not None
        self.link: Any = None

    def find(self) -> bool:
        """Whether there is a worker for the run, started if it is wished for."""
        if not self.allowed:
            return False
        from ..runners.worker import folder, lifecycle

        if not folder.supported() and not self.keep:
            return False
        try:
            found = lifecycle.find(self.store, self.entry.key, output.warn)
            if isinstance(found, lifecycle.Link):
                self.link, self.kept = found, found.said["keep"] if self.keep is None else self.keep
            elif keep := self.keep or found:
                self.kept = keep
                self.link = self.start()
        except lifecycle.Unusable as error:
            output.warn(f"{error.message}: this run does not use it")
        except OSError as error:
            reason = f"the folder of workers cannot be used: {error.strerror or error}"
            self._do_without(CacheError(reason, "make room in it, or use --no-worker"))
        except DiffpipeError as error:
            self._do_without(error)
        return self.link is not None

    def _do_without(self, error: DiffpipeError) -> None:
        if self.insisted:
            raise error
        output.warn(f"{error.message}: no worker is used ({error.hint})")

    def start(self) -> Any:
        """A new worker; the idlest of the others make room where memory is short."""
        from ..runners.worker import lifecycle, memory_check

        for freed in memory_check.make(self.store, self.entry, self.manifest):
            names = ", ".join(_row(self.store, freed)["names"]) or freed["status"]["key"][:SHORT]
            output.say(f"memory is short: stopped the worker of {names}, idle for {_duration(freed['status']['idle'])}")
        return lifecycle.start(self.store, self.entry.key, self.kept)

    def run(self, requests: Iterator[Request], job: Job, ears: Ears, *, alone: bool) -> Iterator[Outcome]:
        """What becomes of each request. `alone`: it is the only one, and fails if the worker dies of it."""
        from ..runners.worker import client, lifecycle, publishing

        told, tries = sys.stderr.isatty(), 1 if alone else client.TRIES

        def make(made_here: Iterator[Request]) -> Iterator[Outcome]:
            return client.run(self.link, self.start, self.manifest, made_here, job, ears, self.keep, told, tries)

        yield from publishing.run(make, requests)
        if self.keep == 0:
            lifecycle.gone(self.link.place, lifecycle.PARTING)  # its memory is free when this returns
