"""A hub that answers what no hub should: its real answers with each value, header and byte replaced.

The hub's client is the real one; its connections are not made, so that an answer costs no socket.
"""

from __future__ import annotations

import copy
import gzip
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock
from urllib.parse import unquote

import httpx2
from hub_server import Faults, serve

from diffpipe.catalog import BUILTIN
from diffpipe.core.build_spec import BuildSpec
from diffpipe.core.parsing import Misfit
from diffpipe.sources import download, hub, hub_client, hub_seam, pin
from hostile.runner import Case, Line

CASES, LINES = 520, 5
ENDPOINT, OTHER = "https://hub.test", "https://elsewhere.test"
REPO = "org/tiny"
TOKEN = "hf_MARKEDmarked0123456789"
MARK = "\x1b]0;x\x07\u202e\r"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
LONGEST_MESSAGE = 1500  # characters; names are shortened, and a hub's words cut

ODD = (
    None, True, False, 0, -1, 5, 1.5, 10**30, -(10**30), 1e308, "", "x", "../../x", "/etc/passwd", "a\\b", "a\0b",
    MARK, "\ud800", "\udc80", "é" * 200, "x" * 5000, "a/" * 2000 + "b", [], [[]], {}, {"a": 1}, [None], ["x"] * 50,
    "a" * 40, "A" * 40, "a" * 39 + "\n", "b" * 64, "main", ".", "..", "CON", "x:y", " ", "~", "-x", "--help",
)  # fmt: skip
NAMES = (
    "..", "../x", "a/../../x", "/etc/x", "\\x", "a\\..\\x", "C:x", "a\0b", "\ud800", "\udcff", MARK, "a\nb", "x" * 255,
    "é" * 128, "x" * 300, "a/" * 600 + "b", "", ".", "./model_index.json", "a//b", "unet", "model_index.json/x",
    "unet/config.json/deeper.json", "UNET/CONFIG.JSON", "caf\u00e9.json", "cafe\u0301.json", "con.json", "a ", "a.",
    ".git/config", "refs", "-rf", "--help", "%2e%2e/x", "a%00b", "?x", "#x", "unet/\u202econfig.json", "x\u2028y",
)  # fmt: skip
STATUSES = (101, 200, 201, 204, 206, 300, 301, 302, 304, 307, 308, 400, 401, 403, 404, 406, 408, 409, 410, 416, 418,
            429, 451, 500, 502, 503, 504, 599)  # fmt: skip
PLACES = (
    "file:///etc/passwd", "http://hub.test/x", OTHER + "/x", "//elsewhere.test/x", "ftp://x/y", "javascript:x", "", "x",
    "?", "https://[::1", "https://a..b/", f"https://{'a' * 70}.test/", "https://hub.test:99999999/", "https://\u2603/",
    "https://user:pass@elsewhere.test/x", "data:,x", ENDPOINT + "/loop", "https:///x", "https://", "http:", "::",
    "\x00", ENDPOINT + "/" + "x" * 70_000, f"https://{MARK}/",
)  # fmt: skip
HEADERS = {
    "Content-Length": ("0", "1", "-1", "9" * 30, "x", "5, 6"),
    "Content-Encoding": ("gzip", "deflate", "br", "zstd", "x", "gzip, gzip", MARK),
    "Content-Range": ("bytes 5-9/10", "bytes */0", "x", "bytes 0-0/" + "9" * 40),
    "Content-Type": ("text/html", "application/json; charset=x", "x" * 9000),
    "ETag": ('"../../../../../x"', "/tmp/x", "W/", MARK),
    "X-Linked-ETag": ('"../../../../../x"', "/tmp/x"),
    "X-Linked-Size": ("-1", "x", "9" * 30),
    "X-Repo-Commit": ("../../../../../x", "x", "", MARK),
    "X-Error-Code": ("RevisionNotFound", "EntryNotFound", "GatedRepo", "RepoNotFound", MARK),
    "X-Error-Message": (MARK, "x" * 60_000, "disabled", "Access to this resource is disabled.", TOKEN),
    "X-HF-Warning": (f"a; {MARK}", "x" * 60_000),
    "X-Xet-Hash": ("../../x", "0" * 64, MARK),
    "X-Xet-Refresh-Route": ("https://elsewhere.test/token", "file:///etc/passwd", "x"),
    "Link": ('<https://elsewhere.test/x>; rel="xet-auth"', f'<{ENDPOINT}/x>; rel="next"', "<"),
    "Retry-After": ("99999999999", "-1", "x"),
    "RateLimit": ('"api";r=0;t=99999999999',),
    "Set-Cookie": ("a=b; domain=.test", MARK, "x" * 9000),
    "X-Request-Id": (MARK, "x" * 60_000),
}  # fmt: skip


