"""Batches as a user runs them, on the demo model: files, streams, crashes, failures, sweeps, presets, the journal."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, Done, Warm
from fork_server import Running
from PIL import Image, ImageChops

SMALL = ("--width", 64, "--height", 64, "--num-inference-steps", 1)
SUBJECTS = ("fox", "cat", "panda", "owl", "frog", "bear", "pig", "koala")


@pytest.fixture(scope="module")
def demo(warm: Warm) -> None:
    """The pipelines `demo` and `demo-img2img` in the module's cache."""
    warm("build", "demo", check=True)
    warm("build", "demo", "--type", "img2img", check=True)


@pytest.fixture
def work(demo: None, tmp_path: Path) -> Path:
    return tmp_path


def results(done: Done) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def journal(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal that end an item."""
    read = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in read if line.get("status") in ("done", "failed")]


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def errors(done: Done) -> list[str]:
    return [line.removeprefix("error: ") for line in done.stderr.splitlines() if line.startswith("error: ")]


# Files


def test_a_file_of_each_format_makes_the_same_pictures(warm: Warm, work: Path) -> None:
    rows = [{"id": name, "prompt": f"a {name}, red", "seed": number} for number, name in enumerate(SUBJECTS[:3])]
    (work / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cells = "".join(f'{row["id"]};"{row["prompt"]}";{row["seed"]}\r\n' for row in rows)
    (work / "p.csv").write_text("\ufeffid;prompt;seed\r\n" + cells, newline="")
    (work / "p.txt").write_text("# animals\n\n" + "".join(f"{row['prompt']}\n" for row in rows))
    made = {}
    for form in ("jsonl", "csv", "txt"):
        done = warm(
            "generate", "demo", "--prompts-from", f"p.{form}", *SMALL, "-o", f"{form}/", "--json", cwd=work, check=True
        )
        made[form] = results(done)
    assert [(one["id"], one["seed"], one["index"], one["path"]) for one in made["csv"]] == [
        (name, number, number + 1, f"csv/demo-{name}.png") for number, name in enumerate(SUBJECTS[:3])
    ]
    assert pictures(work / "csv") == pictures(work / "jsonl")
    assert len({one["seed"] for one in made["txt"]}) == 3
    assert set(made["txt"][0]) == {"id", "path", "seed", "index", "seconds", "warnings", "error", "width", "height"}
    lines = journal(work / "csv" / "demo.journal.jsonl")
    assert [(line["id"], line["status"], line["files"][0]["path"]) for line in lines] == [
        (name, "done", f"demo-{name}.png") for name in SUBJECTS[:3]
    ]


def test_an_item_does_not_depend_on_its_place_neighbours_or_on_being_alone(warm: Warm, work: Path) -> None:
    prompts = [f"a {name}" for name in SUBJECTS[:4]]
    orders = {"one": prompts, "two": prompts[::-1], "three": [prompts[2]]}
    for name, order in orders.items():
        (work / f"{name}.txt").write_text("\n".join(order))
        warm(
            "generate",
            "demo",
            "--prompts-from",
            f"{name}.txt",
            *SMALL,
            "--seed",
            5,
            "-o",
            f"{name}/",
            cwd=work,
            check=True,
        )
    warm("generate", "demo", "--prompt", prompts[2], *SMALL, "--seed", 5, "-o", "alone.png", cwd=work, check=True)
    one, two, three = (pictures(work / name) for name in orders)
    assert one == two
    assert len(set(one.values())) == 4
    assert three.items() <= one.items()
    assert [*three.values()] == [(work / "alone.png").read_bytes()]


def test_a_file_with_faults_makes_nothing_and_each_is_told(cli: Cli, work: Path) -> None:
    (work / "p.csv").write_text("prompt,width,seed\na fox,64,1\na cat,33,2\na dog,64,x\n")
    done = cli.light("generate", "demo", "--prompts-from", "p.csv", *SMALL, cwd=work)
    assert (done.returncode, done.stdout) == (2, "")
    assert errors(done) == [
        "p.csv line 3: --width 33 is no multiple of 16",
        "p.csv line 4, column seed: 'x' is no whole number",
        "p.csv: 2 items cannot be made, 1 can",
    ]
    assert [path.name for path in work.iterdir()] == ["p.csv"]


BAD = [
    {"id": "first", "prompt": "a fox", "image": "start.png"},
    {"id": "unreadable", "prompt": "a fox", "image": "broken.png"},
    {"id": "step", "prompt": "a fox", "image": "start.png", "joint_attention_kwargs": {"attention_mask": 3}},
    {"id": "argument", "prompt": "a fox", "image": "start.png", "width": 33},
    {"id": "last", "prompt": "a fox", "image": "start.png"},
]


@pytest.fixture
def bad(work: Path) -> Path:
    """A file of five items of which three fail, each in another way."""
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(work / "start.png")
    (work / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    (work / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in BAD))
    return work


def test_what_fails_costs_that_item_only(warm: Warm, bad: Path) -> None:
    run = ("generate", "demo-img2img", "--prompts-from", "p.jsonl", *SMALL, "--strength", 1, "-o", "out/", "--json")
    done = warm(*run, "--keep-going", cwd=bad)
    assert done.returncode == 7
    told = {one["id"]: one for one in results(done)}
    assert list(told) == [row["id"] for row in BAD]
    assert {name for name, one in told.items() if one["path"]} == {"first", "last"}
    assert set(pictures(bad / "out")) == {"demo-img2img-first.png", "demo-img2img-last.png"}
    assert told["unreadable"]["error"].startswith("--image: cannot read broken.png")
    assert told["step"]["error"].startswith("FluxImg2ImgPipeline failed: ")
    assert told["argument"]["error"] == "p.jsonl line 4: --width 33 is no multiple of 16"
    noted = {line["id"]: line["error"] for line in journal(bad / "out" / "demo-img2img.journal.jsonl")}
    assert noted == {name: one["error"] for name, one in told.items()}
    before = pictures(bad / "out")
    (bad / "broken.png").write_bytes((bad / "start.png").read_bytes())
    resumed = warm(*run, "--keep-going", "--resume", cwd=bad)
    assert (resumed.returncode, [one["id"] for one in results(resumed)]) == (7, ["argument"])
    assert "2 done before, 2 failed before (--retry-failed)" in resumed.stderr
    again = warm(*run, "--keep-going", "--retry-failed", cwd=bad)
    assert [(one["id"], bool(one["path"])) for one in results(again)] == [
        ("unreadable", True),
        ("step", False),
        ("argument", False),
    ]
    assert pictures(bad / "out").items() > before.items()


def test_failing_fast_stops_at_the_first(warm: Warm, bad: Path) -> None:
    (bad / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in BAD if row["id"] != "argument"))
    run = ("generate", "demo-img2img", "--prompts-from", "p.jsonl", *SMALL, "--strength", 1, "--json")
    done = warm(*run, "--fail-fast", cwd=bad)
    assert (done.returncode, [one["id"] for one in results(done)]) == (7, ["first", "unreadable"])


# Crashes


def start(cli: Cli, work: Path, *words: object, **streams: int) -> Running | subprocess.Popen[str]:
    return cli.begin(*words, cwd=work, **{"stdin": subprocess.PIPE, **streams})


def test_a_batch_that_is_killed_again_and_again_ends_as_one_that_was_not(cli: Cli, warm: Warm, work: Path) -> None:
    rows = [{"prompt": f"a {SUBJECTS[n % 8]}", **({"seed": n} if n % 3 else {})} for n in range(24)]
    (work / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = ("generate", "demo", "--prompts-from", "p.jsonl", *SMALL, "-o", "out/", "--resume")
    noise = random.Random(0)
    for goal in (3, 9, 17):
        with start(cli, work, *run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                path = work / "out" / "demo.journal.jsonl"
                if path.exists() and path.read_text().count('"done"') >= goal:
                    time.sleep(noise.random() / 20)
                    break
                time.sleep(0.002)
            process.kill()
        assert process.returncode == -signal.SIGKILL
    warm(*run, cwd=work, check=True)
    lines = journal(work / "out" / "demo.journal.jsonl")
    assert len(lines) == 24
    assert len({line["id"] for line in lines}) == 24
    assert {line["files"][0]["path"] for line in lines} == set(pictures(work / "out"))
    others = {path.name for path in (work / "out").iterdir()} - set(pictures(work / "out"))
    assert others == {"demo.journal.jsonl", ".demo.journal.jsonl.lock"}  # no part of a file

    # The same batch, uninterrupted: the seeds that were drawn are in the journal's first line.
    first = (work / "out" / "demo.journal.jsonl").read_text().splitlines()[0]
    (work / "whole").mkdir()
    (work / "whole" / "demo.journal.jsonl").write_text(first + "\n")
    warm(*(word if word != "out/" else "whole/" for word in run), cwd=work, check=True)
    assert pictures(work / "whole") == pictures(work / "out")

    after = pictures(work / "out")
    done = cli.light(*run, cwd=work)  # nothing to make: nothing is loaded
    assert (done.returncode, done.stdout, pictures(work / "out")) == (0, "", after)


def test_a_second_run_neither_overwrites_nor_repeats(cli: Cli, warm: Warm, work: Path) -> None:
    (work / "p.jsonl").write_text('{"prompt": "a fox", "seed": 1}\n{"prompt": "a cat", "seed": 2}\n')
    run = ("generate", "demo", "--prompts-from", "p.jsonl", *SMALL, "-o", "{prompt}.png")
    warm(*run, cwd=work, check=True)
    before = pictures(work)
    done = cli.light(*run, cwd=work)
    assert done.returncode == 2
    assert "was made already" in done.stderr
    assert warm(*run, "--keep-going", cwd=work).returncode == 7
    (work / "a-cat.png").unlink()
    (work / "p.jsonl").write_text('{"prompt": "a cat", "seed": 2}\n{"prompt": "a fox", "seed": 1}\n')
    assert warm(*run, "--resume", cwd=work, check=True).stdout == "a-cat.png\n"
    assert pictures(work) == before


def test_two_runs_of_one_journal_are_kept_apart(cli: Cli, work: Path) -> None:
    run = ("generate", "demo", "--prompts-from", "-", *SMALL)
    with start(cli, work, *run) as first:
        deadline = time.monotonic() + 60
        while not (work / "demo.journal.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        (work / "p.txt").write_text("a fox\n")
        second = cli.light("generate", "demo", "--prompts-from", "p.txt", *SMALL, cwd=work)
        assert (second.returncode, errors(second)) == (2, ["another run is writing demo.journal.jsonl"])
        out, _ = first.communicate()
        assert (first.returncode, out) == (0, "")


# Streams


def test_the_first_picture_is_made_before_the_last_line_arrives(cli: Cli, work: Path) -> None:
    with start(cli, work, "generate", "demo", "--prompts-from", "-", *SMALL, "--seed", 1, "--json") as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write("a fox\n")
        process.stdin.flush()
        first = json.loads(process.stdout.readline())
        assert (work / first["path"]).is_file()
        process.stdin.write("a cat\n\n# no\n")
        process.stdin.close()
        rest = process.stdout.read()
        assert process.wait() == 0
    assert len(rest.splitlines()) == 1
    assert len(pictures(work)) == 2


def test_a_reader_that_leaves_ends_it_quietly(cli: Cli, work: Path) -> None:
    (work / "p.txt").write_text("\n".join(f"a {name}" for name in SUBJECTS))
    with start(cli, work, "generate", "demo", "--prompts-from", "p.txt", *SMALL) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline().endswith(".png\n")
        process.stdout.close()
        told = process.stderr.read()
        process.wait(60)
    assert told == ""
    assert 1 <= len(pictures(work)) < 8
    lines = journal(work / "demo.journal.jsonl")
    assert {line["files"][0]["path"] for line in lines} == set(pictures(work))


def test_no_input_and_no_terminal_never_hang(cli: Cli, work: Path) -> None:
    run = [sys.executable, "-m", "diffpipe", "generate", "demo", "--prompts-from", "-", *map(str, SMALL)]
    given: dict[str, Any] = {
        "cwd": work, "env": cli.environment(), "capture_output": True, "text": True, "timeout": 60,
        "start_new_session": True,
    }  # fmt: skip
    closed = subprocess.run(["sh", "-c", 'exec "$@" <&-', "sh", *run], check=False, **given)
    assert (closed.returncode, closed.stderr.splitlines()[0]) == (
        2,
        "error: --prompts-from -: standard input is closed",
    )
    empty = subprocess.run(run, stdin=subprocess.DEVNULL, check=False, **given)
    assert (empty.returncode, empty.stdout) == (0, "")


def test_a_fault_in_a_stream_ends_it_after_what_came_before(cli: Cli, work: Path) -> None:
    run = ("generate", "demo", "--prompts-from", "-", *SMALL)
    done = cli(*run, cwd=work, stdin='{"prompt": "a fox"}\n{"prompt": "a cat", "width": 33}\n{"prompt": "a pig"}\n')
    assert (done.returncode, len(pictures(work))) == (2, 1)
    assert errors(done) == ["standard input line 2: --width 33 is no multiple of 16"]


# Listing


def test_a_dry_run_lists_and_makes_nothing(cli: Cli, work: Path) -> None:
    run = ("generate", "demo", "--prompt", "a fox", "--sweep", "guidance-scale=2,3.5", "--sweep", "seed=1..2", *SMALL)
    done = cli.light(*run, "-o", "{seed}-{id}.png", "--dry-run", "--json", cwd=work)
    assert (done.returncode, done.stderr) == (0, "4 items would be made\n")
    listed = results(done)
    assert [(one["seed"], one["arguments"]["guidance_scale"]) for one in listed] == [
        (1, 2.0),
        (2, 2.0),
        (1, 3.5),
        (2, 3.5),
    ]
    assert [one["path"] for one in listed] == [f"{one['seed']}-{one['id']}.png" for one in listed]
    plain = cli.light(*run, "--dry-run", cwd=work).stdout.splitlines()
    assert plain[2] == f"demo-{listed[2]['id']}.png\tseed=1\tguidance_scale=3.5\ta fox"
    assert list(work.iterdir()) == []


PEAK = """
import resource, sys
from diffpipe.cli.app import main
sys.argv[0] = "diffpipe"
try:
    main()
except SystemExit as stop:
    code = stop.code
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def everything(*folders: Path) -> dict[Path, tuple[int, bytes]]:
    """Every file with the time of its last change and what it holds; folders without content."""
    found = [path for folder in folders for path in sorted(folder.rglob("*"))]
    return {path: (path.stat().st_mtime_ns, b"" if path.is_dir() else path.read_bytes()) for path in found}


@pytest.mark.parametrize("more", [(), ("--resume",), ("--retry-failed",), ("--overwrite", "--json")])
def test_a_dry_run_changes_no_file_whatever_is_there(cli: Cli, work: Path, more: tuple[str, ...]) -> None:
    """A run that was killed has left half a line in its journal: the next one drops it, and a dry run does not."""
    (work / "p.txt").write_text("a fox\na cat\na panda\n")
    (work / "out").mkdir()
    key = json.loads(cli("pipelines", "show", "demo", "--json", check=True).stdout)["key"]
    header = json.dumps({"journal": 1, "pipeline": key, "seed": 5})
    (work / "out" / "demo.journal.jsonl").write_text(header + '\n{"id": "y", "item": "cd", "stat')
    before = everything(work, cli.home)
    words = ("--prompts-from", "p.txt", *SMALL, "-o", "out/", "--gallery", "shown", "--dry-run", *more)
    done = cli.light("generate", "demo", *words, cwd=work)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 3), done.stderr
    assert everything(work, cli.home) == before


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_stdout_that_lacks_characters_ends_nothing(cli: Cli, work: Path, more: tuple[str, ...]) -> None:
    run = ("generate", "demo", "--prompt", "a 🐼", *SMALL, "--seed", 1, "-o", "{prompt}.png", "--dry-run", *more)
    done = cli(*run, cwd=work, env={"PYTHONIOENCODING": "latin-1"}, check=True)
    path = json.loads(done.stdout)["path"] if more else done.stdout.split("\t")[0]
    assert path == ("a-🐼.png" if more else "a-\\U0001f43c.png")


