"""Command lines: every command and option, and the environment, with values that nobody means well."""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from diffpipe.cli import app
from diffpipe.cli.generate import options
from hostile import values
from hostile.runner import Line

LINES = 280
# Of the demo's own call arguments; --help of the built pipeline lists them.
CALL = (
    "--prompt", "--prompt-2", "--negative-prompt", "--true-cfg-scale", "--height", "--width", "--num-inference-steps",
    "--sigmas",
    "--guidance-scale", "--num-images-per-prompt", "--joint-attention-kwargs", "--max-sequence-length",
)  # fmt: skip
# Not drawn: what starts a process that stays (a cluster, a worker).
NEVER = {"--runner", "--keep-warm", "--ray-address", "--workers", "--traceback"}
SMALL = ("--width", "32", "--height", "32", "--num-inference-steps", "1", "--seed", "1")
READ = (  # a process reads these as it starts: each is a fresh one
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}, {"LC_ALL": "\udcff"},
    {"HF_ENDPOINT": "http://127.0.0.1:9/\x1b", "HF_HUB_DOWNLOAD_TIMEOUT": "x"}, {"PYTHONWARNINGS": "error"},
    {"FORCE_COLOR": "1", "TERM": "xterm"}, {"TERM": "\x1b[2J"},
)  # fmt: skip
HOSTILE_ENV = (
    {"COLUMNS": "0"}, {"COLUMNS": "-5"}, {"COLUMNS": "9" * 400}, {"COLUMNS": "x\x1b"}, {"COLUMNS": "1"},
    {"LINES": "nan"},
    {"DIFFPIPE_HOME": "/dev/null"}, {"DIFFPIPE_HOME": "\x1b[2J"}, {"DIFFPIPE_HOME": "x" * 5000},
    {"DIFFPIPE_HOME": "~nobody-x/y"},
    {"DIFFPIPE_HOME": "/proc/self/x"}, {"DIFFPIPE_HOME": "\udcff"}, {"DIFFPIPE_HOME": ""},
    {"DIFFPIPE_HOME": "/etc/hostname"},
    {"DIFFPIPE_OFFLINE": "\x1b"}, {"DIFFPIPE_KEEP_WARM": "\x1b[2J"}, {"DIFFPIPE_KEEP_WARM": "9" * 400},
    {"DIFFPIPE_KEEP_WARM": "nan"},
    {"HF_HOME": "/dev/null"}, {"HF_HOME": "\x1b"}, {"HF_TOKEN": "\x1b[2J"}, {"HF_TOKEN": "x" * 50_000},
    {"HF_TOKEN": "\udcff"},
    {"XDG_CACHE_HOME": "/dev/null"}, {"XDG_RUNTIME_DIR": "/dev/null"}, {"XDG_RUNTIME_DIR": "x" * 300},
    {"DIFFPIPE_HOME": "a\nb"},
)  # fmt: skip
LIGHT = (
    ("--help",), ("pipelines", "list"), ("generate", "demo", "--prompt", "x", "--dry-run"), ("worker", "list"),
    ("providers", "list"),
    ("build", "flux", "--offline"), ("plan", "flux", "--offline"), ("pipelines", "prune"), ("pipelines", "verify"),
)  # fmt: skip
BY_HAND = (
    "generate demo --prompt x --seed {long} --dry-run", "generate demo --prompt x --count {huge} --dry-run",
    "generate demo --prompt x --count {huge}", "generate demo --prompt x --width {huge} --height {huge}",
    "generate demo --prompt x --width 1000000000 --height 1000000000",
    "generate demo --prompt x --num-images-per-prompt 1000000000",
    "generate demo --prompt x --sweep seed=1..1000000000000 --sweep width=16..1e18..16 --dry-run",
    "generate demo --prompt x --sweep guidance_scale=0..1..1e-300", "generate demo --prompt x --fps nan",
    "--help --help",
    "generate demo --prompt x --sigmas nan --sigmas inf --dry-run", "generate --help demo", "--", "-- generate",
    "generate -- demo",
    "generate demo -- --help", "generate demo --help --width {long}", "pipelines rename demo ../../x",
    "build demo --name ../../x",
    "build demo --name ..", "build demo --name {bytes300}", "build demo --name -", "build demo --name --help",
    "build demo --name=",
    "generate demo --prompt x --batch-size 1025", "pipelines prune --unused-for nan",
    "pipelines prune --unused-for inf --dry-run",
    "pipelines prune --unused-for -1", "pipelines prune --unused-for 1e308",
    "pipelines prune --unused-for 1e-320 --dry-run",
    "generate demo --prompt x --set prompt_embeds=[[1]] --dry-run",
    "generate demo --prompt x --set callback_on_step_end=1 --dry-run",
    "build flux --model . --offline", "build flux --model / --offline", "build flux --model /dev/zero --offline", "-",
    "\x1b[2J",
    "build flux --model {long} --offline", "build flux --revision {esc} --offline",
    "build flux --lora x@nan --offline",
    "build demo --device {esc}", "build demo --device cuda:{long}",
    "build demo --device-memory {long} --memory auto --force",
    "build demo --device-memory nanGB --memory auto", "build demo --device-memory -5GB --memory auto",
    "build demo --device cuda:-1",
    "build demo --scheduler __class__", "build demo --scheduler os.system", "build demo --scheduler {esc}",
    "build demo --dtype {esc}",
    "build demo --scheduler-config {deep}", "build demo --component transformer=..", "build demo --component x=y",
    "inspect /dev/null",
    "build custom --model . --class os.system", "build custom --model /proc --class {esc}",
    "generate demo --prompt x --set x={deep}",
    "generate demo --prompts-from /proc/self/environ --dry-run",
    "generate demo --args /proc/self/mem --prompt x --dry-run",
    "inspect .", "inspect /proc/self/mem", "inspect {esc}", "reproduce /dev/null", "reproduce . --verify",
    "reproduce {bytes300}",
    "pipelines export demo /dev/full", "pipelines export demo ..", "pipelines export demo {esc}",
    "pipelines export demo {bytes300}",
    "pipelines import /dev/null", "pipelines import .", "pipelines import {esc}",
    "pipelines import http://127.0.0.1:9/\x1b[2J",
    "pipelines show {esc}", "pipelines show -- -x", "pipelines remove ''", "pipelines remove ..",
    "pipelines verify {long}",
    "worker stop {esc}", "worker stop ..", "providers show {esc}", "providers show {long}", "doctor --offline",
    "generate demo --prompt {esc} --dry-run", "generate demo --prompt {long} --dry-run",
    "generate demo --prompt {bad} --dry-run",
)  # fmt: skip
STAND = {
    "{long}": "9" * 400, "{huge}": "1" + "0" * 30, "{bytes300}": "x" * 300, "{esc}": "\x1b[2J\u202e\r\n\x9b1m",
    "{deep}": "[" * 50_000,
    "{bad}": "\udcff\udc80",
}  # fmt: skip
MADE = (  # these make pictures, at a third of a second each
    ("--prompt", "\x1b[2J\u202e", "-o", "{prompt}.png"), ("--prompt", "\udcff", "-o", "{prompt}-{seed}.png"),
    ("--prompt", "x" * 100_000, "-o", "a/{prompt}/{name}.png"), ("--prompt", "x", "--guidance-scale", "1e308"),
    ("--prompt", "x", "--set", "latents=[1]"), ("--prompt", "x", "--joint-attention-kwargs", '{"scale": "\\u001b[2J"}'),
    ("--prompt", "x", "--contact-sheet", "\x1b.png", "--gallery", "\u202e\x1b", "--preview", "\x9b.png", "--json"),
    ("--prompt", "\udcff", "--log-file", "\x1b[2J.log", "-v"),
)  # fmt: skip


