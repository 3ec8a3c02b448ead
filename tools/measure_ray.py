"""What `generate --runner ray` makes, survives and costs, on the demo model with nodes on this machine.

    python tools/measure_ray.py equal [--items 300]       the same files as the local runner makes, by item id
    python tools/measure_ray.py kills [--items 300] [--kills 10]    worker processes killed while they work
    python tools/measure_ray.py resume [--items 100]      the driver killed, and run again with --resume
    python tools/measure_ray.py nodes                     a second node's pipeline: from a bundle, by building; versions
    python tools/measure_ray.py scaling [--items 200]     2 workers against 1, and 1 against the local runner
    python tools/measure_ray.py memory [--items 100000]   the driver's memory, with an engine that does nothing

Each prints what it measured and exits with 1 if it misses its bound. One torch thread each, on Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_nodes import Nodes, children, nodes, private, workers

DIFFPIPE = [sys.executable, "-m", "diffpipe"]
SUBJECTS = ("fox", "cat", "panda", "owl", "frog", "bear", "pig", "koala")
SPEED_UP = 1.8  # at least, of 2 workers
OVERHEAD = 1.1  # times the local runner's seconds an item, at most
GROWTH = 50.0  # MB of the driver
GONE = 10.0  # seconds after a driver's death in which its workers must be gone
Files = dict[str, bytes]


def prompts(count: int) -> None:
    rows = [{"id": f"i{at}", "prompt": f"a {SUBJECTS[at % len(SUBJECTS)]}", "seed": at} for at in range(count)]
    Path("p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def generate(output: str, *more: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    words = [*DIFFPIPE, "generate", "demo", "--prompts-from", "p.jsonl", "-o", output, "--json", *more]
    return subprocess.Popen(words, env={**os.environ, **(env or {})}, stdout=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> tuple[list[dict[str, Any]], list[float]]:
    """What a run told of each item, and when."""
    assert process.stdout
    told, times = [], []
    for line in process.stdout:
        told.append(json.loads(line))
        times.append(time.perf_counter())
    process.wait()
    return told, times


def pictures(folder: str) -> Files:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("*.png"))}


def strays(folder: str) -> list[str]:
    """What lies in a folder beside pictures and the journal."""
    known = ("demo-", "demo.journal.jsonl", ".demo.journal.jsonl.lock")
    return [path.name for path in Path(folder).iterdir() if not path.name.startswith(known)]


def ended(folder: str) -> list[str]:
    """The ids of the journal's lines of items that are done."""
    lines = map(json.loads, Path(folder, "demo.journal.jsonl").read_text().splitlines())
    return [line["id"] for line in lines if line.get("status") == "done"]


def on(cluster: Nodes, *more: str) -> tuple[str, ...]:
    return ("--runner", "ray", "--ray-address", cluster.address, *more)


def one_node(cluster: Nodes, cpus: int = 2) -> Nodes:
    cluster.add(Path(os.environ["DIFFPIPE_HOME"]), cpus)
    return cluster


def local(items: int) -> Files:
    """What the local runner makes of the prompts."""
    prompts(items)
    finished(generate("local/", "-q"))
    return pictures("local")


def compare(told: Sequence[Mapping[str, Any]], folder: str, wanted: Files) -> bool:
    """Print and return whether a folder holds each picture once, as the local runner makes it."""
    ids, made = [one["id"] for one in told if one["path"]], pictures(folder)
    right = sum(made.get(name) == data for name, data in wanted.items())
    done = ended(folder)
    print(f"{len(wanted)} items: {right} byte-equal, {len(ids)} told, {len(set(ids))} of them different, "
          f"{len(made)} files, {len(set(done))} in the journal, {len(strays(folder))} strays")  # fmt: skip
    once = len(ids) == len(set(ids)) == len(done) == len(set(done)) == len(wanted)
    return right == len(made) == len(wanted) and once and not strays(folder)


def equal(items: int) -> bool:
    wanted = local(items)
    with nodes() as cluster:
        one_node(cluster)
        told, _ = finished(generate("ray/", *on(cluster, "--workers", "2"), env=cluster.environment))
    return compare(told, "ray", wanted)