def test_memory_hardly_grows_with_the_lines(cli: Cli, work: Path) -> None:
    """12 bytes a slot of each of two counters: 20,000 items take 1 MB; a list of them would take 30."""
    peaks = []
    for count in (10, 20_000):
        (work / "p.txt").write_text("".join(f"a fox of number {number}\n" for number in range(count)))
        words = [sys.executable, "-c", PEAK, "generate", "demo", "--prompts-from", "p.txt", "--dry-run", "-q"]
        done = subprocess.run(words, cwd=work, env=cli.environment(), capture_output=True, text=True, check=True)
        assert len(done.stdout.splitlines()) == count
        peaks.append(int(done.stderr.split()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 10, peaks


# Sweeps, presets, groups


def test_presets_give_way_to_flags_and_tell_what_they_leave_out(cli: Cli, work: Path) -> None:
    (work / "soft.toml").write_text("guidance-scale = 2.5\nwidth = 64\ncfg_rescale = 0.7\nseed = 9\n")
    presets = work / "config" / "diffpipe" / "presets"
    presets.mkdir(parents=True)
    (presets / "tall.json").write_text('{"height": 96, "width": 32}')
    env = {"XDG_CONFIG_HOME": str(work / "config"), "HOME": str(work), "APPDATA": str(work / "config")}
    run = ("generate", "demo", "--prompt", "a fox", "--args", "soft.toml", "--dry-run", "--json")
    done = cli.light(*run, cwd=work)
    (listed,) = results(done)
    assert (listed["seed"], listed["arguments"]["width"], listed["arguments"]["guidance_scale"]) == (9, 64, 2.5)
    assert done.stderr.splitlines()[0] == (
        "warning: --args soft.toml: left out cfg_rescale, which the pipeline does not take"
    )
    (listed,) = results(cli.light(*run, "--args", "tall", "--width", 48, "--seed", 1, cwd=work, env=env))
    assert (listed["seed"], listed["arguments"]["width"], listed["arguments"]["height"]) == (1, 48, 96)
    strict = cli.light(*run, "--strict", cwd=work)
    assert (strict.returncode, errors(strict)) == (2, ["--args soft.toml: the pipeline takes no cfg_rescale"])
    assert "Presets for --args: tall." in cli.light("generate", "demo", "--help", env=env).stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--sweep", "width=64", "--width", 64), "width is given by itself and by --sweep"),
        (("--sweep", "seed=1", "--seed", 1), "seed is given by itself and by --sweep"),
        (("--prompts-format", "csv"), "--prompts-format needs --prompts-from"),
        (("--prompts-from", "no.txt"), "--prompts-from: there is no file no.txt"),
        (("--prompts-from", "empty.txt"), "--prompts-from: there are no prompts in empty.txt"),
        (("--args", "nothing"), "--args: there is no file nothing"),
        (("--prompts-from", "panda.png"), "--prompts-from: panda.png line 3 has a NUL character: it is no text"),
        (("-o", "memory://x/"), "--output: what is at memory:// is gone when the run ends"),
        (("--prompts-from", "nul.txt"), "--prompts-from: nul.txt line 2 has a NUL character: it is no text"),
        (("--prompts-from", "bare.txt"), "bare.txt is UTF-16, not UTF-8"),
        (("--prompts-from", "wide.txt"), "wide.txt is UTF-16, not UTF-8"),
        (("--resume", "--journal", "other.txt"), "other.txt is no journal"),
    ],
)
def test_what_cannot_go_together_is_refused(cli: Cli, work: Path, words: tuple[object, ...], message: str) -> None:
    (work / "empty.txt").write_text("\n# nothing\n")
    (work / "other.txt").write_text("a fox\n")
    (work / "wide.txt").write_text("a fox\r\n", encoding="utf-16")
    (work / "bare.txt").write_text("a fox\r\n", encoding="utf-16-be")
    (work / "nul.txt").write_text("a fox\na\0cat\n")
    Image.new("RGB", (64, 64)).save(work / "panda.png")
    done = cli.light("generate", "demo", "--prompt", "a fox", *words, cwd=work)
    assert done.returncode == (3 if "there is no file" in message else 2)
    assert errors(done) == [message]
    assert (work / "other.txt").read_text() == "a fox\n"


