"""Which installed packages lie outside the bounds that diffpipe's own metadata states. Nothing is imported for it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .canonical import JsonObject

if TYPE_CHECKING:
    from packaging.requirements import Requirement

OURS = "diffpipe"
OF_DEVELOPERS = frozenset({"dev", "test", "train"})  # extras that nothing diffpipe runs depends on


@dataclass(frozen=True)
class Misfit:
    """A package that is missing (version "") or whose version diffpipe was not made for."""

    package: str
    version: str
    wanted: str  # as ">=0.19,<1"

    @property
    def problem(self) -> str:
        return f"{self.package} {self.version or 'is missing'}: diffpipe needs {self.wanted or 'it'}"

    @property
    def remedy(self) -> str:
        return f"pip install '{self.package}{self.wanted}'"

    def to_json(self) -> JsonObject:
        return {"package": self.package, "version": self.version, "wanted": self.wanted, "try": self.remedy}


def misfits() -> list[Misfit]:
    """Every requirement that does not hold, by name; of extras, only where their packages are installed.

    Empty where diffpipe itself is not installed (run from its sources): there are no bounds to read.
    """
    found = {}
    for required, extra in _requirements():
        version = _installed(required.name)
        missing = version is None and not extra
        if missing or (version is not None and not required.specifier.contains(version, prereleases=True)):
            found[required.name.lower()] = Misfit(required.name, version or "", str(required.specifier))
    return [found[name] for name in sorted(found)]


def _requirements() -> Iterator[tuple[Requirement, str]]:
    """diffpipe's requirements that apply to this Python and system, each with the extra that it is of, or ""."""
    from packaging.requirements import Requirement

    try:
        ours = importlib.metadata.metadata(OURS)
    except importlib.metadata.PackageNotFoundError:
        return
    extras = ["", *sorted(set(ours.get_all("Provides-Extra") or ()) - OF_DEVELOPERS)]
    for line in ours.get_all("Requires-Dist") or ():
        required = Requirement(line)
        holds = [extra for extra in extras if not required.marker or required.marker.evaluate({"extra": extra})]
        if holds and required.name != OURS:
            yield required, holds[0]


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
