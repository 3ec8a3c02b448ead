"""A flag of one value that is given several: refused by every command; lists and switches stay as they are."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Cli

from diffpipe.cli import app, tree
from diffpipe.cli.flags import option, with_parameters
from diffpipe.core.errors import UsageError


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (("build", "flux", "--dtype", "float32", "--dtype", "bfloat16"), "--dtype"),
        (("build", "demo", "--name=a", "--name=b"), "--name"),
        (("build", "demo", "--scheduler-config", "{}", "--scheduler-config", "{}"), "--scheduler-config"),
        (("plan", "wan", "--width", "64", "--frames", "5", "--width", "64"), "--width"),
        (("pipelines", "prune", "--unused-for", "1", "--unused-for", "2"), "--unused-for"),
        (("reproduce", "x.png", "-o", "a.png", "--output", "b.png"), "--output"),
    ],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, tuple) else value,
)
def test_a_flag_of_one_value_is_given_once(words: tuple[str, ...], flag: str) -> None:
    with pytest.raises(UsageError) as raised:
        app.root()(args=list(words), prog_name="diffpipe", standalone_mode=False)
    assert raised.value.message == f"{flag} is given more than once"
    assert raised.value.hint == "it takes one value: leave out all but one"


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (("--prompt", "a fox", "--prompt", "a cat"), "--prompt"),
        (("--prompt", "a fox", "--seed", 1, "--seed", 2), "--seed"),
        (("--prompt", "a fox", "-o", "a.png", "-o", "b.png"), "--output"),
        (("--prompts-from", "a.txt", "--prompts-from", "b.txt"), "--prompts-from"),
        (("--prompt", "a fox", "--batch-size", 2, "--batch-size", 3), "--batch-size"),
        (("--prompt", "a fox", "--keep-warm", "5m", "--keep-warm", "6m"), "--keep-warm"),
        (("--prompt", "a fox", "--step-down", "--no-step-down"), "--step-down"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_flag_of_a_run_is_given_once(cli: Cli, words: tuple[object, ...], flag: str) -> None:
    if cli.light("pipelines", "show", "demo").returncode:
        cli("build", "demo", check=True)
    done = cli.light("generate", "demo", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[0] == f"error: {flag} is given more than once"


def test_lists_switches_and_values_that_look_like_flags_are_given_as_before() -> None:
    seen: list[Any] = []

    def function(**values: Any) -> None:
        seen.append((values["names"], values["quiet"], values["text"]))

    options = [
        option("names", list[str], None, "", panel="x"),
        option("quiet", bool, False, "", "--quiet", panel="x"),
        option("text", str, "", "", panel="x"),
    ]
    command = tree.command("x", with_parameters(function, options), "text")
    words = ["--names", "a", "--names", "b", "--quiet", "--quiet", "--text", "--names"]
    command(args=words, prog_name="x", standalone_mode=False)
    assert seen == [(["a", "b"], True, "--names")]


WIDTH, WHOLE = "Invalid value for '--width': ", "it must be a whole number"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (f"{WIDTH}'wide' is not a valid int", WIDTH + WHOLE),  # Typer 0.26
        (f"{WIDTH}'wide' is not a valid integer.", WIDTH + WHOLE),  # click, and Typer before
        (f"{WIDTH}'' is not a valid float", f"{WIDTH}it must be a number"),
        (f"{WIDTH}Value error, Input should be a valid integer, unable to parse string as an integer", WIDTH + WHOLE),
        (f"{WIDTH}'a is not a valid int' is taken", f"{WIDTH}'a is not a valid int' is taken"),
    ],
)
def test_a_wrong_number_is_said_alike_by_every_typer(said: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    class Wrong:
        def format_message(self) -> str:
            return said

    with pytest.raises(SystemExit):
        app._refuse(Wrong())
    assert capsys.readouterr().err.splitlines()[0] == f"error: {shown}"