def lines(rng: random.Random, folder: Path) -> Iterator[Line]:
    for text in BY_HAND:
        yield Line("by hand", tuple(_stood(word) for word in text.split()))
    for words in MADE:
        yield Line("a picture is made", ("generate", "demo", *SMALL, *words))
    for number, env in enumerate((*HOSTILE_ENV, *READ)):
        yield Line("environment", LIGHT[number % len(LIGHT)], env=env)
    while True:
        yield _drawn(rng)


def _stood(word: str) -> str:
    for name, stands in STAND.items():
        word = word.replace(name, stands)
    return "" if word == "''" else word


def _drawn(rng: random.Random) -> Line:
    draw = rng.random()
    if draw < 0.08:
        return _completion(rng)
    if draw < 0.12:
        return Line("environment", rng.choice(LIGHT), env=rng.choice(HOSTILE_ENV))
    if draw < 0.13:
        return Line("environment", rng.choice(LIGHT), env=rng.choice(READ))
    if draw < 0.2:
        return Line("words", tuple(_word(rng) for _ in range(rng.randrange(1, 5))))
    if draw < 0.55:
        flags = [one for one in (*CALL, *_run_options()) if one not in NEVER]
        given = [word for _ in range(rng.randrange(1, 4)) for word in _option(rng.choice(flags), rng)]
        return Line("generate", ("generate", "demo", "--prompt", "x", "--dry-run", *given))
    command = rng.choice(commands())
    given = [word for _ in range(rng.randrange(1, 4)) for word in _option(rng.choice(command[1] or ("--help",)), rng)]
    arguments = [_word(rng) for _ in range(rng.choice((0, 1, 1, 2)))]
    last = ("--offline",) if "--offline" in command[1] else ()
    return Line("option", (*command[0], *arguments, *given, *last))


