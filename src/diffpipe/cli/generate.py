"""diffpipe generate NAME: one sub-command a built pipeline, with that pipeline's own call arguments as flags."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any, Literal

from ..cache.entry import SHORT
from ..cache.store import Store
from ..core.errors import Exit
from ..core.flag import FORMATS, FRAME_RATES, NOUNS, OutputKind
from . import batch_run, output, previews, ray_options, tree, workers
from .flags import (
    CONTEXT,
    available,
    option,
    parameter,
    reporting,
    with_parameters,
)
from .generation import Generation

CALL, RUN = "Call arguments", "Run options"


def make() -> Any:
    return tree.group("generate", "Make pictures, video or sound with a built pipeline.", _rows, _make)


def _rows() -> dict[str, str]:
    store = Store()
    return {
        name: f"{entry.summary.pipeline} from {entry.summary.model}"
        for name, key in store.names().items()
        if (entry := store.get(key))
    }


def _make(reference: str) -> Any:
    store = Store()
    entry = store.find(reference)
    manifest = entry.manifest()
    flags = list(manifest.flags)
    own = options(manifest.kind, {flag.name for flag in flags})
    shown = list(available(flags, own))

    def function(context: Any, **values: Any) -> Exit:
        explicit = {name for name in values if context.get_parameter_source(name).name == "COMMANDLINE"}
        output.set_up(quiet=values["quiet"], verbose=values["verbose"], log_file=values["log_file"])
        ray_options.check(values)
        return Generation(reference, entry, manifest, shown, values, explicit)()

    text = f"{manifest.pipeline} ({manifest.provider}, {manifest.type}), {entry.key[:SHORT]}."
    command = with_parameters(function, [CONTEXT, *(parameter(flag, CALL) for flag in shown), *own])
    return tree.command(reference, command, text, batch_run.presets_text())


# Long: one row an option, in the order of --help.
def options(kind: OutputKind, arguments: Collection[str] = ()) -> list[inspect.Parameter]:
    """The run options of a pipeline that makes this kind of output and takes these call arguments."""
    formats, noun = FORMATS[kind], NOUNS[kind]
    return [
        option(
            "output", str | None, None,
            f"Where the {noun}s go: a path or URL with fields {{name}} {{key}} {{id}} {{index}} {{seed}} {{prompt}} "
            "{ext}, or a folder ending in /. Default: {name}-{seed}.{ext}; of prompt files and sweeps "
            "{name}-{id}.{ext}",
            "--output", "-o", panel=RUN, metavar="TEMPLATE",
        ),
        option(
            "format", Literal[formats] | None, None,
            f"File format. Default: by the output's ending, else {formats[0]}."
            + (" frames: a folder of pictures." if kind == "video" else ""), panel=RUN,
        ),
        *([FPS] if kind == "video" and not set(FRAME_RATES) & set(arguments) else []),
        option(
            "seed", int | None, None,
            f"Seed of the first {noun} of each prompt; the next ones count up. Default: a fresh random one.", panel=RUN,
            metavar="INTEGER",
        ),
        option(
            "count", int, 1, f"How many {noun}s to make of each prompt, each with its own seed.", panel=RUN,
            metavar="INTEGER", min=1,
        ),
        option(
            "set", list[str] | None, None,
            "Pass a call argument that has no flag. May be repeated.", panel=RUN, metavar="KEY=JSON",
        ),
        option(
            "fit", bool, False,
            "Take the nearest size or number of frames that the pipeline can make, and crop pictures to it.", "--fit",
            panel=RUN,
        ),
        option("overwrite", bool, False, "Replace files that exist.", "--overwrite", panel=RUN),
        option(
            "force", bool, False,
            "Try it although it is predicted to need more than twice the memory that this machine has in all.",
            "--force", panel=RUN,
        ),
        option(
            "no_metadata", bool, False,
            "Leave out of the files what they were made with (diffpipe inspect and reproduce need it).",
            "--no-metadata", panel=RUN,
        ),
        option(
            "step_down", bool, True,
            f"Where memory runs out, try the {noun} again with less: VAE slicing and tiling, then attention slicing, "
            "offloading, layerwise casting, quantization. For that one alone; --no-step-down fails instead.",
            "--step-down/--no-step-down", panel=RUN,
        ),
        *previews.options(kind),
        *workers.options(RUN),
        *batch_run.options(noun),
        *ray_options.options(),
        *reporting(RUN, f"Print a JSON object a {noun} instead of its path."),
    ]  # fmt: skip


FPS = option(
    "fps", float | None, None,
    "Frames a second of the video file. Default: what the pipeline is told, or made for.", panel=RUN, metavar="NUMBER",
    min=0.1, max=240,
)  # fmt: skip