class Forever(httpx2.SyncByteStream):
    """A body of so many pieces, of which nobody should want all."""

    def __init__(self, piece: bytes, most: int = 100_000) -> None:
        self.piece, self.most = piece, most

    def __iter__(self) -> Iterator[bytes]:
        for _ in range(self.most):
            yield self.piece
        raise AssertionError("read to the end of what has none")


HEADER = json.dumps({"lora_A": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}}).encode()
SAFETENSORS = len(HEADER).to_bytes(8, "little") + HEADER + bytes(32)


def files() -> dict[str, bytes]:
    """Two files: settings and weights."""
    return {"model_index.json": b'{"_class_name": "X"}', WEIGHTS: SAFETENSORS}


def model() -> dict[str, bytes]:
    """A tiny diffusers folder, with an adapter and its configuration."""
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    adapter = {"peft_type": "LORA", "lora_alpha": 8, "r": 4, "alpha_pattern": {"a": 1}, "use_rslora": True}
    config = {"_class_name": "UNet2DConditionModel", "architectures": ["X"], "sample_size": 8}
    return {
        "model_index.json": json.dumps(index).encode(),
        "unet/config.json": json.dumps(config).encode(),
        WEIGHTS: SAFETENSORS,
        "tokenizer/tokenizer_config.json": b'{"tokenizer_class": "CLIPTokenizer"}',
        "adapter_model.safetensors": SAFETENSORS,
        "adapter_config.json": json.dumps(adapter).encode(),
    }


