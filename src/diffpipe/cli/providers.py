"""diffpipe providers: the families that can be built."""

from __future__ import annotations

from dataclasses import asdict
from difflib import get_close_matches
from typing import Annotated, Any

import typer

from ..errors import NotFoundError
from ..plugins import providers
from ..specs import Provider
from ..vocabulary import read, shown
from . import output, tree


def _names(incomplete: str) -> list[str]:
    """The names of providers that begin so."""
    return [name for name in providers() if name.startswith(incomplete)]


Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ROWS = {"list": "List every provider and its types.", "show": "Show one provider: types, classes, models, defaults."}


def make() -> Any:
    commands: dict[str, Any] = {"list": list_, "show": show}
    return tree.group(
        "providers",
        "List or show the families that can be built.",
        lambda: ROWS,
        lambda name: tree.command(name, commands[name], ROWS[name]) if name in commands else None,
    )


def list_(json: Json = False) -> None:
    if json:
        output.result_json([_facts(provider) for provider in providers().values()])
        return
    rows = (
        (p.name, ", ".join(row.name for row in p.types), p.title + (" (legacy)" if p.legacy else ""))
        for p in providers().values()
    )
    output.table(("PROVIDER", "TYPES", "TITLE"), rows)


def _facts(provider: Provider) -> dict[str, Any]:
    return {k: v for k, v in asdict(provider).items() if k != "vocabulary"}


def show(
    provider: Annotated[str, typer.Argument(metavar="PROVIDER", help="A provider's name.", autocompletion=_names)],
    json: Json = False,
) -> None:
    found = providers().get(provider)
    if found is None:
        near = get_close_matches(provider, providers(), n=3)
        raise NotFoundError(
            f"there is no provider {provider!r}",
            f"did you mean {' or '.join(near)}?" if near else "diffpipe providers list shows them",
        )
    words = read(found.vocabulary) if found.vocabulary else {}
    if json:
        output.result_json(_facts(found) | ({"vocabulary": words} if words else {}))
        return
    output.result(f"{found.title}{' (legacy)' if found.legacy else ''}  {found.homepage}".rstrip())
    for row in found.types:
        output.result(f"\n{row.name}")
        facts = {
            "class": row.pipeline or "the one the model names, or --class",
            "models": ", ".join(row.repositories) or "any",
            "dtype": row.dtype,
            "defaults": ", ".join(f"{name} {value}" for name, value in row.defaults.items()),
            "needs": ", ".join(name for name, fields in row.flags.items() if fields.get("required")),
            "notes": row.notes,
        }
        output.table(("", "", ""), (("", name, value) for name, value in facts.items() if value))
    for kind, line in shown(words).items():
        output.result(f"\n{kind}: {line}")
