"""Placements on tiny pipelines: what offloading, casting and slicing change, and what happens when memory runs out."""

from __future__ import annotations

import functools
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from accelerate.hooks import CpuOffload
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FirstBlockCacheConfig,
    FluxPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from transformers import CLIPTextModel

from diffpipe.building.build import Options, build
from diffpipe.building.request import Request as BuildRequest
from diffpipe.cache import measured
from diffpipe.cache.entry import Entry
from diffpipe.cache.store import Store
from diffpipe.cache.verify import locate
from diffpipe.catalog import BUILTIN
from diffpipe.cli.inspect_file import rows
from diffpipe.core.build_spec import BuildSpec, Placement, Speed
from diffpipe.core.errors import CacheError, DeviceLost, DiffpipeError, Exit, UsageError
from diffpipe.core.request import Artifact, Outcome, Request
from diffpipe.engine.media import read_text
from diffpipe.engine.placement import apply, devices, interleave, meter, speed
from diffpipe.engine.placement.step_down import LoadedPipeline
from diffpipe.engine.running.media_arguments import read_media
from diffpipe.memory.knobs import describe
from diffpipe.results import document, metadata
from diffpipe.runners import local
from diffpipe.runners.settings import RunSettings

SIZE = {"width": 64, "height": 64, "num_inference_steps": 2}
CAST = Placement(layerwise_casting=True)


