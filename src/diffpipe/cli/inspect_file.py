"""diffpipe inspect FILE: what an output was made with."""

from __future__ import annotations

import json as jsons
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..cache.entry import SHORT
from ..core.errors import DiffpipeError, NotFoundError, UsageError
from ..results import metadata
from ..storage import urls
from . import output, tree

TEXT = "Show what a file was made with: pipeline, sources, arguments, seed, versions, device."
File = Annotated[Path, typer.Argument(metavar="FILE", help="A picture, video or sound, or a folder of frames.")]


def make() -> Any:
    return tree.command("inspect", inspect, TEXT)


def inspect(file: File, json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    found = texts_of(file)
    made = metadata.parsed(found["diffpipe"]) if "diffpipe" in found else None
    if json:
        output.result_json({"path": str(file), "diffpipe": made, "parameters": found.get("parameters")})
    elif made:
        try:
            shown = [(_line(name), _line(value)) for name, value in rows(made)]
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise metadata.damaged() from error
        output.table(("", ""), shown)
    else:
        output.say(f"{file.name} was made by another tool; this is what it says:")
        output.result(plain(found["parameters"]))


def texts_of(file: Path) -> dict[str, str]:
    """The texts that a file carries, one at least.

    Raises NotFoundError for no file, UsageError for one that is no picture, video or sound, DiffpipeError for none.
    """
    if urls.was_url(file):
        raise UsageError(f"{file.name} is at a URL", "copy it here first")
    if not file.exists():
        raise NotFoundError(f"there is no file {file}", "check the path")
    from ..engine import media

    found = media.read_text(file)
    if not found:
        raise DiffpipeError(
            f"{file.name} does not say what it was made with",
            "files made with --no-metadata, by most other tools, or sent through most web sites do not",
        )
    return found


def rows(made: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """A document as lines for people: name and value. Digests are left to --json."""
    pipeline, config = made["pipeline"], made["config"]
    yield "pipeline", f"{pipeline['class']} ({pipeline['provider']}, {pipeline['type']})"
    yield "name", pipeline["name"]
    yield "key", pipeline["key"]
    sources = {source["role"]: source for source in made["sources"]}
    for role, section in metadata.sections_of(config):
        kind, _, name = role.partition(":")
        yield {"base": "model", "component": name}.get(kind, kind), _source(section, sources.get(role, {}))
    yield "dtype", config.get("dtype")
    scheduler = made["components"].get("scheduler")
    if scheduler:
        yield "scheduler", scheduler
    if config.get("quantization"):
        quantized = config["quantization"]
        yield "quantized", f"{quantized.get('mode')} with {quantized.get('backend')}"
    placed = {name: value for name, value in (config.get("placement") or {}).items() if name != "device"}
    yield from ((f"placement {name}", value) for name, value in placed.items())
    for title, told in (("speed", config.get("speed")), ("stepped down to", made.get("stepped_down"))):
        yield from ((f"{title} {name}", value) for name, value in (told.items() if isinstance(told, dict) else ()))
    yield "seed", made["seed"]
    yield from sorted(made["arguments"].items())
    yield from ((name, _media(value)) for name, value in made["media"].items())
    yield "result", _result(made["result"])
    yield "device", made["device"]
    yield "versions", ", ".join(f"{name} {version}" for name, version in made["versions"].items())


def _source(section: Mapping[str, Any], source: Mapping[str, Any]) -> str:
    """ "owner/name@c0ffee0", "ink.safetensors at 0.5 (local)"."""
    label = source.get("label") or section.get("repository") or next(iter(section["files"]))
    commit = f"@{section['commit'][:7]}" if section["kind"] == "hub" else ""
    scale = f" at {section['scale']:g}" if "scale" in section else ""
    local = " (local)" if section["kind"] == "local" and source.get("kind") != "embedded" else ""
    return f"{label}{commit}{scale}{local}"


def _media(value: Any) -> str:
    listed = value if isinstance(value, list) else [value]
    return ", ".join(f"{one.get('file')} ({str(one.get('digest'))[: 7 + SHORT]})" for one in listed)


def _result(result: Mapping[str, Any]) -> str:
    """ "png, 128 x 128, 2 of 4"."""
    size = f"{result['width']} x {result['height']}" if {"width", "height"} <= result.keys() else ""
    names = {"frames": "frames", "fps": "frames a second", "duration": "s", "rate": "Hz", "channels": "channels"}
    more = [f"{result[name]:g} {unit}" for name, unit in names.items() if isinstance(result.get(name), int | float)]
    place = f"{result['index'] + 1} of {result['of']}" if result["of"] > 1 else ""
    return ", ".join(filter(None, [result["format"], size, *more, result.get("role"), place]))


def _line(value: Any) -> str:
    """A value on one line."""
    text = value if isinstance(value, str) else jsons.dumps(value, ensure_ascii=False)
    return plain(text.replace("\n", "⏎"))


def plain(text: str) -> str:
    """Text without what a terminal would take for a command: the file may come from anywhere."""
    return "".join(c for c in text if c == "\n" or unicodedata.category(c) not in ("Cc", "Cs"))
