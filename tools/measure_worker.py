"""What the warm worker does under load and under faults, on the demo model in a temporary cache.

    python tools/measure_worker.py loop [--items 100]      a shell loop of calls against one batch: the same bytes
    python tools/measure_worker.py clients [--items 20]    clients at once, some killed or interrupted: none mixed up
    python tools/measure_worker.py kills [--items 200]     the worker killed at random moments of a batch, 20 times
    python tools/measure_worker.py faults                  wrong sockets, folders, frames, versions, disks, clocks
    python tools/measure_worker.py ends                    what is left when a worker has ended
    python tools/measure_worker.py without                 no worker, and a system without Unix sockets

Each check is printed with the seconds it took, and must end within its bound. Exits with 1 if one fails. Checks that
need another user's rights are left out where this process cannot take them on (it is not root).
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DIFFPIPE = [sys.executable, "-m", "diffpipe"]
SUBJECTS = ("fox", "cat", "panda", "owl", "frog", "bear", "pig", "koala", "dog", "lion")
SMALL = ("--width", "64", "--height", "64", "--num-inference-steps", "2", "-q")
SLOW = ("--num-inference-steps", "2000", "-q")
NOBODY = 65534
SOON = 15.0  # seconds for what needs no new worker; a cold start of this program takes about 5 of them
KEPT = ("--keep-warm", "10m")
RUNTIME = Path("run/diffpipe")
NO_SOCKETS = """
from diffpipe.runners.worker import folder
folder.supported = lambda: False
"""
BACKWARDS = """
import time
real, calls = time.time, []
time.time = lambda: (calls.append(0), real() - 3600 * len(calls))[1]
"""
Done = subprocess.CompletedProcess[str]
Checks = list[tuple[str, float, Callable[[], bool | str]]]


# Running things


def run(*words: object, env: dict[str, str] | None = None) -> Done:
    line = [*DIFFPIPE, *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, env={**os.environ, **(env or {})}, check=False)


def made(*words: object, env: dict[str, str] | None = None) -> Done:
    """Run `generate demo`, which must succeed."""
    done = run("generate", "demo", *words, env=env)
    if done.returncode:
        raise AssertionError(f"exit code {done.returncode}: {done.stderr}")
    return done


def begun(*words: object) -> subprocess.Popen[str]:
    line = [*DIFFPIPE, "generate", "demo", *map(str, words)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def picture(name: str, subject: str = "fox", seed: int = 1) -> tuple[object, ...]:
    return ("--prompt", f"a {subject}", "--seed", seed, "-o", name, "--overwrite", *SMALL)


def pictures(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).glob("*.png")}


def rows(items: int, path: str) -> list[tuple[str, int]]:
    """Prompts and seeds, twenty prompts over and over; as a file too."""
    chosen = [(f"a {SUBJECTS[at % 10]}{' at night' if at % 20 >= 10 else ''}", at) for at in range(items)]
    lines = [json.dumps({"prompt": prompt, "seed": seed, "output": f"{seed}.png"}) for prompt, seed in chosen]
    Path(path).write_text("\n".join(lines) + "\n")
    return chosen


def reference(items: int, folder: str) -> dict[str, bytes]:
    """The pictures of one undisturbed batch without a worker."""
    rows(items, "rows.jsonl")
    made("--prompts-from", "rows.jsonl", "-o", f"{folder}/", "--no-worker", *SMALL)
    return pictures(folder)


# Looking at the worker


def pid() -> int | None:
    for path in RUNTIME.glob("*.pid"):
        with suppress(OSError, ValueError):
            return int(path.read_text())
    return None


def alive(process: int) -> bool:
    """Whether a process runs; one that has ended and was not asked for its exit code has no memory any more."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def within(seconds: float, true: Callable[[], object]) -> bool:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def warmed() -> int:
    """A worker that runs and is idle; its process."""
    made(*picture("warm.png"), *KEPT)
    process = pid()
    assert process, "no worker runs"
    return process


def still(process: int) -> bool:
    """Whether that very worker serves."""
    before = requests()
    made(*picture("again.png"))
    return pid() == process and requests() == before + 1 and Path("again.png").read_bytes() == expected()


def requests() -> int:
    found = json.loads(run("worker", "list", "--json").stdout)
    return sum(one["requests"] or 0 for one in found)


