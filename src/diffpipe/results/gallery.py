"""The gallery: a folder with a page, index.html, that shows what was made, with settings, and needs nothing else.

The page holds its items as JSON, and is read back and added to when the same folder is given again. Files inside the
folder are linked; others get a hard link (or a copy, on another disk) in its `files`, so that the folder can be moved
or packed as it is. Thumbnails of large pictures, and stills of videos and sounds, lie in `thumbs`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files as resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..core.canonical import digest
from ..core.errors import CacheError, UsageError
from ..core.flag import MEDIA_KINDS, Flag
from ..core.request import Artifact, Request
from ..storage import urls
from ..storage.disk import write_atomic

INDEX, FILES, THUMBS = "index.html", "files", "thumbs"
MOST = 20_000  # items that a page holds; the newest stay
LARGE = 300_000  # bytes of a picture that gets a thumbnail
EVERY = 10.0  # seconds between two writings of the page
OPEN = b'<script type="application/json" id="items">'
CLOSE = b"</script>"

Item = dict[str, Any]
Thumbnail = Callable[[Path, str, Path], None]  # a file, its kind, and where its WebP thumbnail goes


class Gallery:
    """The gallery at a folder while a run adds to it.

    Use it within `opened`. `thumbnail` writes what the page shows of files that are large, or no pictures.
    """

    def __init__(self, folder: Path, thumbnail: Thumbnail | None = None) -> None:
        self.folder, self.thumbnail = folder, thumbnail
        self._new: list[Item] = []
        self._written = time.monotonic()

    def add(self, artifacts: Sequence[Artifact], settings: Mapping[str, Any]) -> None:
        """Add the files of an item, made with `settings` (see `settings_of`). Raises OSError if it cannot be."""
        for artifact in artifacts:
            self._new.append(self._item(artifact, settings))
        if time.monotonic() - self._written > EVERY:
            self.write()

    def write(self) -> None:
        """Put what was added since the last time into the page."""
        with _held(self.folder):
            kept = {item["key"]: item for item in read(self.folder)}
            for item in self._new:
                kept.pop(item["key"], None)
                kept[item["key"]] = item
            write_atomic(self.folder / INDEX, page(list(kept.values())[-MOST:]))
            os.chmod(self.folder / INDEX, 0o644)
        self._new, self._written = [], time.monotonic()

    def _item(self, artifact: Artifact, settings: Mapping[str, Any]) -> Item:
        path = urls.local(artifact.path)
        # The command is left out: it has the arguments in the order in which they came.
        own = {name: value for name, value in settings.items() if name != "command"}
        key = digest({"settings": own, "file": path.name})[:12]
        placed = self._placed(path, key)
        shown = placed
        if placed.is_dir():  # a video as a folder of frames
            shown = next(iter(sorted(placed.glob("*.png"))), placed)
        kind = "image" if placed.is_dir() or placed.suffix == ".gif" else artifact.kind
        item: Item = {
            "key": key,
            "kind": kind,
            "file": self._link(shown),
            "name": path.name,
            "time": round(time.time()),
        }
        item |= {"seconds": round(artifact.seconds, 3), "details": dict(artifact.details), **settings}
        if self.thumbnail and (kind != "image" or shown.stat().st_size > LARGE) and shown.is_file():
            thumb = self.folder / THUMBS / f"{key}.webp"
            thumb.parent.mkdir(exist_ok=True)
            self.thumbnail(shown, artifact.kind, thumb)
            item["thumb"] = self._link(thumb)
        return item

    def _placed(self, path: Path, key: str) -> Path:
        """Where the page finds a file: itself inside the folder, else a link or copy of it in `files`."""
        if path.resolve().is_relative_to(self.folder.resolve()):
            return self.folder / path.resolve().relative_to(self.folder.resolve())
        place = self.folder / FILES / f"{path.stem[:80]}-{key}{path.suffix}"
        place.parent.mkdir(exist_ok=True)
        if path.is_dir():
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(path, place, copy_function=_link_or_copy)
            return place
        part = place.with_name(f".{place.name}.tmp")
        part.unlink(missing_ok=True)
        _link_or_copy(path, part)
        os.replace(part, place)
        part.unlink(missing_ok=True)  # renaming one link of a file to another leaves both
        return place

    def _link(self, path: Path) -> str:
        return quote(path.relative_to(self.folder).as_posix(), errors="surrogateescape")


def _link_or_copy(source: Any, target: Any) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@contextmanager
def opened(folder: Path, thumbnail: Thumbnail | None = None) -> Any:
    """A gallery to add to; the page is written at the end, whatever ends the run.

    Raises UsageError for a folder whose index.html is no gallery, CacheError if it cannot be made.
    """
    check(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(f"cannot make {folder}: {error.strerror}", "choose another --gallery") from error
    gallery = Gallery(folder, thumbnail)
    try:
        yield gallery
    finally:
        gallery.write()


def check(folder: Path) -> None:
    """Raises UsageError where a gallery cannot be: a file, or a folder with a page of somebody else's."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--gallery {folder} is a file", "name a folder")
    read(folder)


