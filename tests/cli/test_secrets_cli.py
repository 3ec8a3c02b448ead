"""No secret in anything that a run leaves or starts: marked ones in the environment and in URLs, and a search."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import manifests
import pytest
from conftest import Cli, Done
from PIL import Image

from diffpipe.cache.store import Store
from diffpipe.cli import ray_options
from diffpipe.core.access_tokens import redacted
from diffpipe.core.flag import Flag, FlagKind
from diffpipe.runners.ray_cluster import connection
from diffpipe.runners.worker import lifecycle
from diffpipe.storage.urls import hidden

MARK = "M4rkedSecret"
SECRET = (
    "HF_TOKEN", "HUGGINGFACE_HUB_ACCESS_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "GOOGLE_API_KEY",
    "AZURE_STORAGE_KEY", "WANDB_API_KEY", "CIVITAI_TOKEN", "RAY_AUTH_TOKEN",
)  # fmt: skip
SIGNED = f"?X-Amz-Signature={MARK}&token={MARK}"


class Files(BaseHTTPRequestHandler):
    """A server of two files, which asks for nothing."""

    def do_GET(self) -> None:
        picture = BytesIO()
        Image.new("RGB", (128, 128), "red").save(picture, "PNG")
        data = {"/p.txt": b"a fox\n", "/x.png": picture.getvalue()}.get(self.path.partition("?")[0])
        self.send_response(404 if data is None else 200)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    """Its address, with a marked password."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as serving:
        Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://user:{MARK}@127.0.0.1:{serving.server_port}"
        serving.shutdown()


def first(server: str, folder: Path) -> str:
    """A program that gives a process marked secrets, and a folder of its own for what is temporary."""
    marked = {name: f"{MARK}-{name}" for name in SECRET} | {"HF_ENDPOINT": server, "NO_PROXY": "127.0.0.1"}
    marked |= {"http_proxy": f"http://user:{MARK}@127.0.0.1:9", "TMPDIR": str(folder)}
    return f"import os, tempfile\nos.environ.update({marked!r})\ntempfile.tempdir = {str(folder)!r}\n"


def unmarked(done: Done) -> Done:
    assert MARK not in done.stdout + done.stderr
    return done


def marked_in(folder: Path) -> list[Path]:
    """The files that have the mark in their content or name."""
    found = [path for path in folder.rglob("*") if MARK in path.name]
    return found + [path for path in folder.rglob("*") if path.is_file() and MARK.encode() in path.read_bytes()]


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for what processes were started with")
def test_no_secret_is_in_what_a_run_leaves(cli: Cli, server: str, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "work").mkdir()
    (tmp_path / "run").mkdir(mode=0o700)
    env = {"DIFFPIPE_HOME": str(tmp_path / "home"), "XDG_RUNTIME_DIR": str(tmp_path / "run")}

    def run(*words: object, code: int = 0, log: bool = False) -> None:
        more = ("-v", "--log-file", f"{words[0]}.log") if log else ()
        done = cli(*words, *more, cwd=tmp_path / "work", env=env, first=first(server, tmp_path / "tmp"))
        assert unmarked(done).returncode == code, done.stderr

    run("build", "demo", "--type", "img2img", "--name", "demo", log=True)
    once = ("generate", "demo", "--num-inference-steps", 2, "--seed", 1)
    image = ("--image", f"{server}/x.png{SIGNED}")
    looks = ("--gallery", "g", "--contact-sheet", "sheet.png", "--journal", "j.jsonl", "--json", "--keep-warm", "1m")
    run(*once, "--prompts-from", f"{server}/p.txt{SIGNED}", *image, *looks, "-o", "out/", log=True)
    (worker,) = (one.status for one in lifecycle.running(_store(tmp_path, env)))
    assert worker
    process = Path("/proc", str(worker.pid))
    assert MARK.encode() not in (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
    run(*once, "--prompt", "a", "--image", f"{server}/none.png{SIGNED}", "--traceback", code=1, log=True)
    run("pipelines", "export", "demo", "b.tar")
    run("reproduce", "out/demo-1.png", "--set", f"image={server}/x.png{SIGNED}", "--traceback", code=1, log=True)
    run("build", "flux", "--model", f"{server}/x.safetensors{SIGNED}", "--traceback", code=1)
    run("inspect", f"{server}/x.png{SIGNED}", code=2)
    run("doctor", "--json")
    run("worker", "stop", "--all")
    assert marked_in(tmp_path) == []


def _store(folder: Path, env: dict[str, str]) -> Store:
    os.environ.update(env)
    return Store(folder / "home")


@pytest.mark.parametrize(
    "text",
    [
        f"cannot read http://user:{MARK}@host/x?sig={MARK}", f"the log http:/user:{MARK}@host/x",
        f"x.png?X-Amz-Signature={MARK}&size=2 is no picture", f"s3://{MARK}:{MARK}@bucket/x",
        f"x.png?size=2&token={MARK}", f"'https://host/x?access_token={MARK}' failed",
    ],
)  # fmt: skip
def test_parts_of_urls_are_told_without_what_signs_them(text: str) -> None:
    assert MARK not in hidden(text)
    assert hidden(hidden(text)) == hidden(text)


def test_secrets_of_the_environment_are_in_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRET:
        monkeypatch.setenv(name, f"{MARK}-{name}")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("SOME_TOKEN", "short")
    said = redacted(" ".join(f"{MARK}-{name}" for name in SECRET) + " false short")
    assert said == " ".join(["[token]"] * len(SECRET)) + " false short"


def test_processes_of_a_cluster_of_its_own_are_started_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SECRET, "PLAIN"):
        monkeypatch.setenv(name, MARK)
    before = dict(os.environ)
    started: list[set[str]] = []

    def init(**_: object) -> None:
        started.append({name for name, value in os.environ.items() if value == MARK})

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    for stores in (False, True):
        connection._start(0, stores).rmdir()
    assert started == [{"PLAIN", "RAY_AUTH_TOKEN"}, {"PLAIN", *SECRET}]
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("kind", "given", "stores"),
    [
        ("text", {"output": "out/"}, False), ("text", {"thing": "s3://b/x"}, False), ("image", {"thing": "x"}, False),
        ("text", {"prompts_from": "s3://b/x"}, False), ("text", {"output": "s3://b/run/"}, True),
        ("image", {"prompts_from": "-"}, True), ("image", {"thing": "s3://b/x"}, True),
        ("image", {"thing": ["x", "gs://b/x"]}, True), ("image", {"sweep": ["thing=a,b"]}, True),
    ],
)  # fmt: skip
def test_a_cluster_of_its_own_may_ask_stores_only_where_a_run_can(
    kind: FlagKind, given: dict[str, object], stores: bool
) -> None:
    manifest = replace(manifests.manifest(), flags=(Flag("thing", kind),))
    values = dict.fromkeys(("output", "prompts_from", "args", "sweep", "set")) | given
    assert ray_options.at_stores(values, manifest) == stores
