"""How a run's requests are made, as plain data that another process can be given; and what it reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ..core.canonical import JsonObject
from ..core.parsing import Fields
from ..core.request import Request
from ..results.metadata import About

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE_BY_SIDE = 20  # items that are made side by side where components are offloaded
MOST = 2**31 - 1  # of a count


LONGEST_KEEP = 30 * 86400  # seconds that a worker may be kept with nothing to do


@dataclass(frozen=True)
class Previews:
    """How what is being made is shown (see engine.preview.Preview): every so many steps, None for as fast as they can
    be seen; `decode`: by the pipeline's own decoder."""

    every: int | None = None
    decode: bool = False


@dataclass(frozen=True)
class Job:
    """How requests are made. `about`: what their files say of the run, None for nothing. `several`: whether items may
    be made side by side, and asked for ahead. `previews`: None for none.
    """

    batch_size: int = 1
    several: bool = False
    fit: bool = False
    about: About | None = None
    step_down: bool = True
    previews: Previews | None = None

    def to_json(self) -> JsonObject:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Fields) -> Job:
        """Raises Misfit."""
        return cls(
            batch_size=fields.integer("batch_size", 1, least=1, most=MOST),
            several=fields.truth("several", False),
            fit=fields.truth("fit", False),
            about=_about_of(fields.object("about")) if "about" in fields else None,
            step_down=fields.truth("step_down", True),
            previews=_previews_of(fields.object("previews")) if "previews" in fields else None,
        )


def _about_of(fields: Fields) -> About:
    batch_size = fields.integer("batch_size", 1, least=1, most=MOST)
    return About(fields.text("name"), fields.truth("fit", False), batch_size)


def _previews_of(fields: Fields) -> Previews:
    return Previews(fields.maybe_integer("every", least=1, most=MOST), fields.truth("decode", False))


@dataclass(frozen=True)
class Callbacks:
    """What a run reports while it goes: each step of a request (steps done, steps in all), warnings for the user, and
    previews."""

    on_step: Callable[[Request, int, int], None]
    on_warning: Callable[[str], None]
    on_preview: Callable[[Image], None] | None = None
