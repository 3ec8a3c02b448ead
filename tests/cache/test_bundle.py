"""Bundles: a pipeline as one file, exported here, imported on another machine, and nothing else taken in for one."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest
from checkpoints import with_custom_pipeline
from conftest import IS_ROOT, Cli, Warm
from hub_server import serve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffpipe.cache import blobs, prune, weights
from diffpipe.cache import store as store_module
from diffpipe.cache.bundle import contents, transfer
from diffpipe.cache.bundle.contents import BLOCK, Contents
from diffpipe.cache.sealed import sealed
from diffpipe.cache.states import NOT_MADE_HERE
from diffpipe.cache.store import Store
from diffpipe.cache.verify import locate, problems
from diffpipe.core.canonical import digest
from diffpipe.core.errors import AccessError, CacheError, DiffpipeError, NotFoundError, UsageError
from diffpipe.core.manifest import Manifest, WeightsSummary
from diffpipe.core.source import BASE
from diffpipe.storage import stores, streams
from diffpipe.storage.disk import mark

SMALL = ("--prompt", "a fox", "--width", 32, "--height", 32, "--num-inference-steps", 1, "--seed", 1)
ANY = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclasses.dataclass(frozen=True)
class Made:
    """A pipeline that was built and exported: its store, its bundle, and the folder it was built from."""

    store: Store
    key: str
    file: Path
    source: Path

    @property
    def contents(self) -> Contents:
        return list_of(self.file.read_bytes())


@pytest.fixture(scope="module")
def made(warm: Warm, checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    source = Path(shutil.copytree(checkpoints / "flux", folder / "my flux"))
    warm("build", "flux", "--model", source, check=True)
    warm("pipelines", "export", "flux", folder / "flux.tar", check=True)
    store = Store(warm.home)
    return Made(store, store.names()["flux"], folder / "flux.tar", source)


@pytest.fixture
def there(tmp_path: Path) -> Store:
    """An empty cache on another machine."""
    return Store(tmp_path / "there")


def list_of(data: bytes) -> Contents:
    length = contents.length(data[:BLOCK])
    assert length
    return contents.read(data[BLOCK : BLOCK + length], "it")


def members(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = {member.name: tar.extractfile(member) for member in tar}
        return {name: stream.read() for name, stream in found.items() if stream}


def pack(head: bytes, files: Mapping[str, bytes]) -> bytes:
    """A bundle of a head and files, as an export writes it."""
    parts = [contents.header(name, len(data)) + data + contents.padding(len(data)) for name, data in files.items()]
    return head + b"".join(parts) + contents.END


def forged(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """A bundle whose list was changed by someone who seals it again."""
    files = members(data)
    value = json.loads(files.pop("bundle.json"))
    value.pop("digest")
    change(value)
    text = json.dumps(sealed(value)).encode()
    return pack(contents.header("bundle.json", len(text)) + text + contents.padding(len(text)), files)


def nothing_in(store: Store) -> bool:
    """Whether a cache has no entry, and nothing half-written."""
    left = list((store.root / "temporary").iterdir()) if (store.root / "temporary").is_dir() else []
    return store.keys() == [] and store.names() == {} and left == []


# From one machine to another, by the real command line


def flux(checkpoints: Path, folder: Path) -> tuple[object, ...]:
    return ("flux", "--model", shutil.copytree(checkpoints / "flux", folder / "model"))


def sharded(checkpoints: Path, folder: Path) -> tuple[object, ...]:
    return ("flux", "--model", shutil.copytree(checkpoints / "flux-sharded", folder / "model"))


def with_lora_and_encoder(checkpoints: Path, folder: Path) -> tuple[object, ...]:
    lora = shutil.copy(checkpoints / "flux-lora.safetensors", folder)
    other = shutil.copytree(checkpoints / "flux-fp16", folder / "other")
    return (*flux(checkpoints, folder), "--lora", f"{lora}@0.5", "--component", f"text_encoder_2={other}")


def quanto(checkpoints: Path, folder: Path) -> tuple[object, ...]:
    lora = shutil.copy(checkpoints / "flux-lora.safetensors", folder)
    return (*flux(checkpoints, folder), "--lora", lora, "--quantize", "int8")


def torchao(checkpoints: Path, folder: Path) -> tuple[object, ...]:
    return (*flux(checkpoints, folder), "--quantize", "int8", "--quantize-backend", "torchao")


def single_file(checkpoints: Path, folder: Path) -> tuple[object, ...]:
    file = shutil.copy(checkpoints / "stable-diffusion.safetensors", folder)
    config = shutil.copytree(checkpoints / "stable-diffusion", folder / "config")
    return ("stable-diffusion", "--model", file, "--config", config)


def gguf(checkpoints: Path, folder: Path) -> tuple[object, ...]:
    file = shutil.copy(checkpoints / "flux-transformer.gguf", folder)
    return (*flux(checkpoints, folder), "--component", f"transformer={file}")


def pickled(checkpoints: Path, folder: Path) -> tuple[object, ...]:
    model = shutil.copytree(checkpoints / "flux-pickle", folder / "model")
    return ("flux", "--model", model, "--allow-pickle")


def own_code(checkpoints: Path, folder: Path) -> tuple[object, ...]:
    model = shutil.copytree(checkpoints / "flux", folder / "model")
    return ("custom", "--model", with_custom_pipeline(Path(model)), "--trust-remote-code")


def demo(checkpoints: Path, folder: Path) -> tuple[object, ...]:
    return ("demo", "--lora", "demo:neon")


WAYS = [flux, sharded, with_lora_and_encoder, quanto, torchao, single_file, gguf, pickled, own_code, demo]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_an_imported_pipeline_has_the_same_key_and_makes_the_same_bytes(
    warm: Warm, checkpoints: Path, tmp_path: Path, way: Callable[[Path, Path], tuple[object, ...]]
) -> None:
    sources, elsewhere = tmp_path / "sources", {"DIFFPIPE_HOME": str(tmp_path / "there")}
    sources.mkdir()
    name, file = way.__name__.replace("_", "-"), tmp_path / "bundle.tar"
    words = way(checkpoints, sources)
    consent = [word for word in words if word in ("--allow-pickle", "--trust-remote-code")]
    here = warm("build", *words, "--dtype", "float32", "--name", name, check=True)
    warm("generate", name, *SMALL, "-o", tmp_path / "here.png", check=True)
    warm("pipelines", "export", name, file, check=True)
    sources.rename(tmp_path / "gone")
    (sources / "model").mkdir(parents=True)  # where the model's own code leaves its mark

    done = warm("pipelines", "import", file, *consent, env=elsewhere, check=True)
    warm("generate", name, *SMALL, "-o", tmp_path / "there.png", env=elsewhere, check=True)

    assert done.stdout == here.stdout
    assert (tmp_path / "there.png").read_bytes() == (tmp_path / "here.png").read_bytes()
    state = NOT_MADE_HERE if "--quantize" in words else "ok"
    assert warm("pipelines", "verify", env=elsewhere).stdout == f"{name} {here.stdout.split()[1]}: {state}\n"
    if consent:
        refused = warm("pipelines", "import", file, env={"DIFFPIPE_HOME": str(tmp_path / "third")})
        assert refused.returncode == 2
        assert f"pass {consent[0]} if you trust its source" in refused.stderr
        assert not (tmp_path / "third").exists()


def test_a_model_of_the_hub_is_carried_and_needs_no_hub(
    cli: Cli, warm: Warm, checkpoints: Path, tmp_path: Path
) -> None:
    elsewhere = {"DIFFPIPE_HOME": str(tmp_path / "there"), "HF_HOME": str(tmp_path / "there-too")}
    with serve({"org/flux": checkpoints / "flux"}) as hub:
        here = cli("build", "flux", "--model", "org/flux", "--name", "hubs", env={"HF_ENDPOINT": hub.url}, check=True)
    cli.light("pipelines", "export", "hubs", tmp_path / "hub.tar")
    warm("generate", "hubs", *SMALL, "-o", tmp_path / "here.png", check=True)

    done = cli.light("pipelines", "import", tmp_path / "hub.tar", env=elsewhere)
    warm("generate", "hubs", *SMALL, "-o", tmp_path / "there.png", env=elsewhere, check=True)

    assert (done.returncode, done.stdout) == (0, here.stdout)
    assert (tmp_path / "there.png").read_bytes() == (tmp_path / "here.png").read_bytes()
    assert not (tmp_path / "there-too").exists()
    digests = {name.partition("/")[2] for name in members((tmp_path / "hub.tar").read_bytes())}
    assert {len(name) for name in digests} == {0, 40, 64}  # git's for small files, SHA-256 for weights, and the list


def test_what_quantized_weights_replace_stays_behind(warm: Warm, checkpoints: Path, tmp_path: Path) -> None:
    warm("build", *quanto(checkpoints, tmp_path), "--name", "q", check=True)
    warm("pipelines", "export", "q", tmp_path / "q.tar", check=True)
    data = (tmp_path / "q.tar").read_bytes()
    carried = {path for source in list_of(data).sources for path in source.files}
    assert "vae/diffusion_pytorch_model.safetensors" in carried
    assert {
        path for path in carried if path.startswith(("transformer/", "text_encoder")) and "config" not in path
    } == set()
    stored = {name for name in members(data) if name.startswith("weights/")}
    assert stored == {f"weights/{name}.safetensors" for name in ("text_encoder", "text_encoder_2", "transformer")}


# What a bundle is


def test_a_bundle_is_a_plain_tar_whose_list_comes_first_and_is_true(made: Made) -> None:
    data = made.file.read_bytes()
    with tarfile.open(made.file) as tar:
        assert all(member.isreg() and (member.uid, member.mtime, member.uname) == (0, 0, "") for member in tar)
        assert tar.getnames()[0] == "bundle.json"
    files = members(data)
    listed = json.loads(files.pop("bundle.json"))["files"]
    assert listed == [
        {"name": name, "size": len(data), "digest": f"sha256:{hashlib.sha256(data).hexdigest()}"}
        for name, data in files.items()
    ]
    assert contents.size_of(made.contents) == len(data)


def test_a_bundle_says_nothing_of_the_machine_it_was_made_on(made: Made) -> None:
    text = members(made.file.read_bytes())["bundle.json"].decode()
    for word in (str(made.source.parent), str(made.store.root), str(Path.home()), socket.gethostname(), "/tmp/"):
        assert word not in text
    assert "identities" not in text


def test_the_same_pipeline_makes_the_same_bundle(made: Made, tmp_path: Path) -> None:
    entry = made.store.find("flux")
    done = transfer.export(made.store, entry, str(tmp_path / "again.tar"), name="flux")
    assert (tmp_path / "again.tar").read_bytes() == made.file.read_bytes()
    assert (done.there, done.bytes) == (False, made.contents.total())


def test_an_imported_pipeline_is_exported_as_it_came(made: Made, there: Store, tmp_path: Path) -> None:
    entry = transfer.load(there, str(made.file))
    transfer.export(there, entry, str(tmp_path / "again.tar"))
    assert (tmp_path / "again.tar").read_bytes() == made.file.read_bytes()


# What is taken in


def test_the_api_gives_the_entry_and_tells_its_progress(made: Made, there: Store) -> None:
    told: list[tuple[int, int]] = []
    entry = transfer.load(there, str(made.file), "mine", made.key, lambda done, total: told.append((done, total)))
    total = made.contents.total()
    assert (entry.key, entry.folder) == (made.key, there.root / "pipelines" / made.key)
    assert entry.manifest() == made.store.find("flux").manifest()
    assert there.names() == {"mine": made.key}
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1] == (total, total)
    assert problems(entry) == []


def test_of_what_is_here_already_the_list_alone_is_read(made: Made, there: Store, tmp_path: Path) -> None:
    transfer.load(there, str(made.file))
    head = tmp_path / "head.tar"
    head.write_bytes(contents.write(made.contents))
    assert transfer.bring(there, str(head), transfer.Options()).there
    with pytest.raises(CacheError, match="cut short"):
        transfer.bring(Store(tmp_path / "third"), str(head), transfer.Options())


def test_of_an_expected_key_that_is_here_nothing_is_read(made: Made, there: Store) -> None:
    with pytest.raises(NotFoundError):
        transfer.load(there, "memory://none/", expect_key=made.key)
    transfer.load(there, str(made.file))
    assert transfer.load(there, "memory://none/", expect_key=made.key).key == made.key


def test_another_key_than_the_expected_one_is_refused(made: Made, there: Store) -> None:
    with pytest.raises(CacheError, match=f"a bundle of {made.key[:12]}, not of 000000000000"):
        transfer.load(there, str(made.file), expect_key="0" * 64)
    assert not there.root.exists()


@ANY
@given(data=st.data())
def test_a_bundle_that_was_cut_short_is_refused(
    made: Made, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    whole = made.file.read_bytes()
    (folder / "cut.tar").write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(CacheError) as raised:
        transfer.load(Store(folder / "there"), str(folder / "cut.tar"))
    assert raised.value.hint
    assert nothing_in(Store(folder / "there"))


@ANY
@given(data=st.data())
def test_a_bundle_with_any_byte_changed_is_refused(
    made: Made, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("edited")
    edited = bytearray(made.file.read_bytes())
    head = len(contents.write(made.contents))
    at = data.draw(st.one_of(st.integers(0, head), st.integers(0, len(edited) - 1)))
    edited[at] ^= data.draw(st.integers(1, 255))
    (folder / "edited.tar").write_bytes(edited)
    with pytest.raises(CacheError):
        transfer.load(Store(folder / "there"), str(folder / "edited.tar"))
    assert nothing_in(Store(folder / "there"))


def test_what_goes_on_after_its_end_is_refused(made: Made, there: Store, tmp_path: Path) -> None:
    (tmp_path / "long.tar").write_bytes(made.file.read_bytes() + b"x")
    with pytest.raises(CacheError, match="goes on after its end"):
        transfer.load(there, str(tmp_path / "long.tar"))
    assert nothing_in(there)


def base(value: dict[str, Any]) -> dict[str, Any]:
    files: dict[str, Any] = value["manifest"]["sources"][0]["files"]
    return files


def rekey(value: dict[str, Any]) -> None:
    """Let a changed configuration have its own key."""
    key = digest(value["manifest"]["config"])
    value["key"] = value["manifest"]["key"] = value["summary"]["key"] = key


def moved_out(value: dict[str, Any], path: str) -> None:
    """Put a file at another path, in the configuration as well."""
    for files in (base(value), value["manifest"]["config"]["base"]["files"]):
        files[path] = files.pop("model_index.json")
    rekey(value)


def resized(value: dict[str, Any]) -> None:
    base(value)["model_index.json"]["size"] = 2**60
    name = "files/" + base(value)["model_index.json"]["digest"].removeprefix("sha256:")
    next(row for row in value["files"] if row["name"] == name)["size"] = 2**60


def added(value: dict[str, Any], size: int) -> None:
    """Another file of the same content, said to be of another size."""
    digest_of = base(value)["model_index.json"]["digest"]
    base(value)["vae/x.json"] = {"size": size, "digest": digest_of}
    value["manifest"]["config"]["base"]["files"]["vae/x.json"] = digest_of
    rekey(value)


def trusting(value: dict[str, Any]) -> None:
    value["manifest"]["config"]["trust"] = {"pickle": True, "remote_code": True}


WEIGHTS = {"bytes": 1, "digest": "sha256:" + "0" * 64, "parameters": 1, "dtypes": ["I8"], "layers": 1, "left": {}}
FORGERIES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another key": (lambda value: value.update(key="0" * 64), "its key stands for"),
    "more trust": (trusting, "its key stands for"),
    "another class": (lambda value: value["manifest"].update(pipeline="X"), "not that of its configuration"),
    "out of the folder": (lambda value: moved_out(value, "../x.json"), "outside its folder"),
    "absolute": (lambda value: moved_out(value, "/etc/x.json"), "outside its folder"),
    "backslashes": (lambda value: moved_out(value, "..\\x.json"), "outside its folder"),
    "a file as a folder": (lambda value: moved_out(value, "vae/config.json/x.json"), "outside its folder"),
    "code": (lambda value: moved_out(value, "vae/x.py"), "no pipeline loads"),
    "a pickle": (lambda value: moved_out(value, "vae/x.bin"), "no pipeline loads"),
    "a program": (lambda value: moved_out(value, "vae/x.so"), "no pipeline loads"),
    "other weights": (
        lambda value: base(value)["model_index.json"].update(digest="sha256:" + "0" * 64), "not those that its key"
    ),
    "a lost source": (lambda value: value["manifest"].update(sources=[]), "not those that its key"),
    "another list": (lambda value: value["files"].pop(), "list of files"),
    "a digest that is a path": (
        lambda value: base(value)["model_index.json"].update(digest="sha256:../../x"), "digest has a form"
    ),
    "an embedded source elsewhere": (lambda value: value.update(embedded={"base": "/etc"}), "embedded"),
    "a name that is a path": (lambda value: value.update(name="../x"), "its name is none"),
    "a list that is none": (lambda value: value.update(files=[1]), "list of files"),
    "a manifest that is none": (lambda value: value.update(manifest=[]), "is no object"),
    "no manifest": (lambda value: value.pop("manifest"), "is no object"),
    "flags of another kind": (lambda value: value["manifest"].update(flags=[{"x": 1}]), "flags.0.name is missing"),
    "a summary without sizes": (lambda value: value["summary"].pop("bytes"), "summary.bytes is missing"),
    "a summary of another kind": (lambda value: value["summary"].update(bytes="x"), "summary.bytes is no number"),
    "orders to the terminal": (
        lambda value: value["manifest"]["flags"][0].update(help="\x1b[2J"), "control characters"
    ),
    "another model in the summary": (lambda value: value["summary"].update(model="x/y"), "its summary is not that of"),
    "a name that is a key": (lambda value: value.update(name="abcdef12"), "its name is none"),
    "a date": (lambda value: value["summary"].update(built=10**30), "summary.built is no whole number"),
    "no versions": (lambda value: value["manifest"].update(versions={}), "does not say what built it"),
    "a library": (
        lambda value: [one.update(library="os") for one in value["manifest"]["components"]], "names the library 'os'"
    ),
    "a lost component": (lambda value: value["manifest"]["components"].pop(), "its summary is not that of"),
    "a long name": (lambda value: moved_out(value, "x" * 256 + ".json"), "outside its folder"),
    "a name of Windows": (lambda value: moved_out(value, "vae/CON.json"), "outside its folder"),
    "names that differ in case": (lambda value: moved_out(value, "VAE/x.json"), "differ in case"),
    "two sizes of a file": (lambda value: added(value, size=1), "a file has two sizes"),
    "weights without quantization": (
        lambda value: value.update(weights={"components": {"x": WEIGHTS}}), "quantized weights are not named",
    ),
}  # fmt: skip


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_list_is_refused(made: Made, there: Store, tmp_path: Path, forgery: str) -> None:
    change, says = FORGERIES[forgery]
    (tmp_path / "forged.tar").write_bytes(forged(made.file.read_bytes(), change))
    with pytest.raises(CacheError, match=says):
        transfer.load(there, str(tmp_path / "forged.tar"))
    assert not there.root.exists()


def test_a_size_that_no_disk_holds_is_refused_before_anything_is_read(made: Made, there: Store, tmp_path: Path) -> None:
    (tmp_path / "forged.tar").write_bytes(forged(made.file.read_bytes(), resized))
    with pytest.raises(CacheError, match=r"needs 1152921\.5 TB, and .* are free"):
        transfer.load(there, str(tmp_path / "forged.tar"))
    assert nothing_in(there)


def test_a_newer_format_is_told(made: Made, there: Store, tmp_path: Path) -> None:
    newer = forged(made.file.read_bytes(), lambda value: value.update(format=2))
    (tmp_path / "newer.tar").write_bytes(newer)
    with pytest.raises(CacheError, match="format 2, this diffpipe reads 1"):
        transfer.load(there, str(tmp_path / "newer.tar"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE, tarfile.XHDTYPE])
def test_no_member_is_anything_but_a_plain_file(made: Made, there: Store, tmp_path: Path, kind: bytes) -> None:
    data = made.file.read_bytes()
    head = len(contents.write(made.contents))
    member = tarfile.TarInfo.frombuf(data[head : head + BLOCK], "utf-8", "strict")
    member.type, member.linkname = kind, "/etc/passwd"
    (tmp_path / "link.tar").write_bytes(data[:head] + member.tobuf(tarfile.GNU_FORMAT) + data[head + BLOCK :])
    with pytest.raises(CacheError, match="it was edited"):
        transfer.load(there, str(tmp_path / "link.tar"))
    assert nothing_in(there)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ({"_class_name": ["pipeline_custom", "CustomPipeline"]}, "wants to run pipeline code of its own"),
        ({"transformer": ["my_module", "MyModel"]}, "names the library 'my_module'"),
        ({"transformer": ["diffusers", "FluxPipeline"]}, "which is no part of a pipeline"),
    ],
)
def test_a_model_that_would_run_code_is_refused_as_at_a_build(
    made: Made, there: Store, tmp_path: Path, index: dict[str, Any], says: str
) -> None:
    """The whole of it is consistent: configuration, key, list and file."""
    files = members(made.file.read_bytes())
    old = base({"manifest": made.contents.manifest.to_json()})["model_index.json"]["digest"]
    text = json.dumps(json.loads(files[f"files/{old[7:]}"]) | index).encode()
    new = f"sha256:{hashlib.sha256(text).hexdigest()}"
    value = json.loads(files["bundle.json"])
    base(value)["model_index.json"] = {"size": len(text), "digest": new}
    value["manifest"]["config"]["base"]["files"]["model_index.json"] = new
    rekey(value)
    changed = Contents(
        value["key"],
        value["name"],
        Manifest.from_json(value["manifest"]),
        made.contents.summary,
        {},
        WeightsSummary({}),
    )
    files |= {f"files/{new[7:]}": text}
    packed = pack(contents.write(changed), {name: files[name] for name in changed.files()})
    (tmp_path / "code.tar").write_bytes(packed)
    with pytest.raises(UsageError, match=says):
        transfer.load(there, str(tmp_path / "code.tar"))
    assert nothing_in(there)


def test_what_is_no_bundle_is_told_in_two_lines(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"x" * 2000)
    done = cli.light("pipelines", "import", tmp_path / "x.tar")
    assert (done.returncode, done.stdout) == (6, "")
    assert (
        done.stderr
        == f"error: {tmp_path}/x.tar is no bundle of a pipeline\n  try: make one: diffpipe pipelines export\n"
    )
    assert cli.light("pipelines", "import", tmp_path / "none.tar").returncode == 3


# Interruptions and damage


def test_an_import_that_stopped_leaves_no_entry_and_goes_on_where_it_was(made: Made, there: Store) -> None:
    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        transfer.load(there, str(made.file), progress=stop)
    assert nothing_in(there)
    kept = {path.name: path.stat().st_mtime_ns for path in (there.root / "blobs").iterdir()}
    assert 0 < len(kept) < len(made.contents.files())
    entry = transfer.load(there, str(made.file))
    assert problems(entry) == []
    assert {name: (there.root / "blobs" / name).stat().st_mtime_ns for name in kept} == kept


KILLED = """
import os, signal, sys
from pathlib import Path
from diffpipe.cache.bundle import transfer as bundle
from diffpipe.cache.store import Store
def progress(done, total):
    if done > float(sys.argv[3]) * total:
        os.kill(os.getpid(), signal.SIGKILL)
