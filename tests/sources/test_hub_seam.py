"""What is used of huggingface_hub that it does not promise: where a new version moves it, these fail."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from diffpipe.sources import hub_seam


def test_a_repositorys_folder() -> None:
    assert hub_seam.folder_name("owner/a-name") == "models--owner--a-name"


def test_the_lock_of_a_blob_keeps_others_out(tmp_path: Path) -> None:
    from filelock import FileLock, Timeout

    with hub_seam.file_lock(tmp_path / "blob.lock"), pytest.raises(Timeout):
        FileLock(tmp_path / "blob.lock").acquire(timeout=0)
    with FileLock(tmp_path / "blob.lock", timeout=0):
        pass


def test_whether_a_disk_has_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants, file_download

    assert "cache_dir" in inspect.signature(file_download.are_symlinks_supported).parameters
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert hub_seam.has_links()
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    assert not hub_seam.has_links()
