"""One bad entry of the cache, of whatever kind, breaks nothing of the others, is shown, and goes by a command."""

from __future__ import annotations

import json
import os
import shlex
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli
from manifests import config_json, manifest_json

from diffpipe.cache import blobs, measured, prune, weights
from diffpipe.cache.entry import SHORT
from diffpipe.cache.records import SourcesRecord, Summary
from diffpipe.cache.sealed import LARGEST, sealed
from diffpipe.cache.states import glance, standing, verified
from diffpipe.cache.store import STALE, Store
from diffpipe.core.errors import CacheError, NotFoundError
from diffpipe.core.manifest import Manifest
from diffpipe.storage.disk import discard

Damage = Callable[[Path], None]


def publish(store: Store, name: str, **changes: Any) -> str:
    """An entry of the right shape under a name; its key."""
    config = config_json(scheduler={"class": None, "config": {"of": name}})
    manifest = Manifest.from_json(manifest_json(config, sources=[], **changes))
    summary = Summary("flux", "text2image", "FluxPipeline", "x/y", "bfloat16", 1000, 1_700_000_000)
    store.publish(summary, manifest, SourcesRecord({}, {}, ("diffpipe", "build", "flux")))
    store.set_name(name, manifest.key)
    return manifest.key


def rewritten(file: str, **changes: Any) -> Damage:
    """A file of an entry, edited by somebody who seals it again; dots in a name lead into it."""

    def damage(folder: Path) -> None:
        value = json.loads((folder / file).read_bytes())
        value.pop("digest")
        for place, new in changes.items():
            inside = value
            *steps, last = place.split("__")
            for step in steps:
                inside = inside[step]
            inside[last] = new
        (folder / file).write_text(json.dumps(sealed(value)))

    return damage


