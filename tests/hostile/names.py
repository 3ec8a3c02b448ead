"""Files and folders whose names or kinds nobody expects: control characters, bytes that are no UTF-8, links, modes."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from hostile import values
from hostile.runner import Line, remove

LINES = 100
NAMES = (
    "a\x1b[2Jb", "a\nb", "a\rb", "\u202egnp", "\udcff\udc80", "x" * 250, "é" * 125, " ", "a b", "-v", "--help", "~",
    "~root", "*", "$(x)",
    "[red]", "%s", "{seed}", "{", "@main", "a@b", "a=b", "a,b", "http:", "s3:", "\\", "'", '"', "...", "con", "\x7f",
    "\u2028", "a\x9bb",
)  # fmt: skip
ENDINGS = ("", ".png", ".safetensors", ".txt", ".jsonl", ".csv", ".toml", ".json", ".tar", ".wav", ".gguf")
KINDS = (
    "empty", "text", "bytes", "loop", "dangling", "to itself", "folder", "unreadable", "of a file", "deep", "model",
)  # fmt: skip
# What is done with such a path; {} stands for it.
COMMANDS = (
    "inspect {}", "reproduce {} --offline", "generate demo --prompt x --dry-run --args {}",
    "generate demo --dry-run --prompts-from {}",
    "generate demo --prompt x --dry-run --journal {} --resume", "generate demo --prompt x --dry-run -o {}",
    "generate demo --prompt x --dry-run -o {}/", "generate demo --prompt x --dry-run --set image={}",
    "pipelines import {}",
    "build flux --model {} --offline", "build custom --model {} --offline", "build demo --lora {} --offline",
    "build demo --component transformer={} --offline", "build sd --model {} --config {} --offline",
    "plan flux --model {} --offline",
    "build flux --lora {}@0.5 --offline", "generate demo --prompt x --dry-run --gallery {}", "pipelines show {}",
    "generate demo --prompt x --dry-run --contact-sheet {}", "build demo --name {} --offline",
    "pipelines export demo {}",
)  # fmt: skip
MODEL = b'{"_class_name": "FluxPipeline", "vae": ["diffusers", "AutoencoderKL"], "a\\u001b[2J": ["\\u202e", "x"]}'


def lines(rng: random.Random, folder: Path) -> Iterator[Line]:
    for at, name in enumerate(NAMES):
        ending, kind, command = (several[at % len(several)] for several in (ENDINGS, KINDS, COMMANDS))
        yield _line(folder, name, ending, kind, command)
    while True:
        name = rng.choice(NAMES) if rng.random() < 0.8 else values.text(rng).replace("/", "_")[:100]
        yield _line(folder, name, rng.choice(ENDINGS), rng.choice(KINDS), rng.choice(COMMANDS))


def _line(folder: Path, name: str, ending: str, kind: str, command: str) -> Line:
    for left in folder.iterdir():
        remove(left)
    name = "x" if name in ("", ".", "..") else os.fsdecode(os.fsencode(name)[: 255 - len(ending)])
    path = folder / (name + ending)
    with suppress(OSError):  # a name that this disk cannot hold is one that is not there
        make(path, kind)
    return Line(f"{kind} {name!r}", tuple(word.replace("{}", str(path)) for word in command.split()))


def make(path: Path, kind: str) -> None:
    """Something of a kind at a path."""
    if kind in ("folder", "model", "deep", "unreadable"):
        path.mkdir()
    if kind == "model":
        (path / "model_index.json").write_bytes(MODEL)
        (path / "vae").symlink_to("..")
    elif kind == "deep":
        here = path
        for _ in range(40):
            (here := here / "deep-deep-deep-deep-deep-deep").mkdir()
        (here / "x.safetensors").write_bytes(b"x")
    elif kind == "unreadable":
        (path / "model_index.json").write_bytes(MODEL)
        path.chmod(0)
    elif kind == "loop":
        (path.parent / "other").symlink_to(path)
        path.symlink_to(path.parent / "other")
    elif kind in ("dangling", "to itself"):
        path.symlink_to(path.name if kind == "to itself" else "nowhere")
    elif kind == "of a file":
        (path.parent / "file").write_bytes(b"x\n")
        path.symlink_to("file/x")
    elif kind in ("text", "empty", "bytes"):
        path.write_bytes({"text": b"prompt\nx\n", "empty": b"", "bytes": bytes(range(256))}[kind])