def expected() -> bytes:
    if not Path("expected.png").exists():
        made(*picture("expected.png"), "--no-worker")
    return Path("expected.png").read_bytes()


def left_over() -> list[str]:
    """Files that no worker should leave behind (its lock's is empty, and stays)."""
    found = [str(path) for path in RUNTIME.iterdir() if path.suffix != ".lock"] if RUNTIME.exists() else []
    return found + glob.glob("spool/diffpipe*") + [str(path) for path in Path().rglob(".*.tmp")]


def stopped() -> None:
    run("worker", "stop", "--all")


def checked(checks: Checks, only: str) -> bool:
    """Run checks, each from no worker on; whether all are right and in time. `only`: what of a name picks them."""
    good = True
    for name, bound, check in (one for one in checks if only in one[0]):
        shutil.rmtree(RUNTIME, ignore_errors=True)
        started = time.monotonic()
        try:
            found = check()
        except AssertionError as error:
            found = False
            print(f"  {error}")
        took = time.monotonic() - started
        right = found is True and took <= bound
        word = "left out" if isinstance(found, str) else "yes" if right else "NO"
        print(
            f"{word:8} {took:6.1f} s of {bound:.0f}  {name}{f' ({found})' if isinstance(found, str) else ''}",
            flush=True,
        )
        good = good and (right or isinstance(found, str))
        stopped()
    return good


# loop, clients, kills


def loop(items: int) -> bool:
    whole = reference(items, "batch")
    process = warmed()
    started = time.monotonic()
    for prompt, seed in rows(items, "rows.jsonl"):
        made("--prompt", prompt, "--seed", seed, "-o", f"loop/{seed}.png", *SMALL)
    took = time.monotonic() - started
    equal = pictures("loop") == whole and len(whole) == items
    print(f"{items} calls in {took:.1f} s, {took / items:.3f} s each, equal: {equal}; one worker: {pid() == process}")
    return equal and pid() == process


