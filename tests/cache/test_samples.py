"""What earlier versions wrote is read by this one: entries, weights and a bundle, as 0.1.0 left them (samples/)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from diffpipe.cache.bundle import contents
from diffpipe.cache.sealed import intact, sealed
from diffpipe.cache.store import Store
from diffpipe.core.errors import CacheError
from diffpipe.core.manifest import Manifest, WeightsSummary
from diffpipe.core.parsing import Fields, Misfit, OtherVersion
from diffpipe.core.source import BASE, Role

SAMPLES = Path(__file__).parent / "samples"
NAMES = ("demo", "styled", "quantized")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A cache with the sampled entries under their names."""
    found = Store(tmp_path / "cache")
    for name in NAMES:
        key = json.loads((SAMPLES / name / "summary.json").read_bytes())["key"]
        shutil.copytree(SAMPLES / name, found.folder("pipelines") / key)
        found.set_name(name, key)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_is_read_whole_and_written_as_it_was(name: str) -> None:
    written = intact(SAMPLES / name / "manifest.json")
    found = Manifest.from_json(written)
    assert found.to_json() == written
    assert found.config.key == found.key


def test_entries_are_sound_and_say_what_they_are(store: Store) -> None:
    assert {name: store.find(name).faults() for name in NAMES} == {name: [] for name in NAMES}
    quantized, styled = store.find("quantized"), store.find("styled")
    assert (quantized.summary.quantize, quantized.summary.model) == ("int8", "flux")
    assert quantized.locations() == {BASE: "/models/flux"}
    assert quantized.rebuild().startswith("diffpipe build flux --type text2image --model /models/flux")
    manifest = quantized.manifest()
    assert manifest.stored
    assert manifest.stored.key == quantized.summary.weights
    assert set(manifest.stored.components) == {"text_encoder", "text_encoder_2", "transformer"}
    assert manifest.config.placement.vae_tiling
    assert manifest.config.scheduler.settings == {"shift": 2.0}
    lora = styled.manifest().source(Role.lora(0))
    assert lora
    assert (lora.label, lora.scale) == ("demo:pencil", 0.5)
    assert styled.manifest().config.speed.step_cache == "first-block"


def test_the_summary_of_weights_is_written_as_it_was() -> None:
    written = intact(SAMPLES / "weights.json")
    found = WeightsSummary.from_json(Fields(written))
    assert found.to_json() == written
    assert found.components["transformer"].quality.comparison["cosine"] > 0.99


def test_a_bundle_is_read() -> None:
    data = (SAMPLES / "bundle.json").read_bytes()
    found = contents.read(data, "q.tar")
    assert found.name == "quantized"
    assert json.loads(contents.listing(found)) == json.loads(data)


def test_a_newer_manifest_is_refused_with_what_to_do(store: Store) -> None:
    entry = store.find("demo")
    newer = {**intact(entry.folder / "manifest.json"), "format": 2}
    (entry.folder / "manifest.json").write_text(json.dumps(sealed(newer)))
    with pytest.raises(CacheError, match="format 2, and this diffpipe reads 1") as raised:
        entry.manifest()
    build = "diffpipe build demo --type text2image --model embedded:demo"
    assert raised.value.hint == f"build it again: {build} --dtype bfloat16 --name demo --force"


@pytest.mark.parametrize(
    ("place", "value", "other"),
    [
        ("format", 2, True),
        ("kind", "hologram", False),
        ("versions", {"diffpipe": "9.9.0"}, False),
        ("versions", {"diffpipe": "\x1b[2J"}, False),
    ],
)
def test_of_another_version_is_what_another_diffpipe_says_that_it_wrote(place: str, value: object, other: bool) -> None:
    found = json.loads((SAMPLES / "demo" / "manifest.json").read_bytes())
    with pytest.raises(Misfit) as raised:
        Manifest.from_json({**found, "fps": "x", place: value})
    assert isinstance(raised.value, OtherVersion) is (other or value == {"diffpipe": "9.9.0"})


def test_a_newer_configuration_is_of_another_version() -> None:
    found = json.loads((SAMPLES / "demo" / "manifest.json").read_bytes())
    found["config"]["format"] = 2
    with pytest.raises(OtherVersion, match="configuration is of format 2"):
        Manifest.from_json(found)


