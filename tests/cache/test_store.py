"""The cache on disk: names, keys, damage, removal, and that it reads no more than it must."""

from __future__ import annotations

import json
import os
import shlex
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from manifests import manifest, source_json

from diffpipe.cache import prune
from diffpipe.cache.entry import Entry
from diffpipe.cache.records import SourcesRecord, Summary
from diffpipe.cache.store import NAME, PREFIX, STALE, Store, check_name
from diffpipe.cache.verify import locate, problems
from diffpipe.core.canonical import digest
from diffpipe.core.errors import CacheError, NotFoundError, UsageError
from diffpipe.core.manifest import Located
from diffpipe.core.source import BASE
from diffpipe.storage.digests import DigestCache

COMMAND = ("diffpipe", "build", "flux", "--model", "a folder")
KEYS = st.text("0123456789abcdef", min_size=64, max_size=64)
NAMES = st.from_regex(NAME, fullmatch=True).filter(lambda name: not PREFIX.fullmatch(name))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Store]:
    """A new empty store at each call, for tests that hypothesis runs many times."""
    return lambda: Store(tmp_path_factory.mktemp("store") / "cache")


def key_of(number: int) -> str:
    return digest(number)


def publish(store: Store, key: str, location: Path | None = None) -> Entry:
    """An entry of the right shape; with a location, its source is the one file there."""
    sources, record = [], SourcesRecord({}, {}, COMMAND)
    if location:
        info = DigestCache(store.root / "digests").get(location / "model_index.json")
        sources = [source_json(label=location.name, files={"model_index.json": vars(info)})]
        record = SourcesRecord({BASE: str(location)}, {BASE: {"model_index.json": (0, 0, 0, 0)}}, COMMAND)
    summary = Summary("flux", "text2image", "FluxPipeline", "flux", "bfloat16", 1000, 1_700_000_000)
    return store.publish(summary, manifest(key=key, sources=sources), record)


def test_an_entry_comes_back_as_it_was_published(store: Store) -> None:
    entry = publish(store, key_of(1))
    assert store.get(key_of(1)) == entry == store.sound(key_of(1))
    assert entry.faults() == []
    assert entry.manifest().pipeline == "FluxPipeline"
    assert entry.sources() == SourcesRecord({}, {}, COMMAND)
    assert list((store.root / "temporary").iterdir()) == []


def test_publishing_again_replaces_the_entry_and_keeps_its_names(store: Store) -> None:
    publish(store, key_of(1))
    store.set_name("flux", key_of(1))
    (store.root / "pipelines" / key_of(1) / "manifest.json").write_text("{")
    publish(store, key_of(1))
    assert store.find("flux").faults() == []
    assert list((store.root / "temporary").iterdir()) == []


def test_an_entry_is_found_by_name_by_key_and_by_a_unique_prefix_of_six_digits(store: Store) -> None:
    entry = publish(store, key_of(1))
    store.set_name("my-flux.1", entry.key)
    assert [store.find(text) for text in ("my-flux.1", entry.key, entry.key[:6], entry.key[:20])] == [entry] * 4
    with pytest.raises(NotFoundError):
        store.find(entry.key[:5])


def test_an_ambiguous_prefix_is_refused_and_a_longer_one_is_not(store: Store) -> None:
    first, second = "abcdef" + "0" * 58, "abcdef" + "1" * 58
    publish(store, first)
    publish(store, second)
    with pytest.raises(UsageError, match="2 keys begin with abcdef") as raised:
        store.find("abcdef")
    assert raised.value.exit_code == 2
    assert store.find("abcdef0").key == first


def test_a_misspelt_name_is_answered_with_the_near_one(store: Store) -> None:
    publish(store, key_of(1))
    store.set_name("portraits", key_of(1))
    with pytest.raises(NotFoundError, match="no pipeline 'portrait'") as raised:
        store.find("portrait")
    assert (raised.value.hint, raised.value.exit_code) == ("did you mean portraits?", 3)
    with pytest.raises(NotFoundError) as raised:
        store.find("zebra")
    assert "pipelines list" in raised.value.hint


