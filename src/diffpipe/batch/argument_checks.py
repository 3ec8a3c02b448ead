"""Whether call arguments can be used, before anything is loaded."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping

from ..core.errors import NotFoundError, UsageError
from ..core.flag import MEDIA_KINDS, Arguments, Flag, nearest
from ..core.parsing import LARGEST
from ..storage import presence, urls

LONGEST_TEXT = 100_000  # characters of a prompt or another text: tokenizers take minutes for millions
MOST_BYTES = 1 << 22  # of a call's arguments as JSON: several such calls go into a worker's message


def checked(flags: Mapping[str, Flag], arguments: Arguments, *, fit: bool = False) -> Arguments:
    """Arguments with what is empty left out; every value, and every default, in its flag's range.

    `fit`: take the nearest size or number of frames that the pipeline can make. Raises UsageError for a missing
    argument (an empty text is one, if it is given), or a value out of range, with the nearest one that is in it.
    """
    taken = dict(arguments)
    for name, flag in flags.items():
        _check_given(flag, arguments)
        if arguments.get(name) is not None:
            taken[name] = _as_taken(flag, arguments[name], fit=fit)
        _check_value(flag, taken.get(name, flag.default))
    _check_strength(taken)
    _check_order(taken)
    _check_words(taken)
    _check_tiles(taken)
    found = {name: value for name, value in taken.items() if not _is_empty(value)}
    if len(json.dumps(found)) > MOST_BYTES:
        raise UsageError(f"the call arguments are larger than {MOST_BYTES} bytes", "give fewer, or shorter ones")
    return found


def _is_empty(value: object) -> bool:
    return value is None or value == []


def _check_given(flag: Flag, arguments: Arguments) -> None:
    """Raises UsageError for a required argument that is missing. An empty text is a prompt where it is given."""
    value = arguments.get(flag.name, flag.default)
    blank = value == "" and (flag.kind != "text" or flag.name not in arguments)
    if flag.required and (blank or _is_empty(value)):
        hint = f"this pipeline needs it: {flag.help}" if flag.help else "give it"
        raise UsageError(f"{flag.option} is missing", hint)


def _as_taken(flag: Flag, value: object, *, fit: bool) -> object:
    """A value as the pipeline takes it: fitted, and in a list where it takes lists alone."""
    if fit and flag.multiple_of and isinstance(value, int) and value > 0:
        value = nearest(flag, value)[0]
    if flag.many and not flag.scalar:
        return _listed(value)  # in files, sweeps and --set, one value stands for a list of one
    return value


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _check_value(flag: Flag, value: object) -> None:
    items = _listed(value)
    if flag.most and len(items) > flag.most and flag.kind in MEDIA_KINDS:
        raise UsageError(f"{flag.option} is given {len(items)} times", f"this pipeline takes {flag.most} at most")
    for item in items:
        if isinstance(item, str):
            _check_text(flag, item)
        if isinstance(item, int | float) and not isinstance(item, bool):
            _check_range(flag, item)
    if flag.kind == "json" and flag.name.endswith("_kwargs") and not isinstance(value, dict | None):
        raise UsageError(f"{flag.option} must be a JSON object", """for example '{"scale": 0.8}'""")


def check_files(flags: Mapping[str, Flag], arguments: Arguments) -> None:
    """Raises NotFoundError for a media argument that does not exist, UsageError for one that is no file."""
    for name, flag in flags.items():
        if flag.kind not in MEDIA_KINDS or name not in arguments:
            continue
        for path in _listed(arguments[name]):
            _check_file(flag, str(path))
        if "ip_adapter" in name:
            problem = f"{flag.option} needs an IP-Adapter, which no pipeline can be built with yet"
            raise UsageError(problem, "leave it out")


def _check_file(flag: Flag, path: str) -> None:
    place = urls.on_disk(path) if urls.is_url(path) else path
    if not (presence.exists(path) if place is None else os.path.exists(place)):
        raise NotFoundError(f"{flag.option}: there is no file {urls.shown(path)}", "check the path")
    if place is not None and os.path.isdir(place) and flag.kind != "video":
        raise UsageError(f"{flag.option}: {urls.shown(path)} is a folder", "name a file in it")


def _check_text(flag: Flag, text: str) -> None:
    if len(text) > LONGEST_TEXT:
        problem = f"{flag.option} has {len(text)} characters"
        raise UsageError(problem, f"give it {LONGEST_TEXT} at most: models read a hundredth of that")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{flag.option} is not valid UTF-8", "save the text as UTF-8, or set a UTF-8 locale") from None


def _check_strength(arguments: Arguments) -> None:
    """Image-to-image pipelines run the last steps * strength steps (get_timesteps) and fail where that is none.

    They differ in how they round below one step: what is named is enough for all of them.
    """
    steps, strength = arguments.get("num_inference_steps"), arguments.get("strength")
    if isinstance(steps, int) and strength == 0:
        raise UsageError(
            f"--strength 0 leaves none of {steps} steps to run",
            f"give more: {math.ceil(1000 / steps) / 1000:g} runs one step",
        )


def _check_order(arguments: Arguments) -> None:
    """Raises UsageError for a part of the steps (of a ControlNet, of denoising) that ends before it starts."""
    for name, start in arguments.items():
        last = name.removesuffix("_start") + "_end"
        ends = _listed(arguments.get(last))
        for first, end in zip(_listed(start), ends, strict=False) if name.endswith("_start") else ():
            if isinstance(first, int | float) and isinstance(end, int | float) and first >= end:
                option = "--" + name.replace("_", "-")
                raise UsageError(
                    f"{option} {first:g} is not before {option.removesuffix('-start')}-end {end:g}: no step is left",
                    "give an end after the start",
                )


def _check_words(arguments: Arguments) -> None:
    """Words to emphasise are found among the prompt's tokens: they must be in it."""
    prompt = str(arguments.get("prompt") or "").lower()
    for word in _listed(arguments.get("words") or []):
        if str(word).lower() not in prompt:
            raise UsageError(f"--words {word}: the prompt does not have it", "name words as the prompt has them")


