"""Completion in the real shells, driven as a person drives them: keys into a terminal, then look at the line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Cli, Warm

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "completions"
PROMPT = "ready> "
# Control-T writes the line as it stands to a file: what was completed, free of the terminal's redrawing.
START = {
    "bash": r"""
        PS1='ready> '
        source "$SCRIPTS/diffpipe.bash"
        look() { printf %s "$READLINE_LINE" > "$LINE.new"; mv "$LINE.new" "$LINE"; }
        bind 'set bell-style none'; bind -x '"\C-t": look'
    """,
    "zsh": r"""
        PS1='ready> '
        unsetopt beep; fpath=("$SCRIPTS" $fpath); autoload -Uz compinit; compinit -u -D
        look() { print -rn -- "$BUFFER" > "$LINE.new"; mv "$LINE.new" "$LINE" }
        zle -N look; bindkey '^T' look
    """,
}
SHELLS = {"bash": ["bash", "--norc", "--noprofile", "-i"], "zsh": ["zsh", "-f", "-i"]}


class Terminal:
    """An interactive shell on a pseudo-terminal."""

    def __init__(self, shell: str, env: dict[str, str], folder: Path) -> None:
        import pty  # Windows has none

        self.line = folder / f"line.{shell}"
        start = folder / f"start.{shell}"
        start.write_text(START[shell])
        self.pid, self.screen = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execvpe(shell, SHELLS[shell], {**env, "SCRIPTS": str(SCRIPTS), "LINE": str(self.line)})
        os.set_blocking(self.screen, False)
        self.shown = ""
        self._send(f". {start}\n")
        self._wait(lambda: PROMPT in self.shown)

    def _send(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def _wait(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not done():
            assert time.monotonic() < deadline, f"no answer from the shell; it showed {self.shown!r}"
            try:
                self.shown += os.read(self.screen, 65536).decode(errors="replace")
            except BlockingIOError:
                time.sleep(0.02)

    def complete(self, text: str) -> str:
        """The line after a TAB."""
        self.line.unlink(missing_ok=True)
        self.shown = ""
        self._send(text + "\t\x14")
        self._wait(self.line.exists)
        self._send("\x15")  # clear the line for the next
        return self.line.read_text(encoding="utf-8")

    def offer(self, text: str, expected: list[str]) -> str:
        """What is shown after two TABs, once all that is expected is there."""
        self.shown = ""
        self._send(text + "\t\t")
        self._wait(lambda: all(word in self.shown for word in expected))
        self._send("\x03")
        return self.shown

    def close(self) -> None:
        os.close(self.screen)  # the shell ends with its terminal
        os.waitpid(self.pid, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the shells run: a program on PATH, a file and a folder to complete, and a plug-in that cannot be loaded."""
    folder = tmp_path_factory.mktemp("shells")
    (folder / "my model").mkdir()
    (folder / "weights.safetensors").touch()
    (folder / "bin").mkdir()
    program = folder / "bin" / "diffpipe"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m diffpipe "$@"\n')
    program.chmod(0o755)
    broken = folder / "plugins" / "broken-1.0.dist-info"
    broken.mkdir(parents=True)
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (broken / "entry_points.txt").write_text("[diffpipe.providers]\nbroken = no_such_module:provider\n")
    return folder


@pytest.fixture(scope="module")
def env(folder: Path, warm: Warm, checkpoints: Path) -> dict[str, str]:
    """The environment of the shells, with one built pipeline: flux."""
    warm("build", "flux", "--model", checkpoints / "flux", check=True)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    own = {
        "PATH": path,
        "HOME": str(folder),
        "TERM": "xterm",
        "PYTHONPATH": str(folder / "plugins"),
        "LC_ALL": "C.UTF-8",
    }
    return {**warm.environment(), "COLUMNS": "100", **own}


@pytest.fixture(scope="module", params=["bash", "zsh"])
def terminal(request: pytest.FixtureRequest, folder: Path, env: dict[str, str]) -> Iterator[Terminal]:
    if not shutil.which(request.param):
        pytest.skip(f"{request.param} is not installed")
    made = Terminal(request.param, env, folder)
    yield made
    made.close()


