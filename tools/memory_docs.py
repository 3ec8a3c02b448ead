"""Write docs/memory.md: what the estimator says against public figures, and what --memory auto chooses.

    python tools/memory_docs.py            writes docs/memory.md
    python tools/memory_docs.py --check    exits 1 if it is not current

Everything in it is computed from the recorded component tables and the rows of diffpipe.memory.knobs, but for what
tools/check_gpu.py measured, where docs/gpu.json is there.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import gpu_docs

from diffpipe.building.request import Request
from diffpipe.cache.store import Store
from diffpipe.catalog import BUILTIN
from diffpipe.catalog.plugins import float32_of_class
from diffpipe.core.build_spec import BuildSpec, Placement
from diffpipe.core.choices import Quantize
from diffpipe.core.components import Stage
from diffpipe.memory import estimate, knobs, ladder
from diffpipe.memory.build_need import BuildNeed, build_need
from diffpipe.memory.estimate import Task, peaks, weight_bytes, weights
from diffpipe.memory.plan import Machine, Plan, gib, option, plan
from diffpipe.memory.recorded import recorded
from diffpipe.memory.sizes import Sizes
from diffpipe.memory.tables import in_float32
from diffpipe.memory.tables import table as read_table
from diffpipe.memory.traced import APART, SLACK, TRACED, WITHIN, of_recorded

FILE = Path(__file__).resolve().parents[1] / "docs/memory.md"
MEMORY = (6, 8, 12, 16, 24, 48, 80)  # GiB of the cards people have

# huggingface.co/blog/diffusers-quantization: FLUX.1-dev, 1024 x 1024, 50 steps, H100: GiB loaded, and at the peak. As
# that post did it: both the transformer and T5 quantized; fp8 by quanto itself; int8 and int4 through the libraries'
# configurations, of which the one for T5 knows no `weights_dtype`, so that it is int8 in both, and leaves T5's `wo`
# (kept in float32 or bfloat16) alone.
PUBLIC: dict[str, tuple[float, float]] = {
    "bfloat16": (31.447, 36.166),
    "fp8": (16.395, 20.898),
    "int8": (17.330, 21.814),
    "int4": (12.254, 16.139),
    "layerwise": (23.682, 28.451),
}
T5_WO, T5_WO_ROWS = 24 * 4096 * 10240, 24 * 4096

# Resident memory of the process (GB, largest of all stages) on a 2-core machine, one thread, torch 2.13 on the CPU: the
# embedded demo model, and a random Flux of 1.12 billion parameters with FLUX.1's VAE.
FLUX_1B = (
    Sizes(
        name="text_encoder",
        class_name="CLIPTextModel",
        kind="encoder",
        parameters=25696,
        linear=16384,
        rows=448,
        cast=16832,
        block=8544,
        outside=8608,
        layer=6080,
        besides=393216,
        stored=51392,
        dtypes=("BF16",),
    ),
    Sizes(
        name="text_encoder_2",
        class_name="T5EncoderModel",
        kind="encoder",
        parameters=10545920,
        linear=10485760,
        rows=18432,
        cast=10485760,
        block=2622720,
        outside=55808,
        layer=524288,
        besides=6291456,
        stored=21091840,
        dtypes=("BF16",),
    ),
    Sizes(
        name="transformer",
        class_name="FluxTransformer2DModel",
        kind="denoiser",
        parameters=1131143232,
        linear=1130561536,
        rows=446464,
        cast=820477952,
        block=151056896,
        outside=23416896,
        layer=25165824,
        step=16,
        live=34816,
        besides=17825792,
        stored=2262286464,
        dtypes=("BF16",),
    ),
    Sizes(
        name="vae",
        class_name="AutoencoderKL",
        kind="decoder",
        parameters=83819683,
        linear=2097152,
        rows=4096,
        cast=83780003,
        block=16524800,
        outside=230051,
        layer=2359296,
        step=8,
        tile=512,
        upcast=True,
        live=768,
        stored=167639366,
        dtypes=("BF16",),
    ),
)
MEASURED = (
    ("demo", 128, "bfloat16", 0.472),
    ("demo", 128, "float32", 0.468),
    ("Flux 1B", 256, "bfloat16", 3.182),
    ("Flux 1B", 512, "bfloat16", 3.731),
    ("Flux 1B", 512, "float32", 7.241),
)


def parts_of(model: str) -> tuple[Sizes, ...]:
    """The recorded components of a model, as they are loaded."""
    known = recorded()[model]
    return in_float32(known.components, float32_of_class(known.pipeline))


def task_of(model: str) -> Task:
    """What a recorded model makes by default."""
    known = recorded()[model]
    return Task(known.pipeline, **known.sizes)


def chosen(model: str, memory: int) -> Plan:
    """The automatic choice on a GPU with `memory` GiB free."""
    return plan(parts_of(model), task_of(model), Machine("accelerator", memory << 30), Placement(memory="auto"))


def estimated(way: str, factors: Mapping[Stage, float] | None = None) -> tuple[float, float]:
    """GiB loaded and at the peak for one of the PUBLIC runs, as that run was set up. `factors`: see `peaks`."""
    parts, task = parts_of("flux-dev"), replace(task_of("flux-dev"), steps=50)
    if way in ("bfloat16", "layerwise"):
        placement = Placement(layerwise_casting=way == "layerwise")
    else:
        placement = Placement(quantize=way, quantize_components=("transformer", "text_encoder_2"))  # type: ignore[arg-type]
    more = 0
    if way in ("int8", "int4"):
        parts = tuple(
            replace(p, linear=p.linear - T5_WO, rows=p.rows - T5_WO_ROWS) if p.name == "text_encoder_2" else p
            for p in parts
        )
        t5 = next(part for part in parts if part.name == "text_encoder_2")
        more = weight_bytes(t5, "int8", task.dtype) - weights(parts, placement, task.dtype)["text_encoder_2"]
    found = peaks(parts, placement, task, factors)
    return (found[0].device + more) / 2**30, (max(peak.device for peak in found) + more) / 2**30


def public_by_trace() -> str:
    """The peaks of the PUBLIC runs with what a trace holds in the place of what is estimated, in words."""
    model = recorded()["flux-dev"]
    factors = {one.stage: 1 / (1 + one.off) for one in of_recorded(model, model.traces[0])}
    peaks_of = {way: estimated(way, factors)[1] for way in PUBLIC}
    return ", ".join(f"{way} {gib:.1f} ({gib / PUBLIC[way][1] - 1:+.1%})" for way, gib in peaks_of.items())


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def public_table() -> str:
    rows = []
    for way, (loaded, peak) in PUBLIC.items():
        mine = estimated(way)
        rows.append((way, f"{loaded:.1f}", f"{mine[0]:.1f}", f"{mine[0] / loaded - 1:+.1%}",
            f"{peak:.1f}", f"{mine[1]:.1f}", f"{mine[1] / peak - 1:+.1%}"))  # fmt: skip
    return table(("FLUX.1-dev", "loaded", "predicted", "", "peak", "predicted", ""), rows)


def traced_table() -> str:
    """What a trace holds besides weights in each stage, and how far the estimate is from it."""
    rows = []
    for model in recorded().values():
        full = model.traces[0]
        stages = {one.stage: f"{gib(one.traced)}, {one.off:+.0%}" for one in of_recorded(model, full)}
        frames = f" x {full.made['frames']}" if full.made["frames"] > 1 else ""
        size = f"{full.made['width']} x {full.made['height']}{frames}"
        rows.append((f"{model.title}, {size}", *(stages.get(stage, "") for stage in TRACED)))
    return table(("model", "encode", "denoise", "decode"), rows)


def apart_text() -> str:
    """The rows of what disagrees, in words."""
    found = [f"- {recorded()[name].title}, {stage}: {reason}." for (name, stage), reason in APART.items()]
    return "\n" + "\n".join(found) + "\n" if found else ""


def measured_table() -> str:
    rows = []
    for model, side, dtype, measured in MEASURED:
        mine = on_the_cpu(model, side, dtype)
        what = f"{model}, {side} x {side}, {dtype}"
        rows.append((what, f"{mine:.2f}", f"{measured:.2f}", f"{mine / measured - 1:+.0%}"))
    return table(("on the CPU", "predicted GB", "measured GB", ""), rows)


def on_the_cpu(model: str, side: int, dtype: str) -> float:
    """The predicted peak of one of the MEASURED runs in GB."""
    with tempfile.TemporaryDirectory() as folder:
        spec = BuildSpec("demo", "text2image", "embedded:demo")
        request = Request(spec, BUILTIN["demo"].types[0], Store(Path(folder)), offline=True, check_classes=False)
        demo = read_table(spec, request.row, request.store, True, lambda: request.pinned).parts
    task = Task("FluxPipeline", side, side, dtype=dtype, device="cpu")
    return max(peak.host for peak in peaks(demo if model == "demo" else FLUX_1B, Placement(), task)) / 1e9


# What builds took, in GB: at the worst moment, of that mapped files, and the most that was the process's own (RssAnon
# and RssFile of /proc, read every 10 ms); FLUX.1-dev of its real size, the others with fewer layers, of random numbers.
XL_UNET = Sizes(
    "unet", "UNet2DConditionModel", "denoiser", parameters=441_048_324, linear=320_946_176, rows=296_704,
    largest=8_388_608, live=4096, step=8,
)  # fmt: skip
BUILDS: tuple[tuple[str, str, int, Quantize, tuple[float, float, float]], ...] = (
    ("SDXL's U-Net, 0.44 B, from float32 to bfloat16", "F32", 4, "int8", (3.086, 1.872, 1.297)),
    ("the same from float16 to bfloat16", "F16", 2, "int8", (2.208, 0.992, 1.316)),
    ("FLUX.1-dev in bfloat16, as its files", "BF16", 2, "fp8", (0.0, 0.0, 0.86)),
)


def needs(held: str, each: int, mode: Quantize) -> BuildNeed:
    """What one of BUILDS is predicted to need."""
    if held == "BF16":
        parts, task = parts_of("flux-dev"), task_of("flux-dev")
    else:
        parts = (replace(XL_UNET, dtypes=(held,), stored=each * (XL_UNET.parameters or 0)),)
        task = Task("StableDiffusionXLPipeline")
    need = build_need(parts, Placement(quantize=mode), task)
    assert need
    return need


def build_table() -> str:
    rows = []
    for what, held, each, mode, measured in BUILDS:
        need = needs(held, each, mode)
        pairs = zip((need.host, need.mapped, need.own), measured, strict=True)
        shown = (f"{mine / 1e9:.2f} ({true:.2f})" if true else f"{mine / 1e9:.2f}" for mine, true in pairs)
        rows.append((f"{what}, {mode}", *shown))
    return table(("predicted (measured)", "at its peak", "of it mapped files", "its own, at most"), rows)


def choice_table() -> str:
    rows = []
    for model, known in recorded().items():
        plain = option(Placement(), parts_of(model), task_of(model), Machine("accelerator", 1 << 60))
        cells = []
        for memory in MEMORY:
            made = chosen(model, memory)
            words = knobs.describe(made.chosen.placement)
            cell = f"{words}: {gib(made.chosen.peak)}, {made.chosen.slow_down:.2f} x"
            cells.append(cell if made.chosen.fits else f"nothing fits; {words} needs {gib(made.needed)}")
        task = task_of(model)
        size = f"{task.width} x {task.height}" + (f" x {task.frames}" if task.frames > 1 else "")
        rows.append((f"{known.title}, {size}", gib(plain.peak), *cells))
    return table(("model", "as it is", *(f"{memory} GiB" for memory in MEMORY)), rows)


def costs_table() -> str:
    rows = (
        (knobs.options({cost.knob: cost.value}), f"{cost.accelerator:.2f}", f"{cost.cpu:.2f}", cost.source)
        for cost in knobs.COSTS
    )
    return table(("switch", "time on a GPU", "on the CPU", "source"), rows)


def combinations_table() -> str:
    rows = (
        (row.title, row.result, knobs.options(row.instead), row.versions)
        for row in knobs.COMBINATIONS
    )  # fmt: skip
    return table(("combination", "what happens", "use instead", "last seen with"), rows)


TEXT = """# Memory

