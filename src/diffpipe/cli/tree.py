"""Command groups whose commands are made when they are asked for, and help that groups options under headings.

Rich's markup is off (rich_markup_mode=None): it doubles the time of --help.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from textwrap import shorten
from typing import Any

from ..core.errors import DiffpipeError, UsageError
from . import typer_seam

SETTINGS = {"help_option_names": ["-h", "--help"]}


def _defaulted(help_option: Any) -> Any:
    """--help with a default of False: Typer validates an empty one with pydantic, whose import takes 50 ms."""
    if help_option is not None:
        help_option.default = False
    return help_option


class Command(typer_seam.TyperCommand):
    """A command whose help lists options under the headings named as their rich_help_panel."""

    def get_help_option(self, ctx: Any) -> Any:
        return _defaulted(super().get_help_option(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """While completing, only which options were given counts: values are not checked, as pydantic would.

        Raises UsageError for an option of one value that is given several.
        """
        if ctx.resilient_parsing:
            for parameter in self.get_params(ctx):
                parameter.process_value = _as_given  # type: ignore[assignment, method-assign]
        elif option := typer_seam.given_more_than_once(self, ctx, args):
            raise UsageError(f"{option} is given more than once", "it takes one value: leave out all but one")
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record:
                heading = getattr(parameter, "rich_help_panel", None)
                fallback = "Arguments" if parameter.param_type_name == "argument" else "Options"
                sections.setdefault(heading or fallback, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Flag names; all of them where nothing is typed yet, as a command is followed by nothing else."""
        return _described(super().shell_complete(ctx, incomplete or "-"))


def _as_given(_ctx: Any, value: Any) -> Any:
    return value


def _described(items: Any) -> Any:
    """Completions with the first sentence of their help: shells show one line, and Typer reads brackets as markup."""
    for item in items:
        sentence = (item.help or "").replace("[", "(").replace("]", ")").partition(". ")[0]
        item.help = shorten(sentence.removesuffix("."), 75, placeholder="…")
    return items


class LazyGroup(typer_seam.TyperGroup):
    """A group that knows names and one-line helps (`rows`) and makes a command (`make`) only to run or show it.

    `make` may take names that are not among the rows; for what it cannot make it returns None or raises DiffpipeError.
    """

    rows: Callable[[], Mapping[str, str]]
    make: Callable[[str], Any]

    def get_help_option(self, ctx: Any) -> Any:
        return _defaulted(super().get_help_option(ctx))

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.rows())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        try:
            return self.make(cmd_name)
        except DiffpipeError:
            if ctx.resilient_parsing:  # completing: say nothing
                return None
            raise

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rows = list(self.rows().items())
        with formatter.section("Commands"):
            formatter.write_dl(rows or [("(none yet)", "")])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        command = self.get_command(ctx, args[0])
        if command is None and not ctx.resilient_parsing and not args[0].startswith("-"):
            near = get_close_matches(args[0], self.list_commands(ctx), n=3)
            raise UsageError(
                f"{ctx.command_path} has no {args[0]!r}",
                f"did you mean {' or '.join(near)}?" if near else f"{ctx.command_path} --help lists what there is",
            )
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Names from the rows alone: making ten thousand commands to complete one would take seconds."""
        known = self.rows().items()
        rows = [typer_seam.completion_item(name, text) for name, text in known if name.startswith(incomplete)]
        return _described(rows + typer_seam.TyperCommand.shell_complete(self, ctx, incomplete))  # type: ignore[arg-type]


def group(
    name: str, text: str, rows: Callable[[], Mapping[str, str]], make: Callable[[str], Any], **options: Any
) -> LazyGroup:
    """A lazy group. `options` go to TyperGroup (params, callback, epilog, …)."""
    made = LazyGroup(
        name=name, help=text, no_args_is_help=True, context_settings=SETTINGS, rich_markup_mode=None, **options
    )
    made.rows = rows
    made.make = make
    return made


def command(name: str, function: Callable[..., Any], text: str, epilog: str | None = None) -> Any:
    """A command from a function whose signature says its parameters."""
    return typer_seam.command_from(name, function, Command, help=text, epilog=epilog, context_settings=SETTINGS)
