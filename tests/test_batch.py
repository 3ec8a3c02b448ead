"""Requests from call arguments: seeds, ranges, and where results go."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from diffpipe.batch import FIELDS, FORMATS, MAX_SEED, MOST, Outputs, check_template, checked, fill, requests, safe_name
from diffpipe.errors import DiffpipeError, UsageError
from diffpipe.specs import Flag

KEY = "0123456789ab" + "c" * 52


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def paths(outputs: Outputs, count: int = 1, seed: int | None = 7, **arguments: Any) -> list[str]:
    return [path for made in requests(arguments, seed, count, outputs, "flux", KEY) for path in made.paths]


# Seeds


def test_seeds_count_up() -> None:
    made = requests({"prompt": "x"}, 7, 3, Outputs(), "flux", KEY)
    assert [(request.index, request.seed, request.paths) for request in made] == [
        (0, 7, ("flux-7.png",)),
        (1, 8, ("flux-8.png",)),
        (2, 9, ("flux-9.png",)),
    ]


def test_fresh_seeds_are_random_and_count_up() -> None:
    first, second = (requests({}, None, 2, Outputs(), "flux", KEY) for _ in range(2))
    assert [request.seed - first[0].seed for request in first] == [0, 1]
    assert first[0].seed != second[0].seed
    assert 0 <= first[0].seed < 2**32


@pytest.mark.parametrize(("seed", "count"), [(-1, 1), (MAX_SEED + 1, 1), (MAX_SEED, 2), (10**400, 1)])
def test_seeds_out_of_range(seed: int, count: int) -> None:
    with pytest.raises(UsageError, match=f"--seed {seed} is out of range"):
        requests({}, seed, count, Outputs(), "flux", KEY)


def test_the_last_seed_there_is() -> None:
    assert requests({}, MAX_SEED - 1, 2, Outputs(), "flux", KEY)[1].seed == MAX_SEED


@pytest.mark.parametrize("count", [0, -3, MOST + 1, 2**40])
@pytest.mark.parametrize("seed", [None, 1])
def test_counts_out_of_range(count: int, seed: int | None) -> None:
    with pytest.raises(UsageError, match=f"--count {count} is out of range"):
        requests({}, seed, count, Outputs(), "flux", KEY)


def test_several_pictures_a_call_share_its_seed() -> None:
    made = requests({"num_images_per_prompt": 2}, 1, 2, Outputs(), "flux", KEY)
    assert [(request.seed, request.paths) for request in made] == [
        (1, ("flux-1.png", "flux-1-2.png")),
        (2, ("flux-2.png", "flux-2-2.png")),
    ]


# Templates


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
        ("{seed:zz}", "--output: Unknown format code 'z' for object of type 'int'"),
        ("{seed:c}", "--output: Python int too large to convert to C long"),
        ("{seed:{index}}", "--output: Invalid format specifier"),
        ("{seed:99999999}", "--output: 99999999 is too wide for a file name"),
        ("{prompt:d}", "--output: Unknown format code 'd' for object of type 'str'"),
        ("{", "--output: Single '{' encountered in format string"),
        ("x}", "--output: Single '}' encountered in format string"),
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


def test_an_id_tells_items_apart_and_is_the_same_again() -> None:
    one, two = paths(Outputs("{id}.png"), count=2, prompt="x")
    assert one != two
    assert paths(Outputs("{id}.png"), count=2, prompt="x") == [one, two]
    assert paths(Outputs("{id}.png"), prompt="y") != [one]
    assert re.fullmatch(r"[0-9a-f]{12}\.png", one)


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


# Ranges


def flag(kind: Any = "number", **fields: Any) -> Flag:
    return Flag(name="value", kind=kind, **fields)


@pytest.mark.parametrize(
    ("known", "value", "message", "hint"),
    [
        (flag(minimum=0, maximum=1), 1.5, "--value 1.5 is out of range", "give from 0 to 1"),
        (flag(minimum=0, maximum=1), -0.1, "--value -0.1 is out of range", "give from 0 to 1"),
        (flag(minimum=1), 0, "--value 0 is out of range", "give at least 1"),
        (flag(maximum=512), 513, "--value 513 is out of range", "give at most 512"),
        (flag(), float("nan"), "--value nan is out of range", "give a number"),
        (flag(), float("inf"), "--value inf is out of range", "give a number"),
        (flag(many=True), [1.0, float("-inf")], "--value -inf is out of range", "give a number"),
        (flag("integer", multiple_of=16), 33, "--value 33 is no multiple of 16", "the nearest: 32 or 48; --fit takes it by itself"),
        (flag("integer", multiple_of=16), 1, "--value 1 is no multiple of 16", "the nearest: 16; --fit takes it by itself"),
        (flag("text", required=True), "", "--value is missing", "give it"),
        (flag("text", required=True, help="A."), None, "--value is missing", "this pipeline needs it: A."),
        (flag("image", required=True, many=True), [], "--value is missing", "give it"),
    ],
)  # fmt: skip
def test_values_that_are_refused(known: Flag, value: Any, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        checked({"value": known}, {"value": value})
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_what_is_empty_is_left_out() -> None:
    flags = {"a": Flag("a", "text"), "b": Flag("b", "image", many=True), "c": Flag("c", "boolean")}
    assert checked(flags, {"a": None, "b": [], "c": False, "d": 0}) == {"c": False, "d": 0}


def test_a_default_out_of_range_is_not_the_users_fault_but_is_found() -> None:
    with pytest.raises(UsageError, match="--value 0 is out of range"):
        checked({"value": flag(default=0, minimum=1)}, {})


def test_settings_of_a_processor_must_be_an_object() -> None:
    flags = {"attention_kwargs": Flag("attention_kwargs", "json"), "boxes": Flag("boxes", "json")}
    assert checked(flags, {"attention_kwargs": {"scale": 1}, "boxes": [[0, 1]]})
    with pytest.raises(UsageError, match="--attention-kwargs must be a JSON object"):
        checked(flags, {"attention_kwargs": [1]})


@given(
    value=st.integers() | st.floats(),
    low=st.integers(-9, 9),
    span=st.integers(0, 9),
    step=st.sampled_from([None, 8, 16]),
)
def test_a_checked_value_is_in_its_range(value: float, low: int, span: int, step: int | None) -> None:
    known = flag("integer" if step else "number", minimum=low, maximum=low + span, multiple_of=step)
    try:
        checked({"value": known}, {"value": value})
    except UsageError:
        assert not (low <= value <= low + span and (not step or value % step == 0))
    else:
        assert low <= value <= low + span
        assert not step or value % step == 0


# What cannot work is told before anything is loaded


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


def test_text_that_is_no_utf8_is_refused() -> None:
    with pytest.raises(UsageError, match="--prompt is not valid UTF-8"):
        checked({"prompt": Flag("prompt", "text")}, {"prompt": b"\xff bad".decode(errors="surrogateescape")})


@pytest.mark.parametrize(
    ("steps", "strength", "runs"), [(8, 0.0, False), (8, 0.1, True), (8, 0.125, True), (3, 1.0, True)]
)
def test_a_strength_that_leaves_no_step_is_refused(steps: int, strength: float, runs: bool) -> None:
    arguments = {"num_inference_steps": steps, "strength": strength}
    if runs:
        assert checked({}, arguments) == arguments
    else:
        with pytest.raises(UsageError, match="leaves none of 8 steps") as refused:
            checked({}, arguments)
        assert refused.value.hint == "give at least 0.125, which is one step"
