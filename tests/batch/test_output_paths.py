"""Where results go: templates, names that are safe, files that are there already."""

from __future__ import annotations

import os
import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from diffpipe.batch import output_paths
from diffpipe.batch.output_paths import (
    FIELDS,
    Outputs,
    check_template,
    fill,
    folder_of,
    safe_name,
    whole_template,
    within,
)
from diffpipe.core.counter import CompactCounter
from diffpipe.core.errors import DiffpipeError, UsageError
from diffpipe.core.flag import FORMATS, MAX_SEED

KEY = "0123456789ab" + "c" * 52


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def paths(outputs: Outputs, count: int = 1, prompt: str = "") -> list[str]:
    """The paths of `count` items of one result each, with the seeds 7, 8, …"""
    taken = CompactCounter()
    return [
        path
        for number in range(count)
        for path in output_paths.paths(
            whole_template(outputs),
            {"name": "flux", "key": KEY[:12], "id": "abc", "seed": 7 + number, "prompt": prompt},
            [number + 1],
            outputs,
            taken,
            (),
        )
    ]


@pytest.mark.parametrize(
    ("template", "format_", "expected"),
    [
        (None, None, "flux-7.png"),
        (None, "webp", "flux-7.webp"),
        ("x", None, "x.png"),
        ("x.jpg", None, "x.jpg"),
        ("x.JPG", None, "x.JPG"),
        ("x.jpeg", None, "x.jpeg"),
        ("x", "jpg", "x.jpg"),
        ("x.png", "png", "x.png"),
        ("new/", None, "new/flux-7.png"),
        ("{key}/{seed:05d}/{name}", None, "0123456789ab/00007/flux.png"),
        ("{index:03d}.{ext}", "webp", "001.webp"),
        ("{prompt}", None, "a-red-fox.png"),
        ("{prompt:.3}", None, "a-r.png"),
        ("{prompt:.3}.jpg", None, "a-r.jpg"),
        ("{ext}/{seed}", None, "png/7.png"),
        ("v1.5-{seed}", None, "v1.5-7.png"),
        ("v1.5/x", None, "v1.5/x.png"),
        ("../up.png", None, "../up.png"),
        ("{{x}}.png", None, "{x}.png"),
        ("aux/x.png", None, "aux/x.png"),
    ],
)
def test_where_a_picture_goes(template: str | None, format_: str | None, expected: str) -> None:
    assert paths(Outputs(template, format_), prompt="a red fox") == [expected]


def test_a_folder_that_is_there_needs_no_slash(work: Path) -> None:
    (work / "out.d").mkdir()
    assert paths(Outputs("out.d")) == ["out.d/flux-7.png"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{foo}", "--output: there is no field {foo}"),
        ("{}", "--output: there is no field {}"),
        ("{0}", "--output: there is no field {0}"),
        ("{name.__class__}", "--output: there is no field {name.__class__}"),
        ("{name[0]}", "--output: there is no field {name[0]}"),
        ("{name!r}", "--output: there is no field {name}"),
        ("{seed:zz}", "--output: {seed:zz} is no way to write the seed"),
        ("{seed:c}", "--output: {seed:c} is no way to write the seed"),
        ("{seed:{index}}", "--output: {seed:{index}} is no way to write the seed"),
        ("{seed:99999999}", "--output: 99999999 is too wide for a file name"),
        ("{prompt:d}", "--output: {prompt:d} is no way to write the prompt"),
        ("{", "--output: a brace in '{' has no partner"),
        ("x}", "--output: a brace in 'x}' has no partner"),
        ("", "--output is no path"),
        ("  ", "--output is no path"),
        ("x\0y", "--output is no path"),
        ("x.gif", "pictures are not written as .gif"),
        (".png", "--output: .png is no name for a picture"),
        ("out/.{ext}", "--output: .png is no name for a picture"),
    ],
)
def test_templates_that_are_refused(template: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        paths(Outputs(template))
    assert caught.value.message.startswith(message)
    assert caught.value.hint


def test_two_formats_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--output ends in \.png but --format is jpg"):
        paths(Outputs("x.png", "jpg"))


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("a red fox", "a-red-fox"),
        ("../../etc/passwd", "etc-passwd"),
        ("C:\\Windows", "C-Windows"),
        ("...", ""),
        (" .hidden. ", "hidden"),
        ("a\0b\nc\u202ed", "a-b-c-d"),
        ("e\u0301", "é"),
        ("狐" * 100, "狐" * 66),  # 3 bytes each, 200 at most
        ("\udcff\ud800", ""),
    ],
)
def test_text_in_a_file_name(text: str, safe: str) -> None:
    assert safe_name(text) == safe


