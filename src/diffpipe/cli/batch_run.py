"""Batches of `diffpipe generate`: prompt files, presets, sweeps, the journal, and what is told of each item."""

from __future__ import annotations

import codecs
import inspect
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from textwrap import shorten
from typing import IO, Any, Literal

from ..batch.argument_values import OWN
from ..batch.items import Batch, Earlier, Refused, items
from ..batch.journal import opened, opened_to_read
from ..batch.journal_lines import Record
from ..batch.output_paths import base_of
from ..batch.presets import fitting, preset, preset_names
from ..batch.prompt_files import ENDINGS, Row, rows
from ..core.errors import AccessError, DiffpipeError, Exit, NotFoundError, UsageError
from ..core.flag import Flag
from ..core.heard import is_quoted
from ..core.request import Outcome, Request
from ..storage import fetching, stores, urls
from ..storage.disk import unreadable
from ..storage.opening import check_stream, open_stream
from . import output, standard_input
from .flags import option

PANEL = "Batch options"
PEEKED = 4096  # bytes of a file that tell whether it is text
MOST_SHOWN = 10  # refused lines of a file that are told before the run ends


def options(noun: str) -> list[inspect.Parameter]:
    """The options of a run of many items."""
    return [
        option(
            "prompts_from", str | None, None,
            "Make what a file or URL asks for: .txt (a prompt a line), .jsonl or .csv (call arguments by name, and "
            "id, output, seed, count). - reads standard input as it comes.", panel=PANEL, metavar="FILE|URL",
        ),
        option(
            "prompts_format", Literal["text", "jsonl", "csv"] | None, None,
            "The format of the prompts. Default: by the file's ending, else by its first line.", panel=PANEL,
        ),
        option(
            "sweep", list[str] | None, None,
            "Make every prompt with each value: 2,3.5,5 or 1..8 or 0..1..0.25 or a JSON list. May be repeated, for "
            "every combination.", panel=PANEL, metavar="NAME=VALUES",
        ),
        option(
            "args", list[str] | None, None,
            "Call arguments from a TOML or JSON file, or from the preset of that name. Flags win. May be repeated.",
            panel=PANEL, metavar="FILE|NAME",
        ),
        option("strict", bool, False, "Refuse presets with what the pipeline does not take.", "--strict", panel=PANEL),
        option("dry_run", bool, False, "List what would be made and where; make nothing.", "--dry-run", panel=PANEL),
        option(
            "batch_size", int, 1,
            f"How many {noun}s to make in one call, where they differ in prompts and seed alone. Faster on a GPU; the "
            "last bits may differ.", panel=PANEL, metavar="INTEGER", min=1, max=1024,
        ),
        option("resume", bool, False, "Skip what the journal has as done and is unchanged.", "--resume", panel=PANEL),
        option("retry_failed", bool, False, "Resume, and make again what failed.", "--retry-failed", panel=PANEL),
        option(
            "keep_going", bool | None, None,
            "Leave out lines that cannot be used, too; or stop at the first item that fails. Default: refuse files "
            "with such lines, and go on after failures.", "--keep-going/--fail-fast", panel=PANEL, show_default=False,
        ),
        option(
            "journal", Path | None, None,
            "Where to note what was made. Default, with prompts or sweeps: NAME.journal.jsonl beside the output, in "
            "the current folder where that is a URL.",
            panel=PANEL, metavar="FILE",
        ),
    ]  # fmt: skip


# Presets


def presets_folder() -> Path:
    from platformdirs import user_config_path

    return user_config_path("diffpipe") / "presets"


def presets_text() -> str | None:
    """What --help says at its end of the presets there are."""
    names = preset_names(presets_folder())
    return f"Presets for --args: {', '.join(names)}." if names else None


