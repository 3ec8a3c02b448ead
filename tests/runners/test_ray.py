"""--runner ray: on nodes of this machine, some runs with an engine that does nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import manifests
import pytest
from conftest import Cli, Warm
from PIL import Image
from ray_nodes import Nodes, children, nodes, private
from subprocesses import PATIENCE, first_on_path, runs, until

from diffpipe.cache.store import Store
from diffpipe.core.errors import DiffpipeError, Exit, NotFoundError, UsageError
from diffpipe.core.manifest import Manifest
from diffpipe.core.request import Outcome, Request
from diffpipe.runners.job import SIDE_BY_SIDE, Callbacks, Job
from diffpipe.runners.ray_cluster import input_files, node_pipeline, node_versions
from diffpipe.runners.ray_cluster.cluster import Cluster, check_installed
from diffpipe.runners.ray_cluster.connection import check_address
from diffpipe.runners.ray_cluster.dispatch import AHEAD, MOST, Dispatcher
from diffpipe.runners.ray_cluster.nodes import Node
from diffpipe.runners.ray_cluster.row_maker import MOST_DEATHS
from diffpipe.runners.ray_cluster.shares import shares_of
from diffpipe.runners.ray_cluster.worker_spec import WorkerSpec

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="nodes on one machine need Linux")


@pytest.fixture(scope="module")
def demo(warm: Warm) -> None:
    warm("build", "demo", check=True)


@pytest.fixture(scope="module")
def ray_nodes(cli: Cli, demo: None) -> Iterator[Nodes]:
    """A cluster whose one node has two CPUs and the module's cache."""
    with nodes() as made:
        made.add(cli.home, 2)
        yield made