@pytest.mark.parametrize(
    ("template", "prompt", "expected"),
    [
        ("{prompt}.png", "???", "_.png"),
        ("{prompt}/{seed}.png", "..", "_/7.png"),
        ("{prompt}/{seed}.png", "/", "_/7.png"),
        ("{prompt}.png", "con", "_con.png"),
        ("{prompt}/x.png", "NUL", "_NUL/x.png"),
        ("com{index}.png", "", "_com1.png"),
        ("out/{prompt}.png", "x" * 300, "out/" + "x" * 196 + ".png"),
    ],
)
def test_prompts_that_would_do_harm(template: str, prompt: str, expected: str) -> None:
    assert paths(Outputs(template), prompt=prompt) == [expected]


def test_files_that_are_there(work: Path) -> None:
    for name in ("flux-7.png", "flux-7-2.png", "mine.png"):
        (work / name).touch()
    (work / "link.png").symlink_to("nowhere")
    assert paths(Outputs()) == ["flux-7-3.png"]
    assert paths(Outputs(overwrite=True)) == ["flux-7.png"]
    assert paths(Outputs("mine.png", overwrite=True)) == ["mine.png"]
    for name in ("mine.png", "link.png"):
        with pytest.raises(UsageError, match=f"{name} exists already") as caught:
            paths(Outputs(name))
        assert caught.value.hint == "choose another --output, or pass --overwrite"


@pytest.mark.parametrize("url", ["simplecache::http://x/y.png", "zip::file://x", "file://"])
def test_a_url_that_no_file_can_have_is_no_folder_of_that_name(url: str) -> None:
    with pytest.raises(UsageError, match="--output"):
        whole_template(Outputs(url))


@pytest.mark.parametrize("stream", ["-", "/dev/null", "pipe"])
def test_a_stream_gets_no_file_beside_it(work: Path, stream: str) -> None:
    os.mkfifo(work / "pipe")
    with pytest.raises(UsageError) as caught:
        whole_template(Outputs(stream))
    assert "name a file" in caught.value.hint


@pytest.mark.parametrize("overwrite", [False, True])
def test_pictures_of_one_run_never_share_a_file(work: Path, overwrite: bool) -> None:
    (work / "flux-1.png").touch()
    assert paths(Outputs("x.png", overwrite=overwrite), count=3) == ["x.png", "x-2.png", "x-3.png"]
    many = paths(Outputs("{name}.png", overwrite=overwrite), count=2000)
    assert len(set(many)) == 2000


def test_names_that_meet_by_counting_up() -> None:
    """x-2 is both what the second x becomes and what a prompt asks for."""
    made = [paths(Outputs("{prompt}.png"), count=3, prompt=prompt) for prompt in ("x", "x-2")]
    assert made == [["x.png", "x-2.png", "x-3.png"], ["x-2.png", "x-2-2.png", "x-2-3.png"]]


FIELD = st.sampled_from([f"{{{name}}}" for name in FIELDS] + ["{seed:08d}", "{index:>4}", "{prompt:.20}", "{id:.6}"])
LITERAL = st.text(string.ascii_letters + "-_. ", max_size=5)
TEMPLATES = st.lists(st.tuples(LITERAL, FIELD, LITERAL), min_size=1, max_size=4).map(
    lambda parts: "".join(map("".join, parts))
)
TEXT = st.text(max_size=300) | st.sampled_from(
    ["..", "/", "con", "a/b", "\\", "nul.txt", "~", "-", "\ud800", "x" * 999]
)
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{digit}" for port in ("com", "lpt") for digit in range(1, 10))}


