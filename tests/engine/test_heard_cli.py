"""A library's warning reaches the user once, and each item's JSON, journal and file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import Cli

LATENTS = "settings of a AutoencoderKL that this version of diffusers does not know do nothing: {'use_turbo': True}"
ODD = "diffusers says: decoded oddly by odd.bin"
# A library that warns of each decoding in words that nobody foresaw.
ODDLY = """
import logging, diffusers
plain = diffusers.AutoencoderKL.decode
def decode(self, *args, **kwargs):
    logging.getLogger("diffusers.models.odd").warning("decoded oddly\\n by %s", "/home/anna/odd.bin")
    return plain(self, *args, **kwargs)
diffusers.AutoencoderKL.decode = decode
"""


@pytest.fixture(scope="module")
def built(cli: Cli, checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pipeline whose VAE has a setting of a newer diffusers; what build said of it."""
    model = Path(shutil.copytree(checkpoints / "stable-diffusion", tmp_path_factory.mktemp("model") / "sd"))
    config = model / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "use_turbo": True}))
    words = ("build", "stable-diffusion", "--model", model, "--dtype", "float32", "--name", "newer")
    return cli(*words, "--quantize", "int8", check=True).stderr


def test_build_tells_of_it(built: str) -> None:
    assert built.count(f"warning: {LATENTS}") == 1


def test_it_reaches_each_items_json_journal_and_file(cli: Cli, built: str, tmp_path: Path) -> None:
    words = ("generate", "newer", "--prompt", "a fox", "--num-inference-steps", 1, "--seed", 1, "--count", 2)
    journal = tmp_path / "j.jsonl"
    places = ("-o", f"{tmp_path}/", "--journal", journal, "--json", "--no-worker")
    done = cli(*words, *places, first=ODDLY, check=True)
    items = [json.loads(line) for line in done.stdout.splitlines()]
    assert [item["warnings"] for item in items] == [[LATENTS, ODD]] * 2
    assert done.stderr.count(ODD) == 1
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [record["warnings"] for record in records if record.get("warnings")] == [[LATENTS, ODD]] * 2
    shown = json.loads(cli("inspect", items[0]["path"], "--json", check=True).stdout)
    assert shown["diffpipe"]["warnings"] == [LATENTS, ODD]
    assert "anna" not in done.stderr + done.stdout + journal.read_text()