def from_presets(
    references: Sequence[str], flags: Mapping[str, Flag], names: frozenset[str], strict: bool
) -> dict[str, Any]:
    """Call arguments (seed and count too) from presets, the last one's first; what the pipeline does not take is told.

    Raises UsageError for that under --strict.
    """
    values: dict[str, Any] = {}
    for reference in references:
        label = Path(reference).name
        used, left_out = fitting(preset(reference, presets_folder()), label, flags, names | {"seed", "count"})
        if left_out and strict:
            raise UsageError(f"--args {label}: the pipeline takes no {', '.join(left_out)}", "leave --strict out")
        if left_out:
            output.warn(f"--args {label}: left out {', '.join(left_out)}, which the pipeline does not take")
        values |= used
    return values


# Prompt files


@dataclass(frozen=True)
class Source:
    """Where rows come from: a file that is read twice, a stream that is read once, or the flags alone (no stream)."""

    stream: IO[str] | None = None
    label: str = ""
    form: str | None = None
    again: bool = True

    def rows(self, names: frozenset[str]) -> Iterator[Row]:
        if self.stream is None:
            return iter((Row(),))
        if self.again:
            self.stream.seek(0)
        return rows(self.stream, self.label, self.form, names)


def source(prompts: str | None, form: str | None, stack: ExitStack) -> Source:
    """The source that --prompts-from names, opened. Raises NotFoundError for no file, UsageError for one that is no
    text."""
    if prompts is None:
        if form:
            raise UsageError("--prompts-format needs --prompts-from", "name the file, or - for standard input")
        return Source()
    if prompts == "-":
        given = standard_input.stream()
        if given is None or given.closed:
            raise UsageError("--prompts-from -: standard input is closed", "pipe prompts into it, or name a file")
        raw: IO[bytes] = given.buffer
        with stores.explained("standard input"):
            check_stream(raw)
    else:
        prompts = str(fetching.fetched(prompts) if urls.is_url(prompts) else prompts)  # a URL's is read twice, too
        try:
            raw = stack.enter_context(open_stream(prompts))
        except FileNotFoundError:
            raise NotFoundError(f"--prompts-from: there is no file {prompts}", "check the path") from None
        except OSError as error:
            raise unreadable(f"--prompts-from {prompts}", error, "check the path") from None
    regular = prompts != "-" and raw.seekable()
    beginning = raw.read(PEEKED) if regular else b""
    wide = beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if (nul := beginning.find(b"\0")) > 1 and not wide:  # pictures, archives; UTF-16 has one among its first two bytes
        where = f"{Path(prompts).name} line {beginning[:nul].count(10) + 1} has a NUL character"
        raise UsageError(f"--prompts-from: {where}: it is no text", "give .txt, .jsonl or .csv, in UTF-8")
    text = io.TextIOWrapper(raw, "utf-8", errors="surrogateescape", newline="")
    stack.callback(text.detach)
    label = "standard input" if prompts == "-" else Path(prompts).name
    return Source(text, label, form or ENDINGS.get(Path(prompts).suffix.lower()), regular)


# What is refused, and what is listed


def validated(source: Source, batch: Batch, keep_going: bool) -> int:
    """The number of items there are to make.

    Raises UsageError if there are none, and, unless `keep_going`, if any cannot be made; all of a file's are told.
    """
    refused: list[Refused] = []
    count = earlier = bad = 0
    for item in items(source.rows(batch.names | OWN.keys()), replace(batch, thorough=False)):
        if isinstance(item, Refused):
            if isinstance(item.error, AccessError | stores.StoreError) and not keep_going:
                raise item.error  # and not after as many timeouts as there are items
            bad += 1
            refused += [item] if len(refused) < MOST_SHOWN else []
        elif isinstance(item, Earlier):
            earlier += 1
        else:
            count += 1
    if bad and not keep_going:
        if bad == 1:
            raise refused[0].error
        for one in refused:
            output.fail(one.error)
        raise UsageError(
            f"{source.label or 'the run'}: {bad} items cannot be made, {count + earlier} can",
            "mend them, or pass --keep-going to leave them out",
        )
    if not count + earlier + bad:
        raise UsageError(f"--prompts-from: there are no prompts in {source.label}", "a prompt a line")
    return count + earlier


