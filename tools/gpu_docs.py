"""What docs/gpu.json says, as a section of docs/memory.md (see tools/check_gpu.py, which writes the one, and
tools/memory_docs.py, which writes the other)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_rows import LARGE

FILE = Path(__file__).resolve().parents[1] / "docs/gpu.json"
NONE = """\
No GPU was measured so far: everything here is computed, or was measured on the CPU and on a device without hardware
(`tests/paper`). On a machine with a GPU, `python tools/check_gpu.py --output docs/gpu.json` runs families, placements,
quantizers and kernels through the command line in under eight minutes; `tools/memory_docs.py` writes here what came of
it.
"""
Found = Mapping[str, Any]


def section(file: Path = FILE) -> str:
    """The section's text under its heading: that nothing was measured, where the file is missing."""
    if not file.is_file():
        return NONE
    found = json.loads(file.read_text("utf-8"))
    parts = [
        _head(found),
        _groups(found["rows"]),
        _speed(found["rows"]),
        _short_of_memory(found["rows"]),
        _kernels(found),
    ]
    return "\n".join(part for part in parts if part)


def _head(found: Found) -> str:
    facts = found["facts"]
    memory = f", {facts['memory'] / 2**30:.0f} GiB" if facts["memory"] else ""
    speed = facts["speed"]
    copies = [f"{speed[kind] / 1e9:.1f} GB/s from {kind} memory" for kind in ("pageable", "pinned") if speed.get(kind)]
    more = f" It copies {' and '.join(copies)}." if copies else ""
    more += f" It does {speed['flops'] / 1e12:.0f} TFLOP/s in bfloat16." if speed.get("flops") else ""
    return (
        f"`tools/check_gpu.py` on {facts['card']} (`{found['device']}`{memory}), {found['date']}, with torch "
        f"{facts['versions']['torch']} and diffusers {facts['versions']['diffusers']}, in {found['seconds']} s.{more}\n"
    )


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _groups(rows: Sequence[Found]) -> str:
    """How the rows of each group ended. The CPU's own are no news."""
    statuses = ("ok", "close", "refused", "failed", "not run")
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        if row["group"] != "reference":
            counts.setdefault(row["group"], Counter())[row["status"]] += 1
    lines = [(group, *(str(count[status]) for status in statuses)) for group, count in counts.items()]
    failed = [f"- {row['name']}: {' '.join(row['words'].split())}\n" for row in rows if row["status"] == "failed"]
    return _table(("rows", *statuses), lines) + ("\nFailed:\n\n" + "".join(failed) if failed else "")


def _gib(size: int | None) -> str:
    return "" if size is None else f"{size / 2**30:.2f}"


def _speed(rows: Sequence[Found]) -> str:
    """Seconds and peaks of the large model by placement."""
    made = [row for row in rows if row["case"] == LARGE and row["group"] == "speed" and row.get("peak")]
    lines = []
    for row in made:
        off = f"{row['predicted'] / row['peak'] - 1:+.1%}" if row.get("predicted") else ""
        seconds = row["seconds"]
        lines.append((" ".join(row["build"]) or "as it is", f"{seconds['item']:.2f}", f"{seconds['generate']:.1f}",
            _gib(row["peak"]), _gib(row.get("predicted")), off))  # fmt: skip
    head = ("a Flux of 1.1 B, 4 steps of 1024 x 1024", "call, s", "with loading, s", "peak, GiB", "predicted", "")
    return _table(head, lines) if made else ""


def _short_of_memory(rows: Sequence[Found]) -> str:
    """What became of runs that had less memory than their peak."""
    made = [row for row in rows if row["group"] == "memory" and row.get("stepped_down")]
    lines = [(row["name"], row["status"], "; ".join(row["stepped_down"])) for row in made]
    return _table(("with less memory than its peak", "", "steps down"), lines) if made else ""


def _kernels(found: Found) -> str:
    """Torch's kernels of attention, by format."""
    lines = [
        (one["kernel"], one["dtype"], f"{one['ms']:.2f}", f"{one['away']:.4f}")
        for one in found["facts"]["attention"]
        if one["works"]
    ]
    return _table(("attention of 24 x 4608 x 128", "format", "ms", "from the CPU's float32"), lines)
