"""The first journey: a build request -> pinned sources -> a named cache entry. Work is done once per key.

resolve     sources/pin.py: what is asked for, pinned to exact files and hashed
check       checks.py: everything that diffusers alone knows, before any weight is fetched
fetch       fetch.py: the files that are not here yet
describe    describe.py: the manifest: components, flags, kind of output
store       quantize where asked, publish the entry, name it
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ..cache import weights
from ..cache.entry import SHORT, Entry
from ..cache.records import SourcesRecord, Summary, record_sources
from ..cache.store import Store, check_name
from ..cache.verify import is_gone
from ..catalog.rows import PipelineType
from ..core.build_spec import BuildSpec
from ..core.manifest import Located, Manifest, StoredWeights, WeightsSummary
from ..core.source import Role, Source, file_of, place_of
from ..memory.build_need import BuildNeed
from ..memory.build_need import check as check_memory
from ..sources import hub_client
from ..sources.key import Report, Resolved
from ..storage.digests import identity
from .checks import Checked, check, check_loras
from .command import command_of
from .confirm import confirm
from .describe import describe
from .fetch import Say, fetch, still_needed
from .header_checks import check_fetched
from .request import Request


@dataclass(frozen=True)
class Built:
    """The outcome of a build: the entry, its name, whether it was there already, and what the name stood for before."""

    entry: Entry
    name: str
    cached: bool
    replaced: str | None


@dataclass(frozen=True)
class Options:
    """How to go about a build, none of which changes what is built. `reason`: why its placement was chosen. `need`:
    host memory that it is predicted to take where it quantizes."""

    name: str
    force: bool = False
    offline: bool = False
    quiet: bool = False
    reason: str = ""
    need: BuildNeed | None = None


def build(
    request: Request,
    spec: BuildSpec,
    options: Options,
    say: Say,
    report: Report | None = None,
) -> Built:
    """Resolve, fetch and describe a pipeline, or find it in the cache. `say` gets a line of text per stage.

    `spec`: the request with the placement that was chosen for it. Raises
    DiffpipeError in the user's terms; whatever happens, the cache holds a whole entry or none.
    """
    store, row = request.store, request.row
    check_name(options.name)
    store.folder("pipelines")  # a cache that cannot be written should say so before anything is read
    options = replace(options, offline=hub_client.is_offline(options.offline))
    resolved = request.resolved(spec, report)
    entry, cached = _found_or_made(resolved, row, store, options, say)
    request.remember(resolved)
    return Built(entry, options.name, cached, store.set_name(options.name, entry.key))


def _found_or_made(
    resolved: Resolved, row: PipelineType, store: Store, options: Options, say: Say
) -> tuple[Entry, bool]:
    """The entry of a resolved request, and whether it was there already."""
    if not options.force and (entry := _ready(store, resolved)):
        entry = confirm(entry, store, command_of(resolved.spec, options.name), options.offline, say)
        _follow(entry, resolved, options.name)
        return entry, True
    short = resolved.key[:SHORT]
    with store.lock(resolved.key, lambda: say(f"another process is building {short}; waiting for it")):
        # Another process may have published it while this one waited.
        if not options.force and (entry := _ready(store, resolved)):
            return confirm(entry, store, command_of(resolved.spec, options.name), options.offline, say), True
        return _make(resolved, row, store, options, say), False


def _ready(store: Store, resolved: Resolved) -> Entry | None:
    """The entry, if it is sound and the hub's cache still holds its files (other tools clean that cache too)."""
    entry = store.sound(resolved.key)
    if entry is None:
        return None
    locations = entry.locations()
    sources = [source for source in entry.manifest().sources if source.kind == "hub"]
    fetched = (file_of(source, locations[source.role], path) for source in sources for path in source.files)
    stored = weights.weights_key(resolved.config)
    whole = stored is None or weights.sound(store, stored) is not None
    return entry if whole and not any(map(is_gone, fetched)) else None


def _follow(entry: Entry, resolved: Resolved, name: str) -> None:
    """A cache hit from another folder with the same content: where the recorded one is gone, use the new one."""
    recorded, sources = entry.sources(), entry.manifest().sources
    if recorded is None:
        return
    moved = {s.role for s in sources if s.kind in ("folder", "file") and _changed(s, recorded)}
    if moved:
        locations = {**recorded.locations, **{role: resolved.locations[role] for role in moved}}
        entry.set_sources(record_sources(sources, locations, command_of(resolved.spec, name)))


