"""Prompt files: what is read, what is refused, and where the fault is said to be."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from every_flag import FLAGS, NAMES
from hypothesis import example, given
from hypothesis import strategies as st

from diffpipe.batch import prompt_files
from diffpipe.batch.argument_values import OWN
from diffpipe.batch.prompt_files import Row, rows, typed
from diffpipe.core.errors import UsageError


def read(text: str | bytes, form: str | None = None) -> list[dict[str, Any]]:
    """The typed values of a file; the first fault is raised."""
    raw = text.encode() if isinstance(text, str) else text
    stream = io.TextIOWrapper(io.BytesIO(raw), "utf-8", errors="surrogateescape", newline="")
    found = rows(stream, "p", form, NAMES | OWN.keys())
    return [typed(row, FLAGS, NAMES | OWN.keys()) for row in found]


def fault(text: str | bytes, form: str | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        read(text, form)
    assert caught.value.hint
    return caught.value.message


# Text


@pytest.mark.parametrize(
    "text",
    [
        "a fox\n# no\n\n  a cat  \n",
        "a fox\r\n#no\r\n   \r\na cat",
        "a fox\r\ra cat\r",
        "\ufeffa fox\na cat",
        "\ufeff# only a comment\na fox\na cat",
    ],
)
def test_a_prompt_a_line(text: str) -> None:
    assert read(text) == [{"prompt": "a fox"}, {"prompt": "a cat"}]
    assert read(text, "text") == [{"prompt": "a fox"}, {"prompt": "a cat"}]


def test_lines_are_counted_as_an_editor_does() -> None:
    found = list(rows(iter(["\n", "# x\n", "a\n", "\n", "b"]), "p.txt", "text", NAMES))
    assert [(row.where, row.number) for row in found] == [("p.txt line 3", 3), ("p.txt line 5", 5)]


def test_a_row_comes_before_the_next_line_is_read() -> None:
    taken = []

    def lines() -> Iterator[str]:
        for text in ("\n", "a\n", "b\n", "c\n"):
            taken.append(text)
            yield text

    found = rows(lines(), "p", None, NAMES)
    assert next(found).values == {"prompt": "a"}
    assert taken == ["\n", "a\n"]


# JSON lines


def test_json_lines_are_told_by_their_brace() -> None:
    first, second = (
        '{"prompt": "a", "width": 64, "seed": 7}',
        '{"prompt": "b", "guidance-scale": 2, "extra": {"a": [1]}}',
    )
    text = f"\n{first}\n{second}"
    expected = [
        {"prompt": "a", "width": 64, "seed": 7},
        {"prompt": "b", "guidance_scale": 2, "extra": {"a": [1]}},
    ]
    assert read(text) == expected
    assert read("\ufeff" + text, "jsonl") == expected
    assert read("\ufeff" + text.lstrip()) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"', "p line 2, column 15: it is no JSON: Expecting ',' delimiter"),
        ("a fox", "p line 2, column 1: it is no JSON: Expecting value"),
        ("[1]", "p line 2, column 1: a line must be a JSON object"),
        ('{"width": NaN}', "p line 2, column 1: it is no JSON: NaN is no number"),
        ('{"width": 1e999}', "p line 2, column 1: it is no JSON: 1e999 is too large"),
        ("[" * 100_000, "p line 2, column 1: it is nested too deeply"),
        ('{"widht": 1}', "p line 2, column widht: the pipeline takes no 'widht'"),
        ('{"width": "64"}', "p line 2, column width: '64' is no whole number"),
        ('{"width": 64.5}', "p line 2, column width: 64.5 is no whole number"),
        ('{"width": true}', "p line 2, column width: True is no whole number"),
        ('{"width": [64]}', "p line 2, column width: it takes one value, not a list"),
        ('{"prompt": 3}', "p line 2, column prompt: 3 is no text"),
        ('{"image": {"a": 1}}', "p line 2, column image: {'a': 1} is no file name"),
        ('{"mode": "slow"}', "p line 2, column mode: 'slow' is none of fast, fine"),
        ('{"use-mask": 1}', "p line 2, column use-mask: 1 is no true or false"),
        ('{"sigmas": [1, "x"]}', "p line 2, column sigmas: 'x' is no number"),
        ('{"guidance-scale": 1, "guidance_scale": 2}', "p line 2, column guidance_scale: it is there twice"),
        ('{"seed": "7"}', "p line 2, column seed: '7' is no whole number"),
    ],
)
def test_faults_of_a_json_line(line: str, message: str) -> None:
    assert fault('{"prompt": "fine"}\n' + line, "jsonl") == message


def test_null_is_not_given() -> None:
    assert read('{"prompt": "a", "width": null}') == [{"prompt": "a"}]


# CSV


@pytest.mark.parametrize(
    "text",
    [
        'prompt,guidance-scale,seed\n"a, b",2,7\n"c\nd",,\n',
        'prompt;guidance_scale;seed\r\n"a, b";2;7\r\n"c\nd";;\r\n',
        "\ufeff" + 'prompt\tguidance scale\tseed\n"a, b"\t2\t7\n"c\nd"\n'.replace(" scale", "-scale"),
        '\n"prompt", "guidance_scale", "seed"\n"a, b", "2", "7"\n\n"c\nd",,\n',
        'prompt,guidance_scale,seed,\n"a, b",2,7,\n"c\nd",,,\n',
    ],
    ids=["comma", "semicolon and CRLF", "tab and BOM", "spaces and blank lines", "a column without a name"],
)
def test_dialects(text: str) -> None:
    assert read(text, "csv") == [{"prompt": "a, b", "guidance_scale": 2.0, "seed": 7}, {"prompt": "c\nd"}]


def test_cells_are_typed_by_the_flags() -> None:
    header = "prompt,width,guidance_scale,sigmas,use_mask,mode,image,extra,unflagged,negative_prompt"
    cells = 'x,64,2.5,"[1, 0.5]",yes,fine,"[""a.png"", ""b.png""]","{""a"": 1}",3,[not JSON'
    assert read(f"{header}\n{cells}\n", "csv") == [
        {
            "prompt": "x", "width": 64, "guidance_scale": 2.5, "sigmas": [1, 0.5], "use_mask": True, "mode": "fine",
            "image": ["a.png", "b.png"], "extra": {"a": 1}, "unflagged": 3, "negative_prompt": "[not JSON",
        }
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,widht\na,1\n", "p line 1, column 2: the pipeline takes no 'widht'"),
        ("prompt,seed,prompt\n", "p line 1, column 3: 'prompt' is there twice"),
        ("prompt,guidance-scale,guidance_scale\n", "p line 1, column 3: 'guidance_scale' is there twice"),
        ("prompt,width\na,1\nb,wide\n", "p line 3, column width: 'wide' is no whole number"),
        ('prompt,width\n"a\nb",1\nb,wide\n', "p line 4, column width: 'wide' is no whole number"),
        ("prompt,width\na,1.5\n", "p line 2, column width: '1.5' is no whole number"),
        ("prompt,guidance_scale\na,nan\n", "p line 2, column guidance_scale: 'nan' is no number"),
        ("prompt,use_mask\na,maybe\n", "p line 2, column use_mask: 'maybe' is neither true nor false"),
        ("prompt,extra\na,{\n", "p line 2, column extra: column 2: it is no JSON: Expecting property name enclosed"),
        ("prompt,seed\na fox, red,7\n", "p line 2, column 3: '7' stands under no name"),
        ('prompt,seed\n"a" b,7\n', "p line 2: ',' expected after '\"'"),
        ('prompt,seed\n"a,7\nb,8\n', "p line 2: unexpected end of data"),
        ("width\n" + "9" * 5000, "p line 2, column width: '99999"),
    ],
)
def test_faults_of_a_csv_file(text: str, message: str) -> None:
    assert fault(text, "csv").startswith(message)


def test_a_row_that_is_broken_does_not_end_the_file() -> None:
    text = 'prompt,seed\n"a" b,7\nc,8\n'
    broken, sound = rows(iter(text.splitlines(keepends=True)), "p", "csv", NAMES | OWN.keys())
    assert broken.error is not None
    assert (sound.where, dict(sound.values)) == ("p line 3", {"prompt": "c", "seed": "8"})


@pytest.mark.parametrize("form", ["text", "csv", "jsonl"])
def test_what_is_no_utf8_is_refused_with_its_line(form: str) -> None:
    text = {"text": b"ok\na \xff b\n", "csv": b"prompt\na \xff b\n", "jsonl": b'{}\n{"prompt": "\xff"}\n'}[form]
    assert fault(text, form) == "p line 2, column 'prompt': it is not valid UTF-8"


POWERSHELL = "a fox\r\nein Fähnlein\r\n"


@pytest.mark.parametrize("form", [None, "text", "jsonl", "csv"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf16_is_refused_by_its_name(encoding: str, form: str | None) -> None:
    for text in (POWERSHELL, "\ufeff" + POWERSHELL, '{"prompt": "a fox"}\n'):
        assert fault(text.encode(encoding), form) == "p is UTF-16, not UTF-8"


@pytest.mark.parametrize(
    "raw",
    [
        b"\xef\xbb\xbf" + POWERSHELL.encode(),  # Notepad
        POWERSHELL.replace("\r\n", "\r").encode(),  # old Mac
        POWERSHELL.replace("\r\n", "\n").encode(),
        b"\xef\xbb\xbfprompt\r\na fox\r\nein F\xc3\xa4hnlein\r\n",  # Excel's CSV UTF-8
        b'\xef\xbb\xbf{"prompt": "a fox"}\r\n{"prompt": "ein F\\u00e4hnlein"}\r\n',
    ],
)
def test_utf8_of_any_editor_is_read(raw: bytes) -> None:
    form = "csv" if b"prompt\r" in raw else None
    assert read(raw, form) == [{"prompt": "a fox"}, {"prompt": "ein Fähnlein"}]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "mac-roman", "cp437"])
@pytest.mark.parametrize("form", ["text", "csv"])
def test_the_line_of_another_encoding_is_named(encoding: str, form: str) -> None:
    head = "prompt\n" if form == "csv" else "a fox\n"
    assert fault((head + "ein Fähnlein\n").encode(encoding), form) == "p line 2, column 'prompt': it is not valid UTF-8"


@pytest.mark.parametrize(
    ("raw", "form"),
    [
        (b"a fox\na cat\0a dog\0\n", "text"),  # find -print0
        (b"prompt\na cat\0\n", "csv"),
        (b'{"prompt": "a fox"}\n{"prompt": "a \\u0000 cat"}\n', "jsonl"),
    ],
)
def test_nul_characters_are_refused(raw: bytes, form: str) -> None:
    assert fault(raw, form) == "p line 2, column 'prompt': it has a NUL character in it"


@pytest.mark.parametrize("form", ["text", "csv", "jsonl", None])
def test_an_empty_file_has_no_rows(form: str | None) -> None:
    assert read("", form) == []
    assert read("\n \n", form) == []


CELL = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\ufeff\0"), max_size=20)


@given(
    values=st.lists(st.tuples(CELL, st.integers(), st.text("ab ,;\t\"'\n\r", max_size=9)), max_size=5),
    delimiter=st.sampled_from(",;\t"),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    mark=st.sampled_from(["", "\ufeff"]),
)
def test_what_a_csv_writer_writes_is_read_again(
    values: list[tuple[str, int, str]], delimiter: str, end: str, quoting: Any, mark: str
) -> None:
    if end == "\n" and quoting == csv.QUOTE_MINIMAL:  # Python's writer leaves a lone \r bare then
        values = [(a.replace("\r", ""), b, c.replace("\r", "")) for a, b, c in values]
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerows([("prompt", "seed", "id"), *values])
    expected = [
        {name: value for name, value in (("prompt", a.strip()), ("seed", b), ("id", c.strip())) if value != ""}
        for a, b, c in values
    ]
    assert read(mark + text.getvalue(), "csv") == expected


@given(
    raw=st.binary(max_size=200) | st.text(max_size=200).map(str.encode),
    form=st.sampled_from(["text", "jsonl", "csv", None]),
)
@example(raw=b'{"prompt": "\\ud800"}', form=None)
@example(raw=b"prompt\n\x00\n", form="csv")
@example(raw=b'"', form="csv")
@example(raw=b'prompt\n"\r', form="csv")
def test_whatever_a_file_holds_it_is_read_or_refused(raw: bytes, form: str | None) -> None:
    stream = io.TextIOWrapper(io.BytesIO(raw), "utf-8", errors="surrogateescape", newline="")
    try:
        found = list(rows(stream, "p", form, NAMES | OWN.keys()))
    except UsageError:  # a header that cannot be used; of any other kind the test fails
        return
    for row in found:
        assert 1 <= row.number <= raw.count(b"\n") + raw.count(b"\r") + 1
        with suppress(UsageError):
            assert set(typed(row, FLAGS, NAMES | OWN.keys())) <= NAMES | OWN.keys()


def test_an_unused_row_is_empty() -> None:
    assert typed(Row(), FLAGS, NAMES) == {}


@pytest.mark.parametrize("form", ["text", "jsonl", "csv", None])
def test_a_line_without_end_is_refused_and_not_read_on(form: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_files, "LONGEST_LINE", 100)
    stream = io.StringIO("prompt\n" + "x" * 100_000)
    with pytest.raises(UsageError, match="p line 2 has more than 100 characters"):
        list(prompt_files.rows(stream, "p", form, {"prompt"}))
    assert stream.tell() <= 7 + 101


def test_a_line_as_long_as_may_be_is_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_files, "LONGEST_LINE", 100)
    (row,) = prompt_files.rows(io.StringIO("x" * 99 + "\n"), "p", "text", {"prompt"})
    assert row.values == {"prompt": "x" * 99}
