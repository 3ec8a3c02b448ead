"""`diffpipe generate` through a warm worker as a user runs it: the same files, words and exit codes as without one."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, Done, Warm
from fork_server import Running
from PIL import Image
from subprocesses import PATIENCE, first_on_path, runs, until

from diffpipe.cache.store import Store
from diffpipe.cli.workers import KeepWarm, PipelineWorker
from diffpipe.runners.worker import folder as worker_folder
from diffpipe.runners.worker import lifecycle, places

SIZE = ("--width", 64, "--height", 64, "--num-inference-steps", 2)
FOX = ("demo", "--prompt", "a fox", "--seed", 1, *SIZE)
KEPT = ("--keep-warm", "10m")
NO_SOCKETS = """
from diffpipe.runners.worker import folder
folder.supported = lambda: False
"""
BROKEN = """
import os, sys
if any("serve" in word for word in sys.orig_argv):
    print("it is broken", flush=True)
    os._exit(1)
"""
SLOW = ("demo", "--prompt", "a fox", "--seed", 1, "--num-inference-steps", 5000)


@pytest.fixture(scope="module")
def workers(cli: Cli, warm: Warm, checkpoints: Path) -> Iterator[Callable[[str], int]]:
    """Three pipelines, `demo`, `edit` (starts from a picture) and `video` (from a video); starts a pipeline's worker,
    and gives its process."""
    warm("build", "demo", check=True)
    warm("build", "demo", "--type", "img2img", "--name", "edit", check=True)
    video = ("--type", "video2video", "--model", checkpoints / "wan", "--name", "video", "--dtype", "float32")
    warm("build", "wan", *video, check=True)
    first = {
        "demo": ("demo", "--prompt", "a fox", *SIZE),
        "edit": ("edit", "--image", "s.png", "--prompt", "a cat", "--num-inference-steps", 2),
    }
    first["video"] = ("video", "--video", "frames", "--prompt", "a fox", "--num-inference-steps", 2, "--max-area", 1024)
    (cli.cwd / "inputs/frames").mkdir(parents=True)
    Image.new("RGB", (128, 128), "red").save(cli.cwd / "inputs/s.png")
    for number in range(5):
        Image.new("RGB", (32, 32), (40 * number, 90, 0)).save(cli.cwd / "inputs/frames" / f"{number}.png")

    def started(name: str) -> int:
        if name not in [one for status in statuses(cli) for one in status["names"]]:
            words = ("generate", *first[name], *KEPT, "--seed", 9, "-o", f"first-{name}.{{ext}}", "--overwrite")
            folder = cli.cwd / "gone"  # which the worker outlives
            shutil.copytree(cli.cwd / "inputs", folder)
            cli(*words, cwd=folder, check=True)
            shutil.rmtree(folder)
        return next(int(status["pid"]) for status in statuses(cli) if name in status["names"])

    yield started
    cli("worker", "stop", "--all", check=True)
    assert left(cli) == []


@pytest.fixture
def work(workers: Callable[[str], int], cli: Cli, tmp_path: Path) -> Path:
    """A folder with pictures, frames and prompts."""
    work = tmp_path / "work"
    shutil.copytree(cli.cwd / "inputs/frames", work / "frames")
    for name, colour in {"red": "red", "blue": "navy"}.items():
        Image.new("RGB", (128, 128), colour).save(work / f"{name}.png")
    Image.new("RGB", (128, 64), "green").save(work / "wide.png")
    (work / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    rows = [{"prompt": f"a {animal}", "seed": seed} for seed, animal in enumerate(["fox", "cat", "pig", "owl"])]
    (work / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"prompt": "a fox", "image": f"{name}.png"} for name in ("red", "blue", "red", "wide")]
    (work / "images.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"prompt": "a fox", "image": f"{name}.png", "seed": 3} for name in ("red", "broken", "blue")]
    (work / "broken.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return work


def statuses(cli: Cli) -> list[dict[str, Any]]:
    store = Store(cli.home)
    found = [one.status for one in lifecycle.running(store)]
    names = store.names()
    return [{**vars(one), "names": [name for name, key in names.items() if key == one.key]} for one in found if one]


def busy(cli: Cli) -> bool:
    return any(one["busy"] for one in statuses(cli))


def served(cli: Cli) -> int:
    """How many requests the workers have made."""
    return sum(one["requests"] for one in statuses(cli))


def left(cli: Cli) -> list[str]:
    """What workers of this cache have left, but for their locks."""
    stem = places.place_of(Store(cli.home), "0" * 64).name[:8]
    folder = places.place_of(Store(cli.home), "0" * 64).parent
    return [path.name for path in folder.iterdir() if path.name.startswith(stem) and path.suffix != ".lock"]


def told(done: Done) -> tuple[int, str, str]:
    """Exit code, stdout and stderr, but for how long things took."""
    return done.returncode, re.sub(r'"seconds": [\d.]+', '"seconds": 0', done.stdout), done.stderr


def tree(folder: Path) -> dict[str, Any]:
    """Every file's content and mode; of journals what does not tell of time."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.endswith(".lock"):
            data: Any = path.read_bytes()
            if path.name.endswith(".jsonl") and "journal" in path.name:
                data = sorted(re.sub(rb'"seconds": [\d.]+|"seed": \d{3,}', b"", line) for line in data.splitlines())
            found[str(path.relative_to(folder))] = (stat.S_IMODE(path.stat().st_mode), data)
    return found