def _changed(source: Source, recorded: SourcesRecord) -> bool:
    """Whether any file of a source is not, where it was recorded, what it was then."""
    location = recorded.locations.get(source.role, "")
    places = {path: file_of(source, location, path) for path in source.files}
    return any(
        is_gone(place) or tuple(identity(place)) != recorded.seen(source.role, path) for path, place in places.items()
    )


def _make(resolved: Resolved, row: PipelineType, store: Store, options: Options, say: Say) -> Entry:
    """Check, fetch, describe, store: an entry that was not there."""
    checked = check(resolved, row, options.offline, lambda: fetch(resolved, options.offline, options.quiet, say))
    for notice in checked.notices:
        say(f"warning: {notice}")
    have = checked.fetched or fetch(resolved, options.offline, options.quiet, say, only="lora")
    check_loras(checked, resolved, have, options.offline, say)
    shared = _shared_weights(resolved, store, options.force)
    if options.need and not shared and (notice := check_memory(options.need, options.force)):
        say(f"warning: {notice}")
    sources = still_needed(resolved.sources, shared.components) if shared else resolved.sources
    needed = replace(resolved, sources=sources)
    locations = checked.fetched or fetch(needed, options.offline, options.quiet, say, have=have)
    for notice in check_fetched(resolved.pipeline, needed, checked.layout, locations, options.offline):
        say(f"warning: {notice}")
    manifest = describe(needed, row, checked, locations, options.reason)
    return _stored(manifest, checked, row, locations, resolved.spec, store, options.name, say)


def _shared_weights(resolved: Resolved, store: Store, force: bool) -> WeightsSummary | None:
    """The stored weights of a request, where another entry with the same ones made them here."""
    key = weights.weights_key(resolved.config)
    if key is None:
        return None
    if force and weights.problems(store, key):  # read whole: a disk can lose bits in silence
        weights.drop(store, key)
    found = weights.sound(store, key)
    return found if found and not found.imported else None


def _stored(
    manifest: Manifest,
    checked: Checked,
    row: PipelineType,
    locations: Mapping[Role, str],
    spec: BuildSpec,
    store: Store,
    name: str,
    say: Say,
) -> Entry:
    """Make the quantized weights where they are asked for, and publish the entry."""
    key = weights.weights_key(manifest.config)
    if key is None:
        return _published(manifest, locations, spec, store, name)
    with _quantized(manifest, key, locations, row, store, say) as quantized:
        return _published(quantized, locations, spec, store, name)


def _published(manifest: Manifest, locations: Mapping[Role, str], spec: BuildSpec, store: Store, name: str) -> Entry:
    summary = Summary.of(manifest, int(time.time()))
    return store.publish(summary, manifest, record_sources(manifest.sources, locations, command_of(spec, name)))


@contextmanager
def _quantized(
    manifest: Manifest, key: str, locations: Mapping[Role, str], row: PipelineType, store: Store, say: Say
) -> Iterator[Manifest]:
    """The manifest with its stored weights, which are made unless an entry with the same ones made them.

    Components get the stored sizes; sources lose what is not needed any more.
    """
    from ..engine.loading import prepare

    located = Located({role: place_of(location) for role, location in locations.items()})
    how = manifest.config.quantization
    assert how  # there is a key
    with weights.made(
        store,
        key,
        lambda folder: prepare.store_components(manifest, located, row.quirks, folder, say),
        lambda: say(f"another process is making the quantized weights {key[:SHORT]}; waiting for it"),
        own=True,
    ) as made:
        yield _with_stored(manifest, StoredWeights(how, key, made.qualities), made)


def _with_stored(manifest: Manifest, stored: StoredWeights, made: WeightsSummary) -> Manifest:
    components = tuple(
        replace(part, bytes=one.bytes, parameters=one.parameters, dtypes=one.dtypes)
        if (one := made.components.get(part.name))
        else part
        for part in manifest.components
    )
    return manifest.with_stored(stored, components, still_needed(manifest.sources, made.components))
