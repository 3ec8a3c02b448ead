"""What the user sees: results on stdout; messages, warnings, errors and progress on stderr; the detailed log."""

from __future__ import annotations

import functools
import io
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from ..core.access_tokens import redacted
from ..core.errors import CacheError, DiffpipeError
from ..core.printable import printable, printable_json, printable_lines
from ..storage.opening import open_log

LONGEST = 3000  # characters of a line on stderr; of a longer one its beginning and end are shown

_quiet = False
_warned: set[str] = set()


def redact(text: str) -> str:
    """Text with every access token replaced, wherever it came from, and URLs without credentials."""
    text = redacted(text)
    if "=" in text or ":/" in text:
        from ..storage.urls import hidden

        text = hidden(text)
    return text


class _Redacting(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(redact(super().format(record)))


class _LogFile(logging.FileHandler):
    """A log file; where it cannot be written any more, as its disk is full, the run goes on without it."""

    def _open(self) -> io.TextIOWrapper:
        return open_log(self.baseFilename)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        self.setLevel(logging.CRITICAL + 1)  # no more of them
        warn(f"the log {self.baseFilename} ends here: {getattr(error, 'strerror', None) or error}")


def set_up(*, quiet: bool = False, verbose: bool = False, log_file: Path | None = None) -> None:
    """Choose what is shown. The log of `-v` and --log-file has a line a stage, with times, and never a token.

    Raises CacheError if the log file cannot be opened.
    """
    global _quiet
    _quiet = quiet
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)] if verbose else []
    if log_file:
        try:
            handlers.append(_LogFile(log_file, encoding="utf-8"))
        except OSError as error:
            raise CacheError(
                f"cannot write the log {log_file}: {error.strerror}", "choose another --log-file"
            ) from error
    for handler in handlers:
        handler.setFormatter(_Redacting("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=handlers or [logging.NullHandler()], force=True)
    logging.getLogger("diffpipe").setLevel(logging.DEBUG if handlers else logging.WARNING)


def say(text: str) -> None:
    """A line for the user on stderr; nothing under --quiet."""
    logging.getLogger("diffpipe").info("%s", text)
    if not _quiet:
        _tell(text)


def _tell(text: str) -> None:
    """A line on stderr. All that the user sees passes here, or `result`: text of files, hubs and libraries is shown,
    not obeyed. Where stderr cannot be written, the run goes on without it: results and exit code say what became."""
    try:
        print(_shortened(printable(redact(text))), file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - what was not written would fail again at exit


def _shortened(text: str) -> str:
    """A line that one can read, where someone's value of 100 kB is quoted in it."""
    half = LONGEST // 2
    left_out = f" [... {len(text) - 2 * half:,} characters ...] "
    return text if len(text) <= LONGEST else text[:half] + left_out + text[-half:]


def warn(text: str, hint: str = "") -> None:
    _warned.add(text)
    _tell(f"warning: {text}")
    if hint:
        _tell(f"  try: {hint}")


def show_traceback(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """What the interpreter shows of an error at the end (sys.excepthook), as all else is shown: its lines hold what was
    given on the command line and by servers."""
    text = printable_lines(redact("".join(traceback.format_exception(kind, error, where)).rstrip()))
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def interrupted() -> None:
    """The last line of a command that was stopped by Ctrl-C."""
    _tell("interrupted")


class _Shown(logging.Handler):
    """Shows each warning once."""

    def emit(self, record: logging.LogRecord) -> None:
        if not warned(text := record.getMessage()):
            warn(text)


@contextmanager
def warnings_shown() -> Iterator[None]:
    """Show what is warned of meanwhile, by the libraries too, where no item is made that has it among its own."""
    ours, shown = logging.getLogger("diffpipe"), _Shown(logging.WARNING)
    ours.addHandler(shown)
    try:
        yield
    finally:
        ours.removeHandler(shown)


def warned(text: str) -> bool:
    """Whether this very warning was told already."""
    return text in _warned


def fail(error: DiffpipeError) -> None:
    """An error's two lines on stderr; where that cannot be written, the exit code alone says it."""
    _tell(f"error: {error.message}")
    if error.hint:
        _tell(f"  try: {error.hint}")


def result(line: str, *, flush: bool = True) -> None:
    """A result on stdout, at once, so that a pipe's reader need not wait for the next."""
    print(printable(line), flush=flush)


def results(text: str) -> None:
    """A result of several lines."""
    print(printable_lines(text), flush=True)


def result_json(value: Any, *, flush: bool = True) -> None:
    """An object on stdout. What a terminal would obey is escaped as JSON has it."""
    print(printable_json(json.dumps(value, ensure_ascii=not _unicode())), flush=flush)


def _unicode() -> bool:
    return (sys.stdout.encoding or "utf-8").lower().replace("-", "") in ("utf8", "cp65001")


def forgive() -> None:
    """Let no character end a run as it is printed: pipes on Windows, and old locales, lack most. Names of files that
    are no UTF-8 are printed as the bytes they are."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape" if _unicode() else "backslashreplace")


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A plain table on stdout, columns as wide as their longest cell; no headings where all are empty.

    Not rich's: that takes seconds for ten thousand rows.
    """
    cells = [*([list(headings)] if any(headings) else []), *map(list, rows)]
    rows = [list(map(printable, row)) for row in cells]
    widths = [max(len(row[column]) for row in rows) for column in range(len(headings))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    print("\n".join(lines), flush=True)


def ago(seconds: float) -> str:
    """A point in time (seconds since the epoch) as an age for people."""
    age = max(0.0, time.time() - seconds)
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if age >= size:
            count = int(age // size)
            return f"{count} {unit}{'s' * (count > 1)} ago"
    return "just now"


@functools.cache
def console() -> Any:
    """The one rich console on stderr: what is printed on it while a progress bar runs appears above the bar."""
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def steps(label: str, total: int) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr for `total` items of some steps each; on anything but a terminal, nothing.

    Yields a function of (item's label, steps done, steps in all).
    """
    if _quiet or not sys.stderr.isatty():
        yield lambda item, done, steps: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Results printed meanwhile must reach a pipe: Rich would send them to its own console.
    with Progress(*columns, console=console(), transient=True, redirect_stdout=sys.stdout.isatty()) as progress:
        task = progress.add_task(label, total=None)

        def show(item: str, done: int, count: int) -> None:
            # Drawn at each item's end at least: small models finish one between two frames.
            last = done == count
            progress.update(task, description=f"{label} {item}", completed=done, total=count or None, refresh=last)

        yield show


class Items:
    """Progress over items that several workers make; nothing is shown by itself."""

    def item(self) -> None:
        """One more is done."""

    def workers(self, count: int) -> None:
        """So many have work."""


@contextmanager
def items(label: str, total: int | None) -> Iterator[Items]:
    """A progress bar on stderr over items, with their speed; on anything but a terminal, nothing."""
    if _quiet or not sys.stderr.isatty():
        yield Items()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    speed = TextColumn("{task.fields[speed]}")
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        speed,
        TimeRemainingColumn(),
    )
    # As for `steps`.
    with Progress(*columns, console=console(), transient=True, redirect_stdout=sys.stdout.isatty()) as progress:
        task = progress.add_task(label, total=total, speed="")

        class Shown(Items):
            def item(self) -> None:
                speed = progress.tasks[0].speed
                progress.update(task, advance=1, speed=f"{speed:.2f}/s" if speed else "")

            def workers(self, count: int) -> None:
                progress.update(task, description=f"{label}, workers: {count}")

        yield Shown()


@contextmanager
def reading(label: str) -> Iterator[Callable[[str, int], None] | None]:
    """A byte counter on stderr for reading local files; on anything but a terminal, nothing.

    It appears with the first byte: a cache hit reads none, and need not wait for rich.
    """
    if _quiet or not sys.stderr.isatty():
        yield None
        return
    shown: list[Any] = []

    def show(name: str, count: int) -> None:
        if not shown:
            shown.append(_byte_counter())
            shown[0].start()
        shown[0].update(shown[0].task_ids[0], description=f"{label} {name}", advance=count)

    try:
        yield show
    finally:
        for progress in shown:
            progress.stop()


@contextmanager
def copying(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr for bytes; on anything but a terminal, nothing. Yields a function of (done, in all).

    It appears with the first byte, as `reading`'s does.
    """
    if _quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    shown: list[Any] = []

    def show(done: int, total: int) -> None:
        if not shown:
            shown.append(_byte_bar(label, total))
            shown[0].start()
        shown[0].update(shown[0].task_ids[0], completed=done)

    try:
        yield show
    finally:
        for progress in shown:
            progress.stop()


def _byte_bar(label: str, total: int) -> Any:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    progress = Progress(*columns, TimeRemainingColumn(), console=console(), transient=True)
    progress.add_task(label, total=total)
    return progress


def _byte_counter() -> Any:
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, SpinnerColumn, TextColumn, TransferSpeedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), DownloadColumn(), TransferSpeedColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    progress.add_task("", total=None)
    return progress