@pytest.mark.parametrize(
    "reference", ["../../etc/passwd", "", ".", "..", "a/b", "a b", "-x", "x" * 101, "ABCDEF!", "\0"]
)
def test_what_is_no_name_is_not_found_and_touches_no_file(store: Store, reference: str) -> None:
    with pytest.raises(NotFoundError):
        store.find(reference)
    with pytest.raises(UsageError):
        check_name(reference)
    assert not store.root.exists()


@given(name=NAMES, key=KEYS)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_valid_name_finds_its_key_back(fresh: Callable[[], Store], name: str, key: str) -> None:
    store = fresh()
    publish(store, key)
    assert store.set_name(name, key) is None
    assert store.find(name).key == key
    assert store.names() == {name: key}


@given(text=st.text("0123456789abcdef", min_size=6, max_size=64))
def test_no_name_can_be_taken_for_a_key(text: str) -> None:
    with pytest.raises(UsageError):
        check_name(text)


@given(keys=st.sets(KEYS, min_size=1, max_size=6), length=st.integers(6, 64), data=st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_prefix_finds_its_key_exactly_when_no_other_has_it(
    fresh: Callable[[], Store], keys: set[str], length: int, data: st.DataObject
) -> None:
    store = fresh()
    for key in keys:
        publish(store, key)
    prefix = data.draw(st.sampled_from(sorted(keys)))[:length]
    matching = [key for key in keys if key.startswith(prefix)]
    if len(matching) == 1:
        assert store.key(prefix) == matching[0]
    else:
        with pytest.raises(UsageError):
            store.key(prefix)


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["name", "rename", "remove", "drop"]),
            st.integers(0, 2),
            st.integers(0, 3),
            st.integers(0, 3),
        ),
        max_size=25,
    )
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_names_and_entries_stay_in_step_through_any_history(
    fresh: Callable[[], Store], steps: list[tuple[str, int, int, int]]
) -> None:
    """Against a model of two dictionaries: an entry goes with its last name, and no name outlives its entry."""
    store, keys, labels = fresh(), [key_of(n) for n in range(3)], [f"name{n}" for n in range(4)]
    entries, names = set(keys), dict[str, str]()
    for key in keys:
        publish(store, key)
    for what, number, old, new in steps:
        key, label, other = keys[number], labels[old], labels[new]
        if what == "name" and key in entries:
            assert store.set_name(label, key) == (names.get(label) if names.get(label) != key else None)
            names[label] = key
        elif what == "rename" and label in names:
            if names.get(other, names[label]) != names[label]:
                with pytest.raises(UsageError):
                    store.rename(label, other)
            else:
                store.rename(label, other)
                names[other] = names.pop(label)
        elif what == "remove" and label in names:
            gone = names.pop(label)
            assert store.remove(label) == gone
            entries -= {gone} - set(names.values())
        elif what == "drop" and key in entries:
            assert store.remove(key) == key
            entries.discard(key)
            names = {name: known for name, known in names.items() if known != key}
        assert store.names() == names
        assert set(store.keys()) == entries
    assert list(store.folder("temporary").iterdir()) == []


def test_a_renamed_pipeline_is_built_again_under_its_new_name(store: Store) -> None:
    entry = publish(store, key_of(1))
    entry.set_sources(SourcesRecord({}, {}, (*COMMAND, "--name", "old", "--dtype", "float32")))
    store.set_name("old", key_of(1))
    store.rename("old", "new")
    again = shlex.join([*COMMAND, "--name", "new", "--dtype", "float32", "--force"])
    assert store.find("new").rebuild() == again


