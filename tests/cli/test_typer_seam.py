"""What diffpipe uses of Typer beyond its documentation is there, and does what it is used for."""

from __future__ import annotations

from typing import Any

from diffpipe.cli import typer_seam


def test_a_group_asks_for_its_commands_one_by_one() -> None:
    asked: list[str] = []

    class Group(typer_seam.TyperGroup):
        def list_commands(self, ctx: Any) -> list[str]:
            return ["a", "b"]

        def get_command(self, ctx: Any, name: str) -> Any:
            asked.append(name)
            return typer_seam.command_from(name, lambda: name, typer_seam.TyperCommand, help=f"says {name}")

    group = Group(name="x", no_args_is_help=True)
    assert group(args=["b"], prog_name="x", standalone_mode=False) == "b"
    assert set(asked) == {"b"}


def test_a_command_is_made_of_a_functions_signature() -> None:
    def add(left: int, right: int = 2) -> int:
        return left + right

    command = typer_seam.command_from("add", add, typer_seam.TyperCommand)
    assert command(args=["3", "--right", "4"], prog_name="add", standalone_mode=False) == 7


def test_completions_have_a_value_and_a_text() -> None:
    item = typer_seam.completion_item("flux", "a pipeline")
    assert (item.value, item.help) == ("flux", "a pipeline")


def test_the_shells_are_registered() -> None:
    typer_seam.register_shells()
    from typer._completion_classes import BashComplete

    assert BashComplete.name == "bash"
