"""The cache under bad luck: killed builds, builds at the same time, files that are cut, edited or moved."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, fork_server
from fork_server import Child

from diffpipe.cache.store import Store
from diffpipe.cache.verify import problems

# Kills the process before its Nth step that changes the cache (a file opened for writing, a rename, a folder made).
COUNT_STEPS = """
import os, signal, sys

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
STEPS = {"os.rename": 2, "os.mkdir": 1, "os.remove": 1, "os.rmdir": 1, "os.utime": 1, "os.truncate": 1}

def count_steps(home, kill_at, report):
    done = 0
    def note(event, details):
        nonlocal done
        writing = event == "open" and isinstance(details[2], int) and details[2] & WRITES
        paths = details[:STEPS.get(event, 1 if writing else 0)]
        if any(str(path).startswith(home) for path in paths):
            done += 1
            if done == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            with open(report, "w") as stream:
                stream.write(str(done))
    sys.addaudithook(note)
"""
KILLED, TIMED_OUT = -9, -27  # by SIGKILL and SIGPROF, names that Windows lacks


@dataclass(frozen=True)
class Outcome:
    """How a command ended: exit code (KILLED and TIMED_OUT are signals), what it printed, and the steps it took.

    `seconds` are of a processor.
    """

    code: int
    out: str
    err: str
    steps: int
    seconds: float


@dataclass(frozen=True)
class Forge:
    """Command lines, forked, that can be killed: after some seconds of a processor, or before their Nth step.

    `kind`: the words of a build that say what the model is.
    """

    folder: Path
    model: Path
    kind: tuple[str, ...] = ("flux",)

    def run(
        self, cli: Cli, lines: list[list[object]], *, kill_after: float = 0, steps: bool = False, kill_at: int = 0
    ) -> list[Outcome]:
        """Run command lines in the cache of `cli`, all at once."""
        children = []
        for number, line in enumerate(lines):
            folder = self.folder / str(number)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            first = f"import signal; signal.setitimer(signal.ITIMER_PROF, {kill_after})" if kill_after else ""
            if steps:
                first = f"{COUNT_STEPS}\ncount_steps({str(cli.home)!r}, {kill_at}, {str(folder / 'steps')!r})"
            children.append(self._start(cli, line, folder, first))
        return [
            Outcome(child.wait(), *map(self._read(number), ("stdout", "stderr")), self._steps(number), child.seconds)
            for number, child in enumerate(children)
        ]

    def _start(self, cli: Cli, line: list[object], folder: Path, first: str) -> Child:
        with ExitStack() as opened:
            files = (os.devnull, folder / "stdout", folder / "stderr")
            streams = [opened.enter_context(open(file, "r+b" if file == os.devnull else "wb")) for file in files]
            return fork_server("ready").start(
                map(str, line),
                cwd=cli.cwd,
                env=cli.environment(),
                streams=tuple(stream.fileno() for stream in streams),
                first=first,
            )

    def _read(self, number: int) -> Callable[[str], str]:
        return lambda name: (self.folder / str(number) / name).read_text(encoding="utf-8")

    def _steps(self, number: int) -> int:
        path = self.folder / str(number) / "steps"
        return int(path.read_text() or 0) if path.exists() else 0

    def build(self, cli: Cli, *options: object, model: Path | None = None, **how: Any) -> Outcome:
        (outcome,) = self.run(cli, [["build", *self.kind, "--model", model or self.model, "--json", *options]], **how)
        return outcome


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory, checkpoints: Path) -> Forge:
    return Forge(tmp_path_factory.mktemp("forge"), checkpoints / "flux")


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory, checkpoints: Path) -> Forge:
    """Builds that take half as long, with the same changes to the cache."""
    return Forge(tmp_path_factory.mktemp("quick"), checkpoints / "ddpm", ("custom", "--class", "DDPMPipeline"))


@pytest.fixture
def own(cli: Cli, tmp_path: Path) -> Cli:
    """The command line with a cache of the test's own."""
    (tmp_path / "work").mkdir()
    return Cli(tmp_path / "home", tmp_path / "work")