def test_a_name_that_is_taken_is_not_renamed_over(store: Store) -> None:
    for number in (1, 2):
        publish(store, key_of(number))
        store.set_name(f"n{number}", key_of(number))
    with pytest.raises(UsageError, match="n2 is taken"):
        store.rename("n1", "n2")
    with pytest.raises(UsageError, match="cannot be a pipeline's name"):
        store.rename("n1", "abcdef0")
    store.rename("n1", "n3")
    assert store.names() == {"n2": key_of(2), "n3": key_of(1)}


def test_setting_a_name_tells_what_it_stood_for_before(store: Store) -> None:
    assert store.set_name("flux", key_of(1)) is None
    assert store.set_name("flux", key_of(1)) is None
    assert store.set_name("flux", key_of(2)) == key_of(1)


def test_everything_in_the_cache_is_private_to_the_user(tmp_path: Path) -> None:
    model = folder_with_a_model(tmp_path)
    os.utime(model / "model_index.json", (1, 1))
    time.sleep(2.1)  # digests of files changed just now are not recorded
    store = Store(tmp_path / "outer" / "cache")
    previous = os.umask(0o000)
    try:
        store.digests.get(model / "model_index.json")
        publish(store, key_of(1), model)
        store.set_name("flux", key_of(1))
        store.set_pins(key_of(2), key_of(2), [])
        with store.lock("x", lambda: None):
            paths = [store.root, *store.root.rglob("*")]
            modes = {path.relative_to(store.root).as_posix(): stat.S_IMODE(path.stat().st_mode) for path in paths}
    finally:
        os.umask(previous)
    assert {name for name in modes if "/" not in name} == {
        ".",
        "digests",
        "pipelines",
        "temporary",
        "names",
        "pins",
        "locks",
    }
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o077} == {}
    assert {mode for name, mode in modes.items() if "/" not in name} == {0o700}


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="cannot be written") as raised:
        publish(Store(tmp_path / "file"), key_of(1))
    assert "DIFFPIPE_HOME" in raised.value.hint


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def garbled(path: Path) -> None:
    path.write_bytes(b"\xff\x00 not json")


def another_kind(path: Path) -> None:
    path.write_text("[1, 2]")


def edited(path: Path) -> None:
    """Valid JSON of the same length that says something else, with the old time put back."""
    before, text = path.stat(), path.read_text()
    changed = text.replace("flux", "flax", 1) if "flux" in text else text.replace("Flux", "Flax", 1)
    assert changed != text
    path.write_text(changed)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [cut, emptied, garbled, another_kind, edited, gone])
@pytest.mark.parametrize("file", ["manifest.json", "summary.json", "sources.json"])
def test_damage_to_any_file_of_an_entry_is_seen_and_mended_by_a_build(
    store: Store, file: str, damage: Callable[[Path], None]
) -> None:
    publish(store, key_of(1))
    store.set_name("flux", key_of(1))
    damage(store.root / "pipelines" / key_of(1) / file)
    assert store.sound(key_of(1)) is None
    found = store.get(key_of(1))
    assert found is None or problems(found)
    planned = prune.plan(store, None)
    assert planned.entries == ((key_of(1), "is damaged"),)
    publish(store, key_of(1))
    assert problems(store.find("flux")) == []


def test_a_damaged_entry_names_the_command_that_builds_it_again(store: Store) -> None:
    publish(store, key_of(1))
    store.set_name("flux", key_of(1))
    entry = store.find("flux")
    cut(entry.folder / "manifest.json")
    with pytest.raises(CacheError, match="is damaged") as raised:
        entry.manifest()
    assert raised.value.hint == f"build it again: {shlex.join(COMMAND)} --force"
    cut(entry.folder / "summary.json")
    with pytest.raises(CacheError, match="missing or damaged") as raised:
        store.find("flux")
    assert raised.value.hint == f"build it again: {shlex.join(COMMAND)} --force"
    assert raised.value.exit_code == 6


def test_a_manifest_put_in_the_place_of_another_is_refused(store: Store) -> None:
    first, second = publish(store, key_of(1)), publish(store, key_of(2))
    (second.folder / "manifest.json").write_bytes((first.folder / "manifest.json").read_bytes())
    with pytest.raises(CacheError):
        second.manifest()


