"""Everything private or patched of a library that the engine uses, a module a library; importing these is light."""

from __future__ import annotations

import logging

from . import (
    accelerate_seam,
    diffusers_files_seam,
    diffusers_import_seam,
    diffusers_seam,
    diffusers_source_seam,
    quanto_seam,
    tokenizers_seam,
    torch_dispatch_seam,
    torch_seam,
    torchao_seam,
    transformers_seam,
)
from .seam import Seam

__all__ = ["Seam", "log_missing", "seams"]

log = logging.getLogger("diffpipe.engine")


def seams() -> tuple[Seam, ...]:
    """Every such use. Whether one applies here is read from the libraries' files: none is imported."""
    return (
        *diffusers_seam.SEAMS,
        *diffusers_source_seam.SEAMS,
        *diffusers_import_seam.SEAMS,
        *diffusers_files_seam.SEAMS,
        *transformers_seam.SEAMS,
        *tokenizers_seam.SEAMS,
        *torch_seam.SEAMS,
        *torch_dispatch_seam.SEAMS,
        *accelerate_seam.SEAMS,
        *quanto_seam.SEAMS,
        *torchao_seam.SEAMS,
    )


def log_missing() -> None:
    """Say in the log, where it takes such lines, which of them do not apply to what is installed."""
    if log.isEnabledFor(logging.INFO):
        for seam in seams():
            if not seam.applies:
                log.info("%s: no %s as diffpipe knows it: %s", seam.library, seam.name, seam.without)