Both = Callable[..., tuple[int, str, str]]


@pytest.fixture
def both(cli: Cli, warm: Warm, work: Path, workers: Callable[[str], int], tmp_path: Path) -> Both:
    """Runs `generate` through the worker and without it, which must do the same; gives what both told."""

    def run(name: str, *words: object, env: Mapping[str, str] | None = None, used: bool = True) -> tuple[int, str, str]:
        workers(name)
        before = served(cli)
        shutil.copytree(work, tmp_path / "there")
        shutil.copytree(work, tmp_path / "here")
        there = cli("generate", name, *words, cwd=tmp_path / "there", env=env)
        assert (served(cli) > before) is used
        here = warm("generate", name, *words, "--no-worker", cwd=tmp_path / "here", env=env)
        assert told(there) == told(here)
        assert tree(tmp_path / "there") == tree(tmp_path / "here")
        for path in (tmp_path / "there", tmp_path / "here"):
            shutil.rmtree(path)
        return told(there)

    return run


# The same as without


@pytest.mark.parametrize(
    "words",
    [
        ("--prompt", "a fox", "--seed", 1, *SIZE),
        ("--prompt", "a fox", "--seed", 1, *SIZE, "--json", "--count", 3, "-o", "sub/{index}/{seed}.{ext}"),
        ("--prompt", "a fox", "--seed", 1, *SIZE, "-o", "x.webp", "--no-metadata", "-q"),
        ("--prompt", "a fox", "--seed", 1, *SIZE, "--sweep", "guidance_scale=1,3.5", "-o", "s/"),
        ("--prompts-from", "p.jsonl", *SIZE, "-o", "b/", "--json"),
        ("--prompts-from", "p.jsonl", *SIZE, "-o", "b/", "--batch-size", 3),
        ("--prompt", "a zeppelin and " * 30, "--seed", 2, *SIZE, "--json"),
        ("--prompt", "a fox", "--seed", 1, *SIZE, "--preview", "seen.png", "--preview-every", 1),
        ("--prompt", "a fox", "--seed", 1, *SIZE, "--preview", "seen.png", "--preview-decode"),
        ("--prompts-from", "p.jsonl", *SIZE, "-o", "b/", "--contact-sheet", "sheet.png"),
    ],
    ids=["plain", "json", "bare", "sweep", "batch", "batch-size", "words", "preview", "decoded", "sheet"],
)
def test_same_as_without(both: Both, words: tuple[object, ...]) -> None:
    assert both("demo", *words)[0] == 0


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--prompt", "a fox", "--image", "wide.png", "--seed", 1, "--width", 64, "--height", 64, "--json"), 0),
        (("--prompt", "a fox", "--image", "wide.png", "--seed", 1, "--width", 64, "--height", 64, "--fit"), 0),
        (("--prompts-from", "images.jsonl", "--seed", 1, "-o", "i/", "--json"), 0),
        (("--prompts-from", "broken.jsonl", "-o", "i/", "--json"), 7),
        (("--prompts-from", "broken.jsonl", "-o", "i/", "--json", "--fail-fast"), 7),
    ],
    ids=["stretched", "fitted", "differing", "broken", "fail-fast"],
)
def test_pictures_are_sent(both: Both, words: tuple[object, ...], code: int) -> None:
    assert both("edit", *words, "--num-inference-steps", 2)[0] == code


