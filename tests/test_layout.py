"""The three tests that hold the layout: imports point down, starting is light, and the catalogue names what exists."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import Cli

from diffpipe.catalog import BUILTIN
from diffpipe.specs import PipelineType, Provider

SOURCE = Path(__file__).parent.parent / "src" / "diffpipe"

# A module, or package, imports from the lines above its own and nothing else of diffpipe. A new one needs a place here.
LAYERS = (
    {"errors", "vocabulary"},
    {"specs", "tally"},
    {"files"},
    {"remote"},
    {"diffpipe", "catalog", "select", "prompts", "templates", "checks"},
    {"hub", "plugins", "store", "journal", "memory", "machine", "measured"},
    {"batch", "metadata", "gallery", "streams"},
    {"resolve", "weights", "blobs"},
    {"build", "contents"},
    {"verify", "prune", "tables", "incoming"},
    {"reproduce", "placing", "forecast", "bundle"},
    {"runners"},
    {"cli"},
    {"__main__"},
)
# The engine stands beside the layers: it sees these, and is imported by these, inside functions only.
SEEN_BY_ENGINE = {"errors", "specs", "files", "remote", "select", "catalog", "memory"}
USERS_OF_ENGINE = {"build", "runners", "cli"}

# Third-party packages that only some rooms know.
HEAVY = {
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "optimum",
    "torchao",
    "gguf",
    "safetensors",
    "numpy",
    "PIL",
    "av",
}
ROOMS = {name: {"engine"} for name in HEAVY} | {
    "huggingface_hub": {"hub"},
    "httpx2": {"hub"},
    "fsspec": {"remote", "streams"},
    "ray": {"runners"},
    "pyarrow": {"runners"},
    "typer": {"cli"},
    "textual_image": {"cli"},
    "rich": {"cli", "hub"},
}
SLOW_TO_IMPORT = HEAVY | {"huggingface_hub", "httpx2", "fsspec", "ray", "pyarrow", "engine"}


class Import(NamedTuple):
    """An import statement: in which room, of which room or package, and whether it runs with its module."""

    where: str
    line: str
    of: str
    inside: bool
    at_import: bool


def room(module: str) -> str:
    """ "diffpipe.cli.build" -> "cli"; the package's own __init__ -> "diffpipe"."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def imports() -> Iterator[Import]:
    for path in sorted(SOURCE.rglob("*.py")):
        names = ["diffpipe", *path.relative_to(SOURCE).with_suffix("").parts]
        package = names[:-1]
        module = ".".join(package if names[-1] == "__init__" else names)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        late = set(map(id, _run_later(tree)))
        for node in ast.walk(tree):
            for target in _targets(node, package):
                inside = target.split(".")[0] == "diffpipe"
                of = room(target) if inside else target.split(".")[0]
                yield Import(
                    room(module), f"{path.name}:{getattr(node, 'lineno', 0)}", of, inside, id(node) not in late
                )


