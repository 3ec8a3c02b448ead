"""What a node of a cluster does for a batch: tell its versions, have the pipeline by its key, make rows of requests."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...building import reproduce
from ...building.versions import versions
from ...cache import measured
from ...cache.bundle import transfer as bundle
from ...cache.entry import SHORT, Entry
from ...cache.store import Store
from ...cache.verify import locate
from ...core.configuration import Configuration
from ...core.errors import CacheError, DiffpipeError, NotFoundError
from ...core.flag import MEDIA_KINDS, Flag, OutputKind
from ...core.manifest import Manifest
from ...core.parsing import Fields
from ...core.quantization import PACKAGES
from ...core.request import Artifact, Request
from ...core.source import BASE, CONFIG, Source
from ...results.document import Recipe, SourceFacts
from ...storage import urls
from ...storage.disk import remove_leftovers
from ..inputs import reader
from ..job import Ears, Job
from ..local import How, Session, how_of
from ..wire import Answer, error_json, error_of, request_of
from . import input_files as feeds

log = logging.getLogger("diffpipe.ray")

MOST_DEATHS = 4  # workers that may die with one request: chance kills one or two, a request that is too large kills all
KEPT = 256  # input files of the driver's machine that a worker keeps from one row to the next
ALWAYS = ("diffpipe", "diffusers", "transformers", "torch")
ENCODERS: dict[OutputKind, str] = {"image": "pillow", "video": "av", "audio": "av"}


@dataclass(frozen=True)
class Plan:
    """What every worker of a run is told. Nothing of it is weights.

    `document`: what reproduce.entry_of builds the pipeline from. `places`: where its local sources lie on the driver's
    machine, by role. `driver`: the id of the driver's node; `root`, `folder`, `umask`: its cache, its working folder
    and how it makes files, which workers on that node share. `gpus`: of each worker. `bundle`: where bundles lie,
    "" for nowhere.
    """

    key: str
    document: Mapping[str, Any]
    places: Mapping[str, str]
    versions: Mapping[str, str]
    job: Mapping[str, Any]
    driver: str
    root: str
    folder: str
    umask: int
    gpus: float = 0.0
    bundle: str = ""


# Versions


def deciding(manifest: Manifest) -> tuple[str, ...]:
    """The packages that decide what a pipeline makes, bit by bit: those that compute it, and the one that encodes it.

    accelerate and safetensors only carry weights from disk to device; peft counts where LoRAs are loaded, quantizers
    where something is quantized, gguf where weights are.
    """
    config = manifest.config
    quantizer = PACKAGES[config.quantization.backend] if config.quantization else ""
    gguf = any(path.endswith(".gguf") for source in manifest.sources for path in source.files)
    more = [ENCODERS[manifest.kind], quantizer, "peft" if config.loras else "", "gguf" if gguf else ""]
    return (*ALWAYS, *(name for name in more if name))


def found(packages: Sequence[str]) -> dict[str, str]:
    """The installed versions, and Python's. Of torch without the build's label (+cpu, +cu128): a driver without a GPU
    and nodes with one have different builds of the same."""
    seen = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for package in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            seen[package] = importlib.metadata.version(package).partition("+")[0]
    return seen


def differing(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """What another node has otherwise: "diffusers 0.41.0 (here 0.42.1)"."""
    names = [name for name in here if here[name] != there.get(name)]
    return [f"{name} {there.get(name, 'missing')} (here {here[name]})" for name in names]


def answer(packages: Sequence[str], key: str) -> dict[str, Any]:
    """What a node is asked before a run: its versions, those that are told only, and whether it has the pipeline."""
    return {"versions": found(packages), "all": versions(), "here": Store().sound(key) is not None}


def refuse(label: str, different: Sequence[str]) -> DiffpipeError:
    told = ", ".join(different)
    return DiffpipeError(
        f"{label} would make something else: it has {told}", "install the same versions there, or leave that node out"
    )


# The pipeline


def entry_of(plan: Plan, store: Store) -> Entry:
    """The pipeline on this node: from its own cache, else from a bundle, else built from what pins it.

    Raises DiffpipeError where none of that gives the key of the plan.
    """
    if entry := located(plan.key, store):
        return entry
    trust = plan.document["config"]["trust"]
    if plan.bundle:
        log.info("fetching %s from a bundle", plan.key[:SHORT])
        with suppress(NotFoundError):  # no bundle of this pipeline there
            return bundle.load(
                store, plan.bundle, expect_key=plan.key,
                allow_pickle=trust["pickle"], trust_remote_code=trust["remote_code"],
            )  # fmt: skip
    log.info("building %s", plan.key[:SHORT])
    try:
        entry = reproduce.entry_of(_recipe(plan), _given(plan), store, lambda line: log.info("%s", line))
    except NotFoundError as error:
        hint = "pass --bundle with a folder or URL that all nodes reach, or put the same files at the same place there"
        raise NotFoundError(error.message, hint) from error
    if entry.key != plan.key:
        raise CacheError(f"the pipeline came out as {entry.key[:SHORT]}, not {plan.key[:SHORT]}", "pass --bundle")
    return entry


def _recipe(plan: Plan) -> Recipe:
    document = plan.document
    config = Configuration.from_json(Fields(document["config"]))
    sources = [SourceFacts.of(Source.from_json(Fields(one))) for one in document["sources"]]
    return Recipe.of(document["pipeline"]["name"], plan.key, config, sources)


def located(key: str, store: Store) -> Entry | None:
    """A pipeline that is in a cache with all that it stands on."""
    entry = store.sound(key)
    try:
        if entry:
            locate(entry, entry.manifest())
    except CacheError as error:
        log.info("%s", error.message)
        return None
    return entry


def _given(plan: Plan) -> reproduce.Given:
    """Local sources that lie here where they lie on the driver's machine, and the consent given at the build."""
    sources = [Source.from_json(Fields(one)) for one in plan.document["sources"]]
    local = [(s.role, plan.places.get(str(s.role), "")) for s in sources if s.kind in ("folder", "file")]
    places = {role: place for role, place in local if os.path.exists(place)}
    trust = plan.document["config"]["trust"]
    return reproduce.Given(
        model=places.get(BASE),
        config=places.get(CONFIG),
        components={role.name: place for role, place in places.items() if role.kind == "component"},
        loras=[place for role, place in sorted(places.items()) if role.kind == "lora"],
        allow_pickle=trust["pickle"],
        trust_remote_code=trust["remote_code"],
        quiet=True,
    )


