"""The gallery: a folder with a page, index.html, that shows what was made, with settings, and needs nothing else.

The page holds its items as JSON, and is read back and added to when the same folder is given again. Files inside the
folder are linked; others get a hard link (or a copy, on another disk) in its `files`, so that the folder can be moved
or packed as it is. Thumbnails of large pictures, and stills of videos and sounds, lie in `thumbs`.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from ..core.canonical import JsonValue, digest
from ..core.errors import CacheError, UsageError
from ..core.flag import MEDIA_KINDS, Arguments, Flag, OutputKind
from ..core.manifest import Manifest
from ..core.request import Artifact, Request
from ..storage import fetching, urls
from ..storage.disk import temporary_file, write_atomic
from .gallery_page import INDEX, Item, Settings, page, read

FILES, THUMBS = "files", "thumbs"
MOST = 20_000  # items that a page holds; the newest stay
LARGE = 300_000  # bytes of a picture that gets a thumbnail
EVERY = 10.0  # seconds between two writings of the page
PATIENCE = 60.0  # seconds to wait for another run that writes the page

Thumbnail = Callable[[Path, str, Path], None]  # a file, its kind, and where its WebP thumbnail goes


class Gallery:
    """The gallery at a folder while a run adds to it.

    Use it within `opened`. `thumbnail` writes what the page shows of files that are large, or no pictures.
    """

    def __init__(self, folder: Path, thumbnail: Thumbnail | None = None) -> None:
        self.folder, self.thumbnail = folder, thumbnail
        self._new: list[Item] = []
        self._written = time.monotonic()

    def add(self, artifacts: Sequence[Artifact], settings: Settings) -> None:
        """Add the files of an item, made with `settings`. Raises OSError if it cannot be."""
        for artifact in artifacts:
            self._new.append(self._item(artifact, settings))
        if time.monotonic() - self._written > EVERY:
            self.write()

    def write(self) -> None:
        """Put what was added since the last time into the page. Raises OSError if it cannot be, UsageError where the
        page is no gallery any more."""
        from filelock import FileLock

        with FileLock(self.folder / ".index.lock", timeout=PATIENCE):
            kept = {item.key: item for item in read(self.folder)}
            for item in self._new:
                kept.pop(item.key, None)
                kept[item.key] = item
            write_atomic(self.folder / INDEX, page(list(kept.values())[-MOST:]))
            os.chmod(self.folder / INDEX, 0o644)
        self._new, self._written = [], time.monotonic()

    def _item(self, artifact: Artifact, settings: Settings) -> Item:
        path = fetching.local(artifact.path)
        key = _key(path.name, settings)
        placed = self._placed(path, key)
        frames = placed.is_dir()  # a video as a folder of frames, of which the first is shown
        shown = next(iter(sorted(placed.glob("*.png"))), placed) if frames else placed
        kind: OutputKind = "image" if frames or placed.suffix == ".gif" else artifact.kind
        return Item(
            key,
            kind,
            self._link(shown),
            path.name,
            round(time.time()),
            round(artifact.seconds, 3),
            dict(artifact.details),
            settings,
            self._thumb(shown, kind, artifact.kind, key),
        )

    def _thumb(self, shown: Path, kind: OutputKind, made: OutputKind, key: str) -> str | None:
        """The link to a thumbnail, for what is large or no picture."""
        if not self.thumbnail or not shown.is_file() or (kind == "image" and shown.stat().st_size <= LARGE):
            return None
        thumb = self.folder / THUMBS / f"{key}.webp"
        thumb.parent.mkdir(exist_ok=True)
        self.thumbnail(shown, made, thumb)
        return self._link(thumb)

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
        with temporary_file(place) as part:  # renaming one link of a file to another leaves both
            part.unlink()
            _link_or_copy(path, part)
            os.replace(part, place)
        return place

    def _link(self, path: Path) -> str:
        return quote(path.relative_to(self.folder).as_posix(), errors="surrogateescape")


def _key(name: str, settings: Settings) -> str:
    """What tells items apart: the same file name and settings are the same item."""
    own = settings.to_json()
    del own["command"]  # which has the arguments in the order in which they came
    return digest({"settings": own, "file": name})[:12]


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@contextmanager
def opened(folder: Path, thumbnail: Thumbnail | None = None) -> Iterator[Gallery]:
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


def settings_of(request: Request, manifest: Manifest, name: str) -> Settings:
    """What an item says of how it was made."""
    flags = manifest.flags_by_name
    media = {name for name, flag in flags.items() if flag.kind in MEDIA_KINDS}
    arguments = {
        argument: names(value) if argument in media else value for argument, value in request.arguments.items()
    }
    line = command(name, flags, arguments, request)
    return Settings(request.id, request.seed, name, manifest.pipeline, arguments, line)


def names(value: object) -> JsonValue:
    """Files without the folders they lie in."""
    return [names(one) for one in value] if isinstance(value, list | tuple) else Path(urls.shown(str(value))).name


def command(name: str, flags: Mapping[str, Flag], arguments: Arguments, request: Request) -> str:
    """The command line that makes the item again, for a POSIX shell. What is as it is by default is left out."""
    words = ["diffpipe", "generate", name]
    for argument, value in arguments.items():
        flag = flags.get(argument)
        words += _option(flag, value) if flag else ["--set", f"{argument}={json.dumps(value)}"]
    if request.fps:
        words += [f"--fps={request.fps:g}"]
    return " ".join(map(shlex.quote, [*words, f"--seed={request.seed}"]))


def _option(flag: Flag, value: object) -> list[str]:
    """A call argument as words of a command line."""
    if value == flag.default and flag.name != "prompt":
        return []
    if flag.kind == "boolean":
        return [flag.option if value else f"--no-{flag.option[2:]}"]
    if flag.kind == "json":
        return [f"{flag.option}={json.dumps(value)}"]
    return [f"{flag.option}={one}" for one in (value if isinstance(value, list | tuple) else [value])]
