"""Check that the wheel and the sdist are whole: python tools/check_packages.py FOLDER (which holds both).

Each holds the demo model; each, installed alone into a folder of its own, builds the demo and draws a picture, run from
an empty folder so that the repository is out of reach. Dependencies come from the environment this runs in.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def install(package: Path, target: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(package)]
    subprocess.run(command, check=True)


def draw(installed: Path, folder: Path) -> Path:
    """Build the demo with the installed copy and draw one picture; returns it."""
    environment = os.environ | {
        "PYTHONPATH": str(installed),
        "DIFFPIPE_HOME": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
    }
    run = [sys.executable, "-m", "diffpipe"]
    where = subprocess.run(
        [sys.executable, "-c", "import diffpipe; print(diffpipe.__file__)"],
        cwd=folder, env=environment, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    if not where.startswith(str(installed)):
        raise SystemExit("the copy that runs is not the one that was installed")
    subprocess.run([*run, "build", "demo"], cwd=folder, env=environment, check=True)
    command = [*run, "generate", "demo", "--prompt", "a panda on a pink background", "--seed", "1", "-o", "panda.png"]
    subprocess.run(command, cwd=folder, env=environment, check=True)
    return folder / "panda.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    packages = sorted(parser.parse_args().folder.glob("*"))
    if sorted(path.suffix for path in packages) != [".gz", ".whl"]:
        raise SystemExit(f"expected one wheel and one sdist, found {[path.name for path in packages]}")
    pictures = []
    for package in packages:
        with tempfile.TemporaryDirectory() as scratch:
            installed, folder = Path(scratch, "installed"), Path(scratch, "empty")
            folder.mkdir()
            install(package, installed)
            size = sum(path.stat().st_size for path in (installed / "diffpipe" / "demo").rglob("*") if path.is_file())
            if size > 12_000_000:
                raise SystemExit(f"{package.name}: the demo model takes {size:,} bytes, more than 12 MB")
            pictures.append(draw(installed, folder).read_bytes())
            print(f"{package.name}: {package.stat().st_size:,} bytes, demo model {size:,} bytes, draws a picture")
    if len(set(pictures)) != 1:
        raise SystemExit("the wheel and the sdist draw different pictures")


if __name__ == "__main__":
    main()
