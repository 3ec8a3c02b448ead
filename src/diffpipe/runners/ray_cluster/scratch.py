"""Temporary folders of one process's own."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path


def scratch_folder(name: str, parent: str) -> Path:
    """A new folder; those of the same name of processes that were killed go."""
    for left in Path(parent).glob(f"{name}-*-*"):
        with suppress(ValueError, OSError):
            if left.stat().st_uid == os.getuid() and not _lives(int(left.name.split("-")[-2])):
                shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(dir=parent, prefix=f"{name}-{os.getpid()}-"))


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
