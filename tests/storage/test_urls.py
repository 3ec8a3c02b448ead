"""Inputs and outputs at URLs: what is shown of them, what stores are asked, and that files appear whole and once."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from conftest import Cli, Done, Warm
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from manifests import manifest
from PIL import Image

from diffpipe.batch import output_paths
from diffpipe.batch.argument_checks import check_files
from diffpipe.batch.items import Batch, Earlier, Refused, items
from diffpipe.batch.journal import opened
from diffpipe.batch.journal_lines import NotedFile, Record
from diffpipe.batch.output_paths import Outputs, whole_template, within
from diffpipe.batch.prompt_files import Row
from diffpipe.core.counter import CompactCounter
from diffpipe.core.errors import AccessError, CacheError, DiffpipeError, Exit, NotFoundError, UsageError
from diffpipe.core.flag import Flag
from diffpipe.core.request import Artifact, Outcome, Request
from diffpipe.results import metadata
from diffpipe.storage import fetching, presence, publishing, stores, urls

SMALL = ("--width", 64, "--height", 64, "--num-inference-steps", 1)
IMAGE = Flag("image", "image")


class Store(MemoryFileSystem):  # type: ignore[misc]
    """A store of its own, at store://, that is no object store: `asked` counts requests by name, `raises` fails them,
    and `seen` holds every name under which a part of a file could be read."""

    protocol = "store"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    asked: ClassVar[dict[str, int]] = {}
    raises: ClassVar[dict[str, Exception]] = {}
    seen: ClassVar[list[str]] = []

    def _ask(self, name: str) -> None:
        self.asked[name] = self.asked.get(name, 0) + 1
        if name in self.raises:
            raise self.raises[name]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        bare = path.rpartition("://")[2].rpartition("@")[2].strip("/")
        return f"/{bare}" if bare else ""

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        self._ask("info")
        return dict(super().info(path, **kwargs))

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        self._ask("ls")
        return list(super().ls(path, detail, **kwargs))

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        self._ask("put")
        self.seen.append(rpath)
        super().put_file(lpath, rpath, **kwargs)
        self._ask("put ends")


class Tagged(Store):
    """The same with tags of contents, at tagged://, as object stores have them."""

    protocol = "tagged"

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        return self._tagged(super().info(path, **kwargs))

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        return [self._tagged(one) for one in super().ls(path, True, **kwargs)]

    def _tagged(self, info: dict[str, Any]) -> dict[str, Any]:
        if info["type"] != "file":
            return info
        return info | {"ETag": hashlib.md5(self.store[info["name"]].getvalue(), usedforsecurity=False).hexdigest()}


fsspec.register_implementation("store", Store, clobber=True)
fsspec.register_implementation("tagged", Tagged, clobber=True)
fsspec.register_implementation("absent", "no_such_package.files.Absent", clobber=True)


@pytest.fixture(autouse=True)
def empty_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Empty stores, and a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    for held in (Store.store, Store.asked, Store.raises, Store.seen, MemoryFileSystem.store):
        held.clear()
    presence.forget()
    yield
    MemoryFileSystem.store.clear()


def put(url: str, content: bytes = b"content") -> str:
    fsspec.filesystem(urls.split(url)[0]).pipe_file(url, content)
    return url


def content(url: str) -> bytes:
    return bytes(fsspec.filesystem(urls.split(url)[0]).cat_file(url))


def file(content: bytes, name: str = "made.png") -> Path:
    path = Path(name)
    path.write_bytes(content)
    return path


# What a URL says


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket/x.png", True), ("file:///x", True), ("memory://x", True), ("git+ssh://h/x", True),
        ("x.png", False), ("/x.png", False), ("C://x.png", False), ("a b://x", False), ("out/s3://x", False),
        ("", False), ("://x", False), ("3d://x", False), ("s3:/x", False), ("a fox at s3://x", False),
    ],
)  # fmt: skip
def test_what_is_a_url(text: str, expected: bool) -> None:
    assert urls.is_url(text) is expected


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/a/x.png", "s3://bucket/a/x.png"),
        ("ftp://user:secret@host:21/x.png", "ftp://host:21/x.png"),
        ("https://host/x.png?X-Amz-Signature=secret&size=2", "https://host/x.png"),
        ("https://user:se?cret@host/x.png", "https://host/x.png"),
        ("s3://bucket/who@where.png", "s3://bucket/who@where.png"),
        ("plain/user:secret@host?x.png", "plain/user:secret@host?x.png"),
    ],
)
def test_what_is_shown_of_a_url(url: str, shown: str) -> None:
    assert urls.shown(url) == shown


WORD = st.text("abcXYZ019-_.~", min_size=1, max_size=8)


@given(
    scheme=st.sampled_from(["ftp", "https", "s3"]), user=WORD, host=WORD, path=st.lists(WORD, min_size=1, max_size=3),
    query=st.booleans(), before=st.sampled_from(["", "cannot read ", "(", "'"]),
)  # fmt: skip
def test_no_text_tells_a_password_or_a_signature(
    scheme: str, user: str, host: str, path: list[str], query: bool, before: str
) -> None:
    place = f"{host}/{'/'.join(path)}"
    url = f"{scheme}://{user}:PASS*WORD@{place}" + ("?sig=SIG*NED" if query else "")
    assert urls.shown(url) == f"{scheme}://{place}"
    assert urls.hidden(f"{before}{url} broke") == f"{before}{scheme}://{place} broke"
    assert urls.with_credentials(urls.shown(url), url) == url.partition("?")[0]
    assert urls.lasting(url) == f"{scheme}://{place}"


