"""Text of files, hubs and libraries is shown, not obeyed: by one function, which all output passes."""

from __future__ import annotations

import ast
import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import diffpipe
from diffpipe.cli import output
from diffpipe.core.errors import DiffpipeError
from diffpipe.core.printable import CONTROLS, printable, printable_json, printable_lines

# ECMA-48: ESC and the C1 controls begin sequences. Unicode Annex 9: these turn the direction of writing.
OBEYED = [chr(code) for code in (*range(32), 127, *range(128, 160), 0x2028, 0x2029, 0x202E, 0x2066, 0x200F, 0x61C)]
SHOWN = ["é", "日本", "👩‍👩‍👧", "⏎", "\u00a0", "❤️"]


@pytest.mark.parametrize("letter", [letter for letter in OBEYED if letter != "\t"], ids=ascii)
def test_what_a_terminal_would_obey_is_an_escape(letter: str) -> None:
    shown = printable(f"a{letter}b")
    assert shown.isprintable()
    assert shown.encode("ascii").decode("unicode_escape") == f"a{letter}b"


@pytest.mark.parametrize("text", SHOWN)
def test_all_else_is_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_halves_of_letters_are_escapes_but_for_bytes_of_file_names() -> None:
    shown = printable("a\ud800\udc7f\udcff\udd00\udfff")
    assert shown == "a\\ud800\\udc7f\udcff\\udd00\\udfff"
    assert shown.encode("utf-8", "surrogateescape").endswith(b"\xff\\udd00\\udfff")


@given(st.text())
def test_no_control_is_left_in_any_text(text: str) -> None:
    assert not any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in printable(text) if letter != "\t")
    assert printable_lines(text).count("\n") == text.count("\n")


@given(st.text(st.characters(categories=["Cs", "Cc", "Lu"]) | st.sampled_from("\udcc2\udc9b\udce2\udc80\udcae")))
def test_surrogates_are_bytes_of_a_name_or_escaped(text: str) -> None:
    for shown in (printable(text), printable_json(json.dumps(text, ensure_ascii=False))):
        seen = shown.encode(errors="surrogateescape").decode(errors="surrogateescape")  # as a terminal decodes it
        assert not CONTROLS.search(seen.replace("\t", ""))
    said = json.loads(printable_json(json.dumps(text, ensure_ascii=False)))
    assert said.encode("utf-16", "surrogatepass") == text.encode("utf-16", "surrogatepass")  # to JSON a pair is one


def test_a_name_that_is_no_utf8_is_printed_as_its_bytes() -> None:
    name = b"caf\xe9.png".decode(errors="surrogateescape")
    assert printable(name) == printable_json(name) == name
    assert printable("\ud800") == printable_json("\ud800") == "\\ud800"
    assert printable("\udcc2\udc9b2J") == "\\x9b2J"


FOREIGN = "a\x1b[31m\rforged: line\n\u202egnp.exe\x9b2J"


def test_every_way_of_output_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    output.set_up(quiet=False)
    output.say(FOREIGN)
    output.warn(FOREIGN, FOREIGN)
    output.fail(DiffpipeError(FOREIGN, FOREIGN))
    output.result(FOREIGN)
    output.table(("name",), [(FOREIGN,)])
    output.result_json({FOREIGN: FOREIGN})
    shown = capsys.readouterr()
    assert not any(letter in shown.out + shown.err for letter in "\x1b\r\u202e\x9b")
    assert len(shown.err.splitlines()) == 5
    assert len(shown.out.splitlines()) == 4
    assert json.loads(shown.out.splitlines()[-1]) == {FOREIGN: FOREIGN}


# Modules that print by themselves, and what: through `printable`, or nothing that comes from elsewhere.
PRINTING = {
    "cli/output.py": 6,
    "catalog/plugins.py": 1,  # below the command line
    "sources/download.py": 1,
    "__main__.py": 1,  # "interrupted"
    "engine/placement/devices.py": 1,  # JSON for another process
}


def test_of_a_line_that_is_too_long_to_read_the_ends_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    output.fail(DiffpipeError("a" * 100_000 + "b", "x" * output.LONGEST))
    wrong, hint = capsys.readouterr().err.splitlines()
    assert wrong.startswith("error: aaa")
    assert wrong.endswith("ab")
    assert "characters" in wrong
    assert max(len(wrong), len(hint)) < output.LONGEST + 100


def test_nothing_prints_around_it() -> None:
    package = Path(diffpipe.__file__).parent
    found = {str(path.relative_to(package)): prints(path) for path in package.rglob("*.py")}
    assert {name: count for name, count in found.items() if count} == PRINTING


def prints(path: Path) -> int:
    """How often a module prints, or writes to the standard streams."""
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    named = [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]
    wrote = [call for call in calls if isinstance(call, ast.Attribute) and call.attr in ("write", "writelines", "echo")]
    return len(named) + sum(ast.unparse(call.value) in ("sys.stdout", "sys.stderr", "typer") for call in wrote)
