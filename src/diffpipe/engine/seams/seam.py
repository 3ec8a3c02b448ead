"""A use of a library beyond its documentation, as data: what it buys, and what happens without it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class Seam:
    """A private name of a library, or a place of it that is patched.

    `library`: the distribution's name. `buys`: what it is used for. `without`: what happens where it does not apply.
    `versions`: the beginnings of the only versions in which it is used; empty where any will do. `file` and `text`:
    where in the library's sources it stands, below the top-level package, and words that must be found there.
    """

    library: str
    name: str
    buys: str
    without: str
    file: str
    text: str
    versions: tuple[str, ...] = ()

    @cached_property
    def applies(self) -> bool:
        """Whether the installed library has it, in a version it is used with. Read from files: nothing is imported."""
        return installed(self.library, self.versions) and any(self.text in source for source in self._sources())

    def _sources(self) -> Iterator[str]:
        for folder in folders(self.file.partition("/")[0]):
            try:
                yield (folder / self.file.partition("/")[2]).read_text(encoding="utf-8")
            except OSError:
                continue


def installed(library: str, versions: tuple[str, ...] = ()) -> bool:
    """Whether a distribution is installed, in a version that begins with one of these (any if there are none)."""
    try:
        version = importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return False
    return not versions or version.startswith(versions)


def folders(package: str) -> list[Path]:
    """Where a top-level package lies, which is found without importing it."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # ValueError: a package that is taken for absent
        return []
    return [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