bundle.load(Store(Path(sys.argv[2])), sys.argv[1], progress=progress)
"""


def test_an_import_that_was_killed_leaves_no_entry_and_what_prune_removes(
    made: Made, there: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for share in ("0", "0.3", "0.6", "0.99"):
        words = [sys.executable, "-c", KILLED, str(made.file), str(there.root), share]
        assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
        assert (there.keys(), there.names()) == ([], {})
        assert all(
            hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in (there.root / "blobs").iterdir()
        )
    assert len(list((there.root / "temporary").iterdir())) == 4
    monkeypatch.setattr(store_module, "STALE", -1.0)  # as if an hour had gone by
    prune.execute(there, prune.plan(there, None))
    assert [list((there.root / name).iterdir()) for name in ("temporary", "blobs")] == [[], []]
    assert problems(transfer.load(there, str(made.file))) == []


@pytest.mark.parametrize("at", ["blob", "link", "manifest"])
def test_damage_is_told_with_the_command_that_mends_it(cli: Cli, made: Made, tmp_path: Path, at: str) -> None:
    env = {"DIFFPIPE_HOME": str(tmp_path / "there")}
    cli.light("pipelines", "import", made.file, env=env)
    store = Store(tmp_path / "there")
    entry = store.find("flux")
    weights_file = Path(entry.locations()[BASE]) / "vae/diffusion_pytorch_model.safetensors"
    if at == "blob":
        stat = weights_file.stat()
        with weights_file.resolve().open("r+b") as stream:  # in place and of the same age, as a failing disk does it
            stream.seek(-4, 2)
            stream.write(b"\1\2\3\4")
        os.utime(weights_file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif at == "link":
        weights_file.unlink()
    else:
        (entry.folder / "manifest.json").write_text("{}")
    found = cli.light("pipelines", "verify", env=env)
    assert found.returncode == 6
    command = found.stderr.partition("import it again: diffpipe ")[2]
    assert command == f"pipelines import {shlex.quote(str(made.file))} --name flux --force\n"
    mended = cli.light(*shlex.split(command), env=env)
    assert (mended.returncode, mended.stdout) == (0, f"flux {made.key[:12]}\n")
    assert problems(store.find("flux")) == []


def test_a_cache_that_was_moved_keeps_what_was_imported(made: Made, there: Store, tmp_path: Path) -> None:
    transfer.load(there, str(made.file))
    there.root.rename(tmp_path / "moved")
    entry = Store(tmp_path / "moved").find("flux")
    places = locate(entry, entry.manifest())
    assert problems(entry) == []
    assert [place.is_relative_to(tmp_path / "moved") for place in places.sources.values()] == [True]
    assert str(tmp_path / "there") not in (entry.folder / "sources.json").read_text()
    assert prune.plan(Store(tmp_path / "moved"), None).imported == {}


def test_a_source_that_changed_since_the_build_is_not_exported(
    warm: Warm, copy_of: Callable[..., Path], tmp_path: Path
) -> None:
    warm("build", "flux", "--model", copy_of("flux"), "--name", "changing", "--dtype", "float16", check=True)
    file = tmp_path / "flux/vae/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\7")
    done = warm("pipelines", "export", "changing", tmp_path / "x.tar")
    assert done.returncode == 6
    assert "was changed since" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flux"]


def test_a_file_that_changes_while_it_is_read_makes_no_bundle(made: Made, there: Store, tmp_path: Path) -> None:
    entry = transfer.load(there, str(made.file))
    largest = max((there.root / "blobs").iterdir(), key=lambda path: path.stat().st_size)

    def change(done: int, total: int) -> None:
        with largest.open("r+b") as stream:
            stream.write(b"\0" * largest.stat().st_size)

    with pytest.raises(CacheError, match="was changed since"):
        transfer.export(there, entry, str(tmp_path / "out" / "x.tar"), change)
    assert not (tmp_path / "out").exists()  # made for it, and taken away again


# Who needs what was imported


@pytest.fixture(scope="module")
def styled(warm: Warm, made: Made, checkpoints: Path) -> Path:
    """A bundle that shares all but a LoRA with that of `made`."""
    lora, file = checkpoints / "flux-lora.safetensors", made.file.with_name("styled.tar")
    warm("build", "flux", "--model", made.source, "--lora", lora, "--name", "styled", check=True)
    warm("pipelines", "export", "styled", file, check=True)
    return file


def blobs_of(store: Store) -> set[str]:
    return {path.name for path in (store.root / "blobs").iterdir()}


def digests(made: Contents) -> set[str]:
    return {name.partition("/")[2] for name in made.files()}


def test_bundles_share_their_files_and_prune_removes_those_of_no_entry(made: Made, styled: Path, there: Store) -> None:
    both, plain = list_of(styled.read_bytes()), made.contents
    transfer.load(there, str(made.file))
    before = {path.name: path.stat().st_ino for path in (there.root / "blobs").iterdir()}
    transfer.load(there, str(styled))
    assert len(digests(both) - digests(plain)) == 1
    assert blobs_of(there) == digests(both)
    assert {name: (there.root / "blobs" / name).stat().st_ino for name in before} == before

    there.remove("styled")
    planned = prune.plan(there, None)
    assert (set(planned.imported), planned.entries) == (digests(both) - digests(plain), ())
    lines = [line.partition(" (")[0] for line in planned.lines()]
    assert lines == ["1 imported files", "1 locks of what is gone"]
    prune.execute(there, planned)
    assert blobs_of(there) == digests(plain)
    assert problems(there.find("flux")) == []

    there.remove("flux")
    prune.execute(there, prune.plan(there, None))
    assert blobs_of(there) == set() == set((there.root / "sources").iterdir())


def test_prune_leaves_alone_what_a_running_import_brings(made: Made, there: Store) -> None:
    found: list[Any] = []

    def look(done: int, total: int) -> None:
        if not found:
            planned = prune.plan(there, None)
            prune.execute(there, planned)
            found.append((planned.imported, len(blobs_of(there))))

    transfer.load(there, str(made.file), progress=look)
    assert found == [({}, 0)]  # told at the first file's first bytes
    found.clear()
    (there.root / "blobs" / ("0" * 64)).write_text("of no entry")
    with there.lock(blobs.LOCK, lambda: None):
        look(1, 1)
    assert found == [({}, len(made.contents.files()) + 1)]
    found.clear()
    look(1, 1)
    assert found == [({"0" * 64: 11}, len(made.contents.files()))]


def test_a_second_import_waits_for_the_first_and_finds_its_work_done(made: Made, there: Store) -> None:
    told: list[str] = []
    done: list[transfer.Moved] = []

    def second() -> None:
        done.append(transfer.bring(there, str(made.file), transfer.Options(), say=told.append))

    thread = threading.Thread(target=second)

    def begin(count: int, total: int) -> None:
        if not thread.ident:
            thread.start()
            while not told:
                time.sleep(0.01)

    transfer.load(there, str(made.file), progress=begin)
    thread.join(30)
    assert told == ["another process is importing a pipeline; waiting for it"]
    assert [one.there for one in done] == [True]


def test_quantized_weights_that_are_here_are_kept_and_shared(
    warm: Warm, checkpoints: Path, tmp_path: Path, there: Store
) -> None:
    model = shutil.copytree(checkpoints / "flux", tmp_path / "model")
    for name, more in (("one", ()), ("two", ("--vae-tiling",))):
        warm("build", "flux", "--model", model, "--quantize", "int8", *more, "--name", name, check=True)
        warm("pipelines", "export", name, tmp_path / f"{name}.tar", check=True)
    first = transfer.load(there, str(tmp_path / "one.tar"))
    (key,) = weights.keys(there)
    inodes = {path.name: path.stat().st_ino for path in weights.folder(there, key).glob("*.safetensors")}
    second = transfer.load(there, str(tmp_path / "two.tar"))
    assert first.key != second.key
    assert {path.name: path.stat().st_ino for path in weights.folder(there, key).glob("*.safetensors")} == inodes
    assert problems(first) == problems(second) == []


# Names


def test_the_name_is_its_own_where_that_is_free(made: Made, styled: Path, there: Store) -> None:
    other = transfer.load(there, str(styled), "flux")
    nameless = transfer.bring(there, str(made.file), transfer.Options())
    assert (nameless.name, there.names()) == ("", {"flux": other.key})
    with pytest.raises(UsageError, match="the name flux is taken"):
        transfer.bring(there, str(made.file), transfer.Options("flux"))
    assert transfer.bring(there, str(made.file), transfer.Options("mine")).name == "mine"
    assert transfer.bring(there, str(made.file), transfer.Options("flux", force=True)).name == "flux"
    assert there.names() == {"flux": made.key, "mine": made.key}
    with pytest.raises(UsageError, match="cannot be a pipeline's name"):
        transfer.load(there, str(made.file), "../x")


def test_the_shell_completes_the_pipeline(cli: Cli, made: Made) -> None:
    words = "diffpipe pipelines export fl"
    done = cli.light(env={"_DIFFPIPE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "3"})
    assert done.stdout.split() == ["flux"]


# Places


@pytest.fixture
def bucket() -> Iterator[str]:
    yield "memory://bucket"
    fsspec.filesystem("memory").store.clear()


def test_a_bundle_goes_by_url(made: Made, there: Store, bucket: str) -> None:
    entry = made.store.find("flux")
    done = transfer.export(made.store, entry, f"{bucket}/cache/", name="flux")
    assert done.name == f"{bucket}/cache/{made.key}.tar"
    assert transfer.export(made.store, entry, f"{bucket}/cache/", name="flux").there
    assert fsspec.filesystem("memory").cat(f"/bucket/cache/{made.key}.tar") == made.file.read_bytes()
    assert transfer.load(there, f"{bucket}/cache/", expect_key=made.key).key == made.key
    assert there.find("flux").rebuild() == f"diffpipe pipelines import {done.name} --name flux --force"


def test_an_export_that_stops_leaves_nothing_at_a_url(made: Made, bucket: str) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        transfer.export(made.store, made.store.find("flux"), f"{bucket}/x.tar", stop)
    assert fsspec.filesystem("memory").find("/bucket") == []


def test_a_place_that_takes_no_files_is_told(made: Made) -> None:
    with pytest.raises(UsageError, match="data:// can only be read"):
        transfer.export(made.store, made.store.find("flux"), "data:///x", force=True)


def test_a_file_url_is_a_path(made: Made, there: Store, tmp_path: Path) -> None:
    transfer.export(made.store, made.store.find("flux"), f"file://{tmp_path}/out/x.tar", name="flux")
    assert (tmp_path / "out/x.tar").read_bytes() == made.file.read_bytes()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x.tar"]
    assert transfer.load(there, f"file://{tmp_path}/out/x.tar").key == made.key


def test_another_file_is_replaced_by_force_alone(cli: Cli, made: Made, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_text("precious")
    refused = cli.light("pipelines", "export", "flux", tmp_path / "x.tar")
    assert (refused.returncode, (tmp_path / "x.tar").read_text()) == (2, "precious")
    assert refused.stderr.endswith("  try: name another file, or --force\n")
    done = cli.light("pipelines", "export", "flux", tmp_path / "x.tar", "--force")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/x.tar\n")
    assert (tmp_path / "x.tar").read_bytes() == made.file.read_bytes()
    inside = cli.light("pipelines", "export", made.key[:8], tmp_path, "--json")
    value = {"key": made.key, "target": f"{tmp_path}/{made.key}.tar", "bytes": made.contents.total(), "there": False}
    assert json.loads(inside.stdout) == value


def test_an_export_that_was_killed_long_ago_is_cleaned_up_by_the_next(made: Made, tmp_path: Path) -> None:
    for age in (0.0, streams.ABANDONED + 60):
        left = tmp_path / f"{mark(tmp_path / 'x.tar')}{age}.tmp"
        left.write_text("half")
        os.utime(left, (time.time() - age,) * 2)
    transfer.export(made.store, made.store.find("flux"), str(tmp_path / "x.tar"), name="flux")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".tar", ".tmp"]


@pytest.mark.parametrize(
    ("place", "error", "says"),
    [
        ("s3://bucket/x.tar", UsageError, "s3:// needs a package that is not installed"),
        ("what://bucket/x.tar", UsageError, "what:// is no kind of URL"),
        ("memory://none/x.tar", NotFoundError, "there is no file memory://none/x.tar"),
    ],
)
def test_a_place_that_cannot_be_read_is_told(
    there: Store, place: str, error: type[DiffpipeError], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(error, match=says):
        transfer.load(there, place)
    assert not there.root.exists()


@pytest.mark.parametrize(
    ("raised", "error", "says"),
    [
        (OSError(errno.ENOSPC, "no space"), CacheError, "there is no room for s3://bucket/x"),
        (PermissionError(errno.EACCES, "no"), AccessError, "access to s3://bucket/x is denied"),
        (IsADirectoryError(errno.EISDIR, "no"), UsageError, "s3://bucket/x is a folder"),
        (
            OSError("see https://me:secret@host/x?sig=abc"),
            stores.StoreError,
            "cannot read s3://bucket/x: see https://host/x",
        ),
        (UsageError("ours", "hint"), UsageError, "ours"),
    ],
)
def test_what_a_store_says_is_told_in_the_users_terms(raised: Exception, error: type[Exception], says: str) -> None:
    with pytest.raises(DiffpipeError, match=says) as told, stores.explained("s3://me:secret@bucket/x?sig=abc"):
        raise raised
    assert type(told.value) is error
    assert "secret" not in told.value.message
    assert told.value.hint


@pytest.mark.skipif(IS_ROOT, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_told(made: Made, there: Store, tmp_path: Path) -> None:
    file = tmp_path / "x.tar"
    shutil.copy(made.file, file)
    file.chmod(0)
    with pytest.raises(AccessError, match=r"access to .*x\.tar is denied"):
        transfer.load(there, str(file))


def test_a_full_disk_is_told_before_anything_is_copied(
    made: Made, there: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))  # type: ignore[attr-defined]
    with pytest.raises(CacheError, match=r"x\.tar needs .* kB, and 1\.0 kB are free"):
        transfer.export(made.store, made.store.find("flux"), str(tmp_path / "x.tar"), name="flux")
    with pytest.raises(CacheError, match=r"flux\.tar needs .* kB, and 1\.0 kB are free"):
        transfer.load(there, str(made.file))
    assert nothing_in(there)


def test_an_address_is_kept_without_what_signs_it(made: Made, there: Store, bucket: str) -> None:
    transfer.export(made.store, made.store.find("flux"), f"{bucket}/x.tar", name="flux")
    assert transfer.load(there, f"{bucket}/x.tar").sources().command[3] == f"{bucket}/x.tar"
    assert transfer._command(made.contents, "https://me:secret@host/x.tar?sig=abc", transfer.Options())[3] == (
        "https://host/x.tar"
    )
