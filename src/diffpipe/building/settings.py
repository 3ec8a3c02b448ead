"""What the settings files of a build's components say: small, and so read before anything is fetched."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from ..core.canonical import JsonObject
from ..core.errors import UsageError
from ..core.source import BASE, CONFIG, Role, Source, file_of
from ..sources import hub
from ..sources.hub_cache import Repository
from ..sources.key import Resolved

# Those that the libraries read as a JSON object; others of a tokenizer are large, and are looked at from outside.
OBJECTS = frozenset(
    {
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "scheduler_config.json",
        "special_tokens_map.json",
        "tokenizer_config.json",
    }
)


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
    """Raises UsageError for a settings file of any source that the libraries could not read."""
    for source in resolved.sources:
        at = resolved.locations[source.role]
        for path in source.files:
            name = PurePosixPath(path).name
            if name in OBJECTS:
                _object(source, at, path, offline)
            elif name.endswith(".json") and source.kind != "hub" and not _whole(source, at, path):
                raise _damaged(source, path, "it is cut short")


def _object(source: Source, location: str, path: str, offline: bool) -> JsonObject:
    try:
        value = json.loads(_text(source, location, path, offline))
    except (ValueError, RecursionError) as error:  # of json, nested or not, and of a text that is not UTF-8
        raise _damaged(source, path, "it is no JSON") from error
    if not isinstance(value, dict):
        raise _damaged(source, path, f"it holds a {type(value).__name__} where an object is needed")
    return value


def _text(source: Source, location: str, path: str, offline: bool) -> str:
    if source.kind == "hub" and source.commit:
        return hub.read_text(Repository.of(source), path, offline)
    return file_of(source, location, path).read_text(encoding="utf-8")


def _whole(source: Source, location: str, path: str) -> bool:
    """Whether a JSON file ends as it begins: a large one that was cut short does not."""
    data = file_of(source, location, path).read_bytes().strip()
    return (data[:1], data[-1:]) in ((b"{", b"}"), (b"[", b"]"))


def _damaged(source: Source, path: str, why: str) -> UsageError:
    return UsageError(f"{path} of {source.label} is damaged: {why}", "copy or fetch the model again")