def test_a_folder_of_frames_is_sent(both: Both) -> None:
    words = (
        "--video",
        "frames",
        "--prompt",
        "a fox",
        "--seed",
        1,
        "--num-inference-steps",
        2,
        "-o",
        "v.webm",
        "--max-area",
        1024,
    )
    assert both("video", *words, "--json")[0] == 0


def test_a_pipe_is_read_once(cli: Cli, warm: Warm, workers: Callable[[str], int], work: Path) -> None:
    workers("edit")
    words = ("--prompt", "fox", "--seed", 1, "--num-inference-steps", 2, "--no-metadata")
    line = " ".join(map(str, words))
    command = f"{sys.executable} -m diffpipe generate edit --image <(cat red.png) {line} -o there.png"
    done = subprocess.run(["bash", "-c", command], cwd=work, env=cli.environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    warm("generate", "edit", "--image", "red.png", *words, "-o", "here.png", "--no-worker", cwd=work, check=True)
    assert (work / "there.png").read_bytes() == (work / "here.png").read_bytes()


# A store that only the process knows which was asked.
STORE = """
import fsspec
from fsspec.implementations.memory import MemoryFileSystem
class Store(MemoryFileSystem):
    protocol, store, pseudo_dirs = "there", {}, [""]
fsspec.register_implementation("there", Store)
"""


def test_results_at_urls_are_published_by_who_asks(cli: Cli, workers: Callable[[str], int], work: Path) -> None:
    """With its own credentials: the worker has those of who started it."""
    workers("demo")
    before = served(cli)
    for url in ("there://bucket/x.png", f"file://{work}/x.png"):
        done = cli("generate", *FOX, "-o", url, cwd=work, check=True, first=STORE)
        assert (done.stdout, done.stderr) == (f"{url}\n", "")
    assert served(cli) == before + 2
    assert (work / "x.png").exists()


def test_the_umask_is_the_clients(cli: Cli, workers: Callable[[str], int], work: Path) -> None:
    workers("demo")
    for umask in ("077", "027", "002"):
        words = " ".join(map(str, [sys.executable, "-m", "diffpipe", "generate", *FOX[:1], "--seed", 1, *SIZE]))
        command = f"umask {umask}; {words} --prompt fox -o m/{umask}.png"
        subprocess.run(["sh", "-c", command], cwd=work, env=cli.environment(), check=True, capture_output=True)
        assert stat.S_IMODE((work / f"m/{umask}.png").stat().st_mode) == 0o666 & ~int(umask, 8)


def test_the_log_tells_the_same_of_each_item(cli: Cli, warm: Warm, workers: Callable[[str], int], work: Path) -> None:
    workers("demo")
    logs = []
    for run, more in ((cli, ()), (warm, ("--no-worker",))):
        run("generate", *FOX, "--count", 2, "-o", "l/{seed}.png", "--overwrite", "--log-file", "log", *more, cwd=work)
        lines = [line for line in (work / "log").read_text().splitlines() if "diffpipe.run: seed" in line]
        logs.append([re.sub(r"[\d.]+ s|peak.*|^\S+ \S+|;.*", "", line) for line in lines])
        (work / "log").unlink()
    assert logs[0] == logs[1]
    assert len(logs[0]) == 2


def test_what_is_refused_needs_no_worker(cli: Cli, workers: Callable[[str], int]) -> None:
    workers("demo")
    done = cli.light("generate", "demo", "--prompt", "a fox", "--width", 33)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --width")


def test_the_client_imports_nothing_heavy(cli: Cli, workers: Callable[[str], int], work: Path) -> None:
    workers("demo")
    done = cli.light("generate", *FOX, "-o", "light.png", cwd=work)
    assert (done.returncode, done.stdout) == (0, "light.png\n")


# Batches


def test_a_stream_is_made_line_by_line(cli: Cli, workers: Callable[[str], int], work: Path) -> None:
    workers("demo")
    words = ("generate", "demo", "--prompts-from", "-", "-o", "st/", "-q", *SIZE)
    with cli.begin(*words, cwd=work, stdin=subprocess.PIPE) as run:
        assert run.stdin
        assert run.stdout
        for number in range(3):
            run.stdin.write(f"a fox number {number}\n")
            run.stdin.flush()
            path = run.stdout.readline().strip()
            assert (work / path).exists()
            assert len(list((work / "st").glob("*.png"))) == number + 1
        run.stdin.close()
    assert run.returncode == 0


def test_resume_makes_what_is_left(cli: Cli, workers: Callable[[str], int], work: Path) -> None:
    workers("demo")
    words = ("generate", "demo", "--prompts-from", "p.jsonl", *SIZE, "-o", "r/", "--resume")
    first = cli(*words, cwd=work, check=True)
    (work / "r" / first.stdout.splitlines()[1].removeprefix("r/")).unlink()
    again = cli(*words, cwd=work, check=True)
    assert again.stdout == first.stdout.splitlines()[1] + "\n"
    assert "1 made, 3 done before" in again.stderr


@contextmanager
def running(cli: Cli, work: Path, *words: object) -> Iterator[Running | subprocess.Popen[str]]:
    """A client that does not outlive the test."""
    run = cli.begin("generate", *words, cwd=work)
    try:
        yield run
    finally:
        run.kill()
        run.communicate()


# Clients at once, and clients that leave


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (9, -9)], ids=["ctrl-c", "killed"])
def test_a_client_that_leaves_frees_its_place(
    cli: Cli, workers: Callable[[str], int], work: Path, sent: int, code: int
) -> None:
    process = workers("demo")
    with running(cli, work, *SLOW, "-o", "gone.png") as run:
        until(lambda: busy(cli))
        run.send_signal(sent)
        out, err = run.communicate(timeout=PATIENCE)
    assert (run.returncode, out, err) == (code, "", "interrupted\n" if code == 130 else "")
    until(lambda: not busy(cli))
    assert workers("demo") == process
    assert list(work.glob("gone*")) + list(work.glob(".*")) == []