def shifted(number: int) -> list[str]:
    """Options that make a key of their own."""
    return ["--scheduler-config", json.dumps({"shift": 1 + number / 1000}), "--name", f"shift-{number}"]


def reset(number: int) -> list[str]:
    """The same for what is built quickly."""
    return ["--scheduler-config", json.dumps({"clip_sample_range": 1 + number / 1000}), "--name", f"reset-{number}"]


def faults(home: Path, whole: dict[str, object] | None = None) -> list[str]:
    """Everything that `pipelines verify` would complain of, and entries that are there in part.

    `whole`: how the files of each entry were when nothing was wrong with it; it is looked at again once they changed.
    """
    store, whole = Store(home), {} if whole is None else whole
    found = []
    for key in sorted(store.keys()):
        files = state(home / "pipelines" / key)
        if whole.get(key) == files:
            continue
        entry = store.sound(key)
        wrong = problems(entry) if entry else ["not whole"]
        found += [f"{key[:8]}: {problem}" for problem in wrong]
        if not wrong:
            whole[key] = files
    return found + [f"{name} stands for no entry" for name, key in store.names().items() if store.get(key) is None]


def state(folder: Path) -> list[tuple[object, ...]]:
    """Every file and folder below, with what tells that it was changed or replaced."""
    found = []
    for path in sorted(folder.rglob("*")):
        facts = path.lstat()
        found.append((path, facts.st_ino, facts.st_size, facts.st_mode, facts.st_mtime_ns, facts.st_ctime_ns))
    return found


def test_killed_at_fifty_random_moments_the_cache_is_whole_and_the_next_build_succeeds(quick: Forge, own: Cli) -> None:
    unhurt = [quick.build(own, *reset(number)) for number in (1000, 1001, 1002)]
    assert [one.code for one in unhurt] == [0, 0, 0]
    length = 1.1 * min(one.seconds for one in unhurt)
    whole: dict[str, object] = {}
    moments = random.Random(20).sample([length * step / 500 for step in range(1, 501)], 50)
    killed = published = 0
    for number, moment in enumerate(moments):
        outcome = quick.build(own, *reset(number), kill_after=moment)
        assert outcome.code in (0, TIMED_OUT), outcome.err
        killed += outcome.code == TIMED_OUT
        published += len(Store(own.home).keys()) == 3 + number + 1
        assert faults(own.home, whole) == [], f"killed after {moment:.3f} s"
        again = quick.build(own, *reset(number))
        assert again.code == 0, again.err
        assert json.loads(again.out)["name"] == f"reset-{number}"
        assert Store(own.home).sound(json.loads(again.out)["key"])
    assert killed >= 25
    assert published <= 45  # most were killed while there was something left to do
    assert own("pipelines", "verify").returncode == 0


@pytest.mark.parametrize("options", [[], ["--force"]], ids=["new", "replaced"])
def test_killed_before_any_single_step_the_cache_is_whole(quick: Forge, own: Cli, options: list[str]) -> None:
    """Each change to the cache (a file opened for writing, a rename, a folder made) is once the one that never came."""
    quick.build(own, *reset(0))  # makes the cache's folders, so that the next ones take the same steps
    steps = quick.build(own, *reset(0 if options else 1000), *options, steps=True).steps
    assert steps > 10
    whole: dict[str, object] = {}
    for number in range(1, steps + 1):
        build = [*reset(0 if options else number), *options]
        outcome = quick.build(own, *build, steps=True, kill_at=number)
        assert (outcome.code, outcome.steps) == (KILLED, number - 1), outcome.err
        assert faults(own.home, whole) == [], f"killed before step {number}"
        if options:
            assert Store(own.home).find("reset-0")
        assert quick.build(own, *build).code == 0
    assert own("pipelines", "verify").returncode == 0