@pytest.fixture(scope="module", autouse=True)
def _environment_stays() -> Iterator[None]:
    """A run in this process must not take the hub from the tests after it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "stay_offline", lambda: None)
        yield


TILED = {"vae_tiling": True, "vae_slicing": True}


# Placements


def loaded(folder: Path, placed: Placement, dtype: torch.dtype = torch.float32) -> Any:
    cls = FluxPipeline if folder.name == "flux" else StableDiffusionPipeline
    return of_class(cls, folder, placed, dtype)


def of_class(cls: Any, folder: Path, placed: Placement, dtype: torch.dtype) -> Any:
    """A pipeline whose weights lie in memory that torch chose: mapped from a file they start at any address, which
    decides how some processors' kernels round, and offloading copies them."""
    pipe = cls.from_pretrained(folder, dtype=dtype, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    for _, part in apply.modules(pipe):
        for tensor in (*part.parameters(), *part.buffers()):
            tensor.data = tensor.data.clone()
    return apply.apply(pipe, placed, "cpu")


def made_by(pipe: Any, prompt: str = "a cat", **arguments: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return pipe(prompt, generator=generator, output_type="pt", **{**SIZE, **arguments}).images


@pytest.mark.parametrize("name", ["flux", "stable-diffusion"])
@pytest.mark.parametrize(
    "placed",
    [
        Placement(cpu_offload="model"),
        Placement(cpu_offload="group"),
        Placement(vae_slicing=True),
        Placement(cpu_offload="model", vae_slicing=True),
    ],
    ids=["model", "group", "slicing", "both"],
)
def test_where_the_arithmetic_is_the_same_so_is_every_bit(checkpoints: Path, name: str, placed: Placement) -> None:
    arguments: dict[str, Any] = {"num_images_per_prompt": 1}
    plain = made_by(loaded(checkpoints / name, Placement()), **arguments)
    assert torch.equal(made_by(loaded(checkpoints / name, placed), **arguments), plain)


@pytest.mark.parametrize("offload", ["none", "model", "group"])
def test_casting_stores_eight_bits_and_gives_the_same_wherever_it_lies(checkpoints: Path, offload: Any) -> None:
    placed = replace(CAST, cpu_offload=offload)
    pipe = loaded(checkpoints / "flux", placed, torch.bfloat16)
    weights = dict(pipe.transformer.named_parameters())
    assert weights["transformer_blocks.0.attn.to_q.weight"].dtype == torch.float8_e4m3fn
    assert weights["transformer_blocks.0.norm1.linear.weight"].dtype == torch.bfloat16
    made = made_by(pipe)
    assert torch.equal(made, made_by(loaded(checkpoints / "flux", CAST, torch.bfloat16)))
    plain = made_by(loaded(checkpoints / "flux", Placement(), torch.bfloat16))
    assert 0 < (made - plain).abs().max() < 0.1


def test_slices_of_attention_differ_in_rounding_alone(checkpoints: Path) -> None:
    folder = checkpoints / "stable-diffusion"
    plain, sliced = (made_by(loaded(folder, Placement(attention_slicing=on))) for on in (False, True))
    assert torch.allclose(plain, sliced, atol=1e-5)
    assert type(loaded(folder, Placement(attention_slicing=True)).unet.mid_block.attentions[0].transformer_blocks[0]
        .attn1.processor).__name__ == "SlicedAttnProcessor"  # fmt: skip


def test_switches_are_turned_back_and_nothing_else_is(checkpoints: Path) -> None:
    pipe = loaded(checkpoints / "flux", Placement())
    pipe.vae.enable_tiling()  # as some pipelines come
    sliced = Placement(vae_slicing=True)
    apply.switch(pipe, sliced)
    assert (pipe.vae.use_slicing, pipe.vae.use_tiling) == (True, True)
    apply.switch(pipe, Placement(), sliced)
    assert (pipe.vae.use_slicing, pipe.vae.use_tiling) == (False, True)


def test_tiles_are_at_most_512_pixels() -> None:
    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    with torch.device("meta"):
        vae = AutoencoderKL(sample_size=1024, block_out_channels=(32,) * 4, down_block_types=down, up_block_types=up)
    pipe = type("Pipe", (), {"components": {"vae": vae}})()
    apply.switch(pipe, Placement(vae_tiling=True))
    assert (vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size) == (True, 512, 64)


def test_an_attention_backend_is_that_of_one_model_alone(checkpoints: Path) -> None:
    pipe = loaded(checkpoints / "flux", Placement())
    others = _AttentionBackendRegistry.get_active_backend()
    speed.apply(pipe, Speed(attention_backend="native-math"))
    processors = pipe.transformer.attn_processors.values()
    assert {processor._attention_backend.value for processor in processors} == {"_native_math"}
    assert _AttentionBackendRegistry.get_active_backend() == others


# What a family is called with, besides a prompt, a generator and the kind of output.
FAMILIES: dict[str, dict[str, Any]] = {
    "flux": SIZE,
    "sdxl": SIZE,
    "sd3": SIZE,
    "qwen": SIZE,
    "z-image": SIZE,
    "wan22": {"width": 32, "height": 32, "num_frames": 5, "num_inference_steps": 2},
    "ltx2": {"width": 64, "height": 64, "num_frames": 9, "num_inference_steps": 2},
    "audioldm2": {"audio_length_in_s": 0.5, "num_inference_steps": 2},
    "amused": SIZE,
}


def of_family(folder: Path, placed: Placement) -> Any:
    return of_class(DiffusionPipeline, folder, placed, torch.bfloat16)


def array_of(pipe: Any, name: str, seed: int = 3) -> np.ndarray[Any, Any]:
    generator = torch.Generator().manual_seed(seed)
    made = pipe(f"a cat {seed}", generator=generator, output_type="np", **FAMILIES[name])
    key = next(key for key in ("images", "frames", "audios") if hasattr(made, key))
    return np.asarray(made[key], dtype=np.float32)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_offloaded_to_the_bit_and_cast_to_something_near(checkpoints: Path, name: str) -> None:
    plain = array_of(of_family(checkpoints / name, Placement()), name)
    assert np.isfinite(plain).all()
    for offload in ("model", "group"):
        made = array_of(of_family(checkpoints / name, Placement(cpu_offload=offload)), name)  # type: ignore[arg-type]
        assert np.array_equal(made, plain), offload
    pipe = of_family(checkpoints / name, CAST)
    denoisers = [part for _, part in apply.modules(pipe, "denoiser")]
    kept = [{weight.dtype for weight in part.parameters()} for part in denoisers]
    assert [torch.float8_e4m3fn in dtypes for dtypes in kept] == [True] * (2 if name == "wan22" else 1)
    cast = array_of(pipe, name)
    assert np.abs(cast - plain).mean() < 0.1 * np.abs(plain).max()


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "audioldm2"])
def test_calls_side_by_side_make_what_they_make_alone(checkpoints: Path, name: str, moves: list[str]) -> None:
    pipe = of_family(checkpoints / name, Placement(cpu_offload="model"))
    alone = [array_of(pipe, name, seed) for seed in range(3)]
    before = len(arrivals(moves))
    moves.clear()
    works = [functools.partial(array_of, name=name, seed=seed) for seed in range(3)]
    made = interleave.run(pipe, works)
    assert [np.array_equal(one, other) for one, other in zip(made, alone, strict=True)] == [True] * 3
    assert len(arrivals(moves)) * 3 == before