`diffpipe plan PROVIDER` says what a pipeline needs at every stage, before anything is downloaded or loaded, and what
every other way of keeping it would need. `--device-memory 12GiB` plans for a machine that is not here. This page is
written by `tools/memory_docs.py`.

## How good the predictions are

GiB on the device, for 1024 x 1024 on an H100 (huggingface.co/blog/diffusers-quantization), with the same layers
quantized as there:

{public}
Host memory of the process, at its peak:

{measured}
Each built pipeline keeps the peaks of its own runs, and they correct later predictions.

`plan --trace` checks a prediction without a run: it makes the model's own classes from their settings, without weights,
calls the pipeline once with the sizes asked for (encode, one step, decode) on tensors that have a shape and no memory,
and counts the bytes that live in each stage, by storage. Attention counts as fused kernels hold it, its result alone;
where a model multiplies and softmaxes by itself, its matrices count. Prompts are as long as the model takes. What
convolutions take besides is added as in the estimate. Nothing is downloaded but settings, and nothing is computed:
FLUX.1-dev at 1024 x 1024 takes 5 seconds on one core, imports and all. On a device for tests whose memory is
counted, real runs of tiny models hold the traced bytes to the byte (`tests/engine/test_tracing.py`).

What traces hold besides weights in bfloat16, and how far the estimates are from them. Each is within {within:.0%}, or
within {slack} MB, here and at another size with two samples at once, or stands below with the reason:

