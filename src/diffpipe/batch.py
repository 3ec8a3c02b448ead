"""Call arguments, seeds and an output template -> requests."""

from __future__ import annotations

import math
import os
import re
import secrets
import string
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UsageError
from .specs import FORMATS, MEDIA_KINDS, NOUNS, Flag, OutputKind, Request, digest, nearest

SEEDS = 2**32  # seeds are drawn below this: short enough to type, and every tool accepts them
MAX_SEED = 2**64 - 1  # torch.Generator.manual_seed
MOST = 1_000_000  # items of one run
FIELDS = ("name", "key", "id", "index", "seed", "prompt", "ext")
PER_CALL = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")
DEFAULT_TEMPLATE = "{name}-{seed}.{ext}"
RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
LONGEST = 200  # bytes of a file name; most file systems stop at 255


@dataclass(frozen=True)
class Outputs:
    """Where results go: a template with fields, the file format, whether files may be replaced; what they are.

    `fps`: frames a second of videos, None for the pipeline's own.
    """

    template: str | None = None
    format: str | None = None
    overwrite: bool = False
    kind: OutputKind = "image"
    fps: float | None = None


def requests(
    arguments: Mapping[str, Any], seed: int | None, count: int, outputs: Outputs, name: str, key: str
) -> list[Request]:
    """`count` requests with the seeds seed, seed + 1, …, each with the paths of all its pictures.

    Raises UsageError for a template that cannot be used or a file that is there already.
    """
    if not 1 <= count <= MOST:
        raise UsageError(f"--count {count} is out of range", f"give from 1 to {MOST}")
    first = secrets.randbelow(SEEDS - count) if seed is None else seed
    if not 0 <= first <= MAX_SEED - count + 1:
        more = f", and --count {count} needs as many" if count > 1 else ""
        raise UsageError(f"--seed {first} is out of range", f"seeds go from 0 to {MAX_SEED}{more}")
    per_call = max(int(arguments.get(name) or 1) for name in PER_CALL)
    paths = _paths(arguments, first, count, per_call, outputs, name, key)
    return [
        Request(
            index, first + index, arguments, tuple(next(paths) for _ in range(per_call)), outputs.overwrite, outputs.fps
        )
        for index in range(count)
    ]


def _paths(
    arguments: Mapping[str, Any], first: int, count: int, per_call: int, outputs: Outputs, name: str, key: str
) -> Iterator[str]:
    template, extension = _template(outputs)
    steps_aside = outputs.template is None and not outputs.overwrite
    last: dict[str, int] = {}  # path -> the number that was last added to it to tell it from others of this run
    for number in range(count * per_call):
        seed = first + number // per_call
        values = {
            "name": name,
            "key": key[:12],
            "id": digest({"arguments": arguments, "seed": seed, "key": key})[:12],
            "index": number + 1,
            "seed": seed,
            "prompt": str(arguments.get("prompt") or ""),
            "ext": extension,
        }
        path = Path(fill(template, values))
        if path.suffix[1:].lower() not in FORMATS[outputs.kind]:
            raise UsageError(
                f"--output: {path.name} is no name for a {NOUNS[outputs.kind]}", "give it a name before the dot"
            )
        free = str(path)
        while free in last or (steps_aside and os.path.lexists(free)):
            last[str(path)] = last.get(str(path), 1) + 1
            free = str(path.with_name(f"{path.stem}-{last[str(path)]}{path.suffix}"))
        _check_place(Path(free))
        if os.path.lexists(free) and not outputs.overwrite:
            raise UsageError(f"{free} exists already", "choose another --output, or pass --overwrite")
        last.setdefault(free, 1)
        yield free


def _check_place(path: Path) -> None:
    """Raises UsageError for a path at which no file can be made: a file in place of a folder, an over-long name."""
    if os.path.isdir(path):
        raise UsageError(f"--output: {path} is a folder", "end it in / to put files into it")
    if any(len(os.fsencode(part)) > 255 for part in path.parts):
        raise UsageError("--output has a name of more than 255 bytes", "make it shorter, for example {prompt:.40}")
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not os.path.isdir(folder):
        raise UsageError(f"--output: {folder} is a file, not a folder", "choose another place")


def _template(outputs: Outputs) -> tuple[str, str]:
    """The template to fill and the extension: from --format, else the template's own ending, else png."""
    template = DEFAULT_TEMPLATE if outputs.template is None else outputs.template
    if template.endswith(("/", "\\")) or os.path.isdir(template):
        template = str(Path(template) / DEFAULT_TEMPLATE)
    check_template(template)
    literal, field, _, _ = list(string.Formatter().parse(template))[-1]
    _, dot, ending = literal.rpartition("/")[2].rpartition(".")
    own = ending.lower() if field is None and dot else ""
    known = FORMATS[outputs.kind]
    extension = outputs.format or own or known[0]
    if extension not in known:
        raise UsageError(
            f"{NOUNS[outputs.kind]}s are not written as .{extension}",
            f"use {' or '.join('.' + name for name in known)}",
        )
    if own and outputs.format and own != outputs.format:
        raise UsageError(f"--output ends in .{own} but --format is {outputs.format}", "leave one of them out")
    if not own and not template.endswith(".{ext}"):
        template += ".{ext}"
    return template, extension


