"""The rows of the matrix (see matrix.py): families x placements x ways of generating, and what each must come to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from . import notes

STEPS = ("--num-inference-steps", "2")
SMALL = ("--width", "32", "--height", "32")
SHORT = ("--max-sequence-length", "32")


@dataclass(frozen=True)
class Family:
    """`type` and `checkpoint`: of the provider's types, and of the tiny checkpoints; `lora`: a file of those, or "".

    `flags` are those of `generate`, `format` the one of its files.
    """

    name: str
    provider: str
    type: str
    checkpoint: str
    flags: tuple[str, ...]
    format: str = "png"
    lora: str = ""


@dataclass(frozen=True)
class Placed:
    """A way of keeping a pipeline in memory. `setting`: which of SETTINGS it is a way of keeping, whose result on the
    CPU it must make; `options` are further ones of `build`. `streams`: whether the device has any. `families`: names,
    () for all. `refused`: what diffpipe says of it, "" for what it takes.
    """

    name: str
    setting: str
    options: tuple[str, ...] = ()
    streams: bool = True
    families: tuple[str, ...] = ()
    refused: str = ""


FAMILIES = (
    Family("flux", "flux", "text2image", "flux", (*STEPS, *SMALL, *SHORT), lora="flux-lora.safetensors"),
    Family("sd", "stable-diffusion", "text2image", "stable-diffusion", (*STEPS, *SMALL), lora="sd-lora.safetensors"),
    Family("sdxl", "stable-diffusion", "xl", "sdxl", (*STEPS, *SMALL)),
    Family("sd3", "stable-diffusion", "sd3", "sd3", (*STEPS, *SMALL, *SHORT)),
    Family("qwen", "qwen", "text2image", "qwen", (*STEPS, *SMALL, *SHORT)),
    Family("z-image", "z-image", "text2image", "z-image", (*STEPS, *SMALL, *SHORT)),
    Family("flux2", "flux2", "klein", "flux2-klein", (*STEPS, *SMALL, *SHORT)),
    Family("wan", "wan", "text2video", "wan", (*STEPS, *SMALL, *SHORT, "--num-frames", "5"), "frames"),
    Family("ltx", "ltx", "text2video", "ltx", (*STEPS, *SMALL, *SHORT, "--num-frames", "9"), "frames"),
    Family("amused", "amused", "text2image", "amused", (*STEPS, *SMALL)),
    Family("audioldm", "audioldm", "text2audio", "audioldm", (*STEPS, "--audio-length-in-s", "0.1"), "wav"),
    Family("wuerstchen", "wuerstchen", "text2image", "wuerstchen",
        (*STEPS, "--prior-num-inference-steps", "2", "--width", "128", "--height", "128")),
)  # fmt: skip

# What changes results, and so has a run on the CPU to compare with.
SETTINGS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "casting": ("--layerwise-casting",),
    "attention": ("--attention-slicing",),
    "vae": ("--vae-slicing", "--vae-tiling"),
    "int8": ("--quantize", "int8"),
    "fp8": ("--quantize", "fp8"),
    "int4": ("--quantize", "int4"),
    "torchao": ("--quantize", "int8", "--quantize-backend", "torchao"),
    "lora": (),  # and the family's
}
MODEL, GROUP, SEQUENTIAL = (("--cpu-offload", way) for way in ("model", "group", "sequential"))
FEW = ("flux", "sd", "qwen", "wan")  # one of each kind: for what does not depend on the family
PLACEMENTS = (
    Placed("resident", "plain"),
    Placed("model", "plain", MODEL),
    Placed("sequential", "plain", SEQUENTIAL),
    Placed("group", "plain", GROUP),
    Placed("group, no streams", "plain", GROUP, streams=False),
    Placed("casting", "casting"),
    Placed("casting + model", "casting", MODEL),
    Placed("casting + group", "casting", GROUP),
    Placed("attention slicing", "attention"),
    Placed("VAE slicing, tiling", "vae"),
    Placed("VAE slicing, tiling + model", "vae", MODEL, families=FEW),
    Placed("int8", "int8"),
    Placed("int8 + model", "int8", MODEL),
    Placed("int8 + group", "int8", GROUP),
    Placed("int8 + group, no streams", "int8", GROUP, streams=False, families=FEW),
    Placed("int8 + sequential", "int8", SEQUENTIAL),
    Placed("fp8", "fp8"),
    Placed("fp8 + model", "fp8", MODEL),
    Placed("fp8 + group", "fp8", GROUP),
    Placed("int4", "int4"),
    Placed("int4 + model", "int4", MODEL),
    Placed("int4 + group", "int4", GROUP),
    Placed("torchao int8", "torchao"),
    Placed("torchao int8 + model", "torchao", MODEL),
    Placed("torchao int8 + group", "torchao", GROUP),
    Placed("LoRA", "lora"),
    Placed("LoRA + model", "lora", MODEL),
    Placed("LoRA + sequential", "lora", SEQUENTIAL),
    Placed("LoRA + group", "lora", GROUP),
    # quanto's weights have no place for layers in 8 bits, and torchao's 4 bits are for some GPUs alone.
    Placed("int8 + casting", "int8", ("--layerwise-casting",), families=FEW,
        refused="cannot be cast"),
    Placed("torchao int4", "plain", ("--quantize", "int4", "--quantize-backend", "torchao"), families=FEW,
        refused="torchao int4"),
)  # fmt: skip


@dataclass(frozen=True)
class Way:
    """A way of generating: options of `generate`. `alone`: the results are those without these options, so the CPU's
    run has none. `of`: which PLACEMENTS it is for, and `families`, () for all. `ends`: with which exit code, having
    made files of these numbers, or of all.
    """

    name: str
    options: tuple[str, ...]
    of: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    alone: bool = False
    ends: int = 0
    made: tuple[int, ...] | None = None


TWO = Way("", ("--prompt", "a cat and a frog", "--count", "2"))
BATCH = Way("batch of 2", (*TWO.options, "--batch-size", "2"), ("resident",))
PROMPTS = Way("3 prompts", ("--prompts-from", "prompts.txt"), ("model",))
# The second item fails, and the third steps down; or the second is interrupted.
FAULTS = Way("faults", ("--prompts-from", "faults.txt"), ("resident",), ends=7, made=(1, 4))
STOPPED = Way("stopped", ("--prompts-from", "stopped.txt"), ("resident",), ends=130, made=(1,))
WAYS = (
    BATCH,
    replace(BATCH, of=("model",), families=FEW),
    PROMPTS,
    replace(PROMPTS, of=("int8 + model",), families=FEW),
    Way("previews", (*TWO.options, "--preview", "preview.png", "--preview-every", "1"), ("group",), FEW, alone=True),
    FAULTS,
    replace(FAULTS, of=("model", "group"), families=FEW),
    STOPPED,
    replace(STOPPED, of=("group",), families=FEW),
    replace(STOPPED, of=("model",), families=FEW, made=()),  # in a chunk, with its neighbour
)
FILES = {
    "prompts.txt": ("a fox", "a cat and a frog", "a dog"),
    "faults.txt": ("a fox", notes.FAILS, notes.RUNS_OUT, "a dog"),
    "stopped.txt": ("a fox", notes.STOPPED),
}


@dataclass(frozen=True)
class Row:
    """A pipeline of a family in a placement, and a way of generating with it."""

    family: Family
    placed: Placed
    way: Way

    @property
    def name(self) -> str:
        return ", ".join(word for word in (f"{self.family.name}: {self.placed.name}", self.way.name) if word)

    @property
    def expected(self) -> str:
        """What it must come to: equal, bounded or refused."""
        return "refused" if self.placed.refused else "bounded" if self.bound else "equal"

    @property
    def bound(self) -> float:
        """How far its results may be from the CPU's, as a share of all that a value can be."""
        return BOUNDS.get((self.family.name, self.placed.name), 0)


# Rows whose results are not the CPU's to the bit, with the reason.
BOUNDS: dict[tuple[str, str], float] = {}


def every_row() -> Iterator[Row]:
    for family in FAMILIES:
        for placed in PLACEMENTS:
            if (placed.setting == "lora" and not family.lora) or not _of(placed, family):
                continue
            ways = (way for way in WAYS if placed.name in way.of and _of(way, family))
            for way in (TWO, *ways):
                yield Row(family, placed, way)


def _of(row: Placed | Way, family: Family) -> bool:
    return not row.families or family.name in row.families
