"""What all items of a run share: defaults, then presets, then flags, then --set; and what may not be too large."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from ..batch.argument_values import argument_name, from_word, unknown_argument
from ..batch.items import SEEDS, Batch
from ..batch.output_paths import BATCH_TEMPLATE, DEFAULT_TEMPLATE, Outputs
from ..batch.sweeps import sweeps
from ..cache.entry import Entry
from ..core.canonical import JsonValue
from ..core.errors import UsageError
from ..core.flag import PER_CALL, Arguments, Flag
from ..core.manifest import Manifest
from . import batch_run, ray_options
from .flags import arguments

# Pixels in all, up to which no prediction is asked for: it takes 20 ms to import.
ORDINARY = 1024 * 1024
AMOUNT = {"width": 1024, "height": 1024, "num_frames": 1, **dict.fromkeys(PER_CALL, 1)}


def batch_of(
    reference: str,
    entry: Entry,
    manifest: Manifest,
    flags: list[Flag],
    values: Mapping[str, Any],
    explicit: set[str],
) -> Batch:
    """What all items share: defaults, then presets, then flags, then --set."""
    by_name = {flag.name: flag for flag in flags}
    names = frozenset({*manifest.arguments, *by_name})
    called = arguments(flags, values)
    chosen = {name: value for name, value in called.items() if name in explicit}
    preset = batch_run.from_presets(values["args"] or [], by_name, names, values["strict"])
    own = {name: preset.pop(name) for name in ("seed", "count") if name in preset}
    own |= {name: values[name] for name in ("seed", "count") if name in explicit}
    given = _set(values["set"] or [], by_name, manifest)
    for name in given.keys() & explicit:
        raise UsageError(f"{name} is given by itself and by --set", "leave one of them out")
    chosen |= given
    swept = sweeps(values["sweep"] or [], by_name, names | {"seed"})
    for name in swept:
        if name in explicit or name in chosen:
            raise UsageError(f"{name} is given by itself and by --sweep", "leave one of them out")
    several = bool(values["prompts_from"] or swept)
    count = own.get("count", 1)
    return Batch(
        flags=by_name,
        names=names,
        arguments={**called, **preset, **chosen},
        outputs=Outputs(
            _lasting(values["output"]),
            values["format"],
            values["overwrite"],
            manifest.kind,
            values.get("fps"),
            BATCH_TEMPLATE if several else DEFAULT_TEMPLATE,
        ),
        name=reference,
        key=entry.key,
        origin=secrets.randbelow(SEEDS),
        seed=own.get("seed"),
        count=count,
        swept=swept,
        fit=values["fit"],
        resume=values["resume"] or values["retry_failed"],
        retry=values["retry_failed"],
        limit=_limit(entry, manifest, values, values["batch_size"] if several else min(values["batch_size"], count)),
    )


def _limit(entry: Entry, manifest: Manifest, values: Mapping[str, Any], at_once: int) -> Callable[[Arguments], None]:
    """What raises for call arguments that need far more memory than there is; nothing does under --force."""
    found: list[Callable[[Arguments], None]] = []

    def limit(arguments: Arguments) -> None:
        sizes = [int(arguments.get(name) or usual) for name, usual in AMOUNT.items()]
        if values["force"] or ray_options.elsewhere(values) or prod(sizes) * at_once <= ORDINARY:
            return
        if not found:
            from ..memory.refuse import check_of

            found.append(check_of(manifest, entry.locations(), at_once, values["step_down"]))
        found[0](arguments)

    return limit


def _lasting(output: str | None) -> str | None:
    """Where results go. Raises UsageError for a store of this process: what is in it is gone when the run ends."""
    if output and output.lower().startswith("memory://"):
        raise UsageError("--output: what is at memory:// is gone when the run ends", "name a folder or a store")
    return output


def _set(texts: list[str], flags: Mapping[str, Flag], manifest: Manifest) -> dict[str, JsonValue]:
    """--set KEY=JSON: any argument the call takes and diffpipe does not provide itself.

    Raises UsageError for a key the pipeline does not take, and for a value of another type than its flag's.
    """
    chosen: dict[str, JsonValue] = {}
    known = set(manifest.arguments)
    for text in texts:
        key, mark, value = text.partition("=")
        name = argument_name(key)
        if not mark:
            raise UsageError(f"--set {text} is not KEY=JSON", "for example --set clip_skip=2")
        if name not in known:
            raise unknown_argument(f"--set {text}", key, known)
        if name in chosen:
            raise UsageError(f"--set {name} is given twice", "leave one of them out")
        flag = flags.get(name)
        hint = f"see {flag.option} in --help" if flag else "give JSON: 2, true or '\"text\"'"
        try:
            chosen[name] = from_word(flag, value)
        except ValueError as error:
            raise UsageError(f"--set {text}: {error}", hint) from None
    return chosen
