"""The hub's faults as a user meets them: the real huggingface_hub client against a hub on this machine."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest
from hub_server import TOKEN, Hub, closed_port, serve

from diffpipe.core.errors import Exit
from diffpipe.core.names import stays_inside
from diffpipe.sources.hub import _is_safe
from diffpipe.sources.hub_errors import disk_explained
from diffpipe.storage.disk import refused

REPO = "org/tiny"
WEIGHTS = "unet/model.safetensors"
SRC = Path(__file__).parents[2] / "src"
# Each case is a child of one process that has the libraries imported. The client reads HF_ENDPOINT and HF_HOME when it
# is imported, so a child imports it, and what uses it, again; a pause is noted, not made.
SERVER = """
import json, os, signal, sys, traceback, types
import httpx2, huggingface_hub
from huggingface_hub import constants, file_download, get_session, hf_api, hf_hub_download
from huggingface_hub.utils import build_hf_headers, tqdm
from diffpipe.core.errors import DiffpipeError
from diffpipe.sources import hub

def run(code):
    for name in [name for name in sys.modules if name.startswith(("huggingface_hub", "diffpipe.sources"))]:
        del sys.modules[name]
    from diffpipe.sources import download, hub, hub_client
    answer, slept = {}, []
    download.time = types.SimpleNamespace(sleep=slept.append)
    names = {"hub": hub, "download": download, "hub_client": hub_client, "answer": answer, "slept": slept}
    try:
        exec(code, names)
    except DiffpipeError as error:
        answer |= {"message": error.message, "hint": error.hint, "exit": int(error.exit_code)}
        traceback.print_exc()
    print(json.dumps({"answer": answer, "slept": slept}), flush=True)

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if not child:
        ended = os.open(order["folder"] + "/ended", os.O_WRONLY)  # closed, whatever ends this process
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.alarm(60)
        os.environ.clear()
        os.environ.update(order["env"])
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(order["folder"] + "/" + name, os.O_WRONLY | os.O_CREAT), number)
        try:
            run(order["code"])
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    print(child, flush=True)
"""


@dataclass(frozen=True)
class Ran:
    """What a case answered; the pauses (seconds) that a download would have made; and what it wrote."""

    answer: dict[str, Any]
    slept: list[float]
    stderr: str

    @property
    def told(self) -> tuple[str, str, int]:
        return self.answer["message"], self.answer["hint"], self.answer["exit"]


@dataclass(frozen=True)
class Started:
    """A case that runs in a process of its own, which writes into a folder."""

    pid: int
    folder: Path
    ended: IO[str]

    def wait(self) -> tuple[str, str]:
        self.ended.read()
        self.ended.close()
        return (self.folder / "stdout").read_text(), (self.folder / "stderr").read_text()


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[subprocess.Popen[str]]:
    global _server
    words = [sys.executable, "-c", SERVER]
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as _server:
        yield _server
        assert _server.stdin
        _server.stdin.close()


_server: subprocess.Popen[str]


def start(code: str, home: Path, endpoint: str, **env: str) -> Started:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "DIFFPIPE"))}
    clean |= {"PYTHONPATH": str(SRC), "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1", **env}
    folder = Path(tempfile.mkdtemp(dir=home.parent, prefix="case-"))
    os.mkfifo(folder / "ended")
    assert _server.stdin
    assert _server.stdout
    print(json.dumps({"code": code, "env": clean, "folder": str(folder)}), file=_server.stdin, flush=True)
    return Started(int(_server.stdout.readline()), folder, (folder / "ended").open())


def run(code: str, home: Path, endpoint: str, **env: str) -> Ran:
    """Run `code` (with `hub` and a dict `answer`) in a process of its own; the token must not get out of it."""
    stdout, stderr = start(code, home, endpoint, **env).wait()
    for secret in (TOKEN, env.get("HF_TOKEN"), env.get("HUGGINGFACE_HUB_ACCESS_TOKEN")):
        assert not secret or secret not in stdout + stderr
    assert stdout, stderr
    return Ran(**json.loads(stdout), stderr=stderr)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository: an index, and 300 kB of weights with a real safetensors header."""
    root = tmp_path / "tiny"
    (root / "unet").mkdir(parents=True)
    (root / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    header = {
        "__metadata__": {"format": "pt"},
        "w": {"dtype": "F32", "shape": [75, 1000], "data_offsets": [0, 300_000]},
    }
    text = json.dumps(header).encode()
    (root / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + bytes(i % 251 for i in range(300_000)))
    return root


@pytest.fixture
def hub(folder: Path) -> Iterator[Hub]:
    with serve({REPO: folder}) as running:
        yield running


DESCRIBE = f"r = hub.describe({REPO!r}); "
FETCH = DESCRIBE + f"answer['at'] = str(download.fetch(r, ['model_index.json', {WEIGHTS!r}]))"


def weights_size(folder: Path) -> int:
    return (folder / WEIGHTS).stat().st_size


def cache(home: Path) -> Path:
    return home / "hub" / "models--org--tiny"


def incomplete(home: Path) -> list[Path]:
    return list(cache(home).glob("blobs/*.incomplete"))


def test_importing_it_is_light() -> None:
    code = "import sys, diffpipe.sources.hub; sys.exit(bool({'huggingface_hub', 'httpx2', 'tqdm'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(SRC)}).returncode == 0


# What is there


def test_describe_pins_a_commit_in_one_request(hub: Hub, folder: Path, home: Path) -> None:
    ran = run(DESCRIBE + "answer |= {'commit': r.commit, 'files': {p: [f.size, f.digest] for p, f in r.files.items()}}",
              home, hub.url)  # fmt: skip
    index, weights = (folder / "model_index.json").read_bytes(), (folder / WEIGHTS).read_bytes()
    assert ran.answer == {
        "commit": hub.commit(REPO),
        "files": {
            "model_index.json": [len(index), "git:" + hashlib.sha1(b"blob %d\0" % len(index) + index).hexdigest()],
            WEIGHTS: [len(weights), "sha256:" + hashlib.sha256(weights).hexdigest()],
        },
    }
    assert len(hub.requests) == 1


def test_read_header_needs_no_download(hub: Hub, folder: Path, home: Path) -> None:
    ran = run(DESCRIBE + f"answer['header'] = hub.read_header(r, {WEIGHTS!r}).to_json()", home, hub.url)
    assert ran.answer["header"] == {
        "__metadata__": {"format": "pt"},
        "w": {"dtype": "F32", "shape": [75, 1000], "data_offsets": [0, 300_000]},
    }
    assert [r.range for r in hub.of(WEIGHTS)] == ["bytes=0-100000"]
    hub.requests.clear()
    both = f"; answer['same'] = hub.read_header(r, {WEIGHTS!r}, offline=True).to_json() == {ran.answer['header']!r}"
    assert run(FETCH + both, home, hub.url).answer["same"]


def test_read_header_of_what_is_no_safetensors_file(hub: Hub, home: Path) -> None:
    ran = run(DESCRIBE + "hub.read_header(r, 'model_index.json')", home, hub.url)
    assert ran.told == ("model_index.json of org/tiny is not a safetensors file", "name another file", Exit.CACHE)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_header_longer_than_the_first_request(hub: Hub, folder: Path, home: Path, ranges: bool) -> None:
    text = json.dumps(
        {"__metadata__": {"about": "x" * 150_000}, "w": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}}
    ).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + bytes(9))
    hub.add(REPO, folder)
    hub.faults.no_ranges = not ranges
    code = DESCRIBE + f"h = hub.read_header(r, {WEIGHTS!r}); answer['tensors'] = list(h.tensors)"
    assert run(f"{code}; answer['about'] = len(h.metadata['about'])", home, hub.url).answer == {
        "tensors": ["w"],
        "about": 150_000,
    }
    assert [r.range for r in hub.of(WEIGHTS)] == ["bytes=0-100000", f"bytes=100001-{8 + len(text) - 1}"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:4],
        lambda data: b"",
        lambda data: (2**60).to_bytes(8, "little") + data[8:],
        lambda data: data.replace(b'"shape": [75', b'"shape": [76'),
        lambda data: data + b"more",
        lambda data: data.replace(b'{"format"', b'["format"'),
    ],
    ids=["cut", "empty", "endless", "shape", "longer", "no JSON"],
)
def test_read_header_of_a_damaged_file(hub: Hub, folder: Path, home: Path, damage: Callable[[bytes], bytes]) -> None:
    (folder / WEIGHTS).write_bytes(damage((folder / WEIGHTS).read_bytes()))
    hub.add(REPO, folder)
    ran = run(DESCRIBE + f"hub.read_header(r, {WEIGHTS!r})", home, hub.url)
    assert ran.told == (f"{WEIGHTS} of org/tiny is not a safetensors file", "name another file", Exit.CACHE)