def clients(items: int) -> bool:
    whole = reference(items, "batch")
    process = warmed()
    descriptors = len(os.listdir(f"/proc/{process}/fd"))
    several = [
        begun("--prompt", prompt, "--seed", seed, "-o", f"many/{seed}.png", *SMALL)
        for prompt, seed in rows(items, "rows.jsonl")
    ]
    slow = begun("--prompt", "a fox", "--seed", 1, "-o", "slow/killed.png", *SLOW)
    within(60, lambda: len(pictures("many")) > items // 4)
    slow.kill()
    codes = [one.wait(300) for one in several]
    slow.communicate()
    equal = pictures("many") == whole and len(whole) == items and not any(codes)
    print(f"{items} clients at once, one more killed: exit codes {sorted(set(codes))}, equal to serial runs: {equal}")
    calm = within(10, lambda: len(os.listdir(f"/proc/{process}/fd")) <= descriptors + 1)
    print(f"descriptors given back: {calm}")
    return equal and calm and still(process) and interrupted(process)


def interrupted(process: int) -> bool:
    """Ctrl-C in a client: its item stops at the next step, the worker serves the next one at once."""
    slow = begun("--prompt", "a fox", "--seed", 1, "-o", "slow/interrupted.png", *SLOW)
    within(30, busy)
    time.sleep(1)
    slow.send_signal(signal.SIGINT)
    started = time.monotonic()
    slow.communicate(timeout=30)
    ended = time.monotonic() - started
    free = within(10, lambda: not busy())
    print(
        f"interrupted: exit code {slow.returncode} after {ended:.1f} s, worker free: {free}, left: {os.listdir('slow')}"
    )
    return slow.returncode == 130 and free and not os.listdir("slow") and still(process)


def busy() -> bool:
    found = json.loads(run("worker", "list", "--json").stdout or "[]")
    return any(one["busy"] for one in found)


def kills(items: int, times: int) -> bool:
    whole = reference(items, "batch")
    batch = begun("--prompts-from", "rows.jsonl", "-o", "killed/", *SMALL, *KEPT)
    chance, journal = random.Random(0), Path("killed/demo.journal.jsonl")
    count = 0
    for goal in sorted(chance.sample(range(1, items - 2), times)):
        while batch.poll() is None and not (journal.exists() and journal.read_bytes().count(b'"done"') >= goal):
            time.sleep(0.01)
        time.sleep(chance.random() / 20)
        count += killed(batch)
    _, told = batch.communicate(timeout=600)
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    done = [line["id"] for line in lines if line.get("status") == "done"]
    failed = [line["error"] for line in lines if line.get("status") == "failed"]
    equal = pictures("killed") == whole
    stopped()
    print(f"killed {count} times: exit code {batch.returncode}, {len(done)} done, {len(failed)} failed, equal: {equal}")
    print(f"left over: {left_over()}\n{told.strip()}")
    return equal and len(done) == len(set(done)) == items and not failed and not left_over() and count == times


def killed(batch: subprocess.Popen[str]) -> bool:
    """Kill the worker, once there is one; whether there was before the batch ended."""
    while batch.poll() is None:
        if (process := pid()) and alive(process):
            os.kill(process, signal.SIGKILL)
            return within(10, lambda: not alive(process))
        time.sleep(0.01)
    return False


# faults


def removed_socket() -> bool:
    process = warmed()
    next(RUNTIME.glob("*.sock")).unlink()
    return within(5, lambda: list(RUNTIME.glob("*.sock"))) and still(process)


def removed_folder() -> bool:
    """The worker whose lock is gone ends; another one can be started meanwhile."""
    process = warmed()
    shutil.rmtree(RUNTIME)
    other = warmed()
    return other != process and within(10, lambda: not alive(process)) and still(other)


def open_folder() -> bool:
    RUNTIME.mkdir(mode=0o755, parents=True)
    RUNTIME.chmod(0o755)
    try:
        return refused_folder("open to other users")
    finally:
        RUNTIME.chmod(0o700)


def others_folder() -> bool | str:
    if os.getuid():
        return "not root"
    RUNTIME.mkdir(mode=0o700, parents=True)
    os.chown(RUNTIME, NOBODY, NOBODY)
    return refused_folder("belongs to another user")


def refused_folder(why: str) -> bool:
    """A run that insists on a worker fails; one that does not goes on without, and says so."""
    insisting = run("generate", "demo", *picture("no.png"), *KEPT)
    plain = made(*picture("plain.png"))
    same = Path("plain.png").read_bytes() == expected()
    return insisting.returncode == 6 and why in insisting.stderr and why in plain.stderr and same


def others_socket() -> bool | str:
    if os.getuid():
        return "not root"
    process = warmed()
    os.chown(next(RUNTIME.glob("*.sock")), NOBODY, NOBODY)
    plain = made(*picture("plain.png"))
    same = Path("plain.png").read_bytes() == expected()
    os.chown(next(RUNTIME.glob("*.sock")), 0, 0)
    return "not yours" in plain.stderr and same and still(process)


def others_process() -> bool | str:
    if os.getuid():
        return "not root"
    process = warmed()
    path = next(RUNTIME.glob("*.sock"))
    os.kill(process, signal.SIGKILL)
    path.unlink()
    child = os.fork()
    if not child:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
            os.setuid(NOBODY)
            listening.listen()
            while True:
                listening.accept()
    try:
        within(5, path.exists)
        plain = made(*picture("plain.png"))
        return "not yours" in plain.stderr and Path("plain.png").read_bytes() == expected()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def frame(value: object) -> bytes:
    data = json.dumps(value).encode()
    return struct.pack(">I", len(data)) + data


def garbage() -> bool:
    """Whatever is sent, the worker serves on, at once; who sends it is shown out."""
    process = warmed()
    hello, job = (
        frame({"hello": 1}),
        {"batch_size": 1, "several": False, "fit": False, "about": None, "step_down": True},
    )
    begin = hello + frame({"job": {**job, "previews": None}, "umask": 18, "keep": None, "steps": False})
    deep = b"[" * 100_000
    attacks = [
        random.Random(0).randbytes(4096), b"GET / HTTP/1.1\r\n\r\n", struct.pack(">I", 2**32 - 1) + b"x", b"\0\0",
        struct.pack(">I", 100) + b"half", frame({"good": "day"}), frame([1, 2]), frame("text"), frame(None),
        struct.pack(">I", len(deep)) + deep, frame({"hello": 1, "ask": {"x": 1}})[:-3],
        hello + frame({"make": [{"no": "request"}], "files": {}, "forget": []}),
        hello + frame({"make": [], "files": {}, "forget": []}), hello + frame({"job": 5}),
        hello + frame({"job": {**job, "previews": None}, "umask": 10**30, "keep": 1e999, "steps": 1}),
        begin + frame({"make": [{"index": 0, "seed": "x", "arguments": {"prompt": 5}, "paths": ["/no/where/x.png"]}],
                       "files": {}, "forget": []}),
        begin + frame({"make": [{}], "files": {"x": [1, 2, 3]}, "forget": ["y"]}),
        begin + frame({"file": 0, "name": "../../stolen", "piece": ""}),
        begin + frame({"file": 0, "name": "/etc/stolen", "piece": ""}),
        begin + frame({"file": 0, "name": "x" * 5000, "piece": ""}),
        begin + frame({"file": 1e999, "name": "x", "piece": "!"}),
        begin + frame({"make": [], "files": {}, "forget": [".."]}),
    ]  # fmt: skip
    held = [attack(data) for data in attacks]
    good = still(process)
    for one in held:
        one.close()
    return good and still(process) and not Path("/etc/stolen").exists()


def attack(data: bytes) -> socket.socket:
    connected = socket.socket(socket.AF_UNIX)
    connected.connect(str(next(RUNTIME.glob("*.sock"))))
    with suppress(BrokenPipeError, ConnectionResetError):
        connected.sendall(data)
    return connected


def silence() -> bool:
    """Half a frame and then nothing: that client is shown out after the time-out, and holds up nobody."""
    process = warmed()
    held = attack(struct.pack(">I", 100) + b"half")
    held.settimeout(20)
    started = time.monotonic()
    good = still(process)
    ended = held.recv(1) == b""
    return good and ended and time.monotonic() - started < 15


@contextmanager
def changed(name: str, old: str, new: str) -> Iterator[dict[str, str]]:
    """The environment of a copy of this package with a line that is another."""
    import diffpipe

    shutil.copytree(Path(diffpipe.__file__).parent, "copy/diffpipe", ignore=shutil.ignore_patterns("__pycache__"))
    path = Path("copy/diffpipe", name)
    text = path.read_text()
    assert text.count(old) == 1, f"{name} has no {old}"
    path.write_text(text.replace(old, new))
    yield {"PYTHONPATH": "copy"}
    shutil.rmtree("copy")


def upgraded(name: str, old: str, new: str) -> bool:
    """A client of another version replaces an idle worker, and leaves one that has clients alone."""
    process = warmed()
    with changed(name, old, new) as env:
        slow = begun("--prompt", "a fox", "--seed", 1, "-o", "slow/old.png", *SLOW)
        within(30, busy)
        beside = made(*picture("new.png"), env=env)
        good = "of other versions" in beside.stderr and alive(process)
        slow.kill()
        slow.communicate()
        good = good and within(10, lambda: not alive(process))
        process = warmed()
        instead = made(*picture("new.png"), env=env)
        good = good and "of other versions: it was stopped" in instead.stderr and pid() not in (process, None)
        return good and not alive(process) and Path("new.png").read_bytes() == expected()


def other_version() -> bool:
    from diffpipe import __version__

    return upgraded("__init__.py", f'"{__version__}"', '"99.0"')


def other_protocol() -> bool:
    return upgraded("runners/worker/protocol.py", "VERSION = 1 ", "VERSION = 2 ")


@contextmanager
def small_disk(place: str) -> Iterator[bool]:
    """A disk of 16 kB, where this process may make one."""
    Path(place).mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", place], check=False, capture_output=True)
    try:
        yield done.returncode == 0
    finally:
        subprocess.run(["umount", place], check=False, capture_output=True)


def full_disk() -> bool | str:
    """The same error as without a worker, which serves on."""
    with small_disk("full") as mounted:
        if not mounted:
            return "no mount"
        Path("full/most").write_bytes(bytes(12 << 10))
        process = warmed()
        there = run("generate", "demo", *picture("full/x.png"))
        here = run("generate", "demo", *picture("full/x.png"), "--no-worker")
        same = there.stderr == here.stderr and there.returncode == here.returncode == 6
        return same and os.listdir("full") == ["most"] and still(process)


def full_spool() -> bool | str:
    """Input files that the worker cannot keep: the client is told, the worker serves on."""
    from PIL import Image

    Image.effect_noise((400, 400), 90).convert("RGB").save("noise.png")
    with small_disk("tiny") as mounted:
        if not mounted:
            return "no mount"
        words = ("--prompt", "a fox", "--image", "noise.png", "--seed", 1, "--overwrite", "-q", "-o", "edited.png")
        env = {"TMPDIR": os.path.abspath("tiny")}
        done = run("generate", "edit", *words, *KEPT, env=env)
        return (
            done.returncode == 6
            and "cannot keep an input file" in done.stderr
            and bool(pid())
            and not os.listdir("tiny")
        )


@contextmanager
def site(text: str) -> Iterator[dict[str, str]]:
    """The environment of a Python that runs this at its start."""
    Path("site").mkdir(exist_ok=True)
    Path("site/sitecustomize.py").write_text(text)
    yield {"PYTHONPATH": "site"}
    shutil.rmtree("site")


def clock() -> bool:
    """Each look at the clock an hour before the last one, for client and worker."""
    with site(BACKWARDS) as env:
        made(*picture("one.png"), "--keep-warm", "2s", env=env)
        process = pid()
        made(*picture("two.png"), env=env)
        same = Path("one.png").read_bytes() == Path("two.png").read_bytes()
        return same and process is not None and within(8, lambda: not alive(process)) and not left_over()


def stopped_idle() -> bool:
    """A worker that says nothing (SIGSTOP) is ended after WELCOME seconds, and the run goes on."""
    process = warmed()
    os.kill(process, signal.SIGSTOP)
    done = made(*picture("plain.png"))
    right = Path("plain.png").read_bytes() == expected()
    return "did not answer" in done.stderr and right and not alive(process) and not left_over()


def stopped_at_work() -> bool:
    """A worker that is stopped during an item is given up after SILENCE seconds."""
    process = warmed()
    slow = begun("--prompt", "a fox", "--seed", 1, "-o", "slow/stopped.png", *SLOW)
    within(30, busy)
    os.kill(process, signal.SIGSTOP)
    _, told = slow.communicate(timeout=100)
    return slow.returncode == 1 and "the worker ended" in told and within(5, lambda: not alive(process))


def faults() -> Checks:
    return [
        ("the socket's file is removed", SOON, removed_socket),
        ("the folder is removed", 30, removed_folder),
        ("the folder is open to others", 2 * SOON, open_folder),
        ("the folder is another user's", 2 * SOON, others_folder),
        ("the socket is another user's", 2 * SOON, others_socket),
        ("another user's process listens", 2 * SOON, others_process),
        ("garbage", 2 * SOON, garbage),
        ("half a frame, then silence", 2 * SOON, silence),
        ("another version", 60, other_version),
        ("another protocol", 60, other_protocol),
        ("full disk of results", 2 * SOON, full_disk),
        ("full disk of input files", SOON, full_spool),
        ("clock set back", 2 * SOON, clock),
        ("stopped while idle", 20 + 2 * SOON, stopped_idle),
        ("stopped at work", 60 + SOON + 10, stopped_at_work),
    ]  # fmt: skip


# ends


def after_stop() -> bool:
    process = warmed()
    done = run("worker", "stop", "demo")
    return done.returncode == 0 and not alive(process) and not left_over()


def after_idle() -> bool:
    made(*picture("one.png"), "--keep-warm", "2s")
    process = pid()
    return process is not None and within(5, lambda: not alive(process)) and within(1, lambda: not left_over())


def after_zero() -> bool:
    process = warmed()
    made(*picture("one.png"), "--keep-warm", "0")
    return within(3, lambda: not alive(process)) and within(1, lambda: not left_over())


def two_at_once() -> bool:
    both = [begun(*picture(f"{name}.png"), *KEPT) for name in ("one", "two")]
    codes = [one.wait(60) for one in both]
    found = json.loads(run("worker", "list", "--json").stdout)
    for one in both:
        one.communicate()
    return codes == [0, 0] and len(found) == 1 and found[0]["requests"] == 2 and left_only(found[0]["pid"])


def left_only(process: int) -> bool:
    """Whether that is the only process of a worker of this cache, once those that came second have ended."""
    return within(8, lambda: workers() == [process])


def workers() -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            line = path.read_bytes()
            if b"diffpipe.runners.worker.server" in line and os.fsencode(os.getcwd()) in line:
                found.append(int(path.parent.name))
    return found


def failing_load() -> bool:
    """A pipeline that cannot be loaded: the same error through a worker as without."""
    stopped()
    path = next(path for path in Path("copied").rglob("*.safetensors"))
    data = path.read_bytes()
    made_once = run("generate", "copied", *picture("one.png"), *KEPT).returncode
    stopped()
    path.write_bytes(data[:1000])
    there, here = (run("generate", "copied", *picture("one.png"), *words) for words in (KEPT, ("--no-worker",)))
    path.write_bytes(data)
    same = (there.returncode, there.stderr) == (here.returncode, here.stderr)
    return made_once == 0 and same and here.returncode != 0 and not left_over()


def ends() -> Checks:
    import diffpipe

    shutil.copytree(Path(diffpipe.__file__).parent / "demo", "copied")
    run("build", "demo", "--model", os.path.abspath("copied"), "--name", "copied", "--dtype", "float32", "-q")
    return [
        ("worker stop", SOON, after_stop),
        ("idle time over", SOON + 5, after_idle),
        ("--keep-warm 0", SOON, after_zero),
        ("two start a worker at the same moment", 2 * SOON, two_at_once),
        ("a pipeline that cannot be loaded", 3 * SOON, failing_load),
    ]  # fmt: skip


# without


def switched_off() -> bool:
    process = warmed()
    before = requests()
    made(*picture("off.png"), "--no-worker")
    return requests() == before and pid() == process and Path("off.png").read_bytes() == expected()


def no_sockets() -> bool:
    """Each run loads the pipeline itself; one that insists on a worker is refused."""
    with site(NO_SOCKETS) as env:
        insisting = run("generate", "demo", *picture("no.png"), *KEPT, env=env)
        asking = made(*picture("one.png"), env={**env, "DIFFPIPE_KEEP_WARM": "10m"})
        plain = made(*picture("two.png"), env=env)
    refused = insisting.returncode == 6 and "no Unix sockets" in insisting.stderr
    said = "no worker is used" in asking.stderr and not plain.stderr and pid() is None
    return refused and said and {Path(name).read_bytes() for name in ("one.png", "two.png")} == {expected()}


def long_path() -> bool:
    """A shorter folder takes its place."""
    deep = Path("deep" * 30)
    deep.mkdir(mode=0o700)
    env = {"XDG_RUNTIME_DIR": os.path.abspath(deep)}
    made(*picture("one.png"), *KEPT, env=env)
    listed = json.loads(run("worker", "list", "--json", env=env).stdout)
    stop = run("worker", "stop", "--all", env=env)
    equal = Path("one.png").read_bytes() == expected()
    return len(listed) == 1 and not list(deep.iterdir()) and stop.returncode == 0 and equal


def without() -> Checks:
    return [
        ("--no-worker", 2 * SOON, switched_off),
        ("no Unix sockets", 60, no_sockets),
        ("a path too long for one", 2 * SOON, long_path),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["loop", "clients", "kills", "faults", "ends", "without"])
    parser.add_argument("--items", type=int)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--only", default="", help="checks with this in their name")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dw-", ignore_cleanup_errors=True) as folder:
        os.chdir(folder)
        for name in ("run", "spool", "slow"):
            Path(name).mkdir(mode=0o700)
        own = {"DIFFPIPE_HOME": "home", "XDG_RUNTIME_DIR": "run", "TMPDIR": "spool"}
        os.environ |= {name: f"{folder}/{place}" for name, place in own.items()} | {"OMP_NUM_THREADS": "1"}
        for name, more in (("demo", []), ("edit", ["--type", "img2img"])):
            subprocess.run(
                [*DIFFPIPE, "build", "demo", "-q", "--name", name, *more], check=True, stdout=subprocess.DEVNULL
            )
        try:
            good = {
                "loop": lambda: loop(given.items or 100),
                "clients": lambda: clients(given.items or 20),
                "kills": lambda: kills(given.items or 200, given.times),
                "faults": lambda: checked(faults(), given.only),
                "ends": lambda: checked(ends(), given.only),
                "without": lambda: checked(without(), given.only),
            }[given.what]()
        finally:
            stopped()
            os.chdir("/")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