@given(
    template=TEMPLATES,
    folder=st.sampled_from(["", "out/", "../up/", "/abs/"]),
    prompt=TEXT,
    seed=st.integers(0, MAX_SEED),
)
@example(template="{prompt}", folder="", prompt="", seed=0)
@example(template="{prompt}.{prompt}", folder="out/", prompt=".", seed=0)
def test_no_prompt_leaves_the_folder_or_breaks_a_name(template: str, folder: str, prompt: str, seed: int) -> None:
    values: Mapping[str, Any] = {
        "name": "flux", "key": KEY[:12], "id": "f" * 12, "index": 1, "seed": seed, "prompt": prompt, "ext": "png",
    }  # fmt: skip
    check_template(folder + template)
    path = fill(folder + template, values)
    assert path.startswith(folder)
    name = path.removeprefix(folder)
    assert "/" not in name
    assert "\\" not in name
    assert name not in ("", ".", "..")
    assert len(name.encode()) <= 255
    assert name.partition(".")[0].lower() not in RESERVED
    assert not re.search(r"[\x00-\x1f\x7f<>:\"|?*]", name)


@given(template=st.text(max_size=40) | st.text("{}:!.sedpromtx/0", max_size=30), prompt=TEXT, count=st.integers(1, 3))
@example(template="x\udcff.png", prompt="\udcff", count=2)
@example(template="{seed:n}", prompt="", count=1)
@example(template="n" * 300 + "/x", prompt="", count=1)
@example(template="{seed:%}", prompt="", count=1)
def test_any_template_gives_paths_or_a_usage_error(template: str, prompt: str, count: int) -> None:
    try:
        made = paths(Outputs(template), count=count, prompt=prompt)
    except DiffpipeError:  # of any other kind the test fails
        return
    assert len(set(made)) == count
    assert all(Path(path).suffix[1:].lower() in FORMATS["image"] for path in made)


def test_a_place_where_no_file_can_be_is_refused(work: Path) -> None:
    (work / "file").write_bytes(b"")
    (work / "folder.png").mkdir()
    for template, says in (
        ("file/x.png", "is a file, not a folder"),
        ("folder.png/{name}.png/" + "x" * 300 + ".png", "more than 255 bytes"),
        ("a\nb.png", "is no path"),
    ):
        with pytest.raises(UsageError, match=says):
            paths(Outputs(template))
    assert paths(Outputs("folder.png")) == ["folder.png/flux-7.png"]


# The folder of all results


@pytest.mark.parametrize(
    ("template", "folder"),
    [
        (None, "."),
        ("x.png", "."),
        ("out/", "out"),
        ("out/a/{seed}/x.png", "out/a"),
        ("a{{b}}/x.png", "a{b}"),
        ("{prompt}/x.png", "."),
        ("/made/x/{id}.png", "/made/x"),
        ("/{id}.png", "/"),
        ("../up/x.png", "../up"),
    ],
)
def test_the_folder_of_all_results(template: str | None, folder: str) -> None:
    assert folder_of(Outputs(template)) == Path(folder)


@given(template=TEXT | TEMPLATES, folder=st.sampled_from(["out/", "{{o}}/", None]), prompt=TEXT)
@example(template="a/../../x", folder=None, prompt="")
@example(template="..\\x", folder="out/", prompt="")
@example(template="{prompt}/../x", folder="out/", prompt="..")
def test_an_items_own_template_stays_in_the_folder(template: str, folder: str | None, prompt: str) -> None:
    outputs = Outputs(folder)
    try:
        (path,) = paths(within(outputs, template), prompt=prompt)
    except DiffpipeError:
        return
    inside = Path(folder_of(outputs)).absolute()
    assert Path(os.path.abspath(path)).is_relative_to(inside)
    assert Path(path).suffix[1:].lower() in FORMATS["image"]


def test_folders_of_frames_are_no_ending() -> None:
    with pytest.raises(UsageError) as caught:
        whole_template(Outputs("x.avi", kind="video"))
    assert (caught.value.message, caught.value.hint) == (
        "videos are not written as .avi",
        "use .mp4, .webm, .gif or a folder of pictures (--format frames)",
    )
