"""Quantized weights: what they compute, how they are stored and read back, and what builds and starts do with them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from conftest import Cli, Warm
from PIL import Image, ImageChops
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffpipe.cache import prune, weights
from diffpipe.cache.sealed import intact, write_sealed
from diffpipe.cache.store import Store
from diffpipe.core.configuration import Configuration
from diffpipe.core.errors import CacheError, DiffpipeError, UsageError
from diffpipe.core.manifest import Manifest
from diffpipe.core.parsing import Fields
from diffpipe.core.quantization import quantized_by_default
from diffpipe.engine.classes import lookup
from diffpipe.engine.classes.signature import read_flags
from diffpipe.engine.loading import aligned, fidelity, kernels, quantize, stored
from diffpipe.storage.digests import identity
from diffpipe.storage.tensor_headers import read_safetensors

WAYS = [("quanto", "fp8"), ("quanto", "int8"), ("quanto", "int4"), ("torchao", "fp8"), ("torchao", "int8")]
BF16 = torch.bfloat16


def linear(rows: int, columns: int, dtype: torch.dtype = BF16) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(columns, rows, dtype=dtype)


# What they compute


def test_the_table_of_float8_is_torchs_own_conversion() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).repeat(300).reshape(300, 256)
    for dtype in (BF16, torch.float16, torch.float32):
        wide = kernels.dequantize(every, dtype)
        assert torch.equal(wide.nan_to_num(7), every.to(dtype).nan_to_num(7))
        assert torch.equal(wide.isnan(), every.to(dtype).isnan())


def test_unpack_gives_the_low_bits_first() -> None:
    packed = torch.tensor([[0x21, 0x43]], dtype=torch.uint8)
    assert kernels.unpack(packed, 4).tolist() == [[1, 3], [2, 4]]
    assert kernels.unpack(torch.tensor([0b11_10_01_00], dtype=torch.uint8), 2).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("backend", "mode"), WAYS)
@pytest.mark.parametrize("dtype", [BF16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(48, 256), (17, 96), (1, 64), (33, 40)])
def test_a_quantized_layer_is_near_the_original(
    backend: str, mode: str, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    layer = linear(*shape, dtype)
    inputs = torch.randn(5, shape[1], dtype=dtype)
    original = layer(inputs).float()
    module = torch.nn.Sequential(layer)
    assert quantize.quantize_module(module, mode, backend) == {}
    made = module(inputs).float()
    assert made.isfinite().all()
    assert (made - original).norm() / original.norm() < (0.25 if mode == "int4" else 0.06)


@pytest.mark.parametrize(("backend", "mode"), WAYS)
def test_rows_without_spread_are_no_nan(backend: str, mode: str) -> None:
    weight = torch.randn(32, 256, dtype=BF16)
    weight[3], weight[5, :128], weight[7] = 0, 0.25, 0
    made = quantize.quantized(weight, mode, backend).dequantize()
    assert made.isfinite().all()
    assert torch.equal(made[[3, 7]], weight[[3, 7]])
    assert torch.allclose(made[5, :128], weight[5, :128], atol=0.1)


def test_int8_takes_any_alignment_and_shape() -> None:
    """torch's own kernel ends the process for these."""
    module = torch.nn.Sequential(linear(24, 20))
    quantize.quantize_module(module, "int8", "quanto")
    data = module[0].weight._data
    moved = torch.empty(data.numel() + 1, dtype=torch.int8)[1:].view(data.shape).copy_(data)
    module[0].weight._data = moved
    assert moved.data_ptr() % 16
    assert module(torch.randn(3, 20, dtype=BF16)).isfinite().all()


