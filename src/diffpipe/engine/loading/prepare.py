"""What a build does once so that no start has to: fuse, quantize, compare, store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.components import is_text_encoder
from ...core.configuration import Quantization
from ...core.errors import UsageError
from ...core.manifest import Located, Manifest, StoredComponent, WeightsSummary
from ..placement import host_memory
from . import adapters, adapters_beside, fidelity, load, quantize, stored

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

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

    LoRAs are fused first: quantized weights would drop them silently. Returns each component's record and, for those
    that the pipeline calls, how far they are from the originals. Raises UsageError if nothing is left to quantize,
    DiffpipeError where what comes out is not a number, or noise.
    """
    asked = manifest.config.quantization
    assert asked
    components = {}
    with host_memory.Watch() as watch:
        pipe = load.load(manifest, located, "cpu", quirks)
        names = _fresh(pipe, asked.components, say)
        call = load.hook(quirks["call"]) if "call" in quirks else None
        references = fidelity.references(pipe, names, manifest.flags, call)
        for name in names:
            say(f"quantizing {name}")
            components[name] = _store(pipe, name, asked, folder, references.pop(name, None))
        for name in _changed_by_loras(pipe, names, manifest, located):
            say(f"storing {name}")
            components[name] = _store(pipe, name, replace(asked, mode="none"), folder, None)
    log.info("quantized %s; %s", ", ".join(components), watch.words())
    if not any(part.quality.comparison for name, part in components.items() if not is_text_encoder(name)):
        say("the quantized weights could not be compared with the original ones: look at the first results yourself")
    return WeightsSummary(components, asked.mode, asked.backend)


def _store(
    pipe: DiffusionPipeline, name: str, how: Quantization, folder: Path, reference: fidelity.Reference | None
) -> StoredComponent:
    """Write one component and take it out of the pipeline. What is compared is what will be loaded."""
    path = folder / f"{name}.safetensors"
    excluded = [rest for part, rest in map(_split, how.exclude) if fnmatchcase(name, part)]
    module = getattr(pipe, name)
    record = stored.write(module, path, how.mode, how.backend, excluded)
    setattr(pipe, name, None)
    cls = type(module)
    del module  # its memory goes before the file is read
    if reference is None:
        return record
    measured = fidelity.compare(reference, stored.read(cls, path))
    log.info("%s in %s: relative error %.4f, cosine %.5f", name, how.mode, *measured.values())
    fidelity.check(name, measured, how.mode)
    return replace(record, quality=replace(record.quality, comparison=measured))


def _changed_by_loras(
    pipe: DiffusionPipeline, quantized: Sequence[str], manifest: Manifest, located: Located
) -> list[str]:
    """The components that LoRAs may have changed and that are not quantized, sorted."""
    loras = [(located.sources[source.role], source) for source in manifest.sources if source.role.kind == "lora"]
    if not loras:
        return []
    changed = adapters.components(type(pipe), pipe.components, loras, pickle=manifest.config.trust.pickle)
    parts = changed & set(pipe.components) - set(quantized)
    found = sorted(name for name in parts if getattr(pipe, name) is not None)
    if beside := [name for name in found if adapters_beside.is_quantized(getattr(pipe, name))]:
        raise UsageError(
            f"--quantize stores LoRAs within the weights, and those of {beside[0]} come quantized",
            "leave out --quantize, or take weights that are not quantized",
        )
    return found


def _fresh(pipe: DiffusionPipeline, names: Sequence[str], say: Callable[[str], None]) -> list[str]:
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