@pytest.fixture
def items(warm: Warm, demo: None, tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    """A file of prompts, and what the local runner makes of it."""
    file = tmp_path / "p.jsonl"
    file.write_text("".join(f'{{"id": "i{at}", "prompt": "a fox", "seed": {at}}}\n' for at in range(8)))
    warm("generate", "demo", "--prompts-from", file, "-o", f"{tmp_path}/local/", check=True)
    return file, pictures(tmp_path / "local")


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


# The command line


def test_a_run_with_a_killed_worker_makes_what_the_local_runner_makes(
    cli: Cli, ray_nodes: Nodes, items: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    file, wanted = items
    words = ["generate", "demo", "--prompts-from", file, "-o", f"{tmp_path}/ray/", "--json", "--runner", "ray"]
    where = ["--ray-address", ray_nodes.address, "--workers", "2", "--gallery", f"{tmp_path}/page"]
    command = [sys.executable, "-m", "diffpipe", *map(str, [*words, *where])]
    with subprocess.Popen(
        command, env=cli.environment(ray_nodes.environment), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout
        first = run.stdout.readline()
        assert first, run.communicate()
        makers = {pid for pid, line in children(ray_nodes.processes[0].pid).items() if "Maker" in line}
        os.kill(min(makers), signal.SIGKILL)
        rest, said = run.communicate(timeout=PATIENCE)
    told = [
        json.loads(line) for line in [first, *rest.splitlines()]
    ]  # results alone, whatever Ray has to say of a killed worker
    assert (run.returncode, said) == (0, "Ray: 2 workers on 1 node\n8 made\n")
    assert sorted(one["id"] for one in told) == [f"i{at}" for at in range(8)]
    assert {Path(one["path"]).name for one in told} == set(wanted)
    assert pictures(tmp_path / "ray") == wanted
    assert (tmp_path / "page" / "index.html").exists()
    journal = [json.loads(line) for line in (tmp_path / "ray" / "demo.journal.jsonl").read_text().splitlines()]
    assert sorted(line["id"] for line in journal if line.get("status") == "done") == [f"i{at}" for at in range(8)]
    assert sorted(path.suffix for path in (tmp_path / "ray").iterdir()) == [".jsonl", ".lock", *[".png"] * 8]


def test_a_stream_is_made_as_it_comes_on_a_cluster_of_its_own(cli: Cli, demo: None, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "diffpipe", "generate", "demo", "--prompts-from", "-", "-o", f"{tmp_path}/out/"]
    with subprocess.Popen(
        [*command, "--runner", "ray", "--ray-address", "local"], env=cli.environment(private(tmp_path)),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as run:  # fmt: skip
        assert run.stdin
        assert run.stdout
        for prompt in ("a fox", "a cat"):
            run.stdin.write(f"{prompt}\n")
            run.stdin.flush()
            assert run.stdout.readline().endswith(".png\n")  # before the next line is there
        below = set(children(run.pid))
        run.send_signal(signal.SIGINT)
        rest, said = run.communicate(timeout=PATIENCE)
    assert (run.returncode, rest) == (130, "")
    assert said.splitlines()[-1] == "interrupted"
    assert len(pictures(tmp_path / "out")) == 2
    until(lambda: not any(map(runs, below)))


def test_another_node_gets_what_it_needs_and_one_with_other_versions_is_refused(
    cli: Cli, warm: Warm, checkpoints: Path, tmp_path: Path
) -> None:
    warm("build", "flux", "--type", "img2img", "--model", checkpoints / "flux", "--name", "tiny", check=True)
    Image.new("RGB", (128, 128), "red").save(tmp_path / "in.png")
    call = ["generate", "tiny", "--prompt", "x", "--image", f"{tmp_path}/in.png", "--seed", "1", "--count", "2"]
    call += ["--num-inference-steps", "2"]
    warm(*call, "-o", f"{tmp_path}/local/", check=True)
    with nodes() as made:
        made.add(cli.home, 0)
        made.add(tmp_path / "second", 1)
        where = ["--runner", "ray", "--ray-address", made.address, "--bundle", f"{tmp_path}/bundles/"]
        (tmp_path / "bundles").mkdir()
        done = cli(*call, "-o", f"{tmp_path}/ray/", *where, env=made.environment, check=True)
        fake = tmp_path / "fake" / "diffusers-0.1.0.dist-info"
        fake.mkdir(parents=True)
        (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: diffusers\nVersion: 0.1.0\n")
        made.add(tmp_path / "third", 1, {"PYTHONPATH": first_on_path(fake.parent)})
        refused = cli(*call, "-o", f"{tmp_path}/refused/", *where, env=made.environment)
    assert len(done.stdout.splitlines()) == 2
    assert pictures(tmp_path / "ray") == pictures(tmp_path / "local")
    assert len(pictures(tmp_path / "ray")) == 2
    (key,) = os.listdir(tmp_path / "second" / "pipelines")
    assert os.listdir(tmp_path / "bundles") == [f"{key}.tar"]
    assert len(os.listdir(tmp_path / "second" / "blobs")) > 5
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "(127.0.0.3) would make something else: it has diffusers 0.1.0 (here 0." in refused.stderr
    assert not (tmp_path / "refused").exists()


def test_a_node_builds_the_pipeline_from_what_pins_it(
    cli: Cli, warm: Warm, copy_of: Callable[..., Path], tmp_path: Path
) -> None:
    source = copy_of("flux")
    warm("build", "flux", "--model", source, "--name", "pinned", check=True)
    entry = Store(cli.home).find("pinned")
    places = entry.locations()
    spec = WorkerSpec(entry.manifest(), "pinned", places, {}, Job(), driver="", root="", folder="", umask=0o22)
    made = node_pipeline.entry_of(spec, Store(tmp_path / "second"))
    assert (made.key, made.folder.parent.parent) == (entry.key, tmp_path / "second")
    assert node_pipeline.located(entry.key, Store(tmp_path / "second")) == made
    source.rename(tmp_path / "moved")
    with pytest.raises(NotFoundError) as told:
        node_pipeline.entry_of(spec, Store(tmp_path / "third"))
    assert told.value.hint.startswith("pass --bundle with a folder or URL")
    assert node_pipeline.located(entry.key, Store(tmp_path / "second")) is None


@pytest.mark.parametrize(
    ("address", "says"),
    [("nonsense", "--ray-address nonsense is no address"), ("127.0.0.1:1", "there is no Ray cluster at 127.0.0.1:1")],
)
def test_an_address_that_leads_nowhere_is_refused_before_ray_waits_for_it(address: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_address(address)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--workers", "2"], "--workers needs --runner ray"),
        (["--ray-address", "local"], "--ray-address needs --runner ray"),
        (["--gpus-per-worker", "1"], "--gpus-per-worker needs --runner ray"),
        (["--bundle", "x/"], "--bundle needs --runner ray"),
        (["--runner", "ray", "--preview", "p.png"], "--preview cannot be used with --runner ray"),
        (["--runner", "ray", "--keep-warm", "5m"], "--keep-warm cannot be used with --runner ray"),
        (["--runner", "ray", "--gpus-per-worker", "1.5"], "--gpus-per-worker 1.5 is no share of a GPU"),
        (["--runner", "spark"], "'local'"),
        (["--runner", "ray", "--ray-address", "local", "--bundle", "b"], "--bundle cannot be used with --ray-address"),
    ],
    ids=" ".join,
)
def test_options_that_cannot_go_together_are_refused_at_once(cli: Cli, demo: None, words: list[str], says: str) -> None:
    done = cli.light("generate", "demo", "--prompt", "a fox", *words)
    assert (done.returncode, says in done.stderr) == (2, True), done.stderr


def test_a_dry_run_starts_nothing(cli: Cli, demo: None) -> None:
    done = cli.light("generate", "demo", "--prompt", "a fox", "--seed", "1", "--dry-run", "--runner", "ray")
    assert (done.returncode, done.stdout.split("\t")[0]) == (0, "demo-1.png")


def test_without_the_extra_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError) as told:
        check_installed()
    assert told.value.hint == "pip install 'diffpipe[ray]'"


# Runs with an engine that does nothing


def stub(folder: Path) -> Any:
    """What takes the place of a loaded pipeline: it writes what it is told to, after what an id asks for."""

    class Nothing:
        def __init__(self, manifest: Any, locations: Any) -> None:
            from diffpipe.core.errors import DiffpipeError

            if (folder / "refuse").exists():
                raise DiffpipeError("no GPU here", "plug one in")

        def outcomes(self, requests: Iterator[Any], how: Any) -> Iterator[Any]:
            from diffpipe.core.request import Artifact

            for request in requests:
                with (folder / "begun").open("a") as log:
                    log.write(f"{request.id} {request.overwrite}\n")
                self.obey(request.id)
                Path(request.paths[0]).write_bytes(b"made")
                made = Artifact(request.paths[0], request.seed, request.index, "image", 0.01)
                yield Outcome(request, (made,), ("slow",) if request.id == "warn" else ())

        def obey(self, word: str) -> None:
            from diffpipe.core.errors import DiffpipeError, Exit

            if word == "kill" or (word == "once" and not (folder / "died").exists()):
                (folder / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            while word.startswith("wait") and not (folder / "go").exists():
                time.sleep(0.02)
            if word == "full":
                raise DiffpipeError("the disk is full", "make room", Exit.CACHE)

        def memory_now(self) -> str:
            return ""

    return Nothing


Make = Callable[..., Iterator[Outcome]]


@pytest.fixture
def make(cli: Cli, ray_nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Runs requests of these ids, in this process as the driver; `drawn` counts those that were asked for."""
    monkeypatch.setenv("DIFFPIPE_HOME", str(cli.home))
    for name, value in ray_nodes.environment.items():
        monkeypatch.setenv(name, value)
    entry = Store().find("demo")

    def run(ids: list[str], drawn: list[str] | None = None, workers: int = 1, **job: Any) -> Iterator[Outcome]:
        def requests() -> Iterator[Request]:
            for at, name in enumerate(ids):
                if drawn is not None:
                    drawn.append(name)
                yield Request(at, at, {"prompt": "x"}, (str(tmp_path / f"{at}.png"),), id=name)

        where = Cluster(ray_nodes.address, workers)
        callbacks = Callbacks(lambda request, done, steps: None, print)
        with in_this_process():
            from diffpipe.runners.ray_cluster.runner import run_on_ray

            yield from run_on_ray(entry, entry.manifest(), requests(), Job(**job), callbacks, where, stub(tmp_path))

    return run


@contextmanager
def in_this_process() -> Iterator[None]:
    """Ray reads how it is to authenticate once, when it is imported: before any test has set it."""
    from ray._raylet import Config

    Config.initialize("")
    yield


def test_every_item_comes_once_though_a_worker_and_the_queue_die(make: Make, ray_nodes: Nodes, tmp_path: Path) -> None:
    ids = ["a", "once", "wait", *(f"n{at}" for at in range(30))]
    run = make(ids, several=True)
    found = [next(run)]
    until(lambda: "wait" in (tmp_path / "begun").read_text())
    processes = children(ray_nodes.processes[0].pid)
    (queue,) = [pid for pid, line in processes.items() if line.startswith("ray::RequestQueue")]
    os.kill(queue, signal.SIGKILL)
    (tmp_path / "go").touch()
    found += run
    assert sorted(one.request.id for one in found) == sorted(ids)
    assert [one.error for one in found if one.error] == []
    begun = (tmp_path / "begun").read_text().splitlines()
    assert "once False" in begun  # the first time
    assert "once True" in begun  # again, over whatever the dead worker left


def test_an_item_that_kills_every_worker_fails_alone(make: Make, tmp_path: Path) -> None:
    found = {one.request.id: one.error for one in make(["a", "kill", "b"])}
    assert found.keys() == {"a", "kill", "b"}
    assert (found["a"], found["b"]) == (None, None)
    assert found["kill"]
    assert found["kill"].message == f"{MOST_DEATHS} workers died while making it"
    assert (tmp_path / "begun").read_text().splitlines().count("kill True") == MOST_DEATHS - 1


def test_requests_are_drawn_a_few_ahead_of_the_work(make: Make, tmp_path: Path) -> None:
    drawn: list[str] = []
    run = make(["a", *(f"wait{at}" for at in range(50))], drawn, several=True)
    first = next(run)
    until(lambda: "wait0" in (tmp_path / "begun").read_text())
    seen = len(drawn)
    (tmp_path / "go").touch()
    assert len([first, *run]) == 51
    # While no item was made, a row is one; once "a" was, in no time, the next row is as long as may be.
    assert 1 < seen <= AHEAD + MOST < 51
    assert len(drawn) == 51


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_ends_a_run_here_ends_it_there(make: Make) -> None:
    """Also while whoever gives the requests takes its time: what comes from there later is asked of no Ray."""
    late = Late(["a", "full"])
    run = make(late)
    assert next(run).request.id == "a"
    with pytest.raises(DiffpipeError) as told:
        list(run)
    assert (told.value.message, told.value.exit_code) == ("the disk is full", Exit.CACHE)
    late.go_on.set()
    late.asked_in.join(PATIENCE)
    assert not late.asked_in.is_alive()


class Late(list[str]):
    """Ids, and after them one that comes when it is told to."""

    def __init__(self, ids: list[str]) -> None:
        super().__init__(ids)
        self.go_on = threading.Event()

    def __iter__(self) -> Iterator[str]:
        yield from super().__iter__()
        self.asked_in = threading.current_thread()
        self.go_on.wait()
        yield "b"


def test_why_workers_cannot_begin_is_told(make: Make, tmp_path: Path) -> None:
    (tmp_path / "refuse").touch()
    drawn: list[str] = []
    with pytest.raises(DiffpipeError) as told:
        list(make(["a"], drawn))
    assert told.value.message.endswith(": no GPU here")
    assert told.value.hint == "plug one in"


def test_an_error_of_who_gives_the_requests_is_raised_after_what_was_drawn(make: Make) -> None:
    run = make(Broken(["a", "b"]))
    assert [next(run).request.id for _ in range(2)] == ["a", "b"]
    with pytest.raises(UsageError, match="no more"):
        next(run)


class Broken(list[str]):
    def __iter__(self) -> Iterator[str]:
        yield from super().__iter__()
        raise UsageError("no more", "")


# What needs no cluster


def of_node(name: str, cpus: float, gpus: float = 0) -> Node:
    return Node(name, f"host-{name}", "127.0.0.1", cpus, gpus)


@pytest.mark.parametrize(
    ("there", "asked", "shares"),
    [
        ([of_node("a", 8)], Cluster(), (1, 8.0, 0.0, ["a"])),
        ([of_node("a", 8)], Cluster(workers=3), (3, 2.0, 0.0, ["a"])),
        ([of_node("a", 1)], Cluster(workers=4), (4, 0.25, 0.0, ["a"])),
        ([of_node("a", 0), of_node("b", 4)], Cluster(), (1, 4.0, 0.0, ["b"])),
        ([of_node("a", 96, 8)], Cluster(), (8, 1.0, 1.0, ["a"])),
        ([of_node("a", 96, 8)], Cluster(gpus=2), (4, 1.0, 2.0, ["a"])),
        ([of_node("a", 96, 8)], Cluster(gpus=0.5), (16, 1.0, 0.5, ["a"])),
        ([of_node("a", 96, 8)], Cluster(gpus=0), (1, 96.0, 0.0, ["a"])),
        ([of_node("a", 8), of_node("b", 8, 2), of_node("c", 8, 4)], Cluster(), (6, 1.0, 1.0, ["b", "c"])),
        ([of_node("a", 96, 8)], Cluster(workers=3), (3, 1.0, 1.0, ["a"])),
    ],
)
def test_workers_and_their_shares(
    there: list[Node], asked: Cluster, shares: tuple[int, float, float, list[str]]
) -> None:
    found = shares_of(there, asked)
    assert (found.workers, found.cpus, found.gpus, [one.id for one in found.nodes]) == shares


def test_shares_that_no_node_has_are_refused() -> None:
    with pytest.raises(UsageError, match="no node has 2 GPUs for a worker: 1 at most"):
        shares_of([of_node("a", 8, 1)], Cluster(gpus=2))
    with pytest.raises(UsageError, match="no node of the cluster has a CPU"):
        shares_of([of_node("a", 0)], Cluster())


def manifest(kind: str = "image", **config: Any) -> Manifest:
    return manifests.manifest(manifests.config_json(**config), kind=kind)


TORCHAO = {"mode": "int8", "backend": "torchao", "version": "1", "components": []}


LORA = {"kind": "local", "files": {"x.safetensors": f"sha256:{'0' * 64}"}, "scale": 1.0}


def test_which_versions_decide() -> None:
    always = ("diffpipe", "diffusers", "transformers", "torch")
    assert node_versions.deciding(manifest()) == (*always, "pillow")
    full = manifest("video", loras=[LORA], quantization=TORCHAO)
    assert node_versions.deciding(full) == (*always, "av", "torchao", "peft")


def test_differing_versions_are_told_with_those_here() -> None:
    here = {"Python": "3.11", "torch": "2.13.0", "peft": "0.21"}
    assert node_versions.differing(here, dict(here)) == []
    assert node_versions.differing(here, {"Python": "3.12", "torch": "2.13.0"}) == [
        "Python 3.12 (here 3.11)",
        "peft missing (here 0.21)",
    ]
    assert "+" not in node_versions.installed(["torch"])["torch"]


def test_rows_are_as_long_as_is_worth_the_drivers_time() -> None:
    def size(seconds: float, workers: int = 2, config: dict[str, Any] | None = None, **job: Any) -> int:
        dispatcher = Dispatcher(None, iter(()), Job(**{"several": True, **job}), workers, manifest(**(config or {})))
        dispatcher.seconds = seconds
        return dispatcher.size()

    assert [size(seconds) for seconds in (0.0, 5.0, 0.2, 0.001)] == [1, 1, 3, MOST]
    assert size(2.0, workers=1000) == 10
    assert size(0.001, several=False) == 1
    assert [size(seconds, batch_size=4) for seconds in (5.0, 0.1)] == [4, 4]
    assert size(5.0, config={"placement": {"device": "cpu", "cpu_offload": "model"}}) == SIDE_BY_SIDE


def test_files_and_folders_are_carried_whole(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "00001.png").write_bytes(b"1")
    (tmp_path / "one.png").write_bytes(b"2")
    for name in ("frames", "one.png"):
        input_files.lay_out(input_files.content(tmp_path / name), tmp_path / f"new-{name}")
        assert input_files.content(tmp_path / f"new-{name}") == input_files.content(tmp_path / name)
