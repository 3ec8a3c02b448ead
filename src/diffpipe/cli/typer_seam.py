"""What diffpipe uses of Typer beyond its documentation. Tried with Typer 0.26 to 0.29 (tests/cli/test_typer_seam.py).

- `TyperGroup`, `TyperCommand`: the classes of Typer's own groups and commands. Typer documents subclasses of TyperGroup
  for the order of commands; here a group makes its commands when they are asked for. Without that, ten thousand built
  pipelines would be ten thousand commands at every start.
- `command_from`: a command from one function, without an application around it. Without it an application would have to
  be made for each pipeline, and its callback taken apart.
- `completion_item`: what a completion is made of; Typer carries its own copy of click, which is not to be imported.
- `given_more_than_once`: options as they stand on the command line, by the order that a command's parser keeps of them.
  Without it the last of two values would win in silence.
- `register_shells`: the shells that Typer completes for, registered as `typer.Typer()` does it. Without it
  `_DIFFPIPE_COMPLETE` is answered for none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from typer import core
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command_from_info
from typer.models import CommandInfo

__all__ = ["TyperCommand", "TyperGroup", "command_from", "completion_item", "given_more_than_once", "register_shells"]


def command_from(name: str, function: Callable[..., Any], cls: type[TyperCommand], **details: Any) -> Any:
    """A command from a function whose signature says its parameters. `details`: fields of Typer's CommandInfo."""
    info = CommandInfo(name=name, cls=cls, callback=function, **details)
    return get_command_from_info(info, pretty_exceptions_short=False, rich_markup_mode=None)


def completion_item(value: str, text: str) -> Any:
    return core.CompletionItem(value, help=text)  # type: ignore[attr-defined]


def given_more_than_once(command: TyperCommand, ctx: Any, args: list[str]) -> str:
    """The first option that takes one value and is given several, or is both set and unset; "" where none is.

    Raises what Typer raises for arguments that it cannot read.
    """
    _, _, order = command.make_parser(ctx).parse_args(args=list(args))
    words = set(args)
    option: Any  # of Typer's own class, which it does not name
    for option in dict.fromkeys(order):
        if option.param_type_name != "option" or option.multiple or option.count:
            continue
        both = words & set(option.opts) and words & set(option.secondary_opts)
        if both or (not option.is_flag and order.count(option) > 1):
            return str(max([*option.opts], key=len))
    return ""


def register_shells() -> None:
    from typer.completion import get_completion_inspect_parameters

    get_completion_inspect_parameters()