def _check_tiles(arguments: Arguments) -> None:
    tile, overlap = arguments.get("tile_size"), arguments.get("tile_overlap")
    if isinstance(tile, int) and isinstance(overlap, int) and overlap >= tile:
        raise UsageError(f"--tile-overlap {overlap} is not below --tile-size {tile}", "make the overlap smaller")


def _check_range(flag: Flag, value: float) -> None:
    low, high, step = flag.minimum, flag.maximum, flag.multiple_of
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{flag.option} {value} is not a finite number", f"give {_bounds(flag)}")
    if abs(value) > LARGEST:
        raise UsageError(f"{flag.option} {str(value)[:20]}… is out of range", f"give {_bounds(flag)}")
    if (low is not None and value < low) or (high is not None and value > high):
        raise UsageError(f"{flag.option} {value} is out of range", f"give {_bounds(flag)}")
    if step and value % step != flag.remainder:
        near = " or ".join(map(str, sorted(nearest(flag, int(value)))))
        form = f"not {step}n + {flag.remainder}" if flag.remainder else f"no multiple of {step}"
        raise UsageError(f"{flag.option} {value} is {form}", f"the nearest: {near}; --fit takes it by itself")


def _bounds(flag: Flag) -> str:
    """The range of a flag in words, its ends numbers that can be given."""
    low, high = (bound if bound is None or not flag.multiple_of else nearest(flag, math.ceil(bound))[0]
        for bound in (flag.minimum, flag.maximum))  # fmt: skip
    if low is not None and high is not None:
        return f"from {low:g} to {high:g}"
    return f"at least {low:g}" if low is not None else f"at most {high:g}" if high is not None else "a finite number"