def test_pipelines_with_states_of_their_own_are_not_taken_apart(checkpoints: Path) -> None:
    assert not interleave.possible(of_family(checkpoints / "flux", Placement()))
    assert not interleave.possible(of_family(checkpoints / "audioldm2", Placement(cpu_offload="model")))
    pipe = of_family(checkpoints / "flux", Placement(cpu_offload="model"))
    assert interleave.possible(pipe)
    pipe.transformer.enable_cache(FirstBlockCacheConfig())
    assert not interleave.possible(pipe)


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The classes of components that model offload moved to the device, in order."""
    seen: list[str] = []
    original = CpuOffload.pre_forward

    def counting(self: CpuOffload, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        seen.append(type(module).__name__)
        return original(self, module, *args, **kwargs)

    monkeypatch.setattr(CpuOffload, "pre_forward", counting)
    return seen


def test_model_offload_calls_components_one_after_the_other(checkpoints: Path, moves: list[str]) -> None:
    made_by(loaded(checkpoints / "flux", Placement(cpu_offload="model")), num_inference_steps=3)
    assert moves == ["CLIPTextModel", "T5EncoderModel", *["FluxTransformer2DModel"] * 3, "AutoencoderKL"]


# Runs


@dataclass
class Item:
    """What becomes of the items of a run, and what was told."""

    outcomes: list[Outcome]
    told: list[str] = field(default_factory=list)
    noted: list[measured.Measured] = field(default_factory=list)

    def bytes(self) -> list[bytes]:
        return [Path(outcome.artifacts[0].path).read_bytes() for outcome in self.outcomes if outcome.artifacts]


@dataclass(frozen=True)
class Runner:
    """Runs items of one entry in this process. Item 7 has a prompt of its own, for faults to know it by."""

    entry: Entry
    folder: Path

    def __call__(
        self,
        name: str,
        count: int = 10,
        *,
        step_down: bool = True,
        batch_size: int = 1,
        chunk: int = 1,
        about: metadata.About | None = None,
    ) -> Item:
        manifest = self.entry.manifest()
        flags = manifest.flags_by_name
        requests = (self.request(name, number) for number in range(count))
        item = Item([])
        settings = RunSettings(
            read=lambda request: read_media(flags, request.arguments),
            on_step=lambda *_: None,
            batch_size=batch_size,
            about=about,
            side_by_side=chunk,
            step_down=step_down,
            on_warning=item.told.append,
            record=item.noted.extend,
        )
        item.outcomes.extend(local.run_here(manifest, locate(self.entry, manifest), requests, settings))
        return item

    def request(self, name: str, number: int) -> Request:
        path = self.folder / name / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        prompt = "a dog" if number == 7 else f"a cat {number}"
        return Request(number, number, {"prompt": prompt, **SIZE}, (str(path),), id=f"item-{number}")


@pytest.fixture(scope="module")
def runner(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return runner_of(checkpoints / "stable-diffusion", tmp_path_factory.mktemp("runner"))


def runner_of(model: Path, folder: Path, **placed: Any) -> Runner:
    provider = BUILTIN[model.name]
    spec = BuildSpec(provider.name, provider.types[0].name, str(model), dtype="float32", device="cpu",
        placement=Placement(**placed))  # fmt: skip
    request = BuildRequest(spec, provider.types[0], Store(folder / "home"))
    entry = build(request, spec, Options("tiny"), lambda text: None).entry
    return Runner(entry, folder)


@pytest.fixture(scope="module")
def plain(runner: Runner) -> list[bytes]:
    return runner("plain").bytes()


Stepped = Callable[..., bytes]


@pytest.fixture(scope="module")
def stepped(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Stepped:
    """What item 7 is where the pipeline was built with the switches that a step down turns on."""

    @functools.cache
    def make(**placed: Any) -> bytes:
        run = runner_of(checkpoints / "stable-diffusion", tmp_path_factory.mktemp("stepped"), **placed)("item", 8)
        return run.bytes()[7]

    return make


@dataclass
class Faults:
    """Makes a stage run out of memory while item 7 is made, as long as `when` says so of the pipeline.

    `held`: what the failing calls held, which must be gone when the item is tried again.
    """

    monkeypatch: pytest.MonkeyPatch
    held: list[weakref.ref[torch.Tensor]] = field(default_factory=list)
    count: int = 0

    def at(self, stage: str, when: Callable[[int, Any], bool]) -> None:
        current = threading.local()  # calls of a chunk have threads of their own
        owner, method = {
            "encode": (CLIPTextModel, "forward"),
            "denoise": (UNet2DConditionModel, "forward"),
            "decode": (AutoencoderKL, "_decode"),
        }[stage]
        original = getattr(owner, method)
        call = StableDiffusionPipeline.__call__

        @functools.wraps(call)
        def calling(pipe: Any, *args: Any, **kwargs: Any) -> Any:
            current.dog, current.pipe = "a dog" in str(kwargs["prompt"]), pipe
            return call(pipe, *args, **kwargs)

        def failing(module: Any, *args: Any, **kwargs: Any) -> Any:
            if current.dog:
                assert not any(reference() is not None for reference in self.held), "memory was not given back"
                if when(self.count, current.pipe):
                    self.count += 1
                    tensor = torch.empty(1000)
                    self.held.append(weakref.ref(tensor))
                    raise torch.OutOfMemoryError("CUDA out of memory")
            return original(module, *args, **kwargs)

        self.monkeypatch.setattr(owner, method, failing)
        self.monkeypatch.setattr(StableDiffusionPipeline, "__call__", calling)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    return Faults(monkeypatch)


@pytest.mark.parametrize("stage", ["encode", "denoise", "decode"])
def test_an_item_that_ran_out_of_memory_once_is_made_with_less(
    runner: Runner, plain: list[bytes], stepped: Stepped, faults: Faults, stage: str
) -> None:
    faults.at(stage, lambda count, pipe: count == 0)
    run = runner(f"once-{stage}")
    assert [outcome.error for outcome in run.outcomes] == [None] * 10
    said = "memory ran out with the pipeline as it was built: trying again with VAE tiling, VAE slicing"
    assert run.told == [f"item-7: {said}"]
    assert [outcome.warnings for outcome in run.outcomes] == [()] * 7 + [(said,)] + [()] * 2
    made = run.bytes()
    assert made[:7] + made[8:] == plain[:7] + plain[8:]
    assert made[7] == stepped(**TILED) != plain[7]
    assert faults.count == 1


def test_the_file_of_an_item_that_stepped_down_says_so_and_no_other(runner: Runner, faults: Faults) -> None:
    faults.at("decode", lambda count, pipe: count == 0)
    run = runner("about", count=9, about=metadata.About("tiny"))
    assert [outcome.error for outcome in run.outcomes] == [None] * 9
    paths = [Path(outcome.artifacts[0].path) for outcome in run.outcomes]
    documents = [document.parsed(read_text(path)["diffpipe"]) for path in paths]
    assert [one.json.get("stepped_down") for one in documents] == [None] * 7 + [TILED, None]
    assert {one.recipe.config.placement for one in documents} == {Placement()}
    shown = [row for row in rows(documents[7]) if row[0].startswith("stepped down")]
    assert shown == [("stepped down to vae_slicing", True), ("stepped down to vae_tiling", True)]


@pytest.mark.parametrize("stage", ["encode", "denoise", "decode"])
def test_steps_are_taken_in_order_until_one_is_enough(
    runner: Runner, plain: list[bytes], stepped: Stepped, faults: Faults, stage: str
) -> None:
    def until_cast(count: int, pipe: Any) -> bool:
        return pipe.unet.conv_in.weight.dtype != torch.float8_e4m3fn

    faults.at(stage, until_cast)
    run = runner(f"steps-{stage}")
    steps = ["VAE tiling, VAE slicing", "VAE tiling, VAE slicing, attention slicing",
        "layerwise casting, VAE tiling, VAE slicing, attention slicing"]  # fmt: skip
    before = ["the pipeline as it was built", *steps]
    assert run.told == [
        f"item-7: memory ran out with {was}: trying again with {now}" for was, now in zip(before, steps, strict=False)
    ]
    made = run.bytes()
    assert made[:7] + made[8:] == plain[:7] + plain[8:]
    assert made[7] == stepped(**TILED, attention_slicing=True, layerwise_casting=True) != plain[7]
    assert len(run.outcomes[7].warnings) == faults.count == 3


def test_without_an_end_of_faults_the_item_is_reported_and_the_others_are_made(
    runner: Runner, plain: list[bytes], faults: Faults
) -> None:
    faults.at("denoise", lambda count, pipe: True)
    run = runner("never")
    failed = run.outcomes[7].error
    assert isinstance(failed, DiffpipeError)
    assert failed.exit_code == Exit.OUT_OF_MEMORY
    assert failed.message == "memory ran out, in the end with int4, VAE tiling, VAE slicing, attention slicing"
    assert run.bytes() == plain[:7] + plain[8:]
    assert faults.count == 6  # as built, and five steps on the CPU


def test_no_step_is_taken_where_none_may_be(runner: Runner, plain: list[bytes], faults: Faults) -> None:
    faults.at("decode", lambda count, pipe: True)
    run = runner("no-steps", step_down=False)
    failed = run.outcomes[7].error
    assert isinstance(failed, DiffpipeError)
    assert (failed.exit_code, failed.message) == (Exit.OUT_OF_MEMORY, "memory ran out")
    assert failed.hint == "build with --vae-slicing and --vae-tiling, or make it smaller"
    assert run.told == []
    assert run.bytes() == plain[:7] + plain[8:]


def test_a_group_is_parted_before_anything_steps_down(runner: Runner, plain: list[bytes], faults: Faults) -> None:
    faults.at("decode", lambda count, pipe: count == 0)
    run = runner("parted", batch_size=10)
    assert (run.told, run.bytes()) == ([], plain)


def test_a_failure_of_another_kind_is_none_of_memorys(
    runner: Runner, plain: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = AutoencoderKL._decode
    seen: list[int] = []

    def failing(module: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        if len(seen) == 2:
            raise ValueError("broken")
        return original(module, *args, **kwargs)

    monkeypatch.setattr(AutoencoderKL, "_decode", failing)
    run = runner("broken", count=3)
    assert [bool(outcome.error) for outcome in run.outcomes] == [False, True, False]
    assert (run.told, run.bytes()) == ([], [plain[0], plain[2]])


@pytest.mark.parametrize("placed", [{"cpu_offload": "model"}, {"cpu_offload": "group"}, {"vae_slicing": True}])
def test_an_entry_runs_as_it_was_placed(
    checkpoints: Path, tmp_path: Path, plain: list[bytes], placed: dict[str, Any], moves: list[str]
) -> None:
    run = runner_of(checkpoints / "stable-diffusion", tmp_path, **placed)("placed", count=2)
    assert run.bytes() == plain[:2]
    assert bool(moves) == (placed == {"cpu_offload": "model"})


def test_an_item_that_failed_leaves_nothing_to_the_next_under_offload(
    checkpoints: Path, tmp_path: Path, plain: list[bytes], faults: Faults, moves: list[str]
) -> None:
    faults.at("denoise", lambda count, pipe: True)
    run = runner_of(checkpoints / "stable-diffusion", tmp_path, cpu_offload="model")("offload", 9, step_down=False)
    assert run.bytes() == [*plain[:7], plain[8]]


def test_what_a_device_failed_of_is_told_where_nothing_can_be_taken_back_from_it() -> None:
    def gone() -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    def work(pipe: Any, placed: Placement) -> None:
        raise DeviceLost("an illegal memory access")

    dead = SimpleNamespace(components={}, maybe_free_model_hooks=gone)
    pipeline = LoadedPipeline(lambda placed, look: cast(Any, dead), Placement(), "cpu", stored=False)
    with pytest.raises(DeviceLost, match="an illegal memory access"):
        pipeline.make(work, lambda line: None)


@pytest.mark.parametrize("placed", [Placement(layerwise_casting=True), Placement(quantize="fp8")])
def test_a_device_without_float8_is_refused_what_needs_it(monkeypatch: pytest.MonkeyPatch, placed: Placement) -> None:
    apply.check(StableDiffusionPipeline, placed, "cpu")
    apply.check(StableDiffusionPipeline, Placement(quantize="int8"), "mps")
    monkeypatch.setattr(devices, "has_float8", lambda device: device != "mps")
    with pytest.raises(UsageError, match=r"--(layerwise-casting|quantize fp8): mps has no float8"):
        apply.check(StableDiffusionPipeline, placed, "mps")


def test_a_step_that_cannot_be_loaded_for_another_reason_is_left_out_and_the_next_is_tried() -> None:
    """As casting on Apple's GPUs, which have no float8, where nothing asked them before."""
    pipe = StableDiffusionPipeline.__new__(StableDiffusionPipeline)
    loads: list[str] = []

    def load(placed: Placement, look: Callable[[Any], None]) -> Any:
        loads.append(describe(placed))
        look(pipe)
        if placed.cpu_offload == "group" and not placed.layerwise_casting:
            raise CacheError("the pipeline could not be loaded: no such format", "see --traceback")
        return pipe

    def work(_: Any, placed: Placement) -> str:
        if placed.cpu_offload != "sequential":
            raise DiffpipeError("memory ran out", "", Exit.OUT_OF_MEMORY)
        return "made"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StableDiffusionPipeline, "components", {})
        patch.setattr(StableDiffusionPipeline, "maybe_free_model_hooks", lambda self: None)
        patch.setattr(devices, "_backend", lambda device: None)
        patch.setattr(devices, "has_float8", lambda device: True)
        pipeline = LoadedPipeline(load, Placement(), "cuda", stored=True)
        said: list[str] = []
        assert pipeline.make(work, said.append) == "made"
    assert loads == ["as it is", "model offload", "group offload", "sequential offload"]
    assert said[-1] == (
        "group offload cannot be had here (the pipeline could not be loaded: no such format): "
        "trying again with sequential offload"
    )