def test_credentials_go_to_their_own_place_alone() -> None:
    assert urls.with_credentials("ftp://a/x", "ftp://me:secret@b/y") == "ftp://a/x"
    assert urls.with_credentials("sftp://a/x", "ftp://me:secret@a/y") == "sftp://a/x"
    assert urls.with_credentials("s3://a/x", "") == "s3://a/x"


def test_a_url_that_is_signed_anew_is_the_same_file() -> None:
    first = "https://host/get?file=7&X-Amz-Date=1&X-Amz-Signature=abc&sig=1&se=2"
    assert urls.lasting(first) == urls.lasting("https://host/get?file=7&X-Amz-Signature=xyz&X-Amz-Expires=9")
    assert urls.lasting(first) != urls.lasting(first.replace("file=7", "file=8"))
    assert urls.lasting([first, "x.png"]) == ["https://host/get?file=7", "x.png"]


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("s3://bucket//a/./b/../x.png", "s3://bucket/a/x.png"),
        ("s3://bucket/../../x.png", "s3://bucket/x.png"),
        ("memory://a/x.png", "memory://a/x.png"),
        ("file:///a/../x.png", "file:///x.png"),
    ],
)
def test_a_url_without_detours(url: str, normal: str) -> None:
    assert urls.normal(url) == normal


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    assert urls.on_disk(f"file://{tmp_path}/x") == str(tmp_path / "x")
    assert urls.on_disk("file://here/x") == str(tmp_path / "here" / "x")
    assert urls.normal("file://here/x") == f"file://{tmp_path}/here/x"
    assert urls.on_disk("s3://bucket/x") is None


# What stores say


@pytest.mark.parametrize(
    ("url", "message", "hint"),
    [
        ("nosuch://a/x.png", "nosuch:// is no kind of URL that is known", "use file://, s3://, gs:// or another"),
        ("absent://a/x.png", "absent:// needs a package that is not installed", "pip install no_such_package"),
        ("zip://x.png::https://me:secret@host/x.zip", "URLs within URLs (::) are not taken", "copy the file out"),
    ],
)
def test_urls_that_no_store_is_for(url: str, message: str, hint: str) -> None:
    for ask in (presence.exists, fetching.fetched, stores.check_output):
        with pytest.raises(UsageError) as error:
            ask(url)
        assert error.value.message == message
        assert error.value.hint.startswith(hint)


class NoCredentialsError(Exception):
    """As botocore has it, which is no OSError."""


class HttpError(Exception):
    """As gcsfs has it."""

    code = 403


def failing(call: Callable[[], object]) -> DiffpipeError:
    with pytest.raises(DiffpipeError) as error:
        call()
    assert error.value.__cause__ is None  # a traceback would tell what the store said
    assert error.value.__suppress_context__ or error.value.__context__ is None
    return error.value


@pytest.mark.parametrize(
    "said", [PermissionError("Forbidden"), NoCredentialsError("Unable to locate"), HttpError(), OSError("Forbidden: x")]
)
def test_access_that_is_denied(said: Exception) -> None:
    Store.raises |= {"info": said, "put": said}
    made = file(b"x")
    for call in (
        lambda: presence.exists("store://me:secret@a/x.png"),
        lambda: fetching.fetched("store://me:secret@a/x.png"),
        lambda: publishing.publish(made, "store://me:secret@a/x.png", overwrite=True),
    ):
        error = failing(call)
        assert (type(error), error.message) == (AccessError, "access to store://a/x.png is denied")


@pytest.mark.parametrize(
    ("said", "message", "hint"),
    [
        (
            OSError(errno.ENOSPC, "No space left"), "there is no room for store://a/x.png",
            "free some space, then go on with --resume",
        ),
        (
            ConnectionError("lost https://me:secret@host/x?sig=abc\nand more"),
            "cannot write store://a/x.png: lost https://host/x",
            "check the URL and the connection, then go on with --resume",
        ),
        (
            FileNotFoundError("bucket"), "cannot write store://a/x.png: its bucket or folder is not there",
            "check the URL and the connection, then go on with --resume",
        ),
    ],
)  # fmt: skip
def test_a_write_that_fails(said: Exception, message: str, hint: str) -> None:
    Store.raises["put ends"] = said
    error = failing(lambda: publishing.publish(file(b"x"), "store://a/x.png", overwrite=True))
    assert (type(error), error.message, error.hint) == (CacheError, message, hint)
    assert Store.store == {}  # nothing is left of it


def test_what_is_not_there_cannot_be_read() -> None:
    put("store://a/folder/x.png")
    for url in ("store://a/y.png", "store://a/folder", "memory://y.png", "file:///nowhere/y.png"):
        assert not presence.exists(url)
        error = failing(lambda url=url: fetching.fetched(url))
        assert (type(error), error.message) == (NotFoundError, f"there is no file {url}")