def listed(source: Source, batch: Batch, keep_going: bool, as_json: bool) -> Exit:
    """Print what would be made and where."""
    count = bad = 0
    for item in items(source.rows(batch.names | OWN.keys()), batch):
        if isinstance(item, Refused):
            if not keep_going:
                raise item.error
            bad += 1
            _tell_failure(item.id, None, item.error, [], as_json)
        elif isinstance(item, Request):
            count += 1
            _list(item, batch, as_json)
    output.say(f"{count} items would be made" + (f", {bad} cannot be" if bad else ""))
    return Exit.PARTIAL if bad else Exit.OK


def _list(item: Request, batch: Batch, as_json: bool) -> None:
    paths = [urls.shown(path) for path in item.paths]
    named = batch.media & item.arguments.keys()
    arguments = {**item.arguments, **{name: _shown(item.arguments[name]) for name in named}}
    if as_json:
        shown = {"id": item.id, "path": paths[0], "paths": paths, "seed": item.seed}
        output.result_json({**shown, "arguments": arguments}, flush=False)
        return
    swept = [f"{name}={arguments[name]}" for name in batch.swept if name in arguments]
    prompt = shorten(str(arguments.get("prompt") or ""), 60, placeholder="…")
    output.result("\t".join([" ".join(paths), f"seed={item.seed}", *swept, *([prompt] if prompt else [])]), flush=False)


def _shown(value: Any) -> Any:
    """A path, or several, without credentials."""
    return [_shown(one) for one in value] if isinstance(value, list) else urls.shown(str(value))


# The run


@dataclass
class _Count:
    """What became of the items so far; `refused`: the error that ends a stream."""

    made: int = 0
    failed: int = 0
    earlier: int = 0
    failed_earlier: int = 0
    refused: DiffpipeError | None = None


@dataclass(frozen=True)
class Run:
    """How a run goes. `make` turns requests into outcomes, the model loaded once it is asked for the first.

    `check` raises for a first request that cannot work, before that. `words` are warnings of a prompt. `keep_going`:
    None to refuse lines that cannot be used, but to go on after failures. `alone`: whether an error is the run's own.
    `earlier` is told what the journal has of an item that is not made again.
    """

    source: Source
    batch: Batch
    make: Callable[[Iterator[Request]], Iterator[Outcome]]
    check: Callable[[Request], None]
    words: Callable[[str], list[str]]
    keep_going: bool | None
    as_json: bool
    alone: bool
    earlier: Callable[[Record], None] = lambda record: None
    count: _Count = field(default_factory=_Count)

    def make_all(self) -> None:
        """Make every item, note it in the journal, and report it on stdout."""
        planned = self._planned()
        first = next(planned, None)
        if first is None:
            return
        self.check(first)
        for outcome in self.make(chain([first], planned)):
            self._end(outcome)
            if outcome.error and self.keep_going is False:
                break

    def finish(self) -> Exit:
        """Say what was made. Raises the error of the line that ended the run."""
        if self.count.refused:
            raise self.count.refused
        if self.batch.journal:
            self.batch.journal.check_there()
            output.say(_summary(self.count))
        return Exit.PARTIAL if self.count.failed or self.count.failed_earlier else Exit.OK

    def _planned(self) -> Iterator[Request]:
        """The requests to make; the journal knows of each before it is made, and of what cannot be."""
        journal = self.batch.journal
        for item in items(self.source.rows(self.batch.names | OWN.keys()), self.batch):
            if isinstance(item, Request):
                if journal:
                    journal.clear(item.id)
                    journal.started(item.id, item.item, item.seed, item.paths)
                yield item
            elif isinstance(item, Earlier):
                self.count.earlier += 1
                self.count.failed_earlier += item.record.state == "failed"
                self.earlier(item.record)
            elif self.keep_going or (self.batch.resume and self.source.again):
                # A file was checked whole before: what is refused only now (a finished file that was changed since)
                # must not cost the others.
                self.count.failed += 1
                if journal:
                    journal.refused(item.id, item.error.message)
                _tell_failure(item.id, None, item.error, [], self.as_json)
            else:
                self.count.refused = item.error
                return

    def _end(self, outcome: Outcome) -> None:
        """Note and tell what became of an item. Raises its error where it is the run's own."""
        request, journal = outcome.request, self.batch.journal
        own = list(dict.fromkeys(outcome.warnings))
        for text in own:
            line = text if self.alone or is_quoted(text) else f"{request.id}: {text}"
            # Each step down, and what should be known of an input, is told when it comes up.
            if not any(map(output.warned, (text, line, f"{request.id}: {text}"))):
                output.warn(line)
        warnings = [*own, *self.words(str(request.arguments.get("prompt") or ""))]
        if outcome.error is None:
            self.count.made += 1
            if journal:
                made = outcome.artifacts
                paths, stored = [file.path for file in made], {file.path: file.stored for file in made if file.stored}
                journal.done(request.id, request.item, request.seed, paths, made[0].seconds, warnings, stored)
            _tell(outcome, warnings, self.as_json)
            return
        self.count.failed += 1
        if journal:
            journal.failed(request.id, request.item, request.seed, outcome.error.message)
        if self.alone:
            raise outcome.error
        _tell_failure(request.id, request.seed, outcome.error, warnings, self.as_json)


