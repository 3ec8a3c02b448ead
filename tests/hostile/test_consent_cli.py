"""`yes |` before every command runs no code: not that of a model with some in each folder, named by each setting."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli

pytest.importorskip("torch")

YES = "y\n" * 1000
CLASSES = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor")
SMALL = ("--prompt", "a fox", "--num-inference-steps", 1, "--width", 32, "--height", 32, "--seed", 1)


def with_code(folder: Path, marker: Path) -> Path:
    """The folder, with code that leaves the marker wherever a library could look for some."""
    run = f"open({str(marker)!r}, 'w').close()\nclass Own:\n    from_pretrained = __init__ = print\n"
    for place in [folder, *(path for path in folder.iterdir() if path.is_dir())]:
        (place / "own.py").write_text(run)
        for path in place.glob("*.json"):
            if isinstance(settings := json.loads(path.read_text()), dict) and path.name.endswith("config.json"):
                path.write_text(json.dumps({**settings, "auto_map": dict.fromkeys(CLASSES, "own.Own")}))
    return folder


@pytest.fixture(scope="module")
def marker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("marker") / "ran"


@pytest.fixture(scope="module")
def model(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory, marker: Path) -> Path:
    """A model that builds: its classes are the libraries' own, which look at no auto_map."""
    return with_code(shutil.copytree(checkpoints / "flux", tmp_path_factory.mktemp("own") / "flux"), marker)


@pytest.fixture(scope="module")
def asking(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose tokenizer is of an Auto class, for which transformers would ask."""
    folder = shutil.copytree(model, tmp_path_factory.mktemp("own") / "asking")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "tokenizer": ["transformers", "AutoTokenizer"]}))
    return Path(folder)


@pytest.fixture(scope="module")
def built(cli: Cli, model: Path) -> Path:
    """The working folder of a cache that has the model as `own`, with a picture of it and its bundle."""
    cli("build", "flux", "--model", model, "--name", "own", "--dtype", "float32", stdin=YES, check=True)
    cli("generate", "own", *SMALL, "-o", "made.png", stdin=YES, check=True)
    cli("pipelines", "export", "own", "own.tar", stdin=YES, check=True)
    return cli.cwd


# Every command, and how it ends; {model} and {asking} are the folders.
LINES: dict[str, tuple[str, int]] = {
    "build": ("build flux --model {model}", 0),
    "build, asking": ("build flux --model {asking}", 2),
    "build, a part": ("build flux --model {asking} --component tokenizer={model}/tokenizer", 2),
    "build custom": ("build custom --model {asking}", 2),
    "plan": ("plan flux --model {model}", 0),
    "plan, asking": ("plan flux --model {asking}", 2),
    "generate": ("generate own --prompt x --num-inference-steps 1 --width 32 --height 32 -o again.png", 0),
    "pipelines list": ("pipelines list", 0),
    "pipelines show": ("pipelines show own", 0),
    "pipelines rename": ("pipelines rename own own", 0),
    "pipelines remove": ("pipelines remove other", 3),
    "pipelines prune": ("pipelines prune --dry-run", 0),
    "pipelines verify": ("pipelines verify own", 0),
    "pipelines export": ("pipelines export own again.tar", 0),
    "pipelines import": ("pipelines import own.tar", 0),
    "providers list": ("providers list", 0),
    "providers show": ("providers show flux", 0),
    "worker list": ("worker list", 0),
    "worker stop": ("worker stop --all", 0),
    "inspect": ("inspect made.png", 0),
    "reproduce": ("reproduce made.png -o reproduced.png", 0),
    "doctor": ("doctor", 0),
}  # fmt: skip


@pytest.mark.parametrize(("line", "code"), LINES.values(), ids=LINES)
def test_yes_before_a_command_runs_no_code(
    cli: Cli, built: Path, model: Path, asking: Path, marker: Path, line: str, code: int
) -> None:
    done = cli(*line.format(model=model, asking=asking).split(), stdin=YES)
    assert "[y/N]" not in done.stdout + done.stderr
    assert not marker.exists(), done.stderr
    assert done.returncode == code, done.stderr


def test_an_import_into_an_empty_cache_runs_no_code(cli: Cli, built: Path, tmp_path: Path, marker: Path) -> None:
    other = Cli(tmp_path / "home", built)
    other("pipelines", "import", "own.tar", stdin=YES, check=True)
    other("generate", "own", *SMALL, "-o", "imported.png", stdin=YES, check=True)
    assert not marker.exists()


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if not hasattr(command, "rows"):
        yield path
        return
    for name in command.rows() if callable(command.rows) else command.rows:
        yield from leaves(command.make(name), (*path, name))


def test_no_command_is_forgotten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from diffpipe.cli.app import root

    monkeypatch.setenv("DIFFPIPE_HOME", str(tmp_path))
    whole = {" ".join(path[:1] if path[0] in ("build", "plan", "generate") else path) for path in leaves(root())}
    assert {"build", "doctor", "worker stop"} <= whole
    assert whole <= set(LINES)
