"""Peaks of memory that runs of a pipeline measured: measured.json beside its manifest, for later predictions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..core.build_spec import Placement
from ..core.canonical import JsonObject
from ..core.choices import Dtype
from ..core.components import Stage
from ..core.device_names import WRITTEN_KIND, DeviceKind
from ..core.parsing import Fields, Misfit, parse_json
from ..core.request import Artifact
from ..storage.disk import write_json
from ..storage.opening import read_regular

MOST = 60  # records that are kept: twenty sizes or placements of three stages each
NAME = "measured.json"
LARGEST = 1 << 18  # bytes of the file: MOST records take a twentieth of it
KINDS: Mapping[str, DeviceKind] = {word: kind for kind, word in WRITTEN_KIND.items()}

Peaks = tuple[int | None, int | None]  # bytes on the device and on the host, None where it was not the highest so far


@dataclass(frozen=True)
class Case:
    """What a peak was measured of: a stage, what was made, and how the pipeline was kept on which kind of device."""

    stage: Stage
    width: int
    height: int
    frames: int
    batch: int
    dtype: str
    device: DeviceKind
    placement: Placement

    @classmethod
    def from_json(cls, data: Fields) -> Case:
        """Raises Misfit for what does not fit."""
        return cls(
            stage=data.choice("stage", Stage),
            width=data.integer("width", least=1),
            height=data.integer("height", least=1),
            frames=data.integer("frames", least=1),
            batch=data.integer("batch", least=1),
            dtype=data.choice("dtype", Dtype),
            device=data.parsed("device", _kind),
            placement=Placement.from_json(data.object("placement")),
        )

    def to_json(self) -> JsonObject:
        return {
            "stage": self.stage,
            "width": self.width,
            "height": self.height,
            "frames": self.frames,
            "batch": self.batch,
            "dtype": self.dtype,
            "device": WRITTEN_KIND[self.device],
            "placement": self.placement.to_json(),
        }


def _kind(word: str) -> DeviceKind:
    if word not in KINDS:
        raise ValueError("is no kind of device")
    return KINDS[word]


@dataclass(frozen=True)
class Measured:
    """The peak of a stage: bytes on the device and on the host."""

    case: Case
    device: int | None
    host: int | None

    @classmethod
    def from_json(cls, data: Fields) -> Measured:
        """Raises Misfit for what does not fit."""
        return cls(Case.from_json(data), data.maybe_integer("peak_device"), data.maybe_integer("peak_host"))

    def to_json(self) -> JsonObject:
        return {**self.case.to_json(), "peak_device": self.device, "peak_host": self.host}


def records(
    peaks: Mapping[Stage, Peaks],
    dtype: str,
    device: str,
    placement: Placement,
    made: Sequence[Sequence[Artifact]],
) -> list[Measured]:
    """What a call measured; nothing for what has no width and height. `made`: its files, by request."""
    details = Fields(dict(made[0][0].details))
    if "width" not in details:
        return []
    sizes = details.integer("width"), details.integer("height"), details.integer("frames", 1)
    files = [artifact for artifacts in made for artifact in artifacts if "role" not in artifact.details]
    kept = replace(placement, memory="manual", device_memory=None)
    kind: DeviceKind = "cpu" if device == "cpu" else "accelerator"
    return [Measured(Case(stage, *sizes, len(files), dtype, kind, kept), *peak) for stage, peak in peaks.items()]


def read(folder: Path) -> list[Measured]:
    """The records of an entry's folder, without damaged ones; none where they are missing."""
    try:
        found = Fields(parse_json(read_regular(folder / NAME, LARGEST), LARGEST)).values("records")
    except (OSError, Misfit):
        return []
    known = []
    for one in found:
        with contextlib.suppress(Misfit):
            known.append(Measured.from_json(Fields(one)))
    return known


def add(folder: Path, new: Iterable[Measured]) -> None:
    """Keep records: of the same case the highest peak, the latest MOST in all.

    Nothing is written where nothing is higher, and a cache that may only be read stays as it is.
    """
    known = {one.case: one for one in read(folder)}
    before = dict(known)
    for one in new:
        same = known.pop(one.case, one)  # what is measured again counts as the latest
        known[one.case] = Measured(one.case, _higher(one.device, same.device), _higher(one.host, same.host))
    if known != before:
        with contextlib.suppress(OSError):
            write_json(folder / NAME, {"records": [one.to_json() for one in known.values()][-MOST:]})


def _higher(one: int | None, other: int | None) -> int | None:
    return max(one or 0, other or 0) or None
