"""diffpipe generate NAME: one sub-command a built pipeline, with that pipeline's own call arguments as flags."""

from __future__ import annotations

import functools
import inspect
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, suppress
from math import prod
from typing import Any, Literal

from ..batch.argument_values import argument_name, from_word, unknown_argument
from ..batch.items import SEEDS, Batch
from ..batch.output_paths import BATCH_TEMPLATE, DEFAULT_TEMPLATE, Outputs
from ..batch.sweeps import sweeps
from ..cache import measured
from ..cache.store import SHORT, Entry, Store
from ..catalog.plugins import providers
from ..catalog.vocabulary import read
from ..core.canonical import JsonValue
from ..core.errors import Exit, UsageError
from ..core.flag import FORMATS, FRAME_RATES, NOUNS, PER_CALL, Flag, OutputKind
from ..core.manifest import Manifest
from ..core.request import Outcome, Request
from ..results.metadata import About
from ..runners import inputs
from ..runners.job import Ears, Job, Previews
from . import batch_run, output, previews, ray_options, tree, workers
from .flags import (
    CONTEXT,
    arguments,
    option,
    parameter,
    reporting,
    with_parameters,
)

CALL, RUN = "Call arguments", "Run options"
# Pixels in all, up to which no prediction is asked for: it takes 20 ms to import.
ORDINARY = 1024 * 1024
AMOUNT = {"width": 1024, "height": 1024, "num_frames": 1, **dict.fromkeys(PER_CALL, 1)}


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
    taken = {option.name for option in own}
    shown = [flag for flag in flags if flag.name not in taken]

    def function(context: Any, **values: Any) -> Exit:
        explicit = {name for name in values if context.get_parameter_source(name).name == "COMMANDLINE"}
        return _generate(reference, entry, manifest, shown, values, explicit)

    text = f"{manifest.pipeline} ({manifest.provider}, {manifest.type}), {entry.key[:SHORT]}."
    command = with_parameters(function, [CONTEXT, *(parameter(flag, CALL) for flag in shown), *own])
    return tree.command(reference, command, text, batch_run.presets_text())


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


def _generate(
    reference: str,
    entry: Entry,
    manifest: Manifest,
    flags: list[Flag],
    values: dict[str, Any],
    explicit: set[str],
) -> Exit:
    """Check everything, then load, then make one item after another."""
    output.set_up(quiet=values["quiet"], verbose=values["verbose"], log_file=values["log_file"])
    from ..cache.verify import locate

    ray_options.check(values)
    wish = workers.keep_warm(values["keep_warm"], allowed=values["worker"])
    worker = workers.PipelineWorker(Store(), entry, manifest, wish)
    with ExitStack() as stack:
        source = batch_run.source(values["prompts_from"], values["prompts_format"], stack)
        batch = _batch(reference, entry, manifest, flags, values, explicit)
        path = batch_run.journal_path(values, batch)
        if path and path.exists():
            batch = batch_run.with_journal(batch, path, stack, to_read=values["dry_run"])
        previews.check(values, batch)
        keep_going = values["keep_going"]
        total = batch_run.validated(source, batch, bool(keep_going)) if source.again else None
        if values["dry_run"]:
            return batch_run.listed(source, batch, bool(keep_going), values["json"])
        if path and not batch.journal:
            batch = batch_run.with_journal(batch, path, stack)
        _warn_of_versions(manifest, reference)
        words = _Words(manifest)
        words(str(batch.arguments.get("prompt") or ""))
        locations = locate(entry, manifest)
        with suppress(OSError):  # a cache that may only be read serves as well
            entry.touch()
        if batch.journal and not (batch.resume and batch.journal.header):
            batch.journal.begin(batch.key, batch.origin)
        alone = total == 1 and batch.journal is None
        looks = stack.enter_context(previews.opened(values, manifest, batch))
        read = inputs.reader(batch.flags, batch.fit, _once)
        sized = {"width", "height"} & set(batch.flags)

        def check(first: Request) -> None:
            if source.stream is None:
                given = {} if inputs.piped(first, batch.flags) else read(first)
                if not sized and (picture := next(inputs.frames_of(given), None)):  # results are as large as it
                    batch.limit({**given, "width": picture.width, "height": picture.height})
                if batch.seed is None and not batch.swept:
                    output.say(f"seed {first.seed}")

        seen = previews.previews(values)
        job = Job(
            batch_size=values["batch_size"],
            # What comes from a stream is made at once, and --fail-fast stops at the item that failed.
            several=source.again and keep_going is not False,
            fit=batch.fit,
            about=None if values["no_metadata"] else About(reference, batch.fit, values["batch_size"]),
            step_down=values["step_down"],
            previews=Previews(seen.every, seen.decode) if seen else None,
        )

        def here(requests: Iterator[Request], ears: Ears) -> Iterator[Outcome]:
            from ..runners import local

            how = local.how_of(job, ears, read, functools.partial(measured.add, entry.folder))
            return local.run(manifest, locations, requests, how)

        def make(requests: Iterator[Request]) -> Iterator[Outcome]:
            if values["runner"] == "ray":
                ears = Ears(lambda request, done, steps: None, _once)
                yield from previews.watched(ray_options.run(values, entry, manifest, requests, job, ears, total), looks)
                return
            with output.steps(reference, total or 0) as show:
                ears = Ears(_numbered(show, total), _once, seen.show if seen else None)
                link = worker.find()
                made = worker.run(link, requests, job, ears, alone=alone) if link else here(requests, ears)
                yield from previews.watched(made, looks)

        return batch_run.Run(source, batch, make, check, words, keep_going, values["json"], alone, looks.earlier)()


