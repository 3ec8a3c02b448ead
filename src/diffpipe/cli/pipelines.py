"""diffpipe pipelines: what the cache holds."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from ..cache.entry import KEY, SHORT
from ..cache.states import Standing, glance, standing, unconfirmed
from ..cache.store import Store
from ..core.canonical import JsonObject
from ..core.errors import CacheError
from ..core.flag import Flag
from ..core.manifest import Manifest
from ..storage.disk import readable
from . import output, tree


def _names(incomplete: str) -> list[str]:
    """The names of built pipelines that begin so."""
    return [name for name in Store().name_list() if name.startswith(incomplete)]


Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Pipeline = Annotated[
    str,
    typer.Argument(metavar="PIPELINE", help="A name, a key, or 6 or more digits of a key.", autocompletion=_names),
]
Days = Annotated[
    int | None, typer.Option("--unused-for", metavar="DAYS", help="Also entries not used for so many days.", min=0)
]

BAD = ("damaged", "other-version")  # states of an entry that this diffpipe can do nothing with but remove
ROWS = {
    "list": "List built pipelines, the last used first.",
    "show": "Show one pipeline: components, sizes, sources, flags.",
    "rename": "Give a pipeline another name.",
    "remove": "Remove a pipeline; its last name takes the cache entry with it. Models stay.",
    "prune": "Remove entries that can no longer be used, and what crashes left.",
    "verify": "Read every file again and compare it with the build.",
    "export": "Write a pipeline with all its files as one file, a bundle.",
    "import": "Take in a bundle, each file checked by its digest.",
}


def make() -> Any:
    text = "List, show, rename, remove, prune, verify, export or import built pipelines."
    commands = {
        "list": list_, "show": show, "rename": rename, "remove": remove, "prune": prune, "verify": verify,
        "export": export, "import": import_,
    }  # fmt: skip
    return tree.group("pipelines", text, lambda: ROWS, lambda name: _command(commands, name))


def _command(commands: dict[str, Any], name: str) -> Any:
    return tree.command(name, commands[name], ROWS[name]) if name in commands else None


def list_(json: Json = False) -> None:
    store = Store()
    names: dict[str, list[str]] = {}
    for name, key in store.names().items():
        names.setdefault(key, []).append(name)
    found = sorted((glance(store, key) for key in sorted(store.keys())), key=lambda one: -_last_used(one))
    if json:
        output.result_json([_row(one, names.get(one.key, [])) for one in found])
        return
    if not found:
        output.say("no pipelines yet: diffpipe build demo makes the first")
        return
    marked = any(one.state != "whole" for one in found)
    headings = ("NAME", "KEY", "PROVIDER", "TYPE", "MODEL", "DTYPE", "SIZE", "USED")
    rows = (_cells(one, ", ".join(names.get(one.key, ["-"]))) for one in found)
    if marked:
        states = (one.state.replace("-", " ") if one.state != "whole" else "" for one in found)
        output.table((*headings, "STATE"), ((*row, state) for row, state in zip(rows, states, strict=True)))
    else:
        output.table(headings, rows)
    _warn_of(found)


def _warn_of(found: Iterable[Standing]) -> None:
    for one in found:
        if one.state in BAD:
            output.warn(f"{one.key[:SHORT]}: {one.said}", one.removal)


def _last_used(one: Standing) -> float:
    return one.entry.last_used() if one.entry else 0.0


def _cells(one: Standing, names: str) -> tuple[str, ...]:
    if one.entry is None:
        return (names, one.key[:SHORT], *["-"] * 6)
    about = one.entry.summary
    facts = (about.provider, about.type, about.model, about.dtype, readable(about.bytes), output.ago(_last_used(one)))
    return (names, one.key[:SHORT], *facts)


def _row(one: Standing, names: list[str]) -> dict[str, Any]:
    """What --json says of an entry. `state` is told of all that is not as it should be; what it holds, where it can be
    read."""
    about: JsonObject = one.entry.summary.to_json() if one.entry else {}
    told: JsonObject = {} if one.state == "whole" else {"state": one.state, "reasons": list(one.reasons)}
    told |= {"remove": one.removal} if one.state in BAD else {}
    return {"names": names, "key": one.key, **about, "last_used": int(_last_used(one)), **told}


def show(pipeline: Pipeline, json: Json = False) -> None:
    store = Store()
    entry = store.find(pipeline)
    manifest = entry.manifest()
    names = [name for name, key in store.names().items() if key == entry.key]
    found = standing(store, entry.key)
    _warn_of([found])
    if json:
        shown = _row(found, names) | {
            "manifest": manifest.to_json(),
            "command": list(record.command) if (record := entry.sources()) else None,
        }
        output.result_json(shown)
        return
    built = datetime.fromtimestamp(entry.summary.built, UTC).strftime("%Y-%m-%d %H:%M UTC")
    facts = [
        ("key", entry.key), ("names", ", ".join(names) or "-"), ("pipeline", manifest.pipeline),
        ("provider", f"{manifest.provider}, {manifest.type}"), ("dtype", manifest.config.dtype),
        *([("without", ", ".join(manifest.config.without))] if manifest.config.without else []),
        *_memory_and_speed(manifest),
        *(("imported", said) for said in unconfirmed(entry, manifest)),
        ("built", built), ("versions", ", ".join(f"{k} {v}" for k, v in manifest.versions.items())),
    ]  # fmt: skip
    output.table(("", ""), facts)
    output.result("")
    output.table(
        ("COMPONENT", "CLASS", "PARAMETERS", "SIZE", "STORED AS", "FROM"),
        (
            (part.name, part.class_name, f"{part.parameters:,}", readable(part.bytes), " ".join(part.dtypes) or "-",
             part.source)
            for part in manifest.components
        ),
    )  # fmt: skip
    output.result("")
    output.table(("FLAG", "KIND", "DEFAULT"), map(_flag_row, manifest.flags))


def _memory_and_speed(manifest: Manifest) -> list[tuple[str, str]]:
    """How it is kept in memory and made faster, where that is not as it comes."""
    from ..memory.knobs import describe

    placement, speed, reason = manifest.config.placement, manifest.config.speed.to_json(), manifest.placement_reason
    placed = ": ".join(text for text in (describe(placement), reason) if text)
    made = ", ".join(name.replace("_", " ") + ("" if value is True else f" {value}") for name, value in speed.items())
    return [("memory", placed)] * bool(placement.to_json()) + [("speed", made)] * bool(speed)


def _flag_row(flag: Flag) -> tuple[str, str, str]:
    default = "required" if flag.required else "" if flag.default is None else str(flag.default)
    return "--" + flag.name.replace("_", "-"), flag.kind + (", repeated" if flag.many else ""), default


def rename(
    pipeline: Pipeline, name: Annotated[str, typer.Argument(metavar="NAME", help="The new name.")], json: Json = False
) -> None:
    store = Store()
    store.rename(pipeline, name)
    _say_done({"renamed": pipeline, "name": name}, f"{pipeline} is now {name}", json)


def remove(pipeline: Pipeline, json: Json = False) -> None:
    from ..cache import prune as work

    store = Store()
    entry = store.get(store.key(pipeline))
    key = store.remove(pipeline)
    gone = key not in set(store.keys())
    if gone and KEY.fullmatch(key):
        _free(store, key)
    left = work.stays(store, entry) if gone and entry else ""
    text = f"removed {pipeline}" + ("" if gone else f"; {key[:SHORT]} stays, it has other names")
    text += f"; {left} stay until diffpipe pipelines prune" if left else ""
    _say_done({"removed": pipeline, "key": key, "entry_removed": gone, "stays": left}, text, json)


def _free(store: Store, key: str) -> None:
    """End the worker of a pipeline that is no more."""
    from ..runners.worker import lifecycle, places

    with suppress(CacheError):  # a folder of workers that none can be in
        lifecycle.stop(places.place_of(store, key))


def _say_done(value: dict[str, Any], text: str, json: bool) -> None:
    if json:
        output.result_json(value)
    else:
        output.say(text)


def prune(
    unused_for: Days = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    json: Json = False,
) -> None:
    from ..cache import prune as work

    store = Store()
    plan = work.plan(store, unused_for)
    if not dry_run:
        work.execute(store, plan)
    if json:
        output.result_json({"dry_run": dry_run, **plan.to_json()})
        return
    for line in plan.lines():
        output.result(line)
    output.say(("would remove " if dry_run else "removed ") + plan.total())


def verify(
    pipeline: Annotated[
        str | None, typer.Argument(metavar="PIPELINE", help="Only this one.", autocompletion=_names)
    ] = None,
    json: Json = False,
) -> None:
    from ..cache.states import verified

    store = Store()
    keys = sorted(store.keys())
    if pipeline:
        keys = [store.key(pipeline)] if store.key(pipeline) in keys else [store.find(pipeline).key]
    if not keys and pipeline is None:
        output.say("no pipelines to verify")
    found: dict[str, Standing] = {}
    known = store.names()
    names = {key: name for name, key in known.items()}
    for key in keys:
        found[key] = verified(store, key)
        if not json:
            output.result(f"{names.get(key, '-')} {key[:SHORT]}: {found[key].said}")
    dangling = [] if pipeline else [name for name, key in known.items() if key not in found]
    if json:
        entries = {key: [] if one.state == "imported" else list(one.reasons) for key, one in found.items()}
        states = {key: one.state for key, one in found.items()}
        output.result_json({"entries": entries, "states": states, "dangling_names": dangling})
    bad = [one for one in found.values() if one.state == "damaged"]
    if bad:
        # Nothing stands for it any more: most likely its successor is built already.
        hint = store.mend(bad[0].key) if bad[0].key in names else bad[0].removal
        raise CacheError(f"{len(bad)} of {len(found)} pipelines are not what was built", hint)
    if dangling:
        raise CacheError(
            f"the name {dangling[0]} stands for no entry", f"diffpipe pipelines prune, or remove {dangling[0]}"
        )


def export(
    pipeline: Pipeline,
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="A file, or a URL such as s3://BUCKET/NAME.tar; in a folder: KEY.tar."),
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    json: Json = False,
) -> None:
    from ..cache.bundle import transfer

    store = Store()
    entry = store.find(pipeline)
    name = pipeline if pipeline in store.name_list() else ""
    with output.copying("exporting") as progress:
        done = transfer.export(store, entry, target, progress, output.say, name=name, force=force)
    if done.there:
        output.say(f"{entry.key[:SHORT]} is there already: nothing to do")
    if json:
        output.result_json({"key": entry.key, "target": done.name, "bytes": done.bytes, "there": done.there})
    else:
        output.result(done.name)


def import_(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A bundle's file or URL.")],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Its name here (default: its own, where that is free).")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Import what is here already; take its name from another pipeline.")
    ] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Take pickled checkpoints, which can run code when loaded.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Take pipelines that run code of their own.")
    ] = False,
    json: Json = False,
) -> None:
    from ..cache.bundle import transfer

    store = Store()
    options = transfer.Options(name or "", "", force, allow_pickle, trust_remote_code)
    with output.copying("importing") as progress:
        done = transfer.bring(store, source, options, progress, output.say)
    short = done.entry.key[:SHORT]
    if done.there:
        output.say(f"{done.name or short} is in the cache already ({short}): nothing to do")
    if not done.name:
        output.say(f"its name stands for another pipeline here: diffpipe pipelines rename {short} NAME gives it one")
    if json:
        row = {"name": done.name, "key": done.entry.key, "bytes": done.bytes, "there": done.there}
        output.result_json(row)
    else:
        output.result(f"{done.name or '-'} {short}")
