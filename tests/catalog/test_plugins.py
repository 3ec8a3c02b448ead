"""Providers from other packages: packages on PYTHONPATH, found by their entry points as installed ones are."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
from conftest import Cli
from manifests import config_json, manifest

from diffpipe.catalog import BUILTIN
from diffpipe.catalog.plugins import quirks
from diffpipe.catalog.row_checks import problem_of

GOOD = """
from diffpipe import PipelineType, Provider

PROVIDER = Provider(
    name="tiny-flux",
    title="Tiny Flux of a plug-in",
    homepage="https://example.org",
    types=(
        PipelineType(
            name="text2image",
            pipeline="FluxPipeline",
            repositories=("example/tiny-flux",),
            dtype="float32",
            defaults={"num_inference_steps": 2, "width": 32, "height": 32},
            flags={"prompt": {"required": True, "help": "What the plug-in draws."}},
        ),
    ),
)
"""
FACTORY = GOOD.replace("PROVIDER = Provider(", "def provider():\n  return Provider(").replace("tiny-flux", "made-flux")
FACTORY = FACTORY.replace('("example/tiny-flux",)', '["example/tiny-flux"]')  # a list where we write a tuple

# Package -> (its module's text, entry point, what the warning says of it).
BROKEN = {
    "plug-missing": ("import a_package_that_is_not_there", "plug_missing:PROVIDER", "No module named 'a_package"),
    "plug-syntax": ("def provider(:", "plug_syntax:PROVIDER", "SyntaxError"),
    "plug-nothing": ("", "plug_nothing:PROVIDER", "AttributeError"),
    "plug-type": ("PROVIDER = {'name': 'wrong'}", "plug_type:PROVIDER", "no diffpipe.Provider"),
    "plug-raises": ("def provider():\n  raise OSError('no\\nlicence')", "plug_raises:provider", "OSError: no licence"),
    "plug-clash": (GOOD.replace('"tiny-flux"', '"flux"'), "plug_clash:PROVIDER", "the name 'flux' is taken"),
    "plug-empty": (
        "import diffpipe\nPROVIDER = diffpipe.Provider('e', 'E', ())", "plug_empty:PROVIDER", "at least one type"
    ),
    "plug-rows": (
        "import diffpipe\nPROVIDER = diffpipe.Provider('e', 'E', ('text2image',))", "plug_rows:PROVIDER", "PipelineType"
    ),
    "plug-spaces": (GOOD.replace('"tiny-flux"', '"tiny flux; rm"'), "plug_spaces:PROVIDER", "tiny flux; rm"),
    "plug-name": (GOOD.replace('"tiny-flux"', "17"), "plug_name:PROVIDER", "name"),
    "plug-own-exit": ("raise GeneratorExit('no\\x1b[2J')", "plug_own_exit:PROVIDER", r"GeneratorExit: no\x1b[2J"),
    "plug-mute": (
        "class E(Exception):\n  def __str__(self):\n    raise OSError\nraise E", "plug_mute:PROVIDER", "skipped: E"
    ),
    "plug-number": (GOOD.replace('name="text2image"', "name=5"), "plug_number:PROVIDER", "name of its type 5"),
    "plug-none": (
        GOOD.replace('repositories=("example/tiny-flux",)', "repositories=None"), "plug_none:PROVIDER",
        "repositories of its type 'text2image' cannot be None",
    ),
    "plug-dtype": (GOOD.replace('dtype="float32"', 'dtype="__class__"'), "plug_dtype:PROVIDER", "dtype of its type"),
    "plug-quirk": (
        GOOD.replace('dtype="float32"', 'quirks={"call": 5}'), "plug_quirk:PROVIDER", "quirks of its type"
    ),
    "plug-flag": (GOOD.replace('"required": True', '"needed": True'), "plug_flag:PROVIDER", "flags of its type"),
    "plug-exits": ("raise SystemExit(9)", "plug_exits:PROVIDER", "SystemExit"),
}  # fmt: skip


def install(folder: Path, package: str, text: str, target: str) -> None:
    """What a package's installation leaves: its module and its metadata."""
    (folder / (package.replace("-", "_") + ".py")).write_text(text)
    info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[diffpipe.providers]\n{package} = {target}\n")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment with two good packages installed."""
    folder = tmp_path_factory.mktemp("good")
    install(folder, "diffpipe-tiny", GOOD, "diffpipe_tiny:PROVIDER")
    install(folder, "diffpipe-made", FACTORY, "diffpipe_made:provider")
    return {"PYTHONPATH": str(folder)}


def test_without_plug_ins_there_is_neither_provider_nor_warning(cli: Cli) -> None:
    done = cli("providers", "list", check=True)
    assert "tiny-flux" not in done.stdout
    assert done.stderr == ""


def test_a_plug_in_is_listed_beside_the_built_in_ones(cli: Cli, packages: dict[str, str]) -> None:
    listed = cli("providers", "list", env=packages, check=True)
    assert {"flux", "stable-diffusion", "custom", "tiny-flux", "made-flux"} <= {
        line.split()[0] for line in listed.stdout.splitlines()
    }
    assert listed.stderr == ""
    described = cli("build", "--help", env=packages, check=True)
    assert "Tiny Flux of a plug-in: text2image" in described.stdout
    options = cli("build", "tiny-flux", "--help", env=packages, check=True)
    assert "example/tiny-flux" in options.stdout
    assert "[default: float32]" in " ".join(options.stdout.split())


