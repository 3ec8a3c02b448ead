"""The versions of what pyproject.toml names.

    python tools/versions.py lowest       # as constraints for pip: each package at its lower bound
    python tools/versions.py installed    # those of the environment that this runs in

`lowest` has those of the extras too: pip install -c FILE '.[gguf]'. Packages that pyproject.toml does
not name stay free.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[[\w,]+\])?>=(?P<lowest>[\w.]+)(,<[\w.]+)?")


def requirements(project: Path = PROJECT) -> Iterator[tuple[str, str]]:
    """The name and lower bound of every package that diffpipe or one of its extras needs. SystemExit at one without."""
    table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    for line in chain(table["dependencies"], *table["optional-dependencies"].values()):
        if line.startswith(f"{table['name']}["):
            continue  # an extra that is made of others
        found = REQUIREMENT.fullmatch(line)
        if not found:
            raise SystemExit(f"pyproject.toml: {line!r} has no lower bound")
        yield found["name"], found["lowest"]


def installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=["lowest", "installed"])
    which = parser.parse_args().which
    for name, lowest in sorted(dict(requirements()).items()):
        print(f"{name}=={lowest}" if which == "lowest" else f"{name} {installed(name)}")


if __name__ == "__main__":
    main()
