"""Frames that are shown for different times, as frames at a constant rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Steady(NamedTuple):
    """Which frames are shown, in order, at `rate` frames a second (None where nothing says)."""

    order: list[int]
    rate: float | None

    @property
    def as_filmed(self) -> bool:
        """Whether every frame is there once."""
        return self.order == list(range(len(self.order)))


def steady(starts: Sequence[float], last: float | None) -> Steady:
    """The frames of a film at its average rate, each for as long as it is shown: as many as there are.

    `starts`: when each frame appears, in seconds, ascending; `last`: for how long the last one stays, None where the
    file does not say. Frame k is what is shown in the middle of the k-th equal part of the film, so that times rounded
    to a container's ticks change nothing.
    """
    count, whole = len(starts), _length(starts, last or 0.0)
    if whole <= 0:
        return Steady(list(range(count)), None)
    order, shown = [], 0
    for number in range(count):
        middle = starts[0] + (number + 0.5) * whole / count
        while shown + 1 < count and starts[shown + 1] <= middle:
            shown += 1
        order.append(shown)
    return Steady(order, count / whole)


def _length(starts: Sequence[float], last: float) -> float:
    """Seconds from the first frame's beginning to the last one's end.

    Many writers give the last frame of a film with a constant rate any short time: it stays as long as the others then.
    """
    if len(starts) < 2:
        return last
    filmed = starts[-1] - starts[0]
    step = filmed / (len(starts) - 1)
    even = all(abs(start - starts[0] - number * step) <= step / 4 for number, start in enumerate(starts))
    return filmed + (max(last, step) if even else last or step)
