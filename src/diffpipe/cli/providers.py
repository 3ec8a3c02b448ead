"""diffpipe providers: the families that can be built."""

from __future__ import annotations

from dataclasses import asdict
from difflib import get_close_matches
from typing import Annotated, Any

import typer

from ..catalog.plugins import providers
from ..catalog.rows import Provider
from ..catalog.schedulers import schedulers_of
from ..catalog.vocabulary import read
from ..core.errors import NotFoundError
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
        (p.name, ", ".join(row.title for row in p.types), p.title + (" (legacy)" if p.legacy else ""))
        for p in providers().values()
    )
    output.table(("PROVIDER", "TYPES", "TITLE"), rows)


def _facts(provider: Provider) -> dict[str, Any]:
    facts = {k: v for k, v in asdict(provider).items() if k != "vocabulary"}
    types = [row | {"schedulers": schedulers_of(row["pipeline"])} for row in facts["types"]]
    return facts | {"types": types}


def _schedulers(provider: Provider) -> dict[tuple[str, ...], list[str]]:
    """What --scheduler takes, with the types that take it: most types of a provider take the same."""
    found: dict[tuple[str, ...], list[str]] = {}
    for row in provider.types:
        if names := schedulers_of(row.pipeline):
            found.setdefault(names, []).append(row.name)
    return found


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
    words = read(found.vocabulary) if found.vocabulary else None
    if json:
        output.result_json(_facts(found) | ({"vocabulary": words.document} if words else {}))
        return
    output.result(f"{found.title}{' (legacy)' if found.legacy else ''}  {found.homepage}".rstrip())
    for row in found.types:
        output.result("")
        output.result(row.title)
        facts = {
            "class": row.pipeline or "the one the model names, or --class",
            "models": ", ".join(row.repositories) or "any",
            "with": ", ".join(f"{name} from {source}" for name, source in row.components.items()),
            "dtype": row.dtype,
            "defaults": ", ".join(f"{name} {value}" for name, value in row.defaults.items() if value is not None),
            "needs": ", ".join(name for name, fields in row.flags.items() if fields and fields.get("required")),
            "notes": row.notes,
        }
        output.table(("", "", ""), (("", name, value) for name, value in facts.items() if value))
    for names, types in _schedulers(found).items():
        which = "" if len(types) == len(found.types) else f" ({', '.join(types)})"
        output.result("")
        output.result(f"schedulers{which}: {', '.join(names)}")
    for kind, line in (words.shown() if words else {}).items():
        output.result("")
        output.result(f"{kind}: {line}")