{traced}{apart}
The public peaks of FLUX.1-dev above follow from the trace too: {trace_public}.

What a row or a class has loaded in float32 (Wan's and Allegro's autoencoders; the last projections of T5 beside
float16) counts as that, whatever `--dtype` says, and so does SDXL's autoencoder while it decodes in float16.

## Host memory: mapped files, and the process's own

Weights that are in their files as they are loaded are mapped: where memory is short the system drops them, and reads
them again. `plan` says how much of the host's memory at each stage is such files (`mapped` in `--json`); the rest is
the process's own, which nothing but swap can hold. Weights in another format than `--dtype` are converted as they are
loaded, and are the process's own. Files that are read once, on their way to a GPU, need not fit into host memory.

A build that quantizes loads the whole pipeline once, on the CPU, and `plan` says what that takes ("to build", `build`
in `--json`). Measured on two cores with torch 2.13, GB:

{build}
Where weights are converted, nearly all of it is theirs: files that are as `--dtype` has them (`--variant fp16
--dtype float16`, where a model has them) need hardly any. A build that needs a quarter more of its own memory than
there is, with swap, is refused with exit code 5 before anything is fetched; what needs more than is free is warned of.
`--force` tries it.

## On a GPU

{gpu}
## What --memory auto chooses

The fastest way that is predicted to fit, with all of the card free and host memory enough: its peak on the device, and
how many times as long a run takes as with everything resident. Offloading has to be faster by a tenth than the fastest
resident way, as what it costs depends on the machine's bus, which a plan does not know.

