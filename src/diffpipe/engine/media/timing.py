"""Frames that are shown for different times, as frames at a constant rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

EVEN = 0.6  # of the time of a frame, by which frames may come early or late: ticks of 1/100 s at 60 frames a second do


class Steady(NamedTuple):
    """Which frames are shown, in order, at `rate` frames a second (None where nothing says).

    `rest`: seconds for which the last one stays longer than the others, at the end of a film that is steady otherwise.
    """

    order: list[int]
    rate: float | None
    rest: float = 0.0

    @property
    def as_filmed(self) -> bool:
        """Whether every frame is there once."""
        return self.order == list(range(len(self.order)))


def steady(starts: Sequence[float], last: float | None) -> Steady:
    """The frames of a film at its average rate, each for as long as it is shown: as many as there are.

    `starts`: when each frame appears, in seconds, ascending; `last`: for how long the last one stays, None where the
    file does not say. Frame k is what is shown in the middle of the k-th equal part of the film, so that times rounded
    to a container's ticks change nothing. Where all frames but the last one are as long as each other, so is that:
    many writers give it any short time, and animations rest on it.
    """
    count, last = len(starts), last or 0.0
    step = (starts[-1] - starts[0]) / (count - 1) if count > 1 else 0.0
    if count > 2 and step > 0 and all(abs(at - starts[0] - k * step) <= EVEN * step for k, at in enumerate(starts)):
        return Steady(list(range(count)), 1 / step, rest=last - step if last > 1.5 * step else 0.0)
    whole = starts[-1] - starts[0] + (last or step) if starts else 0.0
    if whole <= 0:
        return Steady(list(range(count)), None)
    return Steady(_shown(starts, whole / count), count / whole)


def _shown(starts: Sequence[float], step: float) -> list[int]:
    """The frame that is shown in the middle of each of as many equal parts, of `step` seconds, as there are frames."""
    order, shown = [], 0
    for number in range(len(starts)):
        middle = starts[0] + (number + 0.5) * step
        while shown + 1 < len(starts) and starts[shown + 1] <= middle:
            shown += 1
        order.append(shown)
    return order
