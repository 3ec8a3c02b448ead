"""What is used of huggingface_hub that its documentation does not promise (2.4 to 2.x); a test holds the names.

Without these, a cache that other programs share could not be written: each is a part of its layout, or of how programs
keep out of each other's way in it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from httpx2 import Client
    from huggingface_hub.utils import XetFileData  # type: ignore[attr-defined]
    from huggingface_hub.utils.tqdm import tqdm


def new_client() -> Client:
    """A session as the hub's client makes it where nobody says how: with its hooks and without time-outs."""
    from huggingface_hub.utils._http import default_client_factory

    return default_client_factory()


def xet_get(file: XetFileData, target: Path, size: int, headers: dict[str, str], bar: tqdm) -> None:
    """Download a file by Xet to a place of one's own."""
    from huggingface_hub.file_download import xet_get

    xet_get(incomplete_path=target, xet_file_data=file, headers=headers, expected_size=size, _tqdm_bar=bar)


def folder_name(repo: str) -> str:
    """The folder of a repository in the hub's cache: models--OWNER--NAME."""
    from huggingface_hub.file_download import repo_folder_name

    return str(repo_folder_name(repo_id=repo, repo_type="model"))


def file_lock(path: Path) -> AbstractContextManager[object]:
    """The lock that the hub's client takes for a blob: with another kind, two programs would write one file at once."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    lock: AbstractContextManager[object] = WeakFileLock(path)
    return lock


def has_links() -> bool:
    """Whether the hub's cache is on a disk with symbolic links, and the user wants them: as its client finds out."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import are_symlinks_supported

    return bool(are_symlinks_supported(constants.HF_HUB_CACHE))
