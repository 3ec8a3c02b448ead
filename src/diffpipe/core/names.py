"""What names, paths and digests may be, whoever wrote them."""

from __future__ import annotations

import re

LONGEST_PART = 255  # bytes of one name on the usual file systems (NAME_MAX)
LONGEST_PATH = 1000  # bytes of a path within a folder: with the folder it stays below PATH_MAX, 4,096

IDENTIFIER = re.compile(r"[^\W\d]\w{0,199}")  # of classes, components and call arguments
MODULE = re.compile(r"[^\W\d]\w{0,99}(\.[^\W\d]\w{0,99}){0,9}")  # of the library that a class is in
COMMIT = re.compile(r"[0-9a-f]{40}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}|git:[0-9a-f]{40}")
REPOSITORY = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}")  # owner/name, each of at most 96 characters on the hub
DEMO = re.compile(r"demo:\w[\w-]{0,99}")  # an adapter of the embedded model
KEY = re.compile(r"[0-9a-f]{64}")
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # names that Windows keeps for devices


def stays_inside(path: str) -> bool:
    """Whether a path is that of a file or folder within the folder it is put in, and no longer than a disk takes."""
    parts = path.split("/")
    named = all(part not in ("", ".", "..") and "\0" not in part for part in parts)
    sizes = [len(part.encode(errors="surrogatepass")) for part in parts]
    return named and max(sizes) <= LONGEST_PART and sum(sizes) + len(sizes) <= LONGEST_PATH
