"""A small model hub on this machine: enough of the hub's HTTP API for the real huggingface_hub client, and its faults.

It answers /api/models/REPO[/revision/REV] and /tree/REV, HEAD and GET of /REPO/resolve/REV/PATH with ranges, and sends
large files, as the hub does, by a redirect to another origin where `Faults.elsewhere` is set. Status codes, error codes
and headers are the ones that huggingface_hub.utils.hf_raise_for_status and file_download read.

    with serve({"org/tiny": folder}, private={"org/tiny"}) as hub:
        run(..., env={"HF_ENDPOINT": hub.url})
    assert hub.requests == []

Run `python tests/hub_server.py FOLDER REPO [PORT]` to keep one up by hand.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".ckpt", ".pt", ".gguf", ".msgpack")  # kept by SHA-256, as .gitattributes has it
TOKEN = "hf_TestTokenOfNobody0123456789"


@dataclass
class Faults:
    """What goes wrong. Repositories by name, files by their path in the repository."""

    tokens: set[str] = field(default_factory=lambda: {TOKEN})  # the tokens that are accepted
    private: set[str] = field(default_factory=set)  # need a token
    gated: set[str] = field(default_factory=set)  # licence not accepted: listed, files refused
    narrow: set[str] = field(default_factory=set)  # the token lacks the scope
    fine_grained: set[str] = field(default_factory=set)  # the token lacks the permission for gated repositories
    disabled: set[str] = field(default_factory=set)
    open_404: bool = False  # say 404, not 401, of a repository that is missing to those without a token
    status: int = 0  # answer everything with this
    file_status: dict[str, int] = field(default_factory=dict)  # answer requests for this file with this
    drop: dict[str, list[int]] = field(default_factory=dict)  # path -> bytes before the cut, for request after request
    stall: dict[str, tuple[int, float]] = field(default_factory=dict)  # path -> (bytes, seconds of silence after them)
    reset: bool = False  # cut by RST, not by FIN
    sizes: dict[str, int] = field(default_factory=dict)  # announced in the listing
    corrupt: set[str] = field(default_factory=set)  # one byte differs from what the listing announces
    no_ranges: bool = False
    elsewhere: bool = False  # large files by redirect to another origin
    echo: bool = False  # repeat the Authorization header in error texts
    html: bool = False  # answer with a page, as a network that asks to sign in does
    trickle: dict[str, float] = field(default_factory=dict)  # path -> seconds before each byte; "" for listings
    headers: dict[str, str] = field(default_factory=dict)  # of every answer
    silent: bool = False  # accept connections and say nothing
    model: bytes = b""  # what is answered about every model


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    token: str | None
    elsewhere: bool = False


@dataclass
class Revision:
    """The files of a folder as a commit."""

    folder: Path
    commit: str
    listing: dict[str, dict[str, object]]


def read_revision(folder: Path) -> Revision:
    listing = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            entry: dict[str, object] = {
                "rfilename": path.relative_to(folder).as_posix(),
                "size": len(data),
                "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
            }
            if path.suffix in LARGE:
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            listing[str(entry["rfilename"])] = entry
    commit = hashlib.sha1(json.dumps(listing, sort_keys=True).encode()).hexdigest()
    return Revision(folder, commit, listing)


@dataclass
class Hub:
    """A running server: its address, what it holds, its faults (change them at will) and the requests it got."""

    url: str
    repositories: dict[str, dict[str, Revision]]
    faults: Faults
    requests: list[Request] = field(default_factory=list)
    other_url: str = ""

    def add(self, repo: str, folder: Path, revision: str = "main") -> str:
        """Put a folder on the hub and return its commit; a changed folder added again is a new commit."""
        found = read_revision(folder)
        known = self.repositories.setdefault(repo, {})
        known[revision] = known[found.commit] = found
        return found.commit

    def commit(self, repo: str, revision: str = "main") -> str:
        return self.repositories[repo][revision].commit

    def of(self, path: str, method: str = "GET") -> list[Request]:
        """The requests for a file, redirected ones once."""
        return [r for r in self.requests if r.path.endswith(path) and r.method == method and not r.elsewhere]


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        self.status, self.message, self.code = status, message, code


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    elsewhere = False

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(Request(self.command, path, self.headers["Range"], self.token, self.elsewhere))
        faults = self.hub.faults
        if faults.silent:
            threading.Event().wait(60)
        try:
            if faults.status:
                raise Refusal(faults.status, "out of order")
            if faults.html:
                return self.send(200, b"<html>Sign in to this network</html>", {"Content-Type": "text/html"})
            self.check_token()
            if match := re.fullmatch(r"/api/models/(.+?)(?:/revision/(.+))?", path):
                if "/tree/" in match[1]:
                    repo, _, revision = match[1].partition("/tree/")
                    return self.send_tree(repo, self.find(repo, revision.split("/")[0]))
                return self.send_model(match[1], self.find(match[1], match[2] or "main"))
            if match := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
                return self.send_file(match[1], self.find(match[1], match[2]), match[3])
            raise Refusal(404, "Not found")
        except Refusal as refusal:
            self.refuse(refusal)

    @property
    def token(self) -> str | None:
        header = self.headers["Authorization"]
        return header.removeprefix("Bearer ") if header else None

    def check_token(self) -> None:
        if self.token and not self.elsewhere and self.token not in self.hub.faults.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")

    def find(self, repo: str, revision: str) -> Revision:
        faults = self.hub.faults
        hidden = repo in faults.private and not self.token and not self.elsewhere
        if repo not in self.hub.repositories or hidden:
            if self.token or self.elsewhere or (faults.open_404 and not hidden):
                raise Refusal(404, "Repository not found", "RepoNotFound")
            raise Refusal(401, "Invalid username or password.")
        if repo in faults.narrow:
            raise Refusal(403, "This authentication method does not have sufficient permissions to call this method")
        if repo in faults.disabled:
            raise Refusal(403, "Access to this resource is disabled.")
        if revision not in self.hub.repositories[repo]:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.hub.repositories[repo][revision]

    def send_model(self, repo: str, revision: Revision) -> None:
        siblings = [
            {**entry, "size": self.hub.faults.sizes.get(path, entry["size"])}
            for path, entry in revision.listing.items()
        ]
        body = {"_id": "0" * 24, "id": repo, "modelId": repo, "sha": revision.commit, "siblings": siblings, "tags": []}
        data = self.hub.faults.model or json.dumps(body).encode()
        self.send(200, data, {"Content-Type": "application/json"})

    def send_tree(self, repo: str, revision: Revision) -> None:
        tree = []
        for path, entry in revision.listing.items():
            item = {"type": "file", "path": path, "size": entry["size"], "oid": entry["blobId"]}
            if lfs := entry.get("lfs"):
                item["lfs"] = {"oid": lfs["sha256"], "size": entry["size"], "pointerSize": 134}  # type: ignore[index]
            tree.append(item)
        self.send(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})

    def send_file(self, repo: str, revision: Revision, path: str) -> None:
        faults = self.hub.faults
        if not self.elsewhere:
            self.check_gate(repo)
        entry = revision.listing.get(path)
        if entry is None:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        if status := faults.file_status.get(path):
            raise Refusal(status, "out of order", "EntryNotFound" if status == 404 else "")
        lfs = entry.get("lfs")
        headers = {
            "X-Repo-Commit": revision.commit,
            "ETag": f'"{lfs["sha256"] if lfs else entry["blobId"]}"',  # type: ignore[index]
            "Content-Type": "application/octet-stream",
            "Accept-Ranges": "none" if faults.no_ranges else "bytes",
        }
        if lfs and faults.elsewhere and not self.elsewhere:
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(entry["size"])}
            self.send(302, b"", headers | {"Location": self.hub.other_url + self.path})
        else:
            data = (revision.folder / path).read_bytes()
            if path in faults.corrupt:
                data = data[:-1] + bytes([data[-1] ^ 1])
            self.send_range(path, data, headers)

    def check_gate(self, repo: str) -> None:
        if repo in self.hub.faults.fine_grained:
            text = "Please enable access to public gated repositories in your fine-grained token settings"
            raise Refusal(403, f"{text} to view this repository.", "GatedRepo")
        if repo in self.hub.faults.gated:
            if not self.token:
                raise Refusal(401, f"Access to model {repo} is restricted. Please log in.", "GatedRepo")
            text = f"Access to model {repo} is restricted and you are not in the authorized list."
            raise Refusal(403, f"{text} Visit https://huggingface.co/{repo} to ask for access.", "GatedRepo")

    def send_range(self, path: str, data: bytes, headers: dict[str, str]) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
        start, end = (int(match[1]), min(int(match[2] or len(data)), len(data) - 1)) if match else (0, 0)
        if not match or self.hub.faults.no_ranges:
            self.send(200, data, headers, path)
        elif start >= len(data):
            self.send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        else:
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            self.send(206, data[start : end + 1], headers, path)

    def send(self, status: int, body: bytes, headers: Mapping[str, str], path: str = "") -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body)), **self.hub.faults.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.send_body(body, path)

    def send_body(self, body: bytes, path: str) -> None:
        with suppress(ConnectionError):
            if pause := self.hub.faults.trickle.get(path):
                for at in range(len(body)):
                    time.sleep(pause)
                    self.wfile.write(body[at : at + 1])
            elif cuts := self.hub.faults.drop.get(path):
                self.wfile.write(body[: cuts.pop(0)])
                self.cut()
            else:
                after, seconds = self.hub.faults.stall.get(path, (0, 0.0))
                self.wfile.write(body[:after])
                time.sleep(seconds)
                self.wfile.write(body[after:])

    def cut(self) -> None:
        self.close_connection = True
        if self.hub.faults.reset:  # zero linger: the kernel sends RST
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.connection = socket.socket()

    def refuse(self, refusal: Refusal) -> None:
        message = refusal.message + (f" ({self.headers['Authorization']})" if self.hub.faults.echo else "")
        headers = {"X-Error-Message": message, "Content-Type": "application/json"}
        if refusal.code:
            headers["X-Error-Code"] = refusal.code
        self.send(refusal.status, json.dumps({"error": message}).encode(), headers)

    def log_message(self, *_args: object) -> None:
        pass


@contextmanager
def serve(repositories: Mapping[str, Path | Mapping[str, Path]], **faults: object) -> Iterator[Hub]:
    """Serve repositories (name -> folder, or name -> revision -> folder) until the block ends, with `Faults`."""
    hub = Hub("", {}, Faults(**faults))  # type: ignore[arg-type]
    for repo, revisions in repositories.items():
        for revision, folder in (revisions if isinstance(revisions, Mapping) else {"main": revisions}).items():
            hub.add(repo, folder, revision)
    with _listen(hub, elsewhere=False) as url, _listen(hub, elsewhere=True) as other:
        hub.url, hub.other_url = url, other
        yield hub


@contextmanager
def _listen(hub: Hub, elsewhere: bool, port: int = 0) -> Iterator[str]:
    handler = type("BoundHandler", (Handler,), {"hub": hub, "elsewhere": elsewhere})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


_held: list[socket.socket] = []


def closed_port() -> int:
    """A port of this machine that refuses connections, and goes on to: it is bound, and nobody listens there."""
    _held.append(socket.socket())
    _held[-1].bind(("127.0.0.1", 0))
    return int(_held[-1].getsockname()[1])


if __name__ == "__main__":
    with serve({sys.argv[2]: Path(sys.argv[1])}) as running:
        print(f"HF_ENDPOINT={running.url}", flush=True)
        threading.Event().wait()
