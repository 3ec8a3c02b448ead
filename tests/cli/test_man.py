"""The manual pages and completion scripts are those of the code, and the pages render without a warning."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from diffpipe import __version__
from diffpipe.batch.output_paths import FIELDS
from diffpipe.catalog import BUILTIN
from diffpipe.cli import app, generate, tree
from diffpipe.core.errors import Exit

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "generate_docs.py"
PAGES = sorted((ROOT / "man").glob("*.1"))
WARNINGS = {
    "man": ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z"],
    "groff": ["groff", "-man", "-ww", "-z"],
    "mandoc": ["mandoc", "-T", "lint", "-W", "warning"],
}


def run(*words: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **(env or {})}
    return subprocess.run(
        [str(word) for word in words], env=environment, capture_output=True, encoding="utf-8", timeout=120, check=False
    )


def warnings(program: str, page: Path) -> list[str]:
    """What a program complains of. The missing date is meant (tools/generate_docs.py)."""
    done = run(*WARNINGS[program], page)
    lines = done.stdout.splitlines() if program == "mandoc" else done.stderr.splitlines()
    return [line for line in lines if "missing date" not in line]


def shown(name: str) -> str:
    """The text of a page as a reader sees it, on one line."""
    text = (ROOT / "man" / f"{name}.1").read_text(encoding="utf-8")
    text = re.sub(r"^\.\S+ ?", "", re.sub(r'^\.\\".*\n', "", text, flags=re.M), flags=re.M)
    for escaped, plain in {r"\-": "-", r"\(aq": "'", r"\(dq": '"', r"\(ti": "~", r"\e": "\\"}.items():
        text = text.replace(escaped, plain)
    return " ".join(re.sub(r"\\f[BIR]", "", text).split())


def leaves() -> dict[str, list[typer.core.TyperCommand]]:
    """Page -> the commands it must show, from the real tree."""
    found = {}
    for name in app.COMMANDS:
        command = app.root().make(name)
        if name == "generate":
            found[name] = []  # its commands are the user's pipelines
        elif isinstance(command, tree.LazyGroup):
            found[name] = [command.make(row) for row in command.rows()]
        else:
            found[name] = [command]
    return found


def test_there_is_a_page_for_every_command() -> None:
    assert {page.stem for page in PAGES} == {"diffpipe", *(f"diffpipe-{name}" for name in app.COMMANDS)}


@pytest.mark.parametrize("program", WARNINGS)
def test_pages_render_without_a_warning(program: str) -> None:
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")
    said = {page.name: warnings(program, page) for page in PAGES}
    assert said == {name: [] for name in said}


@pytest.mark.parametrize("program", WARNINGS)
def test_a_page_with_a_mistake_gives_a_warning(program: str, tmp_path: Path) -> None:
    """The checks above can fail."""
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")
    page = tmp_path / "wrong.1"
    page.write_text(PAGES[0].read_text(encoding="utf-8") + ".NOSUCHMACRO here\n", encoding="utf-8")
    assert warnings(program, page)


@pytest.mark.parametrize("name", app.COMMANDS)
def test_a_page_shows_every_command_and_option(name: str) -> None:
    text = shown(f"diffpipe-{name}")
    for command in leaves()[name]:
        assert command.name in text
        for parameter in command.get_params(typer.Context(command, **command.context_settings)):
            flags = [*parameter.opts, *parameter.secondary_opts] if parameter.param_type_name == "option" else []
            for flag in flags or [parameter.metavar]:
                assert re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", text), (command.name, flag)
            if name not in ("build", "plan"):  # there the help of some options differs from provider to provider
                assert " ".join(parameter.help.split()) in text


def test_the_page_of_generate_shows_run_options_and_fields() -> None:
    text = shown("diffpipe-generate")
    for parameter in generate.options("image"):
        option = parameter.annotation.__metadata__[0]
        assert option.help in text
        assert all(flag in text for flag in option.param_decls)
    assert all(f"{{{field}}}" in text for field in FIELDS)


def test_the_page_of_build_shows_every_provider_and_its_models() -> None:
    text = shown("diffpipe-build")
    words = [word for p in BUILTIN.values() for row in p.types for word in (p.name, row.name, *row.repositories)]
    assert [word for word in words if word not in text] == []


def test_the_first_page_shows_commands_exit_codes_and_our_variables() -> None:
    text = shown("diffpipe")
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    variables = set(re.findall(r"""["'](DIFFPIPE_[A-Z]+)["']""", source))
    assert variables >= {"DIFFPIPE_HOME", "DIFFPIPE_OFFLINE"}
    assert [name for name in variables if name not in text] == []
    assert [help for help in app.COMMANDS.values() if help not in text] == []
    assert [int(code) for code in Exit if not re.search(rf" {int(code)} [a-z]", text)] == []


def test_pages_name_the_version_and_no_date() -> None:
    heads = {page.stem: page.read_text(encoding="utf-8").splitlines()[1] for page in PAGES}
    expected = {name: name.upper().replace("-", "\\-") for name in heads}
    assert heads == {
        name: f'.TH {title} 1 "" "diffpipe {__version__}" "User Commands"' for name, title in expected.items()
    }


def test_man_shows_what_was_meant() -> None:
    """Quotes, hyphens and leading dots come out as they must be typed."""
    if not shutil.which("man"):
        pytest.skip("man is not installed")
    page = ROOT / "man" / "diffpipe-generate.1"
    done = run("man", "-E", "ascii", "-l", page, env={"MANWIDTH": "1000", "MANPAGER": "cat", "MAN_KEEP_FORMATTING": ""})
    assert "--set 'joint_attention_kwargs={\"scale\": 0.8}'" in done.stdout
    assert "-o, --output TEMPLATE" in done.stdout


def test_files_are_current_whatever_the_user_has(tmp_path: Path) -> None:
    """Another cache, a plug-in, a narrow terminal, another language: the check passes all the same."""
    plugin = tmp_path / "extra-1.0.dist-info"
    plugin.mkdir()
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: extra\nVersion: 1.0\n")
    (plugin / "entry_points.txt").write_text("[diffpipe.providers]\nextra = extra:provider\n")
    (tmp_path / "extra.py").write_text(
        "from diffpipe import PipelineType, Provider\n"
        "provider = Provider('extra', 'Extra', (PipelineType('text2image', 'FluxPipeline'),))\n"
    )
    assert (
        "extra" in run(sys.executable, "-m", "diffpipe", "providers", "list", env={"PYTHONPATH": str(tmp_path)}).stdout
    )
    env = {
        "PYTHONPATH": str(tmp_path), "COLUMNS": "30", "TERMINAL_WIDTH": "30", "LC_ALL": "C", "LANGUAGE": "de",
        "DIFFPIPE_HOME": str(tmp_path / "no" / "cache"), "FORCE_COLOR": "1", "PYTHONHASHSEED": "5",
    }  # fmt: skip
    done = run(sys.executable, TOOL, "--check", env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_check_names_what_is_stale(tmp_path: Path) -> None:
    for part in ("completions", "man", "tools"):
        shutil.copytree(ROOT / part, tmp_path / part)
    (tmp_path / "man" / "diffpipe-old.1").touch()
    (tmp_path / "man" / "diffpipe.1").write_text("edited")
    (tmp_path / "completions" / "_diffpipe").unlink()
    tool = tmp_path / "tools" / TOOL.name
    names = "completions/_diffpipe man/diffpipe-old.1 man/diffpipe.1"
    done = run(sys.executable, tool, "--check")
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, f"not current: {names}")
    done = run(sys.executable, tool)
    assert (done.returncode, done.stdout.split()) == (0, names.split())
    assert run(sys.executable, tool, "--check").returncode == 0