def _batch(
    reference: str,
    entry: Entry,
    manifest: Manifest,
    flags: list[Flag],
    values: dict[str, Any],
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
            values["output"],
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


def _limit(
    entry: Entry, manifest: Manifest, values: Mapping[str, Any], at_once: int
) -> Callable[[Mapping[str, Any]], None]:
    """What raises for call arguments that need far more memory than there is; nothing does under --force."""
    found: list[Callable[[Mapping[str, Any]], None]] = []

    def limit(arguments: Mapping[str, Any]) -> None:
        sizes = [int(arguments.get(name) or usual) for name, usual in AMOUNT.items()]
        if values["force"] or ray_options.elsewhere(values) or prod(sizes) * at_once <= ORDINARY:
            return
        if not found:
            from ..memory.refuse import check_of

            found.append(check_of(manifest, entry.locations(), at_once, values["step_down"]))
        found[0](arguments)

    return limit


def _once(line: str) -> None:
    """Warn of what was not warned of yet."""
    if not output.warned(line):
        output.warn(line)


def _numbered(show: Callable[[str, int, int], None], total: int | None) -> Callable[[Request, int, int], None]:
    """Progress with the item's number among those that are made."""
    seen: list[str] = [""]
    number = 0

    def shown(request: Request, done: int, steps: int) -> None:
        nonlocal number
        if request.id != seen[0]:
            seen[0], number = request.id, number + 1
        show(f"{number}/{total or '?'}", done, steps)

    return shown


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


def _warn_of_versions(manifest: Manifest, reference: str) -> None:
    """Say when diffusers is another version than the flags were read from."""
    from importlib.metadata import version

    built, now = manifest.versions.get("diffusers"), version("diffusers")
    if built != now:
        output.warn(
            f"{reference} was built with diffusers {built}, and {now} is installed; build it again with --force"
        )


class _Words:
    """Tells which words of a prompt a model with a small vocabulary does not know, each once on stderr."""

    def __init__(self, manifest: Manifest) -> None:
        provider = providers().get(manifest.provider)
        self.name = provider.name if provider else ""
        self.known = read(provider.vocabulary) if provider and provider.vocabulary else None
        self.told: set[str] = set()

    def __call__(self, prompt: str) -> list[str]:
        """The warnings of a prompt."""
        if self.known is None:
            return []
        found = []
        for word, near in self.known.unknown_words(prompt).items():
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            found.append(f"the model does not know {word!r}; {hint}diffpipe providers show {self.name} lists its words")
            if word not in self.told:
                output.warn(found[-1])
                self.told.add(word)
        return found