def test_a_plug_in_is_shown_with_its_rows(cli: Cli, packages: dict[str, str]) -> None:
    shown = json.loads(cli("providers", "show", "tiny-flux", "--json", env=packages, check=True).stdout)
    assert shown["homepage"] == "https://example.org"
    assert shown["types"][0]["pipeline"] == "FluxPipeline"
    assert shown["types"][0]["defaults"] == {"num_inference_steps": 2, "width": 32, "height": 32}


def test_a_plug_in_builds_and_its_pipeline_makes_pictures_without_it(
    cli: Cli, packages: dict[str, str], checkpoints: Path
) -> None:
    """The row's defaults and flags go into the manifest, so generating needs the plug-in no more."""
    built = cli("build", "tiny-flux", "--model", checkpoints / "flux", "--json", env=packages, check=True)
    assert json.loads(built.stdout)["provider"] == "tiny-flux"
    shown = json.loads(cli("pipelines", "show", "tiny-flux", "--json", check=True).stdout)
    flags = {flag["name"]: flag for flag in shown["manifest"]["flags"]}
    assert (flags["prompt"]["required"], flags["prompt"]["help"]) == (True, "What the plug-in draws.")
    assert (flags["width"]["default"], flags["num_inference_steps"]["default"]) == (32, 2)
    made = cli("generate", "tiny-flux", "--prompt", "x", "-o", "one.png", check=True)
    assert made.stdout == "one.png\n"
    assert (cli.cwd / "one.png").read_bytes()[16:24] == bytes([0, 0, 0, 32] * 2)  # width and height in the PNG header


@pytest.mark.parametrize("package", BROKEN)
def test_a_broken_plug_in_is_named_and_skipped(
    cli: Cli, packages: dict[str, str], tmp_path: Path, package: str
) -> None:
    text, target, says = BROKEN[package]
    install(tmp_path, package, textwrap.dedent(text), target)
    environment = {"PYTHONPATH": f"{tmp_path}:{packages['PYTHONPATH']}"}
    done = cli("providers", "list", env=environment, check=True)
    assert {"flux", "custom", "tiny-flux", "made-flux"} <= {line.split()[0] for line in done.stdout.splitlines()}
    assert done.stdout.count("flux  ") >= 1
    (warning,) = done.stderr.splitlines()
    assert warning.startswith(f"warning: provider '{package}' from package {package} was skipped: ")
    assert says in warning
    assert "FLUX.1 by Black Forest Labs" in cli("build", "--help", env=environment, check=True).stdout


def test_every_broken_plug_in_at_once_leaves_the_rest_at_work(
    cli: Cli, packages: dict[str, str], tmp_path: Path
) -> None:
    for package, (text, target, _) in BROKEN.items():
        install(tmp_path, package, text, target)
    environment = {"PYTHONPATH": f"{tmp_path}:{packages['PYTHONPATH']}"}
    done = cli("build", "tiny-flux", "--help", env=environment, check=True)
    assert {line.split(" was skipped")[0].rsplit(" ", 1)[1] for line in done.stderr.splitlines()} == set(BROKEN)
    completing = {"_DIFFPIPE_COMPLETE": "complete_bash", "COMP_WORDS": "diffpipe build tiny", "COMP_CWORD": "2"}
    assert cli(env={**environment, **completing}).stdout.split() == ["tiny-flux"]
    made = cli("generate", "--help", env=environment, check=True)
    assert made.stderr == ""  # generating needs no providers, and says nothing of them


@pytest.mark.parametrize("entries", [b"[diffpipe.providers]\ny\n", b"[diffpipe.providers]\nx = \xff:y\n"])
def test_a_package_with_damaged_metadata_is_named_by_its_place(
    packages: dict[str, str], tmp_path: Path, cli: Cli, entries: bytes
) -> None:
    install(tmp_path, "plug-damaged", GOOD, "plug_damaged:PROVIDER")
    (tmp_path / "plug_damaged-1.0.dist-info" / "entry_points.txt").write_bytes(entries)
    environment = {"PYTHONPATH": f"{tmp_path}:{packages['PYTHONPATH']}"}
    done = cli("providers", "list", env=environment, check=True)
    assert "tiny-flux" in done.stdout
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("warning: a package in ")
    assert str(tmp_path) in warning


def test_what_a_plug_in_prints_is_no_result(tmp_path: Path, cli: Cli) -> None:
    loud = GOOD + "print('hello\x1b[2J')\nimport warnings\nwarnings.warn('old\x9b2J')\n"
    install(tmp_path, "plug-loud", loud, "plug_loud:PROVIDER")
    done = cli("providers", "show", "tiny-flux", "--json", env={"PYTHONPATH": str(tmp_path)}, check=True)
    assert json.loads(done.stdout)["name"] == "tiny-flux"
    assert r"plug-loud: hello\x1b[2J" in done.stderr.splitlines()
    assert r"old\x9b2J" in done.stderr


def test_the_built_in_rows_are_such_as_a_plug_in_may_bring() -> None:
    assert {name: problem_of(provider) for name, provider in BUILTIN.items()} == dict.fromkeys(BUILTIN, "")


@pytest.mark.parametrize(
    ("pipeline", "expected"),
    [
        ("AllegroPipeline", {"load": "diffpipe.engine.running.quirks.allegro:load_allegro"}),
        (
            "WanVACEPipeline",
            {"load": "diffpipe.engine.running.quirks.wan:load_wan"},
        ),  # its call hook needs the row's own flags
        ("CogVideoXPipeline", {}),
    ],
)
def test_a_custom_pipeline_is_prepared_as_its_class_needs(pipeline: str, expected: dict[str, str]) -> None:
    assert quirks(manifest(config_json(provider="custom", type="any", pipeline=pipeline))) == expected