@contextmanager
def _held(folder: Path) -> Any:
    from filelock import FileLock

    with FileLock(folder / ".index.lock", timeout=60):
        yield


def read(folder: Path) -> list[Item]:
    """The items of a gallery's page, [] where there is none. Raises UsageError for a page that is no gallery."""
    try:
        text = (folder / INDEX).read_bytes()
    except OSError:
        return []
    start = text.find(OPEN)
    end = text.find(CLOSE, start)
    try:
        found = json.loads(text[start + len(OPEN) : end]) if start >= 0 and end >= 0 else None
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(item, dict) and "key" in item for item in found):
        raise UsageError(f"{folder / INDEX} is no gallery of diffpipe", "choose another folder for --gallery")
    return found


def page(items: Iterable[Item]) -> bytes:
    """The page with these items. No text of theirs becomes markup: they are JSON without <, > and &, read by a script
    that sets text alone; and the page's policy lets no script run but its own, by digest."""
    template = (resources("diffpipe.results") / "gallery.html").read_text(encoding="utf-8")
    text = json.dumps(list(items), ensure_ascii=True, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    for name in ("script", "style"):
        (content,) = re.findall(rf"<{name}>(.*?)</{name}>", template, re.DOTALL)
        hashed = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        template = template.replace(f"{{{name}-digest}}", f"'sha256-{hashed}'")
    return template.replace("{items}", text).encode()


def settings_of(request: Request, manifest: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What an item says of how it was made. Files are named without the folders they lie in."""
    flags = {flag["name"]: Flag.from_json(flag) for flag in manifest["flags"]}
    media = {name for name, flag in flags.items() if flag.kind in MEDIA_KINDS}
    arguments = {
        argument: names(value) if argument in media else value for argument, value in request.arguments.items()
    }
    return {
        "id": request.id,
        "seed": request.seed,
        "pipeline": name,
        "class": manifest["pipeline"],
        "arguments": arguments,
        "command": command(name, flags, arguments, request),
    }


def names(value: Any) -> Any:
    """Files without the folders they lie in."""
    return [names(one) for one in value] if isinstance(value, list | tuple) else Path(urls.shown(value)).name


def command(name: str, flags: Mapping[str, Flag], arguments: Mapping[str, Any], request: Request) -> str:
    """The command line that makes the item again, for a POSIX shell. What is as it is by default is left out."""
    words = ["diffpipe", "generate", name]
    for argument, value in arguments.items():
        flag = flags.get(argument)
        option = "--" + argument.replace("_", "-")
        if flag is None:
            words += ["--set", f"{argument}={json.dumps(value)}"]
        elif value == flag.default and argument != "prompt":
            continue
        elif flag.kind == "boolean":
            words += [option if value else f"--no-{option[2:]}"]
        elif flag.kind == "json":
            words += [f"{option}={json.dumps(value)}"]
        else:
            words += [_word(option, one) for one in (value if isinstance(value, list | tuple) else [value])]
    if request.fps:
        words += [f"--fps={request.fps:g}"]
    return " ".join(map(shlex.quote, [*words, f"--seed={request.seed}"]))


def _word(option: str, value: Any) -> str:
    return f"{option}={value}"
