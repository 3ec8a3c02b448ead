"""Manifests and configurations of others: each either a manifest that is written as it was read, or refused."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from diffpipe.cli import flags
from diffpipe.cli.generate import options
from diffpipe.core.canonical import canonical_json
from diffpipe.core.manifest import Manifest
from diffpipe.core.parsing import parse_json
from hostile.nodes import changed, nodes
from hostile.runner import Case

CASES = 500
SAMPLES = Path(__file__).parents[1] / "cache" / "samples"


def read(value: object) -> None:
    """What is read is written as it was, means the same when it is read again, and makes a command."""
    found = Manifest.from_json(value)
    again = Manifest.from_json(parse_json(canonical_json(found.to_json()), 10**7))
    assert again == found
    own = options(found.kind, {flag.name for flag in found.flags})
    shown = [flags.parameter(flag, "x") for flag in flags.available(found.flags, own)]
    flags.with_parameters(lambda **values: None, [flags.CONTEXT, *shown, *own])


def cases(rng: random.Random, folder: Path) -> Iterator[Case]:
    known = [json.loads((SAMPLES / name / "manifest.json").read_bytes()) for name in ("demo", "styled", "quantized")]
    for value in known:
        yield Case("as it was written", partial(read, value))
    while True:
        value = rng.choice(known)
        what, made = changed(rng, value, rng.choice(nodes(value)))
        if rng.random() < 0.2:
            again, made = changed(rng, made, rng.choice(nodes(made)))
            what = f"{what}, {again}"
        yield Case(what, partial(read, made))
