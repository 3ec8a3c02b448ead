"""What the tokenizers library, written in Rust, panics of is an error as any other, and prints nothing."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from diffpipe.core.errors import CacheError
from diffpipe.engine.seams import tokenizers_seam

checkpoints = pytest.importorskip("checkpoints")
pytest.importorskip("tokenizers")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoints.clip_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_a_tokenizer_that_panics_is_told_and_prints_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its table of characters says that it is longer than it is."""
    from transformers import CLIPTokenizer

    table = base64.b64encode(b"\x08\0\0\0" + b"\xff" * 16 + b"abc").decode()
    settings = json.loads((folder / "tokenizer.json").read_text())
    settings["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": table}
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    tokenizers_seam.tell()
    tokenizers_seam.tell()
    with pytest.raises(CacheError, match=r"^a tokenizer of the model failed: ") as error:
        CLIPTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    assert "\n" not in error.value.message
    assert capfd.readouterr() == ("", "")


def test_what_others_write_meanwhile_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with tokenizers_seam.panics_told():
        os.write(2, b"of a library\n")

    def interrupted() -> None:
        with tokenizers_seam.panics_told():
            os.write(2, b"before it\n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert capfd.readouterr().err == "of a library\nbefore it\n"