class Model(torch.nn.Module):
    """Every kind of layer that is left alone, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q = linear(32, 160)
        self.time_in = linear(32, 160)
        self.proj_out = linear(32, 160)
        self.odd = linear(8, 256)
        self.uneven = linear(32, 200)
        self.precise = linear(32, 32, torch.float32)
        self.tied = linear(32, 160)
        self.embed = torch.nn.Embedding(32, 160, dtype=BF16)
        self.tied.weight = self.embed.weight
        self.conv = torch.nn.Conv2d(4, 4, 3, dtype=BF16)


def test_what_is_left_alone_and_why() -> None:
    wanted, left = quantize.choose(Model(), "int4", "quanto", ["time_*"])
    assert wanted == ["to_q"]
    assert left == {
        "time_in": "excluded",
        "proj_out": "excluded",
        "odd": "int4 needs a multiple of 16 outputs, it has 8",
        "uneven": "int4 needs a multiple of 32 inputs, it has 200",
        "precise": "kept in float32",
        "tied": "shares its weight with another layer",
    }
    assert quantize.choose(Model(), "int8", "quanto")[0] == ["to_q", "time_in", "odd", "uneven"]


def test_a_module_is_not_quantized_twice() -> None:
    module = torch.nn.Sequential(linear(32, 64))
    quantize.quantize_module(module, "fp8", "quanto")
    assert quantize.quantize_module(module, "int8", "quanto") == {"0": "quantized already (WeightQBytesTensor)"}


def test_a_backend_that_is_not_there_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "installed", lambda backend: False)
    with pytest.raises(UsageError) as error:
        quantize.backend_for("torchao", "fp8")
    assert (error.value.message, error.value.hint) == ("torchao is not installed", "pip install 'diffpipe[torchao]'")


def test_a_backend_without_a_mode_says_what_there_is() -> None:
    with pytest.raises(UsageError, match="torchao has no int4") as error:
        quantize.backend_for("torchao", "int4")
    assert error.value.hint == "choose fp8 or int8, or --quantize-backend quanto"


# How they are stored


def components(folder: Path) -> list[tuple[str, type]]:
    """The components of a pipeline folder that are quantized by default, with their classes."""
    index = json.loads((folder / "model_index.json").read_text())
    parts = {name: value for name, value in index.items() if isinstance(value, list) and value[1]}
    return [(name, lookup.component_class(*parts[name])) for name in quantized_by_default(parts)]


READ = """
import sys, torch
from pathlib import Path
from diffpipe.engine.classes.lookup import component_class
from diffpipe.engine.loading import stored, fidelity
torch.set_num_threads(1)
folder = Path(sys.argv[1])
for calls in folder.glob("*.calls"):
    for key, library, cls, call in torch.load(calls, weights_only=False):
        module = stored.read(component_class(library, cls), folder / f"{key}.safetensors")
        with torch.no_grad():
            torch.save(fidelity.numbers(module(*call[0], **call[1])), folder / f"{key}.read.pt")
"""
FAMILIES = ("flux", "stable-diffusion", "sd3", "qwen", "wan", "ltx2", "audioldm")


def write_family(folder: Path, family: Path) -> None:
    """Every component of a family in every way: the file, what to call it with, and what it makes while it is live."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(family, dtype=BF16)
    pipe.set_progress_bar_config(disable=True)
    index = json.loads((family / "model_index.json").read_text())
    found = components(family)
    references = fidelity.references(pipe, [name for name, _ in found], read_flags(type(pipe)))
    calls = []
    for name, cls in found:
        call = references[name].call
        for backend, mode in WAYS:
            key = f"{family.name}-{name}-{backend}-{mode}"
            stored.write(cls.from_pretrained(family / name, dtype=BF16), folder / f"{key}.safetensors", mode, backend)
            live = cls.from_pretrained(family / name, dtype=BF16)
            quantize.quantize_module(live, mode, backend)
            with torch.no_grad():
                torch.save(fidelity.numbers(live(*call[0], **call[1])), folder / f"{key}.live.pt")
            calls.append((key, *index[name], call))
    torch.save(calls, folder / f"{family.name}.calls")


