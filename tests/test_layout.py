"""The three tests that hold the layout: imports point down, starting is light, and the catalogue names what exists."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import house
import pytest
from conftest import Cli
from house import room

from diffpipe.catalog import BUILTIN
from diffpipe.catalog.rows import PipelineType, Provider

# A room imports from the rooms above its own line and nothing else of diffpipe.
ROOMS = (
    {"core"},
    {"storage"},
    {"catalog"},
    {"sources"},
    {"cache"},
    {"memory"},
    {"batch", "results"},
    {"building"},
    {"runners"},
    {"cli"},
    {"__main__"},
)
# The engine stands beside them: it sees these, and is imported by these, inside functions only. Of memory it sees what
# is pure: numbers in, numbers out.
SEEN_BY_ENGINE = {"core", "storage", "catalog", "memory"}
PURE = {"sizes", "estimate", "plan", "knobs", "ladder"}
ASKED = {"machine", "device_facts"}  # of memory, too: which device there is has one answer
USERS_OF_ENGINE = {"building", "runners", "cli"}

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
KNOWN_IN = {name: {"engine"} for name in HEAVY} | {
    "huggingface_hub": {"sources"},
    "httpx2": {"sources", "storage"},
    "fsspec": {"storage"},
    "psutil": {"memory"},
    "ray": {"runners"},
    "pyarrow": {"runners"},
    "typer": {"cli"},
    "textual_image": {"cli"},
    "rich": {"cli", "sources"},
}
# Names that begin with an underscore and are documented, or of the standard library.
NOT_OF_A_LIBRARY = {
    "diffpipe.__main__": {"_run_exitfuncs", "_exit"},
    "diffpipe.engine.classes.shapes": {"_replace"},
    "diffpipe.runners.worker.server": {"_exit"},
}
SLOW_TO_IMPORT = HEAVY | {"huggingface_hub", "httpx2", "fsspec", "ray", "pyarrow", "engine"}


def test_imports_point_down_only() -> None:
    found = [one for one in house.imports() if one.inside and room(one.module) != room(one.target)]
    assert len(found) > 100  # the reader of imports does read
    rank = {name: number for number, layer in enumerate(ROOMS) for name in layer}
    wrong = []
    for one in found:
        where, of = room(one.module), room(one.target)
        if of == "diffpipe":  # the version and the public names
            good = True
        elif where == "engine":
            good = of in SEEN_BY_ENGINE and (of != "memory" or one.target.split(".")[-1] in PURE | ASKED)
        elif of == "engine":
            good = where in USERS_OF_ENGINE and not one.at_import
        else:
            good = rank.get(of, 99) < rank.get(where, -1) or where == "diffpipe"
        if not good:
            wrong.append(f"{one.line}: {where} imports {of}")
    assert wrong == []


def test_every_module_has_its_room() -> None:
    there = {path.stem if path.is_file() else path.name for path in house.SOURCE.iterdir()}
    known = set().union(*ROOMS) | {"engine", "demo", "__init__", "__pycache__", "py"}
    assert {name for name in there - known if not name.startswith(".")} == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert house.circles() == []


def test_modules_and_functions_are_short_enough_to_see_whole() -> None:
    assert house.too_long(house.module_lengths(), house.LONGEST_MODULE) == []
    assert house.too_long(house.function_lengths(), house.LONGEST_FUNCTION) == []


def test_any_stays_rare_and_no_manifest_is_a_dict() -> None:
    assert house.count_words(r"\bAny\b") < 500
    assert house.count_words(r"\bmanifest(\(\))?\[\"") == 0


def test_what_is_private_of_a_library_stands_in_its_seam() -> None:
    elsewhere = {
        module: set(names) for module, names in house.private_names().items() if not module.endswith(house.SEAM)
    }
    assert elsewhere == NOT_OF_A_LIBRARY


def test_only_the_engine_knows_torch_and_nothing_slow_is_imported_before_it_is_needed() -> None:
    found = [(one, one.target.split(".")[0]) for one in house.imports() if not one.inside]
    outside = [f"{one.line}: {of}" for one, of in found if of in KNOWN_IN and room(one.module) not in KNOWN_IN[of]]
    assert outside == []
    early = [f"{one.line}: {of}" for one, of in found if of in SLOW_TO_IMPORT and one.at_import]
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
