"""The manifest of a pipeline whose files are here: its components with their sizes, its flags, what it makes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..catalog.rows import PipelineType
from ..core.components import DENOISER_ONLY, part_checkpoint, parts_of_checkpoint
from ..core.manifest import Manifest
from ..core.source import BASE, CONFIG, Component, Role, Source, file_of
from ..sources.key import Resolved
from ..storage.tensor_headers import TensorInfo, read_header, weigh
from .checks import Checked
from .versions import versions

HEADED = (".safetensors", ".gguf")  # weights that list their tensors before them


def describe(
    resolved: Resolved, row: PipelineType, checked: Checked, locations: Mapping[Role, str], reason: str
) -> Manifest:
    """The manifest, without stored weights. `reason`: why its placement was chosen."""
    from ..engine.classes import outputs, signature

    return Manifest(
        key=resolved.key,
        config=resolved.config,
        sources=resolved.sources,
        components=tuple(_components(resolved, checked.layout, locations)),
        flags=tuple(signature.read_flags(checked.pipeline, row)),
        arguments=signature.settable(checked.pipeline),
        kind=checked.kind,
        fps=row.fps or outputs.example_fps(checked.pipeline),
        quirks=tuple(sorted(row.quirks)),
        versions=versions(),
        own_class=checked.own_class,
        placement_reason=reason,
    )


def _components(
    resolved: Resolved, layout: Mapping[str, tuple[str, str]], locations: Mapping[Role, str]
) -> list[Component]:
    """Every component with its class and the size of its weights, read from the headers of their files."""
    sources = {source.role: source for source in resolved.sources}
    base, settings = sources[BASE], sources.get(CONFIG)
    held = _checkpoint_tensors(base, locations[BASE], layout) if base.single else {}
    table = []
    for name, (library, class_name) in layout.items():
        replacement = sources.get(Role.component(name))
        source = replacement or (base if name in held else settings or base)
        folder = replacement.subfolder if replacement else name
        prefix = f"{folder}/" if folder else ""
        tensors = (None if replacement else held.get(name)) or [
            tensor
            for path in source.files
            if path.startswith(prefix) and path.endswith(HEADED) and (replacement or not source.single)
            for tensor in read_header(file_of(source, locations[source.role], path)).tensors.values()
        ]
        chosen = resolved.spec.scheduler if name == "scheduler" else None
        table.append(Component(name, library, chosen or class_name, source.label, *weigh(tensors)))
    return table


def _checkpoint_tensors(
    base: Source, location: str, layout: Mapping[str, tuple[str, str]]
) -> dict[str, list[TensorInfo]]:
    """A single-file checkpoint's tensors, parted by the component each belongs to."""
    path = Path(location)
    if path.suffix not in HEADED:
        return {name: [] for name in parts_of_checkpoint(DENOISER_ONLY, layout)}
    parted = part_checkpoint(read_header(path).tensors, layout)
    return {name: list(tensors.values()) for name, tensors in parted.items()}
