"""How well `read_flags` reads the installed diffusers: every pipeline class, its parameters, and their flags.

    python tools/signature_coverage.py [--table FILE]

Exits with 1 where a class cannot be read, a default breaks its own flag's limits, or under 97% of the flags have help.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from diffpipe.engine.signature import docstring_arguments, read_flags
from diffpipe.specs import Flag

HELP_TARGET = 0.97


class Reading(NamedTuple):
    """One pipeline class: its parameters, those its docstring explains, its flags, seconds taken, and why it failed (""
    where it did not)."""

    name: str
    parameters: tuple[str, ...] = ()
    documented: frozenset[str] = frozenset()
    flags: tuple[Flag, ...] = ()
    seconds: float = 0.0
    failure: str = ""

    @property
    def helped(self) -> int:
        return sum(bool(flag.help) for flag in self.flags)


def pipeline_classes() -> Iterator[tuple[str, type | str]]:
    """Every pipeline class that diffusers exports, or why it cannot be had (a deprecated module, a missing package)."""
    import diffusers

    for name in sorted(set(dir(diffusers))):
        if "Pipeline" not in name or name.endswith("Output"):
            continue
        try:
            found = getattr(diffusers, name)
        except (ImportError, AttributeError, RuntimeError) as error:
            yield name, f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        if getattr(found, "_backends", None):
            yield name, f"needs {', '.join(found._backends)}"
        elif inspect.isclass(found) and issubclass(found, diffusers.DiffusionPipeline) and "__call__" in dir(found):
            yield name, found


def read(name: str, found: type | str) -> Reading:
    if isinstance(found, str):
        return Reading(name, failure=found)
    start = time.perf_counter()
    try:
        flags = read_flags(found)
    except Exception as error:  # the tool's very purpose: to name the classes that fail and why
        return Reading(name, failure=f"{type(error).__name__}: {error}")
    seconds = time.perf_counter() - start
    documented = {n for n, doc in docstring_arguments(found.__call__.__doc__ or "").items() if doc.help}
    return Reading(name, tuple(inspect.signature(found.__call__).parameters)[1:], frozenset(documented), flags, seconds)


def broken_defaults(reading: Reading) -> Iterator[str]:
    """Flags whose own default their limits would reject."""
    for flag in reading.flags:
        for value in flag.default if isinstance(flag.default, list) else [flag.default]:
            if flag.kind not in ("integer", "number") or value is None:
                continue
            low = flag.minimum is not None and value < flag.minimum
            high = flag.maximum is not None and value > flag.maximum
            if low or high or (flag.multiple_of is not None and value % flag.multiple_of):
                yield f"{reading.name}.{flag.name} = {value}"


def table(readings: list[Reading]) -> str:
    cells = [(r.failure, "", "") if r.failure else (len(r.parameters), len(r.flags), r.helped) for r in readings]
    rows = [f"| {r.name} | {a} | {b} | {c} |" for r, (a, b, c) in zip(readings, cells, strict=True)]
    return "\n".join(["| Class | Parameters | Flags | With help |", "|---|---|---|---|", *rows, ""])


def summary(readings: list[Reading]) -> Iterator[str]:
    fine = [reading for reading in readings if not reading.failure]
    flags = [flag for reading in fine for flag in reading.flags]
    helped = sum(reading.helped for reading in fine)
    own = sum(flag.name in reading.documented for reading in fine for flag in reading.flags)
    times = sorted(reading.seconds * 1000 for reading in fine)
    yield f"classes     {len(fine)} read, {len(readings) - len(fine)} failed"
    yield f"parameters  {sum(len(reading.parameters) for reading in fine)}"
    yield f"flags       {len(flags)} fit a command line"
    yield f"help        {helped} of them ({helped / len(flags):.1%}; target {HELP_TARGET:.0%})"
    yield f"docstring   {own} of them from the class's own docstring ({own / len(flags):.1%})"
    yield f"kinds       {', '.join(f'{kind} {count}' for kind, count in Counter(f.kind for f in flags).most_common())}"
    worst = max(fine, key=lambda reading: reading.seconds)
    yield f"time        median {times[len(times) // 2]:.1f} ms a class, worst {times[-1]:.1f} ms ({worst.name})"
    yield from (f"failed      {reading.name}: {reading.failure}" for reading in readings if reading.failure)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--table", type=Path, metavar="FILE", help="also write a Markdown table, a row a class")
    parser.add_argument("--missing", action="store_true", help="also list the flags without help")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for library in ("diffusers", "transformers"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    readings = [read(name, found) for name, found in pipeline_classes()]
    broken = [line for reading in readings for line in broken_defaults(reading)]
    print("\n".join([*summary(readings), *(f"default     {line} breaks its own limits" for line in broken)]))
    if options.missing:
        print("\n".join(f"no help     {r.name}.{flag.name}" for r in readings for flag in r.flags if not flag.help))
    if options.table:
        options.table.write_text(table(readings), encoding="utf-8")
    fine = [reading for reading in readings if not reading.failure]
    helped = sum(reading.helped for reading in fine) >= HELP_TARGET * sum(len(reading.flags) for reading in fine)
    unread = [r for r in readings if r.failure and not r.failure.startswith("needs ")]
    return 0 if helped and not broken and not unread else 1


if __name__ == "__main__":
    sys.exit(main())