# Chunks


@pytest.fixture(scope="module")
def offloaded(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return runner_of(checkpoints / "stable-diffusion", tmp_path_factory.mktemp("offloaded"), cpu_offload="model")


def arrivals(moves: list[str]) -> list[str]:
    """The components in the order in which they came to the device: not those that were there already."""
    return [name for name, _ in itertools.groupby(moves)]


def test_a_chunk_brings_each_component_once(offloaded: Runner, plain: list[bytes], moves: list[str]) -> None:
    order = ["CLIPTextModel", "UNet2DConditionModel", "AutoencoderKL"]
    assert offloaded("one-by-one", 3).bytes() == plain[:3]
    assert arrivals(moves) == order * 3
    moves.clear()
    assert offloaded("chunk", chunk=10).bytes() == plain
    assert arrivals(moves) == order
    moves.clear()
    assert offloaded("chunks", 10, chunk=4).bytes() == plain
    assert arrivals(moves) == order * 3


def test_an_item_that_fails_costs_its_chunk_nothing(
    offloaded: Runner, plain: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, seen = UNet2DConditionModel.forward, itertools.count(1)

    def failing(*args: Any, **kwargs: Any) -> Any:
        if next(seen) == 4:  # the second step of the second item
            raise ValueError("broken")
        return original(*args, **kwargs)

    monkeypatch.setattr(UNet2DConditionModel, "forward", failing)
    run = offloaded("broken-chunk", chunk=10)
    assert [number for number, outcome in enumerate(run.outcomes) if outcome.error] == [1]
    assert run.bytes() == [plain[0], *plain[2:10]]


def test_what_runs_out_of_memory_in_a_chunk_steps_down_by_itself(
    offloaded: Runner, plain: list[bytes], stepped: Stepped, faults: Faults
) -> None:
    tiled = stepped(**TILED)
    faults.at("decode", lambda count, pipe: count < 2)
    run = offloaded("memory-chunk", chunk=10)
    made = run.bytes()
    assert made[:7] + made[8:] == plain[:7] + plain[8:]
    assert made[7] == tiled
    assert len(run.told) == 1


def test_an_interrupted_chunk_ends_its_threads(offloaded: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    before = threading.active_count()
    monkeypatch.setattr(AutoencoderKL, "_decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        offloaded("interrupted", 5, chunk=5)
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


# What runs measured


def test_runs_note_the_peaks_of_their_stages(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    real, readings = meter.marks, itertools.count()
    # This process has held more before: let its mark rise with each reading.
    monkeypatch.setattr(meter, "marks", lambda device: meter.Marks(None, (real(device).host or 0) + next(readings)))
    noted = runner("noted", count=2).noted
    stages = ("encode", "denoise", "decode") * 2
    assert [record.case for record in noted] == [
        measured.Case(stage, 64, 64, 1, 1, "float32", "cpu", Placement())  # type: ignore[arg-type]
        for stage in stages
    ]
    for record in noted:
        assert record.device is None
        assert 100_000_000 < (record.host or 0) < 20_000_000_000


def test_a_stage_is_known_by_the_mark_it_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([(10, 100), (10, 150), (30, 150), (30, 160), (20, 160)])
    monkeypatch.setattr(meter, "marks", lambda device: meter.Marks(*next(readings)))
    watch = meter.Meter("cuda:0")
    watch.start()
    for stage in ("encode", "denoise", "denoise", "decode"):
        watch.enter(stage)
    watch.enter("denoise")  # a second pass
    assert watch.stop() == {"encode": (None, 150), "denoise": (30, None), "decode": (None, 160)}


def test_records_are_kept_by_size_and_placement(tmp_path: Path) -> None:
    def record(width: int, device: int | None, host: int | None) -> measured.Measured:
        artifact = Artifact("x.png", 1, 0, "image", 1.0, {"width": width, "height": 64})
        (made,) = measured.records(
            {"decode": (device, host)}, "bfloat16", "cuda:0", Placement(memory="auto"), [[artifact]]
        )
        return made

    measured.add(tmp_path, [record(64, 5, None), record(128, 9, 7)])
    measured.add(tmp_path, [record(64, 4, 3)])
    assert [(r.case.width, r.device, r.host) for r in measured.read(tmp_path)] == [(128, 9, 7), (64, 5, 3)]
    assert measured.read(tmp_path)[0].case.placement == Placement()
    before = (tmp_path / "measured.json").stat().st_mtime_ns
    measured.add(tmp_path, [record(64, 5, 1)])
    assert (tmp_path / "measured.json").stat().st_mtime_ns == before
    measured.add(tmp_path, [record(8 * width, 1, 1) for width in range(100, 200)])
    assert len(measured.read(tmp_path)) == measured.MOST
    (tmp_path / "measured.json").write_text('{"records": [1, {"stage": "x"}')
    assert measured.read(tmp_path) == []


def test_sounds_have_no_size_to_measure_by() -> None:
    artifact = Artifact("x.wav", 1, 0, "audio", 1.0, {"duration": 1.0})
    assert measured.records({"decode": (1, 1)}, "bfloat16", "cpu", Placement(), [[artifact]]) == []
