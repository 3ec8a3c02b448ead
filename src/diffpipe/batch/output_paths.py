"""Where results go: a template with fields -> paths that are safe on every file system."""

from __future__ import annotations

import os
import re
import string
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..core.counter import CompactCounter
from ..core.errors import UsageError
from ..core.flag import FORMATS, MAX_SEED, NOUNS, OutputKind
from ..core.names import RESERVED
from ..storage import presence, stores, urls
from ..storage.disk import check_replaceable

FIELDS = ("name", "key", "id", "index", "seed", "prompt", "ext")
DEFAULT_TEMPLATE = "{name}-{seed}.{ext}"
BATCH_TEMPLATE = "{name}-{id}.{ext}"  # an item's name must not depend on its place in a file
SAFE = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,150}[A-Za-z0-9_])?")
LONGEST = 200  # bytes of a file name; most file systems stop at 255


@dataclass(frozen=True)
class Outputs:
    """Where results go: a template with fields, the file format, whether files may be replaced; what they are.

    `fps`: frames a second of videos, None for the pipeline's own. `default`: the template where none is given.
    """

    template: str | None = None
    format: str | None = None
    overwrite: bool = False
    kind: OutputKind = "image"
    fps: float | None = None
    default: str = DEFAULT_TEMPLATE


def folder_of(outputs: Outputs) -> Path:
    """The folder that all results are in: the folders of the template before its first field."""
    return Path(base_of(outputs))


def base_of(outputs: Outputs) -> str:
    """The same as text, which may be a URL."""
    template, _ = whole_template(outputs)
    names = template.split("/")[:-1]
    fixed = next((at for at, name in enumerate(names) if "{" in name.replace("{{", "")), len(names))
    return fill("/".join(names[:fixed]) or ("/" if template.startswith("/") else "."), {})


def within(outputs: Outputs, template: str) -> Outputs:
    """Outputs with an item's own template, which lies in the folder of all results and ends as it says itself.

    Raises UsageError for one that leads out of it.
    """
    away = Path(template).is_absolute() or re.match(r"[A-Za-z]:", template) or urls.is_url(template)
    if away or ".." in re.split(r"[/\\]", template):
        problem = f"the output {urls.shown(template)!r} leads out of the output folder"
        raise UsageError(problem, "give a path inside it")
    base = base_of(outputs)
    folder = (base if urls.is_url(base) else str(Path(base))).replace("{", "{{").replace("}", "}}")
    return replace(outputs, template=template if folder == "." else f"{folder}/{template}")


def paths(
    template: tuple[str, str],
    values: Mapping[str, int | str],
    numbers: Iterable[int],
    outputs: Outputs,
    taken: CompactCounter,
    own: Collection[str],
    *,
    unique: bool = False,
) -> list[str]:
    """The path of each of an item's results, which have these numbers in the run; they are `taken` then.

    `values` fill the `template` (index and ext apart). `own` are the absolute paths (and URLs as shown) of files that
    are the item's anyway. `unique`: its template must not lead to what is taken. Raises UsageError for a file that is
    there already, and for a path at which none can be.
    """
    found: list[str] = []
    for number in numbers:
        filled = fill(template[0], {**values, "index": number, "ext": template[1]})
        path = urls.normal(filled) if "://" in filled and urls.is_url(filled) else os.path.normpath(filled)
        if os.path.splitext(path)[1][1:].lower() not in FORMATS[outputs.kind]:
            name = os.path.basename(path)
            raise UsageError(
                f"--output: {name} is no name for a {NOUNS[outputs.kind]}", "give it a name before the dot"
            )
        if unique and not found and taken[path]:
            problem = f"{urls.shown(path)} is the output of an earlier item"
            raise UsageError(problem, "give each its own, for example with {id}")
        free = _free(path, outputs.template is None and not outputs.overwrite, taken, own)
        _check_place(free)
        if not outputs.overwrite and _in_use(free, own):
            raise UsageError(f"{urls.shown(free)} exists already", "choose another --output, or pass --overwrite")
        found.append(free)
    return found


def _free(path: str, steps_aside: bool, taken: CompactCounter, own: Collection[str]) -> str:
    """A path that no result of the run has yet; one that `steps_aside` for files that are there too."""
    number = taken.add(path)
    if number == 1 and not (steps_aside and _in_use(path, own)):
        return path
    stem, ending = os.path.splitext(path)
    while True:
        free = f"{stem}-{max(number, 2)}{ending}"
        if not taken[free] and not (steps_aside and _in_use(free, own)):
            taken.add(free)
            return free
        number = taken.add(path)


def _in_use(path: str, own: Collection[str]) -> bool:
    if "://" in path:  # in no path that is normal
        return urls.shown(path) not in own and presence.exists(path)
    return os.path.lexists(path) and os.path.abspath(path) not in own


