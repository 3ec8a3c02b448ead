"""Every format of adapter files, for every family: what is applied is what the format's formula says.

The files, the layers' names and the expected weights are of tests/adapter_corpus, which asks no library how a file is
read. `docs/adapters.md` has the table; tools/adapter_table.py writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

from adapter_corpus.rows import ROWS
from adapter_corpus.trial import Row, Tiny, trial

from diffpipe.engine.loading import library_logs

# Rows that are not right yet -> why. A row that is right fails here until its line goes.
NOT_YET: dict[str, str] = {
    "Stable Diffusion 1: diffusers, attention processors, UNet alone": "differences and norms",
    "Stable Diffusion 1: full differences": "differences and norms",
    "Stable Diffusion 1: norms": "differences and norms",
    "SDXL: full differences": "differences and norms",
    "Flux: BFL Control, with biases and norms": "differences and norms",
    "Flux: LoRA with diff_b": "differences and norms",
    "Flux: full differences": "differences and norms",
    "Wan 2.1: ComfyUI, with differences": "differences and norms",
    "Wan 2.1 image to video: ComfyUI, with differences": "differences and norms",
    "Stable Diffusion 1: kohya": "names or alphas",
    "Stable Diffusion 1: LoCon": "names or alphas",
    "Stable Diffusion 1: kohya, LDM names": "names or alphas",
    "SDXL: kohya": "names or alphas",
    "SDXL: LoCon": "names or alphas",
    "SDXL: OneTrainer": "names or alphas",
    "Stable Diffusion 3: kohya": "names or alphas",
    "Stable Diffusion 3: OneTrainer": "names or alphas",
    "Stable Diffusion 3: ComfyUI": "names or alphas",
    "Flux: PEFT, with the adapter's name": "names or alphas",
    "Flux: PEFT, base_model.model": "names or alphas",
    "Flux: kohya": "names or alphas",
    "Flux: kohya, all layers": "names or alphas",
    "Flux: OneTrainer": "names or alphas",
    "Flux: BFL": "names or alphas",
    "Flux: BFL, all layers": "names or alphas",
    "Flux: ComfyUI": "names or alphas",
    "Flux: ComfyUI, PEFT": "names or alphas",
    "Flux 2: ComfyUI, all layers": "names or alphas",
    "Qwen Image: PEFT, base_model.model": "names or alphas",
    "Z-Image: ComfyUI, fused": "names or alphas",
    "Wan 2.1: DiffSynth-Studio": "names or alphas",
    "LTX: ComfyUI, all layers": "names or alphas",
    "HunyuanVideo: FramePack of musubi-tuner": "names or alphas",
    "HunyuanVideo: musubi-tuner": "names or alphas",
    "HunyuanVideo: ComfyUI": "names or alphas",
    "HunyuanVideo: original": "names or alphas",
    "Stable Diffusion 1: LoCon, Tucker": "lora_mid",
    "SDXL: LoCon, Tucker": "lora_mid",
    "Stable Diffusion 1: LoHa": "LyCORIS' and peft's other formulas",
    "Stable Diffusion 1: LoHa, Tucker": "LyCORIS' and peft's other formulas",
    "Stable Diffusion 1: LoKr": "LyCORIS' and peft's other formulas",
    "Stable Diffusion 1: LoKr, both in two": "LyCORIS' and peft's other formulas",
    "Stable Diffusion 1: LoKr, whole": "LyCORIS' and peft's other formulas",
    "Stable Diffusion 1: LoKr, Tucker": "LyCORIS' and peft's other formulas",
    "Stable Diffusion 1: (IA)^3 of LyCORIS": "LyCORIS' and peft's other formulas",
    "Stable Diffusion 1: (IA)^3 of peft": "LyCORIS' and peft's other formulas",
    "SDXL: LoHa": "LyCORIS' and peft's other formulas",
    "SDXL: LoKr": "LyCORIS' and peft's other formulas",
    "SDXL: (IA)^3 of LyCORIS": "LyCORIS' and peft's other formulas",
    "Stable Diffusion 3: LoKr": "LyCORIS' and peft's other formulas",
    "Flux: LoKr of ai-toolkit": "LyCORIS' and peft's other formulas",
    "Flux: LoHa": "LyCORIS' and peft's other formulas",
    "Flux: LoKr": "LyCORIS' and peft's other formulas",
    "Flux: LoKr, both in two": "LyCORIS' and peft's other formulas",
    "Flux: (IA)^3 of LyCORIS": "LyCORIS' and peft's other formulas",
    "Flux 2: LoKr of ai-toolkit": "LyCORIS' and peft's other formulas",
    "Qwen Image: LoHa of musubi-tuner": "LyCORIS' and peft's other formulas",
    "Qwen Image: LoKr of musubi-tuner": "LyCORIS' and peft's other formulas",
    "Wan 2.1: LoKr of ai-toolkit": "LyCORIS' and peft's other formulas",
    "Wan 2.1: LoHa of musubi-tuner": "LyCORIS' and peft's other formulas",
    "Stable Diffusion 1: DoRA of LyCORIS, by input": "DoRA's magnitudes",
    "Stable Diffusion 1: DoRA of LyCORIS, by output": "DoRA's magnitudes",
    "Stable Diffusion 1: DoRA with LoHa": "DoRA's magnitudes",
    "Stable Diffusion 1: DoRA with LoKr": "DoRA's magnitudes",
    "Stable Diffusion 1: DoRA of peft": "DoRA's magnitudes",
    "SDXL: DoRA of OneTrainer": "DoRA's magnitudes",
    "SDXL: DoRA of LyCORIS, by output": "DoRA's magnitudes",
    "Flux: DoRA of OneTrainer": "DoRA's magnitudes",
    "Flux: DoRA of LyCORIS, by input": "DoRA's magnitudes",
    "Flux: DoRA of LyCORIS, by output": "DoRA's magnitudes",
    "Qwen Image: DoRA of LyCORIS, by output": "DoRA's magnitudes",
    "SDXL: LCM-LoRA": "names or alphas",
    "Flux: PEFT of fal": "names or alphas",
    "Flux: LoKr of SimpleTuner": "LyCORIS' and peft's other formulas",
    "Flux: ComfyUI, text encoders": "names or alphas",
    "Wan 2.1: double underscore": "names or alphas",
    "Wan 2.1: lightx2v, with diff_m": "differences and norms",
}

Pipelines = Callable[[str], Tiny]


@pytest.fixture(scope="module")
def pipelines() -> Iterator[Pipelines]:
    """Each family's tiny pipeline, made once."""
    made: dict[str, Tiny] = {}
    library_logs.quiet_libraries()

    def of(family: str) -> Tiny:
        if family not in made:
            made[family] = Tiny(family)
        return made[family]

    yield of
    made.clear()


def rows() -> Iterator[object]:
    for row in ROWS:
        marks = [pytest.mark.xfail(strict=True, reason=NOT_YET[row.name])] if row.name in NOT_YET else []
        yield pytest.param(row, id=row.name, marks=marks)


def test_names_are_one_each() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    assert set(NOT_YET) <= set(names)


@pytest.mark.parametrize("row", rows())
def test_every_weight_is_what_the_formula_says(row: Row, pipelines: Pipelines, tmp_path: Path) -> None:
    result = trial(row, pipelines(row.family), tmp_path)
    assert not result.wrong, f"{result.applied} of {result.layers} layers applied; wrong: {', '.join(result.wrong)}"
    assert result.layers > 0
