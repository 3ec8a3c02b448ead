"""Devices, pipes, sockets, folders, links and files of the system's wherever a command line names a file."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from diffpipe.batch import journal, presets
from diffpipe.engine import media
from diffpipe.results import gallery, metadata
from diffpipe.sources import named, pointers
from diffpipe.storage import streams
from diffpipe.storage.digests import DigestCache
from diffpipe.storage.tensor_headers import read_header
from hostile.runner import Case, Line

LINES, CASES = 20, 150
ENDINGS = ("", ".png", ".jsonl", ".toml", ".json", ".safetensors", ".gguf", ".mp4", ".csv")
PLACES = {
    "zero": "/dev/zero", "random": "/dev/urandom", "null": "/dev/null", "full": "/dev/full", "terminal": "/dev/tty",
    "maps": "/proc/self/maps", "memory": "/proc/self/mem", "kernel": "/proc/kmsg", "loop": "loop", "nowhere": "gone",
}  # fmt: skip
KINDS = (*PLACES, "pipe", "socket", "folder")
DEMO = ("generate", "demo", "--prompt", "fox", "--num-inference-steps", "1", "--no-worker")
COMMANDS: tuple[tuple[tuple[str, ...], str], ...] = (  # words before the file, and how its name must end
    ((*DEMO, "--dry-run", "--prompts-from"), ".jsonl"),
    ((*DEMO, "--prompts-from"), ".csv"),
    ((*DEMO, "--dry-run", "--args"), ".toml"),
    ((*DEMO, "--dry-run", "--args"), ".json"),
    ((*DEMO, "--count", "2", "--resume", "--journal"), ".jsonl"),
    ((*DEMO, "--dry-run", "--log-file"), ""),
    ((*DEMO, "--preview"), ".png"),
    ((*DEMO, "--contact-sheet"), ".png"),
    ((*DEMO, "--gallery"), ""),
    ((*DEMO, "--overwrite", "--output"), ".png"),
    (("inspect",), ".png"),
    (("inspect",), ".mp4"),
    (("reproduce",), ".png"),
    (("pipelines", "import"), ""),
    (("pipelines", "export", "demo"), ""),
    (("build", "demo", "--lora"), ".safetensors"),
    (("build", "flux", "--offline", "--model"), ""),
    (("build", "flux", "--offline", "--model"), ".gguf"),
    (("build", "demo", "--offline", "--component", "transformer=./"), ".safetensors"),
    (("plan", "flux", "--offline", "--model"), ".safetensors"),
)  # fmt: skip
WALLS: tuple[Callable[[Path], object], ...] = (
    media.read_image,
    media.read_video,
    media.read_audio,
    media.read_text,
    metadata.media_digest,
    read_header,
    pointers.refuse_pointer,
    gallery.check,
    lambda path: named.source_kind(str(path)),
    lambda path: presets.preset(str(path), path.parent),
    lambda path: DigestCache(path.parent / "digests").get(path),
    lambda path: entered(journal.opened_to_read(path)),
    lambda path: entered(streams.reading(str(path))),
)


def lines(rng: random.Random, folder: Path) -> Iterator[Line]:
    paths = made(folder)
    while True:
        words, ending = rng.choice(COMMANDS)
        kind = rng.choice(KINDS)
        if (kind == "folder" and "--gallery" in words) or (kind == "nowhere" and "--journal" in words):
            continue  # is what it takes, and keeps a lock beside
        path = str(paths[kind, ending])
        own = (*words[:-1], f"{words[-1]}{path}") if words[-1].endswith("./") else (*words, path)
        yield Line(f"{kind} as a file", own)


def cases(rng: random.Random, folder: Path) -> Iterator[Case]:
    paths = made(folder)
    while True:
        wall, kind, ending = rng.choice(WALLS), rng.choice(KINDS), rng.choice(ENDINGS)
        yield Case(f"{kind}{ending}, wall {WALLS.index(wall)}", partial(forgiving, wall, paths[kind, ending]))


def forgiving(wall: Callable[[Path], object], path: Path) -> None:
    """What a disk says itself is worded further out."""
    with suppress(OSError):
        wall(path)


def entered(opened: object) -> None:
    with opened:  # type: ignore[attr-defined]
        pass


def made(folder: Path) -> dict[tuple[str, str], Path]:
    """Each kind of thing under each ending."""
    here = os.getcwd()
    os.chdir(folder)  # the path of a socket is short
    try:
        for kind in KINDS:
            for ending in ENDINGS:
                make(kind, kind + ending)
    finally:
        os.chdir(here)
    return {(kind, ending): folder / (kind + ending) for kind in KINDS for ending in ENDINGS}


def make(kind: str, name: str) -> None:
    if os.path.lexists(name):
        return
    if kind == "pipe":
        os.mkfifo(name)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(name)
    elif kind == "folder":
        os.mkdir(name)
    else:
        os.symlink(name if kind == "loop" else PLACES[kind], name)