def _check_place(path: str) -> None:
    """Raises UsageError for a path at which no file can be made: a file in place of a folder, an over-long name."""
    if "://" in path:
        _check_url(path)
        return
    if os.path.isdir(path) and not path.endswith(".frames"):
        raise UsageError(f"--output: {path} is a folder", "end it in / to put files into it")
    if os.path.lexists(path):
        check_replaceable(Path(path))
    if any(len(os.fsencode(part)) > 255 for part in path.split(os.sep)):
        raise UsageError("--output has a name of more than 255 bytes", "make it shorter, for example {prompt:.40}")
    if os.path.isdir(os.path.dirname(path) or "."):
        return
    folder = next(parent for parent in Path(path).absolute().parents if os.path.lexists(parent))
    if not os.path.isdir(folder):
        raise UsageError(f"--output: {folder} is a file, not a folder", "choose another place")


def _check_url(url: str) -> None:
    if place := urls.on_disk(url):
        _check_place(place)
    elif len(urls.split(url)[2].encode(errors="surrogatepass")) > urls.LONGEST:
        problem = f"--output has a path of more than {urls.LONGEST} bytes"
        raise UsageError(problem, "make it shorter, for example {prompt:.40}")


def whole_template(outputs: Outputs) -> tuple[str, str]:
    """The template to fill and the extension: from --format, else the template's own ending, else png.

    Raises UsageError for a template that cannot be used.
    """
    template = outputs.default if outputs.template is None else outputs.template
    if urls.is_url(template):
        template = _whole_url(template, outputs)
    elif template.endswith(("/", "\\")) or os.path.isdir(template):
        template = str(Path(template) / outputs.default)
    else:
        _check_file(template)
    check_template(template)
    literal, field, _, _ = list(string.Formatter().parse(template))[-1]
    _, dot, ending = literal.rpartition("/")[2].rpartition(".")
    own = ending.lower() if field is None and dot else ""
    known = FORMATS[outputs.kind]
    extension = outputs.format or own or known[0]
    if extension not in known:
        raise UsageError(f"{NOUNS[outputs.kind]}s are not written as .{extension}", f"use {_endings(known)}")
    if own and outputs.format and own != outputs.format:
        raise UsageError(f"--output ends in .{own} but --format is {outputs.format}", "leave one of them out")
    if not own and not template.endswith(".{ext}"):
        template += ".{ext}"
    return template, extension


def _check_file(template: str) -> None:
    """Raises UsageError for what other tools take for a stream: it would get an ending, and be a file beside it."""
    if template == "-":
        raise UsageError("--output: results are files, and - is none", "name a file or a folder")
    if "://" in template:  # zip::file://x, file://
        raise UsageError(f"--output: {urls.shown(template)!r} is no URL of a file", "as s3://bucket/folder/")
    if os.path.exists(template):
        check_replaceable(Path(os.path.realpath(template)))


def _whole_url(template: str, outputs: Outputs) -> str:
    """A URL's template; one of a folder (or bucket) with the name of each file."""
    stores.check_output(template)
    if outputs.format == "frames" or template.endswith((".frames", ".frames/")):
        raise UsageError("--output: folders of frames are not written to URLs", "use .mp4, .webm or .gif, or a folder")
    _, authority, path = urls.split(template)
    if not authority and not path:
        raise UsageError(f"--output: {template!r} is no URL of a file", "as s3://bucket/folder/")
    bare = not path
    return f"{template.rstrip('/')}/{outputs.default}" if bare or template.endswith("/") else template


def _endings(known: Collection[str]) -> str:
    """ ".png, .jpg or .webp"; "frames" is no ending that anybody knows."""
    *most, last = (f".{form}" if form != "frames" else "a folder of pictures (--format frames)" for form in known)
    return f"{', '.join(most)} or {last}"


def check_template(template: str) -> None:
    """Raises UsageError unless a template is well formed and names known fields only."""
    example = "for example out/{index:03d}-{seed}.{ext}"
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError:
        hint = f"{example}; {{{{ stands for {{"
        raise UsageError(f"--output: a brace in {urls.shown(template)!r} has no partner", hint) from None
    for _, field, spec, conversion in parts:
        if field is None:
            continue
        if field not in FIELDS or conversion:
            raise UsageError(f"--output: there is no field {{{field}}}", f"the fields are: {' '.join(FIELDS)}")
        if re.search(r"\d{4}", spec or ""):
            raise UsageError(f"--output: {spec} is too wide for a file name", example)
        try:
            format(MAX_SEED if field in ("index", "seed") else "x", spec or "")
        except (ValueError, OverflowError):
            raise UsageError(f"--output: {{{field}:{spec}}} is no way to write the {field}", example) from None
    if not template.strip() or any(unicodedata.category(letter) == "Cc" for letter in template):
        raise UsageError("--output is no path", "for example out/{index:03d}-{seed}.{ext}")


def fill(template: str, values: Mapping[str, int | str]) -> str:
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
    if SAFE.fullmatch(text):  # most are: ids, names, keys
        return text
    plain = unicodedata.normalize("NFC", text)
    plain = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") else c for c in plain)
    plain = re.sub(r'[<>:"/\\|?*\s]+', "-", plain).strip("-. ")
    return _cut(plain, LONGEST)


def _cut(text: str, size: int) -> str:
    """The longest start of a text of at most `size` bytes in UTF-8 (file systems count bytes, not letters)."""
    return text.encode(errors="replace")[:size].decode(errors="ignore")
