"""What every provider and type must make on its tiny checkpoint: one row a case. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A build and a generate, and what must come out.

    `checkpoint`: a folder of the `checkpoints` fixture. `build`, `flags`: further words of the two commands, in which
    {checkpoints} and {inputs} stand for the folders. `shows`, `hides`: options that `generate NAME --help` must list,
    or must not. `size` is (width, height) in pixels, `fps` frames a second, `rate` samples a second, `seconds` the
    length of a sound, `files` how many files one call makes. `variant` tells cases of one type apart.
    """

    provider: str
    type: str
    checkpoint: str
    flags: tuple[str, ...]
    shows: tuple[str, ...]
    kind: str = "image"
    size: tuple[int, int] | None = None
    frames: int | None = None
    fps: float | None = None
    rate: int | None = None
    seconds: float | None = None
    files: int = 1
    build: tuple[str, ...] = ()
    hides: tuple[str, ...] = ()
    variant: str = ""

    @property
    def name(self) -> str:
        return "-".join(part for part in (self.provider, self.type, self.variant) if part)