def _run_later(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node inside a function or an `if TYPE_CHECKING`."""
    for node in ast.walk(tree):
        checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if checking or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from ast.walk(node)


def _targets(node: ast.AST, package: list[str]) -> Iterator[str]:
    """The full names of the modules that an import statement reads."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = (
            [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            if node.level
            else [node.module]
        )
        base = [part for part in base if part]
        for alias in node.names:
            whole = ".".join([*base, alias.name])
            is_module = base[0] == "diffpipe" and (SOURCE.parent / whole.replace(".", "/")).with_suffix(".py").exists()
            is_package = base[0] == "diffpipe" and (SOURCE.parent / whole.replace(".", "/")).is_dir()
            yield whole if is_module or is_package else ".".join(base)


def test_imports_point_down_only() -> None:
    found = list(imports())
    assert len(found) > 100  # the reader of imports does read
    rank = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    wrong = []
    for one in found:
        if not one.inside or one.where == one.of:
            continue
        if one.where == "engine":
            good = one.of in SEEN_BY_ENGINE
        elif one.of == "engine":
            good = one.where in USERS_OF_ENGINE
        else:
            good = one.where in rank and one.of in rank and rank[one.of] < rank[one.where]
        if not good:
            wrong.append(f"{one.line}: {one.where} imports {one.of}")
    assert wrong == []


def test_every_module_has_its_place() -> None:
    rooms = {path.stem if path.is_file() else path.name for path in SOURCE.iterdir()}
    known = set().union(*LAYERS) | {"engine", "demo", "__init__", "__pycache__", "py"}
    assert {name for name in rooms - known if not name.startswith(".")} == set()


def test_only_the_engine_knows_torch_and_nothing_slow_is_imported_before_it_is_needed() -> None:
    found = list(imports())
    outside = [
        f"{one.line}: {one.of} in {one.where}" for one in found if one.of in ROOMS and one.where not in ROOMS[one.of]
    ]
    assert outside == []
    early = [
        f"{one.line}: {one.of}"
        for one in found
        if one.of in SLOW_TO_IMPORT and one.at_import and not (one.where == "engine" and one.of == "engine")
    ]
    assert early == []


# Runs many command lines in one process, each as `diffpipe` would, and stops at the first that imports too much.
RUN_ALL = """
import contextlib, io, json, os, sys
from diffpipe.cli.app import main

forbidden = set(json.loads(sys.argv[1]))
for line in json.load(sys.stdin):
    sys.argv = ["diffpipe", *line["arguments"]]
    os.environ |= line.get("environment", {})
    out = io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    for name in line.get("environment", {}):
        del os.environ[name]
    loaded = sorted(forbidden & set(sys.modules))
    print(json.dumps({**line, "code": code, "out": out.getvalue(), "err": err.getvalue(), "loaded": loaded}))
    if loaded:
        break
"""


def run_all(cli: Cli, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    forbidden = sorted(SLOW_TO_IMPORT - {"engine"})
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps(forbidden)],
        input=json.dumps(lines), capture_output=True, text=True, cwd=cli.cwd, env=cli.environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def every_help(command: Any, path: tuple[str, ...] = ()) -> Iterator[list[str]]:
    yield [*path, "--help"]
    for name in getattr(command, "rows", dict)():
        yield from every_help(command.make(name), (*path, name))


@pytest.fixture(scope="module")
def built(cli: Cli, checkpoints: Path) -> str:
    """A pipeline named flux in the module's cache; the folder that it was built from."""
    cli("build", "flux", "--model", checkpoints / "flux", check=True)
    return str(checkpoints / "flux")


def test_no_help_imports_torch(cli: Cli, built: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffpipe.cli.app import root

    monkeypatch.setenv("DIFFPIPE_HOME", str(cli.home))
    lines = list(every_help(root()))
    shown = run_all(cli, [{"arguments": line} for line in lines])
    assert [(one["arguments"], one["code"], one["loaded"]) for one in shown] == [(line, 0, []) for line in lines]
    assert all(one["out"].startswith("Usage: diffpipe") for one in shown)
    assert ["generate", "flux", "--help"] in lines
    assert {("build", name, "--help") for name in BUILTIN} <= {tuple(line) for line in lines}


COMPLETING = {"_DIFFPIPE_COMPLETE": "complete_bash"}


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "says"),
    [
        (["--version"], {}, 0, "diffpipe "),
        (["pipelines", "list"], {}, 0, "FluxPipeline|flux"),
        (["pipelines", "list", "--json"], {}, 0, '"key"'),
        (["pipelines", "show", "flux"], {}, 0, "FluxTransformer2DModel"),
        (["pipelines", "show", "flux", "--json"], {}, 0, '"manifest"'),
        (["pipelines", "verify"], {}, 0, "ok"),
        (["pipelines", "prune", "--dry-run"], {}, 0, ""),
        (["providers", "list"], {}, 0, "stable-diffusion"),
        (["providers", "list", "--json"], {}, 0, "stable-diffusion"),
        (["providers", "show", "flux"], {}, 0, "FluxImg2ImgPipeline"),
        (["build", "flux", "--model", "MODEL"], {}, 0, "flux "),
        (["build", "flux", "--model", "MODEL", "--name", "second", "--json"], {}, 0, '"cached": true'),
        (["generate", "flux", "--prompt", "x", "--width", "31"], {}, 2, ""),
        (["generate", "flux", "--gidance-scale", "2"], {}, 2, ""),
        (["generate", "flax", "--prompt", "x"], {}, 3, ""),
        ([], {**COMPLETING, "COMP_WORDS": "diffpipe generate fl", "COMP_CWORD": "2"}, 0, "flux"),
        ([], {**COMPLETING, "COMP_WORDS": "diffpipe generate flux --guid", "COMP_CWORD": "3"}, 0, "--guidance-scale"),
        ([], {**COMPLETING, "COMP_WORDS": "diffpipe build fl", "COMP_CWORD": "2"}, 0, "flux"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_what_needs_no_model_imports_no_torch(
    cli: Cli, built: str, arguments: list[str], environment: dict[str, str], code: int, says: str
) -> None:
    given = [word.replace("MODEL", built) for word in arguments]
    (shown,) = run_all(cli, [{"arguments": given, "environment": environment}])
    assert (shown["code"], shown["loaded"]) == (code, []), shown["err"]
    assert any(word in shown["out"] for word in says.split("|")), shown


ROWS = [(provider, row) for provider in BUILTIN.values() for row in provider.types]


@pytest.mark.parametrize(("provider", "row"), ROWS, ids=[f"{provider.name}-{row.name}" for provider, row in ROWS])
def test_the_catalogue_names_what_exists(provider: Provider, row: PipelineType) -> None:
    for name in re.findall(r'"(diffpipe\.[\w.]+:\w+)"', json.dumps(asdict(row), default=str)):
        module, _, function = name.partition(":")
        assert room(module) == "engine", name
        assert callable(getattr(importlib.import_module(module), function))
    if not row.pipeline:
        assert (provider.name, row.repositories) == ("custom", ())
        return
    import diffusers

    cls = getattr(diffusers, row.pipeline)
    assert issubclass(cls, diffusers.DiffusionPipeline)
    added = {name for name, fields in row.flags.items() if "kind" in (fields or ())}  # for the row's own engine code
    taken = added | set(inspect.signature(cls.__call__).parameters)
    assert {*row.defaults, *row.flags} - taken == set()


def test_names_in_the_catalogue_are_unique() -> None:
    for provider in BUILTIN.values():
        names = [row.name for row in provider.types]
        assert len(names) == len(set(names))
        assert all(row.dtype in ("bfloat16", "float16", "float32") for row in provider.types)