def test_many_clients_at_once(cli: Cli, warm: Warm, workers: Callable[[str], int], work: Path) -> None:
    process = workers("demo")
    before = descriptors(process)
    words = [("demo", "--prompt", f"a fox {number}", "--seed", number, *SIZE, "-q") for number in range(8)]
    several = [cli.begin("generate", *one, "-o", f"many/{number}.png", cwd=work) for number, one in enumerate(words)]
    slow = cli.begin("generate", *SLOW, "-o", "killed.png", cwd=work)
    several[3].kill()
    until(lambda: list((work / "many").glob("*.png")))
    slow.kill()
    codes = [one.wait(PATIENCE) for one in several]
    for one in (*several, slow):
        one.communicate()
    assert codes[:3] + codes[4:] == [0] * 7
    rows = [{"prompt": f"a fox {number}", "seed": number, "output": f"{number}.png"} for number in range(8)]
    (work / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    warm("generate", "demo", "--prompts-from", "m.jsonl", *SIZE, "-o", "one/", "--no-worker", cwd=work, check=True)
    for number in {*range(8)} - {3}:
        assert (work / f"many/{number}.png").read_bytes() == (work / f"one/{number}.png").read_bytes()
    until(lambda: descriptors(process) <= before)
    assert workers("demo") == process


def descriptors(process: int) -> tuple[int, int]:
    """Open files and threads of a process."""
    return len(os.listdir(f"/proc/{process}/fd")), len(os.listdir(f"/proc/{process}/task"))


# Workers that are killed


def test_a_killed_worker_costs_a_batch_nothing(cli: Cli, warm: Warm, workers: Callable[[str], int], work: Path) -> None:
    process = workers("demo")
    rows = [{"prompt": f"a fox {number}", "seed": number} for number in range(40)]
    (work / "k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("generate", "demo", "--prompts-from", "k.jsonl", *SIZE)
    with cli.begin(*words, "-o", "k/", *KEPT, cwd=work) as run:
        assert run.stdout
        for _ in range(5):
            run.stdout.readline()
        os.kill(process, signal.SIGKILL)
        _, err = run.communicate()
    assert run.returncode == 0, err
    assert err == "warning: the worker ended; another one goes on\n40 made\n"
    warm(*words, "-o", "w/", "--no-worker", cwd=work, check=True)
    made, whole = tree(work / "k"), tree(work / "w")
    assert {name: made[name] for name in made if "journal" not in name} == {
        name: whole[name] for name in whole if "journal" not in name
    }
    done = [line for line in (work / "k/demo.journal.jsonl").read_text().splitlines() if '"done"' in line]
    assert len(done) == len({json.loads(line)["id"] for line in done}) == 40


def test_a_single_item_whose_worker_dies_fails(cli: Cli, workers: Callable[[str], int], work: Path) -> None:
    process = workers("edit")
    slow = ("edit", "--image", "red.png", *SLOW[1:])
    with running(cli, work, *slow, "-o", "slow.png") as run:
        until(lambda: busy(cli))
        os.kill(process, signal.SIGKILL)
        out, err = run.communicate(timeout=PATIENCE)
    assert (run.returncode, out) == (1, "")
    assert err == (
        "error: the worker ended while it made this\n"
        "  try: memory may have run out; --no-worker makes it in this process\n"
    )
    assert list(work.glob("*.tmp")) == list(work.glob("slow*")) == []


# Starting and stopping


def test_list_and_stop(cli: Cli, workers: Callable[[str], int]) -> None:
    process = workers("video")
    (found,) = [one for one in json.loads(cli.light("worker", "list", "--json").stdout) if one["names"] == ["video"]]
    assert found.pop("memory") > 50_000_000
    assert found.pop("requests") > 0
    assert found.pop("idle") >= 0
    key = Store(cli.home).key("video")
    rest = {"device_memory": None, "loaded": True, "busy": False, "keep": 600.0, "clients": 0}
    assert found == {"names": ["video"], "key": key, "pid": process, **rest}
    table = cli.light("worker", "list").stdout.splitlines()
    assert table[0].split() == ["PIPELINE", "KEY", "PROCESS", "MEMORY", "STATE", "REQUESTS", "KEPT", "FOR"]
    assert any(re.match(rf"video +\w+ +{process} +[\d.]+ MB +idle for \w+ +\d+ +10m$", line) for line in table)
    done = cli.light("worker", "stop", "video")
    assert (done.returncode, done.stdout) == (0, "stopped video\n")
    until(lambda: not runs(process))
    done = cli.light("worker", "stop", "video")
    assert (done.returncode, done.stderr) == (
        3, "error: no worker of video runs\n  try: diffpipe worker list shows those that do\n",
    )  # fmt: skip


def test_stop_needs_to_know_what(cli: Cli) -> None:
    assert cli.light("worker", "stop").returncode == 2
    assert cli.light("worker", "stop", "demo", "--all").returncode == 2
    assert cli.light("worker", "stop", "nothing").returncode == 3


def test_stop_ends_an_item_at_its_next_step(cli: Cli, workers: Callable[[str], int], work: Path) -> None:
    process = workers("demo")
    with running(cli, work, *SLOW, "-o", "slow.png") as run:
        until(lambda: busy(cli))
        cli("worker", "stop", "demo", check=True)
        until(lambda: not runs(process))
        _, err = run.communicate(timeout=PATIENCE)
    assert (run.returncode, err) == (
        1, "error: the worker was stopped\n  try: run it again; a batch goes on with --resume\n",
    )  # fmt: skip
    assert list(work.glob("slow*")) == []


def test_idle_time_and_zero(cli: Cli, warm: Warm, workers: Callable[[str], int], work: Path) -> None:
    demo, edit = workers("demo"), workers("edit")
    there = cli("generate", *FOX, "-o", "a.png", "--keep-warm", "1s", cwd=work, check=True)
    words = ("edit", "--image", "red.png", "--prompt", "a cat", "--seed", 1, "--num-inference-steps", 2)
    cli("generate", *words, "-o", "b.png", "--keep-warm", "0", cwd=work, check=True)
    until(lambda: not runs(demo) and not runs(edit))
    assert not {"demo", "edit"} & {one for status in statuses(cli) for one in status["names"]}
    here = warm("generate", *FOX, "-o", "a.png", "--overwrite", "--keep-warm", "0", cwd=work, check=True)
    assert told(there) == told(here)
    assert "demo" not in [one for status in statuses(cli) for one in status["names"]]  # it started none


def test_the_environment_asks_for_one(cli: Cli, work: Path) -> None:
    cli("worker", "stop", "--all", check=True)
    bad = cli("generate", *FOX, "-o", "e.png", cwd=work, env={"DIFFPIPE_KEEP_WARM": "soon"})
    assert (bad.returncode, bad.stderr) == (
        2, "error: DIFFPIPE_KEEP_WARM 'soon' is no duration\n  try: for example 30s, 5m or 1h\n",
    )  # fmt: skip
    two = cli("generate", *FOX, "--keep-warm", "5m", "--no-worker", cwd=work)
    assert (two.returncode, two.stderr.splitlines()[0]) == (2, "error: --keep-warm is given with --no-worker")
    cli("generate", *FOX, "-o", "e.png", cwd=work, env={"DIFFPIPE_KEEP_WARM": "2m"}, check=True)
    assert [(one["names"], one["keep"]) for one in statuses(cli)] == [(["demo"], 120.0)]


def test_other_settings_are_not_used(cli: Cli, warm: Warm, workers: Callable[[str], int], work: Path) -> None:
    workers("demo")
    before = served(cli)
    done = warm("generate", *FOX, "-o", "t.png", *KEPT, cwd=work, env={"OMP_NUM_THREADS": "2"}, check=True)
    said = "the worker was started with other settings (threads, devices): this run does not use it"
    assert done.stderr == f"warning: {said}\n"
    assert served(cli) == before


@pytest.fixture
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for sockets of the test's own; its path is short enough for them."""
    return tmp_path_factory.mktemp("r")


def test_a_folder_that_is_open_to_others(warm: Warm, work: Path, runtime: Path) -> None:
    (runtime / "diffpipe").mkdir()
    (runtime / "diffpipe").chmod(0o755)
    env = {"XDG_RUNTIME_DIR": str(runtime)}
    insisting = warm("generate", *FOX, "-o", "o.png", *KEPT, cwd=work, env=env)
    assert insisting.returncode == 6
    assert "is open to other users" in insisting.stderr
    plain = warm("generate", *FOX, "-o", "o.png", cwd=work, env=env, check=True)
    assert "is open to other users: no worker is used" in plain.stderr
    assert plain.stdout == "o.png\n"


def test_a_worker_that_does_not_come_up(warm: Warm, work: Path, runtime: Path) -> None:
    """An error where one was insisted on, with what it said last; a warning where it is only the default."""
    (work / "site").mkdir()
    (work / "site/sitecustomize.py").write_text(BROKEN)
    env = {"PYTHONPATH": first_on_path("site"), "XDG_RUNTIME_DIR": str(runtime)}
    insisting = warm("generate", *FOX, "-o", "u.png", *KEPT, cwd=work, env=env)
    assert (insisting.returncode, insisting.stdout, insisting.stderr) == (
        1, "", "error: no worker came up: it is broken\n  try: run it with --no-worker\n",
    )  # fmt: skip
    plain = warm("generate", *FOX, "-o", "u.png", cwd=work, env={**env, "DIFFPIPE_KEEP_WARM": "5m"}, check=True)
    assert plain.stderr == "warning: no worker came up: it is broken: no worker is used (run it with --no-worker)\n"
    assert plain.stdout == "u.png\n"


def test_without_unix_sockets_the_run_loads_the_pipeline_itself(cli: Cli, warm: Warm, work: Path) -> None:
    """Said where a worker is asked for; refused where it is insisted on."""
    (work / "site").mkdir()
    (work / "site/sitecustomize.py").write_text(NO_SOCKETS)
    env = {"PYTHONPATH": first_on_path("site")}
    why = "this system has no Unix sockets, which workers need"
    hint = "do without --keep-warm: each run loads the pipeline itself"
    insisting = cli("generate", *FOX, "-o", "n.png", *KEPT, cwd=work, env=env)
    assert (insisting.returncode, insisting.stdout, insisting.stderr) == (6, "", f"error: {why}\n  try: {hint}\n")
    asking = cli("generate", *FOX, "-o", "n.png", cwd=work, env={**env, "DIFFPIPE_KEEP_WARM": "5m"}, check=True)
    assert (asking.stdout, asking.stderr) == ("n.png\n", f"warning: {why}: no worker is used ({hint})\n")
    listed = cli("worker", "list", cwd=work, env=env, check=True)
    assert listed.stderr == f"no worker runs: {why}\n"


def test_without_unix_sockets_who_asks_for_no_worker_hears_of_none(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(worker_folder, "supported", lambda: False)
    store = Store(cli.home)
    entry = store.find("demo")
    assert PipelineWorker(store, entry, entry.manifest(), KeepWarm(allowed=True)).find() is None
    assert capsys.readouterr() == ("", "")


def test_a_cache_of_its_own_has_workers_of_its_own(
    cli: Cli, warm: Warm, workers: Callable[[str], int], work: Path
) -> None:
    workers("demo")
    shutil.copytree(cli.home, work / "home")
    before = served(cli)
    warm("generate", *FOX, "-o", "x.png", cwd=work, env={"DIFFPIPE_HOME": str(work / "home")}, check=True)
    assert served(cli) == before
    assert json.loads(cli("worker", "list", "--json", env={"DIFFPIPE_HOME": str(work / "home")}).stdout) == []


def test_two_that_start_one_at_the_same_moment(cli: Cli, work: Path) -> None:
    cli("worker", "stop", "--all", check=True)
    both = [cli.begin("generate", *FOX, "-o", f"{name}.png", *KEPT, cwd=work) for name in ("one", "two")]
    for run in both:
        _, err = run.communicate(timeout=PATIENCE)
        assert (run.returncode, err) == (0, "")
    assert [(one["names"], one["requests"]) for one in statuses(cli)] == [(["demo"], 2)]
    assert (work / "one.png").read_bytes() == (work / "two.png").read_bytes()


def test_a_pipeline_that_cannot_be_loaded_is_told_as_without(cli: Cli, warm: Warm, work: Path) -> None:
    import diffpipe

    shutil.copytree(Path(diffpipe.__file__).parent / "demo", work / "model")
    warm("build", "demo", "--model", work / "model", "--name", "own", "--dtype", "float32", check=True)
    weights = next((work / "model/transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    words = ("generate", "own", "--prompt", "a fox", "--seed", 1, *SIZE, "-o", "x.png")
    there, here = cli(*words, *KEPT, cwd=work), warm(*words, "--no-worker", cwd=work)
    assert told(there) == told(here)
    assert there.returncode == 6
    assert "own" not in [name for one in json.loads(cli("worker", "list", "--json").stdout) for name in one["names"]]
    cli("pipelines", "remove", "own", check=True)


def test_removing_a_pipeline_ends_its_worker(cli: Cli, warm: Warm, workers: Callable[[str], int], work: Path) -> None:
    process = workers("demo")
    warm("pipelines", "remove", "demo", check=True)
    until(lambda: not runs(process))
    warm("build", "demo", check=True)