def prepare(plan: Plan) -> dict[str, Any] | None:
    """Have the pipeline in this node's cache; why not, where that fails. In a process of its own: one that has loaded a
    pipeline is offline for good."""
    try:
        entry_of(plan, Store())
    except DiffpipeError as error:
        return error_json(error)
    return None


# A worker


class Maker:
    """A worker: the pipeline, loaded once. Called with rows of the dataset, it gives rows of what became of them.

    On the driver's node it writes results where they belong; on others it sends them back, unless they go to URLs.
    """

    def __init__(self, feed: Any, plan: Plan, session: Any = Session) -> None:
        import ray

        self.feed, self.plan, self.wait = feed, plan, ray.get
        about = ray.get_runtime_context()
        self.name, self.near = about.get_actor_id() or "", about.get_node_id() == plan.driver
        self.folder: Path | None = None
        self.fetched: dict[str, tuple[Sequence[Any], Path]] = {}
        self.refused: dict[str, Any] | None = None
        try:
            self._load(session, f"the node {platform.node()}")
        except DiffpipeError as error:  # told with its first row: Ray would start one again that raises here
            self.refused = error_json(error)

    def _load(self, session: Any, label: str) -> None:
        """Nodes may join at any time, so what was asked of those that were there is asked again."""
        if different := differing(self.plan.versions, found([n for n in self.plan.versions if n != "Python"])):
            raise refuse(label, different)
        if not self.plan.gpus:  # Ray leaves all GPUs visible to workers without a share of them, or none: by version
            os.environ |= {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
        if self.near:
            os.chdir(self.plan.folder)
            os.umask(self.plan.umask)
        store = Store(Path(self.plan.root) if self.near else None)
        try:
            entry = self._entry(store)
            self.manifest = entry.manifest()
            self.session = session(self.manifest, locate(entry, self.manifest))
        except DiffpipeError as error:
            raise type(error)(f"{label}: {error.message}", error.hint, error.exit_code) from error
        except Exception as error:
            raise DiffpipeError(f"{label}: {type(error).__name__}: {error}", "--traceback shows where") from error
        self.flags = self.manifest.flags_by_name
        self.lines: list[str] = []
        job = Job.from_json(Fields(dict(self.plan.job)))
        ears = Ears(lambda request, done, steps: None, self.lines.append)
        read = reader(self.flags, job.fit, ears.tell)
        self.how = how_of(job, ears, read, functools.partial(measured.add, entry.folder))

    def _entry(self, store: Store) -> Entry:
        """The pipeline in this node's cache, put there by one process of all that ask for it."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if self.near:  # the driver has looked at it
            return entry_of(self.plan, store)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        alone = ray.remote(num_cpus=0, max_calls=1)(prepare).options(scheduling_strategy=here)
        with store.lock(f"cluster-{self.plan.key}", lambda: None):
            found = located(self.plan.key, store)
            if found is None:
                if failed := ray.get(alone.remote(self.plan)):
                    raise error_of(Fields(failed))
                found = located(self.plan.key, store)
        assert found
        return found

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        number = int(row["row"])
        taken = self.wait(self.feed.take.remote(number, self.name))
        told: dict[str, Any] = {"answers": [], "stopped": self.refused}
        files: list[bytes] = []
        if taken is not None and not self.refused:
            told["stopped"] = self._make(number, taken, told["answers"], files)
            told |= {"memory": self.session.memory_now(), "lines": list(self.lines), "node": platform.node()}
            self.lines.clear()
        return {"row": number, "told": json.dumps(told).encode(), "files": b"".join(files)}

    def _make(self, number: int, taken: Any, answers: list[Any], files: list[bytes]) -> dict[str, Any] | None:
        """Make a row's requests; what ends the whole run (a full disk), else None."""
        asked, again, deaths = taken
        self._forget()
        requests = [request_of(Fields(data)) for data in asked]
        lost = {place for place, count in deaths.items() if count >= MOST_DEATHS}
        answers += [_lost() if place in lost else None for place in range(len(requests))]
        wanted = [place for place in range(len(requests)) if place not in lost]
        try:
            ready = (self._begin(number, place, requests[place], again) for place in wanted)
            how = alone(self.how) if again else self.how
            for place, outcome in zip(wanted, self.session.outcomes(ready, how), strict=True):
                sent: dict[str, Any] = Answer.of(outcome).to_json()
                if not self.near:
                    sent["artifacts"] = [self._pack(a, requests[place], files) for a in outcome.artifacts]
                answers[place] = sent
        except DiffpipeError as error:
            return error_json(error)
        if again:
            self.feed.begun.remote(number, None)
        return None

    def _begin(self, number: int, place: int, request: Request, again: bool) -> Request:
        """A request as this worker makes it. What another one left of it, finished or not, is replaced."""
        if again:
            self.wait(self.feed.begun.remote(number, place))  # if it kills this worker, too, it must be known
            request = replace(request, overwrite=True)
            for path in request.paths:
                if own := urls.on_disk(path) if urls.is_url(path) else path if self.near else None:
                    remove_leftovers(Path(own))
        return request if self.near else self._brought(number, place, request)

    def __del__(self) -> None:
        """Ray Data lets go of a worker before it ends it."""
        if folder := getattr(self, "folder", None):
            shutil.rmtree(folder, ignore_errors=True)

    # A worker on another node than the driver's

    def _brought(self, number: int, place: int, request: Request) -> Request:
        """A request with its input files fetched, and local results in a folder of this worker."""
        self.folder = self.folder or own_folder("diffpipe-node", tempfile.gettempdir())
        arguments = dict(request.arguments)
        for name in media_names(self.flags) & arguments.keys():
            value = arguments[name]
            listed = value if isinstance(value, list) else [value]
            there = [path if urls.is_url(path) else str(self._fetch(number, path)) for path in listed]
            arguments[name] = there if isinstance(value, list) else there[0]
        results = self.folder / f"results-{place}"
        shutil.rmtree(results, ignore_errors=True)
        paths = [
            path if urls.is_url(path) else str(results / str(at) / Path(path).name)
            for at, path in enumerate(request.paths)
        ]
        return replace(request, arguments=arguments, paths=tuple(paths))

    def _forget(self) -> None:
        """Remove the input files that were fetched first, of many."""
        while len(self.fetched) > KEPT:
            _, place = self.fetched.pop(next(iter(self.fetched)))
            shutil.rmtree(place.parent, ignore_errors=True)

    def _fetch(self, number: int, path: str) -> Path:
        """An input file of the driver's machine, here under its own name."""
        assert self.folder
        known, place = self.fetched.get(path, (None, None))
        now, files = self.wait(self.feed.read.remote(number, path, known))
        if files is None and place is not None:
            return place
        place = Path(tempfile.mkdtemp(dir=self.folder, prefix="input-")) / Path(path).name
        feeds.lay_out(files, place)
        self.fetched[path] = now, place
        return place

    def _pack(self, artifact: Artifact, request: Request, files: list[bytes]) -> dict[str, Any]:
        """An artifact as it will be on the driver's machine, and the sizes of its files, which are added to `files`."""
        told = dict(vars(artifact))
        if urls.is_url(artifact.path):
            return told
        made = Path(artifact.path)
        read = feeds.content(made)
        files += read.values()
        shutil.rmtree(made) if made.is_dir() else made.unlink()
        told["path"] = str(Path(request.paths[int(made.parent.name)]).with_name(made.name))
        return told | {"sizes": {name: len(data) for name, data in read.items()}}


def alone(how: How) -> How:
    """One request a call, so that one that kills its worker is known."""
    return replace(how, batch_size=1, memory=replace(how.memory, chunk=1))


def media_names(flags: Mapping[str, Flag]) -> set[str]:
    return {name for name, flag in flags.items() if flag.kind in MEDIA_KINDS}


def _lost() -> dict[str, Any]:
    error = DiffpipeError(
        f"{MOST_DEATHS} workers died while making it",
        "its memory may have run out: make it smaller, or run fewer --workers; the node's log tells more",
    )
    return {"artifacts": [], "warnings": [], "error": error_json(error)}


def own_folder(name: str, place: str) -> Path:
    """A folder of this process's own; those of the same name of processes that were killed go."""
    for left in Path(place).glob(f"{name}-*-*"):
        with suppress(ValueError, OSError):
            if left.stat().st_uid == os.getuid() and not _lives(int(left.name.split("-")[-2])):
                shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(dir=place, prefix=f"{name}-{os.getpid()}-"))


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