def test_a_read_that_fails_costs_one_item_only() -> None:
    Store.raises["info"] = ConnectionError("connection lost")
    error = failing(lambda: fetching.fetched("store://a/x.png"))
    assert (error.message, error.exit_code) == ("cannot read store://a/x.png: connection lost", Exit.FAILED)


# What is there


def test_files_of_a_folder_are_asked_for_one_by_one_and_then_listed() -> None:
    for number in range(300):
        put(f"tagged://a/{number}.png", b"%d" % number)
    noted = presence.stamp("tagged://a/7.png") or {}
    assert noted["size"] == 1
    Store.asked.clear()
    assert all(presence.exists(f"tagged://a/{number}.png") for number in range(300))
    assert not any(presence.exists(f"tagged://a/{number}.png") for number in range(300, 600))
    assert presence.unchanged("tagged://a/7.png", noted)
    assert not presence.unchanged("tagged://a/8.png", noted)
    assert Store.asked == {"info": presence.ASKED, "ls": 1}
    assert len(presence._folders["tagged://a"].asked) == presence.ASKED
    put("tagged://a/new.png")
    assert not presence.exists("tagged://a/new.png")
    presence.forget()
    assert presence.exists("tagged://a/new.png")


def test_who_may_not_list_a_folder_still_asks_for_each_file() -> None:
    put("store://a/x.png")
    Store.raises["ls"] = PermissionError("no list")
    found = [presence.exists(f"store://a/{number}.png") for number in range(presence.ASKED + 5)]
    assert [*found, presence.exists("store://a/x.png")] == [False] * len(found) + [True]
    assert Store.asked["ls"] == 1


def test_a_file_that_is_asked_for_again_and_again_is_asked_for_once() -> None:
    put("store://a/x.png")
    assert all(presence.exists("store://a/x.png") for _ in range(1000))
    assert Store.asked == {"info": 1}


def test_without_a_tag_a_file_must_be_read_to_be_known_as_unchanged() -> None:
    put("store://a/x.png", b"one")
    assert not presence.unchanged("store://a/x.png", presence.stamp("store://a/x.png") or {})
    assert presence.state("store://a/x.png") == {"size": 3, "digest": "sha256:" + hashlib.sha256(b"one").hexdigest()}


def test_a_bucket_that_is_not_there_is_told_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "OBJECT_STORES", ("store",))
    error = failing(lambda: stores.check_bucket("store://me:secret@nowhere/out/"))
    assert (type(error), error.message) == (NotFoundError, "there is no bucket store://nowhere")
    put("store://here/x.png")
    stores.check_bucket("store://here/out/")
    Store.raises["info"] = PermissionError("no")
    stores.check_bucket("store://nowhere/out/")
    stores.check_bucket("memory://nowhere/out/")


# Reading


def test_a_file_is_fetched_once_while_it_is_the_same() -> None:
    url = put("tagged://a/deep/my fox.png", b"one")
    first = fetching.fetched(url)
    assert (first.name, first.read_bytes()) == ("my fox.png", b"one")
    assert fetching.fetched(url) == first
    put(url, b"two")
    assert fetching.fetched(url).read_bytes() == b"two"
    assert fetching.local("x/y.png") == Path("x/y.png")
    assert fetching.local(url).read_bytes() == b"two"


def test_a_bounded_number_of_fetched_files_is_kept() -> None:
    kept = [fetching.fetched(put(f"memory://a/{number}.png", b"%d" % number)) for number in range(fetching.KEPT + 5)]
    assert [path.exists() for path in kept] == [False] * 5 + [True] * fetching.KEPT
    assert fetching.fetched("memory://a/0.png").read_bytes() == b"0"


def test_a_file_that_ends_early_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    url = put("store://a/x.png", b"whole")
    monkeypatch.setattr(Store, "get_file", lambda self, path, to, **_: Path(to).write_bytes(b"who"))
    error = failing(lambda: fetching.fetched(url))
    assert error.message == "cannot read store://a/x.png: it ended after 3 of 5 bytes"


# Publishing

PLACES = ["memory://a/deep/x.png", "store://a/deep/x.png", "file://a/deep/x.png"]


@pytest.mark.parametrize("url", PLACES)
def test_a_file_is_published_and_replaced_only_on_demand(url: str) -> None:
    publishing.publish(file(b"one"), url, overwrite=False)
    with pytest.raises(FileExistsError):
        publishing.publish(file(b"two"), url, overwrite=False)
    assert content(url) == b"one"
    publishing.publish(file(b"two"), url, overwrite=True)
    assert content(url) == b"two"
    if place := urls.on_disk(url):
        assert os.listdir(Path(place).parent) == ["x.png"]
        assert Path(place).stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    old = os.umask(0)
    os.umask(old)
    return old


def test_where_no_request_makes_a_whole_file_it_gets_its_name_last() -> None:
    publishing.publish(file(b"one"), "store://a/x.png", overwrite=False)
    (written,) = Store.seen
    assert written.startswith("/a/.x.png.")
    assert written.endswith(".tmp")
    assert list(Store.store) == ["/a/x.png"]


