"""What tools/check_gpu.py runs, as rows: which families, switches, formats and limits, in the order of their worth.

Imports nothing heavy. A row is one `diffpipe build` and one `diffpipe generate`. What it must make follows from it:
what the CPU makes with the same switches, within rounding; and where only the place of weights differs, what the device
makes with all of them on it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import cases_image  # noqa: E402
import cases_video  # noqa: E402

CASES = {case.name: case for case in (*cases_image.CASES, *cases_video.CASES)}
SEED = "7"
LARGE = "large"  # the Flux of a billion parameters that tools/make_large_flux.py writes
DEMO = "demo"
FLUX, SD, WAN = "flux-text2image", "stable-diffusion-text2image", "wan-text2video"
# The families, by what is most unlike the ones before.
FAMILIES = (
    FLUX, SD, WAN, DEMO, "qwen-text2image", "stable-diffusion-xl", "stable-diffusion-sd3", "z-image-text2image",
    "ltx-text2video", "audioldm-text2audio", "ltx-ltx2", "flux2-klein", "audioldm-audioldm2", "amused-text2image",
    "wuerstchen-text2image", "wan-text2video-22", "flux-inpaint", "stable-diffusion-controlnet",
)  # fmt: skip
# Text to generate with, where no row of the tests' cases says it.
PANDA = ("--prompt", "a panda on a pink background", "--num-inference-steps", "4")
LARGE_FLAGS = ("--prompt", "a lighthouse at dusk", "--num-inference-steps", "4", "--width", "1024", "--height", "1024")

OFFLOADS = (("--cpu-offload", "model"), ("--cpu-offload", "group"), ("--cpu-offload", "sequential"))
SWITCHES = (
    ("--layerwise-casting",), ("--vae-tiling",), ("--vae-slicing",), ("--attention-slicing",),
    ("--layerwise-casting", "--cpu-offload", "model"), ("--layerwise-casting", "--cpu-offload", "group"),
)  # fmt: skip
QUANTIZERS = (
    ("--quantize", "int8"), ("--quantize", "fp8"), ("--quantize", "int4"),
    ("--quantize", "int8", "--quantize-backend", "torchao"), ("--quantize", "fp8", "--quantize-backend", "torchao"),
)  # fmt: skip
LOOSE = ("--compile", "--attention-backend")
ATTENTION = (
    "native", "native-math", "native-efficient", "native-flash", "native-cudnn", "flex", "flash", "flash-3", "sage",
    "xformers",
)  # fmt: skip
STEP_CACHES = ("taylorseer", "pyramid")  # first-block decides by a threshold, which rounding may cross
# How much of the peak of a run with everything resident the device has for one that must step down.
ROOMS = (0.9, 0.6)


@dataclass(frozen=True)
class Row:
    """A build and a generate. `case`: a name of CASES, or LARGE or DEMO. `build`: switches, as `diffpipe build` takes
    them.

    `cpu`: it runs on the CPU, as what others are compared with. `room`: the share of the peak of the same without it
    that the device has left; 0 for all. `fresh`: in a process of its own. `loose`: of its switches, LOOSE change what
    rounds and nothing else, and the CPU may not have them: what it is compared with goes without.
    """

    group: str
    case: str
    dtype: str = "bfloat16"
    build: tuple[str, ...] = ()
    cpu: bool = False
    room: float = 0.0
    fresh: bool = False
    loose: bool = False

    @property
    def name(self) -> str:
        """Unique among the rows of a run."""
        words = [self.case, self.dtype, *self.build]
        words += ["on the CPU"] * self.cpu + [f"in {self.room:.0%} of its peak"] * bool(self.room)
        return " ".join([*words, *["again in a fresh process"] * self.fresh])

    @property
    def offload(self) -> str:
        """How its weights are kept away from the device, "" if they are not."""
        return self.build[self.build.index("--cpu-offload") + 1] if "--cpu-offload" in self.build else ""

    def without(self, *options: str) -> tuple[str, ...]:
        """Its switches but these."""
        starts = [at for at, word in enumerate(self.build) if word.startswith("--")]
        ends = [*starts[1:], len(self.build)]
        kept = (self.build[at:end] for at, end in zip(starts, ends, strict=False) if self.build[at] not in options)
        return tuple(word for words in kept for word in words)

    def on_cpu(self) -> Row:
        """The run on the CPU that makes the same, but for rounding."""
        left_out = ("--cpu-offload", *LOOSE) if self.loose else ("--cpu-offload",)
        return Row("reference", self.case, self.dtype, self.without(*left_out), cpu=True)

    def plain(self, dtype: str) -> Row:
        """Its model on the CPU without any switch: in two formats they say what rounding does to its results."""
        return Row("reference", self.case, dtype, cpu=True)

    def resident(self) -> Row | None:
        """The run on the device that makes the same bytes; None where there is none."""
        same = (self.offload and self.case != LARGE) or self.fresh
        build = self.without("--cpu-offload")
        return Row(self.group, self.case, self.dtype, build, loose=self.loose) if same else None

    def command(self, checkpoints: Path, inputs: Path) -> tuple[list[str], list[str]]:
        """The words of `diffpipe build` after it, but name and device; and those of `diffpipe generate NAME`."""
        if self.case == DEMO:
            return ["demo", "--dtype", self.dtype, *self.build], [*PANDA, "--seed", SEED]
        if self.case == LARGE:
            model = ["--model", str(checkpoints / LARGE)]
            return ["flux", *model, "--dtype", self.dtype, *self.build], [*LARGE_FLAGS, "--seed", SEED]
        case = CASES[self.case]

        def filled(words: Sequence[str]) -> list[str]:
            return [word.format(checkpoints=checkpoints, inputs=inputs) for word in words]

        build = [case.provider, "--type", case.type, "--model", str(checkpoints / case.checkpoint), *filled(case.build)]
        return [*build, "--dtype", self.dtype, *self.build], [*filled(case.flags), "--seed", SEED]

    @property
    def ending(self) -> str:
        """Of its file: lossless ones, frames as pictures."""
        kind = CASES[self.case].kind if self.case in CASES else "image"
        return {"image": ".png", "video": ".frames", "audio": ".wav"}[kind]

    def needs(self) -> set[str]:
        """The folders of tiny checkpoints that it loads."""
        if self.case in (LARGE, DEMO):
            return {LARGE} if self.case == LARGE else set()
        build = (word.partition("}/")[2] for word in CASES[self.case].build if "}/" in word)
        return {CASES[self.case].checkpoint, *build}


def rows(*, quick: bool, large: bool) -> list[Row]:
    """Every row but the references, the most worthwhile first. `large`: with the model of a billion parameters."""
    return list(dict.fromkeys(_quick() if quick else _all(large)))


def _quick() -> Iterator[Row]:
    """One of each kind, on the smallest models."""
    for case in (FLUX, SD):
        yield Row("families", case, "float32")
    yield Row("families", FLUX)
    yield Row("placements", FLUX, build=("--cpu-offload", "model"))
    yield Row("placements", FLUX, build=("--cpu-offload", "group"))
    yield Row("quantizers", FLUX, build=("--quantize", "int8"))
    yield Row("memory", SD, "float32", room=0.9)
    yield Row("attention", FLUX, build=("--attention-backend", "native-flash"), loose=True)
    yield Row("determinism", FLUX, fresh=True)


def _all(large: bool) -> Iterator[Row]:
    for case in FAMILIES:
        yield from (Row("families", case, dtype) for dtype in ("float32", "bfloat16"))
    if large:
        yield from (Row("speed", LARGE, build=build) for build in ((), *OFFLOADS, SWITCHES[0], *QUANTIZERS))
    for room in ROOMS:
        yield Row("memory", LARGE if large else SD, room=room)
    for case in (FLUX, SD, WAN):
        yield from (Row("placements", case, build=build) for build in (*OFFLOADS, *SWITCHES))
    for quantizer in QUANTIZERS:
        yield from (Row("quantizers", FLUX, build=(*quantizer, *offload)) for offload in ((), *OFFLOADS))
    yield from (Row("attention", FLUX, build=("--attention-backend", name), loose=True) for name in ATTENTION)
    for case, build in ((FLUX, ()), (SD, ()), (WAN, ()), (FLUX, OFFLOADS[1]), (FLUX, QUANTIZERS[0])):
        yield Row("determinism", case, build=build, fresh=True)
    yield Row("compiled", FLUX, build=("--compile",), loose=True)
    yield Row("compiled", FLUX, build=("--compile", "--cpu-offload", "model"), loose=True)
    yield Row("compiled", FLUX, build=("--compile", "--quantize", "int8"), loose=True)
    if large:
        yield Row("speed", LARGE, build=("--compile",), loose=True)
    yield from (Row("step caches", FLUX, build=("--step-cache", name)) for name in STEP_CACHES)
    for case in FAMILIES[3:]:
        yield from (Row("placements", case, build=build) for build in OFFLOADS)
    yield from (Row("families", case, "float16") for case in FAMILIES)
    for case in (SD, WAN, "qwen-text2image"):
        yield from (Row("quantizers", case, build=build) for build in QUANTIZERS)


def with_references(wanted: Sequence[Row]) -> list[Row]:
    """The rows with what they are compared with before them, each once."""
    found: dict[Row, None] = {}
    for row in wanted:
        before = () if row.case == LARGE else (row.plain("float32"), row.plain(row.dtype), row.on_cpu(), row.resident())
        within = replace(row, room=0.0) if row.room else None
        for one in (*before, within, row):
            if one is not None and all(replace(one, group=other.group) != other for other in found):
                found[one] = None
    return list(found)