def listing(of: Mapping[str, bytes]) -> dict[str, object]:
    siblings = []
    for path, data in of.items():
        one: dict[str, object] = {"rfilename": path, "size": len(data)}
        one["blobId"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        if path.endswith(".safetensors"):
            one["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        siblings.append(one)
    card = {"license": "mit", "tags": ["a"], "base_model": [{"x": 1}]}
    return {"_id": "0", "id": REPO, "sha": "c" * 40, "gated": False, "private": False, "tags": [], "cardData": card,
            "siblings": siblings}  # fmt: skip


@dataclass
class Hub:
    """What it has, and what it answers in the place of the truth: by what is asked for, "listing" or "file"."""

    files: dict[str, bytes] = field(default_factory=files)
    model: bytes | None = None
    instead: Callable[[str, httpx2.Request, httpx2.Response], httpx2.Response] | None = None

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.host != "hub.test":
            assert "authorization" not in request.headers, f"the token went to {request.url.host}"
        assert request.url.scheme == "https", f"it went to {request.url}"
        kind, found = self._found(request)
        return self.instead(kind, request, found) if self.instead else found

    def _found(self, request: httpx2.Request) -> tuple[str, httpx2.Response]:
        path = unquote(request.url.path)
        if path.startswith("/api/models"):
            data = self.model if self.model is not None else json.dumps(listing(self.files)).encode()
            return "listing", httpx2.Response(200, content=data, headers={"Content-Type": "application/json"})
        if path == "/loop":
            return "loop", httpx2.Response(302, headers={"Location": "/loop"})
        data = self.files.get(path.partition(f"/resolve/{'c' * 40}/")[2])
        if data is None:
            return "file", httpx2.Response(404, headers={"X-Error-Code": "EntryNotFound"})
        start, _, end = request.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        part = data[int(start) : int(end) + 1 if end else None]
        tag = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": "c" * 40}
        return "file", httpx2.Response(206 if "Range" in request.headers else 200, content=part, headers=tag)


@contextmanager
def standing(answer: Callable[[httpx2.Request], httpx2.Response], folder: Path) -> Iterator[None]:
    """The hub's client has this hub, an empty cache in the folder, and a token; pauses are not made."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    def client() -> httpx2.Client:
        hooks = {"request": [_http.hf_request_event_hook]}
        return httpx2.Client(transport=httpx2.MockTransport(answer), event_hooks=hooks, follow_redirects=True)

    with ExitStack() as stack:
        for where, name, value in (
            (constants, "ENDPOINT", ENDPOINT), (constants, "HF_HUB_CACHE", str(folder)),
            (constants, "HUGGINGFACE_CO_URL_TEMPLATE", ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"),
            (hub_seam, "new_client", client), (download, "time", SimpleNamespace(sleep=lambda seconds: None)),
            (_http, "time", SimpleNamespace(sleep=lambda seconds: None)),
        ):  # fmt: skip
            stack.enter_context(mock.patch.object(where, name, value))
        stack.enter_context(mock.patch.dict(os.environ, {"HF_TOKEN": TOKEN}))
        hub_client._guard_client.cache_clear()
        huggingface_hub.close_session()
        stack.callback(huggingface_hub.close_session)
        stack.callback(hub_client._guard_client.cache_clear)
        yield


def all_of_it() -> None:
    """What is asked of a hub, in the order of a build: each file that it lists is fetched."""
    repository = hub.describe(REPO)
    for path in list(repository.files)[:40]:
        if path.endswith(".json"):
            hub.read_text(repository, path)
        if path.endswith(".safetensors"):
            hub.read_header(repository, path)
    download.fetch(repository, list(repository.files)[:40], quiet=True)


def ambiguous() -> None:
    row = BUILTIN["flux"].type("text2image")
    assert row
    pin.pin(BuildSpec("flux", "text2image", REPO, loras=(REPO,)), row, pin.Context())


def described() -> None:
    hub.describe(REPO)


def pinned() -> None:
    """A build's sources as they are pinned: a model, a component of another, an adapter."""
    row = BUILTIN["flux"].type("text2image")
    assert row
    components = {"unet": f"{REPO}/unet", "tokenizer": REPO}
    adapter = f"{REPO}/adapter_model.safetensors"
    pin.pin(BuildSpec("flux", "text2image", REPO, components=components, loras=(adapter,)), row, pin.Context())


def tried(folder: Path, made: Hub, what: str, call: Callable[[], None] = all_of_it) -> Case:
    """`call` on a hub that begins anew each time."""

    def run() -> None:
        place = folder / "cache"
        before = set(folder.iterdir())
        try:
            with standing(made.answer, place):
                call()
        except Misfit as error:  # the wall's own, which nobody shows
            raise AssertionError(f"a misfit reached the user: {error}") from error
        except Exception as error:
            said = f"{error} {getattr(error, 'hint', '')}"
            assert TOKEN not in said, "the token is in the message"
            assert len(said) < LONGEST_MESSAGE, f"a message of {len(said)} characters"
            raise
        finally:
            strange = set(folder.iterdir()) - before - {place}
            links = [path for path in place.rglob("*") if path.is_symlink()]
            outside = [path for path in links if not path.resolve().is_relative_to(place)]
            shutil.rmtree(place, ignore_errors=True)
            assert not strange, f"made {strange}"
            assert not outside, f"links out of the cache: {outside}"

    return Case(what, run)


# Mutations


def nodes(value: object, path: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    """The path of each value of a JSON document, the document itself first."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inside:
        yield from nodes(one, (*path, key))


def replaced(document: object, path: tuple[object, ...], value: object) -> object:
    if not path:
        return value
    changed = copy.deepcopy(document)
    inside = changed
    for key in path[:-1]:
        inside = inside[key]  # type: ignore[index]
    inside[path[-1]] = value  # type: ignore[index]
    return changed


def by_hand(folder: Path) -> Iterator[Case]:
    yield tried(folder, Hub(), "a hub as it should be")
    yield tried(folder, Hub(model()), "pinned as it should be", pinned)
    for name in NAMES:
        one = json.dumps({"a": 1}).encode()
        yield tried(folder, Hub({**files(), name: one}), f"a file named {name!r:.80}")
    yield tried(folder, Hub({**files(), "unet": b"{}"}), "a file and a folder of one name")
    yield tried(folder, Hub({"a.json": b"{}", "A.json": b"[]", "\u00e9.json": b"1", "e\u0301.json": b"2"}), "one name")
    for text in BODIES:
        yield tried(folder, Hub(model=text), f"the listing is {text[:40]!r}")
    deep = {f"{number}{'/a' * 490}": b"" for number in range(5000)}
    long = {f"{number}{'/' + 'x' * 200 * 4}.safetensors".replace("xxxx", "xxx/"): b"" for number in range(9)}
    yield tried(folder, Hub({**model(), **long}), "adapters with long names", ambiguous)
    yield tried(folder, Hub(model=json.dumps(listing(deep)).encode()), "files in 490 folders each", described)
    for place in PLACES:
        for kind in ("listing", "file"):
            yield tried(folder, Hub(instead=_redirect(kind, place)), f"{kind} redirected to {place!r:.60}")
    for status in STATUSES:
        for kind in ("listing", "file"):
            yield tried(folder, Hub(instead=_status(kind, status)), f"{kind} answered with {status}")
    for name, values in HEADERS.items():
        for value in values:
            for kind in ("listing", "file", "refusal"):
                yield tried(folder, Hub(instead=_header(kind, name, value)), f"{kind} with {name}: {value!r:.60}")
    for kind in ("listing", "file"):
        yield tried(folder, Hub(instead=_endless(kind, 200)), f"{kind} without end")
        yield tried(folder, Hub(instead=_endless(kind, 503)), f"a refusal of the {kind} without end")
        yield tried(folder, Hub(instead=_endless(kind, 302)), f"a redirect of the {kind} without end")
        for packing in ("gzip", "gzip, gzip"):
            yield tried(folder, Hub(instead=_bomb(kind, 200, packing)), f"{kind} packed: {packing}")
            yield tried(folder, Hub(instead=_bomb(kind, 404, packing)), f"a refusal of the {kind} packed: {packing}")
    for body in REFUSALS:
        yield tried(folder, Hub(instead=_refusal(body)), f"a refusal that says {body[:40]!r}")


BODIES = (
    b"", b"null", b"[]", b"5", b'"x"', b"true", b"{}", b"NaN", b"\xff\xfe", b"<html>", b"[" * 100_000,
    b'{"a":' * 100_000, b'{"sha": "' + b"c" * 40 + b'", "siblings": null}', b"\0" * 100, b'{"sha": "\\ud800"}',
    b'{"siblings": [' + b'{"rfilename": "a"},' * 10_000 + b"{}]}", b"9" * 10_000, b'{"sha": 1e999}', b"\xef\xbb\xbf{}",
    b"[" + b"[]," * 3_000_000 + b"[]]", b"{" + b",".join(b'"%d":1' % n for n in range(400_000)) + b"}",
)  # fmt: skip
REFUSALS = (
    b"[]", b"5", b"null", b'{"error": 5}', b'{"error": [{}]}', b'{"errors": 5}', b'{"errors": [5]}', b"[" * 100_000,
    b'{"errors": [{"message": {}}]}', MARK.encode(), b"\xff" * 1000, b'{"error": "' + b"x" * 90_000 + b'"}',
    TOKEN.encode(), b"\0", b'{"error": "\\ud800"}',
)  # fmt: skip


def _redirect(kind: str, place: str) -> Callable[..., httpx2.Response]:
    def instead(of: str, request: httpx2.Request, found: httpx2.Response) -> httpx2.Response:
        there = request.url.path.startswith("/x")
        headers = [(b"Location", place.encode("utf-8", "surrogatepass"))]
        return httpx2.Response(302, headers=headers) if of == kind and not there else found

    return instead


def _status(kind: str, status: int) -> Callable[..., httpx2.Response]:
    return lambda of, request, found: httpx2.Response(status, content=b"out of order") if of == kind else found


def _header(kind: str, name: str, value: str) -> Callable[..., httpx2.Response]:
    def instead(of: str, request: httpx2.Request, found: httpx2.Response) -> httpx2.Response:
        raw = [(name.encode(), value.encode("utf-8"))]
        if kind == "refusal":
            return httpx2.Response(403, headers=raw)
        if of != kind:
            return found
        kept = [(key, one) for key, one in found.headers.raw if key.lower() != name.lower().encode()]
        return httpx2.Response(found.status_code, headers=kept + raw, stream=httpx2.ByteStream(found.content))

    return instead


def _endless(kind: str, status: int) -> Callable[..., httpx2.Response]:
    def instead(of: str, request: httpx2.Request, found: httpx2.Response) -> httpx2.Response:
        headers = {"Location": ENDPOINT + "/next"} if status == 302 else {}
        body = Forever(b" " * 65_536)
        return httpx2.Response(status, headers=headers, stream=body) if of == kind else found

    return instead


def _bomb(kind: str, status: int, packing: str) -> Callable[..., httpx2.Response]:
    data = gzip.compress(bytes(200_000_000), 1)
    for _ in packing.split(",")[1:]:
        data = gzip.compress(data)

    def instead(of: str, request: httpx2.Request, found: httpx2.Response) -> httpx2.Response:
        stream = httpx2.ByteStream(data)
        return httpx2.Response(status, headers={"Content-Encoding": packing}, stream=stream) if of == kind else found

    return instead


def _refusal(body: bytes) -> Callable[..., httpx2.Response]:
    return lambda of, request, found: httpx2.Response(403, stream=httpx2.ByteStream(body))


def cases(rng: random.Random, folder: Path) -> Iterator[Case]:
    yield from by_hand(folder)
    honest = files()
    whole = listing(honest)
    places = list(nodes(whole))
    whole_model = model()
    settings = {name: json.loads(data) for name, data in whole_model.items() if name.endswith(".json")}
    while True:
        if rng.random() < 0.5:
            path, value = rng.choice(places), rng.choice(ODD)
            data = json.dumps(replaced(whole, path, value)).encode()
            yield tried(folder, Hub(model=data), f"{path} of the listing is {value!r:.60}")
        else:
            name = rng.choice(list(settings))
            path, value = rng.choice(list(nodes(settings[name]))), rng.choice(ODD)
            data = json.dumps(replaced(settings[name], path, value)).encode()
            yield tried(folder, Hub({**whole_model, name: data}), f"{path} of {name} is {value!r:.60}", pinned)


# The same by sockets, as a command line meets it

IMPATIENT = "from diffpipe.storage import http_guard\nhttp_guard.PATIENCE = 0.3\n"
PLAN, BUILD = ("plan", "custom", "--model", REPO), ("build", "custom", "--model", REPO, "-v")


def lines(rng: random.Random, folder: Path) -> Iterator[Line]:
    (place := folder / "model").mkdir()
    for path, data in model().items():
        (place / path).parent.mkdir(exist_ok=True)
        (place / path).write_bytes(data)
    with serve({REPO: place}) as running:
        clean = Faults(tokens={TOKEN})
        env = {"HF_ENDPOINT": running.url, "HF_TOKEN": TOKEN, "HF_HUB_ETAG_TIMEOUT": "2"}

        def line(what: str, words: tuple[str, ...], first: str = "", **faults: object) -> Line:
            running.faults = replace(clean, **faults)  # type: ignore[arg-type]
            return Line(what, words, env=env, first=first)

        warned = {"X-HF-Warning": f"a; \x1b[2J{TOKEN}", "X-Request-Id": "\x1b[2J" + "x" * 30_000}
        yield line("a listing byte by byte", PLAN, IMPATIENT, trickle={"": 0.02})
        yield line("headers with what a terminal obeys", BUILD, headers=warned, status=500)
        yield line("a hub that says nothing", ("doctor", "--json"), silent=True)
        while True:
            path = rng.choice(list(nodes(listing(model()))))
            value = rng.choice(ODD)
            data = json.dumps(replaced(listing(model()), path, value)).encode()
            yield line(f"{path} of the listing is {value!r:.60}", rng.choice((PLAN, BUILD)), model=data)