@pytest.mark.parametrize("url", ["memory://a/x.png", "file://a/x.png"])
def test_of_many_that_publish_at_once_one_wins(url: str) -> None:
    won: list[int] = []
    start = threading.Barrier(8)

    def publish(number: int) -> None:
        made = file(b"%d" % number * 1000, f"{number}.png")
        start.wait()
        try:
            publishing.publish(made, url, overwrite=False)
            won.append(number)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert content(url) == b"%d" % won[0] * 1000


@pytest.mark.parametrize("url", ["memory://a/x.png", "file://a/x.png"])
def test_a_reader_sees_the_old_or_the_new_and_never_a_part(url: str) -> None:
    contents = [bytes([number]) * 300_000 for number in range(2)]
    files = [file(content, f"{number}.bin") for number, content in enumerate(contents)]
    publishing.publish(files[0], url, overwrite=True)
    done, seen = threading.Event(), set()

    def read() -> None:
        place = urls.on_disk(url)
        while not done.is_set():
            seen.add(Path(place).read_bytes() if place else MemoryFileSystem.store["/a/x.png"].getvalue())

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(200):
        publishing.publish(files[number % 2], url, overwrite=True)
    done.set()
    reader.join()
    assert seen <= set(contents)


# Templates and checks


def filled(outputs: Outputs, own: tuple[str, ...] = (), taken: CompactCounter | None = None) -> str:
    values = {"name": "flux", "key": "k", "id": "abc", "seed": 7, "prompt": "a red/fox"}
    used = CompactCounter() if taken is None else taken
    return output_paths.paths(whole_template(outputs), values, [1], outputs, used, own)[0]


@pytest.mark.parametrize(
    ("template", "format_", "expected"),
    [
        ("s3://bucket/{id}.{ext}", None, "s3://bucket/abc.png"),
        ("s3://bucket/a/", None, "s3://bucket/a/flux-7.png"),
        ("s3://bucket", None, "s3://bucket/flux-7.png"),
        ("s3://bucket/{prompt}/x.jpg", None, "s3://bucket/a-red-fox/x.jpg"),
        ("s3://bucket/x", "webp", "s3://bucket/x.webp"),
        ("ftp://me:se{{cret@host/x.png", None, "ftp://me:se{cret@host/x.png"),
        ("file:///a//b/../{seed:03}.png", None, "file:///a/007.png"),
    ],
)
def test_where_a_picture_goes(
    template: str, format_: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "check_scheme", lambda url: None)
    monkeypatch.setattr(presence, "exists", lambda url: False)
    assert filled(Outputs(template, format_)) == expected