def _tell(outcome: Outcome, warnings: Sequence[str], as_json: bool) -> None:
    """A line on stdout for each file; `index` counts the run's results from 1, as {index} does."""
    request = outcome.request
    for place, made in enumerate(outcome.artifacts, 1):
        if not as_json:
            output.result(made.path)
            continue
        shown = {"id": request.id, "path": made.path, "seed": made.seed, "index": request.index + place}
        shown |= {"seconds": round(made.seconds, 3), "warnings": list(warnings), "error": None}
        output.result_json(shown | dict(made.details))


def _tell_failure(item_id: str, seed: int | None, error: DiffpipeError, warnings: Sequence[str], as_json: bool) -> None:
    """An item's error on stderr, and as an object on stdout for who reads those."""
    output.fail(DiffpipeError(f"{item_id}: {error.message}", error.hint))
    if as_json:
        shown = {"id": item_id, "path": None, "seed": seed, "seconds": 0.0, "warnings": list(warnings)}
        output.result_json({**shown, "error": error.message})


def _summary(count: _Count) -> str:
    parts = [f"{count.made} made", f"{count.failed} failed" if count.failed else ""]
    parts += [f"{count.earlier - count.failed_earlier} done before" if count.earlier else ""]
    parts += [f"{count.failed_earlier} failed before (--retry-failed)" if count.failed_earlier else ""]
    return ", ".join(part for part in parts if part)


# The journal


def with_journal(batch: Batch, path: Path, stack: ExitStack, *, to_read: bool = False) -> Batch:
    """A batch that keeps a journal, or is only checked against one (`to_read`). Its seed is that of the journal's runs
    before: the same rows are the same items, which are then known as made.

    Raises UsageError for a journal of another pipeline that is to be resumed.
    """
    journal = stack.enter_context(opened_to_read(path) if to_read else opened(path))
    if journal.header is None:
        return replace(batch, journal=journal)
    if batch.resume and journal.header.pipeline != batch.key:
        raise UsageError(f"{path} is of another pipeline", "choose another --journal, or leave --resume out")
    return replace(batch, journal=journal, origin=journal.header.seed)


def journal_path(values: Mapping[str, Any], batch: Batch) -> Path | None:
    """Where the journal lies; None for runs of flags alone, which keep none unless they are told to."""
    wanted = ("prompts_from", "sweep", "journal", "resume", "retry_failed")
    if not any(values[name] for name in wanted):
        return None
    if given := values["journal"]:
        if urls.was_url(given):
            raise UsageError("--journal is a file here, not at a URL", "name a file on a disk")
        return Path(given)
    there = base_of(batch.outputs)
    return (Path() if urls.is_url(there) else Path(there)) / f"{batch.name}.journal.jsonl"
