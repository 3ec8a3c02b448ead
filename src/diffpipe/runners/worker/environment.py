"""What a worker gets of the environment of the process that starts it: by name, as it lives long."""

# Everything else stays behind: keys of clouds, tokens of hubs, passwords of proxies.

from __future__ import annotations

import os
from collections.abc import Mapping

from ...core import access_tokens
from .fingerprint import SETTINGS

# What Python, torch, the compilers that torch calls and the folders of caches go by. A worker is offline.
NAMES = frozenset(
    {
        "HOME", "PATH", "LANG", "LANGUAGE", "TZ", "USER", "LOGNAME", "SHELL", "TMPDIR", "TEMP", "TMP", "TERM",
        "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LIBRARY_PATH", "CPATH", "CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS",
        "VIRTUAL_ENV", "CONDA_PREFIX", "HF_HOME", "HF_HUB_CACHE", "HF_XET_CACHE", "HUGGINGFACE_HUB_CACHE",
        "TRANSFORMERS_CACHE", "TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS", "NUMEXPR_NUM_THREADS",
        "SYSTEMROOT", "SYSTEMDRIVE", "APPDATA", "LOCALAPPDATA", "PROGRAMDATA", "USERPROFILE", "COMSPEC", "PATHEXT",
    }
)  # fmt: skip
BEGINNINGS = ("DIFFPIPE_", "PYTHON", "LC_", "XDG_", "MALLOC_", "GLIBC_", "GOMP_", *SETTINGS)
# Variables that name folders, maybe from the current one on, which the worker leaves.
SEARCHED = {"PYTHONPATH", "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "TMPDIR"}


def of_worker(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of a process that a worker of its own gets, folders as absolute paths."""
    found = {
        name: value
        for name, value in environment.items()
        if (name in NAMES or name.startswith(BEGINNINGS)) and name not in access_tokens.VARIABLES
    }
    for name in SEARCHED & found.keys():
        folders = found[name].split(os.pathsep)
        found[name] = os.pathsep.join(os.path.abspath(os.path.expanduser(folder)) for folder in folders)
    return found