def _word(rng: random.Random) -> str:
    """A word that may stand for a command, a pipeline, a file: a hostile one, or one that means something."""
    return rng.choice(("demo", "generate", "--help", "--json", "-v", "x")) if rng.random() < 0.3 else values.text(rng)


def _option(name: str, rng: random.Random) -> tuple[str, ...]:
    """An option with what it may not like; a flag among them is given a value all the same."""
    given = values.number(rng) if rng.random() < 0.4 else values.text(rng)
    draw = rng.random()
    return (f"{name}={given}",) if draw < 0.3 else (name,) if draw < 0.35 else (name, given)


def _completion(rng: random.Random) -> Line:
    shell = rng.choice(("bash", "zsh", "fish"))
    words = ["diffpipe", *rng.choice(commands())[0], *(_word(rng) for _ in range(rng.randrange(3)))]
    typed = " ".join(words).replace("\n", " ")
    env = {
        "_DIFFPIPE_COMPLETE": f"complete_{shell}", "COMP_WORDS": typed,
        "COMP_CWORD": rng.choice((str(len(words)), *values.NUMBERS[:3])),
        "_TYPER_COMPLETE_ARGS": typed, "_TYPER_COMPLETE_FISH_ACTION": rng.choice(("get-args", "is-args")),
    }  # fmt: skip
    return Line("completion", (), env={name: one[:50_000] for name, one in env.items()})


@functools.cache
def commands() -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Every command but those of built pipelines: its words, and its options."""
    os.environ.setdefault("DIFFPIPE_HOME", os.devnull)
    return list(_walked(app.root(), ()))


def _walked(group: object, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    from typer.core import TyperGroup

    if not isinstance(group, TyperGroup):
        yield words, tuple(one for parameter in group.params for one in _options(parameter))  # type: ignore[attr-defined]
        return
    context = group.make_context("diffpipe", ["--help"], resilient_parsing=True)
    for name in group.list_commands(context):
        if command := group.get_command(context, name):
            yield from _walked(command, (*words, name))


def _options(parameter: object) -> Sequence[str]:
    found = [*parameter.opts, *parameter.secondary_opts]  # type: ignore[attr-defined]
    return [one for one in found if one.startswith("-") and one not in NEVER]


@functools.cache
def _run_options() -> list[str]:
    """Those of `generate`, as Typer reads them."""
    return ["--" + one.name.replace("_", "-") for one in options("image")]
