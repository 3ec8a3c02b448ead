"""What only diffusers knows of a build, checked before any weight is fetched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..catalog import pipelines
from ..catalog.rows import PipelineType
from ..core.build_spec import Speed
from ..core.components import is_text_encoder, kind_of
from ..core.configuration import SchedulerChoice
from ..core.errors import UsageError
from ..core.flag import OutputKind
from ..core.source import BASE, CONFIG, Role, Source, file_of, place_of
from ..sources.key import Resolved
from . import header_checks, marks
from .fetch import Say
from .settings import check_settings, place_of_settings, settings_of
from .ways import way_to

Layout = Mapping[str, tuple[str, str]]  # component -> library, class


@dataclass(frozen=True)
class Checked:
    """What the checks found: the pipeline class, its components, what it makes.

    `own_class`: whether the class is a file of the model's own. `fetched`: where the sources lie, where they had to be
    fetched to know the class; None otherwise. `notices`: what the user should hear.
    """

    pipeline: type
    layout: Layout
    kind: OutputKind
    own_class: bool
    fetched: dict[Role, str] | None
    notices: tuple[str, ...] = ()


def check(resolved: Resolved, row: PipelineType, offline: bool, fetch: Callable[[], dict[Role, str]]) -> Checked:
    """Whether a request makes a pipeline that can be loaded, placed and called. `fetch`: brings its files here.

    Raises UsageError in the user's terms.
    """
    from ..engine.classes import lookup, requirements
    from ..engine.loading import chosen_scheduler, library_logs
    from ..engine.placement import apply, devices

    library_logs.listen()
    spec = resolved.spec
    listed = resolved.layout
    hint = _what_fits(resolved)
    cls, own_class, fetched = _class_of(resolved, row, fetch)
    requirements.check(cls, listed, spec.components, hint)
    asked = SchedulerChoice(spec.scheduler, spec.scheduler_config)
    shipped = settings_of(resolved, "scheduler", "scheduler_config.json", offline) if asked else {}
    own = lookup.component_class(*listed["scheduler"]) if "scheduler" in listed else None
    with marks.explained(resolved):
        notices = [*marks.notes(resolved), *chosen_scheduler.check(asked, cls, own, shipped)]
    layout = _matched(cls, resolved, listed, hint, offline)
    check_settings(resolved, offline)
    _check_prequantized(resolved, layout, offline)
    notices += header_checks.check(resolved.pipeline, resolved, layout, offline)
    apply.check(cls, spec.placement, devices.choose_device(spec.device))
    _check_speed(cls, resolved, layout, offline)
    if resolved.config.quantization:
        from ..engine.loading import prepare

        prepare.check(resolved.config.quantization, layout)
    return Checked(cls, layout, _kind_of(cls, resolved, row), own_class, fetched, tuple(notices))


def _class_of(
    resolved: Resolved, row: PipelineType, fetch: Callable[[], dict[Role, str]]
) -> tuple[type, bool, dict[Role, str] | None]:
    """The pipeline class, whether it is the model's own, and where the files lie if they were fetched to know it."""
    from ..engine.classes import lookup

    spec = resolved.spec
    if spec.trust_remote_code and not (spec.pipeline or row.pipeline) and not resolved.sources[0].single:
        fetched = fetch()
        if own := lookup.own_pipeline_class(place_of(fetched[BASE])):
            return own, True, fetched
        return lookup.pipeline_class(resolved.pipeline), False, fetched
    return lookup.pipeline_class(resolved.pipeline), False, None


def _kind_of(cls: type, resolved: Resolved, row: PipelineType) -> OutputKind:
    """What a pipeline class makes. Raises UsageError for one that makes no media, or that no command line can call."""
    from ..engine.classes import outputs

    if refused := refused_class(cls, resolved.pipeline, row):
        raise refused
    kind = outputs.kind_of(outputs.output_fields(cls))
    assert kind
    return kind


def refused_class(cls: type, name: str, row: PipelineType) -> UsageError | None:
    """Why a class cannot be built, in the words in which a plan says it of what was written down; None where it can."""
    from ..engine.classes import outputs, signature

    if "call" not in row.quirks and (reason := signature.why_uncallable(cls)):
        return pipelines.uncallable(name, reason)
    fields = outputs.output_fields(cls)
    return None if outputs.kind_of(fields) else pipelines.no_media(name, fields)


