"""One call argument of a pipeline as a command-line flag, and the kinds of media."""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from .canonical import JsonObject
from .names import IDENTIFIER
from .parsing import LARGEST, Fields, Misfit

FlagKind = Literal["text", "integer", "number", "boolean", "choice", "image", "mask", "video", "audio", "json"]


OutputKind = Literal["image", "video", "audio"]
# Call arguments by name. What a value may be, its flag says: text, a number, a path, a list or JSON.
Arguments: TypeAlias = Mapping[str, Any]


MEDIA_KINDS = frozenset({"image", "mask", "video", "audio"})


# By kind of output, the default first; "frames" is a folder of pictures.
FORMATS: Mapping[OutputKind, tuple[str, ...]] = {
    "image": ("png", "jpg", "jpeg", "webp"),
    "video": ("mp4", "webm", "gif", "frames"),
    "audio": ("wav", "flac"),
}


NOUNS: Mapping[OutputKind, str] = {"image": "picture", "video": "video", "audio": "sound"}


FRAME_RATES = ("frame_rate", "fps")  # call arguments that say how fast the video is meant to play


MAX_SEED = 2**64 - 1  # torch.Generator.manual_seed


# The forms in which pictures are read: as their pixels are (""), or as this mode of Pillow's.
MODES = re.compile(r"|L|RGB|RGBA")
LONGEST_CHOICE = 200  # characters
LONGEST_HELP = 20_000  # characters; the longest docstring of diffusers' arguments has 2,000


@dataclass(frozen=True)
class Flag:
    """One call argument of a pipeline as a command-line flag.

    `many`: the flag may be repeated (the argument takes a list). `scalar`: a single value is passed bare, not in a list
    of one. `default` is None where the signature has None or nothing. `minimum`, `maximum` are inclusive;
    `multiple_of` is in the argument's own unit (pixels for width and height), and `remainder` what is left over (1 for
    8n + 1 frames). `most`: how many values, or frames of a video, are taken. `mode`: the Pillow mode that a picture is
    read in ("" for RGB, L for masks).
    """

    name: str
    kind: FlagKind
    many: bool = False
    scalar: bool = True
    required: bool = False
    default: Any = None
    help: str = ""
    minimum: float | None = None
    maximum: float | None = None
    multiple_of: int | None = None
    remainder: int = 0
    most: int | None = None
    mode: str = ""
    choices: tuple[str, ...] = ()

    @property
    def option(self) -> str:
        """How the command line calls it: --guidance-scale."""
        return "--" + self.name.replace("_", "-")

    @classmethod
    def from_json(cls, data: Fields) -> Flag:
        """The inverse of `to_json`. Raises Misfit for what is no flag."""
        found = cls(
            name=data.matching("name", IDENTIFIER),
            kind=data.choice("kind", FlagKind),
            many=data.truth("many", False),
            scalar=data.truth("scalar", True),
            required=data.truth("required", False),
            default=data.value.get("default"),
            help=data.text("help", "", most=LONGEST_HELP),
            minimum=data.maybe_number("minimum"),
            maximum=data.maybe_number("maximum"),
            multiple_of=data.maybe_integer("multiple_of", least=1),
            remainder=data.integer("remainder", 0),
            most=data.maybe_integer("most", least=1),
            mode=data.matching("mode", MODES, ""),
            choices=data.texts("choices", ()),
        )
        if problem := found.problem():
            raise Misfit(f"{data.where or 'it'} {problem}")
        return found

    def problem(self) -> str:
        """What of it does not go with the rest; "" for nothing."""
        if keyword.iskeyword(self.name) or self.name.startswith("_"):
            return "has a name that no argument can have"
        named = all(one.isprintable() and 0 < len(one) <= LONGEST_CHOICE for one in self.choices)
        if not named or len(set(self.choices)) < len(self.choices) or (self.kind == "choice" and not self.choices):
            return "has choices that are none"
        low = -math.inf if self.minimum is None else self.minimum
        if low > (math.inf if self.maximum is None else self.maximum):
            return "has no value between its minimum and maximum"
        values = self.default if isinstance(self.default, list) and self.kind != "json" else [self.default]
        return (
            "" if all(one is None or self._may_be(one) for one in values) else f"has a default that is no {self.kind}"
        )

    def _may_be(self, value: object) -> bool:
        """Whether a JSON value is of the flag's kind."""
        if self.kind == "choice":
            return value in self.choices
        if self.kind in ("integer", "number"):
            whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST
            return whole or (isinstance(value, float) and self.kind == "number")
        if self.kind == "boolean":
            return isinstance(value, bool)
        return self.kind == "json" or isinstance(value, str)

    def to_json(self) -> JsonObject:
        """The fields that differ from their defaults (a manifest holds dozens of flags)."""
        blank = Flag(name="", kind="text")
        given = {k: v for k, v in asdict(self).items() if k in ("name", "kind") or v != getattr(blank, k)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


def nearest(flag: Flag, value: int) -> list[int]:
    """The one or two numbers nearest to a value that are in the flag's steps and range, the nearest first."""
    step = flag.multiple_of or 1
    below = (value - flag.remainder) // step * step + flag.remainder
    low = max(flag.minimum or 0, flag.remainder or step)
    fitting = {n for n in (below, below + step) if n >= low and (flag.maximum is None or n <= flag.maximum)}
    return sorted(fitting, key=lambda n: (abs(n - value), n)) or [int(low)]


PER_CALL = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")
