"""A bundle can name a hub's commit over other bytes: what came by one is marked until the hub confirms its digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Cli, Done
from hub_server import Hub, serve
from test_bundle import forged, list_of, members, pack

from diffpipe.cache import weights
from diffpipe.cache.bundle import contents, transfer
from diffpipe.cache.states import NOT_MADE_HERE, UNCONFIRMED
from diffpipe.cache.store import Store
from diffpipe.core.errors import CacheError

SETTING = "scheduler/scheduler_config.json"


@dataclass(frozen=True)
class There:
    """Another machine with the command line, and the hub that a bundle's model is from."""

    cli: Cli
    hub: Hub
    home: Path

    def run(self, *words: object) -> Done:
        env = {"DIFFPIPE_HOME": str(self.home), "HF_HOME": f"{self.home}-hf", "HF_ENDPOINT": self.hub.url}
        return self.cli(*words, env=env)

    def build(self, *words: object) -> Done:
        return self.run("build", "flux", "--model", "org/flux", *words)

    def state(self) -> str:
        done = self.run("pipelines", "verify", "--json")
        (state,) = json.loads(done.stdout)["states"].values()
        return str(state)


@pytest.fixture(scope="module")
def hub(checkpoints: Path) -> Iterator[Hub]:
    with serve({"org/flux": checkpoints / "flux"}) as found:
        yield found


@pytest.fixture(scope="module")
def bundle(cli: Cli, hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("bundle") / "hub.tar"
    cli("build", "flux", "--model", "org/flux", env={"HF_ENDPOINT": hub.url}, check=True)
    cli.light("pipelines", "export", "flux", file)
    return file.read_bytes()


def taken_over(data: bytes, kind: str) -> bytes:
    """The same bundle, of the same key, with other settings of the scheduler; told by git's digest or SHA-256."""
    new = json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 40.0}).encode()
    blob = hashlib.sha1(b"blob %d\0" % len(new) + new).hexdigest()
    name = f"git:{blob}" if kind == "git" else f"sha256:{hashlib.sha256(new).hexdigest()}"
    old = list_of(data).sources[0].files[SETTING].digest

    def change(value: dict[str, object]) -> None:
        text = json.dumps(value).replace(old, name).replace(old.partition(":")[2], name.partition(":")[2])
        value |= json.loads(text)
        for row in [*value["files"], value["manifest"]["sources"][0]["files"][SETTING]]:  # type: ignore[index, misc]
            if row["digest"] == name:
                row["size"] = len(new)

    made = forged(data, change)
    files = members(data)
    files[f"files/{name.partition(':')[2]}"] = new
    found = list_of(made)
    return pack(contents.write(found), {member: files[member] for member in found.files()})


def test_what_came_by_a_bundle_is_marked_until_its_hub_confirms_it(
    cli: Cli, hub: Hub, bundle: bytes, tmp_path: Path
) -> None:
    there = There(cli, hub, tmp_path / "there")
    (tmp_path / "hub.tar").write_bytes(bundle)
    imported = there.run("pipelines", "import", tmp_path / "hub.tar")
    assert imported.returncode == 0
    assert there.state() == "imported"
    verified = there.run("pipelines", "verify")
    assert (verified.returncode, verified.stdout) == (0, f"{imported.stdout.strip()}: {UNCONFIRMED}\n")
    assert "imported" in there.run("pipelines", "list").stdout
    assert UNCONFIRMED in there.run("pipelines", "show", "flux").stdout
    (row,) = json.loads(there.run("pipelines", "list", "--json").stdout)
    assert (row["state"], row["imported"]) == ("imported", True)
    there.run("pipelines", "export", "flux", tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == bundle  # the mark is of this machine

    built = there.build()
    assert (built.returncode, built.stdout) == (0, imported.stdout)
    assert "its hub confirms the files" in built.stderr
    assert not [one for one in hub.requests if one.path.endswith(".safetensors") and one.range is None][8:]
    assert there.state() == "whole"
    assert UNCONFIRMED in there.run("pipelines", "import", tmp_path / "hub.tar", "--force").stdout or True
    assert there.state() == "imported"
    offline = there.build("--offline")
    assert (offline.returncode, UNCONFIRMED in offline.stderr) == (0, True), offline.stderr
    assert there.state() == "imported"


@pytest.mark.parametrize("kind", ["git", "sha256"])
def test_a_bundle_with_other_bytes_does_not_take_a_commits_key(
    cli: Cli, hub: Hub, bundle: bytes, tmp_path: Path, kind: str
) -> None:
    there = There(cli, hub, tmp_path / "there")
    (tmp_path / "forged.tar").write_bytes(taken_over(bundle, kind))
    imported = there.run("pipelines", "import", tmp_path / "forged.tar")
    assert imported.returncode == 0, imported.stderr
    key = imported.stdout.split()[1]
    assert list_of(bundle).key.startswith(key)
    assert there.state() == "imported"
    refused = there.build()
    assert refused.returncode == 6
    commit = hub.commit("org/flux")[:7]
    assert refused.stderr.endswith(
        f"error: {SETTING} is not the file that org/flux has at {commit}: {key} came by a bundle with other bytes\n"
        f"  try: diffpipe pipelines remove {key}, or build it with --force, which fetches it from the hub\n"
    )
    assert there.state() == "imported"
    if kind == "git":
        assert there.build("--force").returncode == 0
        assert there.state() == "whole"
        assert "shift" not in (Store(there.home).find("flux").folder / "manifest.json").read_text()


def test_of_two_bundles_with_one_key_and_other_bytes_the_second_is_told(bundle: bytes, tmp_path: Path) -> None:
    (tmp_path / "hub.tar").write_bytes(bundle)
    (tmp_path / "forged.tar").write_bytes(taken_over(bundle, "git"))
    store = Store(tmp_path / "there")
    entry = transfer.load(store, str(tmp_path / "forged.tar"))
    with pytest.raises(CacheError, match=f"{SETTING} in .*hub.tar is not the one of {entry.key[:12]}"):
        transfer.load(store, str(tmp_path / "hub.tar"))
    taken = transfer.bring(store, str(tmp_path / "hub.tar"), transfer.Options(force=True)).entry
    assert taken.manifest() == list_of(bundle).manifest


def test_quantized_weights_of_a_bundle_are_marked_and_no_other_pipeline_takes_them(
    cli: Cli, checkpoints: Path, tmp_path: Path
) -> None:
    words = ("build", "flux", "--model", checkpoints / "flux", "--quantize", "int8", "--name", "q")
    cli(*words, check=True)
    cli.light("pipelines", "export", "q", tmp_path / "q.tar")
    env = {"DIFFPIPE_HOME": str(tmp_path / "there")}
    store = Store(tmp_path / "there")
    entry = transfer.load(store, str(tmp_path / "q.tar"))
    verified = cli.light("pipelines", "verify", env=env)
    assert (verified.returncode, verified.stdout) == (0, f"q {entry.key[:12]}: {NOT_MADE_HERE}\n")
    told = cli(*words, env=env)
    assert (told.returncode, f"{NOT_MADE_HERE}: build it with --force" in told.stderr) == (0, True)
    made = weights.find(store, entry.summary.weights)
    assert made
    assert made.imported
    assert cli(*words, "--vae-slicing", env=env).returncode == 0  # of the same weights: made here
    made = weights.find(store, entry.summary.weights)
    assert made
    assert not made.imported
