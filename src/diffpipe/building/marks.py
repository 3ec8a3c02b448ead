"""What a denoiser's file says of its scheduler: it is set so, unless the user asks for something else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from ..core.canonical import JsonObject
from ..core.checkpoint_marks import scheduler_settings
from ..core.components import kind_of
from ..core.errors import UsageError
from ..core.source import BASE, Source
from ..sources.key import Resolved
from ..sources.pin import Pinned
from .header_checks import header_of
from .settings import settings_at

# What schedulers on a noise schedule do where neither they nor their settings say it. Flows have no such settings.
DEFAULTS: JsonObject = {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}
FLOW = "FlowMatch"  # in the names of their classes


def marked(pinned: Pinned, offline: bool) -> Pinned:
    """A request with the settings that its denoiser's file asks for, where the folder's scheduler has others."""
    source = _denoiser(pinned)
    scheduler = pinned.spec.scheduler or pinned.layout.get("scheduler", ("", ""))[1]
    if source is None or not scheduler or FLOW in scheduler:
        return pinned
    header = header_of(source, pinned.locations[source.role], offline)
    said = scheduler_settings(header.tensors, header.metadata) if header else {}
    if not said:
        return pinned
    own = settings_at(pinned.sources, pinned.locations, "scheduler", "scheduler_config.json", offline)
    asked = pinned.spec.scheduler_config
    marks = {name: value for name, value in said.items() if name not in asked and _of(own, name) != value}
    spec = replace(pinned.spec, scheduler_config={**marks, **asked})
    return replace(pinned, spec=spec, marks=marks) if marks else pinned


def _of(settings: JsonObject, name: str) -> object:
    return settings.get(name, DEFAULTS[name])


def _denoiser(pinned: Pinned) -> Source | None:
    """The single file that the pipeline's denoiser comes from, if it does."""
    singles = [source for source in pinned.sources if source.single and source.role.kind != "lora"]
    parts = [source for source in singles if source.role != BASE and kind_of(source.role.name) == "denoiser"]
    return next(iter([*parts, *(source for source in singles if source.role == BASE)]), None)


def notes(resolved: Resolved) -> list[str]:
    """What is said of the settings that a file asked for."""
    shown = ", ".join(f"{name} {value}" for name, value in resolved.marks.items())
    return [f"the denoiser's file is marked for it: the scheduler is set to {shown}"] if shown else []


@contextmanager
def explained(resolved: Resolved) -> Iterator[None]:
    """Name the file's marks where a scheduler is refused that cannot be set so."""
    try:
        yield
    except UsageError as error:
        if not resolved.marks:
            raise
        raise UsageError(
            f"the denoiser's file is marked for {', '.join(resolved.marks)}: {error.message}",
            "choose a scheduler that can: --scheduler EulerDiscreteScheduler, or set it yourself in --scheduler-config",
        ) from error
