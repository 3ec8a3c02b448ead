"""What build says of a request before it loads anything, asked in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffpipe.building.build import Options, build
from diffpipe.building.checks import Checked, check
from diffpipe.building.request import Request
from diffpipe.cache.store import Store
from diffpipe.catalog import plugins
from diffpipe.core.build_spec import BuildSpec
from diffpipe.core.manifest import Manifest
from diffpipe.sources.key import Resolved


class Asked:
    """A cache of its own, and requests to it: of float32 on the CPU unless they say otherwise."""

    def __init__(self, home: Path) -> None:
        self.store = Store(home)
        self.said: list[str] = []

    def request(self, provider: str, model: Path, kind: str = "", **words: Any) -> Request:
        rows = plugins.providers()[provider].types
        row = next(row for row in rows if row.name == (kind or rows[0].name))
        words = {"dtype": "float32", "device": "cpu", **words}
        return Request(BuildSpec(provider, row.name, str(model), **words), row, self.store, offline=True)

    def resolved(self, *args: Any, **words: Any) -> Resolved:
        asked = self.request(*args, **words)
        return asked.resolved(asked.spec)

    def checked(self, *args: Any, **words: Any) -> Checked:
        asked = self.request(*args, **words)
        return check(asked.resolved(asked.spec), asked.row, True, dict)

    def built(self, *args: Any, **words: Any) -> Manifest:
        asked = self.request(*args, **words)
        return build(asked, asked.spec, Options("made", offline=True), self.said.append).entry.manifest()
