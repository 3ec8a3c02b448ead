"""How one process makes a run's requests, and what it reports of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from ..cache.measured import Measured
from ..core.request import Request
from ..results.metadata import About
from .inputs import Read
from .job import SIDE_BY_SIDE, Callbacks, Job

if TYPE_CHECKING:
    from ..engine.running.preview import Preview

OnStep: TypeAlias = Callable[[Request, int, int], None]
Record: TypeAlias = Callable[[Sequence[Measured]], None]


@dataclass(frozen=True)
class RunSettings:
    """`read` gives a request's call arguments with media read.

    `batch_size`: how many requests that differ in seed and prompts alone go into one call. `side_by_side`: how many are
    made side by side where components are offloaded one by one (see engine.placement.interleave); their outcomes come
    when all are made. `about`: what the files say of the run, None for files that say nothing. `step_down`: whether an
    item that ran out of memory is made again with less. `on_warning` gets a line for each such step, `record` the peaks
    of memory that were measured. `previews`: None for none. `before_writing` raises where nobody wants the results any
    more.
    """

    read: Read
    on_step: OnStep
    batch_size: int = 1
    side_by_side: int = 1
    about: About | None = None
    step_down: bool = True
    on_warning: Callable[[str], None] = lambda line: None
    record: Record | None = None
    previews: Preview | None = None
    before_writing: Callable[[], None] = lambda: None


def settings_of(job: Job, callbacks: Callbacks, read: Read, record: Record) -> RunSettings:
    """A job as this process does it."""
    previews = None
    if callbacks.on_preview and job.previews:
        from ..engine.running.preview import Preview

        previews = Preview(callbacks.on_preview, job.previews.every, job.previews.decode)
    return RunSettings(
        read=read,
        on_step=callbacks.on_step,
        batch_size=job.batch_size,
        side_by_side=SIDE_BY_SIDE if job.several else 1,
        about=job.about,
        step_down=job.step_down,
        on_warning=callbacks.on_warning,
        record=record,
        previews=previews,
    )