def test_an_entry_without_its_record_of_sources_loads_nothing_from_the_working_folder(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = folder_with_a_model(tmp_path)
    entry = publish(store, key_of(1), model)
    assert locate(entry, entry.manifest()) == Located({BASE: model})
    gone(entry.folder / "sources.json")
    monkeypatch.chdir(model)
    with pytest.raises(CacheError, match="lost its record") as raised:
        locate(entry, entry.manifest())
    assert "diffpipe build flux --type text2image --model flux" in raised.value.hint


def folder_with_a_model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    return tmp_path / "model"


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff\xfe\x00", b"../../names/flux", key_of(9).encode()])
def test_a_damaged_name_is_an_error_with_a_way_out(store: Store, content: bytes) -> None:
    publish(store, key_of(1))
    store.set_name("flux", key_of(1))
    (store.root / "names" / "flux").write_bytes(content)
    with pytest.raises(CacheError):
        store.find("flux")
    assert prune.plan(store, None).names == ("flux",)
    store.remove("flux")
    assert (store.names(), store.keys()) == ({}, [key_of(1)])


def test_a_damaged_entry_can_be_removed_by_name_and_by_key(store: Store) -> None:
    for number in (1, 2):
        emptied(publish(store, key_of(number)).folder / "summary.json")
        store.set_name(f"n{number}", key_of(number))
    store.remove("n1")
    store.remove(key_of(2)[:10])
    assert (store.keys(), store.names()) == ([], {})


@given(text=st.binary(max_size=80))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_recorded_pins_that_are_no_json_object_are_as_if_there_were_none(
    fresh: Callable[[], Store], text: bytes
) -> None:
    store = fresh()
    store.set_pins(key_of(1), key_of(1), [])
    (store.root / "pins" / key_of(1)).write_bytes(text)
    assert store.pins(key_of(1)) == {}


def test_prune_removes_the_small_records_that_nothing_uses(store: Store, tmp_path: Path) -> None:
    model = folder_with_a_model(tmp_path)
    kept = publish(store, key_of(1), model)
    store.set_pins(key_of(10), kept.key, [])
    store.set_pins(key_of(11), key_of(2), [])  # of an entry that was removed
    (store.root / "pins" / key_of(12)).write_text('{"base": {"role": "base"}}')  # of an older diffpipe
    file = tmp_path / "weights.bin"
    file.write_bytes(b"x")
    os.utime(file, (0, 0))
    digests = DigestCache(store.root / "digests", clock=lambda: time.time() + 60)
    digests.get(model / "model_index.json")
    digests.get(file)
    file.unlink()
    headers = store.folder("headers")
    (headers / "read").write_text("{}")
    (headers / "old").write_text("{}")
    os.utime(headers / "old", (time.time() - 31 * 86400,) * 2)
    for name in (kept.key, key_of(3), f"weights-{key_of(4)}", "import"):
        with store.lock(name, pytest.fail):
            pass
    with store.lock(key_of(3), pytest.fail):  # a build of another pipeline runs
        prune.execute(store, prune.plan(store, None))
        assert (store.root / "locks" / f"{key_of(3)}.lock").exists()
    prune.execute(store, prune.plan(store, None))
    left = {name: sorted(path.name for path in (store.root / name).iterdir()) for name in ("pins", "headers", "locks")}
    assert left == {"pins": [key_of(10)], "headers": ["read"], "locks": sorted([f"{kept.key}.lock", "import.lock"])}
    assert digests.known(model / "model_index.json")
    assert len(list((store.root / "digests").iterdir())) == 1


def test_pruning_plans_first_and_removes_only_what_it_planned(store: Store, tmp_path: Path) -> None:
    model = folder_with_a_model(tmp_path)
    good, idle = publish(store, key_of(1), model), publish(store, key_of(2), model)
    damaged, sourceless = publish(store, key_of(3)), publish(store, key_of(4), model)
    cut(damaged.folder / "manifest.json")
    record = sourceless.sources()
    assert record
    sourceless.set_sources(replace(record, locations={BASE: str(tmp_path / "elsewhere")}))
    for name, key in {"good": good.key, "idle": idle.key, "lost": key_of(9)}.items():
        store.set_name(name, key)
    os.utime(idle.folder / "summary.json", (time.time() - 40 * 86400,) * 2)
    left = store.folder("temporary") / "crashed"
    left.mkdir()
    half = store.root / "names" / ".half.tmp"
    half.write_text("")
    young = store.root / "temporary" / "running"
    young.mkdir()
    for path in (left, half):
        os.utime(path, (time.time() - STALE - 10,) * 2)

    planned = prune.plan(store, 30)
    assert dict(planned.entries) == {
        idle.key: "was not used for 40 days",
        damaged.key: "is damaged",
        sourceless.key: "needs model, which is gone",
    }
    assert planned.names == ("lost",)
    assert sorted(planned.leftovers) == sorted([left, half])
    assert planned.total() == "3 entries, 1 names, 2 left-overs"
    assert {key for key, _ in prune.plan(store, None).entries} == {damaged.key, sourceless.key}
    assert set(store.keys()) == {good.key, idle.key, damaged.key, sourceless.key}

    prune.execute(store, planned)
    assert (store.keys(), store.names()) == ([good.key], {"good": good.key})
    assert young.exists()
    assert not left.exists()
    assert not half.exists()
    assert (model / "model_index.json").exists()
    assert prune.plan(store, 30) == prune.Plan((), (), ())


_opened: list[str] | None = None


def _note_opening(event: str, details: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open" and details[1] is not None:  # by open(), which os.open() may follow
        _opened.append(str(details[0]))


sys.addaudithook(_note_opening)


@contextmanager
def opened(root: Path) -> Iterator[list[str]]:
    """The files under a folder that are opened meanwhile."""
    global _opened
    _opened, found = [], list[str]()
    try:
        yield found
    finally:
        found += [path for path in _opened if path.startswith(str(root))]
        _opened = None


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Ten thousand entries that hold what a list prints and nothing else, and one whole entry named flux."""
    store = Store(tmp_path_factory.mktemp("crowded") / "cache")
    whole = publish(store, key_of(-1))
    store.set_name("flux", whole.key)
    for number in range(10_000):
        folder = store.root / "pipelines" / key_of(number)
        folder.mkdir()
        (folder / "summary.json").write_text(json.dumps({**whole.summary.to_json(), "key": folder.name}))
        for name in ("manifest.json", "sources.json"):
            os.link(whole.folder / name, folder / name)
        (store.root / "names" / f"flux-{number:05}").write_text(folder.name)
    return store


def test_a_list_of_ten_thousand_opens_two_small_files_each_and_no_manifest(
    crowded: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from diffpipe.cli import pipelines

    monkeypatch.setenv("DIFFPIPE_HOME", str(crowded.root))
    with opened(crowded.root) as files:
        pipelines.list_()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10_002
    assert sum("flux-00042 " in line for line in lines) == 1
    assert len(files) == len(set(files)) == 2 * 10_001
    assert {Path(path).name for path in files if "/pipelines/" in path} == {"summary.json"}


def test_beside_ten_thousand_others_finding_one_opens_its_own_files_alone(crowded: Store) -> None:
    with opened(crowded.root) as files:
        entry = crowded.find("flux")
        entry.manifest()
    inside = [path.removeprefix(str(crowded.root) + "/") for path in files]
    assert inside == ["names/flux", f"pipelines/{entry.key}/summary.json", f"pipelines/{entry.key}/manifest.json"]


def test_completing_among_ten_thousand_names_opens_none_of_them(crowded: Store) -> None:
    with opened(crowded.root) as files:
        assert len(crowded.name_list()) == 10_001
    assert files == []