def kills(items: int, count: int) -> bool:
    wanted = local(items)
    with nodes() as cluster:
        one_node(cluster)
        process = generate("ray/", *on(cluster, "--workers", "2"), env=cluster.environment)
        killed = _kill(process, cluster, items, count)
        told, _ = finished(process)
    print(f"killed: {', '.join(killed)}; exit code {process.returncode}")
    return compare(told, "ray", wanted) and process.returncode == 0 and len(killed) == count


def _kill(process: subprocess.Popen[str], cluster: Nodes, items: int, count: int) -> list[str]:
    """Kill so many worker processes, each after a random share of the items; most that are picked have a pipeline."""
    killed: list[str] = []
    chosen = random.Random(time.time_ns())
    after = sorted(chosen.sample(range(items * 9 // 10), count))
    while process.poll() is None and len(killed) < count:
        made = len(list(Path("ray").glob("*.png"))) if Path("ray").exists() else 0
        if made > after[len(killed)]:
            found = {pid: children(cluster.processes[0].pid).get(pid, "") for pid in workers(cluster.processes[0].pid)}
            makers = [pid for pid, line in found.items() if "Maker" in line]
            if not makers:
                continue
            pid = chosen.choice(makers if chosen.random() < 0.7 else list(found))
            os.kill(pid, signal.SIGKILL)
            killed.append(found[pid].removeprefix("ray::").split(".")[0])
        time.sleep(0.05)
    return killed


def resume(items: int) -> bool:
    wanted = local(items)
    with nodes() as cluster:
        one_node(cluster)
        process = generate("ray/", *on(cluster, "--workers", "2"), env=cluster.environment)
        while len(pictures("ray")) < items // 3:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        orphans = _seconds_of_orphans(cluster)
        before, done = pictures("ray"), len(ended("ray"))
        time.sleep(2)
        later = len(pictures("ray")) - len(before)
        again = generate("ray/", *on(cluster, "--workers", "2", "--resume"), env=cluster.environment)
        told, _ = finished(again)
    print(
        f"driver killed with {done} of {items} done; its workers were gone after {orphans:.1f} s, {later} files later"
    )
    print(f"resumed: {len(told)} made")
    right = pictures("ray") == wanted and not strays("ray")
    print(f"byte-equal: {right}; exit code {again.returncode}")
    return right and len(told) == items - done and later == 0 and orphans < GONE


def _seconds_of_orphans(cluster: Nodes) -> float:
    started = time.perf_counter()
    while any("Maker" in line for line in children(cluster.processes[0].pid).values()):
        if time.perf_counter() - started > GONE:
            break
        time.sleep(0.05)
    return time.perf_counter() - started


def second_node(
    items: int, *more: str, environment: Mapping[str, str] | None = None
) -> tuple[int, list[str], list[str]]:
    """A run on two nodes, the second with an empty cache: exit code, ids, and what its cache holds then."""
    home = Path("second").absolute()
    shutil.rmtree(home, ignore_errors=True)
    shutil.rmtree("ray", ignore_errors=True)
    with nodes() as cluster:
        one_node(cluster, 0)  # the head has no CPU for workers: the second node makes all
        cluster.add(home, 1, environment)
        process = generate("ray/", *on(cluster, *more), env=cluster.environment)
        told, _ = finished(process)
        code = process.returncode
    names = [path.name for path in (home / "pipelines").iterdir()] if (home / "pipelines").exists() else []
    blobs = [path.name for path in (home / "blobs").iterdir()] if (home / "blobs").exists() else []
    return code, [one["id"] for one in told if one["path"]], [*names, *blobs]


def two_nodes(items: int) -> bool:
    wanted = local(items)
    good = True
    for label, more in (("bundle", ("--bundle", f"{Path('bundles').absolute()}/")), ("pinned manifest", ())):
        Path("bundles").mkdir(exist_ok=True)
        started = time.perf_counter()
        code, ids, cache = second_node(items, *more)
        same = pictures("ray") == wanted
        print(f"{label}: exit code {code}, {len(ids)} items, byte-equal {same}, "
              f"{len(cache)} things in the second cache, {time.perf_counter() - started:.1f} s in all")  # fmt: skip
        good &= code == 0 and same and len(cache) > 0
    fake = Path("fake", "diffusers-0.1.0.dist-info")
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: diffusers\nVersion: 0.1.0\n")
    code, ids, _ = second_node(items, environment={"PYTHONPATH": str(fake.parent.absolute())})
    print(f"another version: exit code {code}, {len(ids)} items")
    return good and code == 1 and not ids


def scaling(items: int) -> bool:
    """Each way twice, in turns, and the faster time of each: others may use the machine."""
    prompts(items)
    found: dict[str, float] = {}
    with nodes() as cluster:
        one_node(cluster)
        ways: tuple[tuple[str, tuple[str, ...]], ...] = (
            ("local", ()),
            ("ray, 1 worker", on(cluster, "--workers", "1")),
            ("ray, 2 workers", on(cluster, "--workers", "2")),
        )
        for turn in ("first", "second"):
            for label, more in ways:
                seconds = _timed(f"{label}, {turn} time", items, more, cluster.environment)
                found[label] = min(seconds, found.get(label, seconds))
    over, faster = found["ray, 1 worker"] / found["local"], found["ray, 1 worker"] / found["ray, 2 workers"]
    print(f"overhead {over:.3f} (at most {OVERHEAD}), 2 workers {faster:.2f} times as fast (at least {SPEED_UP})")
    return over <= OVERHEAD and faster >= SPEED_UP


def _timed(label: str, items: int, more: tuple[str, ...], env: Mapping[str, str]) -> float:
    """Seconds an item, start-up apart."""
    started = time.perf_counter()
    told, times = finished(generate(f"{label}/", *more, env=env))
    assert len(told) == items
    tenth = items // 10  # from there, as workers come one after the other
    seconds = (times[-1] - times[tenth]) / (items - 1 - tenth)
    within = sum(one["seconds"] for one in told[tenth:]) / (items - tenth)
    print(f"{label}: first after {times[0] - started:.1f} s, then {seconds * 1000:.1f} ms an item "
          f"({within * 1000:.1f} ms in the pipeline)")  # fmt: skip
    return seconds


class Nothing:
    """What takes the place of a loaded pipeline: every request is done at once, and makes nothing."""

    def __init__(self, manifest: Any, locations: Any) -> None:
        pass

    def outcomes(self, requests: Iterator[Any], how: Any) -> Iterator[Any]:
        from diffpipe.core.request import Artifact, Outcome

        for request in requests:
            yield Outcome(request, (Artifact(request.paths[0], request.seed, request.index, "image", 0.001),))

    def memory_now(self) -> str:
        return ""


def memory(items: int) -> bool:
    os.environ |= private(Path.cwd())
    from diffpipe.cache.store import Store
    from diffpipe.core.request import Request
    from diffpipe.runners.job import Callbacks, Job
    from diffpipe.runners.ray_cluster.cluster import Cluster
    from diffpipe.runners.ray_cluster.runner import run_on_ray

    entry = Store().find("demo")
    requests = (Request(at, at, {"prompt": "a fox"}, (f"out/{at}.png",), id=str(at)) for at in range(items))
    callbacks = Callbacks(lambda request, done, steps: None, print)
    early, most, started, count = 0.0, 0.0, 0.0, 0
    for _ in run_on_ray(entry, entry.manifest(), requests, Job(several=True), callbacks, Cluster("local", 1), Nothing):
        count += 1
        started = started or time.perf_counter()
        if count == items // 100:
            early = _resident()
        if count % 1000 == 0:
            most = max(most, _resident())
    seconds = (time.perf_counter() - started) / items
    print(f"{count} items, {seconds * 1000:.2f} ms each; the driver's memory: {early:.0f} MB after the first "
          f"{items // 100}, {most:.0f} MB at most: grown by {most - early:.0f} MB")  # fmt: skip
    return count == items and most - early < GROWTH


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = {"equal": (equal, 300), "kills": (kills, 300), "resume": (resume, 100), "nodes": (two_nodes, 40)}
    what |= {"scaling": (scaling, 200), "memory": (memory, 100_000)}
    parser.add_argument("what", choices=list(what))
    parser.add_argument("--items", type=int)
    parser.add_argument("--kills", type=int, default=10)
    given = parser.parse_args()
    run, usual = what[given.what]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ |= {"DIFFPIPE_HOME": str(Path(folder, "home")), "OMP_NUM_THREADS": "1"}
        subprocess.run([*DIFFPIPE, "build", "demo", "-q"], check=True, stdout=subprocess.DEVNULL)
        more = {"count": given.kills} if given.what == "kills" else {}
        good = run(given.items or usual, **more)
        os.chdir("/")
    print("good" if good else "MISSED")
    sys.exit(not good)


if __name__ == "__main__":
    main()
