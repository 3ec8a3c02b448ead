"""What the settings files of a build's components say: small, and so read before anything is fetched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from ..core.canonical import JsonObject
from ..core.errors import UsageError
from ..core.source import BASE, CONFIG, Role, Source, file_of
from ..sources import hub, settings_files
from ..sources.hub_cache import Repository
from ..sources.key import Resolved
from ..storage.opening import LARGEST_TEXT, read_regular


def place_of_settings(given: Iterable[Source], component: str) -> tuple[Source, str]:
    """The source of a component's settings and the folder in it ("" at its root): a single file has none of its own."""
    sources = {source.role: source for source in given}
    own = sources.get(Role.component(component))
    if own is not None and not own.single:
        return own, own.subfolder
    return sources.get(CONFIG) or sources[BASE], component


def settings_of(resolved: Resolved, component: str, name: str, offline: bool) -> JsonObject:
    """A component's own settings file; {} where there is none. Raises UsageError for one that is damaged."""
    return settings_at(resolved.sources, resolved.locations, component, name, offline)


def settings_at(
    sources: Sequence[Source], locations: Mapping[Role, str], component: str, name: str, offline: bool
) -> JsonObject:
    """The same, of sources that lie at `locations`."""
    source, inside = place_of_settings(sources, component)
    path = f"{inside}/{name}" if inside else name
    return _object(source, locations[source.role], path, offline) if path in source.files else {}


def check_settings(resolved: Resolved, offline: bool) -> None:
    """Raises UsageError for settings of the hub that must not reach a library; `pin` read the others."""
    for source in resolved.sources:
        if source.kind == "hub":
            read = partial(_text, source, resolved.locations[source.role], offline=offline)
            settings_files.check(source, resolved.layout, read, trusted=resolved.spec.trust_remote_code)


def _object(source: Source, location: str, path: str, offline: bool) -> JsonObject:
    try:
        text = _text(source, location, path, offline)
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} of {source.label} is damaged: it is no JSON", "copy or fetch the model again"
        ) from error
    return settings_files.parsed(source, path, text)


def _text(source: Source, location: str, path: str, offline: bool) -> str:
    if source.kind == "hub" and source.commit:
        return hub.read_text(Repository.of(source), path, offline)
    return read_regular(file_of(source, location, path), LARGEST_TEXT).decode()