def _matched(cls: type, resolved: Resolved, layout: Layout, hint: str, offline: bool) -> dict[str, tuple[str, str]]:
    """The class of each component. Raises UsageError for a model or component of another family than the class."""
    from ..engine.classes import match

    folder = _folder(resolved)
    replaced = {
        source.role.name: match.Replaced(source.label, source.components.get(source.role.name))
        for source in resolved.sources
        if source.role.kind == "component"
    }
    classes = match.check(cls, match.Model(folder.label, folder.pipeline, folder.components), replaced, hint)
    # A single file says nothing of its own widths: its settings are those of the folder.
    folders = {source.role for source in resolved.sources if not source.single}
    read = {name: part for name, part in replaced.items() if Role.component(name) in folders}
    match.check_widths(classes, read, lambda name: settings_of(resolved, name, "config.json", offline))
    return {name: classes[name] for name in layout}


def _check_prequantized(resolved: Resolved, layout: Layout, offline: bool) -> None:
    """Refuse a component that was saved quantized where what reads it is missing."""
    from ..engine.classes import prequantized

    single = {source.role for source in resolved.sources if source.single}
    for name, (library, _) in layout.items():
        if Role.component(name) not in single:  # a file comes without the folder's quantization
            source, _inside = place_of_settings(resolved.sources, name)
            prequantized.check(name, library, source.label, settings_of(resolved, name, "config.json", offline))


def _folder(resolved: Resolved) -> Source:
    """The source that is a diffusers folder: the model's own, or where a single file takes its settings from."""
    return next((s for s in resolved.sources if s.role == CONFIG), resolved.sources[0])


def _what_fits(resolved: Resolved) -> str:
    """Which provider and type a model is for, by the pipeline class that its folder names."""
    own = _folder(resolved).pipeline
    if own == resolved.pipeline:
        return "choose the provider and --type that fit the model, or add the part with --component NAME=SOURCE"
    way = way_to(own)
    if "--class" in way:
        return f"this model is a {own}: diffpipe build custom, or name another model with --model"
    return f"this model is a {own}: {way}"


def _check_speed(cls: type, resolved: Resolved, layout: Layout, offline: bool) -> None:
    """Refuse --compile, --attention-backend and --step-cache for denoisers that cannot take them."""
    from ..engine.classes import lookup
    from ..engine.placement import devices, speed

    asked = resolved.config.speed
    if asked == Speed():
        return
    placement = resolved.config.placement
    if asked.compile and placement.quantize != "none" and placement.cpu_offload == "group":
        raise UsageError(  # seen with torch 2.13.0: "Cannot swap t1 because it has weakref associated with it"
            "--compile does not work with quantized weights that are offloaded in groups: compiled code pins them",
            "leave out --compile, or use --cpu-offload model",
        )
    denoisers = {
        name: (lookup.component_class(*pair), settings_of(resolved, name, "config.json", offline))
        for name, pair in layout.items()
        if kind_of(name) == "denoiser"
    }
    speed.check(cls, asked, denoisers, devices.choose_device(resolved.spec.device), resolved.config.dtype)


def check_loras(checked: Checked, resolved: Resolved, locations: Mapping[Role, str], offline: bool, say: Say) -> None:
    """Refuse the LoRAs that are for another model or fit in part, unless that was asked for and is said."""
    from ..engine.classes import lookup
    from ..engine.loading import adapter_fit

    def settings(name: str) -> tuple[Any, dict[str, Any]] | None:
        if name not in checked.layout:
            return None
        return lookup.component_class(*checked.layout[name]), settings_of(resolved, name, "config.json", offline)

    spec, quantized = resolved.spec, _quantized(resolved, settings)
    fits = []
    for source in resolved.sources:
        if source.role.kind != "lora":
            continue
        path = file_of(source, locations[source.role], next(iter(source.files)))
        asked = adapter_fit.Request(path, source.label, spec.allow_pickle, spec.lora_partial, source.into, quantized)
        fits.append(adapter_fit.check_request(checked.pipeline, asked, settings, say))
    if fits and not any(fit is None or fit.widened for fit in fits):
        header_checks.check_widths(checked.pipeline.__name__, resolved, checked.layout, offline)


def _quantized(resolved: Resolved, settings: Callable[[str], tuple[Any, dict[str, Any]] | None]) -> set[str]:
    """The components whose weights come quantized: GGUF files, and what their configuration says."""
    gguf = {source.role for source in resolved.sources if any(path.endswith(".gguf") for path in source.files)}
    found = {role.name for role in gguf if role.kind == "component"}
    for name in resolved.layout if resolved.spec.loras else ():
        if kind_of(name) == "denoiser" and BASE in gguf and Role.component(name) not in gguf:
            found.add(name)
        elif (kind_of(name) == "denoiser" or is_text_encoder(name)) and (known := settings(name)):
            found |= {name} if known[1].get("quantization_config") else set()
    return found
