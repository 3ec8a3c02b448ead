"""What must be equal in a client and the worker it uses, so that the worker makes the very bytes the client would."""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from ... import __version__
from ...building.versions import versions
from ...core.canonical import JsonObject
from ...core.parsing import Fields

# What of a process's environment changes the bytes that torch computes, or the device it computes on.
SETTINGS = (
    "ATEN_", "CUBLAS", "CUDA_", "CUDNN_", "DIFFUSERS_", "DNNL_", "FLASH_ATTENTION_", "GPU_", "HIP", "HSA_", "KMP_",
    "LD_PRELOAD", "MIOPEN_", "MKL_", "NVIDIA_", "OMP_", "ONEAPI_", "ONEDNN_", "OPENBLAS_", "PYTORCH_", "ROCBLAS_",
    "ROCR_", "SYCL_", "TORCH", "TRITON_", "XFORMERS_", "ZE_",
)  # fmt: skip


@dataclass(frozen=True)
class Fingerprint:
    """Versions of packages and of Python; digests of the installation's place, and of all else that decides: variables,
    the number of cores, rights."""

    versions: Mapping[str, str]
    installation: str
    settings: str

    def to_json(self) -> JsonObject:
        return {"versions": dict(self.versions), "installation": self.installation, "settings": self.settings}

    @classmethod
    def from_json(cls, fields: Fields) -> Fingerprint:
        """Raises Misfit."""
        versions = fields.object("versions")
        found = {name: versions.text(name) for name in versions.names()}
        return cls(found, fields.text("installation", ""), fields.text("settings", ""))

    def same_code(self, other: Fingerprint) -> bool:
        """Whether both run the same versions of the same installation."""
        return (self.versions, self.installation) == (other.versions, other.installation)


@functools.cache
def fingerprint() -> Fingerprint:
    """This process's own, to be asked for first before a library is imported that sets variables."""
    text = repr((_variables(), _cores(), _rights())).encode(errors="surrogateescape")
    found = {**versions(), "diffpipe": __version__, "python": sys.version.split()[0]}
    return Fingerprint(found, short_digest(sys.prefix), hashlib.sha256(text).hexdigest()[:16])


def _variables() -> list[tuple[str, str]]:
    """Without those that say where compiled kernels are kept: torchao sets one as it is imported."""
    deciding = (name for name in os.environ if name.startswith(SETTINGS) and not name.endswith("_CACHE_DIR"))
    return sorted((name, os.environ[name]) for name in deciding)


def _cores() -> int | None:
    """How many cores this process may use: torch takes as many threads, and sums in another order."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _rights() -> tuple[list[int], list[str]]:
    """What decides where this process's files come to lie and whose they are: groups, and namespaces on Linux."""
    groups = [os.getgid(), *sorted(os.getgroups())] if hasattr(os, "getgid") else []
    spaces = []
    for kind in ("mnt", "pid"):
        with suppress(OSError):
            spaces.append(os.readlink(f"/proc/self/ns/{kind}"))
    return groups, spaces


def short_digest(path: str) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
