"""doctor names packages outside the bounds that diffpipe states, and what to do."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import Cli


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """Where Python finds, before any other, a peft of another version than diffpipe asks for."""
    for name, version, more in (("diffpipe", "1", "Requires-Dist: peft>=0.19\n"), ("peft", "0.17.0", "")):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{more}\n")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))}


def test_doctor_names_what_is_outside(cli: Cli, env: dict[str, str]) -> None:
    done = cli("doctor", "--offline", "--json", env=env, check=True)
    named = [{"package": "peft", "version": "0.17.0", "wanted": ">=0.19", "try": "pip install 'peft>=0.19'"}]
    assert json.loads(done.stdout)["outside_bounds"] == named
    said = "warning: peft 0.17.0: diffpipe needs >=0.19\n  try: pip install 'peft>=0.19'\n"
    assert said in done.stderr
    assert said in cli("doctor", "--offline", env=env, check=True).stderr