def test_the_real_command_killed_at_random_moments(forge: Forge, own: Cli) -> None:
    arguments = ["build", "flux", "--model", str(forge.model)]
    started = time.monotonic()
    own(*arguments, "--name", "whole", check=True)
    length = time.monotonic() - started
    for number, moment in enumerate(random.Random(4).sample([length * step / 20 for step in range(2, 20)], 3)):
        words = [sys.executable, "-m", "diffpipe", *arguments, *shifted(number)]
        with subprocess.Popen(
            words, cwd=own.cwd, env=own.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            time.sleep(moment)
            process.kill()
        assert faults(own.home) == []
    assert own("pipelines", "verify").returncode == 0
    assert forge.build(own, *shifted(0)).code == 0
    assert own("pipelines", "verify").returncode == 0


def test_what_a_killed_build_left_is_pruned_once_it_is_old(quick: Forge, own: Cli) -> None:
    quick.build(own, *reset(0))
    steps = quick.build(own, *reset(1000), steps=True).steps
    for number in range(2, steps + 1, 2):
        quick.build(own, *reset(number), steps=True, kill_at=number)
    left = [path for path in own.home.rglob("*") if path.name.endswith(".tmp") or path.parent.name == "temporary"]
    assert left
    assert own("pipelines", "prune", "--json").stdout.count(".tmp") == 0  # a running build might still own them
    for path in [one for top in left for one in (*top.rglob("*"), top)]:
        os.utime(path, (time.time() - 7200,) * 2)
    own("pipelines", "prune", check=True)
    assert [path for path in left if path.exists()] == []
    assert own("pipelines", "verify").returncode == 0


def test_two_builds_of_one_key_at_once_do_the_work_once(forge: Forge, own: Cli) -> None:
    line = ["build", "flux", "--model", forge.model, "--json"]
    outcomes = forge.run(own, [[*line, "--name", "first"], [*line, "--name", "second"]])
    assert [one.code for one in outcomes] == [0, 0]
    shown = [json.loads(one.out) for one in outcomes]
    assert sorted(one["cached"] for one in shown) == [False, True]
    assert shown[0]["key"] == shown[1]["key"]
    assert sum("built FluxPipeline" in one.err for one in outcomes) == 1
    assert Store(own.home).names() == {"first": shown[0]["key"], "second": shown[0]["key"]}


def test_a_build_waits_for_another_of_the_same_key_and_says_so(forge: Forge, own: Cli) -> None:
    """The other one is this test: it holds the lock, publishes while the build waits, and lets go."""
    key = json.loads(forge.build(own).out)["key"]
    store = Store(own.home)
    entry = store.find(key)
    kept = (entry.summary, entry.manifest(), entry.sources())
    store.remove("flux")
    words = [sys.executable, "-m", "diffpipe", "build", "flux", "--model", str(forge.model), "--json"]
    with store.lock(key, lambda: pytest.fail("the lock is held already")):
        process = subprocess.Popen(
            words, cwd=own.cwd, env=own.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr
        assert process.stderr.readline() == f"another process is building {key[:12]}; waiting for it\n"
        assert store.get(key) is None
        store.publish(*kept)
        published = (entry.folder / "manifest.json").stat().st_mtime_ns
    out, err = process.communicate(timeout=60)
    assert json.loads(out)["cached"] is True
    assert "in the cache already" in err
    assert (entry.folder / "manifest.json").stat().st_mtime_ns == published


def test_ten_keys_at_once_all_succeed(forge: Forge, own: Cli) -> None:
    lines = [["build", "flux", "--model", forge.model, "--json", *shifted(number)] for number in range(10)]
    outcomes = forge.run(own, lines)
    assert [(one.code, one.err.count("error")) for one in outcomes] == [(0, 0)] * 10
    assert len({json.loads(one.out)["key"] for one in outcomes}) == 10
    assert len(Store(own.home).keys()) == len(Store(own.home).names()) == 10
    assert faults(own.home) == []


def test_builds_and_removals_of_one_key_at_once_leave_a_whole_cache(forge: Forge, own: Cli) -> None:
    forge.build(own)
    build = ["build", "flux", "--model", forge.model, "--force", "--json"]
    outcomes = forge.run(
        own, [build, ["pipelines", "remove", "flux"], build, ["pipelines", "list"], ["pipelines", "verify"]]
    )
    assert all(one.code in (0, 3, 6) for one in outcomes), [one.err for one in outcomes]
    assert not any("this is a bug" in one.err for one in outcomes), [one.err for one in outcomes]
    assert [fault for fault in faults(own.home) if "stands for no entry" not in fault] == []
    assert forge.build(own).code == 0
    assert faults(own.home) == []


WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def grown(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"\0")


def edited(path: Path) -> None:
    """One byte changed."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def edited_in_secret(path: Path) -> None:
    """One byte changed, size and times as before."""
    before = path.stat()
    edited(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced_in_secret(path: Path) -> None:
    """Another file of the same size and times in its place."""
    before, other = path.stat(), path.with_suffix(".new")
    shutil.copy(path, other)
    edited(other)
    os.replace(other, path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def removed(path: Path) -> None:
    path.unlink()


def folder_moved(path: Path) -> None:
    path.parent.parent.rename(path.parent.parent.with_name("elsewhere"))


@pytest.fixture
def model(checkpoints: Path, tmp_path: Path) -> Path:
    """A Flux folder to spoil."""
    return Path(shutil.copytree(checkpoints / "flux", tmp_path / "a model"))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncated, "changed its size"),
        (grown, "changed its size"),
        (edited, "was changed"),
        (edited_in_secret, "was changed"),
        (replaced_in_secret, "was changed"),
        (removed, "was moved or removed"),
        (folder_moved, "was moved or removed"),
    ],
)
@pytest.mark.parametrize("file", [WEIGHTS, "scheduler/scheduler_config.json"])
def test_a_spoilt_source_is_found_by_verify_and_by_generate(
    forge: Forge, own: Cli, model: Path, file: str, damage: Callable[[Path], None], says: str
) -> None:
    key = json.loads(forge.build(own, model=model).out)["key"]
    assert own("pipelines", "verify").returncode == 0
    damage(model / file)
    verified = own("pipelines", "verify", "--json")
    assert verified.returncode == 6
    found = json.loads(verified.stdout)["entries"][key]
    assert any(one == f"{file} of a model {says}" or one.startswith(f"{file} of a model {says} from") for one in found)
    generated = own("generate", "flux", "--prompt", "x")
    assert (generated.returncode, generated.stdout) == (6, "")
    lines = generated.stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert says in lines[0]
    command = lines[1].partition(": ")[2].partition(": ")[2]
    assert shlex.split(command) == [
        "diffpipe", "build", "flux", "--type", "text2image", "--model", str(model), "--dtype", "bfloat16",
        "--name", "flux", "--force",
    ]  # fmt: skip
    assert command in verified.stderr


def test_the_command_that_is_named_mends_it(forge: Forge, own: Cli, model: Path) -> None:
    old = json.loads(forge.build(own, model=model).out)["key"]
    edited(model / WEIGHTS)
    hint = own("generate", "flux", "--prompt", "x").stderr.partition("build it again: ")[2]
    (again,) = forge.run(own, [shlex.split(hint)[1:]])
    assert again.code == 0, again.err
    assert own("pipelines", "verify", "flux").returncode == 0
    assert Store(own.home).find("flux").key != old
    every = own("pipelines", "verify")
    assert every.returncode == 6
    assert every.stderr.splitlines()[1].endswith(f"diffpipe pipelines remove {old[:12]}")
    own("pipelines", "remove", old[:12], check=True)
    assert own("pipelines", "verify").returncode == 0


def test_a_source_that_moved_is_taken_from_its_new_place_by_another_build(forge: Forge, own: Cli, model: Path) -> None:
    first = json.loads(forge.build(own, model=model).out)
    moved = model.rename(model.with_name("moved"))
    assert own("pipelines", "verify").returncode == 6
    second = json.loads(forge.build(own, model=moved).out)
    assert (second["key"], second["cached"]) == (first["key"], True)
    assert own("pipelines", "verify").returncode == 0


def test_a_file_that_was_only_touched_is_read_again_and_found_the_same(forge: Forge, own: Cli, model: Path) -> None:
    forge.build(own, model=model)
    os.utime(model / WEIGHTS)
    assert own("pipelines", "verify").returncode == 0
    assert json.loads(forge.build(own, model=model).out)["cached"] is True


@pytest.mark.parametrize("damage", [truncated, edited_in_secret, removed])
@pytest.mark.parametrize("file", ["manifest.json", "summary.json", "sources.json"])
def test_a_spoilt_cache_entry_is_found_by_verify_and_generate_and_mended_by_build(
    forge: Forge, own: Cli, file: str, damage: Callable[[Path], None]
) -> None:
    key = json.loads(forge.build(own).out)["key"]
    damage(own.home / "pipelines" / key / file)
    verified = own("pipelines", "verify")
    assert verified.returncode == 6
    assert "damaged" in verified.stdout
    assert "diffpipe build flux --type text2image --model" in verified.stderr
    if file != "summary.json" or damage is not edited_in_secret:  # generate uses nothing of a summary but its key
        generated = own("generate", "flux", "--prompt", "x", "--width", "32", "--height", "32")
        assert generated.returncode == 6
        assert "diffpipe build flux --type text2image --model" in generated.stderr
    assert own("pipelines", "list").returncode == 0
    mended = forge.build(own)
    assert (mended.code, json.loads(mended.out)["cached"]) == (0, False)
    assert own("pipelines", "verify").returncode == 0


@pytest.fixture
def stocked(forge: Forge, own: Cli) -> tuple[Cli, str, str]:
    """A cache with two pipelines: flux, with a second name, and other; their keys."""
    first = json.loads(forge.build(own).out)["key"]
    forge.build(own, "--name", "second-name")
    other = json.loads(forge.build(own, "--name", "other", "--dtype", "float32").out)["key"]
    return own, first, other


def test_pipelines_list(stocked: tuple[Cli, str, str]) -> None:
    cli, first, other = stocked
    lines = cli("pipelines", "list", check=True).stdout.splitlines()
    assert lines[0].split() == ["NAME", "KEY", "PROVIDER", "TYPE", "MODEL", "DTYPE", "SIZE", "USED"]
    assert {line.split("  ")[0] for line in lines[1:]} == {"other", "flux, second-name"}
    rows = json.loads(cli("pipelines", "list", "--json", check=True).stdout)
    assert {row["key"]: row["names"] for row in rows} == {first: ["flux", "second-name"], other: ["other"]}
    assert {row["dtype"] for row in rows} == {"bfloat16", "float32"}
    assert all(row["provider"] == "flux" and row["bytes"] > 100_000 and row["last_used"] > 1e9 for row in rows)


def test_an_empty_cache_lists_nothing_and_names_the_first_step(own: Cli) -> None:
    done = own("pipelines", "list")
    assert (done.returncode, done.stdout) == (0, "")
    assert "diffpipe build" in done.stderr
    assert own("pipelines", "list", "--json").stdout == "[]\n"
    assert own("pipelines", "verify").returncode == 0
    assert own("pipelines", "prune").returncode == 0
    assert not own.home.exists()


def test_pipelines_show(stocked: tuple[Cli, str, str]) -> None:
    cli, first, _ = stocked
    text = cli("pipelines", "show", "second-name", check=True).stdout
    assert all(word in text for word in (first, "FluxTransformer2DModel", "T5EncoderModel", "--guidance-scale"))
    shown = json.loads(cli("pipelines", "show", first[:8], "--json", check=True).stdout)
    assert (shown["key"], shown["names"], shown["pipeline"]) == (first, ["flux", "second-name"], "FluxPipeline")
    assert {part["name"]: part["class_name"] for part in shown["manifest"]["components"]}["vae"] == "AutoencoderKL"
    missing = cli("pipelines", "show", "fluks")
    assert (missing.returncode, missing.stdout) == (3, "")
    assert missing.stderr == "error: there is no pipeline 'fluks'\n  try: did you mean flux?\n"
    assert cli("pipelines", "show").returncode == 2


def test_pipelines_rename(stocked: tuple[Cli, str, str]) -> None:
    cli, first, other = stocked
    done = cli("pipelines", "rename", "flux", "mine", check=True)
    assert (done.stdout, done.stderr) == ("", "flux is now mine\n")
    assert Store(cli.home).names() == {"mine": first, "second-name": first, "other": other}
    shown = cli("pipelines", "rename", "mine", "ours", "--json", check=True)
    assert json.loads(shown.stdout) == {"renamed": "mine", "name": "ours"}
    assert cli("pipelines", "rename", "ours", "other").returncode == 2
    assert cli("pipelines", "rename", "nobody", "x").returncode == 3
    assert cli("pipelines", "rename", "ours", "a/b").returncode == 2
    assert cli("pipelines", "rename", "ours", "abcdef12").returncode == 2
    assert Store(cli.home).names() == {"ours": first, "second-name": first, "other": other}


def test_pipelines_remove(stocked: tuple[Cli, str, str], forge: Forge) -> None:
    cli, first, other = stocked
    done = cli("pipelines", "remove", "flux", check=True)
    assert (done.stdout, done.stderr) == ("", f"removed flux; {first[:12]} stays, it has other names\n")
    shown = json.loads(cli("pipelines", "remove", "second-name", "--json", check=True).stdout)
    assert shown == {"removed": "second-name", "key": first, "entry_removed": True, "stays": ""}
    assert cli("pipelines", "remove", "flux").returncode == 3
    cli("pipelines", "remove", other[:6], check=True)
    assert (Store(cli.home).keys(), Store(cli.home).names()) == ([], {})
    assert (forge.model / WEIGHTS).exists()


def test_pipelines_prune(stocked: tuple[Cli, str, str], tmp_path: Path) -> None:
    cli, first, other = stocked
    nothing = json.loads(cli("pipelines", "prune", "--json", check=True).stdout)
    empty = {"entries": [], "names": [], "leftovers": [], "weights": [], "imported": [], "records": {}}
    assert nothing == {"dry_run": False, **empty}
    truncated(cli.home / "pipelines" / first / "manifest.json")
    os.utime(cli.home / "pipelines" / other / "summary.json", (time.time() - 10 * 86400,) * 2)
    planned = json.loads(cli("pipelines", "prune", "--dry-run", "--unused-for", "10", "--json", check=True).stdout)
    assert {entry["key"]: entry["reason"] for entry in planned["entries"]} == {
        first: "is damaged",
        other: "was not used for 10 days",
    }
    assert set(Store(cli.home).keys()) == {first, other}
    done = cli("pipelines", "prune", check=True)
    assert done.stdout.splitlines()[0] == f"{first[:12]} is damaged"
    assert not (cli.home / "locks" / f"{first}.lock").exists()
    assert (cli.home / "locks" / f"{other}.lock").exists()
    assert Store(cli.home).names() == {"other": other}
    assert cli("pipelines", "prune", "--unused-for", "-1").returncode == 2


def test_pipelines_verify(stocked: tuple[Cli, str, str]) -> None:
    cli, first, other = stocked
    assert json.loads(cli("pipelines", "verify", "--json", check=True).stdout) == {
        "entries": {first: [], other: []},
        "states": {first: "whole", other: "whole"},
        "dangling_names": [],
    }
    assert cli("pipelines", "verify", "other", check=True).stdout == f"other {other[:12]}: ok\n"
    assert cli("pipelines", "verify", "nobody").returncode == 3
    shutil.rmtree(cli.home / "pipelines" / other)
    done = cli("pipelines", "verify")
    assert done.returncode == 6
    assert "the name other stands for no entry" in done.stderr
    assert "diffpipe pipelines prune" in done.stderr


def test_a_moved_cache_keeps_its_keys_and_works(stocked: tuple[Cli, str, str], forge: Forge, tmp_path: Path) -> None:
    cli, first, other = stocked
    moved = replace(cli, home=cli.home.rename(tmp_path / "new home"))
    assert moved("pipelines", "verify").returncode == 0
    assert set(Store(moved.home).keys()) == {first, other}
    assert json.loads(forge.build(moved).out) | {"cached": True} == json.loads(forge.build(moved).out)
