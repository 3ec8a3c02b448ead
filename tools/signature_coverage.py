"""What diffpipe makes of every pipeline class of the installed diffusers: its flags, output and schedulers.

    python tools/signature_coverage.py            prints how well the classes are read
    python tools/signature_coverage.py --write    writes docs/pipelines.md, and schedulers.json and pipelines.json of
                                                  src/diffpipe/catalog
    python tools/signature_coverage.py --check    exits 1, naming those of the three files that are not current

Exits with 1, too, where a class cannot be read, a default breaks its own flag's limits, or under 97% of the arguments
that fit a command line have a flag with help.
"""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from diffpipe.catalog import BUILTIN
from diffpipe.catalog.pipelines import Size, size_json
from diffpipe.core.flag import NOUNS, Flag
from diffpipe.engine.classes.default_sizes import default_sizes
from diffpipe.engine.classes.outputs import kind_of, output_fields
from diffpipe.engine.classes.schedulers import fitting
from diffpipe.engine.classes.signature import read_flags, unfit_arguments, why_uncallable

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "pipelines.md"
SCHEDULERS = ROOT / "src" / "diffpipe" / "catalog" / "schedulers.json"
PIPELINES = ROOT / "src" / "diffpipe" / "catalog" / "pipelines.json"
HELP_TARGET = 0.97
ALWAYS_THERE = {"torch", "transformers"}  # diffpipe's own requirements, which diffusers names with the missing ones


class Reading(NamedTuple):
    """One pipeline class: its flags, its arguments without one by kind, what it makes ("" for nothing to see or hear),
    why no command line can call it and why it could not be read ("" where neither)."""

    name: str
    flags: tuple[Flag, ...] = ()
    unfit: Mapping[str, str] = MappingProxyType({})
    makes: str = ""
    schedulers: tuple[str, ...] = ()
    reason: str = ""
    failure: str = ""
    uncallable: str = ""
    returns: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    sizes: Mapping[str, Size] = MappingProxyType({})

    @property
    def helped(self) -> int:
        return sum(bool(flag.help) for flag in self.flags)


def pipeline_classes() -> Iterator[tuple[str, Any]]:
    """Every name of diffusers that the _class_name of a model_index.json can be, with its class, a stand-in for one
    that needs a package, or the error."""
    import diffusers

    for name in sorted(set(dir(diffusers))):
        if "Pipeline" not in name or name.endswith("Output"):
            continue
        try:
            found = getattr(diffusers, name)
        except (ImportError, AttributeError, RuntimeError) as error:
            yield name, f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        nameable = inspect.isclass(found) and issubclass(found, diffusers.DiffusionPipeline)
        if getattr(found, "_backends", None) or (nameable and found is not diffusers.DiffusionPipeline):
            yield name, found


def read(name: str, found: Any) -> Reading:
    if isinstance(found, str):
        return Reading(name, failure=found)
    if packages := getattr(found, "_backends", None):
        missing = tuple(package for package in packages if package not in ALWAYS_THERE)
        reason = f"needs a package that diffpipe does not install: {', '.join(missing)}"
        return Reading(name, reason=reason, packages=missing)
    if not inspect.isfunction(found.__call__):
        reason = "has no call of its own"
        return Reading(name, reason=f"{reason}; name the class for the task with --class", uncallable=reason)
    try:
        fields = output_fields(found)
        kind = kind_of(fields)
        nothing = f"makes {', '.join(fields) or 'no output diffpipe knows'}: no picture, video or sound"
        uncallable = why_uncallable(found)
        return Reading(
            name,
            read_flags(found),
            unfit_arguments(found),
            NOUNS[kind] if kind else "",
            tuple(fitting(found)),
            uncallable or ("" if kind else nothing),
            uncallable=uncallable,
            returns=() if kind else fields,
            sizes={name: size for name, size in default_sizes(found).items() if kind != "audio" or name == "steps"},
        )
    except Exception as error:  # the tool's very purpose: to name the classes that fail and why
        return Reading(name, failure=f"{type(error).__name__}: {error}")


def broken_defaults(reading: Reading) -> Iterator[str]:
    """Flags whose own default their limits would reject."""
    for flag in reading.flags:
        for value in flag.default if isinstance(flag.default, list) else [flag.default]:
            if flag.kind not in ("integer", "number") or value is None:
                continue
            low = flag.minimum is not None and value < flag.minimum
            high = flag.maximum is not None and value > flag.maximum
            if low or high or (flag.multiple_of is not None and value % flag.multiple_of != flag.remainder):
                yield f"{reading.name}.{flag.name} = {value}"


def fitting_arguments(readings: list[Reading]) -> int:
    """How many arguments could be given on a command line: those with a flag, and those that are no tensors."""
    return sum(len(r.flags) + list(r.unfit.values()).count("object") for r in readings)


