"""What the headers of single files say, compared with what is asked for before any weight is fetched or loaded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import PurePosixPath

from ..core.checkpoint_marks import SCALE_DTYPES, is_averaged, is_mark, scaling, spread
from ..core.components import kind_of, part_checkpoint
from ..core.errors import UsageError
from ..core.source import BASE, CONFIG, Role, Source, file_of
from ..sources import hub
from ..sources.hub_cache import Repository
from ..sources.key import Resolved
from ..storage.tensor_headers import TensorHeader, TensorInfo, read_header
from . import folder_checks
from .settings import place_of_settings, settings_of
from .ways import way_to

Layout = Mapping[str, tuple[str, str]]  # component -> library, class
Tensors = Mapping[str, TensorInfo]
FIRST_ENCODER = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")


def header_of(source: Source, location: str, offline: bool) -> TensorHeader | None:
    """The header of a single file; None for one that has none, or that has to be fetched for it (GGUF)."""
    path = next(iter(source.files))
    if source.kind == "hub" and not location:
        return hub.read_header(Repository.of(source), path, offline) if path.endswith(".safetensors") else None
    return read_header(file_of(source, location, path)) if path.endswith((".safetensors", ".gguf")) else None


def check(pipeline: str, resolved: Resolved, layout: Layout, offline: bool) -> list[str]:
    """Refuse single files that are not what is asked for, by their headers. Returns what of them is not used.

    Raises UsageError, with what does fit.
    """
    notes, checked = _check_files(pipeline, resolved, layout, resolved.sources, offline)
    for name in layout.keys() - checked:
        _check_width(pipeline, resolved, name, layout, None, None, offline)
    folder_checks.check(resolved, layout, offline)
    return notes


def check_fetched(
    pipeline: str, resolved: Resolved, layout: Layout, locations: Mapping[Role, str], offline: bool
) -> list[str]:
    """The same for files whose headers could not be read before they were fetched: GGUF. `locations`: all, by now."""
    late = [source for source in resolved.sources if not resolved.locations[source.role] and _is_gguf(source)]
    return _check_files(pipeline, replace(resolved, locations=locations), layout, late, offline)[0]


def _is_gguf(source: Source) -> bool:
    return source.single and next(iter(source.files)).endswith(".gguf")


def _check_files(
    pipeline: str, resolved: Resolved, layout: Layout, sources: Iterable[Source], offline: bool
) -> tuple[list[str], set[str]]:
    """What of single files is not used, and the components that they stand for."""
    notes, checked = list[str](), set[str]()
    replaced = {source.role.name for source in resolved.sources if source.role.kind == "component"}
    for source in sources:
        if not source.single or source.role.kind == "lora":
            continue
        header = header_of(source, resolved.locations[source.role], offline)
        if header is None:
            continue
        _check_marks(source.label, header.tensors)
        notes += _averages(source.label, header.tensors)
        for name, tensors in _parts(source, header.tensors, layout, replaced):
            notes += _check_part(pipeline, resolved, source, name, tensors, layout, offline)
            checked.add(name)
    return notes, checked


def _parts(
    source: Source, tensors: Tensors, layout: Layout, replaced: Collection[str]
) -> Iterator[tuple[str, Tensors]]:
    """The components that a file stands for, each with its tensors. `replaced`: those that come from elsewhere."""
    weights = {name: one for name, one in tensors.items() if not (is_mark(name) or is_averaged(name))}
    parted = part_checkpoint(weights, layout)
    if source.role != BASE:
        yield source.role.name, parted.get(source.role.name, weights)
        return
    yield from ((name, part) for name, part in parted.items() if kind_of(name) != "encoder" and name not in replaced)
    # Of the text encoders in it those of Stable Diffusion 1 and XL; others are told apart by diffusers alone.
    encoder = {name: one for name, one in weights.items() if name.startswith(FIRST_ENCODER)}
    if encoder and "text_encoder" in layout and "text_encoder" not in replaced:
        yield "text_encoder", encoder


def _check_marks(label: str, tensors: Tensors) -> None:
    """Refuse scales of no weight, scales that do not fit theirs, and packed weights."""
    found = scaling(tensors)
    if found.packed:
        raise UsageError(
            f"{label} holds packed weights ({found.packed[0]}), which diffpipe cannot read",
            "choose the file in float8, bfloat16 or GGUF",
        )
    if found.idle:
        raise UsageError(f"{label} has a scale of no weight: {found.idle[0]}", "fetch the file again, or another one")
    for name, scale in found.scales.items():
        weight = tensors[name]
        if not weight.dtype.startswith(("F", "BF")):
            raise UsageError(f"{label} holds {name} as scaled {weight.dtype}", "choose the file in float8 or bfloat16")
        if tensors[scale].dtype not in SCALE_DTYPES:
            raise UsageError(
                f"{label} has scales of {tensors[scale].dtype} ({scale}), which diffpipe cannot read",
                "choose the file in float8 with plain scales, bfloat16 or GGUF",
            )
        if spread(weight.shape, tensors[scale].shape) is None:
            raise UsageError(f"the scale of {name} in {label} does not fit its weight", "choose another file")


def _averages(label: str, tensors: Tensors) -> list[str]:
    """What is said of averaged weights beside the others. Raises UsageError for a file that has no others."""
    if not any(map(is_averaged, tensors)):
        return []
    if not any(name.startswith("model.diffusion_model.") for name in tensors):
        raise UsageError(
            f"{label} holds the denoiser's averaged weights (model_ema) alone, under names that lost their dots",
            "choose the pruned or EMA-only file of the model, which has them under the usual names",
        )
    return [f"{label} also holds averaged weights (model_ema): the plain ones are taken"]


def _check_part(
    pipeline: str,
    resolved: Resolved,
    source: Source,
    name: str,
    tensors: Tensors,
    layout: Layout,
    offline: bool,
) -> list[str]:
    """Refuse a file that is not a component's, by its class and settings; what of it has no place in the component."""
    from ..engine.classes import lookup
    from ..engine.loading import file_fit, library_logs

    cls = lookup.component_class(*layout[name])
    settings = settings_of(resolved, name, "config.json", offline)
    shapes = {path: one.shape for path, one in tensors.items()}
    with library_logs.unheard():
        found = file_fit.fit(cls, settings, shapes)
    _check_width(pipeline, resolved, name, layout, found.channels, source.label, offline)
    if found.faults:
        config, _ = place_of_settings(resolved.sources, name)
        raise UsageError(
            f"{source.label} does not fit the settings of {name} in {config.label}: {_first(found.faults)}",
            _remedy(source, resolved, shapes, file_fit.repository_for),
        )
    return [f"{source.label} holds what {name} has no place for: {_first(found.idle)}"] if found.idle else []


