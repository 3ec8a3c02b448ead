"""The gallery's page: its items as JSON in an HTML file, and back, within limits."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from importlib.resources import files as resources
from pathlib import Path

from ..core.canonical import JsonObject
from ..core.errors import UsageError
from ..core.flag import MAX_SEED, OutputKind
from ..core.parsing import Fields, Misfit, parse_json
from ..storage.opening import open_regular, read_most

INDEX = "index.html"
LARGEST_PAGE = 1 << 29  # bytes; 20,000 items with prompts of thousands of letters take a tenth of it
OPEN = b'<script type="application/json" id="items">'
CLOSE = b"</script>"


@dataclass(frozen=True)
class Settings:
    """What an item says of how it was made. Files are named without the folders they lie in."""

    id: str
    seed: int
    pipeline: str
    class_name: str
    arguments: JsonObject
    command: str

    @classmethod
    def from_json(cls, fields: Fields) -> Settings:
        """Raises Misfit."""
        return cls(
            fields.text("id"),
            fields.integer("seed", most=MAX_SEED),
            fields.text("pipeline"),
            fields.text("class"),
            fields.object("arguments").value,
            fields.text("command"),
        )

    def to_json(self) -> JsonObject:
        return {
            "id": self.id,
            "seed": self.seed,
            "pipeline": self.pipeline,
            "class": self.class_name,
            "arguments": self.arguments,
            "command": self.command,
        }


@dataclass(frozen=True)
class Item:
    """A result as the page shows it. `file` and `thumb` are links within the folder, `time` seconds since the epoch.

    `more`: what a page has of it that this version does not know, which stays.
    """

    key: str
    kind: OutputKind
    file: str
    name: str
    time: int
    seconds: float
    details: JsonObject
    settings: Settings
    thumb: str | None = None
    more: JsonObject = field(default_factory=dict)

    @classmethod
    def from_json(cls, fields: Fields) -> Item:
        """Raises Misfit."""
        kind: OutputKind = fields.choice("kind", OutputKind)
        item = cls(
            fields.text("key"),
            kind,
            fields.text("file"),
            fields.text("name"),
            fields.integer("time"),
            fields.number("seconds"),
            fields.object("details").value,
            Settings.from_json(fields),
            fields.maybe_text("thumb"),
        )
        known = item.to_json()
        return replace(item, more={name: value for name, value in fields.value.items() if name not in known})

    def to_json(self) -> JsonObject:
        return {
            "key": self.key,
            "kind": self.kind,
            "file": self.file,
            "name": self.name,
            "time": self.time,
            "seconds": self.seconds,
            "details": self.details,
            **self.settings.to_json(),
            **({"thumb": self.thumb} if self.thumb is not None else {}),
            **self.more,
        }


def read(folder: Path) -> list[Item]:
    """The items of a gallery's page, [] where there is none. Raises UsageError for a page that is no gallery."""
    try:
        with open_regular(folder / INDEX) as stream:
            page = read_most(stream, LARGEST_PAGE + 1)
    except OSError:
        return []
    try:
        return items_of(page)
    except Misfit:
        raise UsageError(f"{folder / INDEX} is no gallery of diffpipe", "choose another folder for --gallery") from None


def items_of(page: bytes) -> list[Item]:
    """Raises Misfit for a page without items."""
    start = page.find(OPEN)
    end = page.find(CLOSE, start)
    if start < 0 or end < 0 or len(page) > LARGEST_PAGE:
        raise Misfit("it has no items")
    listed = Fields({"items": parse_json(page[start + len(OPEN) : end], LARGEST_PAGE)})
    return [Item.from_json(fields) for fields in listed.objects("items")]


def page(items: Iterable[Item]) -> bytes:
    """The page with these items. No text of theirs becomes markup: they are JSON without <, > and &, read by a script
    that sets text alone; and the page's policy lets no script run but its own, by digest."""
    template = (resources("diffpipe.results") / "gallery.html").read_text(encoding="utf-8")
    text = json.dumps([item.to_json() for item in items], ensure_ascii=True, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    for name in ("script", "style"):
        (content,) = re.findall(rf"<{name}>(.*?)</{name}>", template, re.DOTALL)
        hashed = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        template = template.replace(f"{{{name}-digest}}", f"'sha256-{hashed}'")
    return template.replace("{items}", text).encode()