def in_place_of(file: str, make: Callable[[Path], None]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / file if file else folder
        discard(path)
        make(path)

    return damage


def folder(path: Path) -> None:
    (path / "with").mkdir(parents=True)
    (path / "with" / "a file").write_text("x")


def deep(path: Path) -> None:
    path.write_text("[" * 100_000 + "]" * 100_000)


def large(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(10**9)


def bound(path: Path) -> None:
    os.chdir(path.parent)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def nowhere(path: Path) -> None:
    path.symlink_to("/dev/zero")


KINDS: dict[str, Callable[[Path], None]] = {
    "a folder": folder,
    "a pipe": lambda path: os.mkfifo(path),
    "a socket": bound,
    "a loop": loop,
    "a device": nowhere,
    "deep": deep,
    "1 GB": large,
    "empty": Path.touch,
    "NaN": lambda path: path.write_text('{"key": NaN}') and None,
    "surrogates": lambda path: path.write_text('{"key": "\\ud800"}') and None,
    "no UTF-8": lambda path: path.write_bytes(b"\xff\xfe{}") and None,
}
DAMAGES: dict[str, Damage] = {
    **{f"{what} for {file}": in_place_of(f"{file}.json", make) for what, make in KINDS.items()
       for file in ("manifest", "summary", "sources")},
    **{f"{what} for the entry": in_place_of("", KINDS[what]) for what in ("a pipe", "a socket", "a loop", "empty")},
    "a folder for the entry": in_place_of("", folder),
    "bytes": rewritten("summary.json", bytes=10**400),
    "negative": rewritten("summary.json", bytes=-1),
    "a date": rewritten("summary.json", built=10**30),
    "a date after the last": rewritten("summary.json", built=10**15),
    "before all dates": rewritten("summary.json", built=-(10**15)),
    "a key of weights": rewritten("summary.json", weights="../../x"),
    "a flag": rewritten("manifest.json", flags=[{"name": "--help", "kind": "text"}]),
    "another configuration": rewritten("manifest.json", config__dtype="float32"),
    "a dtype": rewritten("manifest.json", config__dtype="load"),
    "a command": rewritten("sources.json", command=["rm", "-rf", "/"]),
    "a source without place": rewritten("manifest.json", sources=[{"role": "base", "kind": "folder", "label": "x"}]),
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("DIFFPIPE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    found = Store()
    publish(found, "good")
    publish(found, "bad")
    return found


def run(function: Callable[..., None], capsys: pytest.CaptureFixture[str], **options: Any) -> tuple[str, str]:
    function(**options)
    return capsys.readouterr()


@pytest.mark.parametrize("damage", DAMAGES)
def test_one_bad_entry_is_shown_and_removed_and_breaks_nothing(
    store: Store, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from diffpipe.cli import doctor, generate, pipelines

    bad, good = store.names()["bad"], store.names()["good"]
    DAMAGES[damage](store.root / "pipelines" / bad)
    assert verified(store, bad).state == "damaged"
    with pytest.raises(CacheError, match="1 of 2 pipelines"):
        pipelines.verify(json=True)
    shown = json.loads(capsys.readouterr().out)
    assert (shown["states"], shown["entries"][good]) == ({bad: "damaged", good: "whole"}, [])
    rows = {row["key"]: row for row in json.loads(run(pipelines.list_, capsys, json=True)[0])}
    assert set(rows) == {bad, good}
    assert "state" not in rows[good]
    if rows[bad].get("state"):  # what the summary and the kinds of files cannot tell, `verify` tells
        assert rows[bad]["remove"] == f"diffpipe pipelines remove {bad[:SHORT]}"
        out, err = run(pipelines.list_, capsys)
        assert f"try: {rows[bad]['remove']}\n" in err
        assert "good" in out
        assert "damaged" in out
    else:
        assert not damage.startswith(tuple(KINDS)[:4]), "a file that is none is seen without opening it"
    assert "good" in generate._rows()
    assert pipelines._names("") == ["bad", "good"]
    assert doctor._cache(store).pipelines == 2
    with suppress(CacheError):  # what it is, its manifest may say
        assert "diffpipe pipelines remove" in run(pipelines.show, capsys, pipeline="bad")[1]
    with pytest.raises(NotFoundError) as raised:
        pipelines.show("gooh")
    assert raised.value.hint == "did you mean good?"
    pruned = ((bad, "is damaged"),) if not store.sound(bad) else ()  # prune reads no more than it must
    assert prune.plan(store, None).entries == pruned
    pipelines.remove(rows[bad].get("remove", f"x {bad[:SHORT]}").split()[-1])
    assert (store.keys(), store.names()) == ([good], {"good": good})
    assert list((store.root / "temporary").iterdir()) == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_pruning_and_building_mend_what_is_bad(store: Store, damage: str) -> None:
    bad, good = store.names()["bad"], store.names()["good"]
    DAMAGES[damage](store.root / "pipelines" / bad)
    publish(store, "bad")
    assert verified(store, bad).state == "whole"
    DAMAGES[damage](store.root / "pipelines" / bad)
    if not store.sound(bad):  # what reads alike and means something else, `verify` and `generate` tell
        prune.execute(store, prune.plan(store, None))
        assert (store.keys(), store.names()) == ([good], {"good": good})


@pytest.mark.parametrize("kind", [*list(KINDS)[:5], "empty", "no UTF-8"])
def test_a_bad_name_is_pruned_and_removed(store: Store, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    from diffpipe.cli import pipelines

    in_place_of("bad", KINDS[kind])(store.root / "names")
    with pytest.raises(CacheError) as raised:
        pipelines.show("bad")
    assert raised.value.hint == "diffpipe pipelines remove bad"
    assert prune.plan(store, None).names == ("bad",)
    assert "good" in run(pipelines.list_, capsys)[0]
    with pytest.raises(CacheError, match="the name bad stands for no entry"):
        pipelines.verify()
    pipelines.remove("bad")
    assert list(store.names()) == ["good"]
    in_place_of("bad", KINDS[kind])(store.root / "names")
    prune.execute(store, prune.plan(store, None))
    assert list(store.names()) == ["good"]
    KINDS[kind](store.root / "names" / "bad")
    publish(store, "bad")
    assert list(store.names()) == ["bad", "good"]


def test_names_that_none_can_have_and_folders_of_no_key_are_passed_over(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    from diffpipe.cli import pipelines

    for name in (b"\x1b[2J", b"a\nb", b"\xff", "\u202e".encode()):
        for place in ("names", "pipelines"):
            (store.root / place / os.fsdecode(name)).write_text("x")
    assert "\x1b" not in run(pipelines.list_, capsys)[0]
    assert len(store.keys()) == len(store.names()) == 2
    prune.execute(store, prune.plan(store, None))


@pytest.mark.parametrize("kind", list(KINDS)[:5])
def test_what_is_put_in_the_place_of_records_and_locks_is_cleared_away(store: Store, kind: str) -> None:
    make, entry = KINDS[kind], store.find("good")
    for place in ("pins", "digests", "headers", "blobs", "sources", "locks", "temporary"):
        make(store.folder(place) / ("0" * 64 + ".lock" if place == "locks" else "0" * 64))
    make(entry.folder / measured.NAME)
    make(store.folder("locks") / "import.lock")
    os.chdir(store.root)
    assert measured.read(entry.folder) == []
    assert store.pins("0" * 64) == {}
    prune.stays(store, entry)
    with store.lock("0" * 64, pytest.fail):
        pass
    with store.lock(blobs.LOCK, pytest.fail):
        pass
    prune.execute(store, prune.plan(store, None))
    assert list((store.root / "blobs").iterdir()) == list((store.root / "sources").iterdir()) == []
    assert set(store.names()) == {"bad", "good"}


def test_a_folder_of_the_cache_that_is_none_is_told(store: Store) -> None:
    discard(store.root / "locks")
    (store.root / "locks").write_text("x")
    with pytest.raises(CacheError, match="cannot be written"), store.lock("x", pytest.fail):
        pass


# Two versions on one cache


@pytest.mark.parametrize(
    "changes",
    [{"format": 2}, {"versions": {"diffpipe": "9.0"}, "kind": "hologram"}, {"config__format": 2}],
    ids=["manifest", "vocabulary", "configuration"],
)
def test_an_entry_of_another_version_is_told_from_damage_and_left_to_it(
    store: Store, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from diffpipe.cli import pipelines

    newer = store.names()["bad"]
    rewritten("manifest.json", **changes)(store.root / "pipelines" / newer)
    pipelines.verify(json=True)
    assert json.loads(capsys.readouterr().out)["states"][newer] == "other-version"
    assert "is of another version" in run(pipelines.verify, capsys)[0]
    with pytest.raises(CacheError, match="is of another version"):
        store.find("bad").manifest()
    assert (prune.plan(store, None).entries, store.sound(newer)) == ((), None)
    os.utime(store.root / "pipelines" / newer / "summary.json", (0, 0))
    assert [key for key, _ in prune.plan(store, 30).entries] == [newer]


def test_what_an_entry_of_another_version_needs_is_kept(store: Store) -> None:
    newer, blob = store.names()["bad"], "1" * 64
    rewritten("manifest.json", format=2)(store.root / "pipelines" / newer)
    (store.folder("blobs") / blob).write_text("x")
    (store.folder("blobs") / ("2" * 64)).write_text("x")
    (store.folder("sources") / "f").mkdir()
    (store.root / "sources" / "f" / "x").symlink_to(f"../../blobs/{blob}")
    assert set(blobs.unused(store)) == {blob, "2" * 64}
    rewritten("sources.json", locations={"base": "imported:f/x"})(store.root / "pipelines" / newer)
    assert set(blobs.unused(store)) == {"2" * 64}
    (store.folder("weights") / ("3" * 64)).mkdir()
    assert weights.unused(store) == ["3" * 64]
    (store.root / "pipelines" / newer / "summary.json").write_text('{"of": "a newer form"}')
    (store.root / "pipelines" / newer / "sources.json").write_text('{"of": "a newer form"}')
    assert (weights.unused(store), set(blobs.unused(store))) == ([], {"2" * 64})
    assert glance(store, newer).state == standing(store, newer).state == "other-version"
    assert prune.plan(store, None).entries == ()


# While others write


def test_what_a_running_build_writes_is_no_left_over(store: Store) -> None:
    left = store.folder("temporary") / ".x.tmp"
    left.mkdir()
    os.utime(left, (0, 0))
    other = Store(store.root)
    with other.lock("weights-x", pytest.fail):
        assert prune.plan(store, None).leftovers == ()
    assert prune.plan(store, None).leftovers == (left,)
    (left / "part.safetensors").write_text("written now")
    os.utime(left, (0, 0))
    assert STALE > 0  # seconds
    assert prune.plan(store, None).leftovers == ()


def test_what_was_put_right_since_it_was_planned_is_not_pruned(store: Store) -> None:
    bad, good = store.names()["bad"], store.names()["good"]
    DAMAGES["bytes"](store.root / "pipelines" / bad)
    store.set_name("soon", "1" * 64)
    planned = prune.plan(store, None)
    assert (planned.entries, planned.names) == (((bad, "is damaged"),), ("soon",))
    with Store(store.root).lock(bad, pytest.fail):  # a build of it runs
        prune.execute(store, planned)
    assert set(store.keys()) == {bad, good}
    publish(store, "bad")
    store.set_name("soon", good)
    prune.execute(store, planned)
    assert store.names() == {"bad": bad, "good": good, "soon": good}


def test_the_command_line_says_it_in_clean_lines(cli: Cli, tmp_path: Path) -> None:
    home = tmp_path / "cache"
    store = Store(home)
    publish(store, "good")
    key = publish(store, "bad")
    DAMAGES["bytes"](home / "pipelines" / key)
    env = {"DIFFPIPE_HOME": str(home)}
    listed = cli.light("pipelines", "list", env=env)
    assert (listed.returncode, "good" in listed.stdout) == (0, True)
    command = listed.stderr.partition("  try: diffpipe ")[2]
    assert cli.light("pipelines", "verify", env=env).returncode == 6
    assert cli.light("generate", "--help", env=env).returncode == 0
    assert cli.light("worker", "list", env=env).returncode == 0
    assert cli.light("generate", "goof", env=env).stderr.endswith("did you mean good?\n")
    assert cli.light(*shlex.split(command), env=env).returncode == 0
    assert cli.light("pipelines", "verify", env=env).returncode == 0
    assert LARGEST < 10**8
