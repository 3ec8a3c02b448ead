"""Peaks of memory that runs of a pipeline measured: measured.json beside its manifest, for later predictions."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.build_spec import Placement
from ..core.request import Artifact
from ..storage.disk import write_json

MOST = 60  # records that are kept: twenty sizes or placements of three stages each
NAME = "measured.json"
PEAKS = ("peak_device", "peak_host")
Record = Mapping[str, Any]


def records(
    peaks: Mapping[str, tuple[int | None, int | None]],
    dtype: str,
    device: str,
    placement: Placement,
    made: Sequence[Sequence[Artifact]],
) -> list[dict[str, Any]]:
    """What a call measured, as memory.estimate.correction takes it; nothing for what has no width and height.

    `peaks`: stage -> bytes on the device and on the host. `made`: its files, by request.
    """
    details = made[0][0].details
    if "width" not in details:
        return []
    files = [artifact for artifacts in made for artifact in artifacts if "role" not in artifact.details]
    shared = {
        "width": details["width"],
        "height": details["height"],
        "frames": details.get("frames", 1),
        "batch": len(files),
        "dtype": dtype,
        "device": "cpu" if device == "cpu" else "cuda",
        "placement": replace(placement, memory="manual", device_memory=None).to_json(),
    }
    return [{"stage": stage, **shared, **dict(zip(PEAKS, peak, strict=True))} for stage, peak in peaks.items()]


def read(folder: Path) -> list[dict[str, Any]]:
    """The records of an entry's folder; none where they are missing or damaged."""
    try:
        found = json.loads((folder / NAME).read_bytes())["records"]
        return [record for record in found if isinstance(record, dict) and record.keys() >= {"stage", *PEAKS}]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def add(folder: Path, new: Iterable[Record]) -> None:
    """Keep records: of the same stage, size and placement the highest peak, the latest MOST in all.

    Nothing is written where nothing is higher, and a cache that may only be read stays as it is.
    """
    known = {_case(record): record for record in read(folder)}
    before = dict(known)
    for record in new:
        same = known.pop(_case(record), None)
        known[_case(record)] = {**record, **_higher(record, same)} if same else dict(record)
    if known != before:
        with contextlib.suppress(OSError):
            write_json(folder / NAME, {"records": list(known.values())[-MOST:]})


def _case(record: Record) -> str:
    return json.dumps({name: value for name, value in record.items() if name not in PEAKS}, sort_keys=True)


def _higher(one: Record, other: Record) -> dict[str, int | None]:
    return {peak: max(one[peak] or 0, other[peak] or 0) or None for peak in PEAKS}
