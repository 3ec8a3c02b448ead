"""What a file was made with, as text inside it: a JSON document, and the `parameters` that other image tools read.

The document says all that is needed to make the file again, and nothing of the machine or the person: sources by
repository and commit or by content digest, input files by name and digest. It holds no time, so that the same result
is the same bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..core import item_warnings
from ..core.build_spec import Placement
from ..core.canonical import JsonObject, JsonValue, digest
from ..core.flag import MEDIA_KINDS
from ..core.manifest import Manifest
from ..core.placeless import placeless
from ..core.request import Request
from ..storage import fetching
from ..storage.digests import identity, sha256
from .document import FORMAT, Document, SourceFacts, written
from .parameters import parameters


@dataclass(frozen=True)
class About:
    """What a run's files say besides pipeline and call: its name, whether media were fitted, items a call at most."""

    name: str
    fit: bool = False
    batch_size: int = 1


@dataclass(frozen=True)
class Run:
    """What all files of a run share. `device` is its kind ("cpu: AVX2", "cuda: NVIDIA L4"), not the machine's name.

    `stepped_down`: how the pipeline was kept for an item that ran out of memory as it was built.
    """

    manifest: Manifest
    about: About
    versions: Mapping[str, str]
    device: str
    stepped_down: Placement | None = None


def texts(run: Run, request: Request) -> Callable[[Mapping[str, JsonValue]], dict[str, str]]:
    """What gives the texts of a request's files, by the keys that the writers of media know.

    It takes the facts of a result: its kind and format, its index among those of the call and how many there are, its
    sizes. What was warned of until then is in them. Input files are read now, while they are what the call gets. Raises
    OSError if they cannot be.
    """
    shared = document(run, request)

    def of_result(facts: Mapping[str, JsonValue]) -> dict[str, str]:
        said: list[JsonValue] = [placeless(text) for text in item_warnings.of_files(request)]
        made: JsonObject = {**shared, "result": dict(facts), **({"warnings": said} if said else {})}
        return {"parameters": parameters(Document.from_json(made)), "diffpipe": written(made)}

    return of_result


def document(run: Run, request: Request) -> JsonObject:
    """All that makes a request's files, as plain JSON, without what differs among them ("result")."""
    manifest, about = run.manifest, run.about
    media = {flag.name for flag in manifest.flags if flag.kind in MEDIA_KINDS} & request.arguments.keys()
    return {
        "format": FORMAT,
        "tool": "diffpipe",
        "pipeline": {
            "name": about.name,
            "key": manifest.key,
            "provider": manifest.provider,
            "type": manifest.type,
            "class": manifest.pipeline,
        },
        "config": manifest.config.json,
        "sources": [SourceFacts.of(source).to_json() for source in manifest.sources],
        "components": {part.name: part.class_name for part in manifest.components},
        "arguments": {name: value for name, value in request.arguments.items() if name not in media},
        "media": {name: _media(request.arguments[name]) for name in sorted(media)},
        "seed": request.seed,
        "fps": request.fps,
        "fit": about.fit,
        "batch_size": about.batch_size,
        "versions": dict(run.versions),
        "device": run.device,
        **({"stepped_down": run.stepped_down.to_json()} if run.stepped_down else {}),
    }


def _media(value: object) -> JsonValue:
    """A media argument without where it lies: {"file", "digest"}, or a list of those."""
    if isinstance(value, list | tuple):
        return [_media(path) for path in value]
    path = fetching.local(str(value))
    return {"file": path.name, "digest": media_digest(path)}


def media_digest(path: Path) -> str:
    """The SHA-256 of a file ("sha256:…"), or of the names and digests of a folder's files. Read once while unchanged.

    Raises OSError if it cannot be read.
    """
    if path.is_dir():
        inside = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        return "sha256:" + digest({file.name: media_digest(file) for file in inside})
    return _digest(path, tuple(identity(path)))


@functools.lru_cache(maxsize=4096)
def _digest(path: Path, _identity: tuple[int, ...]) -> str:
    return sha256(path)