@pytest.mark.parametrize(
    ("template", "format_", "message"),
    [
        ("https://host/x.png", None, "needs a package that is not installed|https:// can only be read"),
        ("nosuch://a/x.png", None, "nosuch:// is no kind of URL"),
        ("memory://{id}/x.png", None, "a URL's bucket or host cannot be a field"),
        ("memory://a/x.png?sig=secret", None, "memory://a/x.png.… has parameters"),
        ("memory://a/x.avi", None, "pictures are not written as .avi"),
        ("memory://a/{nope}.png", None, "there is no field {nope}"),
        ("memory://a/" + "x" * 1100 + ".png", None, "a path of more than 1024 bytes"),
    ],
)
def test_outputs_that_cannot_be(template: str, format_: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        filled(Outputs(template, format_))
    assert "secret" not in f"{error.value.message} {error.value.hint}"


@pytest.mark.parametrize(("template", "format_"), [("memory://a/", "frames"), ("memory://a/{id}.frames", None)])
def test_folders_of_frames_are_not_written_to_urls(template: str, format_: str | None) -> None:
    with pytest.raises(UsageError, match="folders of frames are not written to URLs"):
        filled(Outputs(template, format_, kind="video"))


def test_files_that_are_there_are_stepped_around_or_refused() -> None:
    put("memory://a/flux-7.png")
    put("memory://a/flux-7-2.png")
    with pytest.raises(UsageError, match=r"memory://a/flux-7\.png exists already"):
        filled(Outputs("memory://a/"))
    assert filled(Outputs("memory://a/", overwrite=True)) == "memory://a/flux-7.png"
    assert filled(Outputs("memory://a/"), own=("memory://a/flux-7.png",)) == "memory://a/flux-7.png"
    taken = CompactCounter()
    free = Outputs("memory://b/x.png")
    assert [filled(free, taken=taken) for _ in range(3)] == [f"memory://b/x{n}.png" for n in ("", "-2", "-3")]


def test_an_items_own_output_lies_in_the_urls_folder() -> None:
    outputs = Outputs("memory://a/all/{id}.png")
    assert filled(within(outputs, "mine/{seed}")) == "memory://a/all/mine/7.png"
    for template in ("../x.png", "/x.png", "s3://other/x.png", "memory://a/all/x.png"):
        for base in (outputs, Outputs("out/"), Outputs()):
            with pytest.raises(UsageError, match="leads out of the output folder"):
                within(base, template)


def test_inputs_are_checked() -> None:
    put("memory://a/x.png")
    Path("folder").mkdir()
    Path("x.png").write_bytes(b"x")
    for good in ("memory://a/x.png", "file://x.png", ["memory://a/x.png", "x.png"]):
        check_files({"image": IMAGE}, {"image": good})
    for bad in ("memory://a/y.png", "file://y.png", "memory://a", ["x.png", "memory://y.png"]):
        with pytest.raises(NotFoundError, match=r"--image: there is no file (memory|file)://"):
            check_files({"image": IMAGE}, {"image": bad})
    with pytest.raises(UsageError, match="--image: file://folder is a folder"):
        check_files({"image": IMAGE}, {"image": "file://folder"})


# Batches and the journal

NAMES = frozenset({"prompt", "image"})


def batch(**more: Any) -> Batch:
    flags = {"prompt": Flag("prompt", "text"), "image": IMAGE}
    given = {"arguments": {}, "outputs": Outputs("memory://out/{id}.{ext}"), "name": "flux", "key": "ab" * 32}
    return Batch(flags=flags, names=NAMES, origin=1, **{**given, **more})


def rows(*values: dict[str, Any]) -> list[Row]:
    return [Row(f"items.jsonl line {number}", number, value) for number, value in enumerate(values, 1)]


def made(given: list[Any]) -> list[Request]:
    assert all(isinstance(one, Request) for one in given), given
    return given


def test_an_item_is_known_by_its_file_and_not_by_who_asks() -> None:
    places = ["store://me:one@a/x.png", "store://you:two@a/x.png", "store://b/x.png"]
    for url in places:
        put(url)
    first, second, other = (made(list(items(rows({"prompt": "a", "image": url}), batch())))[0] for url in places)
    assert (first.item, first.seed) == (second.item, second.seed)
    assert first.item != other.item
    assert first.arguments["image"] == places[0]  # which is what it is fetched with


def test_every_line_that_names_no_file_is_told() -> None:
    given = [{"prompt": "a", "image": url} for url in ("memory://a/x.png", "nosuch://a/x.png")]
    found = [one for one in items(rows(*given), batch()) if isinstance(one, Refused)]
    assert [(one.error.message, one.error.exit_code) for one in found] == [
        ("items.jsonl line 1: --image: there is no file memory://a/x.png", Exit.NOT_FOUND),
        ("items.jsonl line 2: nosuch:// is no kind of URL that is known", Exit.USAGE),
    ]


OUT = "store://me:secret@out/{id}.{ext}"


def note(url: str, **stored: Any) -> None:
    """A journal of a finished item `a`, whose file is at a URL, and of one, `b`, that was begun."""
    with opened(Path("flux.journal.jsonl")) as journal:
        journal.begin("ab" * 32, 1)
        (first,) = made(list(items(rows({"id": "a", "prompt": "a"}), batch(outputs=Outputs(OUT)))))
        assert first.paths == (url,)
        put(url, b"picture")
        journal.done("a", first.item, first.seed, [urls.shown(url)], 1.0, (), {urls.shown(url): stored})
        journal.started("b", "b", 2, [url.replace("a.png", "b.png")])


@pytest.mark.parametrize("stored", [{"size": 7, "digest": "sha256:" + hashlib.sha256(b"picture").hexdigest()}, {}])
@pytest.mark.parametrize("change", ["none", "other", "gone"])
def test_a_resumed_run_knows_the_files_at_urls(change: str, stored: dict[str, Any]) -> None:
    url = "store://me:secret@out/a.png"
    note(url, **stored)
    if change == "other":
        put(url, b"PICTURE")
    elif change == "gone":
        Store.store.clear()
    with opened(Path("flux.journal.jsonl")) as journal:
        going_on = batch(outputs=Outputs(OUT), journal=journal, resume=True)
        (found,) = items(rows({"id": "a", "prompt": "a"}), going_on)
        kind = {"none": Earlier, "other": Refused, "gone": Request}[change]
        assert isinstance(found, kind)  # a file that is somebody else's by now is not replaced
        (begun,) = made(list(items(rows({"id": "b", "prompt": "b"}), going_on)))
        assert (begun.paths, begun.overwrite) == (("store://me:secret@out/b.png",), True)  # it is the item's own
    text = Path("flux.journal.jsonl").read_text()
    assert "store://out/a.png" in text
    assert "secret" not in text


def done(file: NotedFile) -> Record:
    return Record("a", "a", "done", 1, files=(file,))


def test_what_a_stores_tag_tells_is_not_read() -> None:
    url = "tagged://out/a.png"
    put(url, b"picture")
    line = done(NotedFile(url, digest="sha256:none", **(presence.stamp(url) or {})))
    with opened(Path("flux.journal.jsonl")) as journal:
        assert journal.intact(line, "tagged://out")
        put(url, b"PICTURE")
        presence.forget()
        assert not journal.intact(line, "tagged://out")
        put("tagged://out/same.png", b"PICTURE")  # copied by somebody: another tag, the same content
        state = presence.state("tagged://out/same.png")
        assert journal.intact(done(NotedFile("tagged://out/same.png", tag="old", **state)), "tagged://out/x")


@pytest.mark.parametrize("outputs", ["", "out/", "store://other/x", "tagged://elsewhere/x"])
def test_a_journal_does_not_decide_who_is_asked(outputs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be anybody's: only the run's own store is asked for what it names."""
    for asks in ("exists", "unchanged", "state"):
        monkeypatch.setattr(presence, asks, lambda *given: pytest.fail(f"asked for {given}"))
    with opened(Path("flux.journal.jsonl")) as journal:
        assert not journal.intact(done(NotedFile("tagged://out/a.png", 3, "sha256:none", "old")), outputs)


def test_what_a_crash_left_beside_a_file_url_is_removed() -> None:
    from diffpipe.storage.disk import mark

    Path("out").mkdir()
    left = Path("out", f"{mark(Path('a.png'))}123.tmp")
    left.write_bytes(b"half")
    with opened(Path("x.journal.jsonl")) as journal:
        journal.started("a", "a", 1, ["file://out/a.png", "memory://out/a.png"])
        journal.clear("a")
    assert not left.exists()


# What files say, and how they are written


def picture(colour: str = "red", name: str = "x.png") -> bytes:
    Image.new("RGB", (8, 8), colour).save(name)
    return Path(name).read_bytes()


def test_metadata_name_an_input_and_its_content_and_no_more() -> None:
    data = picture()
    url = put("store://me:secret@a/folder/in.png", data)
    built = manifest(flags=[{"name": "image", "kind": "image"}])
    run = metadata.Run(built, metadata.About("p"), {}, "cpu")
    document = metadata.document(run, Request(0, 1, {"image": url}))
    assert document["media"] == {"image": {"file": "in.png", "digest": "sha256:" + hashlib.sha256(data).hexdigest()}}
    assert "secret" not in json.dumps(document)


def test_a_store_that_refuses_a_result_ends_the_run() -> None:
    from diffpipe.runners.outcomes import outcomes_of

    def make(requests: list[Request]) -> Any:
        Store.raises["put"] = PermissionError("no")
        return [written("red", "store://a/x.png")]

    with pytest.raises(AccessError, match=r"access to store://a/x\.png is denied"):
        outcomes_of([Request(0, 1, {}, ("store://a/x.png",))], make)


def test_media_are_read_from_urls() -> None:
    from diffpipe.engine.running.media_arguments import read_media

    url = put("memory://a/x.png", picture())
    flags = {"image": IMAGE, "images": Flag("images", "image", many=True)}
    read = read_media(flags, {"image": url, "images": [url, "x.png"], "prompt": "memory://a"})
    assert [one.getpixel((0, 0)) for one in (read["image"], *read["images"])] == [(255, 0, 0)] * 3
    assert read["prompt"] == "memory://a"
    put("memory://a/x.png", b"no picture")
    with pytest.raises(UsageError, match=r"--image: cannot read x.png: it is no picture"):
        read_media(flags, {"image": "memory://a/x.png"})


def written(colour: str, url: str, *, overwrite: bool = False, seed: int = 1) -> Any:
    from diffpipe.engine.running.files import write
    from diffpipe.engine.running.results import PictureResult

    request = Request(0, seed, {}, (url,), overwrite)
    return write(PictureResult(Image.new("RGB", (8, 8), colour)), url, request, 1.0, {"diffpipe": f"seed {seed}"})


@pytest.mark.parametrize("place", ["memory://out", "store://me:secret@out", "tagged://out", "file://out"])
def test_an_item_that_is_made_twice_has_one_file(place: str, tmp_path: Path) -> None:
    url = urls.normal(f"{place}/x.png")
    first = written("red", url)
    assert first.path == urls.shown(url)
    assert {**presence.state(url), **({"tag": first.stored["tag"]} if "tag" in first.stored else {})} == first.stored
    assert ("tag" in first.stored) == url.startswith("tagged")
    assert written("red", url).stored == first.stored
    assert written("blue", url).stored == first.stored  # the same settings, as another GPU makes it
    other = written("red", url, seed=2)
    assert other.path == urls.shown(url).replace("x.png", "x-2.png")
    assert written("red", url, seed=2).path == other.path
    replaced = written("blue", url, overwrite=True)
    assert (replaced.path, presence.state(url)["size"]) == (first.path, replaced.stored["size"])
    assert replaced.stored != first.stored
    assert not presence.exists(urls.beside(url, "3"))


def test_a_file_of_somebody_elses_is_never_replaced(caplog: pytest.LogCaptureFixture) -> None:
    url = put("store://me:secret@out/x.png", b"no picture at all")
    assert written("red", url).path == "store://out/x-2.png"
    assert content(url) == b"no picture at all"
    assert "store://out/x.png was made by another process meanwhile; wrote store://out/x-2.png" in caplog.text
    assert "secret" not in caplog.text


def test_the_bytes_are_those_of_a_local_file() -> None:
    from diffpipe.engine.running.files import write
    from diffpipe.engine.running.results import PictureResult, VideoResult

    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    for result, name in ((PictureResult(frames[0]), "x.webp"), (VideoResult(frames, 8.0), "x.mp4")):
        request = Request(0, 1, {}, (name,))
        write(result, name, request, 1.0, {"diffpipe": "{}"})
        write(result, f"memory://out/{name}", request, 1.0, {"diffpipe": "{}"})
        assert content(f"memory://out/{name}") == Path(name).read_bytes()


def test_another_process_makes_files_here_that_this_one_publishes() -> None:
    from diffpipe.runners.worker import publishing

    asked: list[Request] = []

    def make(requests: Iterator[Request]) -> Iterator[Outcome]:
        for request in requests:
            asked.append(request)
            if request.index == 2:
                yield Outcome(request, error=DiffpipeError("it broke"))
                continue
            first = Path(request.paths[0])
            names = [*request.paths, str(first.with_name(f"{first.stem}-mask.png"))]
            for name in names:
                Path(name).write_bytes(f"{request.index} {Path(name).name}".encode())
            yield Outcome(request, tuple(Artifact(name, 1, request.index, "image", 1.0) for name in names))

    put("store://me:secret@a/1/x.png", b"somebody else's")
    wanted = [
        Request(0, 1, {}, ("memory://a/0/x.png", "memory://b/y.png")),
        Request(1, 1, {}, ("store://me:secret@a/1/x.png",)),
        Request(2, 1, {}, ("memory://a/2/x.png",)),
        Request(3, 1, {}, ("x.png",)),
    ]
    outcomes = list(publishing.run(make, wanted))
    assert [outcome.request for outcome in outcomes] == wanted
    assert [[one.path for one in outcome.artifacts] for outcome in outcomes] == [
        ["memory://a/0/x.png", "memory://b/y.png", "memory://a/0/x-mask.png"],
        ["store://a/1/x-2.png", "store://a/1/x-mask.png"],
        [],
        ["x.png", "x-mask.png"],
    ]
    assert content("memory://b/y.png") == b"0 y.png"
    assert outcomes[0].artifacts[1].stored == presence.state("memory://b/y.png")
    told = "store://a/1/x.png was made by another process meanwhile; wrote store://a/1/x-2.png"
    assert [outcome.warnings for outcome in outcomes] == [(), (told,), (), ()]
    assert not any(urls.is_url(path) for request in asked for path in request.paths)
    assert not any(Path(path).parent.exists() for request in asked[:3] for path in request.paths)


def test_what_is_not_made_leaves_nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffpipe.runners.worker import publishing

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def make(requests: Iterator[Request]) -> Iterator[Outcome]:
        Path(next(requests).paths[0]).write_bytes(b"half")
        raise CacheError("the disk is full")
        yield

    with pytest.raises(CacheError):
        list(publishing.run(make, [Request(0, 1, {}, ("memory://a/x.png",))]))
    assert list(tmp_path.iterdir()) == []


def test_more_results_than_planned_lie_beside_the_first() -> None:
    from diffpipe.engine.running.files import numbered
    from diffpipe.engine.running.results import PictureResult

    picture = Image.new("RGB", (1, 1))
    results = [PictureResult(picture), PictureResult(picture), PictureResult(picture, role="mask")]
    assert numbered(["s3://b.c/d.e/x.png"], results) == [
        "s3://b.c/d.e/x.png", "s3://b.c/d.e/x-2.png", "s3://b.c/d.e/x-mask.png"
    ]  # fmt: skip


# As a user runs it


@pytest.fixture(scope="module")
def demo(warm: Warm) -> None:
    warm("build", "demo", check=True)
    warm("build", "demo", "--type", "img2img", check=True)


def errors(done: Done) -> list[str]:
    return [line.removeprefix("error: ") for line in done.stderr.splitlines() if line.startswith("error: ")]


def test_a_batch_from_and_to_urls(warm: Warm, demo: None, tmp_path: Path) -> None:
    lines = [{"id": name, "prompt": f"a {name}", "seed": at} for at, name in enumerate(("fox", "cat", "owl"))]
    lines[2]["output"] = "birds/{id}"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    prompts = ("--prompts-from", f"file://{tmp_path}/in/items.jsonl")
    command = ("generate", "demo", *prompts, *SMALL)
    warm(*command, "-o", "here/", cwd=tmp_path, check=True)
    out = f"file://{tmp_path}/there"
    done = warm(*command, "-o", f"{out}/", cwd=tmp_path, check=True)
    names = ["demo-fox.png", "demo-cat.png", "birds/owl.png"]
    assert done.stdout.splitlines() == [f"{out}/{name}" for name in names]
    assert [(tmp_path / "there" / name).read_bytes() for name in names] == [
        (tmp_path / "here" / name).read_bytes() for name in names
    ]
    journal = [json.loads(line) for line in (tmp_path / "demo.journal.jsonl").read_text().splitlines()]
    assert [line["files"][0]["path"] for line in journal if line.get("status") == "done"] == [
        f"{out}/{name}" for name in names
    ]
    (tmp_path / "there" / "demo-cat.png").unlink()
    resumed = warm(*command, "-o", f"{out}/", "--resume", cwd=tmp_path, check=True)
    assert resumed.stdout.splitlines() == [f"{out}/demo-cat.png"]
    again = warm(*command, "-o", f"{out}/", cwd=tmp_path)
    assert (again.returncode, errors(again)[0]) == (Exit.USAGE, "items.jsonl line 1: fox was made already")


def test_a_picture_at_a_url_and_a_sheet_of_results_there(warm: Warm, demo: None, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "green").save(tmp_path / "green.png")
    call = ("generate", "demo-img2img", "--prompt", "a fox", "--seed", 1, "--num-inference-steps", 2)
    warm(*call, "--image", "green.png", "-o", "local.png", cwd=tmp_path, check=True)
    url = f"file://{tmp_path}/away.png"
    done = warm(
        *call, "--image", f"file://{tmp_path}/green.png", "-o", url, "--contact-sheet", "sheet.png",
        "--gallery", "page", cwd=tmp_path, check=True,
    )  # fmt: skip
    assert done.stdout == f"{url}\n"
    assert "warning" not in done.stderr
    assert (tmp_path / "away.png").read_bytes() == (tmp_path / "local.png").read_bytes()
    assert Image.open(tmp_path / "sheet.png").size > (64, 64)
    assert "away.png" in (tmp_path / "page" / "index.html").read_text()
    refused = warm(*call, "--image", "green.png", "-o", url, cwd=tmp_path)
    assert (refused.returncode, errors(refused)) == (Exit.USAGE, [f"{url} exists already"])
    missing = warm(*call, "--image", f"file://{tmp_path}/nope.png", cwd=tmp_path)
    problem = f"--image: there is no file file://{tmp_path}/nope.png"
    assert (missing.returncode, errors(missing)) == (Exit.NOT_FOUND, [problem])


def test_a_warm_worker_makes_the_same(warm: Warm, demo: None, tmp_path: Path) -> None:
    call = ("generate", "demo", "--prompt", "a fox", "--seed", 1, *SMALL)
    warm(*call, "-o", "here.png", cwd=tmp_path, check=True)
    try:
        url = f"file://{tmp_path}/there.png"
        done = warm(*call, "-o", url, "--keep-warm", 30, cwd=tmp_path, check=True)
    finally:
        warm("worker", "stop", "--all")
    assert done.stdout == f"{url}\n"
    assert (tmp_path / "there.png").read_bytes() == (tmp_path / "here.png").read_bytes()


REFUSED = [
    (["-o", "nosuch://a/"], Exit.USAGE, "nosuch:// is no kind of URL that is known"),
    (["-o", "file://a/", "--journal", "s3://a/j.jsonl"], Exit.USAGE, "--journal is a file here, not at a URL"),
    (["-o", "file://a/", "--contact-sheet", "s3://a/x.png"], Exit.USAGE, "--contact-sheet is made here, not at a URL"),
    (["--gallery", "s3://a/x"], Exit.USAGE, "--gallery is made here, not at a URL"),
    (
        ["-o", "ftp://me:secret@h/", "--overwrite", "--gallery", "g"], Exit.USAGE,
        "--gallery cannot show results that need a password",
    ),
    (["--prompts-from", "file:///nowhere.txt"], Exit.NOT_FOUND, "there is no file file:///nowhere.txt"),
    (
        ["--prompts-from", "ftp://me:secret@127.0.0.1:9/p.txt"], Exit.FAILED,
        "cannot read ftp://127.0.0.1:9/p.txt: Connection refused",
    ),
    (
        ["-o", "ftp://me:secret@127.0.0.1:9/{seed}.png", "--verbose"], Exit.FAILED,
        "cannot read ftp://127.0.0.1:9/1.png: Connection refused",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("words", "code", "problem"), REFUSED, ids=[" ".join(case[0]) for case in REFUSED])
def test_what_cannot_be_is_refused_before_anything_is_loaded(
    warm: Warm, demo: None, tmp_path: Path, words: list[str], code: Exit, problem: str
) -> None:
    for more in ((), ("--traceback",)):
        done = warm("generate", "demo", "--prompt", "a fox", "--sweep", "seed=1..2", *words, *more, cwd=tmp_path)
        assert "secret" not in done.stdout + done.stderr
        assert done.returncode == (1 if more else code)
        assert more or errors(done)[-1].endswith(problem)
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_local_run_imports_no_fsspec(demo: None, cli: Cli, tmp_path: Path) -> None:
    words = ["-X", "importtime", "-m", "diffpipe", "generate", "demo", "--prompt", "a", "--dry-run"]
    shown = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=cli.environment(), capture_output=True, text=True, check=True
    ).stderr
    assert "diffpipe.storage.urls" in shown
    assert "fsspec" not in shown


def test_a_dry_run_shows_no_credentials(warm: Warm, demo: None, tmp_path: Path) -> None:
    given = {"id": "a", "prompt": "a fox", "image": f"file://{tmp_path}/x.png"}
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png")
    (tmp_path / "items.jsonl").write_text(json.dumps(given))
    words = ("generate", "demo-img2img", "--prompts-from", "items.jsonl", "--dry-run", "--overwrite")
    for form in ((), ("--json",)):
        done = warm(*words, "-o", "ftp://me:secret@127.0.0.1:9/{id}.png", *form, cwd=tmp_path, check=True)
        assert "ftp://127.0.0.1:9/a.png" in done.stdout
        assert "secret" not in done.stdout + done.stderr


def test_a_scheme_is_the_same_in_any_case() -> None:
    assert urls.same_store("s3://b/x", "S3://user@b/y")
    assert not urls.same_store("s3://b/x", "s3://c/x")