# The line before TAB, and after it. A space after a finished word, none where more must follow.
LINES = {
    "diffpipe bui": "diffpipe build ",
    "diffpipe build de": "diffpipe build demo ",
    "diffpipe build flux --type im": "diffpipe build flux --type img2img ",
    "diffpipe build flux --type=im": "diffpipe build flux --type=img2img ",
    "diffpipe build flux --component v": "diffpipe build flux --component vae=",
    "diffpipe generate fl": "diffpipe generate flux ",
    "diffpipe generate flux --prom": "diffpipe generate flux --prompt",
    "diffpipe generate flux --prompt 'a b' --hei": "diffpipe generate flux --prompt 'a b' --height ",
    "diffpipe generate flux --format w": "diffpipe generate flux --format webp ",
    "diffpipe pipelines rename f": "diffpipe pipelines rename flux ",
    "diffpipe providers show st": "diffpipe providers show stable-diffusion ",
    "diffpipe build nonsense --mod": "diffpipe build nonsense --mod",
    # files
    "diffpipe build flux --model my": "diffpipe build flux --model my\\ model/",
    "diffpipe build flux --model=wei": "diffpipe build flux --model=weights.safetensors ",
    "diffpipe build flux --component vae=wei": "diffpipe build flux --component vae=weights.safetensors ",
    "diffpipe generate flux --output my": "diffpipe generate flux --output my\\ model/",
    "diffpipe generate flux --log-file wei": "diffpipe generate flux --log-file weights.safetensors ",
}


PROMPTS = ["--prompt", "--prompt-2", "--prompts-from", "--prompts-format"]


def test_tab_completes_the_line(terminal: Terminal) -> None:
    completed = {}
    for line in LINES:
        completed[line] = terminal.complete(line)
        assert "warning" not in terminal.shown
        assert "rror" not in terminal.shown
    assert completed == LINES


def test_tab_twice_shows_what_there_is(terminal: Terminal) -> None:
    shown = terminal.offer("diffpipe pipelines ", ["list", "show", "rename", "remove", "prune", "verify"])
    assert "plugins" not in shown  # a folder that is there


def fish(line: str, folder: Path, env: dict[str, str]) -> dict[str, str]:
    """What fish offers for a line, each with its description."""
    words = ["fish", "--no-config", "-c", "source $argv[1]; complete -C $argv[2]", str(SCRIPTS / "diffpipe.fish"), line]
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, encoding="utf-8", timeout=60, check=True)
    assert not done.stderr
    return dict(row.partition("\t")[::2] for row in done.stdout.splitlines())


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
def test_fish_offers_the_same(folder: Path, env: dict[str, str]) -> None:
    offered = {line: list(fish(line, folder, env)) for line in LINES}
    expected = {line: [after.strip().rpartition(" ")[2]] for line, after in LINES.items()}
    folders = {line: ["my model/"] for line in LINES if line.endswith(" my")}
    several = {"diffpipe generate flux --prom": PROMPTS, "diffpipe build nonsense --mod": []}
    assert offered == expected | folders | several


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
def test_fish_describes_what_it_offers(folder: Path, env: dict[str, str]) -> None:
    assert fish("diffpipe build flux --log", folder, env) == {"--log-file": "Write the detailed log to a file"}


def ask(cli: Cli, line: str) -> list[str]:
    variables = {"_DIFFPIPE_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args", "COLUMNS": "500"}
    done = cli.light(env={**variables, "_TYPER_COMPLETE_ARGS": line})
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_completing_imports_nothing_heavy(cli: Cli, env: dict[str, str]) -> None:
    assert ask(cli, "diffpipe build fl") == [
        "flux\tFLUX.1 by Black Forest Labs: text2image, img2img, inpaint, fill, kontext,…",
        "flux2\tFLUX.2 by Black Forest Labs: text2image, klein",
    ]
    assert ask(cli, "diffpipe generate flux --see") == [
        "--seed\tSeed of the first picture of each prompt; the next ones count up"
    ]
    assert [row.partition("\t")[0] for row in ask(cli, "diffpipe ")][:3] == ["build", "plan", "generate"]
    assert ask(cli, "diffpipe build flux --component t") == [
        f"{name}=" for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer")
    ]


def test_components_come_from_the_folder_that_is_named(cli: Cli, checkpoints: Path) -> None:
    model = checkpoints / "stable-diffusion"
    assert ask(cli, f"diffpipe build custom --model {model} --component u") == ["unet="]


@pytest.mark.parametrize("group", ["build flux", "generate flux"])
def test_every_completion_is_one_line(cli: Cli, env: dict[str, str], group: str) -> None:
    rows = ask(cli, f"diffpipe {group} -")
    names = [row.partition("\t")[0] for row in rows]
    assert all(re.fullmatch(r"-\w|--[a-z0-9-]+", name) for name in names), names
    assert len(names) == len(set(names))
