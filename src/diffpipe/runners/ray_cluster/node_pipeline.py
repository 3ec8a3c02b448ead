"""A pipeline on a node of a cluster, by its key: from the node's own cache, a bundle, or what pins it."""

from __future__ import annotations

import logging
import os
from contextlib import suppress

from ...building import reproduce
from ...cache.bundle import transfer
from ...cache.entry import SHORT, Entry
from ...cache.store import Store
from ...cache.verify import locate
from ...core.canonical import JsonObject
from ...core.errors import CacheError, DiffpipeError, NotFoundError
from ...core.parsing import Fields
from ...core.source import BASE, CONFIG
from ...results.document import Recipe, SourceFacts
from ..wire import error_json, error_of
from .nodes import on_node
from .worker_spec import WorkerSpec

log = logging.getLogger("diffpipe.ray")


def entry_of(spec: WorkerSpec, store: Store) -> Entry:
    """The pipeline on this node. Raises DiffpipeError where nothing gives the key of the spec."""
    if entry := located(spec.key, store):
        return entry
    trust = spec.manifest.config.trust
    if spec.bundle:
        log.info("fetching %s from a bundle", spec.key[:SHORT])
        with suppress(NotFoundError):  # no bundle of this pipeline there
            return transfer.load(
                store, spec.bundle, expect_key=spec.key,
                allow_pickle=trust.pickle, trust_remote_code=trust.remote_code,
            )  # fmt: skip
    log.info("building %s", spec.key[:SHORT])
    try:
        entry = reproduce.entry_of(_recipe(spec), _given(spec), store, lambda line: log.info("%s", line))
    except NotFoundError as error:
        hint = "pass --bundle with a folder or URL that all nodes reach, or put the same files at the same place there"
        raise NotFoundError(error.message, hint) from error
    if entry.key != spec.key:
        raise CacheError(f"the pipeline came out as {entry.key[:SHORT]}, not {spec.key[:SHORT]}", "pass --bundle")
    return entry


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


def _recipe(spec: WorkerSpec) -> Recipe:
    """What pins the pipeline, as files say what they were made with."""
    manifest = spec.manifest
    return Recipe.of(spec.name, manifest.key, manifest.config, list(map(SourceFacts.of, manifest.sources)))


def _given(spec: WorkerSpec) -> reproduce.Given:
    """Local sources that lie here where they lie on the driver's machine, and the consent given at the build."""
    local = [source.role for source in spec.manifest.sources if source.kind in ("folder", "file")]
    places = {role: spec.places[role] for role in local if os.path.exists(spec.places.get(role, ""))}
    trust = spec.manifest.config.trust
    return reproduce.Given(
        model=places.get(BASE),
        config=places.get(CONFIG),
        components={role.name: place for role, place in places.items() if role.kind == "component"},
        loras=[places[role] for role in sorted((r for r in places if r.kind == "lora"), key=lambda r: int(r.name))],
        allow_pickle=trust.pickle,
        trust_remote_code=trust.remote_code,
        quiet=True,
    )


def on_this_node(spec: WorkerSpec, store: Store) -> Entry:
    """The pipeline in this node's cache, put there by one process of all that ask for it.

    A process that has loaded a pipeline is offline for good, so one of its own fetches it. Raises DiffpipeError.
    """
    import ray

    here = on_node(ray.get_runtime_context().get_node_id())
    fetching = ray.remote(num_cpus=0, max_calls=1)(fetch).options(scheduling_strategy=here)
    with store.lock(f"cluster-{spec.key}", lambda: None):
        found = located(spec.key, store)
        if found is None:
            if failed := ray.get(fetching.remote(spec)):
                raise error_of(Fields(failed))
            found = located(spec.key, store)
    if found is None:
        raise CacheError(f"the pipeline {spec.key[:SHORT]} is gone from the node's cache", "go on with --resume")
    return found


def fetch(spec: WorkerSpec) -> JsonObject | None:
    """Have the pipeline in this node's cache; why not, where that fails."""
    try:
        entry_of(spec, Store())
    except DiffpipeError as error:
        return error_json(error)
    return None