{choice}
Attention slicing is never chosen: with SDPA attention it saves nothing and slows down. Of a card's free memory
{reserve} MB (the CUDA context) and {fragments:.0%} (the allocator's fragments) are left alone; of host memory
{host} MB.

## What each switch costs

{costs}
Offloading costs what it moves, against the time the denoiser computes on a card of {flops:.0f} TFLOP/s: `model` and
`sequential` copy from pageable memory at {pageable} GB/s, `group` from pinned memory at {pinned:.0f} GB/s while the
block before computes, which takes {streaming:.0%} longer than the slower of the two (vllm-omni#4896, diffusers#11081,
diffusers#11605). What comes to the device, besides a call's own inputs, is to the byte:

| offload | weights that are moved |
| --- | --- |
| `model` | those of every component, once for each chunk of up to 20 items (see below) |
| `group`, streamed or not | of encoders once a prompt, of denoisers once a step, of the decoder once an item |
| `sequential` | the same without buffers, which stay on the device |

## What does not work together

These are refused before anything is loaded.

{combinations}
A test tries each row with the versions that it names, and fails when one works after all. Quantized weights are
offloaded in every way: `sequential` moves them in diffusers' groups of one layer, as accelerate does not know quanto's,
and gives the same. quanto multiplies by plain torch kernels on every device, in one order: activations by the 8-bit
weights, then by the scale (in float16 the scale comes first).

After a call, failed or not, a device holds of the pipeline what it held before it.

A switch that a pipeline cannot take is left out with a notice: VAE slicing and tiling of classes without them,
layerwise casting of {uncastable} ({why}), and quantization of what is quantized already.

## When memory runs out

An item whose run runs out of memory is tried again after one more of these, in this order:

{steps}

Each needs less memory than the one before; offloading leaves every bit of a result as it is. A pipeline that does not
fit when it is loaded steps down, too: by those that move or shrink weights, as the others help only once it is loaded.
A step is left out where the pipeline cannot take it, where the table above refuses it, on the CPU where it offloads,
and, with sequential offload, where it only makes weights smaller: quantizing is thus for the CPU, and for what cannot
be offloaded layer by layer. Stored quantized weights stay as they are. `-v` and `--log-file` say why a step is left
out.

Each step is told on stderr, and kept in the journal, the `warnings` of `--json` and the file's own metadata
(`stepped_down`). Tiling, casting and quantization change results, so a step lasts for that item alone: the next one
starts as the pipeline was built, and no result depends on the items around it. What did not fit when it was loaded is
not loaded so again while there is no more memory than there was: items after it say so, and start with the first step
that fits. Where all items need a step, build with it. `--no-step-down` fails with exit code 5 and names the option to
build with. A `--batch-size` group that ran out of memory is parted first.

`generate` predicts runs of more than a megapixel from the pipeline's settings, without torch. What would need more than
twice the memory there is in all (the host's with its swap, and the GPU's with every step taken) is refused with exit
code 5 before anything is loaded, naming what would fit; `--force` tries it. The factor leaves room for predictions that
are too high, and components of unknown size count as nothing.

## Chunks under model offload

With `--cpu-offload model`, up to 20 items are made side by side: all are encoded, then denoised, then decoded, so that
each component comes to the device once for all of them. Results are the same to the bit; they are told when the
chunk is done. Prompts from a stream, `--fail-fast`, `--step-cache` and pipelines that diffpipe calls in several
stages are made one by one.

## Which device, and what is free

Which devices there are, torch says. Where the machine shows signs of a GPU (nvidia-smi, the nodes of drivers, Apple's
processors), a process of its own asks torch once, and the answer is kept in the cache until the machine is started
again, or torch or a variable like CUDA_VISIBLE_DEVICES changes; `generate` and `doctor` renew it. `plan` and `build`
import no torch for it.

| device | memory in all | free now |
| --- | --- | --- |
| `cuda`, NVIDIA | torch | nvidia-smi, by the card's UUID; else torch in a process of its own |
| `cuda`, AMD (ROCm) | torch | torch in a process of its own |
| `xpu`, Intel | torch | torch in a process of its own, where the driver says it; else name it with `--device-memory` |
| `mps`, Apple | what Metal recommends | that, or what the host has free if that is less |
| `cpu` | psutil, within limits | psutil, within limits |

Limits are those of the control group (versions 1 and 2) of the process and of every group above it, as batch systems,
services and containers set them. A limit on address space (`ulimit -v`) is not one on memory: weights are mapped.

The memory of Apple's and of integrated GPUs is the host's: what a run needs on the device and on the host is added, and
offloading saves nothing. What switches cost and which do not go together was measured and reported on NVIDIA's cards;
plans for others go by the same rows. Runs measure their peaks with CUDA, ROCm and XPU; MPS does not count them. None of
this was tried on AMD's, Intel's or Apple's GPUs.

## What runs measure

Each run notes the peaks of its stages in measured.json beside the pipeline's manifest: those that raised the
high-water mark of the process (VmHWM) or of torch's allocator. `plan` and `--memory auto` take them for every pipeline
of the same model and class.

The log (`-v`, `--log-file`) tells the peak of host memory in the two parts that `plan` has: "peak host memory 1636 MB,
of it mapped files 1159 MB"; for builds that quantize, too. The sum is the kernel's own high-water mark. Which of it was
mapped files (RssFile, RssShmem) is read twenty times a second, and that of the largest sum seen is told. Linux alone
tells them apart: elsewhere the log has the sum, on Windows nothing.
"""


def text() -> str:
    return TEXT.format(
        public=public_table(),
        gpu=gpu_docs.section(),
        measured=measured_table(),
        build=build_table(),
        traced=traced_table(),
        apart=apart_text(),
        within=WITHIN,
        slack=SLACK // 10**6,
        trace_public=public_by_trace(),
        choice=choice_table(),
        costs=costs_table(),
        combinations=combinations_table(),
        reserve=estimate.RESERVE // 10**6,
        fragments=estimate.FRAGMENTS,
        host=estimate.HOST_RESERVE // 10**6,
        flops=knobs.FLOPS / 1e12,
        pageable=knobs.PAGEABLE / 1e9,
        pinned=knobs.PINNED / 1e9,
        streaming=knobs.STREAMING - 1,
        uncastable=", ".join(knobs.UNCASTABLE),
        why=next(iter(knobs.UNCASTABLE.values())),
        steps="\n".join(f"{number}. {name}" for number, (name, _) in enumerate(ladder.STEPS, 1)),
    )


def main() -> None:
    written = text()
    if "--check" in sys.argv[1:]:
        if not FILE.is_file() or FILE.read_text("utf-8") != written:
            sys.exit("not current: docs/memory.md\n  run: python tools/memory_docs.py")
        return
    FILE.write_text(written, "utf-8", newline="\n")


if __name__ == "__main__":
    main()
