"""The manifest of a pipeline whose files are here: its components with their sizes, its flags, what it makes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..catalog.rows import PipelineType
from ..core.components import DENOISER_ONLY, part_checkpoint, parts_of_checkpoint
from ..core.manifest import Manifest
from ..core.source import BASE, CONFIG, Component, Role, Source, file_of
from ..sources.key import Resolved
from ..storage.disk import safetensors_header, weigh
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
    held: dict[str, list[dict[str, Any]]] = {}
    if base.single:
        held = _checkpoint_headers(base, locations[BASE], layout)
    table = []
    for name, (library, class_name) in layout.items():
        replacement = sources.get(Role.component(name))
        source = replacement or (base if name in held else settings or base)
        folder = replacement.subfolder if replacement else name
        prefix = f"{folder}/" if folder else ""
        headers = (None if replacement else held.get(name)) or [
            _header(file_of(source, locations[source.role], path))
            for path in source.files
            if path.startswith(prefix) and path.endswith(HEADED) and (replacement or not source.single)
        ]
        chosen = resolved.spec.scheduler if name == "scheduler" else None
        table.append(Component(name, library, chosen or class_name, source.label, **weigh(headers)))
    return table


def _checkpoint_headers(
    base: Source, location: str, layout: Mapping[str, tuple[str, str]]
) -> dict[str, list[dict[str, Any]]]:
    """A single-file checkpoint's tensors, parted by the component each belongs to."""
    path = Path(location)
    if path.suffix not in HEADED:
        return {name: [] for name in parts_of_checkpoint(DENOISER_ONLY, layout)}
    return {name: [tensors] for name, tensors in part_checkpoint(_header(path), layout).items()}


def _header(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors or GGUF file."""
    if path.suffix == ".safetensors":
        return safetensors_header(path)
    from ..engine.loading import load

    return load.gguf_header(path)
