"""What a SOURCE on the command line is: a folder, a file, a repository, one of its files or folders."""

from __future__ import annotations

import os

from ..core.errors import NotFoundError, UsageError
from ..core.names import REPOSITORY
from ..core.source import CHECKPOINTS, EMBEDDED, SourceKind
from ..storage.disk import user_path


def source_kind(text: str) -> SourceKind:
    """ "embedded", "file", "folder" or "hub": what a SOURCE on the command line is.

    Raises NotFoundError for a path that does not exist, UsageError for what is neither a path nor a repository.
    """
    if text.startswith(EMBEDDED):
        return "embedded"
    path = user_path(text)
    if path.is_dir():
        return "folder"
    if path.is_file():
        return "file"
    if path.exists():
        raise UsageError(f"{text} is a device, pipe or socket", "name a file or folder")
    if REPOSITORY.fullmatch(text):
        return "hub"
    if text.startswith((".", "/", "~")) or text.endswith(CHECKPOINTS) or os.sep in text:
        raise NotFoundError(f"there is no file or folder {text}", "check the path")
    raise UsageError(
        f"{text!r} is neither a folder, a file, nor a repository (owner/name)", "for example ./my-model or owner/name"
    )


def split_denoiser(text: str) -> tuple[str, str]:
    """[DENOISER=]SOURCE[@SCALE] of a LoRA -> the denoiser, "" where none is named, and the rest.

    A = in the name of a local file is part of it.
    """
    name, mark, rest = text.partition("=")
    local = user_path(text).exists() or user_path(text.rpartition("@")[0] or text).exists()
    return (name, rest) if mark and name.isidentifier() and rest and not local else ("", text)


def split_scale(text: str) -> tuple[str, float]:
    """SOURCE[@SCALE] -> source and scale (1.0 when none is given).

    Raises UsageError for a scale that is no number.
    """
    source, mark, scale = text.rpartition("@")
    if not mark or user_path(text).exists():
        return text, 1.0
    try:
        value = float(scale)
    except ValueError:
        value = float("nan")
    if not -10 <= value <= 10:
        raise UsageError(f"--lora {text}: {scale!r} is no scale", "write SOURCE@SCALE with a number, for example @0.8")
    return source, value


def repository_and_file(text: str) -> tuple[str, str]:
    """owner/name/FILE -> repository and file; ("", "") unless it has that form and no such local path exists."""
    owner, _, rest = text.partition("/")
    name, _, inner = rest.partition("/")
    if not inner or not REPOSITORY.fullmatch(f"{owner}/{name}") or user_path(text).exists():
        return "", ""
    return f"{owner}/{name}", inner


def split_revision(text: str) -> tuple[str, str]:
    """SOURCE[@REVISION] of a component; an @ in the name of a local one is part of it."""
    source, mark, revision = text.rpartition("@")
    return (source, revision) if mark and not user_path(text).exists() else (text, "")


def is_single(text: str) -> bool:
    """Whether a component's source is one file, here or on the hub."""
    inner = repository_and_file(split_revision(text)[0])[1]
    return user_path(text).is_file() or inner.endswith(CHECKPOINTS)
