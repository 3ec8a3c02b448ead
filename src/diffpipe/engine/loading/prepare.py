"""What a build does once so that no start has to: fuse, quantize, compare, store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ...core.components import is_text_encoder
from ...core.configuration import Quantization
from ...core.errors import UsageError
from ...core.manifest import Located, Manifest, StoredComponent, WeightsSummary
from . import fidelity, load, quantize, stored

log = logging.getLogger("diffpipe.engine")


def check(asked: Quantization, layout: Mapping[str, tuple[str, str]]) -> None:
    """Whether a configuration's quantization can be done here, before anything is fetched. Raises UsageError."""
    unknown = [name for name in asked.components if name not in layout]
    if unknown:
        raise UsageError(
            f"there is no component {unknown[0]!r} to quantize", f"this model has: {', '.join(sorted(layout))}"
        )
    quantize.backend_for(asked.backend, asked.mode)


def store_components(
    manifest: Manifest,
    located: Located,
    quirks: Mapping[str, str],
    folder: Path,
    say: Callable[[str], None],
) -> WeightsSummary:
    """Write a pipeline's quantized components, and those its LoRAs change, as folder/NAME.safetensors.

    LoRAs are fused first: quantized weights would drop them silently. Returns each component's record and, for
    those that the pipeline calls, how far they are from the originals. Raises
    UsageError if nothing is left to quantize, DiffpipeError where what comes out is not a number, or noise.
    """
    asked = manifest.config.quantization
    assert asked
    mode, backend = asked.mode, asked.backend
    pipe = load.load(manifest, located, "cpu", quirks)
    names = _fresh(pipe, asked.components, say)
    call = load.hook(quirks["call"]) if "call" in quirks else None
    references = fidelity.references(pipe, names, list(manifest.flags), call)
    changed = set(getattr(pipe, "_lora_loadable_modules", ())) & set(pipe.components)
    kept = sorted(changed - set(names)) if manifest.config.loras else []
    components: dict[str, StoredComponent] = {}
    for name in [*names, *(name for name in kept if getattr(pipe, name) is not None)]:
        module = getattr(pipe, name)
        say(f"{'quantizing' if name in names else 'storing'} {name}")
        path = folder / f"{name}.safetensors"
        excluded = [rest for part, rest in map(_split, asked.exclude) if fnmatchcase(name, part)]
        record = stored.write(module, path, mode if name in names else "none", backend, excluded)
        setattr(pipe, name, None)
        cls = type(module)
        del module
        quality = replace(record.quality, comparison=_compared(name, cls, path, references.pop(name, None), mode))
        components[name] = replace(record, quality=quality)
    if not any(part.quality.comparison for name, part in components.items() if not is_text_encoder(name)):
        say("the quantized weights could not be compared with the original ones: look at the first results yourself")
    return WeightsSummary(components, mode, backend)


def _fresh(pipe: Any, names: Sequence[str], say: Callable[[str], None]) -> list[str]:
    """The components to quantize, without those that come quantized (GGUF, bitsandbytes) and those left empty."""
    present = [name for name in names if getattr(pipe, name, None) is not None]
    ready = [name for name in present if getattr(getattr(pipe, name), "hf_quantizer", None) is not None]
    for name in ready:
        say(f"{name} comes quantized: it stays as it is")
    if not set(present) - set(ready):
        raise UsageError("every component to quantize is quantized already", "leave out --quantize")
    return [name for name in present if name not in ready]


def _split(pattern: str) -> tuple[str, str]:
    """COMPONENT.LAYERS of an exclusion."""
    part, _, rest = pattern.partition(".")
    return part, rest


def _compared(name: str, cls: Any, path: Path, reference: fidelity.Reference | None, mode: str) -> fidelity.Measured:
    """The stored component against the original: what is compared is what will be loaded."""
    if reference is None:
        return {}
    measured = fidelity.compare(reference, stored.read(cls, path))
    log.info("%s in %s: relative error %.4f, cosine %.5f", name, mode, *measured.values())
    fidelity.check(name, measured, mode)
    return measured
