"""Flags as data -> a command's parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

from ..batch.argument_values import NoJson, json_of
from ..core.canonical import JsonValue
from ..core.errors import UsageError
from ..core.flag import MEDIA_KINDS, Flag
from ..core.printable import printable

TYPES: dict[str, Any] = {"text": str, "integer": int, "number": float, "boolean": bool, "json": str}
CONTEXT = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)  # Typer fills it in
METAVARS = {"text": "TEXT", "integer": "INTEGER", "number": "NUMBER", "json": "JSON"}


def option(name: str, kind: Any, default: Any, text: str, *declared: str, panel: str, **more: Any) -> inspect.Parameter:
    """An option of our own as the parameter of a Typer command; `more` goes to typer.Option."""
    made = typer.Option(*declared or ("--" + name.replace("_", "-"),), help=text, rich_help_panel=panel, **more)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, made])


def reporting(panel: str, json_help: str) -> list[inspect.Parameter]:
    """The options that say what is shown, the same for every long command."""
    return [
        option("json", bool, False, json_help, "--json", panel=panel),
        option("quiet", bool, False, "Print nothing but results and errors.", "--quiet", "-q", panel=panel),
        option("verbose", bool, False, "Show the detailed log.", "--verbose", "-v", panel=panel),
        option("log_file", Path | None, None, "Write the detailed log to a file.", panel=panel, metavar="FILE"),
    ]


def parameter(flag: Flag, panel: str) -> inspect.Parameter:
    """A flag as the parameter of a Typer command. Ranges are checked later, with hints (batch.checked)."""
    base: Any = TYPES.get(flag.kind, str)
    if flag.kind == "choice":
        base = Literal[flag.choices]
    options: dict[str, Any] = {"help": _help(flag), "rich_help_panel": panel, "show_default": _default(flag)}
    if flag.kind in MEDIA_KINDS:
        options["metavar"] = "FILE|URL"
    elif flag.kind in METAVARS:
        options["metavar"] = METAVARS[flag.kind]
    declared = flag.option
    if flag.kind == "boolean":
        declared += f"/--no-{declared[2:]}"
    # A file that is named twice must be noticed: of an option that takes one value, Typer keeps the last.
    annotation: Any = list[base] if flag.many or flag.kind in MEDIA_KINDS else base
    default = None if flag.kind == "json" or flag.default is None else flag.default
    if (flag.many or flag.kind in MEDIA_KINDS) and default is not None and not isinstance(default, list):
        default = [default]
    return inspect.Parameter(
        flag.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[Optional[annotation], typer.Option(declared, **options)],
    )


def available(flags: Iterable[Flag], own: Iterable[inspect.Parameter]) -> Iterator[Flag]:
    """The flags whose name and options neither ours, --help nor an earlier one has: --set takes the others."""
    names = {CONTEXT.name}
    options = {"--help", "-h"}
    for one in own:
        names.add(one.name)
        (declared,) = one.annotation.__metadata__
        options |= {word for words in declared.param_decls for word in words.split("/")}
    for flag in flags:
        words = {flag.option, f"--no-{flag.option[2:]}"} if flag.kind == "boolean" else {flag.option}
        if flag.name not in names and not words & options:
            names.add(flag.name)
            options |= words
            yield flag


def _help(flag: Flag) -> str:
    text = printable(flag.help or f"{flag.name.replace('_', ' ')}.")
    if flag.many:
        text += " May be repeated."
    if flag.minimum is not None and flag.maximum is not None:
        text += f" [{flag.minimum:g} to {flag.maximum:g}]"
    return text + (" [required]" if flag.required else "")


def _default(flag: Flag) -> bool | str:
    """Whether and how the default is shown: prompt templates of a page are cut."""
    shown = flag.default not in (None, "", []) and flag.kind != "json"
    text = printable(str(flag.default))
    return f"{text[:40]}..." if shown and len(text) > 60 else text if shown and text != str(flag.default) else shown


def with_parameters(function: Callable[..., Any], parameters: Iterable[inspect.Parameter]) -> Callable[..., Any]:
    """A function of keyword arguments dressed with the given parameters, for Typer to read.

    Set on the function itself: Typer reads both the signature and the annotations.
    """
    listed = list(parameters)
    function.__signature__ = inspect.Signature(listed)  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in listed}
    return function


def arguments(flags: Iterable[Flag], values: Mapping[str, Any]) -> dict[str, Any]:
    """Call arguments from a command's parsed values: JSON decoded, single values of lists bare where they may be.

    Raises UsageError for text that is no JSON, and for several files where one is taken.
    """
    called: dict[str, Any] = {}
    for flag in flags:
        value = values.get(flag.name)
        if flag.kind == "json" and value is not None:
            value = parse_json(value, flag.option)
        if not flag.many and flag.kind in MEDIA_KINDS and isinstance(value, list | tuple):
            if len(value) > 1:
                raise UsageError(f"{flag.option} is given {len(value)} times", "this pipeline takes one")
            value = value[0] if value else None
        if flag.many and isinstance(value, list | tuple):
            value = value[0] if flag.scalar and len(value) == 1 else list(value)
        if value is not None and value != []:
            called[flag.name] = value
    return called


def parse_json(text: str, option: str, example: str = '{"scale": 0.8}') -> JsonValue:
    """Raises UsageError, with the column and an example, for text that is no JSON."""
    try:
        return json_of(text)
    except NoJson as error:
        raise UsageError(f"{option} is no JSON at column {error.column}: {text}", f"for example '{example}'") from None
