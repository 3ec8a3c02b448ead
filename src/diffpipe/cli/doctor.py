"""diffpipe doctor: what this machine has, in one look."""

from __future__ import annotations

import os
import platform
import shutil
from typing import Annotated, Any

import typer

from ..building.versions import versions
from ..cache.store import Store
from ..sources import hub
from ..storage.disk import readable
from . import output, tree

TEXT = "Show versions, devices, memory, cache, token and hub."


def make() -> Any:
    return tree.command("doctor", doctor, TEXT)


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask the hub.")] = False,
) -> None:
    facts = examine(offline)
    if json:
        output.result_json(facts)
        return
    rows = [("python", facts["python"]), *facts["versions"].items()]
    rows += [(f"device {d['name']}", _device(d)) for d in facts["devices"]]
    cache = facts["cache"]
    rows.append(
        ("cache", f"{cache['pipelines']} pipelines, {readable(cache['bytes'])}; {readable(cache['free'])} free")
    )
    rows.append(("cache folder", cache["folder"]))
    rows.append(("token", "present" if facts["token"] else "none (HF_TOKEN)"))
    rows.append(("hub", facts["hub"]))
    output.table(("", ""), rows)


def _device(device: dict[str, Any]) -> str:
    memory = f", {readable(device['memory'])}" if device["memory"] else ""
    return f"{device['description']}{memory}"


def examine(offline: bool) -> dict[str, Any]:
    """Versions, devices, cache, whether there is a token, and whether the hub answers. Never the token itself."""
    from ..engine.placement.devices import devices

    store = Store()
    folder = store.folder("pipelines")
    size = sum(os.path.getsize(os.path.join(where, name)) for where, _, files in os.walk(store.root) for name in files)
    return {
        "python": platform.python_version(),
        "versions": versions(),
        "devices": devices(),
        "cache": {
            "folder": str(store.root),
            "pipelines": len(store.keys()),
            "bytes": size,
            "free": shutil.disk_usage(folder).free,
        },
        "token": hub.token() is not None,
        "hub": "not asked (offline)"
        if hub.is_offline(offline)
        else "reachable"
        if hub.reachable()
        else "not reachable",
    }
