"""Access and network from the command line: each situation has its message, its fix and its exit code.

A real hub on this machine (hub_server.py), the real client, the real command.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import Cli, Done
from hub_server import TOKEN, Hub, closed_port, serve

from diffpipe.core.errors import Exit

REPO = "org/tiny"
BUILD = ("build", "flux", "--model", REPO)
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
SMALL = ("--prompt", "a fox", "--num-inference-steps", "1", "--width", "32", "--height", "32", "--seed", "7")
# Every attempt to connect, or to look up a name, leaves a line, whoever makes it.
WATCH = """
import sys
def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        with open({log!r}, "a") as log:
            log.write(f"{{event}} {{args!r}}\\n")
sys.addaudithook(watch)
"""


@dataclass(frozen=True)
class Machine:
    """A user's machine: caches of its own, and a record of the connections its commands try to make."""

    folder: Path
    hub: Hub
    said: list[str] = field(default_factory=list)

    def __call__(self, *args: str, endpoint: str = "", **env: str) -> Done:
        self.log.unlink(missing_ok=True)
        own = {"HF_ENDPOINT": endpoint or self.hub.url, **env}
        done = Cli(self.folder / "home", self.folder)(*args, env=own, first=WATCH.format(log=str(self.log)))
        self.said.append(done.stdout + done.stderr)
        return done

    @property
    def log(self) -> Path:
        return self.folder / "connections"

    @property
    def connections(self) -> list[str]:
        """The connections that the last command tried to make."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    def holds(self, secret: str) -> list[Path]:
        """The files of this machine, caches and logs included, that contain a text."""
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return [path for path in files if secret.encode() in path.read_bytes()]


def failure(done: Done) -> tuple[int, str, str]:
    """Exit code, what is wrong and what to do: an error is these two lines, the last on stderr, and stdout is empty."""
    assert done.stdout == ""
    *_, message, hint = done.stderr.strip().splitlines()
    return done.returncode, message.removeprefix("error: "), hint.strip().removeprefix("try: ")


@pytest.fixture
def hub(checkpoints: Path) -> Iterator[Hub]:
    with serve({REPO: checkpoints / "flux"}) as running:
        yield running


@pytest.fixture
def machine(tmp_path: Path, hub: Hub) -> Machine:
    return Machine(tmp_path, hub)


# What is refused before anything is loaded


def test_missing_repository(machine: Machine) -> None:
    machine.hub.faults.open_404 = True
    hint = "check the spelling; if it is private, set HF_TOKEN or run `hf auth login`"
    done = machine("build", "flux", "--model", "org/none")
    assert failure(done) == (Exit.NOT_FOUND, "there is no repository org/none on the hub", hint)


def test_missing_revision(machine: Machine) -> None:
    hint = f"see its branches and tags at {machine.hub.url}/{REPO}/tree/main"
    assert failure(machine(*BUILD, "--revision", "v9")) == (Exit.NOT_FOUND, "org/tiny has no revision v9", hint)


def test_no_token(machine: Machine) -> None:
    machine.hub.faults.private = {REPO}
    hint = "check the spelling; if it is private, set HF_TOKEN or run `hf auth login`"
    assert failure(machine(*BUILD)) == (Exit.ACCESS, "org/tiny does not exist or is private", hint)


@pytest.mark.parametrize("variable", ["HF_TOKEN", "HUGGINGFACE_HUB_ACCESS_TOKEN"])
def test_wrong_token(machine: Machine, variable: str) -> None:
    machine.hub.faults.echo = True  # a server that repeats it does not make us repeat it
    secret = "hf_WrongTokenOfNobody012345"
    hint = f"make one at {machine.hub.url}/settings/tokens"
    message = "the hub does not accept the access token (wrong or expired)"
    assert failure(machine(*BUILD, **{variable: secret})) == (Exit.ACCESS, message, hint)
    machine(*BUILD, "--traceback", "-v", "--log-file", "log.txt", **{variable: secret})
    assert "Traceback" in machine.said[-1]
    assert secret not in "".join(machine.said)
    assert machine.holds(secret) == []


def test_licence_not_accepted(machine: Machine) -> None:
    machine.hub.faults.gated = {REPO}
    hint = f"open {machine.hub.url}/{REPO}, accept the licence, then run this again"
    message = "the licence of org/tiny must be accepted first"
    assert failure(machine(*BUILD, HF_TOKEN=TOKEN)) == (Exit.ACCESS, message, hint)
    assert failure(machine(*BUILD)) == (Exit.ACCESS, message, hint + " with HF_TOKEN set or after `hf auth login`")


@pytest.mark.parametrize("fault", ["narrow", "fine_grained"])
def test_token_without_the_scope(machine: Machine, fault: str) -> None:
    setattr(machine.hub.faults, fault, {REPO})
    hint = f"give it that permission at {machine.hub.url}/settings/tokens"
    assert failure(machine(*BUILD, HF_TOKEN=TOKEN)) == (Exit.ACCESS, "the access token may not read org/tiny", hint)


def test_server_down(machine: Machine) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    code, message, hint = failure(machine(*BUILD, endpoint=url))
    assert (code, hint) == (Exit.FAILED, f"check your connection and HF_ENDPOINT ({url})")
    assert message.startswith("the model hub cannot be reached (")
    assert machine.connections != []  # so the watch does see what tries to connect


def test_server_error(machine: Machine) -> None:
    machine.hub.faults.status = 503
    code, message, _hint = failure(machine(*BUILD))
    assert (code, message) == (Exit.FAILED, "the model hub cannot be reached (it answers 503)")


def test_offline_without_the_files(machine: Machine) -> None:
    hint = "run it once without --offline"
    expected = (Exit.NOT_FOUND, "org/tiny is not in the cache, and offline is on", hint)
    assert failure(machine(*BUILD, "--offline")) == expected
    assert machine.connections == []
    for variable in ("DIFFPIPE_OFFLINE", "HF_HUB_OFFLINE"):
        assert failure(machine(*BUILD, **{variable: "1"})) == expected
        assert machine.connections == []


def test_disk_full(machine: Machine) -> None:
    machine.hub.faults.sizes = {WEIGHTS: 40_000_000_000_000}
    code, message, hint = failure(machine(*BUILD))
    assert message.startswith("org/tiny needs 40.0 TB more on the disk of the hub's cache, where ")
    free = "free some space (`hf cache prune`, `hf cache rm`) or point HF_HOME to a folder on a larger disk"
    assert (code, hint) == (Exit.CACHE, free)
    assert machine.hub.of(WEIGHTS) == []


# A private repository, over a connection that breaks


@dataclass(frozen=True)
class Built:
    machine: Machine
    cut: Done
    first_ranges: list[str | None]
    done: Done
    ranges: list[str | None]


@pytest.fixture(scope="module")
def built(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """A build whose connection is cut in mid-file for good, and the same command again."""
    with serve({REPO: checkpoints / "flux"}, private={REPO}, drop={WEIGHTS: [100_000, 0, 0, 0, 0, 0]}) as hub:
        machine = Machine(tmp_path_factory.mktemp("machine"), hub)
        cut = machine(*BUILD, "--verbose", "--log-file", "cut.txt", HF_TOKEN=TOKEN)
        first_ranges = [request.range for request in hub.of(WEIGHTS)]
        hub.faults.drop, hub.requests[:] = {}, []
        done = machine(*BUILD, "-v", "--log-file", "log.txt", "--json", HUGGINGFACE_HUB_ACCESS_TOKEN=TOKEN)
        yield Built(machine, cut, first_ranges, done, [request.range for request in hub.of(WEIGHTS)])


def test_a_cut_connection_is_said_and_resumed(built: Built) -> None:
    code, message, hint = failure(built.cut)
    assert code == Exit.FAILED
    assert message.startswith(f"the connection was cut at 100.0 kB of 347.9 kB of {WEIGHTS} of {REPO} (")
    assert hint == "check your connection, then run the same command again: it resumes there"
    assert built.first_ranges == [None, *["bytes=100000-"] * 3]
    assert (built.done.returncode, built.ranges) == (Exit.OK, ["bytes=100000-"])
    assert json.loads(built.done.stdout)["cached"] is False


def test_the_token_is_kept_nowhere(built: Built) -> None:
    assert TOKEN not in "".join(built.machine.said)
    assert built.machine.holds(TOKEN) == []
    assert (built.machine.folder / "log.txt").stat().st_size > 0


def test_a_second_identical_build_makes_no_connection(built: Built) -> None:
    done = built.machine(*BUILD)
    assert done.returncode == Exit.OK
    assert "is in the cache already" in done.stderr
    assert built.machine.connections == []


@pytest.mark.parametrize("down", [False, True])
def test_a_cached_pipeline_generates_without_one_attempt_to_connect(built: Built, down: bool) -> None:
    endpoint = f"http://127.0.0.1:{closed_port()}" if down else built.machine.hub.url
    output = f"{'down' if down else 'up'}.png"
    done = built.machine("generate", "flux", *SMALL, "-o", output, endpoint=endpoint)
    assert (done.returncode, done.stdout) == (Exit.OK, f"{output}\n"), done.stderr
    assert built.machine.connections == []


def test_offline_with_the_files_builds_another_pipeline_from_them(built: Built) -> None:
    done = built.machine(*BUILD, "--dtype", "float32", "--name", "exact", "--offline", "--json")
    assert done.returncode == Exit.OK, done.stderr
    assert json.loads(done.stdout)["cached"] is False
    assert built.machine.connections == []


def test_server_down_points_to_the_copy_in_the_cache(built: Built) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    code, _message, hint = failure(built.machine(*BUILD, "--name", "new", "--force", endpoint=url))
    expected = f"check your connection and HF_ENDPOINT ({url}); the cache holds a copy of it, which --offline would use"
    assert (code, hint) == (Exit.FAILED, expected)


def test_files_that_left_the_hubs_cache_are_fetched_again(built: Built) -> None:
    """Last in this module: it empties the cache that the tests above share."""
    for blobs in (built.machine.folder / "huggingface").rglob("blobs"):
        shutil.rmtree(blobs)
    built.machine.hub.requests.clear()
    done = built.machine(*BUILD, "--json", HF_TOKEN=TOKEN)
    assert (done.returncode, json.loads(done.stdout)["cached"]) == (Exit.OK, False), done.stderr
    assert [request.range for request in built.machine.hub.of(WEIGHTS)] == [None]


@pytest.mark.parametrize(
    "address",
    ["http://[bad", "http://x:99999999", "http://x\x1b[2J", "me:secret@host.example", "file:///etc", "http://"],
)
def test_an_address_of_the_hub_that_is_none_is_refused_and_not_shown(cli: Cli, address: str) -> None:
    done = cli("providers", "list", env={"HF_ENDPOINT": address})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[0] == "error: HF_ENDPOINT is no address of a hub"
    assert "secret" not in done.stderr
