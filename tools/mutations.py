"""Seed faults of the kind that users met in silence, one by one, and see that a test fails with each.

    python tools/mutations.py [NUMBER...]

Each fault replaces one text of one file, in a copy of src; the tests named beside it run against that copy. Printed:
the fault, and the first test that failed. Exit code 1 where none did.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "diffpipe"


class Fault(NamedTuple):
    """`what` is wrong with `text` of a `file` replaced `by` another, and the `tests` that must see it."""

    what: str
    file: str
    text: str
    by: str
    tests: str


FAULTS = (
    Fault(
        "an adapter's alpha is dropped",
        "engine/adapters/formulas.py",
        "return 1.0 if own is None or not rank else own / rank",
        "return 1.0",
        "tests/engine/test_adapter_corpus.py",
    ),
    Fault(
        "DoRA's magnitudes are ignored",
        "engine/adapters/formulas.py",
        'if "magnitude" in parts:',
        'if "never" in parts:',
        "tests/engine/test_adapter_corpus.py",
    ),
    Fault(
        "text encoder 2's part of a Flux LoRA is dropped",
        "engine/adapters/places.py",
        '("lora_te3_", ("text_encoder_3", "text_encoder_2")),',
        '("lora_te3_", ("text_encoder_3",)),',
        "tests/engine/test_adapter_corpus.py",
    ),
    Fault(
        "a scheduler's settings lose to those that its configuration lists",
        "engine/loading/chosen_scheduler.py",
        "cls.from_config(shipped.config, **given)",
        "cls.from_config({**shipped.config, **given})",
        "tests/engine/test_scheduler_settings.py",
    ),
    Fault(
        "the scales of float8 weights are ignored",
        "engine/loading/plain_weights.py",
        "return (weight.to(torch.float32) * factor).to(dtype)",
        "return weight.to(dtype)",
        "tests/building/test_single_files.py",
    ),
    Fault(
        "a feature extractor's old class is unknown",
        "engine/classes/renamed.py",
        "now = COPIES.get(name, vision)",
        "now = COPIES.get(name)",
        "tests/building/test_settings.py",
    ),
    Fault(
        "a library's warning that no row knows is swallowed",
        "engine/loading/library_words.py",
        'return quoted(library, shorten(text, LONGEST, placeholder="…"))',
        "return None",
        "tests/engine/test_library_words.py tests/engine/test_heard_cli.py",
    ),
    Fault(
        "numbers that are not finite pass",
        "engine/running/finite.py",
        "return low.isfinite() & high.isfinite()",
        "return low == low",
        "tests/engine/test_finite.py",
    ),
    Fault(
        "a flagged picture is not spoken of",
        "engine/running/remarks.py",
        "    if result.flagged:",
        "    if False:",
        "tests/engine/test_remarks.py",
    ),
    Fault(
        "a mask's alpha is ignored",
        "engine/media/pixels.py",
        '    if not has_alpha(picture):\n        return picture.convert("L")\n    whole',
        '    if True:\n        return picture.convert("L")\n    whole',
        "tests/engine/test_pixels.py",
    ),
    Fault(
        "frames are taken by index, not by time",
        "engine/media/timing.py",
        "order.append(shown)",
        "order.append(number)",
        "tests/engine/test_timing.py",
    ),
    Fault(
        "noise that the items of a batch share goes unnoticed",
        "engine/running/own_state.py",
        "if items > 1 and drawn != _states():",
        "if False:",
        "tests/engine/test_own_state.py",
    ),
)


def main() -> None:
    chosen = [int(word) for word in sys.argv[1:]] or range(1, len(FAULTS) + 1)
    survived = 0
    for number in chosen:
        fault = FAULTS[number - 1]
        failed = first_failure(fault)
        survived += failed is None
        print(f"{number:2} {fault.what}: {failed or 'NO TEST SAW IT'}", flush=True)
    sys.exit(1 if survived else 0)


def first_failure(fault: Fault) -> str | None:
    """The first test that fails with a fault, and passes without; None if none does."""
    failed = first_failed(fault.tests.split(), fault)
    if failed is None:
        return None
    assert first_failed([failed], None) is None, f"{failed} fails without any fault"
    return failed


def first_failed(tests: list[str], fault: Fault | None) -> str | None:
    """The first test that fails in a copy of src, with a fault or without."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(SOURCE, Path(folder, "diffpipe"), ignore=shutil.ignore_patterns("__pycache__"))
        if fault:
            place = Path(folder, "diffpipe", fault.file)
            place.write_text(seeded(fault), encoding="utf-8")
        words = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-rfE", *tests]
        env = {**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    return found[1] if found else None


def seeded(fault: Fault) -> str:
    """The text of a fault's file with it. Raises ValueError where the file is another by now."""
    text = (SOURCE / fault.file).read_text(encoding="utf-8")
    if text.count(fault.text) != 1:
        raise ValueError(f"{fault.file} has not once: {fault.text}")
    return text.replace(fault.text, fault.by)


if __name__ == "__main__":
    main()