def test_a_second_run_without_seeds_makes_nothing_twice(warm: Warm, work: Path) -> None:
    (work / "p.txt").write_text("a fox\na cat\n")
    run = ("generate", "demo", "--prompts-from", "p.txt", *SMALL, "-o", "out/")
    warm(*run, cwd=work, check=True)
    made = pictures(work / "out")
    again = warm(*run, cwd=work)
    assert (again.returncode, again.stdout) == (2, "")
    assert [line.endswith("was made already") for line in errors(again)] == [True, True, False]
    assert warm(*run, "--resume", cwd=work, check=True).stderr == "0 made, 2 done before\n"
    (work / "p.txt").write_text("a bear\n")
    warm(*run, cwd=work, check=True)
    assert len(pictures(work / "out")) == 3
    assert made.items() <= pictures(work / "out").items()


def test_each_item_that_is_far_too_large_is_refused(cli: Cli, work: Path) -> None:
    rows = [{"prompt": "a fox"}, {"prompt": "", "width": 100_000, "height": 100_000}]
    (work / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = cli.light("generate", "demo", "--prompts-from", "p.jsonl", cwd=work)
    assert (done.returncode, done.stdout) == (5, "")
    assert errors(done)[0].startswith("p.jsonl line 2: 100000 x 100000: some ")


def test_groups_make_what_single_calls_do(warm: Warm, work: Path) -> None:
    rows = [{"prompt": f"a {name}", "seed": number, "id": name} for number, name in enumerate(SUBJECTS[:5])]
    rows[3]["guidance_scale"] = 2  # not to be in a call with the others
    (work / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for size, folder in ((1, "single"), (3, "groups")):
        words = ("--batch-size", size, "-o", f"{folder}/", "--log-file", f"{folder}.log")
        warm("generate", "demo", "--prompts-from", "p.jsonl", *SMALL, *words, cwd=work, check=True)
    single, groups = work / "single", work / "groups"
    assert set(pictures(groups)) == set(pictures(single))
    for name in pictures(single):
        with Image.open(single / name) as one, Image.open(groups / name) as other:
            assert max(high for _, high in ImageChops.difference(one, other).getextrema()) <= 2
    lines = journal(groups / "demo.journal.jsonl")
    assert [line["id"] for line in lines] == list(SUBJECTS[:5])
    assert lines[0]["seconds"] == lines[1]["seconds"] == lines[2]["seconds"]  # one call's, shared
    assert len({line["seconds"] for line in lines[2:]}) > 1


def test_a_prompt_that_is_cut_and_a_picture_that_is_stretched_are_told(warm: Warm, work: Path) -> None:
    Image.new("RGB", (96, 64)).save(work / "wide.png")
    run = ("generate", "demo-img2img", "--prompt", "a fox and " * 16, *SMALL, "--strength", 1, "--seed", 1, "--json")
    done = warm(*run, "--image", "wide.png", cwd=work, check=True)
    (cut,) = (text for text in results(done)[0]["warnings"] if "longer than" in text)
    assert cut.startswith("the prompt is longer than the 32 tokens that a text encoder reads; cut off: ")
    told = [line for line in done.stderr.splitlines() if "does not know" not in line]
    stretched = "warning: --image is 96 x 64: it is stretched to 64 x 64; --fit crops it"
    assert told == [stretched, f"warning: {cut}"]
    fitted = warm(*run, "--image", "wide.png", "--fit", "-o", "fit.png", cwd=work, check=True)
    assert "stretched" not in fitted.stderr


def test_a_finished_file_that_was_changed_costs_a_resumed_run_nothing_else(warm: Warm, work: Path) -> None:
    (work / "p.txt").write_text("a fox\na cat\n")
    words = ("generate", "demo", "--prompts-from", "p.txt", *SMALL, "--seed", 5, "-o", "out/{index}.png")
    warm(*words, cwd=work, check=True)
    (work / "out" / "1.png").write_bytes(b"mine")
    (work / "p.txt").write_text("a fox\na cat\na panda\n")
    done = warm(*words, "--resume", cwd=work)
    assert (done.returncode, done.stdout) == (7, "out/3.png\n")
    assert [error.partition(": ")[2] for error in errors(done)] == ["p.txt line 1: out/1.png exists already"]
    assert (work / "out" / "1.png").read_bytes() == b"mine"
