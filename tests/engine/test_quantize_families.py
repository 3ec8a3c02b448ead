"""Every family with quantized weights, through the real command line: built, compared, generated from."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import cases_image
import cases_video
import pytest
from cases import Case
from conftest import Warm

from diffpipe.cache.store import Store
from diffpipe.core.quantization import quantized_by_default

# Types of one family share their weights: one case a checkpoint, and the modes in turn.
CASES = {case.checkpoint: case for case in (*cases_image.CASES, *cases_video.CASES)}.values()
MODES = ("fp8", "int8", "int4")
AGAIN = [case.checkpoint for case in CASES][: len(MODES)]  # one of each mode is made twice, and must be the same


@pytest.mark.parametrize(
    ("case", "mode"), list(zip(CASES, cycle(MODES), strict=False)), ids=lambda value: getattr(value, "name", value)
)
def test_a_family_is_quantized_compared_and_generates(
    case: Case, mode: str, warm: Warm, checkpoints: Path, inputs: Path, tmp_path: Path
) -> None:
    places = {"checkpoints": checkpoints, "inputs": inputs}
    name = f"{case.name}-{mode}"
    words = [word.format(**places) for word in case.build]
    model = checkpoints / case.checkpoint
    warm(
        *("build", case.provider, "--type", case.type, "--model", model, *words, "--quantize", mode, "--name", name),
        check=True,
    )
    manifest = Store(warm.home).find(name).manifest()
    assert manifest.stored
    stored = manifest.stored.components
    assert list(stored) == quantized_by_default(manifest.classes)
    for component, record in stored.items():
        assert record.layers > 0
        if not component.startswith(("text_encoder", "prior_text_encoder")):
            assert record.comparison["cosine"] > 0.98
    flags = [word.format(**places) for word in case.flags]
    done = warm("generate", name, *flags, "--output", f"{tmp_path}/", "--seed", 1, check=True)
    files = done.stdout.splitlines()
    assert len(files) == case.files
    if case.checkpoint not in AGAIN:
        return
    again = warm("generate", name, *flags, "--output", f"{tmp_path}/again/", "--seed", 1, check=True)
    for one, other in zip(files, again.stdout.splitlines(), strict=True):
        assert Path(one).read_bytes() == Path(other).read_bytes()