def check_template(template: str) -> None:
    """Raises UsageError unless a template is well formed and names known fields only."""
    try:
        for _, field, spec, conversion in string.Formatter().parse(template):
            if field is None:
                continue
            if field not in FIELDS or conversion:
                raise UsageError(f"--output: there is no field {{{field}}}", f"the fields are: {' '.join(FIELDS)}")
            if re.search(r"\d{4}", spec or ""):
                raise ValueError(f"{spec} is too wide for a file name")
            format(MAX_SEED if field in ("index", "seed") else "x", spec or "")
    except (ValueError, OverflowError) as error:
        raise UsageError(f"--output: {error}", "for example out/{index:03d}-{seed}.{ext}") from None
    if not template.strip() or any(unicodedata.category(letter) == "Cc" for letter in template):
        raise UsageError("--output is no path", "for example out/{index:03d}-{seed}.{ext}")


def fill(template: str, values: Mapping[str, Any]) -> str:
    """A template with its fields filled; no field can add a folder, a reserved name or an over-long one."""
    names = [""]
    filled = set()  # which of the names have a field in them; what the user wrote in full stays as it is
    for literal, field, spec, _ in string.Formatter().parse(template):
        first, *more = literal.split("/")
        names[-1] += first
        names += more
        if field is not None:
            names[-1] += safe_name(format(values[field], spec or "")) or "_"
            filled.add(len(names) - 1)
    return "/".join(_whole_name(name) if number in filled else name for number, name in enumerate(names))


def _whole_name(name: str) -> str:
    """A file or folder name cut to a length that fits, its ending kept; a name that Windows reserves marked."""
    stem, dot, ending = name.rpartition(".")
    short = f"{_cut(stem, LONGEST - len(ending) - 1)}.{ending}" if dot and len(ending) < 10 else _cut(name, LONGEST)
    return f"_{short}" if RESERVED.fullmatch(short) else short


def safe_name(text: str) -> str:
    """Text as part of a file name on any system: no separators, control characters, or edge dots and spaces."""
    plain = unicodedata.normalize("NFC", text)
    plain = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") else c for c in plain)
    plain = re.sub(r'[<>:"/\\|?*\s]+', "-", plain).strip("-. ")
    return _cut(plain, LONGEST)


def _cut(text: str, size: int) -> str:
    """The longest start of a text of at most `size` bytes in UTF-8 (file systems count bytes, not letters)."""
    return text.encode(errors="replace")[:size].decode(errors="ignore")


def checked(flags: Mapping[str, Flag], arguments: Mapping[str, Any], *, fit: bool = False) -> dict[str, Any]:
    """Arguments with what is empty left out; every value in its flag's range.

    `fit`: take the nearest size or number of frames that the pipeline can make. Raises UsageError for a missing
    argument, or a value out of range, with the nearest one that is in it.
    """
    fitted = dict(arguments)
    for name, flag in flags.items():
        option = "--" + name.replace("_", "-")
        value = arguments.get(name, flag.default)
        if flag.required and value in (None, [], ""):
            raise UsageError(f"{option} is missing", f"this pipeline needs it: {flag.help}" if flag.help else "give it")
        if fit and flag.multiple_of and isinstance(value, int) and name in arguments:
            value = fitted[name] = nearest(flag, value)[0]
        items = value if isinstance(value, list) else [value]
        if flag.most and len(items) > flag.most and flag.kind in MEDIA_KINDS:
            raise UsageError(f"{option} is given {len(items)} times", f"this pipeline takes {flag.most} at most")
        for item in items:
            if isinstance(item, str):
                _check_text(option, item)
            if isinstance(item, int | float) and not isinstance(item, bool):
                _check_range(flag, option, item)
        if flag.kind == "json" and name.endswith("_kwargs") and not isinstance(value, dict | None):
            raise UsageError(f"{option} must be a JSON object", """for example '{"scale": 0.8}'""")
    _check_strength(fitted)
    return {name: value for name, value in fitted.items() if value not in (None, [])}


def _check_text(option: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{option} is not valid UTF-8", "save the text as UTF-8, or set a UTF-8 locale") from None


def _check_strength(arguments: Mapping[str, Any]) -> None:
    """Image-to-image pipelines run the last steps * strength steps (get_timesteps) and fail where that is none."""
    steps, strength = arguments.get("num_inference_steps"), arguments.get("strength")
    if isinstance(steps, int) and strength == 0:
        raise UsageError(
            f"--strength 0 leaves none of {steps} steps to run",
            f"give at least {math.ceil(1000 / steps) / 1000:g}, which is one step",
        )


def _check_range(flag: Flag, option: str, value: float) -> None:
    low, high, step = flag.minimum, flag.maximum, flag.multiple_of
    if (
        (isinstance(value, float) and not math.isfinite(value))
        or (low is not None and value < low)
        or (high is not None and value > high)
    ):
        bounds = (
            f"from {low:g} to {high:g}"
            if low is not None and high is not None
            else (f"at least {low:g}" if low is not None else f"at most {high:g}" if high is not None else "a number")
        )
        raise UsageError(f"{option} {value} is out of range", f"give {bounds}")
    if step and value % step != flag.remainder:
        near = " or ".join(map(str, sorted(nearest(flag, int(value)))))
        form = f"not {step}n + {flag.remainder}" if flag.remainder else f"no multiple of {step}"
        raise UsageError(f"{option} {value} is {form}", f"the nearest: {near}; --fit takes it by itself")