@pytest.fixture(scope="module")
def read_back(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of every component as it was live here, and as a process read it that has no compiler in its PATH."""
    folder = tmp_path_factory.mktemp("components")
    for family in FAMILIES:
        write_family(folder, checkpoints / family)
    subprocess.run([sys.executable, "-c", READ, str(folder)], check=True, env={**os.environ, "PATH": ""})
    return folder


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("backend", "mode"), WAYS)
def test_what_another_process_reads_equals_what_was_quantized_bit_by_bit(
    family: str, backend: str, mode: str, checkpoints: Path, read_back: Path
) -> None:
    names = [name for name, _ in components(checkpoints / family)]
    assert len(names) > 1
    for name in names:
        key = f"{family}-{name}-{backend}-{mode}"
        live, read = (torch.load(read_back / f"{key}.{kind}.pt") for kind in ("live", "read"))
        assert live.isfinite().all()
        assert torch.equal(live, read), key


@pytest.fixture
def transformer(checkpoints: Path) -> Callable[[], Any]:
    cls = diffusers.FluxTransformer2DModel
    return lambda: cls.from_pretrained(checkpoints / "flux" / "transformer", dtype=BF16)


@pytest.mark.parametrize("mode", ["fp8", "int8", "int4", "none"])
def test_every_tensor_of_a_file_is_aligned_and_the_library_reads_it(
    mode: str, transformer: Callable[[], Any], tmp_path: Path
) -> None:
    file = tmp_path / "transformer.safetensors"
    record = stored.write(transformer(), file, mode, "quanto")
    header = read_safetensors(file)
    start = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    places = [tensor.start for name, tensor in header.tensors.items() if not name.startswith(aligned.GAP)]
    assert start % 64 == 0
    assert {place % 64 for place in places} == {0}
    with safe_open(file, "pt") as opened:
        assert set(opened.keys()) == set(header.tensors)
    module = stored.read(diffusers.FluxTransformer2DModel, file)
    inner = [t for n, p in module.named_parameters() if hasattr(p, "_data") for t in [p._data]]
    assert mode == "none" or all(getattr(t, "_data", t).data_ptr() % 64 == 0 for t in inner)
    assert record.bytes == file.stat().st_size
    assert record.quality.layers == (0 if mode == "none" else 33)
    assert record.quality.left == ({} if mode == "none" else {"proj_out": "excluded"})


def test_a_file_that_was_cut_short_or_is_of_another_diffpipe_is_refused(
    transformer: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "transformer.safetensors"
    stored.write(transformer(), file, "fp8", "quanto")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:-64])
    with pytest.raises(CacheError, match="not a complete safetensors file"):
        stored.read(diffusers.FluxTransformer2DModel, cut)
    monkeypatch.setattr(stored, "FORMAT", stored.FORMAT + 1)
    with pytest.raises(CacheError, match="of another diffpipe"):
        stored.read(diffusers.FluxTransformer2DModel, file)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mode": "fp7"}, "mode is none of none, fp8, int8, int4"),
        ({"dtype": "__dict__"}, "dtype is none of torch's"),
        ({"layers": [1]}, "layers is no list of texts"),
        ({"config": None}, "config.config is missing"),
    ],
    ids=str,
)
def test_a_file_that_says_of_itself_what_cannot_be_is_refused(
    transformer: Callable[[], Any], tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    file = tmp_path / "transformer.safetensors"
    stored.write(transformer(), file, "fp8", "quanto")
    noted = json.loads(read_safetensors(file).metadata["diffpipe"]) | change
    save_file(load_file(file), file, {"diffpipe": json.dumps(noted)})
    with pytest.raises(CacheError) as raised:
        stored.read(diffusers.FluxTransformer2DModel, file)
    assert raised.value.message == f"the stored weights transformer.safetensors are damaged: {says}"
    assert "--force" in raised.value.hint


def test_a_file_that_another_backend_lays_out_otherwise_is_refused(
    transformer: Callable[[], Any], tmp_path: Path
) -> None:
    file = tmp_path / "transformer.safetensors"
    stored.write(transformer(), file, "fp8", "quanto")
    tensors = load_file(file)
    scale = next(name for name in tensors if name.endswith("._scale"))
    del tensors[scale]
    save_file(tensors, file, dict(read_safetensors(file).metadata))
    with pytest.raises(CacheError, match=f"do not fit the installed packages: {scale}"):
        stored.read(diffusers.FluxTransformer2DModel, file)


# How far they are from the originals


def reference(output: torch.Tensor) -> fidelity.Reference:
    return fidelity.Reference(((), {}), output)


def test_compare_measures_the_error_and_the_angle() -> None:
    original = torch.tensor([3.0, 4.0, 3.0, 4.0] * 10)
    assert fidelity.compare(reference(original), lambda: original) == {
        "relative_error": 0,
        "cosine": pytest.approx(1),
    }
    turned = torch.tensor([4.0, -3.0, 4.0, -3.0] * 10)
    measured = fidelity.compare(reference(original), lambda: turned)
    assert measured["cosine"] == pytest.approx(0)


def test_one_huge_value_does_not_decide() -> None:
    torch.manual_seed(0)
    original = torch.randn(1000)
    near = original + 0.01 * torch.randn(1000)
    original[0], near[0] = 1e6, -1e6
    assert fidelity.compare(reference(original), lambda: near)["cosine"] > 0.98


@pytest.mark.parametrize(("spoilt", "says"), [("nan", "is not a number"), ("noise", "has a cosine of")])
def test_nan_and_noise_are_refused_with_advice(spoilt: str, says: str) -> None:
    torch.manual_seed(0)
    original = torch.randn(5000)
    made = torch.randn(5000) if spoilt == "noise" else original.clone().index_fill(0, torch.tensor(7), torch.nan)
    measured = fidelity.compare(reference(original), lambda: made)
    with pytest.raises(DiffpipeError, match="transformer in int4 does not make what it should") as error:
        fidelity.check("transformer", measured, "int4")
    assert says in error.value.message
    assert "--quantize int8" in error.value.hint


# The key


CONFIG: dict[str, Any] = {
    "provider": "flux",
    "type": "text2image",
    "pipeline": "FluxPipeline",
    "base": {"kind": "hub", "repository": "a/b", "commit": "c" * 40},
    "config": None,
    "components": {},
    "loras": [{"kind": "local", "files": {"x": "sha256:1"}, "scale": 1.0}],
    "scheduler": {"class": None, "config": {}},
    "dtype": "bfloat16",
    "placement": {"device": "auto"},
    "trust": {"pickle": False, "remote_code": False},
    "quantization": {
        "mode": "fp8",
        "backend": "quanto",
        "version": "0.2.7",
        "components": ["transformer"],
        "exclude": [],
    },
}


def key_of(config: dict[str, Any]) -> str | None:
    return weights.weights_key(Configuration.from_json(Fields(config)))


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"scheduler": {"class": "DDIMScheduler", "config": {}}}, True),
        ({"placement": {"device": "cuda", "cpu_offload": "model"}}, True),
        ({"type": "img2img", "pipeline": "FluxImg2ImgPipeline"}, True),
        ({"dtype": "float16"}, False),
        ({"loras": []}, False),
        ({"loras": [{"kind": "local", "files": {"x": "sha256:1"}, "scale": 0.5}]}, False),
        ({"base": {"kind": "hub", "repository": "a/b", "commit": "d" * 40}}, False),
        ({"components": {"transformer": {"kind": "local"}}}, False),
        ({"float32": ["vae"]}, False),
        *[
            ({"quantization": CONFIG["quantization"] | change}, False)
            for change in (
                {"mode": "int8"},
                {"backend": "torchao"},
                {"version": "0.2.8"},
                {"components": ["text_encoder"]},
                {"exclude": ["transformer.x"]},
            )
        ],
    ],
)
def test_the_weights_key_changes_with_what_changes_weights(change: dict[str, Any], same: bool) -> None:
    assert (key_of(CONFIG) == key_of(CONFIG | change)) is same


def test_nothing_quantized_has_no_key() -> None:
    assert key_of({**CONFIG, "quantization": None}) is None


# Build and start


def drawn(warm: Warm, name: str, folder: Path) -> Image.Image:
    words = ("--prompt", "a cat", "--seed", "1", "--num-inference-steps", "2", "--width", "64", "--height", "64")
    done = warm("generate", name, *words, "--output", f"{folder}/{name}.png", "--overwrite", check=True)
    with Image.open(done.stdout.strip()) as picture:
        return picture.convert("RGB")


def distance(one: Image.Image, other: Image.Image) -> float:
    values = list(ImageChops.difference(one, other).tobytes())
    return sum(values) / len(values)


def test_a_lora_is_fused_before_and_the_originals_may_go(
    warm: Warm, copy_of: Callable[..., Path], tmp_path: Path
) -> None:
    model, lora = copy_of("flux"), copy_of("flux-lora.safetensors")
    for name, words in {
        "plain": (),
        "with-lora": ("--lora", lora),
        "quantized": ("--lora", lora, "--quantize", "fp8"),
    }.items():
        warm("build", "flux", "--model", model, *words, "--name", name, check=True)
    plain, fused, quantized = (drawn(warm, name, tmp_path) for name in ("plain", "with-lora", "quantized"))
    assert distance(fused, quantized) < 3 < distance(plain, quantized)
    for part in ("transformer", "text_encoder", "text_encoder_2"):
        for file in (model / part).glob("*.safetensors"):
            file.unlink()
    lora.unlink()
    assert drawn(warm, "quantized", tmp_path).tobytes() == quantized.tobytes()
    warm("pipelines", "verify", "quantized", check=True)


def vae_bytes(manifest: Manifest) -> int:
    return next(part.bytes for part in manifest.components if part.name == "vae")


def summary_bytes(store: Store, key: str) -> int:
    return (weights.folder(store, key) / "summary.json").stat().st_size


def test_entries_with_the_same_weights_share_them(warm: Warm, checkpoints: Path, tmp_path: Path) -> None:
    words = ("build", "flux", "--model", checkpoints / "flux", "--quantize", "int8", "--name")
    first = warm(*words, "shared-1", check=True)
    assert "quantizing transformer" in first.stderr
    second = warm(*words, "shared-2", "--scheduler-config", '{"shift": 2.0}', check=True)
    assert "quantizing" not in second.stderr
    third = warm(*words, "shared-3", "--type", "img2img", check=True)
    assert "quantizing" not in third.stderr
    store = Store(warm.home)
    entries = [store.find(f"shared-{number}") for number in (1, 2, 3)]
    assert len({entry.key for entry in entries}) == 3
    (key,) = {entry.summary.weights for entry in entries}
    manifest = entries[0].manifest()
    assert manifest.stored
    record = manifest.stored.components
    assert set(record) == {"text_encoder", "text_encoder_2", "transformer"}
    assert record["transformer"].comparison["cosine"] > 0.999
    assert weights.size(store, key) == entries[0].summary.bytes - vae_bytes(manifest) + summary_bytes(store, key)


def test_weights_of_no_entry_are_pruned(warm: Warm, checkpoints: Path) -> None:
    warm("build", "flux", "--model", checkpoints / "flux", "--quantize", "fp8", "--name", "short-lived", check=True)
    store = Store(warm.home)
    key = store.find("short-lived").summary.weights
    removed = warm("pipelines", "remove", "short-lived", check=True)
    assert "of quantized weights stay until diffpipe pipelines prune" in removed.stderr
    with store.lock(weights.lock_of(key), pytest.fail):  # as a build does that is about to use them
        assert key not in prune.plan(store, None).weights
        prune.execute(store, prune.plan(store, None))
    assert weights.find(store, key) is not None
    assert key in prune.plan(store, None).weights
    done = warm("pipelines", "prune", check=True)
    assert f"{key[:12]} holds quantized weights" in done.stdout
    assert weights.find(store, key) is None


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_damaged_weights_are_told_with_the_way_to_mend_them(
    damage: str, cli: Cli, warm: Warm, checkpoints: Path, tmp_path: Path
) -> None:
    words = ("build", "flux", "--model", checkpoints / "flux", "--quantize", "int4", "--name", "damaged")
    warm(*words, check=True)
    store = Store(warm.home)
    file = weights.folder(store, store.find("damaged").summary.weights) / "transformer.safetensors"
    data = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(data[:-100] if damage == "cut" else data[:-100] + bytes(99) + b"\1")
    done = warm("generate", "damaged", "--prompt", "a cat", "--output", f"{tmp_path}/x.png")
    assert done.returncode == 6, done.stderr
    assert "diffpipe build flux" in done.stderr
    assert "--quantize int4" in done.stderr
    rebuilt = warm(*words, check=True)
    assert "quantizing transformer" in rebuilt.stderr
    drawn(warm, "damaged", tmp_path)


@pytest.mark.parametrize("seen", [True, False])
def test_what_verify_tells_to_do_mends_weights(seen: bool, cli: Cli, warm: Warm, checkpoints: Path) -> None:
    """`seen`: the change shows in the file's times. A disk that loses bits leaves them as they are."""
    words = ("build", "flux", "--model", checkpoints / "flux", "--quantize", "int8", "--name", f"mended-{seen}")
    warm(*words, "--dtype", "float16" if seen else "float32", check=True)
    store = Store(warm.home)
    key = store.find(f"mended-{seen}").summary.weights
    file = weights.folder(store, key) / "transformer.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-100] + bytes(99) + b"\1")
    if not seen:
        summary = intact(weights.folder(store, key) / weights.SUMMARY)
        summary["components"]["transformer"]["identity"] = identity(file)
        write_sealed(weights.folder(store, key) / weights.SUMMARY, summary)

    found = cli("pipelines", "verify", f"mended-{seen}")
    command = shlex.split(found.stderr.rpartition("build it again: ")[2])
    done = warm(*command[1:], check=True)

    assert found.returncode == 6
    assert "the quantized weights of transformer were changed" in found.stdout
    assert "quantizing transformer" in done.stderr
    assert file.read_bytes() == data
    cli("pipelines", "verify", f"mended-{seen}", check=True)


def test_weights_that_make_noise_fail_the_build_and_leave_nothing(warm: Warm, copy_of: Callable[..., Path]) -> None:
    """A column of huge weights that is never used: it leaves no steps of int8 for the others, but does fp8 no harm."""
    model = copy_of("flux", "huge-column")
    file = model / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    for name in ("timestep_embedder", "text_embedder"):  # what they add up to is 0 in this channel
        for kind in ("weight", "bias"):
            tensors[f"time_text_embed.{name}.linear_2.{kind}"][0] = 0
    last = tensors["norm_out.linear.weight"]
    last *= 20
    last[:, 0] = 1e5
    save_file(tensors, file, {"format": "pt"})
    before = set(weights.keys(Store(warm.home)))
    words = ("build", "flux", "--model", model, "--quantize-components", "transformer", "--name", "huge-column")
    done = warm(*words, "--quantize", "int8")
    assert done.returncode == 1, done.stderr
    assert "transformer in int8 does not make what it should: its output has a cosine of" in done.stderr
    assert "try: --quantize fp8" in done.stderr
    assert set(weights.keys(Store(warm.home))) == before
    assert not list((warm.home / "temporary").iterdir())
    warm(*words, "--quantize", "fp8", check=True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--quantize", "int4", "--quantize-backend", "torchao"), "torchao int4 does not work"),
        (("--quantize", "fp8", "--quantize-components", "vaes"), "there is no component 'vaes' to quantize"),
        (("--quantize-components", "transformer"), "does nothing without --quantize"),
        (("--quantize", "fp9"), "fp9"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(
    words: tuple[str, ...], says: str, warm: Warm, checkpoints: Path
) -> None:
    done = warm("build", "flux", "--model", checkpoints / "flux", *words)
    assert done.returncode == 2
    assert says in done.stderr


def test_a_lora_beside_gguf_weights_is_not_lost_in_silence(cli: Cli, checkpoints: Path) -> None:
    model = ("--model", checkpoints / "flux-transformer.gguf", "--config", checkpoints / "flux")
    done = cli("build", "flux", *model, "--lora", checkpoints / "flux-lora.safetensors", "--quantize", "int8")
    assert done.returncode == 2, done.stderr
    assert "flux-transformer.gguf cannot take them in" in done.stderr