def test_fetch_fills_the_hubs_own_cache_once(hub: Hub, folder: Path, home: Path) -> None:
    ran = run(FETCH, home, hub.url)
    snapshot = cache(home) / "snapshots" / hub.commit(REPO)
    assert ran.answer == {"at": str(snapshot)}
    assert (snapshot / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    assert (cache(home) / "refs" / "main").read_text() == hub.commit(REPO)
    assert ran.stderr.splitlines() == ["downloading model_index.json (31 bytes)", f"downloading {WEIGHTS} (300.1 kB)"]
    hub.requests.clear()
    again = run(FETCH, home, hub.url)
    assert (again.stderr, [r.path for r in hub.requests]) == ("", [f"/api/models/{REPO}"])
    # The client itself finds the files where it would have put them, without a request.
    client = f"import huggingface_hub; answer['at'] = huggingface_hub.hf_hub_download({REPO!r}, {WEIGHTS!r})"
    hub.requests.clear()
    assert run(client, home, hub.url, HF_HUB_OFFLINE="1").answer == {"at": str(snapshot / WEIGHTS)}
    assert hub.requests == []


def test_fetch_is_silent_when_quiet(hub: Hub, home: Path) -> None:
    assert run(DESCRIBE + f"download.fetch(r, [{WEIGHTS!r}], quiet=True)", home, hub.url).stderr == ""


def test_a_new_commit_fetches_only_what_changed(hub: Hub, folder: Path, home: Path) -> None:
    run(FETCH, home, hub.url)
    (folder / "model_index.json").write_text('{"_class_name": "FluxImg2ImgPipeline"}')
    commit = hub.add(REPO, folder)
    hub.requests.clear()
    assert run(FETCH, home, hub.url).answer["at"].endswith(commit)
    assert (hub.of(WEIGHTS), len(hub.of("model_index.json"))) == ([], 1)


def test_a_cached_file_that_was_cut_short_is_fetched_again(hub: Hub, folder: Path, home: Path) -> None:
    at = Path(run(FETCH, home, hub.url).answer["at"])
    (at / WEIGHTS).resolve().write_bytes(b"short")
    run(FETCH, home, hub.url)
    assert (at / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


def test_without_links_the_snapshot_holds_the_files(hub: Hub, folder: Path, home: Path) -> None:
    at = Path(run(FETCH, home, hub.url, HF_HUB_DISABLE_SYMLINKS="1").answer["at"])
    assert not (at / WEIGHTS).is_symlink()
    assert (at / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    listing = "answer['same'] = hub.describe('org/tiny', offline=True).files == r.files"
    assert run(f"{DESCRIBE}{listing}", home, hub.url).answer["same"]


def test_a_file_too_large_for_plain_http_goes_through_the_client(hub: Hub, folder: Path, home: Path) -> None:
    at = Path(run("download.PLAIN_HTTP_LIMIT = 1000; " + FETCH, home, hub.url).answer["at"])
    assert (at / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    assert len(hub.of(WEIGHTS, "HEAD")) == 1


def test_an_empty_file_is_fetched(hub: Hub, folder: Path, home: Path) -> None:
    (folder / "empty.txt").touch()
    hub.add(REPO, folder)
    assert run(DESCRIBE + "answer['text'] = hub.read_text(r, 'empty.txt')", home, hub.url).answer == {"text": ""}


# Names


@pytest.mark.parametrize("name", ["a b/c", "org/../x", "a/b/c"])
def test_what_is_no_repository(hub: Hub, home: Path, name: str) -> None:
    ran = run(f"hub.describe({name!r})", home, hub.url)
    assert ran.told == (f"{name!r} is not the name of a hub repository", "write owner/name", Exit.USAGE)


def test_what_is_no_revision(hub: Hub, home: Path) -> None:
    ran = run(f"hub.describe({REPO!r}, '../../x')", home, hub.url)
    assert ran.told == ("'../../x' is not a revision", "give a branch, a tag or a commit", Exit.USAGE)


def test_missing_repository(hub: Hub, home: Path) -> None:
    hub.faults.open_404 = True
    ran = run("hub.describe('org/none')", home, hub.url)
    hint = "check the spelling; if it is private, set HF_TOKEN or run `hf auth login`"
    assert ran.told == ("there is no repository org/none on the hub", hint, Exit.NOT_FOUND)


def test_missing_repository_with_a_token(hub: Hub, home: Path) -> None:
    ran = run("hub.describe('org/none')", home, hub.url, HF_TOKEN=TOKEN)
    hint = "check the spelling, and that your token may read it"
    assert ran.told == ("there is no repository org/none on the hub", hint, Exit.NOT_FOUND)


def test_missing_revision(hub: Hub, home: Path) -> None:
    ran = run(f"hub.describe({REPO!r}, 'v9')", home, hub.url)
    hint = f"see its branches and tags at {hub.url}/{REPO}/tree/main"
    assert ran.told == ("org/tiny has no revision v9", hint, Exit.NOT_FOUND)


def test_missing_file(hub: Hub, home: Path) -> None:
    ran = run(DESCRIBE + "hub.read_text(r, 'config.json')", home, hub.url)
    commit = hub.commit(REPO)
    hint = f"see its files at {hub.url}/{REPO}/tree/{commit}"
    assert ran.told == (f"org/tiny has no file config.json at {commit[:7]}", hint, Exit.NOT_FOUND)


def test_file_that_vanished_after_the_listing(hub: Hub, home: Path) -> None:
    hub.faults.file_status["model_index.json"] = 404
    ran = run(DESCRIBE + "hub.read_text(r, 'model_index.json')", home, hub.url)
    hint = f"see its files at {hub.url}/{REPO}"
    assert ran.told == (f"org/tiny has no file model_index.json at {hub.commit(REPO)[:7]}", hint, Exit.NOT_FOUND)


# Access


@pytest.mark.parametrize("repo", [REPO, "org/none"])
def test_private_or_missing_without_a_token(hub: Hub, home: Path, repo: str) -> None:
    hub.faults.private = {REPO}
    ran = run(f"hub.describe({repo!r})", home, hub.url)
    hint = "check the spelling; if it is private, set HF_TOKEN or run `hf auth login`"
    assert ran.told == (f"{repo} does not exist or is private", hint, Exit.ACCESS)


@pytest.mark.parametrize("variable", ["HF_TOKEN", "HUGGINGFACE_HUB_ACCESS_TOKEN"])
def test_either_variable_carries_the_token(hub: Hub, home: Path, variable: str) -> None:
    hub.faults.private = {REPO}
    run(FETCH + f"; hub.read_header(r, {WEIGHTS!r})", home, hub.url, **{variable: f" {TOKEN}\n"})
    assert {r.token for r in hub.requests} == {TOKEN}
    assert not [path for path in home.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def test_hf_token_wins_over_the_other_variable_and_the_saved_one(hub: Hub, home: Path) -> None:
    home.mkdir()
    (home / "token").write_text("hf_saved0123456789")
    run(DESCRIBE, home, hub.url, HF_TOKEN=TOKEN, HUGGINGFACE_HUB_ACCESS_TOKEN="hf_other0123456789")
    hub.faults.tokens.add("hf_saved0123456789")
    run(DESCRIBE, home, hub.url)
    assert [r.token for r in hub.requests] == [TOKEN, "hf_saved0123456789"]


@pytest.mark.parametrize("secret", ["hf_WrongToken0123456789", "secret-of-another-kind"])
def test_invalid_token_is_refused_and_not_repeated(hub: Hub, home: Path, secret: str) -> None:
    hub.faults.echo = True  # even where the server repeats it
    ran = run(DESCRIBE, home, hub.url, HF_TOKEN=secret)
    message = "the hub does not accept the access token (wrong or expired)"
    assert ran.told == (message, f"make one at {hub.url}/settings/tokens", Exit.ACCESS)


def test_token_that_no_header_can_carry(hub: Hub, home: Path) -> None:
    ran = run(DESCRIBE, home, hub.url, HF_TOKEN="hf_tökén 0123456789")
    message = "the access token has spaces or letters that no token has"
    assert ran.told == (message, "copy it again into HF_TOKEN", Exit.ACCESS)
    assert hub.requests == []


def test_licence_not_accepted(hub: Hub, home: Path) -> None:
    hub.faults.gated = {REPO}
    hint = f"open {hub.url}/{REPO}, accept the licence, then run this again"
    for code in (
        FETCH,
        DESCRIBE + f"hub.read_header(r, {WEIGHTS!r})",
        DESCRIBE + "hub.read_text(r, 'model_index.json')",
    ):
        ran = run(code, home, hub.url, HF_TOKEN=TOKEN)
        assert ran.told == ("the licence of org/tiny must be accepted first", hint, Exit.ACCESS)
    ran = run(FETCH, home, hub.url)
    assert ran.answer["hint"] == hint + " with HF_TOKEN set or after `hf auth login`"
    assert ran.answer["exit"] == Exit.ACCESS


@pytest.mark.parametrize("fault", ["narrow", "fine_grained"])
def test_token_without_the_scope(hub: Hub, home: Path, fault: str) -> None:
    setattr(hub.faults, fault, {REPO})
    ran = run(FETCH, home, hub.url, HF_TOKEN=TOKEN)
    hint = f"give it that permission at {hub.url}/settings/tokens"
    assert ran.told == ("the access token may not read org/tiny", hint, Exit.ACCESS)


def test_disabled_repository(hub: Hub, home: Path) -> None:
    hub.faults.disabled = {REPO}
    assert run(FETCH, home, hub.url).told == (
        "org/tiny has been disabled on the hub", "name another repository", Exit.ACCESS)  # fmt: skip


def test_the_token_stays_on_the_hub_when_files_lie_elsewhere(hub: Hub, folder: Path, home: Path) -> None:
    hub.faults.elsewhere, hub.faults.private, hub.faults.drop = True, {REPO}, {WEIGHTS: [123_456]}
    at = Path(run(FETCH + f"; hub.read_header(r, {WEIGHTS!r})", home, hub.url, HF_TOKEN=TOKEN).answer["at"])
    elsewhere = [r for r in hub.requests if r.elsewhere]
    assert [(r.range, r.token) for r in elsewhere] == [(None, None), ("bytes=123456-", None)]
    assert (at / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


# Network


def test_server_down(home: Path) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    ran = run(DESCRIBE, home, url)
    assert "Connection refused" in ran.answer["message"]
    assert ran.answer["message"].startswith("the model hub cannot be reached (")
    assert ran.told[1:] == (f"check your connection and HF_ENDPOINT ({url})", Exit.FAILED)


def test_server_that_says_nothing(hub: Hub, home: Path) -> None:
    hub.faults.silent = True
    ran = run(DESCRIBE, home, hub.url, HF_HUB_ETAG_TIMEOUT="1")
    assert ran.answer["message"] == "the model hub cannot be reached (timed out)"
    assert ran.answer["exit"] == Exit.FAILED
    assert len(hub.requests) <= 1


def test_unknown_host(home: Path) -> None:
    ran = run(DESCRIBE, home, "http://no-such-host.invalid")
    assert ran.answer["message"].startswith("the model hub cannot be reached (")
    assert ran.answer["exit"] == Exit.FAILED


def test_endpoint_that_is_no_address(home: Path) -> None:
    ran = run(DESCRIBE, home, "huggingface.example")
    assert ran.answer["message"].startswith("the model hub cannot be reached (")
    assert ran.told[1:] == ("check your connection and HF_ENDPOINT (huggingface.example)", Exit.FAILED)


@pytest.mark.parametrize("proxy", ["socks5://me:secret@127.0.0.1:1", "ftp://me:secret@host", "http://a..b:1", "x"])
def test_a_proxy_that_cannot_be_used(home: Path, proxy: str) -> None:
    url = "http://127.0.0.1:1"
    code = "answer['there'] = hub_client.reachable(); " + DESCRIBE
    ran = run(code, home, url, NO_PROXY="", no_proxy="", HTTP_PROXY=proxy, http_proxy=proxy)
    assert (ran.answer["there"], ran.answer["exit"] in (Exit.USAGE, Exit.FAILED)) == (False, True)
    assert "secret" not in str(ran.answer)


def test_server_error(hub: Hub, home: Path) -> None:
    hub.faults.status = 503
    ran = run(DESCRIBE, home, hub.url)
    assert ran.told[::2] == ("the model hub cannot be reached (it answers 503)", Exit.FAILED)


def test_too_many_requests(hub: Hub, home: Path) -> None:
    hub.faults.status = 429
    hint = "wait some minutes; a token (HF_TOKEN) allows more"
    assert run(DESCRIBE, home, hub.url).told == ("the hub asks for fewer requests", hint, Exit.FAILED)


def test_network_that_asks_to_sign_in(hub: Hub, home: Path) -> None:
    hub.faults.html = True
    hint = "check HF_ENDPOINT, a proxy or a network that asks you to sign in"
    assert run(DESCRIBE, home, hub.url).told == ("the answer did not come from a model hub", hint, Exit.FAILED)


SHA = "a" * 40
FILE = {"rfilename": "x.json", "size": 3, "blobId": "b" * 40}


@pytest.mark.parametrize(
    "model",
    [
        [],
        {},
        {"sha": 7, "siblings": []},
        {"sha": "main", "siblings": []},
        {"sha": SHA, "siblings": {}},
        {"sha": SHA, "siblings": [FILE, "x"]},
        {"sha": SHA, "siblings": [{**FILE, "rfilename": 7}]},
        {"sha": SHA, "siblings": [{**FILE, "size": -1}]},
        {"sha": SHA, "siblings": [{**FILE, "size": 2**70}]},
        {"sha": SHA, "siblings": [{**FILE, "size": "3"}]},
        {"sha": SHA, "siblings": [{**FILE, "lfs": {"sha256": "c"}}]},
        {"sha": SHA, "siblings": [{"rfilename": "x.json", "size": 3}]},
    ],
    ids=lambda model: json.dumps(model)[:70],
)
def test_an_answer_that_is_none_of_a_hub(hub: Hub, home: Path, model: object) -> None:
    hub.faults.model = json.dumps(model).encode()
    ran = run(DESCRIBE, home, hub.url)
    assert (ran.answer["message"], ran.answer["exit"]) == ("the answer did not come from a model hub", Exit.FAILED)


@pytest.mark.parametrize("model", [b"[" * 100_000, b'{"sha": "' + b"a" * 2000 + b'"}', b"\xff\xfe", b'{"sha": NaN}'])
def test_an_answer_without_bounds(hub: Hub, home: Path, model: bytes) -> None:
    hub.faults.model = model
    ran = run("hub.LARGEST_LISTING = 1000; " + DESCRIBE, home, hub.url)
    assert ran.answer["message"] == "the answer did not come from a model hub"


def test_server_down_does_not_fall_back_to_an_older_copy(hub: Hub, home: Path) -> None:
    run(FETCH, home, hub.url)
    hub.faults.status = 500
    ran = run(FETCH, home, hub.url)
    hint = f"check your connection and HF_ENDPOINT ({hub.url}); the cache holds a copy of it, which --offline would use"
    assert ran.told == ("the model hub cannot be reached (it answers 500)", hint, Exit.FAILED)


def test_pauses_begin_anew_once_bytes_have_come(hub: Hub, folder: Path, home: Path) -> None:
    hub.faults.drop = {WEIGHTS: [0, 0, 60_000, 60_000, 0, 0, 60_000, 60_000, 60_000]}
    ran = run(FETCH, home, hub.url)
    assert ran.slept == [0.5, 1.0, 0.5, 0.5, 1.0, 2.0, 0.5, 0.5, 0.5]
    assert (Path(ran.answer["at"]) / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


@pytest.mark.parametrize("reset", [False, True])
def test_cut_connections_resume_at_the_byte(hub: Hub, folder: Path, home: Path, reset: bool) -> None:
    hub.faults.drop, hub.faults.reset = {WEIGHTS: [100_000, 100_000]}, reset
    at = Path(run(FETCH, home, hub.url).answer["at"])
    ranges = [r.range for r in hub.of(WEIGHTS)]
    assert (ranges[0], len(ranges)) == (None, 3)
    starts = [int(str(r).removeprefix("bytes=").rstrip("-")) for r in ranges[1:]]
    assert starts == [100_000, 200_000] if not reset else 0 < starts[0] < starts[1]  # RST discards what is in flight
    assert (at / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    assert incomplete(home) == []


def test_a_connection_that_stays_cut_resumes_in_the_next_run(hub: Hub, folder: Path, home: Path) -> None:
    hub.faults.drop = {WEIGHTS: [100_000, 0, 0, 0, 0]}
    ran = run(FETCH, home, hub.url)
    message, hint, exit_code = ran.told
    assert ran.slept == [0.5, 1.0, 2.0]
    assert message.startswith(f"the connection was cut at 100.0 kB of 300.1 kB of {WEIGHTS} of {REPO} (")
    assert hint == "check your connection, then run the same command again: it resumes there"
    assert (exit_code, hub.faults.drop) == (Exit.FAILED, {WEIGHTS: [0]})
    assert [path.stat().st_size for path in incomplete(home)] == [100_000]
    hub.requests.clear()
    hub.faults.drop = {}
    at = Path(run(FETCH, home, hub.url).answer["at"])
    assert [r.range for r in hub.of(WEIGHTS)] == ["bytes=100000-"]
    assert (at / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


def test_a_killed_download_resumes_in_the_next_run(hub: Hub, folder: Path, home: Path) -> None:
    hub.faults.stall = {WEIGHTS: (150_000, 90)}
    process = start(FETCH, home, hub.url)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and sum(p.stat().st_size for p in incomplete(home)) < 131_072:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (partial,) = incomplete(home)
    there = partial.stat().st_size
    assert there >= 131_072
    hub.faults.stall = {}
    hub.requests.clear()
    at = Path(run(FETCH, home, hub.url).answer["at"])
    assert [r.range for r in hub.of(WEIGHTS)] == [f"bytes={there}-"]
    assert (at / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


IMPATIENT = "from diffpipe.storage import http_guard; http_guard.PATIENCE = 0.2; "


def test_a_listing_that_is_dragged_out(hub: Hub, home: Path) -> None:
    hub.faults.trickle = {"": 0.02}
    ran = run(IMPATIENT + DESCRIBE, home, hub.url)
    assert re.fullmatch(r"the model hub cannot be reached \(it sent \d+ bytes in 0 seconds\)", ran.answer["message"])
    assert (ran.answer["exit"], len(hub.requests)) == (Exit.FAILED, 1)


def test_a_listing_that_takes_too_long(hub: Hub, home: Path) -> None:
    ran = run("hub_client.LONGEST_LISTING = 0.0; " + DESCRIBE, home, hub.url)
    assert ran.answer["message"] == "the model hub cannot be reached (its listing takes longer than 0 seconds)"


def test_a_file_that_is_dragged_out(hub: Hub, home: Path) -> None:
    hub.faults.trickle = {WEIGHTS: 0.02}
    ran = run(IMPATIENT + FETCH, home, hub.url)
    assert re.match(r"the connection was cut at \d+ bytes of .* \(it sent \d+ bytes in 0 sec", ran.answer["message"])
    assert (len(hub.of(WEIGHTS)), ran.slept) == (4, [0.5, 1.0, 2.0])
    ran = run(IMPATIENT + DESCRIBE + f"hub.read_header(r, {WEIGHTS!r})", home, hub.url)
    assert ran.answer["message"].startswith("the model hub cannot be reached (it sent ")


def test_a_byte_for_each_connection_is_no_progress(hub: Hub, home: Path) -> None:
    hub.faults.drop = {WEIGHTS: [1] * 100}
    ran = run(FETCH, home, hub.url)
    assert ran.answer["message"].startswith("the connection was cut at 4 bytes of 300.1 kB of ")
    assert (len(hub.of(WEIGHTS)), ran.slept) == (4, [0.5, 1.0, 2.0])


def test_what_a_hub_warns_of_is_not_printed_as_it_is(hub: Hub, home: Path) -> None:
    hub.faults.headers = {"X-HF-Warning": "about; \x1b[2Jread this"}
    log = "import logging; logging.basicConfig(handlers=[logging.NullHandler()]); "
    assert "read this" not in run(log + DESCRIBE, home, hub.url).stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ETag", '"../../../../evil"'),
        ("ETag", "/tmp/evil"),
        ("X-Linked-Etag", "x/../../../../evil"),
        ("X-Repo-Commit", "../../../../evil"),
        ("X-Xet-Hash", "../../evil"),
    ],
)
def test_no_file_is_named_by_a_header(hub: Hub, home: Path, name: str, value: str) -> None:
    hub.faults.headers = {name: value, "X-Xet-Refresh-Route": "http://127.0.0.1:1/token", "Retry-After": "99999999999"}
    assert "at" in run("download.PLAIN_HTTP_LIMIT = 1000; " + FETCH, home, hub.url).answer
    assert not list(home.parent.rglob("*evil*"))


XET = """
def xet_get(found, target, size, headers, bar):
    answer['asked'] = [found.file_hash, found.refresh_route, target.name[-11:], size]
    WHAT
from diffpipe.sources import hub_seam
hub_seam.xet_get, download.PLAIN_HTTP_LIMIT = xet_get, 1000
"""


def test_a_file_for_xet_goes_through_the_client(hub: Hub, folder: Path, home: Path) -> None:
    hub.faults.headers = {"X-Xet-Hash": "0" * 64, "X-Xet-Refresh-Route": f"{hub.url}/token"}
    brought = f"target.write_bytes(open({str(folder / WEIGHTS)!r}, 'rb').read())"
    ran = run(XET.replace("WHAT", brought) + FETCH.replace("; ", "\n"), home, hub.url)
    assert ran.answer["asked"] == ["0" * 64, f"{hub.url}/token", ".incomplete", weights_size(folder)]
    assert (Path(ran.answer["at"]) / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    assert incomplete(home) == []


@pytest.mark.parametrize(
    ("does", "message"),
    [
        ("target.write_bytes(bytes(size))", "is damaged: its content is not what the hub announced"),
        ("raise RuntimeError('cas')", f"Xet did not bring {WEIGHTS} of {REPO}: cas"),
        ("raise OSError('x' * 9000)", f"Xet did not bring {WEIGHTS} of {REPO}: " + "x" * 200),
    ],
)
def test_what_xet_does_not_bring(hub: Hub, home: Path, does: str, message: str) -> None:
    hub.faults.headers = {"X-Xet-Hash": "0" * 64, "X-Xet-Refresh-Route": f"{hub.url}/token"}
    ran = run(XET.replace("WHAT", does) + FETCH.replace("; ", "\n"), home, hub.url)
    assert ran.answer["message"].endswith(message)
    assert not list(cache(home).glob(f"snapshots/*/{WEIGHTS}"))


def test_a_file_of_settings_larger_than_any_is_not_fetched(hub: Hub, home: Path) -> None:
    ran = run("hub.LARGEST_TEXT = 30; " + DESCRIBE + "hub.read_text(r, 'model_index.json')", home, hub.url)
    message = "model_index.json of org/tiny is larger than 30 bytes: it is no file of settings"
    assert ran.told[::2] == (message, Exit.CACHE)
    assert hub.of("model_index.json") == []


# What others put into the cache


def planted(home: Path, hub: Hub) -> tuple[Path, Path]:
    """The cache with all files in it, and a folder outside with a file of the same size as the index."""
    run(FETCH, home, hub.url)
    outside = home.parent / "outside"
    outside.mkdir()
    (outside / "model_index.json").write_bytes(b"x" * 31)
    return cache(home) / "snapshots" / hub.commit(REPO), outside


def test_a_link_that_leads_out_of_the_cache_is_not_followed(hub: Hub, folder: Path, home: Path) -> None:
    snapshot, outside = planted(home, hub)
    (snapshot / "model_index.json").unlink()
    (snapshot / "model_index.json").symlink_to(outside / "model_index.json")
    offline = f"r = hub.describe({REPO!r}, offline=True); answer['files'] = list(r.files)"
    assert run(offline, home, hub.url).answer["files"] == [WEIGHTS]
    run(FETCH, home, hub.url)
    assert (snapshot / "model_index.json").read_bytes() == (folder / "model_index.json").read_bytes()
    assert (outside / "model_index.json").read_bytes() == b"x" * 31


def test_nothing_is_written_through_a_link_that_leads_out_of_the_cache(hub: Hub, home: Path) -> None:
    snapshot, outside = planted(home, hub)
    (snapshot / WEIGHTS).unlink()
    (snapshot / "unet").rmdir()
    (snapshot / "unet").symlink_to(outside)
    ran = run(FETCH, home, hub.url)
    message = f"a link in the hub's cache leads out of its repository: {snapshot / 'unet'}"
    hint = "remove that link (not what it leads to), or set HF_HOME to another folder"
    assert ran.told == (message, hint, Exit.CACHE)
    assert [path.name for path in outside.iterdir()] == ["model_index.json"]


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOMEM, errno.EIO, errno.ETIMEDOUT, errno.ECONNRESET])
def test_what_says_nothing_of_the_cache_removes_none_of_it(code: int) -> None:
    error = OSError(code, os.strerror(code), "/hub/blobs/1.lock")
    with pytest.raises(OSError, match=re.escape(os.strerror(code))) as caught, disk_explained(REPO):
        raise error
    assert caught.value is error
    told = refused(error)
    assert told
    assert "remove" not in told.hint


def test_a_name_that_no_manifest_can_hold_is_no_name_of_a_file() -> None:
    """Else a build of it would make an entry that cannot be read back."""
    for size in (999, 1000, 1024):
        path = "/".join(["x" * 99] * 9) + "/" + "y" * (size - 900)
        assert _is_safe(path) == stays_inside(path) == (size < 1000), size
    assert not any(map(_is_safe, ["a\\b", "a:b", "\ud800", "../a", "a//b", ""]))


@pytest.mark.parametrize("moved", ["hub", "hub/models--org--tiny", "hub/models--org--tiny/blobs"])
def test_what_a_user_moved_to_a_larger_disk_is_there(hub: Hub, home: Path, moved: str) -> None:
    snapshot, outside = planted(home, hub)
    (home / moved).rename(outside / "moved")
    (home / moved).symlink_to(outside / "moved")
    offline = f"r = hub.describe({REPO!r}, offline=True); answer['files'] = list(r.files)"
    asked = len(hub.requests)
    assert run(offline, home, hub.url).answer["files"] == ["model_index.json", WEIGHTS]
    assert run(FETCH, home, hub.url).answer["at"] == str(snapshot)
    assert len(hub.requests) == asked + 1  # the listing
    (snapshot / WEIGHTS).resolve().unlink()
    assert run(FETCH, home, hub.url).answer["at"] == str(snapshot)
    assert (snapshot / WEIGHTS).resolve().is_relative_to(outside)


def test_a_stopped_download_that_is_a_link_is_not_written_to(hub: Hub, folder: Path, home: Path) -> None:
    _, outside = planted(home, hub)
    blob = cache(home) / "blobs" / hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    blob.unlink()
    blob.with_name(f"{blob.name}.incomplete").symlink_to(outside / "model_index.json")
    assert "at" in run(FETCH, home, hub.url).answer
    assert (outside / "model_index.json").read_bytes() == b"x" * 31


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "other bytes"])
def test_what_is_no_file_in_the_place_of_one(hub: Hub, folder: Path, home: Path, kind: str) -> None:
    snapshot, _ = planted(home, hub)
    place = snapshot / "model_index.json"
    place.unlink()
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "loop":
        place.symlink_to(place)
    else:
        (cache(home) / "blobs" / ("0" * 40)).write_bytes(b"x" * 31)
        place.symlink_to(f"../../blobs/{'0' * 40}")
    ran = run(FETCH, home, hub.url)
    if kind == "folder":
        assert (ran.answer["exit"], "the hub's cache is damaged" in ran.answer["message"]) == (Exit.CACHE, True)
    else:
        assert place.read_bytes() == (folder / "model_index.json").read_bytes()


@pytest.mark.parametrize("kind", ["pipe", "folder", "junk", "endless"])
def test_a_ref_that_is_none(hub: Hub, home: Path, kind: str) -> None:
    planted(home, hub)
    ref = cache(home) / "refs" / "main"
    ref.unlink()
    if kind == "pipe":
        os.mkfifo(ref)
    elif kind == "folder":
        ref.mkdir()
    elif kind == "junk":
        ref.write_bytes(b"\xff../../x")
    else:
        ref.symlink_to("/dev/zero")
    ran = run(f"hub.describe({REPO!r}, offline=True)", home, hub.url)
    assert ran.answer["exit"] == Exit.NOT_FOUND


def test_a_server_without_ranges_starts_over(hub: Hub, folder: Path, home: Path) -> None:
    hub.faults.no_ranges, hub.faults.drop = True, {WEIGHTS: [100_000]}
    at = Path(run(FETCH, home, hub.url).answer["at"])
    assert (at / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


def test_a_file_that_the_server_cannot_give_now(hub: Hub, home: Path) -> None:
    hub.faults.file_status = {WEIGHTS: 502}
    ran = run(FETCH, home, hub.url)
    assert ran.told[::2] == ("the model hub cannot be reached (it answers 502)", Exit.FAILED)
    assert (len(hub.of(WEIGHTS)), ran.slept) == (4, [0.5, 1.0, 2.0])


def test_damaged_download_is_not_kept(hub: Hub, folder: Path, home: Path) -> None:
    hub.faults.corrupt = {WEIGHTS}
    ran = run(FETCH, home, hub.url)
    message = f"the download of {WEIGHTS} of {REPO} is damaged: its content is not what the hub announced"
    hint = "run the same command again: it downloads that file anew"
    assert ran.told == (message, hint, Exit.CACHE)
    assert [*cache(home).glob(f"snapshots/*/{WEIGHTS}"), *incomplete(home)] == []
    hub.faults.corrupt = set()
    at = Path(run(FETCH, home, hub.url).answer["at"])
    assert (at / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


@pytest.mark.parametrize("extra", [-1000, 1000])
def test_a_file_of_another_size_than_announced(hub: Hub, folder: Path, home: Path, extra: int) -> None:
    hub.faults.sizes = {WEIGHTS: weights_size(folder) + extra}
    ran = run(FETCH, home, hub.url)
    assert (ran.answer["exit"], "is damaged" in ran.answer["message"]) == (Exit.CACHE, True)
    assert not list(cache(home).glob(f"snapshots/*/{WEIGHTS}"))


def test_two_processes_fetch_once(hub: Hub, home: Path) -> None:
    hub.faults.stall = {WEIGHTS: (150_000, 0.5)}
    processes = [start(FETCH, home, hub.url) for _ in range(2)]
    answers = [json.loads(process.wait()[0])["answer"] for process in processes]
    assert answers == [{"at": str(cache(home) / "snapshots" / hub.commit(REPO))}] * 2
    assert len(hub.of(WEIGHTS)) == 1


# Disk


def test_disk_too_small_is_said_before_the_download(hub: Hub, home: Path) -> None:
    hub.faults.sizes = {WEIGHTS: 40_000_000_000_000}
    ran = run(FETCH, home, hub.url)
    message, hint, exit_code = ran.told
    assert message.startswith("org/tiny needs 40.0 TB more on the disk of the hub's cache, where ")
    assert message.endswith(" are free")
    free = "free some space (`hf cache prune`, `hf cache rm`) or point HF_HOME to a folder on a larger disk"
    assert (hint, exit_code) == (free, Exit.CACHE)
    assert [r.path for r in hub.requests] == [f"/api/models/{REPO}"]


def test_bytes_of_a_stopped_download_count_as_there(hub: Hub, folder: Path, home: Path) -> None:
    blob = cache(home) / "blobs" / hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    blob.parent.mkdir(parents=True)
    blob.with_name(f"{blob.name}.incomplete").write_bytes((folder / WEIGHTS).read_bytes()[:200_000])
    free = "import shutil, types; shutil.disk_usage = lambda _: types.SimpleNamespace(free={}); " + FETCH
    needed = weights_size(folder) + 31 - 200_000
    assert run(free.format(needed - 1), home, hub.url).answer["exit"] == Exit.CACHE
    assert "at" in run(free.format(needed), home, hub.url).answer
    assert [r.range for r in hub.of(WEIGHTS)] == ["bytes=200000-"]


def test_a_stopped_download_longer_than_the_file_starts_over(hub: Hub, folder: Path, home: Path) -> None:
    blob = cache(home) / "blobs" / hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    blob.parent.mkdir(parents=True)
    blob.with_name(f"{blob.name}.incomplete").write_bytes(bytes(400_000))
    at = Path(run(FETCH, home, hub.url).answer["at"])
    assert (at / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    assert [r.range for r in hub.of(WEIGHTS)] == [None]


def test_disk_full_during_the_download(hub: Hub, folder: Path, home: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
    ran = run(limit + FETCH, home, hub.url)
    hint = "free some space (`hf cache rm`) or set HF_HOME to a larger disk, then run this again: it resumes"
    assert ran.told == ("the disk of the hub's cache is full: org/tiny did not fit", hint, Exit.CACHE)
    hub.requests.clear()
    assert "at" in run(FETCH, home, hub.url).answer
    assert [r.range for r in hub.of(WEIGHTS)] == ["bytes=100000-"]


def test_cache_that_cannot_be_written(hub: Hub, home: Path) -> None:
    home.mkdir()
    (home / "hub").write_text("not a folder")
    assert run(FETCH, home, hub.url).answer["exit"] == Exit.CACHE


# Offline


@pytest.mark.parametrize("variable", ["DIFFPIPE_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_with_the_files_cached_connects_to_nothing(hub: Hub, home: Path, variable: str) -> None:
    online = run(FETCH + "; answer['files'] = {p: [f.size, f.digest] for p, f in r.files.items()}", home, hub.url)
    hub.requests.clear()
    code = FETCH + "; answer['files'] = {p: [f.size, f.digest] for p, f in r.files.items()}"
    code += f"; hub.read_text(r, 'model_index.json'); hub.read_header(r, {WEIGHTS!r})"
    for url in (hub.url, f"http://127.0.0.1:{closed_port()}"):
        assert run(code, home, url, HF_TOKEN=TOKEN, **{variable: "1"}).answer == online.answer
    assert hub.requests == []


def test_offline_finds_a_tag_and_a_commit(hub: Hub, folder: Path, home: Path) -> None:
    commit = hub.add(REPO, folder, "v1")
    run(f"download.fetch(hub.describe({REPO!r}, 'v1'), ['model_index.json'])", home, hub.url)
    for revision in ("v1", commit):
        code = f"answer['commit'] = hub.describe({REPO!r}, {revision!r}, offline=True).commit"
        assert run(code, home, hub.url).answer == {"commit": commit}


def test_a_listing_alone_does_not_hide_the_cached_commit_from_offline(hub: Hub, folder: Path, home: Path) -> None:
    run(FETCH, home, hub.url)
    cached = hub.commit(REPO)
    (folder / "model_index.json").write_text("{}")
    hub.add(REPO, folder)
    assert run(DESCRIBE + "answer['commit'] = r.commit", home, hub.url).answer != {"commit": cached}
    code = f"answer['commit'] = hub.describe({REPO!r}, offline=True).commit"
    assert run(code, home, hub.url).answer == {"commit": cached}


def test_offline_without_the_repository(hub: Hub, home: Path) -> None:
    ran = run("hub.describe('org/tiny', offline=True)", home, hub.url)
    message, hint = "org/tiny is not in the cache, and offline is on", "run it once without --offline"
    assert ran.told == (message, hint, Exit.NOT_FOUND)
    assert hub.requests == []


@pytest.mark.parametrize(
    "code", [f"download.fetch(r, [{WEIGHTS!r}], offline=True)", f"hub.read_header(r, {WEIGHTS!r}, offline=True)"]
)
def test_offline_without_the_file(hub: Hub, home: Path, code: str) -> None:
    ran = run(DESCRIBE + "download.fetch(r, ['model_index.json']); " + code, home, hub.url)
    message = f"{WEIGHTS} of org/tiny is not in the cache, and offline is on"
    assert ran.told == (message, "run it once without --offline", Exit.NOT_FOUND)
    assert hub.of(WEIGHTS) == []


def test_offline_without_the_revision(hub: Hub, home: Path) -> None:
    run(FETCH, home, hub.url)
    ran = run(f"hub.describe({REPO!r}, 'v9', offline=True)", home, hub.url)
    assert ran.answer["message"] == "revision v9 of org/tiny is not in the cache, and offline is on"


def test_reachable(hub: Hub, home: Path) -> None:
    code = "answer['there'] = hub_client.reachable()"
    assert run(code, home, hub.url).answer == {"there": True}
    assert run(code, home, f"http://127.0.0.1:{closed_port()}").answer == {"there": False}
    assert run(code, home, hub.url, HF_HUB_OFFLINE="1").answer == {"there": False}


def test_listing_from_a_hostile_hub_stays_inside_the_cache(hub: Hub, folder: Path, home: Path) -> None:
    listing = hub.repositories[REPO]["main"].listing
    listing["../../evil"] = {**listing["model_index.json"], "rfilename": "../../evil"}
    ran = run(DESCRIBE + "answer['files'] = sorted(r.files)", home, hub.url)
    assert ran.answer == {"files": ["model_index.json", WEIGHTS]}
    for name in ("x" * 300, "x/" * 600 + "y", "\ud800.json", "a//b", "./model_index.json", "a\\b", "a\0b", ""):
        listing[name] = {**listing["model_index.json"], "rfilename": name}
    assert run(DESCRIBE + "answer['files'] = sorted(r.files)", home, hub.url).answer == ran.answer
    listing["unet"] = {**listing["model_index.json"], "rfilename": "unet"}  # a file and a folder of one name
    assert run(DESCRIBE, home, hub.url).answer["message"] == "the answer did not come from a model hub"
    del listing["unet"]
    listing["model_index.json"]["blobId"] = "../../../evil"
    assert run(DESCRIBE, home, hub.url).answer["message"] == "the answer did not come from a model hub"