def summary(readings: list[Reading]) -> Iterator[str]:
    fine = [reading for reading in readings if reading.flags]
    flags = [flag for reading in fine for flag in reading.flags]
    helped, fits = sum(reading.helped for reading in fine), fitting_arguments(fine)
    without = [f"{r.name}.{name}" for r in fine for name, kind in r.unfit.items() if kind == "object"]
    named = sum(bool(r.reason or r.failure) for r in readings)
    yield f"classes     {len(readings)}: {len(readings) - named} run through custom, {named} named with the reason"
    yield f"arguments   {fits} fit a command line, {helped} have a flag with help"
    yield f"coverage    {helped / fits:.1%} (target {HELP_TARGET:.0%})"
    yield f"kinds       {', '.join(f'{kind} {count}' for kind, count in Counter(f.kind for f in flags).most_common())}"
    yield f"no flag     {', '.join(without)}"
    yield from (f"failed      {reading.name}: {reading.failure}" for reading in readings if reading.failure)


# --- docs/pipelines.md -----------------------------------------------------------------------------------------------

INTRODUCTION = """\
# Every pipeline class of diffusers

Written by `tools/signature_coverage.py --write` from diffusers {version}; `.ci/run` checks that it is current.

Of the {all} classes that the `model_index.json` of a folder or repository can name, {runnable} run with
`diffpipe build custom --model SOURCE`; those with a provider have better defaults and checks under its name. The others
are named with the reason. That is read from their signatures, checks and outputs: the tests run every provider's
classes, not all.

Of {fits} arguments that fit a command line, {helped} ({share:.1%}) have a flag with help. Classes named
…ModularPipeline are not loaded from a `model_index.json`, and diffpipe does not build them.

| Class | Makes | Flags | Needed | Provider and type |
|---|---|---|---|---|
"""


def document(readings: list[Reading]) -> str:
    fine = [reading for reading in readings if not (reading.reason or reading.failure)]
    fits, helped = fitting_arguments(readings), sum(reading.helped for reading in readings)
    facts = {"all": len(readings), "runnable": len(fine), "fits": fits, "helped": helped, "share": helped / fits}
    left = [f"| {r.name} | {r.reason or r.failure} |" for r in readings if r not in fine]
    return "\n".join(
        [
            INTRODUCTION.format(version=version("diffusers"), **facts) + "\n".join(map(_row, fine)),
            "\n## Not runnable, and why\n",
            "| Class | Why |\n|---|---|",
            *left,
            "",
        ]
    )


def _row(reading: Reading) -> str:
    needed = ", ".join(flag.name for flag in reading.flags if flag.required)
    rows = [f"{p.name} {row.name}" for p in BUILTIN.values() for row in p.types if row.pipeline == reading.name]
    return f"| {reading.name} | {reading.makes} | {len(reading.flags)} | {needed} | {', '.join(rows) or 'custom'} |"


# --- catalog/schedulers.json -----------------------------------------------------------------------------------------


def scheduler_table(readings: list[Reading]) -> str:
    """{"groups": [[scheduler classes]], "pipelines": {pipeline class: number of its group}}."""
    groups = sorted({reading.schedulers for reading in readings if reading.schedulers})
    pipelines = {reading.name: groups.index(reading.schedulers) for reading in readings if reading.schedulers}
    return json.dumps({"groups": groups, "pipelines": pipelines}, indent=1) + "\n"


# --- catalog/pipelines.json ------------------------------------------------------------------------------------------


def pipeline_table(readings: list[Reading]) -> str:
    """{"diffusers": version, "pipelines": {pipeline class: what is known of it}}, a class a line."""
    lines = [f" {json.dumps(r.name)}: {json.dumps(facts)}" for r in readings if (facts := _facts(r))]
    head = f'{{"diffusers": {json.dumps(version("diffusers"))}, "pipelines": {{'
    return "\n".join([head, ",\n".join(lines), "}}", ""])


def _facts(reading: Reading) -> dict[str, Any]:
    facts = {
        "returns": list(reading.returns),
        "uncallable": reading.uncallable,
        "packages": list(reading.packages),
        "sizes": {name: size_json(size) for name, size in reading.sizes.items()},
    }
    return {name: value for name, value in facts.items() if value}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the three files")
    parser.add_argument("--check", action="store_true", help="exit 1 where one of the three files is not current")
    parser.add_argument("--missing", action="store_true", help="also list the flags without help")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for library in ("diffusers", "transformers", "torchao"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    readings = [read(name, found) for name, found in pipeline_classes()]
    broken = [line for reading in readings for line in broken_defaults(reading)]
    print("\n".join([*summary(readings), *(f"default     {line} breaks its own limits" for line in broken)]))
    if options.missing:
        print("\n".join(f"no help     {r.name}.{flag.name}" for r in readings for flag in r.flags if not flag.help))
    files = {TABLE: document(readings), SCHEDULERS: scheduler_table(readings), PIPELINES: pipeline_table(readings)}
    stale = [file for file, text in files.items() if not file.exists() or file.read_text(encoding="utf-8") != text]
    for file in stale if options.write else []:
        file.write_text(files[file], encoding="utf-8")
    for file in stale if options.check else []:
        print(f"{file.relative_to(ROOT)} is not current: run tools/signature_coverage.py --write", file=sys.stderr)
    covered = sum(reading.helped for reading in readings) >= HELP_TARGET * fitting_arguments(readings)
    failed = broken or any(reading.failure for reading in readings) or (options.check and stale)
    return 0 if covered and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
