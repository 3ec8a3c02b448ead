"""Bringing the files of pinned sources here, and knowing which of them are still needed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from ..core.source import Role, RoleKind, Source
from ..sources import download, model_files
from ..sources.hub_cache import Repository
from ..sources.key import Resolved
from ..storage.disk import readable

Say = Callable[[str], None]
NOTHING: Mapping[Role, str] = {}


def fetch(
    resolved: Resolved,
    offline: bool,
    quiet: bool,
    say: Say,
    *,
    only: RoleKind | None = None,
    have: Mapping[Role, str] = NOTHING,
) -> dict[Role, str]:
    """Have the sources of the kind `only` here, or all; role -> folder or file. `have`: those that are here already."""
    locations = {**resolved.locations, **have}
    for source in resolved.sources:
        if only in (None, source.role.kind) and source.kind == "hub" and not locations[source.role]:
            assert source.commit
            total = sum(info.size for info in source.files.values())
            say(f"{source.label} at {source.commit[:7]}: {len(source.files)} files, {readable(total)}")
            repository = Repository.of(source)
            folder = download.fetch(repository, list(source.files), offline=offline, quiet=quiet)
            locations[source.role] = str(folder / next(iter(source.files)) if source.single else folder)
    return locations


def still_needed(sources: Iterable[Source], stored: Collection[str]) -> tuple[Source, ...]:
    """The sources of a pipeline some of whose components are stored, with LoRAs fused: their own weights may go."""
    return tuple(_still_needed(sources, stored))


def _still_needed(sources: Iterable[Source], stored: Collection[str]) -> Iterator[Source]:
    for source in sources:
        if source.role.kind == "lora" or (source.role.kind == "component" and source.role.name in stored):
            continue
        whole = source.single or source.role.kind == "component"
        yield source if whole else replace(source, files=model_files.without_weights(source.files, stored))