def _first(all_of: list[str]) -> str:
    return all_of[0] + (f" (and {len(all_of) - 1} more)" if len(all_of) > 1 else "")


def _remedy(
    source: Source,
    resolved: Resolved,
    shapes: Mapping[str, tuple[int, ...]],
    known: Callable[[Mapping[str, tuple[int, ...]]], str],
) -> str:
    """Whose settings would fit, where a file's tensors say it."""
    if source.role != BASE:
        return f"choose a {source.role.name} that was made for this model"
    repository = known(shapes)
    named = next((one.label for one in resolved.sources if one.role == CONFIG), "")
    if repository and PurePosixPath(named).name != PurePosixPath(repository).name:
        return f"it looks like {repository}: --config {repository}, or a folder with these settings"
    return "name the folder or repository that the file was made from: --config SOURCE"


def check_widths(pipeline: str, resolved: Resolved, layout: Layout, offline: bool) -> None:
    """Refuse a denoiser that takes other channels than the pipeline gives it, where no adapter widens it."""
    plain = replace(resolved, sources=tuple(one for one in resolved.sources if one.role.kind != "lora"))
    for name in layout:
        _check_width(pipeline, plain, name, layout, None, None, offline)


def _check_width(
    pipeline: str,
    resolved: Resolved,
    name: str,
    layout: Layout,
    channels: int | None,
    label: str | None,
    offline: bool,
) -> None:
    """Refuse a denoiser that takes other channels than the pipeline gives it; `label`: of the file that holds it."""
    from ..engine.classes import input_widths, lookup
    from ..engine.loading import control_adapter

    kind = layout[name][1]
    if kind not in input_widths.INPUT_LAYER:
        return
    adapted = any(source.role.kind == "lora" for source in resolved.sources)
    if adapted and control_adapter.takes_control(lookup.pipeline_class(pipeline)):
        return  # a Control LoRA may widen the layer; check_widths is asked where none does
    place, _ = place_of_settings(resolved.sources, name)
    part = label or f"the {name} of {place.label}"
    settings = settings_of(resolved, name, "config.json", offline)
    input_widths.check(pipeline, part, kind, channels, settings, way_to)
