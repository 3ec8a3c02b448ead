"""diffpipe inspect FILE: what an output was made with."""

from __future__ import annotations

import json as jsons
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ..cache.entry import SHORT
from ..core.canonical import JsonValue
from ..core.configuration import Section
from ..core.errors import DiffpipeError, NotFoundError, UsageError
from ..core.source import Role
from ..results.document import Document, InputFile, ResultFacts, SourceFacts, parsed
from ..storage import fetching, urls
from . import output, tree

TEXT = "Show what a file was made with: pipeline, sources, arguments, seed, versions, device."
File = Annotated[Path, typer.Argument(metavar="FILE", help="A picture, video or sound, or a folder of frames.")]


def make() -> Any:
    return tree.command("inspect", inspect, TEXT)


def inspect(file: File, json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    found = texts_of(file)
    made = parsed(found["diffpipe"]) if "diffpipe" in found else None
    if json:
        said = {"diffpipe": made.json if made else None, "parameters": found.get("parameters")}
        output.result_json({"path": str(file), **said})
    elif made:
        output.table(("", ""), [(_line(name), _line(value)) for name, value in rows(made)])
    else:
        output.say(f"{file.name} was made by another tool; this is what it says:")
        output.results(found["parameters"])


def texts_of(file: Path) -> dict[str, str]:
    """The texts that a file carries, one at least.

    Raises NotFoundError for no file, UsageError for one that is no picture, video or sound, DiffpipeError for none.
    """
    if urls.was_url(file):
        raise UsageError(f"{file.name} is at a URL", "copy it here first")
    if not file.exists():
        raise NotFoundError(f"there is no file {file}", "check the path")
    from ..engine import media

    found = media.read_text(fetching.local(str(file)))
    if not found:
        raise DiffpipeError(
            f"{file.name} does not say what it was made with",
            "files made with --no-metadata, by most other tools, or sent through most web sites do not",
        )
    return found


def rows(made: Document) -> Iterator[tuple[str, JsonValue]]:
    """A document as lines for people: name and value. Digests are left to --json."""
    pipeline, config = made.pipeline, made.recipe.config
    yield "pipeline", f"{pipeline.class_name} ({pipeline.provider}, {pipeline.type})"
    yield "name", pipeline.name
    yield "key", pipeline.key
    for role, section in made.recipe.sections.items():
        title = {"base": "model", "component": role.name}.get(role.kind, role.kind)
        yield title, _source(role, section, made.recipe.sources.get(role))
    yield "dtype", config.dtype
    if scheduler := made.components.get("scheduler"):
        yield "scheduler", scheduler
    if config.quantization:
        yield "quantized", f"{config.quantization.mode} with {config.quantization.backend}"
    if config.without:
        yield "without", ", ".join(config.without)
    yield from _switches(made)
    yield "seed", made.seed
    yield from sorted(made.arguments.items())
    yield from ((name, _media(files)) for name, files in made.media.items())
    yield "result", _result(made.result)
    yield from (("warning", text) for text in made.warnings)
    yield "device", made.device
    yield "versions", ", ".join(f"{name} {version}" for name, version in made.versions.items())


def _switches(made: Document) -> Iterator[tuple[str, JsonValue]]:
    """What was not as it is by default of how the pipeline was kept in memory and run."""
    config = made.recipe.config
    placed = {name: value for name, value in config.placement.to_json().items() if not name.startswith("quantize")}
    less = made.stepped_down.to_json() if made.stepped_down else {}
    for title, values in (("placement", placed), ("speed", config.speed.to_json()), ("stepped down to", less)):
        yield from ((f"{title} {name}", value) for name, value in sorted(values.items()))


def _source(role: Role, section: Section, source: SourceFacts | None) -> str:
    """ "owner/name@c0ffee0", "ink.safetensors at 0.5 (local)"."""
    label = (source.label if source else "") or section.repository or next(iter(section.files), "")
    commit = f"@{section.commit[:7]}" if section.kind == "hub" else ""
    scale = f" at {section.scale:g}" if role.kind == "lora" else ""
    scale += f" in {section.into}" if section.into else ""
    local = " (local)" if section.kind == "local" and not (source and source.kind == "embedded") else ""
    return f"{label}{commit}{scale}{local}"


def _media(files: InputFile | list[InputFile]) -> str:
    listed = files if isinstance(files, list) else [files]
    return ", ".join(f"{one.file} ({one.digest[: 7 + SHORT]})" for one in listed)


def _result(result: ResultFacts) -> str:
    """ "png, 128 x 128, 2 of 4"."""
    sizes = result.sizes
    size = f"{sizes['width']} x {sizes['height']}" if {"width", "height"} <= sizes.keys() else ""
    units = {"frames": "frames", "fps": "frames a second", "duration": "s", "rate": "Hz", "channels": "channels"}
    more = [f"{value:g} {unit}" for name, unit in units.items() if isinstance(value := sizes.get(name), int | float)]
    place = f"{result.index + 1} of {result.of}" if result.of > 1 else ""
    role = sizes.get("role")
    return ", ".join(filter(None, [result.format, size, *more, role if isinstance(role, str) else "", place]))


def _line(value: JsonValue) -> str:
    """A value on one line."""
    text = value if isinstance(value, str) else jsons.dumps(value, ensure_ascii=False)
    return text.replace("\n", "⏎")