def test_a_bundle_whose_weights_are_of_another_configuration_is_refused() -> None:
    """Its weights key is another everywhere: the list, the manifest and the summary agree with each other."""
    value = json.loads((SAMPLES / "bundle.json").read_bytes())
    del value["digest"]
    value["manifest"]["quantization"]["key"] = value["summary"]["weights"] = "0" * 64
    with pytest.raises(CacheError, match="quantized weights are not those that its key stands for"):
        contents.read(json.dumps(sealed(value)).encode(), "q.tar")


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("flags", 0, "kind"), "picture", "flags.0.kind is none of"),
        (("components", 0, "bytes"), 10**400, "components.0.bytes is no whole number"),
        (("components", 0, "bytes"), -1, "components.0.bytes is no whole number"),
        (("sources", 0, "role"), "component:../x", "sources.0.role is no role"),
        (("config", "placement", "device"), None, "config.placement.device is missing"),
        (("config", "scheduler"), [], "config.scheduler is no object"),
        (("kind",), "hologram", "kind is none of image, video, audio"),
        (("fps",), True, "fps is no number"),
        (("fps",), 0, "fps is no number from"),
        (("key",), "x", "key has a form"),
        (("format",), 10**400, "format is no whole number"),
        (("flags", 0, "name"), "--help", "flags.0.name has a form"),
        (("flags", 0, "name"), 5, "flags.0.name is no text"),
        (("flags", 0, "name"), "class", "flags.0 has a name that no argument"),
        (("flags", 0, "name"), "__init__", "flags.0 has a name that no argument"),
        (("flags", 1, "name"), "prompt", "flags has a name twice"),
        (("flags", 0, "default"), 5, "flags.0 has a default that is no text"),
        (("flags", 0, "choices"), ["\x1b[2J"], "flags.0 has choices that are none"),
        (("flags", 0, "kind"), "choice", "flags.0 has choices that are none"),
        (("flags", 0, "mode"), "CMYK", "flags.0.mode has a form"),
        (("flags", 0, "most"), 0, "flags.0.most is no whole number"),
        (("flags", 0, "minimum"), 10**400, "flags.0.minimum is no number"),
        (("components", 0, "library"), "os; rm", "components.0.library has a form"),
        (("components", 0, "class_name"), "../x", "components.0.class_name has a form"),
        (("components", 1, "name"), "vae", "components has a name twice"),
        (("sources", 0, "files"), {"../x.json": {"size": 1, "digest": "sha256:" + "0" * 64}}, "outside its folder"),
        (("sources", 0, "files"), {f"{'x' * 256}.json": {"size": 1, "digest": "sha256:" + "0" * 64}}, "outside"),
        (("sources", 0, "files"), {"x.json": {"size": 1, "digest": "md5:0"}}, "digest has a form"),
        (("sources", 0, "subfolder"), "../../..", "sources.0 names a file outside its folder"),
        (("sources", 0, "commit"), "main", "sources.0.commit has a form"),
        (("sources", 0, "scale"), 1e300, "sources.0.scale is no number from"),
        (("sources", 0, "components", "vae"), ["os", "system()"], "no library and class"),
        (("sources", 0, "label"), "/any/path", "sources.0 is known by what is not in the package"),
        (("sources", 0, "label"), "embedded:../../x", "sources.0 is known by what is not in the package"),
        (("sources", 0, "label"), "owner/repo", "sources.0 is known by what is not in the package"),
        (("config", "base"), {"kind": "hub", "repository": "a/../b", "commit": "0" * 40}, "base.repository has a form"),
        (("config", "base"), {"kind": "hub", "repository": "../b", "commit": "0" * 40}, "base.repository has a form"),
        (("config", "dtype"), "load", "config.dtype is none of"),
        (("config", "placement", "device"), "z z", "config.placement.device has a form"),
        (("config", "placement", "cpu_offload"), "zzz", "config.placement.cpu_offload is none of"),
        (("config", "speed"), {"step_cache": "zzz"}, "config.speed.step_cache is none of"),
        (("config", "speed"), {"attention_backend": "zzz"}, "config.speed.attention_backend is none of"),
        (("config", "scheduler", "class"), "os.system", "config names a class that cannot be"),
        (("config", "base", "subfolder"), "../../..", "base names a file outside its folder"),
        (("config", "provider"), "\x1b[2J", "config.provider has a form"),
        (("config", "without"), ["vae", "vae"], "config.without has an entry"),
        (("quirks",), ["load", "load"], "quirks has an entry"),
        (("arguments",), ["a b"], "arguments has an entry"),
    ],
)
def test_what_does_not_fit_is_named(place: tuple[str | int, ...], value: object, says: str) -> None:
    found = json.loads((SAMPLES / "demo" / "manifest.json").read_bytes())
    inside = found
    for step in place[:-1]:
        inside = inside[step]
    inside[place[-1]] = value
    with pytest.raises(ValueError, match=says):
        Manifest.from_json(found)
